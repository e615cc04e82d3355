//! Devices whose instance fails: booked on another one where that is sooner, and brought home when it works again.
//!
//! Invariants:
//! - Only a device for which nothing can have left may change its instance here. One that is assigned somewhere, or whose outcome is
//!   unknown, is re-homed by nobody but an operator.
//! - Every change has to gain [`GAIN_MIN`] by the forecasts of both lines. So an outage is never made longer by it.
//! - A device that is brought home gets the place back that it had there, and that happens to it a few times at most: an instance that
//!   comes and goes does not keep devices moving for ever. The record knows how often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use tracing::Instrument as _;

use super::lines::{GAIN_MIN, Lines};
use crate::base::{Base, about};
use crate::device::Record;
use crate::ids::{InstanceName, RegistrationId};
use crate::joining::Joining;
use crate::line::scheduler::Walk;
use crate::place::Place;
use crate::placement;
use crate::records::Records;
use rate_control::failpoint::Failpoint;

/// How often lines of instances that fail, and devices away from home, are looked at.
const RELIEF_EVERY: Duration = Duration::from_secs(1);

/// Devices of one line that are looked at in one go.
const RELIEF_MAX: usize = 256;

/// Of these, so many are written at the same time.
const RELIEF_WRITES: usize = 32;

/// A line is taken to have room for others while it is shorter than what it registers in this time.
const RELIEF_AHEAD: Duration = Duration::from_secs(5);

/// How far the lines have been looked through.
#[derive(Default)]
struct Looked {
    /// Of instances that fail.
    lines: BTreeMap<InstanceName, Walk>,
    /// Of devices that are away from an instance.
    away: BTreeMap<InstanceName, (Place, RegistrationId)>,
}

/// What became of a device that was looked at.
#[derive(PartialEq, Eq)]
enum Relieved {
    /// It is booked on that instance now.
    Booked(InstanceName),
    /// No other instance has it sooner at the moment.
    Stays,
    /// It has to stay, whatever comes.
    Bound,
}

/// Relieves lines. See the module.
#[derive(Debug, Clone)]
pub(super) struct Relief {
    base: Arc<Base>,
    lines: Arc<Lines>,
    records: Arc<Records>,
    joining: Arc<Joining>,
}

impl Relief {
    pub(super) const fn new(base: Arc<Base>, lines: Arc<Lines>, records: Arc<Records>, joining: Arc<Joining>) -> Self {
        Self { base, lines, records, joining }
    }

    /// Keeps booking devices from lines whose instance fails on instances that have little to do, and brings them home.
    pub(super) async fn relieve_sick_instances(self) {
        let mut looked = Looked::default();
        loop {
            tokio::select! {
                biased;
                () = self.base.stopping.cancelled() => return,
                () = tokio::time::sleep(RELIEF_EVERY) => {}
            }
            let sick = self.lines.sick(self.base.now().mono);
            self.bring_home(&mut looked.away).await;
            looked.lines.retain(|instance, _| sick.contains(instance));
            if sick.is_empty() {
                continue;
            }
            let mut room = self.room_to_relieve(&sick);
            for instance in &sick {
                self.relieve(instance, looked.lines.entry(instance.clone()).or_default(), &mut room).await;
            }
        }
    }

    /// The instances that work and have little to do, and for how many devices each has room.
    fn room_to_relieve(&self, sick: &BTreeSet<InstanceName>) -> BTreeMap<InstanceName, usize> {
        let dispatchers = self.lines.all();
        let well = dispatchers.iter().filter(|(name, _)| !sick.contains(*name));
        let room = well.filter_map(|(name, dispatcher)| {
            let (waiting, rate) = {
                let line = dispatcher.line.lock();
                (line.waiting(), line.limit_per_minute())
            };
            let enough = (f64::from(rate) * RELIEF_AHEAD.as_secs_f64() / 60.0).ceil();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
            let room = (enough as usize).checked_sub(waiting).filter(|room| *room > 0)?;
            Some((name.clone(), room))
        });
        room.collect()
    }

    /// Looks at the next devices of a line. The next look is at its front again, unless all of these have to stay.
    async fn relieve(&self, instance: &InstanceName, walk: &mut Walk, room: &mut BTreeMap<InstanceName, usize>) {
        let Some(dispatcher) = self.lines.dispatcher(instance) else { return };
        let next = dispatcher.line.lock().walk(walk, RELIEF_MAX);
        let mut all_bound = true;
        for id in next {
            if room.is_empty() {
                all_bound = false;
                break;
            }
            match self.relieve_one(&id, instance, room).await {
                Relieved::Bound => {}
                Relieved::Stays => all_bound = false,
                Relieved::Booked(to) => {
                    all_bound = false;
                    let left = room.get(&to).map_or(0, |room| room - 1);
                    if left == 0 {
                        room.remove(&to);
                    } else {
                        room.insert(to, left);
                    }
                }
            }
        }
        if !all_bound {
            *walk = Walk::default();
        }
    }

