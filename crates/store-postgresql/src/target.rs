//! The server: how to connect to it, and whether it may be trusted with the store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::tls::{MakeTlsConnect, NoTls, TlsConnect};
use tokio_postgres::{Client, Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::open_error::{OpenError, describe};
use crate::options::{ConnectionString, Durability, Options};

/// The schema of the database that everything is in. An administrator may create it beforehand, for an owner that may not create one.
pub const SCHEMA: &str = "dps_proxy";

/// The oldest version that is used, as the server tells it.
const VERSION_MIN: i32 = 140_000;

/// The connections over which leases are read and changed.
pub(crate) const LEASE_CONNECTIONS: usize = 2;

/// A silent connection is asked so often whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A server and everything that it takes to connect to it.
#[derive(Clone)]
pub(crate) struct Target {
    name: String,
    config: Config,
    tls: Option<MakeRustlsConnect>,
    connect_timeout: Duration,
    connections: usize,
    durability: Durability,
}

/// A connection. Dropped, it is cut: what was sent and not answered may have happened.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Ends with the connection.
    pub(crate) connection: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Target {
    pub(crate) fn new(options: &Options) -> Result<Self, OpenError> {
        let name = options.connection.to_string();
        let encrypted = options.connection.is_encrypted();
        let tls = encrypted.then(|| tls(options.roots.as_deref())).transpose();
        let tls = tls.map_err(|why| OpenError::Tls { target: name.clone(), why })?;
        let config = config(&options.connection, options, encrypted);
        let hosts = u32::try_from(config.get_hosts().len().max(config.get_hostaddrs().len())).unwrap_or(1).max(1);
        Ok(Self {
            name,
            config,
            tls,
            connect_timeout: options.connect_timeout.saturating_mul(hosts),
            // One that writes, one that raises lines, one that keeps other processes away, and those of leases.
            connections: 3 + LEASE_CONNECTIONS + options.read_connections + options.scan_connections,
            durability: options.durability,
        })
    }

    /// The same, with another bound for the wait for a row.
    pub(crate) fn with_lock_timeout(&self, options: &Options, lock_timeout: Duration) -> Self {
        let encrypted = options.connection.is_encrypted();
        let config = config(&options.connection, &Options { lock_timeout, ..options.clone() }, encrypted);
        Self { config, ..self.clone() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    /// Connects, and checks that the server keeps what it acknowledges.
    pub(crate) async fn session(&self) -> Result<Session, OpenError> {
        let unreachable = |why: String| OpenError::Unreachable { target: self.name.clone(), why };
        let connecting = async {
            let (client, connection) =
                self.connect(&self.config).await.map_err(|error| unreachable(describe(&error)))?;
            let session = Session { client, connection };
            self.check(&session.client).await?;
            Ok(session)
        };
        let seconds = self.connect_timeout.as_secs_f64();
        let late = |_elapsed| unreachable(format!("no answer within {seconds} s"));
        tokio::time::timeout(self.connect_timeout, connecting).await.map_err(late)?
    }

    async fn check(&self, client: &Client) -> Result<(), OpenError> {
        const FACTS: &str = "SELECT ARRAY[current_setting('server_version_num'), current_setting('server_version'), \
            current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'), \
            current_setting('transaction_read_only'), pg_is_in_recovery()::text, current_setting('max_connections'), \
            current_setting('synchronous_standby_names')]";
        let target = || self.name.clone();
        let told = async { client.query_one(FACTS, &[]).await?.try_get::<_, Vec<String>>(0) };
        let facts = <[String; 9]>::try_from(told.await.map_err(|error| self.refused(&error))?);
        let Ok(facts) = facts else {
            return Err(OpenError::Refused { target: target(), why: "it does not tell its settings".to_owned() });
        };
        let [number, version, fsync, full_page_writes, synchronous_commit, read_only, recovers, connections, standbys] =
            facts;
        if number.parse().is_ok_and(|number: i32| number < VERSION_MIN) {
            return Err(OpenError::TooOld { target: target(), found: version });
        }
        if recovers == "true" || read_only == "on" {
            let why = if recovers == "true" { "it is a standby" } else { "transactions are read-only there" };
            return Err(OpenError::ReadOnly { target: target(), why: why.to_owned() });
        }
        let unsafe_setting = |setting: String, why| Err(OpenError::Unsafe { target: target(), setting, why });
        if fsync != "on" {
            let why = "a crash of its machine would lose or damage what was acknowledged. Switch it on";
            return unsafe_setting(format!("fsync = {fsync}"), why);
        }
        // Ours to set (see `config`), so anything else means that something in between dropped it.
        if synchronous_commit != "on" {
            let setting = format!("synchronous_commit = {synchronous_commit} although it was asked for");
            return unsafe_setting(setting, "a crash would lose what was acknowledged. Connect to the server itself");
        }
        if self.durability == Durability::Synchronous && standbys.trim().is_empty() {
            let why = "no standby has to have a commit before it is acknowledged, although durability is \"synchronous\": the loss of its \
                machine would lose what was acknowledged. Name the standbys there, or say that durability is \"single\" or \"asynchronous\"";
            return unsafe_setting("synchronous_standby_names = ''".to_owned(), why);
        }
        if full_page_writes != "on" {
            let why = "a crash damages pages, unless the file system cannot tear them";
            tracing::warn!(server = self.name, "full_page_writes is off: {why}");
        }
        if connections.parse().is_ok_and(|most: usize| most < self.connections) {
            let needed = self.connections;
            tracing::warn!(
                server = self.name,
                "max_connections is {connections}; this process alone may need {needed}"
            );
        }
        Ok(())
    }

    /// An error of something that was needed to begin.
    pub(crate) fn refused(&self, error: &tokio_postgres::Error) -> OpenError {
        let (target, why) = (self.name.clone(), describe(error));
        if error.as_db_error().is_some() {
            OpenError::Refused { target, why }
        } else {
            OpenError::Unreachable { target, why }
        }
    }
}

impl Connect for Target {
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        let config = config.clone();
        Box::pin(async move {
            match &self.tls {
                Some(tls) => connect(&config, tls.clone()).await,
                None => connect(&config, NoTls).await,
            }
        })
    }
}

async fn connect<T>(config: &Config, tls: T) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (client, connection) = config.connect(tls).await?;
    let driven = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(why = describe(&error), "a connection to PostgreSQL ended");
        }
    });
    Ok((client, driven))
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What the operator wrote, and what we rely on beside it. What a role or a database sets by itself comes after this.
fn config(connection: &ConnectionString, options: &Options, encrypted: bool) -> Config {
    let mut config = connection.config().clone();
    config
        .ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable })
        .connect_timeout(options.connect_timeout)
        .tcp_user_timeout(options.tcp_user_timeout)
        .keepalives_idle(KEEPALIVE);
    if config.get_application_name().is_none() {
        config.application_name("dps-proxy");
    }
    if config.get_hosts().len().max(config.get_hostaddrs().len()) > 1 {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    let given = config.get_options().unwrap_or_default().to_owned();
    config.options(format!(
        "{given} -c search_path={SCHEMA},pg_temp -c synchronous_commit=on -c statement_timeout=0 -c lock_timeout={} \
         -c idle_in_transaction_session_timeout={} -c default_transaction_isolation=read\\ committed",
        options.lock_timeout.as_millis(),
        options.idle_in_transaction_timeout.as_millis(),
    ));
    config
}

fn tls(roots: Option<&[CertificateDer<'static>]>) -> Result<MakeRustlsConnect, String> {
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
    let text = |error: rustls::Error| error.to_string();
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(text)?;
    let config = match roots {
        Some(roots) => {
            let mut trusted = RootCertStore::empty();
            for root in roots {
                trusted.add(root.clone()).map_err(text)?;
            }
            builder.with_root_certificates(trusted).with_no_client_auth()
        }
        None => {
            let machine = builder.with_platform_verifier();
            machine.map_err(|error| format!("{error} (is there a CA bundle on this machine?)"))?.with_no_client_auth()
        }
    };
    Ok(MakeRustlsConnect::new(config))
}
