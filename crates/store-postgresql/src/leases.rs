//! Leases, over connections of their own: whatever becomes of commits and reads, an owner renews its lease.
//!
//! Two connections, because a taking may have to wait for a commit of the owner before, and nobody else's renewal must wait with it.
//!
//! Every change may be repeated, so it is asked again where a connection turns out to be gone: the functions grant again what has happened.

use proxy_core::ids::{LeaseName, ReplicaName};
use proxy_core::store::{ClockReading, Lease, LeaseChange, LeaseError, LeaseOwner, OwnerId, ReadError, Table};
use rate_control::ownership::{Beat, Epoch};
use rate_control::time::{BootId, Mono};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::codec::bigint;
use crate::options::Options;
use crate::reader::Reader;
use crate::target::{LEASE_CONNECTIONS, Target};

const READ: &str =
    "SELECT NULL::boolean, epoch, beat, owner, replica, boot, clock, released FROM lease WHERE name = $1";
const TAKE: &str =
    "SELECT granted, epoch, beat, owner, replica, boot, clock, released FROM lease_take_v1($1, $2, $3, $4, $5, $6, $7)";
const RENEW: &str =
    "SELECT granted, epoch, beat, owner, replica, boot, clock, released FROM lease_renew_v1($1, $2, $3, $4, $5, $6)";

/// Reads and changes leases.
pub(crate) struct Leases {
    asks: Reader,
}

impl Leases {
    /// A server that is `target` to commits and reads.
    pub(crate) fn new(target: &Target, options: &Options) -> Self {
        // The server gives up first, and is heard to.
        let target = target.with_lock_timeout(options, options.lease_timeout / 2);
        Self { asks: Reader::new(&target, LEASE_CONNECTIONS, options.lease_timeout) }
    }

    /// Answers no more.
    pub(crate) fn close(&self) {
        self.asks.close();
    }

    pub(crate) async fn read(&self, name: &LeaseName) -> Result<Option<Lease>, ReadError> {
        let rows = self.asks.rows(READ, &[&name.as_str()]).await.map_err(ReadError::Unavailable)?;
        let corrupt = |detail| ReadError::Corrupt { table: Table::Meta, detail };
        rows.first().map(|row| lease(row).map_err(corrupt)).transpose().map(Option::flatten)
    }

    pub(crate) async fn change(&self, name: &LeaseName, change: LeaseChange) -> Result<Lease, LeaseError> {
        change.validate()?;
        match change {
            LeaseChange::Take { seen, owner, reading } => {
                let (epoch, beat) = seen.map(|(Epoch(epoch), Beat(beat))| (bigint(epoch), bigint(beat))).unzip();
                let (id, replica, clock) = (uuid(owner.id), owner.replica.as_str(), bigint(reading.mono.as_nanos()));
                self.ask(TAKE, &[&name.as_str(), &epoch, &beat, &id, &replica, &reading.boot.0, &clock]).await
            }
            LeaseChange::Renew { epoch, owner, reading } => self.renew(name, epoch, owner, &reading, false).await,
            LeaseChange::Release { epoch, owner, reading } => self.renew(name, epoch, owner, &reading, true).await,
        }
    }

    async fn renew(
        &self,
        name: &LeaseName,
        Epoch(epoch): Epoch,
        owner: OwnerId,
        reading: &ClockReading,
        release: bool,
    ) -> Result<Lease, LeaseError> {
        let (epoch, owner, clock) = (bigint(epoch), uuid(owner), bigint(reading.mono.as_nanos()));
        self.ask(RENEW, &[&name.as_str(), &epoch, &owner, &reading.boot.0, &clock, &release]).await
    }

    async fn ask(&self, sql: &'static str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Lease, LeaseError> {
        let rows = self.asks.rows(sql, parameters).await.map_err(LeaseError::Unavailable)?;
        let no_answer = || LeaseError::Unavailable("the server does not tell what became of it".to_owned());
        let row = rows.first().ok_or_else(no_answer)?;
        let granted = row.try_get(0).map_err(|error| LeaseError::Refused(error.to_string()))?;
        match lease(row).map_err(LeaseError::Refused)? {
            Some(lease) if granted => Ok(lease),
            now => Err(LeaseError::Lost { now }),
        }
    }
}

const fn uuid(OwnerId(id): OwnerId) -> Uuid {
    Uuid::from_bytes(id)
}

/// The columns behind the first one; `None` if all of them are NULL.
fn lease(row: &Row) -> Result<Option<Lease>, String> {
    let damaged = |why: String| format!("a lease cannot be read: {why}");
    let told = |error: tokio_postgres::Error| damaged(error.to_string());
    let Some(epoch) = row.try_get::<_, Option<i64>>(1).map_err(told)? else { return Ok(None) };
    let number = |column: i64| u64::try_from(column).map_err(|error| damaged(error.to_string()));
    let replica = ReplicaName::parse(row.try_get(4).map_err(told)?).map_err(|error| damaged(error.to_string()))?;
    let boot = BootId(row.try_get(5).map_err(told)?);
    Ok(Some(Lease {
        epoch: Epoch(number(epoch)?),
        beat: Beat(number(row.try_get(2).map_err(told)?)?),
        owner: LeaseOwner { id: OwnerId(row.try_get::<_, Uuid>(3).map_err(told)?.into_bytes()), replica },
        reading: ClockReading { boot, mono: Mono::from_nanos(number(row.try_get(6).map_err(told)?)?) },
        released: row.try_get(7).map_err(told)?,
    }))
}