    async fn relieve_one(
        &self,
        id: &RegistrationId,
        instance: &InstanceName,
        room: &BTreeMap<InstanceName, usize>,
    ) -> Relieved {
        let Ok(Some(old)) = self.records.load(id).await else { return Relieved::Bound };
        let waits_here = old.record.pending().is_some_and(|pending| pending.instance == *instance);
        if !waits_here || !old.record.may_be_rebooked() || !self.fits_another(&old.record, instance) {
            return Relieved::Bound;
        }
        let Some(to) = self.joining.sooner_elsewhere(&old.record, |name| room.contains_key(name)).await else {
            return Relieved::Stays;
        };
        // Whoever cannot be booked elsewhere now keeps its place and is looked at again.
        let span = about::registration_span(id, instance);
        let booking = async {
            about::cause(&old.record);
            self.joining.rebook(old, &to).await
        };
        match booking.instrument(span.clone()).await {
            Ok(Ok(())) => Relieved::Booked(to),
            Ok(Err(_)) => Relieved::Stays,
            Err(error) => {
                span.in_scope(|| tracing::debug!(%error, "not booked elsewhere"));
                Relieved::Stays
            }
        }
    }

    /// Whether the device's enrollment allows it at `instance`, which it may have come to exclude.
    fn still_fits(&self, record: &Record, instance: &InstanceName) -> bool {
        let settings = self.base.look_at_settings();
        let found = settings.enrollments.get(record.enrollment()).zip(settings.instances.get(instance));
        found.is_some_and(|(enrollment, at)| placement::fits(enrollment, instance, at))
    }

    /// Whether the device's enrollment allows it at any other instance.
    fn fits_another(&self, record: &Record, instance: &InstanceName) -> bool {
        let settings = self.base.look_at_settings();
        let Some(enrollment) = settings.enrollments.get(record.enrollment()) else { return false };
        let mut others = settings.instances.iter().filter(|(name, _)| *name != instance);
        others.any(|(name, other)| placement::fits(enrollment, name, other))
    }

    /// Brings devices home to instances that work again, a few hundred at a time.
    async fn bring_home(&self, looked: &mut BTreeMap<InstanceName, (Place, RegistrationId)>) {
        let homes: Vec<InstanceName> = self.lines.away.lock().homes();
        looked.retain(|home, _| homes.contains(home));
        for home in homes {
            let works = self.lines.dispatcher(&home).is_some_and(|dispatcher| dispatcher.line.lock().works());
            if !works || Failpoint::NeverHome.is_on() {
                continue;
            }
            let next = self.lines.away.lock().next(&home, looked.get(&home), RELIEF_MAX);
            match next.last().filter(|_| next.len() == RELIEF_MAX) {
                Some(last) => drop(looked.insert(home.clone(), last.clone())),
                None => drop(looked.remove(&home)),
            }
            let each = next.into_iter().map(|key| {
                let (relief, home) = (self.clone(), home.clone());
                async move { relief.bring_one_home(&home, key).await }
            });
            let all = futures_util::stream::iter(each).buffer_unordered(RELIEF_WRITES);
            all.for_each(std::future::ready).await;
        }
    }

    async fn bring_one_home(&self, instance: &InstanceName, (place, id): (Place, RegistrationId)) {
        let Ok(old) = self.records.load(&id).await else { return };
        let away = old.filter(|old| old.record.home_to_come_back_to() == Some((instance, place)));
        let Some(old) = away else {
            // It was followed in another order than it was written in.
            return self.lines.away.lock().forget(instance, &(place, id));
        };
        if !self.is_sooner_at_home(&old.record) || !self.still_fits(&old.record, instance) {
            return;
        }
        let span = about::registration_span(&id, instance);
        let brought = async {
            about::cause(&old.record);
            self.joining.bring_home(old).await
        };
        if let Ok(Err(error)) = brought.instrument(span.clone()).await {
            span.in_scope(|| tracing::debug!(%error, "not brought home yet"));
        }
    }

    fn is_sooner_at_home(&self, record: &Record) -> bool {
        let now = self.base.now();
        let Some((pending, home)) = record.pending().and_then(|pending| Some((pending, pending.home.as_ref()?))) else {
            return false;
        };
        let (Some(here), Some(there)) =
            (self.lines.dispatcher(&pending.instance), self.lines.dispatcher(&home.instance))
        else {
            return false;
        };
        let Some(here) = here.line.lock().forecast(record.tenant(), pending.place, now.mono) else { return false };
        let mut line = there.line.lock();
        let ago = home.joined_at.age(now);
        line.has_room(record.tenant(), now.mono)
            && line.forecast_returning(record.tenant(), home.place, ago, now.mono).after(GAIN_MIN) <= here.appointment
    }
}
