//! The store itself: what callers hold.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use proxy_core::ids::{InstanceName, LeaseName};
use proxy_core::place::{Place, Sequence};
use proxy_core::store::{
    self, Commit, CommitError, Health, Key, Lease, LeaseChange, LeaseError, MAX_VALUE, ReadError, Row, Store, Stored,
    Table, Write,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::batch::{Limits, Outcome, Unit, validate};
use crate::codec;
use crate::leases::Leases;
use crate::link::Link;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::reader::Reader;
use crate::target::Target;
use crate::writer::{Message, Shared, Writer};

/// The most bytes of values in one commit: what one statement carries without trouble.
const COMMIT_BYTES_MAX: usize = 64 * MAX_VALUE;

const GET_DEVICE: &str = "SELECT version, class, seq, value FROM device WHERE name = $1";
const GET_ENTRY: &str = "SELECT version, NULL::smallint, NULL::bigint, value FROM entry WHERE tbl = $2 AND name = $1";
const SCAN_DEVICES: &str =
    "SELECT name, version, class, seq, value FROM device WHERE name >= $1 ORDER BY name LIMIT $2";
const SCAN_ENTRIES: &str = "SELECT name, version, NULL::smallint, NULL::bigint, value FROM entry \
    WHERE tbl = $3 AND name >= $1 ORDER BY name LIMIT $2";
const LAST_DEVICE: &str = "SELECT name, version, class, seq, value FROM device ORDER BY name DESC LIMIT 1";
const LAST_ENTRY: &str = "SELECT name, version, NULL::smallint, NULL::bigint, value FROM entry \
    WHERE tbl = $1 ORDER BY name DESC LIMIT 1";
const RAISE: &str = "SELECT raise_v1(line_v1($1), $2)";
const PLACES: &str = "SELECT p.seq, p.class, p.name FROM place p WHERE p.line = (SELECT l.line FROM line l WHERE l.instance = $1) \
    AND (p.seq, p.name) > ($2, $3) ORDER BY p.seq, p.name LIMIT $4";

/// The store, see the crate. Dropping it lets what was taken become durable; [`Store::close`] also waits for that.
pub struct PostgresqlStore {
    shared: Arc<Shared>,
    inbox: mpsc::Sender<Message>,
    inbox_wait: Duration,
    leases: Leases,
    finished: watch::Receiver<bool>,
    reads: Reader,
    scans: Reader,
    /// Reads in name only: the server may have to wait for its disk.
    raises: Reader,
}

/// A place of a line, as it stands beside the record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinePlace {
    /// The number.
    pub sequence: Sequence,
    /// The name of the device's record: its registration ID.
    pub name: Vec<u8>,
    /// The class and the number.
    pub place: Place,
}

impl PostgresqlStore {
    /// Connects to a database that was migrated ([`migrate`](crate::migrate)). Needs no right to create anything. To be called within a
    /// runtime, which carries the writer from then on.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is written before everything was found in order.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let target = Target::new(&options)?;
        let link = Link::open(&target, options.commit_timeout).await?;
        let shared = Arc::new(Shared::new(target.name().to_owned()));
        let (inbox, outbox) = mpsc::channel(options.inbox_max.max(1));
        let limits = Limits { units_max: options.batch_units_max.max(1), bytes_max: options.batch_bytes_max };
        let reads = Reader::new(&target, options.read_connections, options.read_timeout);
        let scans = Reader::new(&target, options.scan_connections, options.scan_timeout);
        let raises = Reader::new(&target, 1, options.commit_timeout);
        let leases = Leases::new(&target, &options);
        let waits = (options.commit_timeout, options.reconnect_wait_max);
        let (writer, finished) = Writer::new(Arc::clone(&shared), target, link, outbox, limits, waits);
        tokio::spawn(writer.run());
        Ok(Self { shared, inbox, inbox_wait: options.inbox_wait, leases, finished, reads, scans, raises })
    }

    /// At most `limit` places of `line` that come after `after`, in the order of their numbers, without reading a record.
    ///
    /// Numbers that the store gives become visible in their order: who goes on after the last one seen misses none of them. A device that comes
    /// back to an earlier place does so behind such a reader.
    ///
    /// # Errors
    /// As [`Store::scan`].
    pub async fn places(
        &self,
        line: &InstanceName,
        after: Option<&LinePlace>,
        limit: usize,
    ) -> Result<Vec<LinePlace>, ReadError> {
        let (sequence, name) =
            after.map_or((i64::MIN, &[][..]), |after| (codec::sequence(after.sequence), &after.name));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.scans.rows(PLACES, &[&line.as_str(), &sequence, &name, &limit]).await;
        let corrupt =
            |error: tokio_postgres::Error| ReadError::Corrupt { table: Table::Device, detail: error.to_string() };
        let place = |row: &tokio_postgres::Row| {
            let (sequence, class) = (row.try_get(0).map_err(corrupt)?, row.try_get(1).map_err(corrupt)?);
            let place = codec::place(Table::Device, class, sequence)?;
            let name = row.try_get(2).map_err(corrupt)?;
            Ok(place.map(|place| LinePlace { sequence: place.sequence, name, place }))
        };
        rows.map_err(ReadError::Unavailable)?.iter().filter_map(|row| place(row).transpose()).collect()
    }

    async fn submit(&self, commit: Commit) -> Outcome {
        store::validate(&commit.writes)?;
        validate(&commit)?;
        let bytes = bytes(&commit.writes);
        if bytes > COMMIT_BYTES_MAX {
            return Err(CommitError::Refused(format!("{bytes} bytes in one commit; at most {COMMIT_BYTES_MAX}")));
        }
        self.shared.admits().map_err(CommitError::ReadOnly)?;
        let (reply, outcome) = oneshot::channel();
        let closed = || CommitError::ReadOnly(format!("the store at {} is closed", self.shared.target));
        if let Err(refused) = self.inbox.try_send(Message::Commit(Unit { commit, reply })) {
            let TrySendError::Full(message) = refused else { return Err(closed()) };
            match tokio::time::timeout(self.inbox_wait, self.inbox.reserve()).await {
                Ok(Ok(room)) => room.send(message),
                Ok(Err(_)) => return Err(closed()),
                Err(_) => return Err(CommitError::Busy),
            }
        }
        outcome.await.unwrap_or_else(|_| Err(CommitError::Failed("the writer stopped before it answered".into())))
    }

    async fn raise(&self, line: &InstanceName, next: Sequence) -> Result<(), CommitError> {
        self.shared.admits().map_err(CommitError::ReadOnly)?;
        let Ok(next) = i64::try_from(next) else {
            return Err(CommitError::Refused(format!("a line cannot go on at {next}; at most {}", i64::MAX)));
        };
        // May be repeated: a line never falls back.
        let raised = self.raises.rows(RAISE, &[&line.as_str(), &next]).await;
        raised.map(drop).map_err(CommitError::ReadOnly)
    }

    fn rows(table: Table, rows: &[tokio_postgres::Row]) -> Result<Vec<Row>, ReadError> {
        let corrupt = |error: tokio_postgres::Error| ReadError::Corrupt { table, detail: error.to_string() };
        rows.iter()
            .map(|row| Ok(Row { name: row.try_get(0).map_err(corrupt)?, stored: codec::stored(table, row, 1)? }))
            .collect()
    }
}

