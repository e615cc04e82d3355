//! `GET /v1/assignments/changes`: server-sent events, resumable.
//!
//! Invariants:
//! - Memory per stream is one page of events, however slow the reader; events come from the store, so a restart leaves no gap.
//! - Whatever happens in the feed, nothing of it for this reader included, a stream sends something every `backend.change_heartbeat`,
//!   so that both ends notice a dead one.
//! - A stream ends when its client sends no more, and gives its room back.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::Bytes;
use futures_util::Stream;
use proxy_core::feed::{self, EventId, Next, Start};
use proxy_core::gateway::Gateway;
use proxy_core::ids::TenantName;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::bearer;
use super::tenants::visible_tenants;
use crate::api::changes::{Change, ChangesProblems, Reset};
use crate::api::document::BACKEND;
use crate::api::names::TenantName as WrittenTenant;
use crate::api::problem::Code;
use crate::http::exchange::Exchange;
use crate::http::problem::Problem;
use crate::state::App;

/// The changes.
pub(super) const CHANGES: &str = "/v1/assignments/changes";

/// What a reader is told that missed events.
const MISSED: Reset = Reset {
    reason: "events behind the last one you saw are not kept any more; read the assignments anew with GET /v1/assignments and follow from its feedPosition",
};

/// Follows the changes of assignments.
///
/// Server-sent events: `assignment`, whose `data` is a `Change`, and `reset`, whose `data` is a `Reset`: events were missed, so list the
/// assignments anew and follow from that list's `feedPosition`. The stream goes on from `Last-Event-ID`, or else from now; it sends a comment
/// every `backend.change_heartbeat`, and ends when its client sends no more.
#[utoipa::path(
    get,
    path = CHANGES,
    operation_id = "follow_changes",
    tag = BACKEND,
    params(
        ("Last-Event-ID" = Option<String>, Header, nullable = false, description = "The `id` of the last event that was seen, or a list's `feedPosition`."),
        ("lastEventId" = Option<String>, Query, description = "The same, for clients that cannot set the header."),
        ("tenant" = Option<WrittenTenant>, Query, description = "Only devices of this tenant."),
    ),
    responses(
        (status = 200, description = "The stream.", content_type = "text/event-stream", body = String, headers(
            ("Cache-Control" = String, description = "`no-store`"),
        )),
        ChangesProblems,
    ),
    security(("backendToken" = [])),
)]
pub(super) async fn changes(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let streams = Arc::clone(&app.change_streams);
    let permit = streams.try_acquire_owned().map_err(|_| {
        let most = app.server.backend.change_streams_max;
        Problem::unavailable(
            Code::TooManyStreams,
            format!("{most} streams are open (backend.change_streams_max)"),
            Duration::from_secs(10),
        )
    })?;
    if request.method() == Method::HEAD {
        // A stream without its body has nothing to wait for.
        return Ok(answer().finish());
    }
    let last_seen = last_seen(&request);
    let gateway = Arc::clone(&app.gateway);
    let (after, first) = match gateway.feed_start(last_seen.as_deref()) {
        Start::After(after) => (after, format!("retry: 3000\nid: {}\n: following\n\n", gateway.feed_id(after))),
        Start::Reset(after) => (after, format!("retry: 3000\n{}", reset(&gateway.feed_id(after)))),
    };
    let grows = gateway.feed_grows();
    let heartbeat = app.server.backend.change_heartbeat;
    let reader = Reader {
        gateway,
        tenants,
        after,
        grows,
        ready: VecDeque::from([Bytes::from(first)]),
        heartbeat,
        heartbeat_at: Instant::now() + heartbeat,
        exchange: Exchange::of(&request),
        _permit: permit,
    };
    Ok(answer().streaming(reader.into_stream()))
}

fn answer() -> HttpResponseBuilder {
    let mut answer = HttpResponse::Ok();
    answer.insert_header((CONTENT_TYPE, "text/event-stream")).insert_header((CACHE_CONTROL, "no-store"));
    answer
}

/// Tells a reader that it missed events.
fn reset(go_on_from: &EventId) -> String {
    let data = serde_json::to_string(&MISSED).expect("a text can be written");
    format!("id: {go_on_from}\nevent: reset\ndata: {data}\n\n")
}

/// The last event that the reader has seen. An empty one is none: what an event source sends that has seen no ID yet.
fn last_seen(request: &HttpRequest) -> Option<String> {
    let header = request.headers().get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let query = || {
        let query = web::Query::<Vec<(String, String)>>::from_query(request.query_string()).ok()?;
        query.iter().find(|(name, _)| name == "lastEventId").map(|(_, value)| value.clone())
    };
    let given = |id: &String| !id.trim().is_empty();
    header.filter(given).or_else(query).filter(given)
}

struct Reader {
    gateway: Arc<Gateway>,
    tenants: Option<BTreeSet<TenantName>>,
    after: u64,
    grows: watch::Receiver<u64>,
    ready: VecDeque<Bytes>,
    heartbeat: Duration,
    /// When the next heartbeat is due: `heartbeat` after whatever was sent last.
    heartbeat_at: Instant,
    exchange: Option<Rc<Exchange>>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, actix_web::Error>> {
        futures_util::stream::unfold(self, |mut reader| async move {
            let bytes = reader.next().await?;
            reader.heartbeat_at = Instant::now() + reader.heartbeat;
            Some((Ok(bytes), reader))
        })
    }

    /// The next bytes to send; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.ready.pop_front() {
            return Some(bytes);
        }
        let (gateway, exchange) = (Arc::clone(&self.gateway), self.exchange.clone());
        let stopping = gateway.stopping();
        let peer_is_done = async {
            match exchange {
                Some(exchange) => exchange.connection().peer_done().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => None,
            () = peer_is_done => None,
            found = self.find() => found,
        }
    }

    /// Reads on until there is something for this reader, or it has waited for a heartbeat's time. `None` if it can read no more.
    async fn find(&mut self) -> Option<Bytes> {
        loop {
            self.grows.borrow_and_update();
            match self.gateway.feed_read(self.after).await {
                Ok(Next::Events(events)) if events.is_empty() => tokio::select! {
                    grown = self.grows.changed() => grown.ok()?,
                    () = tokio::time::sleep_until(self.heartbeat_at) => {}
                },
                Ok(Next::Events(events)) => self.take(events)?,
                Ok(Next::Reset(end)) => {
                    tracing::warn!(
                        "a reader of the changes is slower than feed.retention or feed.events_max allow; it is told to start again"
                    );
                    self.after = end;
                    return Some(Bytes::from(reset(&self.gateway.feed_id(end))));
                }
                Err(error) => {
                    tracing::error!(%error, "a stream of changes ends, because the feed cannot be read");
                    return None;
                }
            }
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if Instant::now() >= self.heartbeat_at {
                // With the position: who resumes need not pass again what was of others.
                return Some(Bytes::from(format!("id: {}\n: still here\n\n", self.gateway.feed_id(self.after))));
            }
            // However long the backlog is, others on this thread have their turn after each page.
            tokio::task::yield_now().await;
        }
    }

    /// Makes ready what of a page this reader may see.
    fn take(&mut self, events: Vec<(u64, feed::Change)>) -> Option<()> {
        for (number, change) in events {
            self.after = number;
            if self.tenants.as_ref().is_none_or(|tenants| tenants.contains(&change.tenant)) {
                let data = serde_json::to_string(&Change::from(change)).ok()?;
                let id = self.gateway.feed_id(number);
                self.ready.push_back(Bytes::from(format!("id: {id}\nevent: assignment\ndata: {data}\n\n")));
            }
        }
        Some(())
    }
}
