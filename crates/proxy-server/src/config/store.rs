//! `[store]` and `[store.postgresql]`: where records live. A key that the backend in force has no use for is a problem, because somebody relies
//! on it.

use store_postgresql::{ConnectionString, Durability, Options};

use super::reader::{Secrecy, Section};
use super::{PostgresqlSettings, SledSettings, StoreBackend, StoreSettings, rules, secrets};

/// What `store.backend` can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sled,
    Postgresql,
}

/// Keys of `[store]` that only the embedded store knows.
const SLED_KEYS: [&str; 4] = ["path", "cache_mib", "free_space_min_mib", "write_stall_max"];

/// Keys of `[store.postgresql]`.
const POSTGRESQL_KEYS: [&str; 14] = [
    "connection",
    "password_file",
    "tls",
    "ca_file",
    "durability",
    "migrate_on_start",
    "read_connections",
    "scan_connections",
    "connect_timeout",
    "read_timeout",
    "scan_timeout",
    "commit_timeout",
    "lock_timeout",
    "inbox_wait",
];

pub(super) fn read(root: &Section<'_>) -> StoreSettings {
    let section = root.section("store");
    let kinds = [("sled", Kind::Sled), ("postgresql", Kind::Postgresql)];
    let kind = section.choice("backend", "sled", &kinds);
    let sled = SledSettings {
        path: section.path_of("path", "directory name", "/var/lib/dps-proxy").unwrap_or_default(),
        cache_mib: section.whole("cache_mib", 32, 8..=65_536),
        free_space_min_mib: section.whole("free_space_min_mib", 1024, 16..=1_048_576),
        write_stall_max: section.duration("write_stall_max", "1m", "1s", "1h"),
    };
    let create = section.flag("create", true);
    let inbox_max = section.whole("inbox_max", 10_000, 16..=1_000_000);
    let inner = section.section("postgresql");
    let postgresql = postgresql(&inner, inbox_max, kind == Some(Kind::Postgresql));
    // Of a backend that was misspelt, nobody knows which keys are its own.
    if let Some(kind) = kind {
        refuse_others(&section, &inner, kind);
    }
    section.check_unknown();
    let backend = match (kind, postgresql) {
        (Some(Kind::Postgresql), Some(settings)) => StoreBackend::Postgresql(Box::new(settings)),
        // Without settings a problem was noted.
        _ => StoreBackend::Sled(sled),
    };
    StoreSettings { backend, create, inbox_max }
}

fn refuse_others(section: &Section<'_>, inner: &Section<'_>, kind: Kind) {
    match kind {
        Kind::Sled => {
            for key in POSTGRESQL_KEYS.into_iter().filter(|key| inner.has(key)) {
                inner.problem(
                    key,
                    "is of use only with store.backend = \"postgresql\"; remove it, or name that backend",
                );
            }
        }
        Kind::Postgresql => {
            for key in SLED_KEYS.into_iter().filter(|key| section.has(key)) {
                section.problem(key, "is of use only with store.backend = \"sled\"; remove it, or name that backend");
            }
        }
    }
}

/// `None` if no connection can be made of it, which is noted where the backend is `wanted`.
fn postgresql(section: &Section<'_>, inbox_max: usize, wanted: bool) -> Option<PostgresqlSettings> {
    let connection = connection(section, wanted);
    let roots = secrets::authorities(section, "ca_file");
    if connection.as_ref().is_some_and(|connection| !connection.is_encrypted()) && section.has("ca_file") {
        section
            .problem("ca_file", "is without effect, as the connection is not encrypted; remove it or set tls = \"on\"");
    }
    let durabilities = [
        ("synchronous", Durability::Synchronous),
        ("single", Durability::Single),
        ("asynchronous", Durability::Asynchronous),
    ];
    let durability = section.choice("durability", "single", &durabilities).unwrap_or(Durability::Single);
    if wanted && durability == Durability::Asynchronous {
        let message = "when a standby takes over, places and assignments that devices were told of may be missing, and a device may be told \
            another hub; \"synchronous\" keeps them";
        section.warning("durability", message);
    }
    let migrate_on_start = section.flag("migrate_on_start", false);
    let read_connections = section.whole("read_connections", 6, 1..=64);
    let scan_connections = section.whole("scan_connections", 2, 1..=16);
    let connect_timeout = section.duration("connect_timeout", "2s", "100ms", "1m");
    let read_timeout = section.duration("read_timeout", "1s", "100ms", "1m");
    let scan_timeout = section.duration("scan_timeout", "30s", "1s", "10m");
    let commit_timeout = section.duration("commit_timeout", "3s", "500ms", "1m");
    let lock_timeout = section.duration("lock_timeout", "1s", "100ms", "30s");
    let inbox_wait = section.duration("inbox_wait", "1s", "10ms", "30s");
    rules::in_order(section, ("lock_timeout", lock_timeout), ("commit_timeout", commit_timeout));
    section.check_unknown();
    let options = Options {
        roots,
        durability,
        read_connections,
        scan_connections,
        connect_timeout,
        read_timeout,
        scan_timeout,
        commit_timeout,
        lock_timeout,
        inbox_max,
        inbox_wait,
        ..Options::new(connection?)
    };
    Some(PostgresqlSettings { options, migrate_on_start })
}

/// No message of it quotes the connection string, which may hold a password in spite of the rule.
fn connection(section: &Section<'_>, wanted: bool) -> Option<ConnectionString> {
    let text = section.text("connection", "connection string", "");
    let content = section.file("password_file", "file name", Secrecy::Secret);
    let password = content.as_deref().and_then(|content| secrets::password(section, "password_file", content));
    let modes = [("auto", None), ("on", Some(true)), ("off", Some(false))];
    let tls = section.choice("tls", "auto", &modes).flatten();
    if wanted && !section.has("connection") {
        section.problem(
            "connection",
            "is missing; write for example \"postgresql://gateway@db.example.com:5432/provisioning\"",
        );
    }
    let mut connection =
        ConnectionString::parse(&text?).map_err(|rule| section.problem("connection", rule.to_string())).ok()?;
    if connection.has_password() {
        let message = "holds a password; take it out, and name a file that holds it in password_file";
        section.problem("connection", message);
        return None;
    }
    if let Some(password) = password {
        connection = connection.with_password(password);
    }
    if let Some(on) = tls {
        if connection.asks_for_tls().is_some_and(|asked| asked != on) {
            section.problem("tls", "says something else than sslmode in the connection string; say it in one place");
        }
        connection = connection.with_tls(on);
    }
    if wanted && !connection.is_encrypted() && !connection.stays_on_this_machine() {
        section.warning("tls", "the keys of devices cross the network unencrypted; set it to \"on\"");
    }
    Some(connection)
}
