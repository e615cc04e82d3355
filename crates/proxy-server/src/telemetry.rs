//! Logs, by tracing-subscriber: for people on a terminal, JSON on request or where nobody watches.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Starts logging to standard error. Calling it twice keeps the first.
pub fn start(settings: &LogSettings) {
    // Whoever connects could fill the log with bytes that are not HTTP: the HTTP library's complaints are heard on request only.
    let filter = if settings.filter.contains("actix_http") {
        settings.filter.clone()
    } else {
        format!("{},actix_http=off", settings.filter)
    };
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        // Whoever collects the log may go away: what cannot be written is lost, and telling so on the same stream would panic.
        .log_internal_errors(false);
    // A second subscriber is refused; the first one serves as well.
    let _already_started = if json {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
}
