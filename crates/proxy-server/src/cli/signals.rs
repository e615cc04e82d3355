//! The signals that end a command.

use tokio::signal::unix::SignalKind;

/// Ready on SIGTERM or SIGINT. Both are caught from the first poll on.
pub(super) async fn stop_signal() {
    first_of(&[SignalKind::terminate(), SignalKind::interrupt()]).await;
}

/// Ready on SIGTERM, SIGINT or SIGHUP, which a terminal sends when it is closed. All are caught from the first poll on.
pub(super) async fn stop_or_hangup_signal() {
    first_of(&[SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]).await;
}

async fn first_of(kinds: &[SignalKind]) {
    let caught: std::io::Result<Vec<_>> = kinds.iter().map(|kind| tokio::signal::unix::signal(*kind)).collect();
    match caught {
        Ok(mut signals) => {
            let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
            let _first = futures_util::future::select_all(waits).await;
        }
        Err(error) => {
            tracing::error!(%error, "signals cannot be caught; only SIGKILL ends this process");
            std::future::pending::<()>().await;
        }
    }
}
