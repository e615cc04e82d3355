//! A device asks where it belongs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::dispatch::Dispatcher;
use super::{CAS_ATTEMPTS_MAX, Gateway, StoreError, about};
use crate::attestation::{self, HandedCredential, NotBelieved, Presented};
use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, InvalidName, RegistrationId, TenantName};
use crate::line::LineFull;
use crate::place::{Class, Place};
use crate::placement::{self, NoRoom};
use crate::record::{AssignmentState, Home, Pending, Reason, Record, Refusal, Stage, Versioned};
use crate::settings::{DeriveFrom, Enrollment, Settings};
use crate::store::{CommitError, ReadError};
use rate_control::retry;
use rate_control::time::{Mono, Now, StoredMoment, WallTime};

/// A device's request.
#[derive(Debug, Clone)]
pub struct ProvisionRequest<'a> {
    /// Who it says it is, and the proof.
    pub presented: Presented<'a>,
    /// For DPS's allocation policy.
    pub payload: Option<Value>,
    /// It wants a new registration.
    pub reprovision: bool,
    /// How long it is ready to wait for the answer; zero for not at all.
    pub wait: Duration,
}

/// The answer to a believed device.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Its hub.
    Assigned(Box<Assigned>),
    /// Its place.
    Queued(Queued),
}

/// A confirmed assignment, as the device is told it.
#[derive(Debug, Clone, PartialEq)]
pub struct Assigned {
    /// As DPS knows it.
    pub registration_id: RegistrationId,
    /// As the hub knows it.
    pub device_id: DeviceId,
    /// The hub.
    pub hub: HubName,
    /// What DPS did.
    pub substatus: Option<String>,
    /// When.
    pub assigned_at: WallTime,
    /// From a custom allocation policy.
    pub payload: Option<Value>,
    /// What it is handed to connect with.
    pub credential: Option<HandedCredential>,
}

/// A place in line, as the device is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queued {
    /// When to come back. At least 1 s; spread later only.
    pub retry_after_seconds: u64,
    /// When its assignment should be there.
    pub appointment: WallTime,
    /// Devices that go before it, plus one; 0 while DPS works on it.
    pub position: usize,
}

/// Why a device gets neither hub nor place.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProvisionError {
    /// The hardware ID breaks the rule.
    #[error("hardwareId: {0}")]
    IllFormedId(#[from] InvalidName),
    /// It is not believed.
    #[error(transparent)]
    NotBelieved(#[from] NotBelieved),
    /// An operator keeps it out.
    #[error("an operator has blocked this device")]
    Blocked,
    /// An operator deleted it.
    #[error("an operator has retired this device")]
    Retired,
    /// Its registration ID belongs to another tenant.
    #[error("this registration ID belongs to another tenant; IDs are unique across tenants")]
    OtherTenant,
    /// DPS refused it.
    #[error("{}", .0.detail)]
    Refused(Box<Refusal>),
    /// It asks far more often than it was told to.
    #[error("this device repeats its request far more often than it was told to")]
    TooFast(Duration),
    /// The line takes nobody else, or nobody else of this tenant.
    #[error("{full}")]
    LineFull {
        /// Which bound.
        full: LineFull,
        /// When to come back: then there should be room.
        retry_after_seconds: u64,
    },
    /// No instance takes it.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The store cannot keep a place.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The service is about to stop.
    #[error("the service is shutting down")]
    Stopping,
}

/// What the record says is to be done.
enum Step {
    Answer(Outcome),
    /// Write this first, then decide again.
    Write {
        record: Box<Record>,
        /// What is remembered with it as done for this request.
        done: Done,
        /// What the device is told if the store takes no writes; `None` if it must not be told anything then.
        unwritten: Option<Outcome>,
    },
    /// Its instance fails and nothing has left for it: book it on another one, which has it sooner.
    Elsewhere {
        from: Box<Versioned>,
        to: InstanceName,
        queued: Queued,
    },
    /// It waits behind those that nobody asked for, and is here now.
    Ahead {
        from: Box<Versioned>,
        queued: Queued,
    },
    /// Give it a place.
    Join(Reason),
}

/// What was written for this very request already.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    /// The device's one credential is handed out with the answer.
    claimed: bool,
    /// The reprovisioning that the device asked for is told with the answer.
    told: bool,
}

