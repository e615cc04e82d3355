//! Ends the process when the store hangs, even if nothing else of the process gets on any more.
//!
//! Invariants:
//! - It is a thread of its own that waits for nobody: whoever reads the store may hang with it, and so may those who would stop the
//!   service.
//! - The service is told to end in order first: readiness off, who waits is answered, a last line. If it has not ended after the time that
//!   this may take, the process ends all the same. What was acknowledged is on disk.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use actix_web::web;
use anyhow::Context as _;

use crate::config::StoreBackend;
use crate::state::App;

/// The longest time between two looks.
const EVERY_MAX: Duration = Duration::from_secs(1);

/// What an end in order may take beyond its bounds in the configuration.
const MARGIN: Duration = Duration::from_secs(3);

/// For what is left when the service has ended: threads that do not hang.
const LAST: Duration = Duration::from_millis(500);

/// The store is watched until this is dropped.
pub(super) struct Watch {
    _alive: Sender<()>,
}

/// Watches the store of `app`.
///
/// # Errors
/// If no thread can be started.
pub(super) fn watch(app: &web::Data<App>) -> anyhow::Result<Watch> {
    let (alive, ended) = channel();
    let app = Arc::downgrade(&app.clone().into_inner());
    let thread = std::thread::Builder::new().name("store-standstill".to_owned());
    thread.spawn(move || keep_looking(&app, &ended)).context("a thread that watches the store cannot be started")?;
    Ok(Watch { _alive: alive })
}

fn keep_looking(app: &Weak<App>, ended: &Receiver<()>) {
    let mut every = Duration::ZERO;
    while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let Some(app) = app.upgrade() else { return };
        // A database is waited for as long as it is away: every wait for it has an end of its own, and it goes on by itself.
        let longest = match &app.server.store.backend {
            StoreBackend::Sled(sled) => sled.write_stall_max,
            StoreBackend::Postgresql(_) => Duration::MAX,
        };
        every = EVERY_MAX.min(longest / 4);
        if let Some(why) = app.gateway.look_for_store_standstill(longest) {
            return end(&app, &why, ended);
        }
    }
}

fn end(app: &App, why: &str, ended: &Receiver<()>) {
    tracing::error!(path = app.server.store.place(), "the store hangs: {why} (store.write_stall_max)");
    app.set_ready(false);
    app.gateway.supervisor().give_up(format!("the store hangs: {why}"));
    let shutdown = &app.server.shutdown;
    let in_order = ended.recv_timeout(shutdown.readiness_delay + shutdown.drain_timeout + MARGIN);
    if in_order == Err(RecvTimeoutError::Timeout) {
        tracing::error!(
            "threads are blocked by the store, so the service cannot shut down in order; the process exits now"
        );
    } else {
        std::thread::sleep(LAST);
    }
    std::process::exit(1);
}
