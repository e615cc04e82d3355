//! All lines of this process, and the answers to whoever asks of them.
//!
//! Invariants:
//! - A lock of a line is held for one answer about that line, and never across an await.
//! - What a line holds in memory changes in the same step as the record, when it is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::away::Away;
use super::dispatcher::Dispatcher;
use super::wait_explanation::WaitExplanation;
use crate::base::Base;
use crate::device::{Effects, Flight, Pending, Reason};
use crate::ids::{InstanceName, TenantName};
use crate::line::Line;
use crate::line_owner::{At, Avoid, Coming, Explained, LineOwner, LineReport, Newcomer, NotExpected, Told};
use crate::ownership::Predecessors;
use crate::place::Class;
use crate::settings::Settings;
use rate_control::failpoint::Failpoint;
use rate_control::ledger;
use rate_control::time::{Mono, Now, StoredMoment};

/// What a change of the instance has to gain: less is not worth the writes, and no forecast is as good as that.
pub(super) const GAIN_MIN: Duration = Duration::from_secs(2);

/// A registration that may be on its way.
pub(super) struct OnItsWay {
    /// Until when; `None` if that is known only when its call has ended.
    pub(super) until: Option<Mono>,
}

/// The lines. See the module.
#[derive(Debug)]
pub(crate) struct Lines {
    base: Arc<Base>,
    dispatchers: ArcSwap<BTreeMap<InstanceName, Arc<Dispatcher>>>,
    /// Devices that wait at another instance because their own fails. Follows the records.
    pub(super) away: Mutex<Away>,
}

impl Lines {
    /// No lines yet; devices are `away` from some.
    pub(super) fn new(base: Arc<Base>, away: Away) -> Self {
        Self { base, dispatchers: ArcSwap::default(), away: Mutex::new(away) }
    }

    /// The dispatchers of all instances.
    pub(super) fn all(&self) -> Arc<BTreeMap<InstanceName, Arc<Dispatcher>>> {
        self.dispatchers.load_full()
    }

    /// From now on there are these.
    pub(super) fn put_in_force(&self, dispatchers: Arc<BTreeMap<InstanceName, Arc<Dispatcher>>>) {
        self.dispatchers.store(dispatchers);
    }

    pub(super) fn dispatcher(&self, instance: &InstanceName) -> Option<Arc<Dispatcher>> {
        self.dispatchers.load().get(instance).cloned()
    }

    /// Whether the instance has failed for so long that devices may be booked elsewhere.
    fn fails_for_long(&self, line: &Line, now: Mono) -> bool {
        let after = self.base.look_at_settings().line.rebook_after;
        line.sick_for(now).is_some_and(|sick_for| sick_for >= after)
    }

    /// The instances that have.
    pub(super) fn sick(&self, now: Mono) -> BTreeSet<InstanceName> {
        let dispatchers = self.dispatchers.load();
        let sick = dispatchers.iter().filter(|(_, dispatcher)| self.fails_for_long(&dispatcher.line.lock(), now));
        sick.map(|(name, _)| name.clone()).collect()
    }

    fn avoided(&self, tenant: &TenantName) -> Avoid {
        let (mut avoid, now) = (Avoid::default(), self.base.now().mono);
        for (name, dispatcher) in self.dispatchers.load().iter() {
            let mut line = dispatcher.line.lock();
            if self.fails_for_long(&line, now) {
                avoid.sick.insert(name.clone());
            }
            if !line.has_room(tenant, now) {
                avoid.full.insert(name.clone());
            }
        }
        avoid
    }

    fn expected(&self, newcomer: &Newcomer) -> Result<(), NotExpected> {
        let Newcomer { instance, tenant, coming } = newcomer;
        let dispatcher = self.dispatcher(instance).ok_or(NotExpected::NoLine)?;
        let now = self.base.now().mono;
        let mut line = dispatcher.line.lock();
        match *coming {
            Coming::Changing => {
                line.hold_room_again(tenant);
                Ok(())
            }
            Coming::Returning(place) if !line.is_free(tenant, place) => Err(NotExpected::Taken),
            Coming::Anew | Coming::Returning(_) => line.hold_room(tenant, now).map_err(NotExpected::Full),
        }
    }

