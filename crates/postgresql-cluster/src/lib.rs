//! For tests: a PostgreSQL server of their own, one per process, and a database for each of them. Where PostgreSQL is not installed, a test says
//! `skipped: needs PostgreSQL`, which fails in CI.
//!
//! The server belongs to a shell, which starts it again when it dies, as a service manager would. The shell reads from us, and when we end,
//! however we do, it stops the server by its process ID and removes its directory.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test, and the line says which")]

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_postgres::{Client, NoTls};

/// The password of every role that comes over the network.
pub const PASSWORD: &str = "p%ss w@rd";

const KEEPER: &str = r#"
trap '' INT TERM HUP
( while [ ! -e stop ]; do [ -e paused ] || "$@" >>log 2>&1; sleep 0.1; done ) &
keeper=$!
read -r _
touch stop
while kill -0 "$keeper" 2>/dev/null; do
    [ -s data/postmaster.pid ] && kill -INT "$(head -n 1 data/postmaster.pid)" 2>/dev/null
    sleep 0.1
done
directory=$(pwd)
cd / && rm -rf "$directory"
"#;

static CLUSTER: OnceCell<Option<Cluster>> = OnceCell::const_new();

/// Held by every test; by one that troubles the whole server, alone.
static USE: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// A server that runs.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// Where it listens, on 127.0.0.1, for roles with [`PASSWORD`]: `owner`, who owns the databases, and `gateway`, who may do nothing.
    pub port: u16,
    /// The certificate that it shows, and that vouches for it.
    pub root: CertificateDer<'static>,
    /// Its shell, which ends when its input is closed: when this process ends.
    _keeper: Child,
}

/// Where the programs are: in the path, or where Debian puts them, the newest first.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|found| found.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    let number = |folder: &PathBuf| folder.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    folders.sort_by_key(|folder| std::cmp::Reverse(number(folder)));
    let mut all = std::env::split_paths(&path).chain(folders);
    all.find(|folder| ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file()))
}

/// Whom the server may run as: it refuses root.
fn user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let of = |wanted: &str| {
        users.lines().find_map(|line| {
            let mut parts = line.split(':');
            let (name, _, uid, gid) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            (name == wanted).then(|| (uid.parse().unwrap(), gid.parse().unwrap()))
        })
    };
    Some(of("postgres").or_else(|| of("nobody")).expect("a user who is not root"))
}

/// In memory where there is room for it and nobody says otherwise: a database has hundreds of files, and a server that was killed syncs all of
/// them.
fn directory() -> PathBuf {
    const ROOM: u64 = 2 << 30;
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |found| found.f_bavail * found.f_frsize);
    let parent =
        if free >= ROOM && std::env::var_os("TMPDIR").is_none() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("pg-").tempdir_in(parent).unwrap().keep()
}

fn as_user(command: &mut Command, user: Option<(u32, u32)>) -> &mut Command {
    match user {
        Some((uid, gid)) => command.uid(uid).gid(gid),
        None => command,
    }
}

