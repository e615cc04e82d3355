//! Where the database is, and the bounds of everything.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio_postgres::config::{Host, SslMode};

/// How to reach the database: a connection string as PostgreSQL's own tools take it, `postgresql://user:password@host:5432/database` or
/// `host=… user=… password=… dbname=…`.
///
/// `sslmode` is `disable` or `require`; without it (and with `prefer`) it is `require`, but `disable` for a Unix socket or a loopback address. A
/// connection that is encrypted is always verified, the server's name included. Several hosts may be named; the one that takes writes is used.
///
/// Prints as `user@host:port/database`; the password never leaves it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionString {
    config: tokio_postgres::Config,
}

/// A text that is no connection string. `Display` never quotes it, as it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConnectionString {
    /// It does not follow the grammar, or names something that is not known here.
    #[error(
        "the connection string cannot be read (it is not shown, as it may hold a password): write \
         postgresql://user@host:5432/database?sslmode=require, with @ : / ? # and % in a name as %40 %3A %2F %3F %23 and %25, or \
         host=… port=5432 user=… dbname=…, with a value that has spaces in single quotes. sslmode is disable or require, which always \
         verifies the certificate; sslrootcert and its kin are not taken here"
    )]
    Unreadable,
    /// No host.
    #[error("the connection string names no host")]
    NoHost,
    /// No user.
    #[error("the connection string names no user")]
    NoUser,
}

impl ConnectionString {
    /// Reads a connection string.
    ///
    /// # Errors
    /// [`InvalidConnectionString`], which names the rule and nothing of the text.
    pub fn parse(text: &str) -> Result<Self, InvalidConnectionString> {
        let config: tokio_postgres::Config =
            text.trim().parse().map_err(|_quotes_the_text| InvalidConnectionString::Unreadable)?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(InvalidConnectionString::NoHost);
        }
        if config.get_user().is_none() {
            return Err(InvalidConnectionString::NoUser);
        }
        Ok(Self { config })
    }

    pub(crate) const fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    /// Whether a password stands in it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }

    /// The same with this password.
    #[must_use]
    pub fn with_password(mut self, password: &[u8]) -> Self {
        self.config.password(password);
        self
    }

    /// The role that connects.
    #[must_use]
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    /// The same for another role with its password; an empty one is none.
    #[must_use]
    pub fn for_user(mut self, user: &str, password: &[u8]) -> Self {
        self.config.user(user).password(password);
        self
    }

    /// Whether it asks for TLS, by `sslmode=require` or `disable`; `None` if it says neither.
    #[must_use]
    pub fn asks_for_tls(&self) -> Option<bool> {
        match self.config.get_ssl_mode() {
            SslMode::Disable => Some(false),
            SslMode::Prefer => None,
            _ => Some(true),
        }
    }

    /// The same with or without TLS, whatever it asks for itself.
    #[must_use]
    pub fn with_tls(mut self, on: bool) -> Self {
        self.config.ssl_mode(if on { SslMode::Require } else { SslMode::Disable });
        self
    }

    /// Whether the server is on this machine: reached by a Unix socket or a loopback address.
    #[must_use]
    pub fn stays_on_this_machine(&self) -> bool {
        self.config.get_hosts().iter().all(is_near) && self.config.get_hostaddrs().iter().all(IpAddr::is_loopback)
    }

    /// Whether the connection is encrypted and the server verified.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.asks_for_tls().unwrap_or_else(|| !self.stays_on_this_machine())
    }
}

fn is_near(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        Host::Unix(_) => true,
    }
}

impl FromStr for ConnectionString {
    type Err = InvalidConnectionString;
    fn from_str(text: &str) -> Result<Self, InvalidConnectionString> {
        Self::parse(text)
    }
}

impl fmt::Display for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.config.get_user().unwrap_or_default();
        write!(f, "{user}@")?;
        let named = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let numbered = self.config.get_hostaddrs().iter().map(IpAddr::to_string);
        let hosts: Vec<String> = if self.config.get_hosts().is_empty() { numbered.collect() } else { named.collect() };
        for (n, host) in hosts.iter().enumerate() {
            let ports = self.config.get_ports();
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
            write!(f, "{}{host}:{port}", if n == 0 { "" } else { "," })?;
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or(user))
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What survives when the machine of the server is lost, and what is demanded of the server for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Another machine has every commit before it is acknowledged: a server without `synchronous_standby_names` is refused.
    Synchronous,
    /// There is one server and no failover: what was acknowledged is on its disk.
    Single,
    /// A standby may take over that has not heard of the last commits: what was acknowledged may be lost then.
    Asynchronous,
}

