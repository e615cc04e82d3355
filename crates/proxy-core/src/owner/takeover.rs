//! What an earlier process left of the lines: records give back the places and the registrations under way, the ledger gives back what may
//! still count, and what DPS had let us know goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::away::Away;
use super::dispatch::Dispatch;
use super::dispatcher::{Dispatcher, slot_of};
use super::lines::suspect_not_before;
use super::recovered_limits::{self, RecoveredLimits};
use super::recovered_places::{RecoveredLine, RecoveredPlace, RecoveredStage};
use crate::base::{Base, StoreError};
use crate::device::{Effects, Record, Stage};
use crate::ids::InstanceName;
use crate::line::lane::JobKind;
use crate::line::scheduler::Fairness;
use crate::line::{Line, RecoveryState};
use crate::ownership::Predecessors;
use crate::place::Sequence;
use crate::settings::Settings;
use crate::store::{CommitError, MAX_WRITES, ReadError, Store, Table, Write};
use crate::upstream::Connect;
use rate_control::ledger::{SlotId, SlotRecord};
use rate_control::time::{BootId, Clock, Mono, Now};

/// Rows read at once.
const SCAN_PAGE: usize = 1024;

/// What the records say of the lines.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(super) lines: BTreeMap<InstanceName, RecoveredLine>,
    pub(super) away: Away,
    /// Behind the last place of each line that is in a record, by whichever store or release it was given.
    next: BTreeMap<InstanceName, Sequence>,
}

impl Recovered {
    /// One more record.
    pub(crate) fn add(&mut self, record: &Record, settings: &Settings, now: Now) {
        self.away.follow(&Effects::of_new(record));
        let Some(pending) = record.pending() else { return };
        let what = match &pending.stage {
            Stage::Waiting => {
                let begun = record.last_registration_begun();
                RecoveredStage::Waiting { not_before: suspect_not_before(begun, pending.reason, settings, now) }
            }
            Stage::Sent { .. } => RecoveredStage::UnknownOutcome,
            Stage::Assigning { operation_id, .. } => RecoveredStage::Operation(operation_id.clone()),
        };
        let stood = pending.home.iter().map(|home| (&home.instance, home.place));
        for (line, place) in stood.chain([(&pending.instance, pending.place)]) {
            let next = self.next.entry(line.clone()).or_default();
            *next = place.sequence.saturating_add(1).max(*next);
        }
        let (id, tenant) = (record.registration_id().clone(), record.tenant().clone());
        let (place, ago) = (pending.place, pending.joined_at.age(now));
        let line = self.lines.entry(pending.instance.clone()).or_default();
        line.add(RecoveredPlace { place, tenant, id, ago, what });
    }
}