    /// Whoever has a new place arrives there, and the one that is not on disk any more is left.
    fn followed(&self, effects: &Effects) {
        self.away.lock().follow(effects);
        let (left, joined, now) = (effects.left(), effects.joined(), self.base.now());
        let not_before = joined.and_then(|(_, joined)| {
            let (begun, settings) = (joined.last_registration_begun, self.base.look_at_settings());
            suspect_not_before(begun, joined.reason, &settings, now)
        });
        if let (Some((_, left)), Some((who, joined))) = (left, joined)
            && left.instance == joined.instance
        {
            let (tenant, id) = (&who.tenant, who.registration_id.clone());
            return self.in_line(&joined.instance, |line| {
                line.exchange(tenant, left.place, joined.place, id, now.mono);
                // Where the change that put it off is heard of later.
                let not_before = not_before.filter(|_| joined.place.class != Class::Expedited);
                if let Some(not_before) = not_before.filter(|_| line.not_before(joined.place).is_none()) {
                    line.defer(tenant, joined.place, not_before);
                }
            });
        }
        if let Some((who, joined)) = joined {
            let (tenant, id, ago) = (&who.tenant, who.registration_id.clone(), joined.joined_at.age(now));
            self.in_line(&joined.instance, |line| {
                line.arrive(tenant, joined.place, id, ago, now.mono);
                if let Some(not_before) = not_before {
                    line.defer(tenant, joined.place, not_before);
                }
            });
        }
        if let Some((who, left)) = left {
            self.in_line(&left.instance, |line| {
                line.leave(&who.tenant, left.place);
            });
        }
    }

    /// Changes the line of an instance, which then looks who may go.
    fn in_line(&self, instance: &InstanceName, change: impl FnOnce(&mut Line)) {
        if let Some(dispatcher) = self.dispatcher(instance) {
            change(&mut dispatcher.line.lock());
            dispatcher.bell.notify_one();
        }
    }

    fn told(&self, At { instance, tenant, place }: At<'_>) -> Option<Told> {
        let now = self.base.now().mono;
        let dispatcher = self.dispatcher(instance)?;
        let mut line = dispatcher.line.lock();
        let forecast = line.appoint(tenant, place, now)?;
        let is_sick = self.fails_for_long(&line, now);
        Some(Told { position: forecast.position, wait: forecast.appointment.since(now), is_sick })
    }

    fn has_sooner(&self, at: At<'_>, among: &BTreeSet<InstanceName>) -> Option<InstanceName> {
        let At { instance, tenant, place } = at;
        let now = self.base.now().mono;
        let dispatchers = self.dispatchers.load();
        let dispatcher = dispatchers.get(instance)?;
        let here = {
            let line = dispatcher.line.lock();
            if !self.fails_for_long(&line, now) {
                return None;
            }
            // Somebody has to find out when those can come home who are away.
            if line.is_last() && self.away.lock().any_from(instance) {
                return None;
            }
            line.forecast_failing(tenant, place, now)?
        };
        let others = dispatchers.iter().filter(|(name, _)| *name != instance && among.contains(*name));
        let told = others.filter_map(|(name, dispatcher)| {
            let mut line = dispatcher.line.lock();
            let takes = !self.fails_for_long(&line, now) && line.has_room(tenant, now);
            takes.then(|| (line.forecast_joining(tenant, place.class, now), name.clone()))
        });
        let (there, name) = told.min()?;
        (there.after(GAIN_MIN) <= here).then_some(name)
    }

    fn has_room_in(&self, tenant: &TenantName, among: &BTreeSet<InstanceName>, promised: bool) -> Duration {
        let now = self.base.now().mono;
        let dispatchers = self.dispatchers.load();
        let asked = dispatchers.iter().filter(|(name, _)| among.contains(*name));
        let first = asked.min_by_key(|(_, dispatcher)| {
            let line = dispatcher.line.lock();
            (self.fails_for_long(&line, now), line.room_forecast(tenant, now))
        });
        let Some((_, first)) = first else { return Duration::ZERO };
        let mut entropy = self.base.entropy.lock();
        let mut line = first.line.lock();
        let room_at =
            if promised { line.turn_away(tenant, now, &mut entropy) } else { line.room_forecast(tenant, now) };
        room_at.since(now)
    }

    /// Until when a registration may be on its way, if it may be at `now`.
    pub(super) fn until_landed(&self, flight: &Flight, now: Mono) -> Option<OnItsWay> {
        if Failpoint::FlightForgotten.is_on() {
            return None;
        }
        if flight.sender == self.base.sender {
            return Some(OnItsWay { until: None });
        }
        let settings = self.base.look_at_settings();
        let longest = match self.base.ownership.predecessors() {
            Predecessors::Gone => ledger::abandoned_hold(settings.registration.upstream_max_delay),
            Predecessors::MayLive(_) => settings.registration.orphan_hold(),
        };
        let latest = self.base.begun.after(longest);
        // The slot tells better where the process before the last one had sent it, and may be another call's by now.
        let until = match (self.dispatcher(&flight.instance), flight.slot) {
            (Some(dispatcher), Some(slot)) => dispatcher.line.lock().held_until(slot)?.min(latest),
            _ => latest,
        };
        (until > now).then_some(OnItsWay { until: Some(until) })
    }