/// Where the database is, and the bounds. A process holds one connection that writes, one that keeps other processes away
/// ([`SoleUse`](crate::SoleUse)), at most two for leases, one that raises lines, and at most [`read_connections`](Self::read_connections) and
/// [`scan_connections`](Self::scan_connections) that read, all of them straight to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The database.
    pub connection: ConnectionString,
    /// Who may vouch for the server's certificate; `None` for whom the machine trusts. Without effect on a connection that is not encrypted.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// What survives the loss of the server's machine. [`Durability::Single`] by default.
    pub durability: Durability,
    /// Connections that read single values, at least 1. 6 by default.
    pub read_connections: usize,
    /// Connections that read many values, at least 1. 2 by default.
    pub scan_connections: usize,
    /// How long it may take to connect to one host and to be let in. 2 s by default.
    pub connect_timeout: Duration,
    /// How long bytes may stay unacknowledged before a connection counts as lost, where the kernel can be told. 3 s by default.
    pub tcp_user_timeout: Duration,
    /// How long it may take to read or change a lease, the wait for a connection included; half of it for a commit that is under way.
    /// Well below the time that a lease lives. 1 s by default.
    pub lease_timeout: Duration,
    /// How long a read of a single value may take, the wait for a connection included. 1 s by default.
    pub read_timeout: Duration,
    /// How long a scan may take, the wait for a connection included. 30 s by default.
    pub scan_timeout: Duration,
    /// How long a batch may take before its connection is given up and its outcome looked for over another one. 3 s by default.
    pub commit_timeout: Duration,
    /// How long a batch waits for a row that another process holds. 1 s by default.
    pub lock_timeout: Duration,
    /// How long the server keeps a transaction of ours in which nothing happens. 5 s by default.
    pub idle_in_transaction_timeout: Duration,
    /// The longest pause between two tries to connect. 1 s by default.
    pub reconnect_wait_max: Duration,
    /// Commits that may wait for the writer, at least 1. 8,192 by default.
    pub inbox_max: usize,
    /// How long a commit waits for room among those before it is refused as busy. 1 s by default.
    pub inbox_wait: Duration,
    /// Commits in one batch, at least 1. 64 by default.
    pub batch_units_max: usize,
    /// Bytes of names and values in one batch, unless a single commit has more. 256 KiB by default.
    pub batch_bytes_max: usize,
}

impl Options {
    /// The defaults.
    #[must_use]
    pub const fn new(connection: ConnectionString) -> Self {
        Self {
            connection,
            roots: None,
            durability: Durability::Single,
            read_connections: 6,
            scan_connections: 2,
            connect_timeout: Duration::from_secs(2),
            tcp_user_timeout: Duration::from_secs(3),
            lease_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(1),
            scan_timeout: Duration::from_secs(30),
            commit_timeout: Duration::from_secs(3),
            lock_timeout: Duration::from_secs(1),
            idle_in_transaction_timeout: Duration::from_secs(5),
            reconnect_wait_max: Duration::from_secs(1),
            inbox_max: 8192,
            inbox_wait: Duration::from_secs(1),
            batch_units_max: 64,
            batch_bytes_max: 256 * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_neither_printed_nor_quoted() {
        let sound = [
            "postgresql://gateway:hunter2@db.example:6432/fleet",
            "host=db.example port=6432 user=gateway password=hunter2 dbname=fleet",
        ];
        for text in sound {
            let connection = ConnectionString::parse(text).unwrap();
            assert_eq!(connection.to_string(), "gateway@db.example:6432/fleet");
            let printed = format!("{connection:?} {:?}", Options::new(connection.clone()));
            assert!(!printed.contains("hunter2"), "{printed}");
        }
        let broken = [
            "postgresql://gateway:hunter2@db.example:port/fleet",
            "postgresql://gateway:hunter2@db.example/fleet?sslmode=verify-full",
            "host=db.example user=gateway password=correct hunter2=staple",
            "host=db.example user=gateway password='hunter2",
            "hunter2",
            "",
        ];
        for text in broken {
            let error = ConnectionString::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}: {error}");
        }
        assert_eq!(ConnectionString::parse("user=gateway password=x"), Err(InvalidConnectionString::NoHost));
        assert_eq!(ConnectionString::parse("host=db.example"), Err(InvalidConnectionString::NoUser));
    }

    #[test]
    fn what_leaves_the_machine_is_encrypted_unless_that_is_switched_off_by_name() {
        for (text, encrypted) in [
            ("host=db.example user=a", true),
            ("host=db.example user=a sslmode=prefer", true),
            ("host=db.example user=a sslmode=disable", false),
            ("host=localhost user=a", false),
            ("host=127.0.0.1 user=a", false),
            ("host=127.0.0.1 user=a sslmode=require", true),
            ("host=/run/postgresql user=a", false),
            ("host=127.0.0.1,db.example user=a", true),
            ("host=localhost hostaddr=192.0.2.1 user=a", true),
        ] {
            assert_eq!(ConnectionString::parse(text).unwrap().is_encrypted(), encrypted, "{text}");
        }
    }
}
