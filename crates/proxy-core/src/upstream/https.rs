//! The DPS device API over HTTPS.
//!
//! Invariants: one request on the wire per call. Redirects, ambient proxies and the library's retries are off; HTTP/1.1 only, TLS 1.2 or
//! 1.3. Whatever comes back is bounded here and understood in [`super::answer`]; unknown fields and a missing content type are tolerated.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use percent_encoding::utf8_percent_encode;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::connections::{Connections, HeldBack, Link, SUSPECT_AFTER};
use super::time::{self, TimeAnswer};
use super::{CallResult, Caller, Connect, LastLook, NoAnswer, Upstream, answer, chain};
use crate::ids::{IdScope, InstanceName, OperationId};
use crate::sas::UNRESERVED;
use crate::settings::{Instance, RegistrationSettings};

/// More than any answer needs: DPS's own limit for a message is 96 KB.
const ANSWER_BYTES_MAX: usize = 128 * 1024;

/// Connects to real endpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpsConnect;

impl Connect for HttpsConnect {
    fn connect(
        &self,
        name: &InstanceName,
        instance: &Instance,
        registration: &RegistrationSettings,
    ) -> Result<Arc<dyn Upstream>, String> {
        DpsClient::new(instance, registration)
            .map(|client| Arc::new(client) as Arc<dyn Upstream>)
            .map_err(|problem| format!("instance {name}: {problem}"))
    }
}

/// The client of one instance, with its own connections.
#[derive(Debug)]
pub struct DpsClient {
    connections: Connections,
    endpoint: String,
    id_scope: IdScope,
    api_version: String,
}

impl DpsClient {
    /// A client for `instance`.
    ///
    /// # Errors
    /// If the extra CA is not PEM, or the machine has no root certificates (a container without a CA bundle).
    pub fn new(instance: &Instance, registration: &RegistrationSettings) -> Result<Self, String> {
        Ok(Self {
            connections: Connections::new(instance.extra_ca_pem.as_deref(), registration)?,
            endpoint: instance.endpoint.trim_end_matches('/').to_owned(),
            id_scope: instance.id_scope.clone(),
            api_version: registration.api_version.clone(),
        })
    }

    fn url(&self, caller: &Caller, suffix: &str) -> String {
        let id = utf8_percent_encode(&caller.registration_id, UNRESERVED);
        format!("{}/{}/registrations/{id}{suffix}?api-version={}", self.endpoint, self.id_scope, self.api_version)
    }

    async fn device_call(
        &self,
        target: (Method, String),
        caller: &Caller,
        body: Option<Value>,
        last_look: Option<&LastLook>,
    ) -> CallResult {
        let (http_status, headers, body) = self.call(target, Some(caller), body, last_look).await?;
        answer::read(http_status, |name| text_header(&headers, name), &body)
    }

    async fn call(
        &self,
        (method, url): (Method, String),
        caller: Option<&Caller>,
        body: Option<Value>,
        last_look: Option<&LastLook>,
    ) -> Result<(u16, HeaderMap, Vec<u8>), NoAnswer> {
        let link = self.connections.take().map_err(NoAnswer::NoMeans)?;
        if let Some(Err(held)) = last_look.filter(|_| link.is_used()).map(LastLook::ask) {
            self.connections.give_back(link);
            return Err(NoAnswer::Withheld(held));
        }
        link.begin(last_look.cloned());
        let mut request = link.client.request(method, url);
        if let Some(caller) = caller {
            request = request.header(AUTHORIZATION, &caller.authorization);
        }
        if let Some(body) = &body {
            request = request.json(body);
        }
        let read = async { read_whole(request.send().await?).await };
        tokio::pin!(read);
        let read = match tokio::time::timeout(SUSPECT_AFTER, &mut read).await {
            Ok(read) => read,
            Err(_) => {
                if link.is_old() {
                    self.connections.drop_idle();
                }
                read.await
            }
        };
        match read {
            Ok((http_status, headers, body)) => {
                if body.len() <= ANSWER_BYTES_MAX {
                    self.connections.give_back(link);
                    return Ok((http_status, headers, body));
                }
                Err(NoAnswer::Lost(format!("the answer exceeds {ANSWER_BYTES_MAX} bytes")))
            }
            Err(error) => Err(self.no_answer(&error, &link)),
        }
    }

