//! Devices whose instance fails: booked on another one where that is sooner, and brought home when it works again.
//!
//! Invariants:
//! - Only a device for which nothing can have left may change its instance here. One that is assigned somewhere, or whose outcome is
//!   unknown, is re-homed by nobody but an operator.
//! - Every change has to gain [`GAIN_MIN`] by the forecasts of both lines. So an outage is never made longer by it.
//! - A device that is brought home gets the place back that it had there, and that happens to it a few times at most: an instance that
//!   comes and goes does not keep devices moving for ever. The record knows how often.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use tracing::Instrument as _;

use super::provision::{Entry, ProvisionError, Reserved, Wish};
use super::{Gateway, about, lost_race};
use crate::device::{Command, Effects, Outline, Record, Rejected, Versioned};
use crate::ids::{InstanceName, RegistrationId};
use crate::line::scheduler::Walk;
use crate::place::Place;
use crate::placement;
use crate::store::CommitError;
use rate_control::failpoint::Failpoint;
use rate_control::time::{Mono, Now};

/// How often lines of instances that fail, and devices away from home, are looked at.
const RELIEF_EVERY: Duration = Duration::from_secs(1);

/// Devices of one line that are looked at in one go.
const RELIEF_MAX: usize = 256;

/// Of these, so many are written at the same time.
const RELIEF_WRITES: usize = 32;

/// A line is taken to have room for others while it is shorter than what it registers in this time.
const RELIEF_AHEAD: Duration = Duration::from_secs(5);

/// What a change of the instance has to gain: less is not worth the writes, and no forecast is as good as that.
const GAIN_MIN: Duration = Duration::from_secs(2);

/// Devices that wait elsewhere, by the instance that is their home, in the order of their places there.
#[derive(Debug, Default)]
pub(super) struct Away {
    homes: BTreeMap<InstanceName, BTreeSet<(Place, RegistrationId)>>,
}

impl Away {
    /// A record was changed.
    pub(super) fn follow(&mut self, effects: &Effects) {
        let (old, new) = (effects.before.as_ref().and_then(home), effects.after.as_ref().and_then(home));
        if old == new {
            return;
        }
        if let Some((instance, key)) = old
            && let Some(away) = self.homes.get_mut(&instance)
        {
            away.remove(&key);
            if away.is_empty() {
                self.homes.remove(&instance);
            }
        }
        if let Some((instance, key)) = new {
            self.homes.entry(instance).or_default().insert(key);
        }
    }

    /// The places at `instance` that devices would come back to.
    pub(super) fn places_at(&self, instance: &InstanceName) -> impl Iterator<Item = Place> {
        self.homes.get(instance).into_iter().flatten().map(|(place, _)| *place)
    }

    /// Whether any device would come back to `instance`.
    fn any_from(&self, instance: &InstanceName) -> bool {
        self.homes.contains_key(instance)
    }

    /// The next ones of `instance` behind `after`.
    fn next(&self, instance: &InstanceName, after: Option<&(Place, RegistrationId)>) -> Vec<(Place, RegistrationId)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let away = self.homes.get(instance).into_iter();
        away.flat_map(|away| away.range::<(Place, RegistrationId), _>((after, Bound::Unbounded)))
            .take(RELIEF_MAX)
            .cloned()
            .collect()
    }
}

fn home(outline: &Outline) -> Option<(InstanceName, (Place, RegistrationId))> {
    let (instance, place) = outline.home.clone()?;
    Some((instance, (place, outline.registration_id.clone())))
}

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

impl Gateway {
    /// Whether the instance has failed for so long that devices may be booked elsewhere.
    pub(super) fn is_sick(&self, instance: &InstanceName, now: Mono) -> bool {
        let after = self.settings.load().line.rebook_after;
        let sick_for = self.dispatcher(instance).and_then(|dispatcher| dispatcher.line.lock().sick_for(now));
        sick_for.is_some_and(|sick_for| sick_for >= after)
    }

    /// The instances that have.
    pub(super) fn sick_instances(&self, now: Mono) -> BTreeSet<InstanceName> {
        let dispatchers = self.dispatchers.load();
        dispatchers.keys().filter(|name| self.is_sick(name, now)).cloned().collect()
    }