    fn explained(&self, tenant: &TenantName, pending: &Pending) -> Option<Explained> {
        let dispatcher = self.dispatcher(&pending.instance)?;
        let now = self.base.now();
        let mut line = dispatcher.line.lock();
        let forecast = line.forecast(tenant, pending.place, now.mono);
        let position = forecast.map(|forecast| forecast.position);
        let status = dispatcher.status(&mut line, now.mono);
        let clock_trouble = dispatcher.clock_trouble(now);
        let because = WaitExplanation {
            pending,
            status: &status,
            position,
            not_before: line.not_before(pending.place),
            failed_polls: line.failed_polls(pending.place),
            urgent_share_percent: self.base.look_at_settings().line.urgent_share_percent,
            now,
            clock_trouble: clock_trouble.as_deref(),
        };
        let wait = forecast.map(|forecast| forecast.appointment.since(now.mono));
        Some(Explained { because: because.to_string(), position, wait })
    }

    fn reported(&self) -> BTreeMap<InstanceName, LineReport> {
        let now = self.base.now();
        let report = |(name, dispatcher): (&InstanceName, &Arc<Dispatcher>)| {
            let report = LineReport {
                now,
                status: dispatcher.status(&mut dispatcher.line.lock(), now.mono),
                dispatcher_up: dispatcher.up.load(Ordering::Relaxed),
                clock_offset_millis: dispatcher.offset_millis(now),
                counts: dispatcher.counts.view(),
            };
            (name.clone(), report)
        };
        self.dispatchers.load().iter().map(report).collect()
    }
}

impl LineOwner for Lines {
    fn avoid<'a>(&'a self, tenant: &'a TenantName) -> BoxFuture<'a, Avoid> {
        async move { self.avoided(tenant) }.boxed()
    }

    fn expect<'a>(&'a self, newcomer: &'a Newcomer) -> BoxFuture<'a, Result<(), NotExpected>> {
        async move { self.expected(newcomer) }.boxed()
    }

    fn withdraw<'a>(&'a self, newcomer: &'a Newcomer) -> BoxFuture<'a, ()> {
        async move { self.in_line(&newcomer.instance, |line| line.release_room(&newcomer.tenant)) }.boxed()
    }

    fn follow<'a>(&'a self, effects: &'a Effects) -> BoxFuture<'a, ()> {
        async move { self.followed(effects) }.boxed()
    }

    fn tell<'a>(&'a self, at: At<'a>) -> BoxFuture<'a, Option<Told>> {
        async move { self.told(at) }.boxed()
    }

    fn sooner<'a>(&'a self, at: At<'a>, among: &'a BTreeSet<InstanceName>) -> BoxFuture<'a, Option<InstanceName>> {
        async move { self.has_sooner(at, among) }.boxed()
    }

    fn on_its_way<'a>(&'a self, flight: &'a Flight) -> BoxFuture<'a, bool> {
        async move { self.until_landed(flight, self.base.now().mono).is_some() }.boxed()
    }

    fn room_in<'a>(
        &'a self,
        tenant: &'a TenantName,
        among: &'a BTreeSet<InstanceName>,
        promised: bool,
    ) -> BoxFuture<'a, Duration> {
        async move { self.has_room_in(tenant, among, promised) }.boxed()
    }

    fn explain<'a>(&'a self, tenant: &'a TenantName, pending: &'a Pending) -> BoxFuture<'a, Option<Explained>> {
        async move { self.explained(tenant, pending) }.boxed()
    }

    fn report(&self) -> BoxFuture<'_, BTreeMap<InstanceName, LineReport>> {
        async move { self.reported() }.boxed()
    }
}

/// One registration of a suspect device per cool-down.
pub(super) fn suspect_not_before(
    last_registration_begun: Option<StoredMoment>,
    reason: Reason,
    settings: &Settings,
    now: Now,
) -> Option<Mono> {
    let begun = last_registration_begun.filter(|_| reason == Reason::Suspect)?;
    begun.left_of(settings.registration.suspect_cooldown, now).map(|left| now.mono.after(left))
}