impl Cluster {
    /// The server of this process; `None` where PostgreSQL is not installed.
    ///
    /// # Panics
    /// If it does not come up, and in CI if it is missing.
    pub async fn get() -> Option<&'static Self> {
        let start = || async {
            let Some(programs) = programs() else {
                assert!(std::env::var_os("CI").is_none(), "PostgreSQL is missing, and CI must not skip this");
                println!("skipped: needs PostgreSQL");
                return None;
            };
            let cluster = Self::start(&programs);
            cluster.prepare().await;
            Some(cluster)
        };
        CLUSTER.get_or_init(start).await.as_ref()
    }

    fn start(programs: &Path) -> Self {
        let directory = directory();
        let user = user();
        let (uid, gid) = user.unzip();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.join(name), text).unwrap();
            chown(directory.join(name), uid, gid).unwrap();
            let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
            std::fs::set_permissions(directory.join(name), mode).unwrap();
        };
        chown(&directory, uid, gid).unwrap();
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        write("server.crt", &cert.pem());
        write("server.key", &signing_key.serialize_pem());
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "data"]);
        let made = as_user(initdb.current_dir(&directory), user).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        write("data/pg_hba.conf", "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
        // Freed for the server to take: should somebody else be quicker, the tests fail by not getting in.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper"]).arg(programs.join("postgres")).args(["-D", "data"]);
        let sockets = format!("unix_socket_directories={}", directory.display());
        let settings = [
            &format!("port={port}"),
            &sockets,
            "listen_addresses=127.0.0.1",
            "max_connections=200",
            "shared_buffers=64MB",
            "max_wal_size=256MB",
            "ssl=on",
            "ssl_cert_file=../server.crt",
            "ssl_key_file=../server.key",
        ];
        keeper.args(settings.iter().flat_map(|setting| ["-c", setting]));
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = as_user(keeper.current_dir(&directory), user).spawn().unwrap();
        Self { directory, port, root: cert.der().clone(), _keeper: keeper }
    }

    /// The superuser, over the socket in the directory, once the server takes connections.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn admin(&self, database: &str) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.directory).port(self.port).user("postgres").dbname(database);
        let begun = Instant::now();
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) if begun.elapsed() > Duration::from_secs(60) => {
                    let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                    panic!("the server does not come up: {error}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn prepare(&self) {
        let admin = self.admin("postgres").await;
        for role in ["owner", "gateway"] {
            admin.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
        }
    }

    /// The certificate [`root`](Self::root), as PEM.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn root_pem(&self) -> String {
        std::fs::read_to_string(self.directory.join("server.crt")).unwrap()
    }

    fn postmaster(&self) -> Option<i32> {
        std::fs::read_to_string(self.directory.join("data/postmaster.pid")).ok()?.lines().next()?.parse().ok()
    }

    /// Makes a database that belongs to `owner`, a copy of `template` if one is named; its name.
    async fn create(&self, template: Option<&str>) -> String {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let how = template.map(|template| format!("TEMPLATE {template}")).unwrap_or_default();
        let admin = self.admin("postgres").await;
        admin.batch_execute(&format!("CREATE DATABASE {name} OWNER owner {how}")).await.unwrap();
        name
    }

    /// Stops the server, as an administrator would who does not wait for sessions; it stays down until [`resume`](Self::resume).
    ///
    /// # Panics
    /// If it does not run.
    pub async fn stop(&self) {
        let stopped = self.postmaster().unwrap();
        std::fs::write(self.directory.join("paused"), "").unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(stopped).unwrap(), rustix::process::Signal::INT)
            .unwrap();
        while self.postmaster() == Some(stopped) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the server that was stopped, and waits until it takes connections.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn resume(&self) {
        std::fs::remove_file(self.directory.join("paused")).unwrap();
        self.admin("postgres").await;
    }

    /// Kills the server, as the loss of power would, and waits until its keeper has started it again.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn kill(&self) {
        let killed = self.postmaster().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(killed).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        while self.postmaster() == Some(killed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.admin("postgres").await;
    }
}

/// How a test uses the server.
#[derive(Debug)]
enum Guard {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

/// A database of a test, which belongs to the role `owner`. A test has one only.
#[derive(Debug)]
pub struct Database {
    /// The server.
    pub cluster: &'static Cluster,
    /// Its name.
    pub name: String,
    guard: Guard,
}

impl Database {
    /// A new one, a copy of `template` if one is named; `None` where PostgreSQL is not installed. A test that troubles the whole server uses it
    /// `alone`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub async fn new(template: Option<&str>, alone: bool) -> Option<Self> {
        let cluster = Cluster::get().await?;
        let locks = Arc::clone(&USE);
        let guard = if alone {
            Guard::Alone { _guard: locks.write_owned().await }
        } else {
            Guard::Shared { _guard: locks.read_owned().await }
        };
        Some(Self { cluster, name: cluster.create(template).await, guard })
    }

    /// The superuser, in this database.
    pub async fn admin(&self) -> Client {
        self.cluster.admin(&self.name).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A test that failed meanwhile leaves a server that runs to the others.
        if matches!(self.guard, Guard::Alone { .. }) {
            let _it_runs = std::fs::remove_file(self.cluster.directory.join("paused"));
        }
    }
}