/// No place of a record is given again: earlier releases numbered places themselves, and the store did not know of it.
pub(super) async fn raise_sequences(base: &Base, recovered: &Recovered) -> Result<(), StoreError> {
    for (line, next) in &recovered.next {
        match base.store.raise_sequence(line, *next).await {
            // It keeps to that all the same when it takes writes again.
            Ok(()) | Err(CommitError::ReadOnly(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// That nobody waits for the earlier process's answers any more is on disk before anything is sent.
pub(super) async fn write_taken_over(base: &Base, slots: &[Write]) -> Result<(), StoreError> {
    for some in slots.chunks(MAX_WRITES) {
        match base.commit(some.to_vec()).await {
            // Nothing is sent from a read-only store.
            Ok(_) | Err(CommitError::ReadOnly(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The dispatcher of an instance, and the writes that have to be on disk before it sends anything: what it took over.
pub(super) fn make_dispatcher(
    base: &Base,
    connect: &dyn Connect,
    settings: &Settings,
    name: &InstanceName,
    left: LeftLine,
) -> Result<(Dispatcher, Vec<Write>), String> {
    let instance = settings.instances.get(name).ok_or_else(|| format!("there is no instance {name}"))?;
    let upstream = connect.connect(name, instance, &settings.registration)?;
    let (boot, now) = (base.clock.boot_id(), base.now().mono);
    let LeftLine { mut slots, limits: RecoveredLimits { limit, paused_until } } = left;
    let (slots, changed, orphan_hold) = match base.ownership.predecessors() {
        Predecessors::Gone => {
            let changed = take_over_slots(&mut slots, &boot, now);
            let left = |(slot, record): &(SlotId, SlotRecord)| (*slot, record.left_by_the_dead(&boot, now));
            (slots.iter().map(left).collect(), changed, None)
        }
        // Their owner may still settle them, so they stay as they are.
        Predecessors::MayLive(sightings) => {
            let left = |(slot, record): &(SlotId, SlotRecord)| (*slot, sightings.left(record, &boot, now));
            (slots.iter().map(left).collect(), Vec::new(), Some(settings.registration.orphan_hold()))
        }
    };
    let left = RecoveryState { slots, orphan_hold, limit, paused_until };
    let rules = (&settings.line, &settings.registration);
    let line = Line::new(instance, rules, Fairness::of(settings, name), &left, now);
    let dispatcher = Dispatcher::new(name.clone(), line, upstream, settings.registration.connections_max);
    let writes = changed.iter().map(|(slot, record)| dispatcher.slot_write(*slot, Some(record))).collect();
    Ok((dispatcher, writes))
}

/// What processes left that are gone had its end by now. Returns the records that this changes.
fn take_over_slots(slots: &mut [(SlotId, SlotRecord)], boot: &BootId, now: Mono) -> Vec<(SlotId, SlotRecord)> {
    let mut changed = Vec::new();
    for (slot, record) in slots {
        if let Some(taken_over) = record.taken_over(boot, now) {
            *record = taken_over;
            changed.push((*slot, record.clone()));
        }
    }
    changed
}

/// What an earlier process left of one line, besides the places.
#[derive(Debug, Default)]
pub(super) struct LeftLine {
    slots: Vec<(SlotId, SlotRecord)>,
    limits: RecoveredLimits,
}

/// Puts everybody back where an earlier process left them.
pub(super) fn take_over(base: &Base, dispatch: &Dispatch, dispatcher: &Arc<Dispatcher>, left: RecoveredLine) {
    let now = base.now().mono;
    let mut line = dispatcher.line.lock();
    let mut shortest = BTreeMap::new();
    for RecoveredPlace { place, tenant, id, ago, what } in left.into_ordered() {
        // Who stands behind another one joined no earlier, whatever a clock that was set in between says.
        let shortest = shortest.entry(place.class).or_insert(ago);
        *shortest = ago.min(*shortest);
        let ago = *shortest;
        match what {
            RecoveredStage::Waiting { not_before } => {
                line.restore(&tenant, place, id, JobKind::Register, ago, now);
                if let Some(not_before) = not_before {
                    line.defer(&tenant, place, not_before);
                }
            }
            RecoveredStage::UnknownOutcome => line.restore(&tenant, place, id, JobKind::Lookup, ago, now),
            RecoveredStage::Operation(operation_id) => {
                line.adopt(&tenant, place, id.clone(), ago, now);
                dispatch.spawn_poll(Arc::clone(dispatcher), id, place, operation_id);
            }
        }
    }
}

/// What an earlier process left of the instances' lines, besides the places.
pub(super) async fn read_left(
    store: &dyn Store,
    settings: &Settings,
    clock: &dyn Clock,
) -> Result<BTreeMap<InstanceName, LeftLine>, StoreError> {
    let mut slots = read_ledger(store).await?;
    let (boot, now) = (clock.boot_id(), clock.now());
    let mut left = BTreeMap::new();
    for name in settings.instances.keys() {
        let limits = recovered_limits::read(store, name, settings, &boot, now).await?;
        let slots = slots.remove(name).unwrap_or_default();
        left.insert(name.clone(), LeftLine { slots, limits });
    }
    Ok(left)
}

async fn read_ledger(store: &dyn Store) -> Result<BTreeMap<InstanceName, Vec<(SlotId, SlotRecord)>>, StoreError> {
    let mut slots: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let rows = store.scan(Table::Ledger, after.as_deref(), SCAN_PAGE).await?;
        let Some(last) = rows.last() else { return Ok(slots) };
        after = Some(last.name.clone());
        for row in rows {
            let record = serde_json::from_slice(&row.stored.value);
            let (Some((instance, slot)), Ok(record)) = (slot_of(&row.name), record) else {
                let detail = "a ledger slot cannot be read; wait two minutes, then remove the Ledger rows".to_owned();
                return Err(ReadError::Corrupt { table: Table::Ledger, detail }.into());
            };
            slots.entry(instance).or_default().push((slot, record));
        }
    }
}
