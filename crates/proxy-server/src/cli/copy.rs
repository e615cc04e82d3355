//! `store copy`: everything that one store holds, into another that is empty.
//!
//! Invariants:
//! - A target that holds something else is never written to.
//! - A copy that is not finished is marked in the target, and `serve` refuses it. The same command goes on where it stopped: rows are copied in the
//!   order of their names, so what is there is the beginning.
//! - It is done only when a second reading of both finds the same rows: names, places and values. Versions are each store's own.
//! - Memory holds a page of rows, whatever the stores hold.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::ProgressBar;
use proxy_core::device::Record;
use proxy_core::ids::InstanceName;
use proxy_core::place::{Place, Sequence};
use proxy_core::store::sled_store::SledStore;
use proxy_core::store::{Change, Expect, Key, Placing, Row, Store, Table, Versions, Write};
use rate_control::entropy::Entropy;
use sha2::{Digest as _, Sha256};

use super::{failed, load, print, report, run as run_here};
use crate::config::{StoreBackend, StoreSettings};
use crate::lifecycle::store::{self, Opened, UNFINISHED_COPY};

/// Rows that are read and written at once.
const PAGE_ROWS: usize = 128;

/// Meta comes last, as it says that a store exists.
const ORDER: [Table; 5] = [Table::Device, Table::DeviceId, Table::Ledger, Table::Feed, Table::Meta];

/// Names that begin so are what a backend keeps about itself.
const BACKEND_ITSELF: &[u8] = b"store.";

/// What is asked for.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The configuration file whose store is copied. No service may run on it.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The configuration file whose store receives the copy. It has to be empty; PostgreSQL has to be migrated.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// Copies, and says what was copied.
pub(super) fn run(options: &Options) -> ExitCode {
    let (from, to) = match (load(&options.from), load(&options.to)) {
        (Ok(from), Ok(to)) => (from.server.store, to.server.store),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    if from.place() == to.place() {
        report("dps-proxy: both configurations name the same store");
        return ExitCode::from(2);
    }
    match run_here(copy(&from, &to)) {
        Ok(said) => {
            print(&said);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

async fn copy(from: &StoreSettings, to: &StoreSettings) -> anyhow::Result<String> {
    if let StoreBackend::Sled(sled) = &from.backend
        && !SledStore::is_at(&sled.path)
    {
        bail!("--from: {} holds no store", sled.path.display());
    }
    let source = store::open(from).await.context("--from")?;
    let target = store::open(to).await.context("--to")?;
    let copied = async {
        let copy = Copying { source: &source, target: &target, versions: Versions::new(Entropy::from_system()) };
        copy.begin(&from.place()).await?;
        copy.all().await.context("the copy is not finished; run the same command again to go on")?;
        copy.verify().await
    };
    let copied = copied.await;
    source.store.close().await;
    target.store.close().await;
    let Digest { counts, hash } = copied?;
    let mut said = format!("copied {} to {}, and compared both:", from.place(), to.place());
    for (table, count) in counts {
        said += &format!("\n  {table}: {count}");
    }
    Ok(format!("{said}\n  SHA-256 of all rows: {hash}"))
}

/// What a store holds, so that two can be compared.
#[derive(PartialEq, Eq)]
struct Digest {
    counts: Vec<(&'static str, u64)>,
    hash: String,
}

struct Copying<'s> {
    source: &'s Opened,
    target: &'s Opened,
    versions: Versions,
}

impl Copying<'_> {
    /// Marks the target, unless it holds something else.
    async fn begin(&self, from: &str) -> anyhow::Result<()> {
        let target = &*self.target.store;
        let mark = Key::new(Table::Meta, UNFINISHED_COPY);
        match target.get(&mark).await? {
            Some(found) if found.value == from.as_bytes() => {
                report("going on with the copy that was interrupted");
                return Ok(());
            }
            Some(found) => bail!(
                "--to: it holds an unfinished copy of {}: finish that one, or begin with an empty store",
                String::from_utf8_lossy(&found.value)
            ),
            None => {}
        }
        for table in ORDER {
            let some = page(target, table, None).await?;
            if let Some(row) = some.first() {
                bail!(
                    "--to: it holds something already ({} {:?}); a copy needs an empty store",
                    name_of(table),
                    String::from_utf8_lossy(&row.name)
                );
            }
        }
        if self.source.store.get(&mark).await?.is_some() {
            bail!("--from: it is an unfinished copy itself");
        }
        self.write(vec![Write::put(mark, Expect::Absent, from.to_owned())]).await
    }

    async fn all(&self) -> anyhow::Result<()> {
        let mut next = BTreeMap::new();
        for table in ORDER {
            self.table(table).await?;
        }
        // Read anew, so that those that an interrupted run has copied count.
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = page(&*self.source.store, Table::Device, after.as_deref()).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.name.clone());
            for row in &rows {
                note_numbers(row, &mut next)?;
            }
        }
        for (line, next) in &next {
            self.target.store.raise_sequence(line, *next).await?;
        }
        Ok(())
    }

    async fn table(&self, table: Table) -> anyhow::Result<()> {
        let bar = ProgressBar::new_spinner();
        bar.set_message(name_of(table));
        // The marker stands among Meta, of which there is little: that is copied anew.
        let mut after = match table {
            Table::Meta => None,
            Table::Device | Table::Ledger | Table::Feed | Table::DeviceId => {
                self.target.store.last(table).await?.map(|row| row.name)
            }
        };
        let mut count = 0_u64;
        loop {
            let rows = page(&*self.source.store, table, after.as_deref()).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.name.clone());
            count += rows.len() as u64;
            let writes = rows.into_iter().map(|row| -> anyhow::Result<Write> {
                let placing = placing(table, &row)?;
                let change = Change::Put { value: row.stored.value, placing };
                Ok(Write { key: Key::new(table, row.name), expect: Expect::Any, change })
            });
            self.write(writes.collect::<anyhow::Result<_>>()?).await?;
            bar.set_message(format!("{}: {count}", name_of(table)));
            bar.tick();
        }
        bar.finish_and_clear();
        report(&format!("{}: {count} rows copied", name_of(table)));
        Ok(())
    }

    async fn write(&self, writes: Vec<Write>) -> anyhow::Result<()> {
        self.target.store.commit(self.versions.commit(writes)).await.context("--to")?;
        Ok(())
    }

    /// Compares both, and takes the mark away if they hold the same.
    async fn verify(&self) -> anyhow::Result<Digest> {
        let (source, target) = (digest(&*self.source.store).await?, digest(&*self.target.store).await?);
        if source != target {
            bail!(
                "the copy differs from its source, which was written to between two runs, or something else wrote to the copy \
                 (rows {:?} and {:?}). Begin again with an empty store",
                source.counts,
                target.counts
            );
        }
        self.write(vec![Write::delete(Key::new(Table::Meta, UNFINISHED_COPY), Expect::Any)]).await?;
        Ok(source)
    }
}