impl Gateway {
    /// Answers a device. See the module of [`Gateway`] for the line it follows.
    ///
    /// Cancel-safe: a device that hangs up keeps the place it was given; its registration goes on.
    ///
    /// # Errors
    /// [`ProvisionError`]; for an unbelieved device nothing was written and nobody was called.
    pub async fn provision(self: &Arc<Self>, request: &ProvisionRequest<'_>) -> Result<Outcome, ProvisionError> {
        let id = RegistrationId::parse(request.presented.hardware_id)?;
        let settings = self.settings();
        let record = match self.load(&id).await {
            // What cannot be read is unknown until the device is believed: nobody else learns that there is something.
            Err(error @ ReadError::Unavailable(_)) => return Err(StoreError::from(error).into()),
            read => read,
        };
        self.settle_time().await;
        let now = self.now();
        let known = record.as_ref().ok().and_then(Option::as_ref).map(|versioned| &versioned.record);
        let judged_at = Now { wall: self.credential_time(now), ..now };
        let (name, enrollment) = attestation::authenticate(&settings, &id, known, request.presented, judged_at)?;
        let record = record.map_err(StoreError::from)?;
        self.repeat.check(&id, now.mono).map_err(ProvisionError::TooFast)?;
        let device = Believed { id, name, enrollment, settings: &settings, request };
        let waiter = (!request.wait.is_zero()).then(|| self.waiters.park(&device.id)).flatten();
        let Some(waiter) = waiter else { return self.answer(&device, record).await };
        let deadline = tokio::time::sleep(request.wait);
        tokio::pin!(deadline);
        loop {
            let changed = waiter.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // Read only now: a change from here on wakes this request, and an earlier one is in what is read.
            let record = self.load(&device.id).await.map_err(StoreError::from)?;
            let answered = self.answer(&device, record).await?;
            if matches!(answered, Outcome::Assigned(_)) || self.is_stopping() {
                return Ok(answered);
            }
            tokio::select! {
                biased;
                () = changed => {}
                // The last forecast is as old as the wait: look again, for a fresh one.
                () = &mut deadline => {
                    let record = self.load(&device.id).await.map_err(StoreError::from)?;
                    return self.answer(&device, record).await;
                }
            }
        }
    }

