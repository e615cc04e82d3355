//! Server-sent events, as an `EventSource` reads them.

use serde_json::Value;

use crate::wait::PATIENCE;

/// One event.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Event {
    /// Its ID.
    pub id: String,
    /// Its kind; empty for the greeting.
    pub kind: String,
    /// Its data; `Null` if there is none.
    pub data: Value,
}

/// An open stream.
#[derive(Debug)]
pub struct Events {
    response: reqwest::Response,
    buffer: String,
}

impl Events {
    /// Reads from an answer that has begun.
    ///
    /// # Panics
    /// If the answer is no stream of events.
    #[must_use]
    pub fn new(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, buffer: String::new() }
    }

    /// The next block that has an ID; `None` if the stream has ended.
    ///
    /// # Panics
    /// If nothing comes in time.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(PATIENCE, self.read_next()).await.expect("an event, or the end of the stream, in time")
    }

    async fn read_next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let event = parse(block);
                self.buffer = rest.to_owned();
                if !event.id.is_empty() {
                    return Some(event);
                }
            }
            let chunk = self.response.chunk().await.ok()??;
            self.buffer.push_str(&String::from_utf8_lossy(&chunk));
        }
    }

    /// The next event of a kind; others before it are skipped.
    ///
    /// # Panics
    /// If none comes.
    pub async fn next_of(&mut self, kind: &str) -> Event {
        loop {
            let event = self.next().await.expect("the stream goes on");
            if event.kind == kind {
                return event;
            }
        }
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event::default();
    for (field, value) in block.lines().filter_map(|line| line.split_once(": ")) {
        match field {
            "id" => event.id = value.to_owned(),
            "event" => event.kind = value.to_owned(),
            "data" => event.data = serde_json::from_str(value).expect("data is JSON"),
            _ => {}
        }
    }
    event
}