    /// Where a device that waits at an instance that fails would be assigned sooner, among instances that `may_take` it.
    pub(super) fn sooner_elsewhere(
        &self,
        record: &Record,
        may_take: impl Fn(&InstanceName) -> bool,
        now: Now,
    ) -> Option<InstanceName> {
        let pending = record.pending().filter(|_| record.may_be_rebooked())?;
        if !self.is_sick(&pending.instance, now.mono) {
            return None;
        }
        let (tenant, class) = (record.tenant(), pending.place.class);
        let here = {
            let dispatcher = self.dispatcher(&pending.instance)?;
            let line = dispatcher.line.lock();
            // Somebody has to find out when those can come home who are away.
            if line.is_last() && self.away.lock().any_from(&pending.instance) {
                return None;
            }
            line.forecast_failing(tenant, pending.place, now.mono)?
        };
        let settings = self.settings.load();
        let enrollment = settings.enrollments.get(record.enrollment())?;
        let dispatchers = self.dispatchers.load();
        let others = dispatchers.iter().filter(|(name, _)| **name != pending.instance && may_take(name));
        let open = others.filter(|(name, _)| {
            settings.instances.get(*name).is_some_and(|instance| {
                let room = || self.occupancy.lock().has_room(name, instance);
                placement::fits(enrollment, name, instance) && !instance.draining && room()
            }) && !self.is_sick(name, now.mono)
        });
        let told = open.filter_map(|(name, dispatcher)| {
            let mut line = dispatcher.line.lock();
            let room = line.has_room(tenant, now.mono);
            room.then(|| (line.forecast_joining(tenant, class, now.mono), name.clone()))
        });
        let (there, name) = told.min()?;
        (there.after(GAIN_MIN) <= here).then_some(name)
    }

    /// Books a device on the instance `to`.
    ///
    /// # Errors
    /// If that does not take it: it keeps its place then. The inner error is the store's.
    pub(super) async fn rebook(
        self: &Arc<Self>,
        old: Versioned,
        to: &InstanceName,
        now: Now,
    ) -> Result<Result<(), CommitError>, ProvisionError> {
        let Some(class) = old.record.pending().map(|pending| pending.place.class) else {
            return Ok(Err(lost_race(Rejected::NoPlace)));
        };
        let entry = Entry { class, wish: Wish::Rebooked(to), asked: None, now };
        self.enter(self.draft(old, now), entry, |seat| Command::Rebook { seat }).await
    }

