//! What goes on beside the requests for as long as the service runs: taking over a changed configuration, looking after certificates.

use std::time::Duration;

use actix_web::web;
use proxy_core::supervise::Task;
use tokio::sync::mpsc;

use crate::config::{ConfigWatcher, FilesRead};
use crate::reload;
use crate::state::{App, Source};
use crate::tls;

/// Before the watcher of the configuration is begun anew.
const WATCH_AGAIN_WAIT: Duration = Duration::from_secs(1);

/// Tells of certificates that near their end, as long as the service runs.
pub(super) async fn keep_watching_certificates(app: web::Data<App>) {
    let now = || app.gateway.now().mono;
    let begin = || tls::watch_ends(app.certificates().to_vec());
    app.gateway.supervisor().keep(Task::new("certificate-watch"), now, begin).await;
}

/// Takes over the configuration whenever its files change and on SIGHUP, as long as the service runs.
pub(super) async fn keep_reloading(app: web::Data<App>, files: FilesRead) {
    let now = || app.gateway.now().mono;
    let begin = || reload_on_change(app.clone(), files.clone());
    app.gateway.supervisor().keep(Task::new("config-reload"), now, begin).await;
}

async fn reload_on_change(app: web::Data<App>, files: FilesRead) {
    let Some(source) = &app.source else { return };
    let Ok(mut hangup) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) else {
        return tracing::error!("SIGHUP cannot be caught; use POST /v1/config/reload");
    };
    let mut changed = watch_files(&app, source, files.clone());
    loop {
        tokio::select! {
            change = next_change(&mut changed) => if change.is_none() {
                // The watcher's thread is gone; what changed since the start is noticed again, which does no harm.
                app.gateway.supervisor().count_death("config-watch");
                tracing::error!("the watcher of the configuration panicked and is restarted");
                tokio::time::sleep(WATCH_AGAIN_WAIT).await;
                changed = watch_files(&app, source, files.clone());
                continue;
            },
            Some(()) = hangup.recv() => {}
        }
        // The outcome is in the log either way.
        let _logged = reload::reload(&app).await;
    }
}

/// Where changes of the files are signalled; `None` if they cannot be watched.
fn watch_files(app: &App, source: &Source, files: FilesRead) -> Option<mpsc::Receiver<()>> {
    let (sender, changed) = mpsc::channel(1);
    match ConfigWatcher::start(&source.path, files, sender) {
        Ok(watcher) => {
            app.set_watcher(watcher);
            Some(changed)
        }
        Err(error) => {
            tracing::error!(%error, "the configuration is not watched; use SIGHUP or POST /v1/config/reload");
            None
        }
    }
}

/// `None` if nobody watches any more. Cancel-safe.
async fn next_change(changed: &mut Option<mpsc::Receiver<()>>) -> Option<()> {
    match changed {
        Some(changed) => changed.recv().await,
        None => std::future::pending().await,
    }
}