    /// Decides by the record, writing what has to be durable first.
    async fn answer(
        self: &Arc<Self>,
        device: &Believed<'_>,
        mut record: Option<Versioned>,
    ) -> Result<Outcome, ProvisionError> {
        let mut done = Done::default();
        for _ in 0..CAS_ATTEMPTS_MAX {
            let now = self.now();
            let written = match self.step(device, record.as_ref(), done, now)? {
                Step::Answer(answered) => return Ok(answered),
                Step::Write { record: new, done: after, unwritten } => {
                    let version = record.as_ref().and_then(|versioned| versioned.version);
                    let old = record.take().map(|versioned| versioned.record);
                    let written = self.commit(old, Versioned { record: *new, version }, Vec::new(), None).await;
                    match (&written, unwritten) {
                        (Ok(()), _) => {
                            done.claimed |= after.claimed;
                            done.told |= after.told;
                        }
                        (Err(CommitError::ReadOnly(_) | CommitError::Failed(_)), Some(answered)) => {
                            return Ok(answered);
                        }
                        (Err(_), _) => {}
                    }
                    written
                }
                Step::Join(_) if self.is_stopping() => return Err(ProvisionError::Stopping),
                Step::Join(reason) => self.join(device, record.as_ref(), reason, now).await?,
                Step::Elsewhere { from, to, queued } => {
                    match self.rebook(from, &to, now).await {
                        Ok(written) => written,
                        // That does not take it after all: it keeps its place, and gets an honest time.
                        Err(_) => return Ok(Outcome::Queued(queued)),
                    }
                }
                Step::Ahead { from, queued } => {
                    match self.reseat(&from, Class::Reprovision, "the device itself asks now").await {
                        Err(CommitError::ReadOnly(_) | CommitError::Failed(_)) => return Ok(Outcome::Queued(queued)),
                        written => written,
                    }
                }
            };
            match written {
                Ok(()) | Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
            record = self.load(&device.id).await.map_err(StoreError::from)?;
        }
        Err(StoreError::Contended.into())
    }

    fn step(
        &self,
        device: &Believed<'_>,
        versioned: Option<&Versioned>,
        done: Done,
        now: Now,
    ) -> Result<Step, ProvisionError> {
        let Some(versioned) = versioned else { return Ok(Step::Join(Reason::First)) };
        let record = &versioned.record;
        about::whereabouts(record);
        let claimed = (record.was_seen() || record.listed.is_some()) && !record.unclaimed;
        if claimed && record.tenant != device.enrollment.tenant {
            tracing::error!(registration_id = %device.id, tenant = %record.tenant, other = %device.enrollment.tenant, "two tenants claim one registration ID");
            return Err(ProvisionError::OtherTenant);
        }
        if record.blocked.is_some() {
            return Err(ProvisionError::Blocked);
        }
        if record.retired.is_some() {
            return Err(ProvisionError::Retired);
        }
        if let Some(pending) = &record.pending {
            if record.confirmed().is_some() && !device.request.reprovision {
                return Ok(tell(device, record, done, now, self.credential_time(now)));
            }
            return Ok(self.queued_step(device, versioned, pending, now));
        }
        // What a device asked for in vain does not take from it what it has.
        let wants_another = !done.told && device.wants_another(record, now);
        let content = record.confirmed().is_some() && !wants_another;
        if let Some(refusal) = self.refusal(record, now).filter(|_| !content) {
            return Err(ProvisionError::Refused(Box::new(refusal.shown(now))));
        }
        match record.assignment.as_ref().map(|assignment| assignment.state) {
            None => Ok(Step::Join(Reason::First)),
            Some(AssignmentState::Suspect) => Ok(Step::Join(Reason::Suspect)),
            Some(AssignmentState::Moved | AssignmentState::Retired) => Ok(Step::Join(Reason::Moved)),
            Some(AssignmentState::Confirmed) if wants_another => Ok(Step::Join(Reason::Reprovision)),
            Some(AssignmentState::Confirmed) => Ok(tell(device, record, done, now, self.credential_time(now))),
        }
    }

    /// Tells a place. What the device newly wants is written first, while it still can have an effect.
    fn queued_step(&self, device: &Believed<'_>, versioned: &Versioned, pending: &Pending, now: Now) -> Step {
        let record = &versioned.record;
        let request = device.request;
        let new_payload = request.payload.is_some() && request.payload != pending.payload;
        let newly_asked = request.reprovision && !pending.reprovision;
        // DPS is to be shown the spelling that the device has proved itself with.
        let spelling = device.spelling();
        let new_spelling = device.enrollment.derive_from == DeriveFrom::AsGiven && record.hardware_id != spelling;
        let quoted = self.quote(&record.tenant, pending, device.settings.line.jitter_max, now);
        let queued = Outcome::Queued(quoted);
        if (new_payload || newly_asked || new_spelling) && pending.stage == Stage::Waiting {
            let mut record = record.clone();
            record.hardware_id = spelling;
            if let Some(pending) = &mut record.pending {
                pending.reprovision |= newly_asked;
                if new_payload {
                    pending.payload.clone_from(&request.payload);
                }
            }
            return Step::Write { record: Box::new(record), done: Done::default(), unwritten: Some(queued) };
        }
        if self.is_stopping() || pending.stage != Stage::Waiting {
            return Step::Answer(queued);
        }
        let from = Box::new(versioned.clone());
        if let Some(to) = self.sooner_elsewhere(record, |_| true, now) {
            return Step::Elsewhere { from, to, queued: quoted };
        }
        if pending.place.class == Class::Background {
            return Step::Ahead { from, queued: quoted };
        }
        Step::Answer(queued)
    }

    /// When to come back, forecast for this place alone.
    fn quote(&self, tenant: &TenantName, pending: &Pending, jitter_max: Duration, now: Now) -> Queued {
        let forecast = self
            .dispatcher(&pending.instance)
            .and_then(|dispatcher| dispatcher.line.lock().appoint(tenant, pending.place, now.mono));
        // Between two steps of its registration a place is in neither set for a moment.
        let (position, appointment) = forecast
            .map_or((0, now.mono.after(Duration::from_secs(2))), |forecast| (forecast.position, forecast.appointment));
        let wait = appointment.since(now.mono);
        let retry_after_seconds = retry::told_seconds(wait, jitter_max, |most| self.spread(most));
        Queued { retry_after_seconds, appointment: now.wall_at(appointment), position }
    }

    /// Gives the device a durable place. The inner result is the store's, so that a lost race is decided anew.
    async fn join(
        self: &Arc<Self>,
        device: &Believed<'_>,
        versioned: Option<&Versioned>,
        reason: Reason,
        now: Now,
    ) -> Result<Result<(), CommitError>, ProvisionError> {
        let old = versioned.map(|versioned| &versioned.record);
        let mut record = old
            .cloned()
            .unwrap_or_else(|| Record::new(device.id.clone(), device.enrollment.tenant.clone(), device.name.clone()));
        record.tenant = device.enrollment.tenant.clone();
        record.enrollment = device.name.clone();
        record.unclaimed = false;
        record.hardware_id = device.spelling();
        let new = Versioned { record, version: versioned.and_then(|versioned| versioned.version) };
        let request = device.request;
        let class = if reason == Reason::First { Class::First } else { Class::Reprovision };
        let joining = Joining {
            reason,
            class,
            payload: request.payload.clone(),
            reprovision: request.reprovision,
            asked: true,
            home: None,
            rebooked: 0,
            request_id: None,
        };
        self.enter(old.cloned(), new, joining, None, now).await
    }

    /// Puts a device into a line: room in the inventory, a place, the record on disk, and only then its turn. The instance is `to`;
    /// without that, one that works if there is one.
    pub(super) async fn enter(
        self: &Arc<Self>,
        old: Option<Record>,
        new: Versioned,
        joining: Joining,
        to: Option<&InstanceName>,
        now: Now,
    ) -> Result<Result<(), CommitError>, ProvisionError> {
        let (dispatcher, reserved) = self.choose(&new.record, to, now)?;
        about::instance(&dispatcher.name);
        let id = new.record.registration_id.clone();
        let place = dispatcher.line.lock().reserve(&new.record.tenant, id, joining.class, now.mono);
        let place = place.map_err(|full| {
            self.release(&dispatcher.name, reserved);
            let anywhere = reserved && to.is_none() && new.record.moving_to.is_none();
            self.turned_away(&new.record, &dispatcher, anywhere, joining.asked, full, now)
        })?;
        let seat = Seat { dispatcher, reserved, place, joined_at: StoredMoment::of(now) };
        Ok(self.take_seat(old, new, joining, seat, now).await)
    }

    /// Writes down that a device has a place, which then counts; or gives that back.
    pub(super) async fn take_seat(
        self: &Arc<Self>,
        old: Option<Record>,
        mut new: Versioned,
        joining: Joining,
        seat: Seat,
        now: Now,
    ) -> Result<(), CommitError> {
        let Seat { dispatcher, reserved, place, joined_at } = seat;
        let (settings, instance) = (self.settings(), dispatcher.name.clone());
        let record = &mut new.record;
        let first_there = record.footprint.insert(instance.clone());
        record.refusal = None;
        let what = format!("joined the line of {instance} ({})", reason_words(joining.reason));
        record.note(now.wall, settings.registration.timeline_max, what);
        record.pending = Some(Pending {
            instance: instance.clone(),
            place,
            reason: joining.reason,
            joined_at,
            stage: Stage::Waiting,
            reprovision: joining.reprovision,
            first_there,
            request_id: joining.request_id.or_else(|| about::request_id().map(|id| id.to_string())),
            attempts: 0,
            fruitless: 0,
            payload: joining.payload,
            home: joining.home.filter(|home| home.instance != instance),
            rebooked: joining.rebooked,
        });
        let gateway = Arc::clone(self);
        self.to_the_end(async move {
            let reserved = reserved.then_some(&instance);
            let committed = gateway.commit_here(old.as_ref(), &new, Vec::new(), reserved).await;
            if committed.is_err() {
                dispatcher.line.lock().leave(&new.record.tenant, place);
                dispatcher.bell.notify_one();
            }
            committed
        })
        .await
    }

    fn release(&self, instance: &InstanceName, reserved: bool) {
        if reserved {
            self.occupancy.lock().remove(instance);
        }
    }

    /// The instance's dispatcher, and whether placement has newly counted the device in.
    ///
    /// New settings come into force under the same lock and only if they have every instance that is counted here, so that nobody is
    /// placed on an instance that is gone.
    pub(super) fn choose(
        &self,
        record: &Record,
        to: Option<&InstanceName>,
        now: Now,
    ) -> Result<(Arc<Dispatcher>, bool), NoRoom> {
        let (sick, full) = (self.sick_instances(now.mono), self.full_lines(&record.tenant, now));
        let mut occupancy = self.occupancy.lock();
        let settings = self.settings.load();
        let enrollment = settings.enrollments.get(&record.enrollment).ok_or(NoRoom::NoneFits)?;
        let open = |name: &&InstanceName| {
            settings.instances.get(*name).is_some_and(|instance| placement::serves(&enrollment.tenant, instance))
        };
        // A device that has been at an instance stays there: only an operator re-homes it, and never to one of another tenant.
        let been = record.assignment.iter().map(|assignment| &assignment.instance).chain(&record.footprint);
        let wished = to.into_iter().chain(&record.moving_to);
        let (instance, reserved) = match wished.chain(been).find(open) {
            Some(home) if record.footprint.contains(home) => (home.clone(), false),
            Some(home) => {
                let instance = settings.instances.get(home).ok_or(NoRoom::NoneFits)?;
                if !occupancy.has_room(home, instance) || (to == Some(home) && instance.draining) {
                    return Err(NoRoom::AllFull(occupancy.why_shut(home, instance)));
                }
                occupancy.add(home);
                (home.clone(), true)
            }
            None => {
                let mut place = |avoid: &BTreeSet<InstanceName>| {
                    occupancy.place(&settings.instances, enrollment, &record.registration_id, avoid)
                };
                // Better an instance that fails than none.
                let placed = place(&(&sick | &full)).or_else(|_| place(&full)).or_else(|_| place(&BTreeSet::new()));
                (placed?, true)
            }
        };
        let Some(dispatcher) = self.dispatcher(&instance) else {
            if reserved {
                occupancy.remove(&instance);
            }
            return Err(NoRoom::NoneFits);
        };
        Ok((dispatcher, reserved))
    }
}

/// Tells a confirmed assignment; what must be remembered of the telling is written first.
/// Its credential is made by `time`.
fn tell(device: &Believed<'_>, record: &Record, done: Done, now: Now, time: WallTime) -> Step {
    let Some(assignment) = record.confirmed() else { return Step::Join(Reason::First) };
    let enrollment = device.enrollment;
    let mut credential = None;
    if !enrollment.credential_once || record.credential_claimed.is_none() || done.claimed {
        let place = (&assignment.hub, &assignment.device_id);
        credential = attestation::credential(enrollment, record, &assignment.instance, place, time);
    }
    let tells_reprovision = device.request.reprovision && record.reprovisioned_untold;
    let claims = enrollment.credential_once && credential.is_some() && !done.claimed;
    let answered = Outcome::Assigned(Box::new(Assigned {
        registration_id: record.registration_id.clone(),
        device_id: assignment.device_id.clone(),
        hub: assignment.hub.clone(),
        substatus: assignment.substatus.clone(),
        assigned_at: assignment.assigned_at,
        payload: assignment.payload.clone(),
        credential,
    }));
    if tells_reprovision || claims {
        let mut record = record.clone();
        if tells_reprovision {
            record.reprovisioned_untold = false;
            record.reprovision_told = Some(StoredMoment::of(now));
        }
        if claims {
            record.credential_claimed = Some(now.wall);
        }
        let done = Done { claimed: claims, told: tells_reprovision };
        // What may be handed out once only is not handed out unless that is remembered.
        let unwritten = (!claims).then_some(answered);
        return Step::Write { record: Box::new(record), done, unwritten };
    }
    Step::Answer(answered)
}

/// How a device joins a line.
pub(super) struct Joining {
    /// Why.
    pub(super) reason: Reason,
    /// In which lane.
    pub(super) class: Class,
    /// For DPS's allocation policy.
    pub(super) payload: Option<Value>,
    /// The device asked for a new registration.
    pub(super) reprovision: bool,
    /// The request that gave it the place it leaves; `None` if the one that is being handled gives it this one.
    pub(super) request_id: Option<String>,
    /// The device itself asks, and comes back when it is told to.
    pub(super) asked: bool,
    /// Where it stood before its instance failed.
    pub(super) home: Option<Home>,
    /// How often that has happened.
    pub(super) rebooked: u32,
}

impl Joining {
    /// As it joined the place that it leaves.
    pub(super) fn again(left: Pending) -> Self {
        let Pending { reason, place, payload, reprovision, home, rebooked, request_id, .. } = left;
        Self { reason, class: place.class, payload, reprovision, asked: false, home, rebooked, request_id }
    }
}

/// A place that is given out in memory, and not on disk yet.
pub(super) struct Seat {
    pub(super) dispatcher: Arc<Dispatcher>,
    /// Placement has newly counted the device in.
    pub(super) reserved: bool,
    pub(super) place: Place,
    pub(super) joined_at: StoredMoment,
}

/// One registration of a suspect device per cool-down.
pub(super) fn suspect_not_before(record: &Record, reason: Reason, settings: &Settings, now: Now) -> Option<Mono> {
    let begun = record.last_registration_begun.filter(|_| reason == Reason::Suspect)?;
    begun.left_of(settings.registration.suspect_cooldown, now).map(|left| now.mono.after(left))
}

fn reason_words(reason: Reason) -> &'static str {
    match reason {
        Reason::First => "it has no assignment yet",
        Reason::Reprovision => "it asked for a new registration",
        Reason::Suspect => "its assignment was contradicted",
        Reason::Moved => "an operator moves it",
    }
}

/// A device that is who it says it is.
struct Believed<'a> {
    id: RegistrationId,
    name: &'a EnrollmentName,
    enrollment: &'a Enrollment,
    settings: &'a Settings,
    request: &'a ProvisionRequest<'a>,
}

impl Believed<'_> {
    /// The hardware ID as the device spells it, if that is not the registration ID.
    fn spelling(&self) -> Option<String> {
        let given = self.request.presented.hardware_id;
        (given != self.id.as_str()).then(|| given.to_owned())
    }

    /// Whether its wish for a new registration is not met yet.
    fn wants_another(&self, record: &Record, now: Now) -> bool {
        let cooldown = self.settings.registration.reprovision_cooldown;
        let lately =
            |moment: Option<StoredMoment>| moment.is_some_and(|moment| moment.left_of(cooldown, now).is_some());
        let met =
            record.reprovisioned_untold || lately(record.last_registration_begun) || lately(record.reprovision_told);
        self.request.reprovision && !met
    }
}
