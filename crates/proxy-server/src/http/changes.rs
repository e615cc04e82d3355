//! `GET /v1/assignments/changes`: server-sent events, resumable.
//!
//! Invariant: memory per stream is one page of events, however slow the reader; events come from the store, so a restart leaves no
//! gap.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::Bytes;
use futures_util::Stream;
use proxy_core::feed::{EventId, Next, Start};
use proxy_core::gateway::Gateway;
use proxy_core::ids::TenantName;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::backend::visible_tenants;
use super::bearer;
use super::problem::Problem;
use crate::app::App;

/// A comment goes out this often on a quiet stream, so that both ends notice a dead one.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Streams the changes behind `Last-Event-ID` (or `?lastEventId=`), or from now on.
pub(super) async fn changes(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let streams = Arc::clone(&app.change_streams);
    let permit = streams.try_acquire_owned().map_err(|_| {
        let most = app.server.backend.change_streams_max;
        Problem::unavailable(
            "too-many-streams",
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
    let reader =
        Reader { gateway, tenants, after, grows, ready: VecDeque::from([Bytes::from(first)]), _permit: permit };
    Ok(answer().streaming(reader.into_stream()))
}

fn answer() -> HttpResponseBuilder {
    let mut answer = HttpResponse::Ok();
    answer.insert_header((CONTENT_TYPE, "text/event-stream")).insert_header((CACHE_CONTROL, "no-store"));
    answer
}

/// Tells a reader that it missed events.
fn reset(go_on_from: &EventId) -> String {
    format!(
        "id: {go_on_from}\nevent: reset\ndata: {{\"reason\":\"events behind the last one you saw are not kept any more; read the assignments anew with GET /v1/assignments and follow from its feedPosition\"}}\n\n"
    )
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
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, actix_web::Error>> {
        futures_util::stream::unfold(self, |mut reader| async move {
            let bytes = reader.next().await?;
            Some((Ok(bytes), reader))
        })
    }

    /// The next bytes to send; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        let stopping = self.gateway.stopping();
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if stopping.is_cancelled() {
                return None;
            }
            self.grows.borrow_and_update();
            let events = match self.gateway.feed_read(self.after).await {
                Ok(Next::Events(events)) => events,
                Ok(Next::Reset(end)) => {
                    tracing::warn!(
                        "a reader of the changes is slower than feed.retention or feed.events_max allow; it is told to read anew"
                    );
                    self.after = end;
                    return Some(Bytes::from(reset(&self.gateway.feed_id(end))));
                }
                Err(error) => {
                    tracing::error!(%error, "a stream of changes ends, because the feed cannot be read");
                    return None;
                }
            };
            if events.is_empty() {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return None,
                    grown = self.grows.changed() => grown.ok()?,
                    () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b": still here\n\n")),
                }
                continue;
            }
            for (number, change) in events {
                self.after = number;
                if self.tenants.as_ref().is_none_or(|tenants| tenants.contains(&change.tenant)) {
                    let data = serde_json::to_string(&change).ok()?;
                    self.ready.push_back(Bytes::from(format!(
                        "id: {}\nevent: assignment\ndata: {data}\n\n",
                        self.gateway.feed_id(number)
                    )));
                }
            }
        }
    }
}
