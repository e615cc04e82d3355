//! A device asks where it belongs.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::attestation::{self, HandedCredential, NotBelieved, Presented};
use crate::base::{Base, StoreError, about};
use crate::device::{AssignmentState, Claim, Command, Pending, Reason, Record, Refusal, Stage, Versioned};
use crate::dialect::Dialect;
use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, InvalidName, RegistrationId};
use crate::joining::{Entry, JoinError, Joining, Wish};
use crate::line::LineFull;
use crate::line_owner::{At, LineOwner, Told};
use crate::place::Class;
use crate::placement::NoRoom;
use crate::records::{CAS_ATTEMPTS_MAX, Records, lost_race};
use crate::repeat::RepeatGuard;
use crate::settings::{DeriveFrom, Enrollment, Settings};
use crate::store::{CommitError, ReadError};
use rate_control::time::{Now, StoredMoment, WallTime};

/// What a device is told whose place the line does not know: between two steps of its registration that is so for a moment.
const BETWEEN_STEPS: Told = Told { position: 0, wait: Duration::from_secs(2), is_sick: false };

/// A device's request, whatever the transport.
#[derive(Debug, Clone)]
pub struct ProvisionRequest<'a> {
    /// Who it says it is, and the proof.
    pub presented: Presented<'a>,
    /// What it wants.
    pub intent: Intent,
    /// How long it is ready to wait for the answer; zero for not at all.
    pub patience: Duration,
    /// How it is told to come back later.
    pub dialect: Dialect,
}

/// What a device wants, beside its hub.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Intent {
    /// For DPS's allocation policy.
    pub payload: Option<Value>,
    /// It wants a new registration.
    pub reprovision: bool,
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

impl From<JoinError> for ProvisionError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::LineFull { full, retry_after_seconds } => Self::LineFull { full, retry_after_seconds },
            JoinError::NoRoom(no_room) => Self::NoRoom(no_room),
            JoinError::Store(error) => Self::Store(error),
        }
    }
}

