//! Logs, by tracing-subscriber: for people on a terminal, JSON on request or where nobody watches.
//!
//! Invariants:
//! - A line carries the fields of every span it was written in, beside its own: whoever looks for a request or a device finds all of it.
//! - What is logged can be changed while the service runs; how a line is written cannot.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{LogFormat, LogSettings};

mod lines;
mod panics;

use lines::{Lines, NoText, SpanFields};

/// The filter of the subscriber that was started first, to change it.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging to standard error, panics included. Calling it twice keeps the first.
pub fn start(settings: &LogSettings) {
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let (filter, handle) = reload::Layer::new(filter(&settings.filter));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(!json && std::io::stderr().is_terminal())
        // Whoever collects the log may go away: what cannot be written is lost, and telling so on the same stream would panic.
        .log_internal_errors(false)
        .fmt_fields(NoText)
        .event_format(Lines { json });
    // A second subscriber is refused; the first one serves as well.
    if tracing_subscriber::registry().with(filter).with(SpanFields).with(lines).try_init().is_ok() {
        let _the_first_one = FILTER.set(handle);
    }
    panics::log_them();
}

/// Logs by another filter from now on.
pub fn set_filter(text: &str) {
    if let Some(handle) = FILTER.get() {
        // It fails only if the subscriber is gone, and then nothing is logged anyway.
        let _no_subscriber = handle.reload(filter(text));
    }
}

/// A list as a field of a line: an array in JSON.
#[must_use]
pub fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    serde_json::Value::from(items).to_string()
}

fn filter(text: &str) -> EnvFilter {
    // Whoever connects could fill the log with bytes that are not HTTP: the HTTP library's complaints are heard on request only.
    let text = if text.contains("actix_http") { text.to_owned() } else { format!("{text},actix_http=off") };
    EnvFilter::try_new(text).unwrap_or_else(|_| EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "DPS_PROXY_TEST_PANICS";

    /// Logs are of a whole process, so the panic happens in one of its own: this test again.
    #[test]
    fn whoever_logs_has_panics_in_the_log_s_own_form() {
        if std::env::var_os(CHILD).is_some() {
            start(&LogSettings { format: LogFormat::Json, filter: "warn".to_owned() });
            let _panicked =
                std::thread::Builder::new().name("broken".to_owned()).spawn(|| panic!("for a test")).unwrap().join();
            return;
        }
        let this_test = "telemetry::tests::whoever_logs_has_panics_in_the_log_s_own_form";
        let again = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this_test, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8(again.stderr).unwrap();
        let [line] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("one line: {stderr}") };
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {stderr}"));
        let told = (&line["level"], &line["message"], &line["thread"]);
        assert_eq!(told, (&"ERROR".into(), &"panicked: for a test".into(), &"broken".into()), "{stderr}");
    }
}