fn bytes(writes: &[Write]) -> usize {
    let value = |write: &Write| match &write.change {
        store::Change::Put { value, .. } => value.len(),
        store::Change::Delete | store::Change::Keep => 0,
    };
    writes.iter().map(value).sum()
}

impl fmt::Debug for PostgresqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresqlStore").field("target", &self.shared.target).finish_non_exhaustive()
    }
}

impl Store for PostgresqlStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        async move {
            let (name, table) = (&key.name, codec::table(key.table));
            let rows = match key.table {
                Table::Device => self.reads.rows(GET_DEVICE, &[name]).await,
                Table::Meta | Table::Ledger | Table::Feed | Table::DeviceId => {
                    self.reads.rows(GET_ENTRY, &[name, &table]).await
                }
            };
            let rows = rows.map_err(ReadError::Unavailable)?;
            rows.first().map(|row| codec::stored(key.table, row, 0)).transpose()
        }
        .boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Outcome> {
        self.submit(commit).boxed()
    }

    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
        self.leases.read(name).boxed()
    }

    fn change_lease<'a>(
        &'a self,
        name: &'a LeaseName,
        change: LeaseChange,
    ) -> BoxFuture<'a, Result<Lease, LeaseError>> {
        self.leases.change(name, change).boxed()
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        self.raise(line, next).boxed()
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        async move {
            // The first name that comes after a name is that name and a zero.
            let from = after.map_or_else(Vec::new, |after| [after, &[0]].concat());
            let (limit, code) = (i64::try_from(limit).unwrap_or(i64::MAX), codec::table(table));
            let rows = match table {
                Table::Device => self.scans.rows(SCAN_DEVICES, &[&from, &limit]).await,
                Table::Meta | Table::Ledger | Table::Feed | Table::DeviceId => {
                    self.scans.rows(SCAN_ENTRIES, &[&from, &limit, &code]).await
                }
            };
            Self::rows(table, &rows.map_err(ReadError::Unavailable)?)
        }
        .boxed()
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        async move {
            let rows = match table {
                Table::Device => self.reads.rows(LAST_DEVICE, &[]).await,
                Table::Meta | Table::Ledger | Table::Feed | Table::DeviceId => {
                    self.reads.rows(LAST_ENTRY, &[&codec::table(table)]).await
                }
            };
            Ok(Self::rows(table, &rows.map_err(ReadError::Unavailable)?)?.pop())
        }
        .boxed()
    }

    fn health(&self) -> Health {
        self.shared.admits().map_or_else(Health::ReadOnly, |()| Health::Writable)
    }

    fn steps(&self) -> u64 {
        self.shared.steps()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.shared.close();
            // Queues behind what was taken; an error means that the writer has ended.
            let _ended = self.inbox.send(Message::Close).await;
            let _ = self.finished.clone().wait_for(|finished| *finished).await;
            self.leases.close();
            for reader in [&self.reads, &self.scans, &self.raises] {
                reader.close();
            }
        }
        .boxed()
    }
}