/// What the record says is to be done.
enum Step {
    Answer(Outcome),
    /// Make this change durable first, then decide again.
    Change {
        from: Box<Versioned>,
        command: Box<Command>,
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

/// Answers devices.
#[derive(Debug)]
pub(crate) struct Provision {
    base: Arc<Base>,
    records: Arc<Records>,
    joining: Arc<Joining>,
    owner: Arc<dyn LineOwner>,
    repeat: RepeatGuard,
}

impl Provision {
    /// `repeat` knows who asks too often.
    pub(crate) const fn new(
        base: Arc<Base>,
        records: Arc<Records>,
        joining: Arc<Joining>,
        owner: Arc<dyn LineOwner>,
        repeat: RepeatGuard,
    ) -> Self {
        Self { base, records, joining, owner, repeat }
    }

    /// Answers a device.
    ///
    /// Cancel-safe: a device that hangs up keeps the place it was given; its registration goes on.
    ///
    /// # Errors
    /// [`ProvisionError`]; for an unbelieved device nothing was written and nobody was called.
    pub(crate) async fn provision(&self, request: &ProvisionRequest<'_>) -> Result<Outcome, ProvisionError> {
        let id = RegistrationId::parse(request.presented.hardware_id)?;
        let settings = self.base.settings();
        let record = match self.records.load(&id).await {
            // What cannot be read is unknown until the device is believed: nobody else learns that there is something.
            Err(error @ ReadError::Unavailable(_)) => return Err(StoreError::from(error).into()),
            read => read,
        };
        self.base.agreed_time.settle(|| self.base.now()).await;
        let now = self.base.now();
        let known = record.as_ref().ok().and_then(Option::as_ref).map(|versioned| &versioned.record);
        let judged_at = Now { wall: self.base.agreed_time.credential_time(now), ..now };
        let (name, enrollment) = attestation::authenticate(&settings, &id, known, request.presented, judged_at)?;
        let record = record.map_err(StoreError::from)?;
        self.repeat.check(&id, now.mono).map_err(ProvisionError::TooFast)?;
        let device = Believed { id, name, enrollment, settings: &settings, request };
        let waiter = (!request.patience.is_zero()).then(|| self.base.waiters.park(&device.id)).flatten();
        let Some(waiter) = waiter else { return self.answer(&device, record).await };
        let deadline = tokio::time::sleep(request.patience);
        tokio::pin!(deadline);
        loop {
            let changed = waiter.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // Read only now: a change from here on wakes this request, and an earlier one is in what is read.
            let record = self.records.load(&device.id).await.map_err(StoreError::from)?;
            let answered = self.answer(&device, record).await?;
            if matches!(answered, Outcome::Assigned(_)) || self.base.is_stopping() {
                return Ok(answered);
            }
            tokio::select! {
                biased;
                () = changed => {}
                // The last forecast is as old as the wait: look again, for a fresh one.
                () = &mut deadline => {
                    let record = self.records.load(&device.id).await.map_err(StoreError::from)?;
                    return self.answer(&device, record).await;
                }
            }
        }
    }

    /// Decides by the record, writing what has to be durable first.
    async fn answer(&self, device: &Believed<'_>, mut record: Option<Versioned>) -> Result<Outcome, ProvisionError> {
        let mut done = Done::default();
        for _ in 0..CAS_ATTEMPTS_MAX {
            let now = self.base.now();
            let written = match self.step(device, record.as_ref(), done, now).await? {
                Step::Answer(answered) => return Ok(answered),
                Step::Change { from, command, done: after, unwritten } => {
                    let mut draft = self.records.draft(*from, now);
                    let written = match draft.apply(*command) {
                        Ok(()) => self.records.commit(draft, Vec::new()).await,
                        Err(rejected) => Err(lost_race(rejected)),
                    };
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
                Step::Join(_) if self.base.is_stopping() => return Err(ProvisionError::Stopping),
                Step::Join(reason) => self.join(device, record.take(), reason, now).await?,
                Step::Elsewhere { from, to, queued } => {
                    match Box::pin(self.joining.rebook(*from, &to)).await {
                        Ok(written) => written,
                        // That does not take it after all: it keeps its place, and gets an honest time.
                        Err(_) => return Ok(Outcome::Queued(queued)),
                    }
                }
                Step::Ahead { from, queued } => {
                    match self.joining.reseat(*from, Class::Reprovision, "the device itself asks now").await {
                        Err(CommitError::ReadOnly(_) | CommitError::Failed(_)) => return Ok(Outcome::Queued(queued)),
                        written => written,
                    }
                }
            };
            match written {
                Ok(()) | Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
            record = self.records.load(&device.id).await.map_err(StoreError::from)?;
        }
        Err(StoreError::Contended.into())
    }

    async fn step(
        &self,
        device: &Believed<'_>,
        versioned: Option<&Versioned>,
        done: Done,
        now: Now,
    ) -> Result<Step, ProvisionError> {
        let Some(versioned) = versioned else { return Ok(Step::Join(Reason::First)) };
        let record = &versioned.record;
        about::whereabouts(record);
        if record.is_claimed() && *record.tenant() != device.enrollment.tenant {
            tracing::error!(registration_id = %device.id, tenant = %record.tenant(), other = %device.enrollment.tenant, "two tenants claim one registration ID");
            return Err(ProvisionError::OtherTenant);
        }
        if record.blocked().is_some() {
            return Err(ProvisionError::Blocked);
        }
        if record.retired().is_some() {
            return Err(ProvisionError::Retired);
        }
        if let Some(pending) = record.pending() {
            if record.confirmed().is_some() && !device.request.intent.reprovision {
                return Ok(tell(device, versioned, done, self.base.agreed_time.credential_time(now)));
            }
            return Ok(self.queued_step(device, versioned, pending).await);
        }
        // What a device asked for in vain does not take from it what it has.
        let wants_another = !done.told && device.wants_another(record, now);
        let content = record.confirmed().is_some() && !wants_another;
        if let Some(refusal) = self.base.refusal(record, now).filter(|_| !content) {
            return Err(ProvisionError::Refused(Box::new(refusal.shown(now))));
        }
        match record.assignment().map(|assignment| assignment.state) {
            None => Ok(Step::Join(Reason::First)),
            Some(AssignmentState::Suspect) => Ok(Step::Join(Reason::Suspect)),
            Some(AssignmentState::Moved | AssignmentState::Retired) => Ok(Step::Join(Reason::Moved)),
            Some(AssignmentState::Confirmed) if wants_another => Ok(Step::Join(Reason::Reprovision)),
            Some(AssignmentState::Confirmed) => {
                Ok(tell(device, versioned, done, self.base.agreed_time.credential_time(now)))
            }
        }
    }

    /// Tells a place. What the device newly wants is written first, while it still can have an effect.
    async fn queued_step(&self, device: &Believed<'_>, versioned: &Versioned, pending: &Pending) -> Step {
        let record = &versioned.record;
        let Intent { payload, reprovision } = &device.request.intent;
        let new_payload = payload.is_some() && *payload != pending.payload;
        let newly_asked = *reprovision && !pending.reprovision;
        // DPS is to be shown the spelling that the device has proved itself with.
        let spelling = device.spelling();
        let new_spelling =
            device.enrollment.derive_from == DeriveFrom::AsGiven && record.hardware_id() != spelling.as_deref();
        let at = At { instance: &pending.instance, tenant: record.tenant(), place: pending.place };
        let told = self.owner.tell(at).await.unwrap_or(BETWEEN_STEPS);
        let quoted = self.quote(device, told);
        let queued = Outcome::Queued(quoted);
        let from = || Box::new(versioned.clone());
        if (new_payload || newly_asked || new_spelling) && pending.stage == Stage::Waiting {
            let (payload, reprovision) = (payload.clone(), *reprovision);
            let command = Box::new(Command::Ask { spelling, payload, reprovision });
            return Step::Change { from: from(), command, done: Done::default(), unwritten: Some(queued) };
        }
        if self.base.is_stopping() || pending.stage != Stage::Waiting {
            return Step::Answer(queued);
        }
        if told.is_sick
            && let Some(to) = self.joining.sooner_elsewhere(record, |_| true).await
        {
            return Step::Elsewhere { from: from(), to, queued: quoted };
        }
        if pending.place.class == Class::Background {
            return Step::Ahead { from: from(), queued: quoted };
        }
        Step::Answer(queued)
    }

    /// When to come back, as it was forecast for this place alone.
    fn quote(&self, device: &Believed<'_>, Told { position, wait, .. }: Told) -> Queued {
        let (dialect, jitter_max) = (device.request.dialect, device.settings.line.jitter_max);
        let retry_after_seconds = dialect.told_seconds(wait, jitter_max, |most| self.base.spread(most));
        let now = self.base.now();
        Queued { retry_after_seconds, appointment: now.wall_at(now.mono.after(wait)), position }
    }

    /// Gives the device a durable place. The inner result is the store's, so that a lost race is decided anew.
    async fn join(
        &self,
        device: &Believed<'_>,
        known: Option<Versioned>,
        reason: Reason,
        now: Now,
    ) -> Result<Result<(), CommitError>, ProvisionError> {
        let (tenant, enrollment) = (device.enrollment.tenant.clone(), device.name.clone());
        let mut draft = match known {
            Some(known) => self.records.draft(known, now),
            None => self.records.new_draft(Record::new(device.id.clone(), tenant.clone(), enrollment.clone()), now),
        };
        let claim = Claim { tenant, enrollment, spelling: device.spelling() };
        if let Err(rejected) = draft.apply(Command::Claim(claim)) {
            return Ok(Err(lost_race(rejected)));
        }
        let class = if reason == Reason::First { Class::First } else { Class::Reprovision };
        let entry = Entry { class, wish: Wish::Any, asked: Some(device.request.dialect) };
        let Intent { payload, reprovision } = device.request.intent.clone();
        let join = move |seat| Command::Join { seat, reason, payload, reprovision };
        // Boxed, because it is large, and most questions do not come here.
        Ok(Box::pin(self.joining.enter(draft, entry, join)).await?)
    }
}

/// Tells a confirmed assignment; what must be remembered of the telling is written first.
/// Its credential is made by `time`.
fn tell(device: &Believed<'_>, versioned: &Versioned, done: Done, time: WallTime) -> Step {
    let record = &versioned.record;
    let Some(assignment) = record.confirmed() else { return Step::Join(Reason::First) };
    let enrollment = device.enrollment;
    let mut credential = None;
    if !enrollment.credential_once || record.credential_claimed().is_none() || done.claimed {
        let place = (&assignment.hub, &assignment.device_id);
        credential = attestation::credential(enrollment, record, &assignment.instance, place, time);
    }
    let tells_reprovision = device.request.intent.reprovision && record.reprovisioned_untold();
    let claims = enrollment.credential_once && credential.is_some() && !done.claimed;
    let answered = Outcome::Assigned(Box::new(Assigned {
        registration_id: record.registration_id().clone(),
        device_id: assignment.device_id.clone(),
        hub: assignment.hub.clone(),
        substatus: assignment.substatus.clone(),
        assigned_at: assignment.assigned_at,
        payload: assignment.payload.clone(),
        credential,
    }));
    if tells_reprovision || claims {
        let (from, done) = (Box::new(versioned.clone()), Done { claimed: claims, told: tells_reprovision });
        let command = Box::new(Command::Tell { reprovision: tells_reprovision, credential: claims });
        // What may be handed out once only is not handed out unless that is remembered.
        let unwritten = (!claims).then_some(answered);
        return Step::Change { from, command, done, unwritten };
    }
    Step::Answer(answered)
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
        let met = record.reprovisioned_untold()
            || lately(record.last_registration_begun())
            || lately(record.reprovision_told());
        self.request.intent.reprovision && !met
    }
}