    /// Keeps booking devices from lines whose instance fails on instances that have little to do, and brings them home.
    pub(super) async fn relieve_sick_instances(self: Arc<Self>) {
        let mut looked = Looked::default();
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(RELIEF_EVERY) => {}
            }
            let now = self.now();
            let sick = self.sick_instances(now.mono);
            self.bring_home(&mut looked.away, now).await;
            looked.lines.retain(|instance, _| sick.contains(instance));
            if sick.is_empty() {
                continue;
            }
            let mut room = self.room_to_relieve(&sick);
            for instance in &sick {
                self.relieve(instance, looked.lines.entry(instance.clone()).or_default(), &mut room, now).await;
            }
        }
    }

    /// The instances that work and have little to do, and for how many devices each has room.
    fn room_to_relieve(&self, sick: &BTreeSet<InstanceName>) -> BTreeMap<InstanceName, usize> {
        let dispatchers = self.dispatchers.load();
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
    async fn relieve(
        self: &Arc<Self>,
        instance: &InstanceName,
        walk: &mut Walk,
        room: &mut BTreeMap<InstanceName, usize>,
        now: Now,
    ) {
        let Some(dispatcher) = self.dispatcher(instance) else { return };
        let next = dispatcher.line.lock().walk(walk, RELIEF_MAX);
        let mut all_bound = true;
        for id in next {
            if room.is_empty() {
                all_bound = false;
                break;
            }
            match self.relieve_one(&id, instance, room, now).await {
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
        self: &Arc<Self>,
        id: &RegistrationId,
        instance: &InstanceName,
        room: &BTreeMap<InstanceName, usize>,
        now: Now,
    ) -> Relieved {
        let Ok(Some(old)) = self.load(id).await else { return Relieved::Bound };
        let waits_here = old.record.pending().is_some_and(|pending| pending.instance == *instance);
        if !waits_here || !old.record.may_be_rebooked() || !self.fits_another(&old.record, instance) {
            return Relieved::Bound;
        }
        let Some(to) = self.sooner_elsewhere(&old.record, |name| room.contains_key(name), now) else {
            return Relieved::Stays;
        };
        // Whoever cannot be booked elsewhere now keeps its place and is looked at again.
        let span = about::registration_span(id, instance);
        let booking = async {
            about::cause(&old.record);
            self.rebook(old, &to, now).await
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
        let settings = self.settings.load();
        let found = settings.enrollments.get(record.enrollment()).zip(settings.instances.get(instance));
        found.is_some_and(|(enrollment, at)| placement::fits(enrollment, instance, at))
    }

    /// Whether the device's enrollment allows it at any other instance.
    fn fits_another(&self, record: &Record, instance: &InstanceName) -> bool {
        let settings = self.settings.load();
        let Some(enrollment) = settings.enrollments.get(record.enrollment()) else { return false };
        let mut others = settings.instances.iter().filter(|(name, _)| *name != instance);
        others.any(|(name, other)| placement::fits(enrollment, name, other))
    }

    /// Brings devices home to instances that work again, a few hundred at a time.
    async fn bring_home(self: &Arc<Self>, looked: &mut BTreeMap<InstanceName, (Place, RegistrationId)>, now: Now) {
        let homes: Vec<InstanceName> = self.away.lock().homes.keys().cloned().collect();
        looked.retain(|home, _| homes.contains(home));
        for home in homes {
            let works = self.dispatcher(&home).is_some_and(|dispatcher| dispatcher.line.lock().works());
            if !works || Failpoint::NeverHome.is_on() {
                continue;
            }
            let next = self.away.lock().next(&home, looked.get(&home));
            match next.last().filter(|_| next.len() == RELIEF_MAX) {
                Some(last) => drop(looked.insert(home, last.clone())),
                None => drop(looked.remove(&home)),
            }
            let each = next.into_iter().map(|(_, id)| {
                let gateway = Arc::clone(self);
                async move { gateway.bring_one_home(&id, now).await }
            });
            let all = futures_util::stream::iter(each).buffer_unordered(RELIEF_WRITES);
            all.for_each(std::future::ready).await;
        }
    }

    async fn bring_one_home(self: &Arc<Self>, id: &RegistrationId, now: Now) {
        let Ok(Some(old)) = self.load(id).await else { return };
        let record = &old.record;
        let home = record.pending().filter(|_| record.home_to_come_back_to().is_some());
        let Some(home) = home.and_then(|pending| pending.home.clone()) else { return };
        if !self.is_sooner_at_home(record, now) || !self.still_fits(record, &home.instance) {
            return;
        }
        let Ok((dispatcher, counted)) = self.choose(record, Wish::Rebooked(&home.instance), now) else { return };
        let (place, ago) = (home.place, home.joined_at.age(now));
        if !dispatcher.line.lock().reserve_returning(record.tenant(), place, id.clone(), ago, now.mono) {
            return self.release(&dispatcher.name, counted);
        }
        let reserved = Reserved { dispatcher, counted, place };
        let span = about::registration_span(id, &home.instance);
        let seated = async {
            about::cause(record);
            self.take_seat(self.draft(old.clone(), now), Command::ComeHome, reserved).await
        };
        if let Err(error) = seated.instrument(span.clone()).await {
            span.in_scope(|| tracing::debug!(%error, "not brought home yet"));
        }
    }

    fn is_sooner_at_home(&self, record: &Record, now: Now) -> bool {
        let Some((pending, home)) = record.pending().and_then(|pending| Some((pending, pending.home.as_ref()?))) else {
            return false;
        };
        let (Some(here), Some(there)) = (self.dispatcher(&pending.instance), self.dispatcher(&home.instance)) else {
            return false;
        };
        let Some(here) = here.line.lock().forecast(record.tenant(), pending.place, now.mono) else { return false };
        let mut line = there.line.lock();
        let ago = home.joined_at.age(now);
        line.has_room(record.tenant(), now.mono)
            && line.forecast_returning(record.tenant(), home.place, ago, now.mono).after(GAIN_MIN) <= here.appointment
    }
}