/// The next rows behind a name, without what a backend keeps about itself and without the mark. Empty at the end only.
async fn page(store: &dyn Store, table: Table, after: Option<&[u8]>) -> anyhow::Result<Vec<Row>> {
    let mut after = after.map(<[u8]>::to_vec);
    loop {
        let mut rows = store.scan(table, after.as_deref(), PAGE_ROWS).await?;
        let Some(last) = rows.last() else { return Ok(rows) };
        after = Some(last.name.clone());
        if table == Table::Meta {
            rows.retain(|row| !row.name.starts_with(BACKEND_ITSELF) && row.name != UNFINISHED_COPY.as_bytes());
        }
        if !rows.is_empty() {
            return Ok(rows);
        }
    }
}

/// A device's record, which knows its line.
fn record(row: &Row) -> anyhow::Result<Record> {
    let decoded = Record::decode(&row.stored);
    let name = String::from_utf8_lossy(&row.name).into_owned();
    Ok(decoded.with_context(|| format!("the record of {name} cannot be read"))?.record)
}

fn placing(table: Table, row: &Row) -> anyhow::Result<Placing> {
    match table {
        Table::Device => Ok(record(row)?.placing()),
        Table::Meta | Table::Ledger | Table::Feed | Table::DeviceId => Ok(Placing::Nowhere),
    }
}

/// Which numbers of lines are taken, a place to come back to included.
fn note_numbers(row: &Row, next: &mut BTreeMap<InstanceName, Sequence>) -> anyhow::Result<()> {
    let record = record(row)?;
    let Some(pending) = record.pending() else { return Ok(()) };
    let mut note = |line: &InstanceName, place: Place| {
        let next = next.entry(line.clone()).or_default();
        *next = place.sequence.saturating_add(1).max(*next);
    };
    note(&pending.instance, pending.place);
    if let Some(home) = &pending.home {
        note(&home.instance, home.place);
    }
    Ok(())
}

async fn digest(store: &dyn Store) -> anyhow::Result<Digest> {
    let (mut hash, mut counts) = (Sha256::new(), Vec::new());
    for table in ORDER {
        let (mut after, mut count) = (None::<Vec<u8>>, 0_u64);
        loop {
            let rows = page(store, table, after.as_deref()).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.name.clone());
            count += rows.len() as u64;
            for row in &rows {
                let place = format!("{:?}", placing(table, row)?);
                for part in [row.name.as_slice(), place.as_bytes(), &row.stored.value] {
                    hash.update((part.len() as u64).to_be_bytes());
                    hash.update(part);
                }
            }
        }
        hash.update(count.to_be_bytes());
        counts.push((name_of(table), count));
    }
    let hash = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Digest { counts, hash })
}

const fn name_of(table: Table) -> &'static str {
    match table {
        Table::Meta => "settings",
        Table::Device => "devices",
        Table::Ledger => "quota slots",
        Table::Feed => "events",
        Table::DeviceId => "device IDs",
    }
}
