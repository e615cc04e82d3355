//! The sections without cross-references: log, shutdown, and the rules of the core.

use std::time::Duration;

use proxy_core::settings::{AttestationSettings, FeedSettings, LineSettings, RegistrationSettings};

use super::reader::Section;
use super::{LogFormat, LogSettings, ShutdownSettings};

pub(super) fn log(root: &Section<'_>) -> LogSettings {
    let section = root.section("log");
    let formats = [("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];
    let format = section.choice("format", "auto", &formats).unwrap_or(LogFormat::Auto);
    let filter = section.text("filter", "filter in the syntax of RUST_LOG", "info").unwrap_or_default();
    if tracing_subscriber::EnvFilter::builder().parse(&filter).is_err() {
        section.problem("filter", "is not a log filter; write for example \"info\" or \"info,proxy_core=debug\"");
    }
    section.check_unknown();
    LogSettings { format, filter }
}

pub(super) fn shutdown(root: &Section<'_>) -> ShutdownSettings {
    let section = root.section("shutdown");
    let settings = ShutdownSettings {
        readiness_delay: section.duration("readiness_delay", "5s", "0s", "5m"),
        drain_timeout: section.duration("drain_timeout", "20s", "1s", "10m"),
    };
    section.check_unknown();
    settings
}

pub(super) fn line(root: &Section<'_>) -> LineSettings {
    let section = root.section("line");
    let settings = LineSettings {
        length_max: section.whole("length_max", 1_000_000, 1..=100_000_000),
        urgent_share_percent: section.whole("urgent_share_percent", 10, 1..=50),
        class_handicap: section.duration("class_handicap", "10m", "0s", "1d"),
        rebook_after: section.duration("rebook_after", "30s", "1s", "30d"),
        jitter_max: section.duration("jitter_max", "5s", "0s", "5m"),
        expected_registration: section.duration("expected_registration", "4s", "100ms", "5m"),
    };
    section.check_unknown();
    settings
}

pub(super) fn registration(root: &Section<'_>) -> RegistrationSettings {
    let section = root.section("registration");
    let api_version = section.text("api_version", "text", "2021-10-01").unwrap_or_default();
    let sound = !api_version.is_empty() && api_version.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !sound {
        section.problem("api_version", "an API version has letters, digits and - only, for example \"2021-10-01\"");
    }
    let settings = RegistrationSettings {
        api_version,
        connect_timeout: section.duration("connect_timeout", "10s", "100ms", "2m"),
        request_timeout: section.duration("request_timeout", "30s", "1s", "5m"),
        token_life: section.duration("token_life", "2m", "10s", "2h"),
        upstream_max_delay: section.duration("upstream_max_delay", "30s", "1s", "1h"),
        connections_max: section.whole("connections_max", 256, 1..=100_000),
        idle_connections_max: section.whole("idle_connections_max", 32, 0..=10_000),
        idle_timeout: section.duration("idle_timeout", "60s", "1s", "1h"),
        in_flight_max: section.whole("in_flight_max", 10_000, 1..=1_000_000),
        poll_interval: section.duration("poll_interval", "2s", "2s", "5m"),
        poll_interval_max: section.duration("poll_interval_max", "60s", "2s", "1h"),
        throttle_wait_max: section.duration("throttle_wait_max", "10m", "1s", "1d"),
        assigning_max: section.duration("assigning_max", "5m", "10s", "1d"),
        breaker_threshold: section.whole("breaker_threshold", 2, 2..=1_000),
        backoff_min: section.duration("backoff_min", "500ms", "10ms", "10m"),
        backoff_max: section.duration("backoff_max", "10s", "100ms", "1d"),
        attempts_max: section.whole("attempts_max", 8, 1..=1_000),
        lookup_spends: section.flag("lookup_spends", true),
        refusal_ttl: section.duration("refusal_ttl", "1h", "1s", "30d"),
        reprovision_cooldown: section.duration("reprovision_cooldown", "15m", "1m", "30d"),
        suspect_cooldown: section.duration("suspect_cooldown", "15m", "1s", "30d"),
        timeline_max: section.whole("timeline_max", 24, 4..=256),
    };
    // It is signed before the connection is made; from then on the call may take its time, or its packets.
    let after_connecting =
        [("request_timeout", settings.request_timeout), ("upstream_max_delay", settings.upstream_max_delay)];
    for (key, longest) in after_connecting {
        if settings.token_life <= settings.connect_timeout + longest {
            let longer = format!(
                "has to be good for all of a call: longer than {} and {} together",
                section.key("connect_timeout"),
                section.key(key)
            );
            section.problem("token_life", longer);
        }
    }
    in_order(&section, ("poll_interval", settings.poll_interval), ("poll_interval_max", settings.poll_interval_max));
    in_order(&section, ("backoff_min", settings.backoff_min), ("backoff_max", settings.backoff_max));
    // The kernel's bound on unacknowledged bytes follows upstream_max_delay, and ends an attempt to connect as well.
    in_order(
        &section,
        ("connect_timeout", settings.connect_timeout),
        ("upstream_max_delay", settings.upstream_max_delay),
    );
    in_order(&section, ("poll_interval_max", settings.poll_interval_max), ("assigning_max", settings.assigning_max));
    section.check_unknown();
    settings
}

/// Notes a problem if the first is the longer one.
pub(super) fn in_order(section: &Section<'_>, smaller: (&str, Duration), larger: (&str, Duration)) {
    if smaller.1 > larger.1 {
        section.problem(smaller.0, format!("is longer than {}; raise that or lower this", section.key(larger.0)));
    }
}

pub(super) fn attestation(root: &Section<'_>) -> AttestationSettings {
    let section = root.section("attestation");
    let settings = AttestationSettings {
        sas_lifetime_max: section.duration("sas_lifetime_max", "25h", "1m", "366d"),
        clock_skew: section.duration("clock_skew", "5m", "0s", "1d"),
    };
    section.check_unknown();
    settings
}

pub(super) fn feed(root: &Section<'_>) -> FeedSettings {
    let section = root.section("feed");
    let settings = FeedSettings {
        retention: section.duration("retention", "7d", "1m", "366d"),
        events_max: section.whole("events_max", 1_000_000, 100..=1_000_000_000),
    };
    section.check_unknown();
    settings
}