    /// A failure to connect (TCP or TLS) happens before a byte of the request is written; everything else may have left.
    fn no_answer(&self, error: &reqwest::Error, link: &Link) -> NoAnswer {
        let why = chain(error);
        if let Some(HeldBack(held)) = cause(error) {
            return NoAnswer::Withheld(held);
        }
        // Without a connection nothing can have left on a new client, whichever time-out ended the call. On a connection that is up, the
        // machine may run short when part of the call has left.
        if error.is_connect() || !(link.is_used() || link.has_connected()) {
            return if lacks_means(error) { NoAnswer::NoMeans(why) } else { NoAnswer::NeverLeft(why) };
        }
        let old = link.is_old();
        self.connections.distrust(old);
        if old { NoAnswer::OldConnection(why) } else { NoAnswer::Lost(why) }
    }
}

impl Upstream for DpsClient {
    fn register<'a>(
        &'a self,
        caller: &'a Caller,
        payload: Option<&'a Value>,
        last_look: &'a LastLook,
    ) -> BoxFuture<'a, CallResult> {
        let mut body = json!({ "registrationId": caller.registration_id });
        if let Some(payload) = payload {
            body["payload"] = payload.clone();
        }
        let target = (Method::PUT, self.url(caller, "/register"));
        Box::pin(self.device_call(target, caller, Some(body), Some(last_look)))
    }

    fn poll<'a>(&'a self, caller: &'a Caller, operation_id: &'a OperationId) -> BoxFuture<'a, CallResult> {
        let suffix = format!("/operations/{}", utf8_percent_encode(operation_id.as_str(), UNRESERVED));
        Box::pin(self.device_call((Method::GET, self.url(caller, &suffix)), caller, None, None))
    }

    fn lookup<'a>(&'a self, caller: &'a Caller, last_look: &'a LastLook) -> BoxFuture<'a, CallResult> {
        let body = json!({ "registrationId": caller.registration_id });
        Box::pin(self.device_call((Method::POST, self.url(caller, "")), caller, Some(body), Some(last_look)))
    }

    fn time(&self) -> BoxFuture<'_, Result<TimeAnswer, NoAnswer>> {
        Box::pin(async move {
            let url = format!("{}/{}{}?api-version={}", self.endpoint, self.id_scope, time::PATH, self.api_version);
            let (http_status, headers, body) = self.call((Method::GET, url), None, None, None).await?;
            let proven = self.endpoint.starts_with("https://");
            time::read_answer(http_status, |name| text_header(&headers, name), &body, proven)
        })
    }
}

/// The first cause of a type, if it is among them.
fn cause<E: std::error::Error + Copy + 'static>(error: &dyn std::error::Error) -> Option<E> {
    std::iter::successors(error.source(), |error| error.source()).find_map(|error| error.downcast_ref::<E>()).copied()
}

/// Whether this machine has run out of what a connection takes: descriptors, ports, memory.
fn lacks_means(error: &dyn std::error::Error) -> bool {
    use rustix::io::Errno;
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    std::iter::successors(error.source(), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .filter_map(Errno::from_io_error)
        .any(|errno| lacking.contains(&errno))
}

/// Reads no further than one piece beyond [`ANSWER_BYTES_MAX`].
async fn read_whole(mut response: Response) -> reqwest::Result<(u16, HeaderMap, Vec<u8>)> {
    let http_status = response.status().as_u16();
    let headers = response.headers().clone();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok((http_status, headers, body))
}

fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
