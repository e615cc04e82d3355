//! What backends ask: which hub is this device on, and what has changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::rejoin::Rejoin;
use crate::base::task_names::HUB_INVALIDATION;
use crate::base::{Base, StoreError};
use crate::device::{Assignment, AssignmentState, Command, Reason, Record, Refusal, Versioned};
use crate::feed::{EventId, Next, Start};
use crate::ids::{DeviceId, HubName, InstanceName, RegistrationId, TenantName};
use crate::records::{ChangeError, Records};
use crate::store::ReadError;
use rate_control::time::Now;

/// Invalidations of one hub under way at once.
const CONCURRENT_CHANGES: usize = 256;

/// The tenants a caller may see; `None` for all.
pub type Tenants<'a> = Option<&'a BTreeSet<TenantName>>;

/// An assignment as backends see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignmentView {
    /// As its hub knows it.
    pub device_id: DeviceId,
    /// As DPS knows it.
    pub registration_id: RegistrationId,
    /// Whose.
    pub tenant: TenantName,
    /// Where to send.
    pub assigned_hub: HubName,
    /// Who decided.
    pub instance: InstanceName,
    /// How far to rely on it.
    pub state: AssignmentState,
    /// When the device came to this hub.
    pub assigned_at: rate_control::time::WallTime,
    /// When DPS last said so.
    pub last_confirmed_at: rate_control::time::WallTime,
    /// Grows with every change.
    pub revision: u64,
}

impl AssignmentView {
    pub(super) fn of(record: &Record, assignment: &Assignment) -> Self {
        Self {
            device_id: assignment.device_id.clone(),
            registration_id: record.registration_id().clone(),
            tenant: record.tenant().clone(),
            assigned_hub: assignment.hub.clone(),
            instance: assignment.instance.clone(),
            state: assignment.state,
            assigned_at: assignment.assigned_at,
            last_confirmed_at: assignment.confirmed_at,
            revision: assignment.revision,
        }
    }
}

/// What is known of a device ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It has, or had, a hub.
    Assignment(Box<AssignmentView>),
    /// It waits for its first one.
    InLine,
    /// An operator keeps it out, before it had one.
    Blocked,
    /// An operator retired it, before it had one.
    Retired,
    /// DPS refused it.
    Refused(Box<Refusal>),
    /// It is known and has no hub, and does not wait for one either: it will when it asks.
    NotInLine,
    /// Only in another spelling, this one: device IDs are case-sensitive.
    OtherSpelling(String),
    /// Nobody of that name has ever been given a place.
    NeverSeen,
    /// Several tenants have a device of that name: name one.
    Ambiguous(Vec<TenantName>),
}

/// Why a backend's wish was not done.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// No such device, or none with an assignment.
    #[error("no device of that ID has an assignment")]
    NotFound(Found),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The name a backend knows the device by.
fn device_name(record: &Record) -> &str {
    record.assignment().map_or(record.registration_id().as_str(), |assignment| assignment.device_id.as_str())
}

fn holds_or_waits(record: &Record) -> bool {
    record.assignment().is_some() || record.pending().is_some()
}

fn what_is_found(record: &Record, now: Now) -> Found {
    match (record.assignment(), record.refusal()) {
        (Some(assignment), _) => Found::Assignment(Box::new(AssignmentView::of(record, assignment))),
        (None, _) if record.blocked().is_some() => Found::Blocked,
        (None, _) if record.retired().is_some() => Found::Retired,
        (None, _) if record.pending().is_some() => Found::InLine,
        (None, Some(refusal)) => Found::Refused(Box::new(refusal.shown(now))),
        (None, None) => Found::NotInLine,
    }
}

/// Answers backends.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    base: Arc<Base>,
    records: Arc<Records>,
    rejoin: Rejoin,
}

impl Backend {
    pub(crate) const fn new(base: Arc<Base>, records: Arc<Records>, rejoin: Rejoin) -> Self {
        Self { base, records, rejoin }
    }

    /// Finds a device by the name its hub knows it by (case-sensitive). Reads memory and the local store only.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn find(&self, device_id: &str, tenants: Tenants<'_>) -> Result<Found, ReadError> {
        let known = self.records_of(device_id, tenants).await?;
        let (exact, respelt): (Vec<_>, Vec<_>) = known.into_iter().partition(|record| device_name(record) == device_id);
        // Who has a hub or waits for one goes before who has neither.
        let (held, idle): (Vec<_>, Vec<_>) = exact.into_iter().partition(holds_or_waits);
        let mut found = if held.is_empty() { idle } else { held };
        if found.len() > 1 {
            return Ok(Found::Ambiguous(found.iter().map(|record| record.tenant().clone()).collect()));
        }
        Ok(match (found.pop(), respelt.first()) {
            (Some(record), _) => what_is_found(&record, self.base.now()),
            (None, Some(other)) => Found::OtherSpelling(device_name(other).to_owned()),
            (None, None) => Found::NeverSeen,
        })
    }

    /// The records whose device this may be, in whatever case: by device ID where it is known, by registration ID until then. Not
    /// those that were listed and nothing else.
    async fn records_of(&self, device_id: &str, tenants: Tenants<'_>) -> Result<Vec<Record>, ReadError> {
        let mut found = Vec::new();
        for id in self.ids_of(device_id) {
            let Some(Versioned { record, .. }) = self.records.load(&id).await? else { continue };
            let named = device_name(&record).eq_ignore_ascii_case(device_id);
            let seen = record.was_seen() || !record.timeline().is_empty();
            let visible =
                tenants.is_none_or(|tenants| record.known_tenant().is_some_and(|tenant| tenants.contains(tenant)));
            if named && seen && visible {
                found.push(record);
            }
        }
        Ok(found)
    }

    fn ids_of(&self, device_id: &str) -> BTreeSet<RegistrationId> {
        let mut ids: BTreeSet<RegistrationId> = RegistrationId::parse(device_id).ok().into_iter().collect();
        ids.extend(self.records.aliases_of(device_id));
        ids
    }

    /// Marks an assignment suspect, because a hub or a backend contradicted it, and puts the device into the line of its
    /// instance. An assignment that is not confirmed stays as it is.
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if there is no assignment of that device ID.
    pub(crate) async fn invalidate(
        &self,
        device_id: &str,
        tenants: Tenants<'_>,
        reason: &str,
    ) -> Result<AssignmentView, BackendError> {
        let id = match self.find(device_id, tenants).await.map_err(StoreError::from)? {
            Found::Assignment(view) => view.registration_id,
            other => return Err(BackendError::NotFound(other)),
        };
        let record = self.suspect(&id, None, reason).await?;
        let assignment = record.as_ref().and_then(|record| Some((record, record.assignment()?)));
        assignment
            .map(|(record, assignment)| AssignmentView::of(record, assignment))
            .ok_or(BackendError::NotFound(Found::NeverSeen))
    }

    /// Marks every confirmed assignment to `hub` suspect: the whole hub is gone. Returns how many there were. Safe to repeat. It goes on
    /// to the end if nobody waits for it any more; `held` is dropped then.
    ///
    /// # Errors
    /// If the store fails half way; what was marked stays marked.
    pub(crate) async fn invalidate_hub(
        &self,
        hub: HubName,
        tenants: Option<BTreeSet<TenantName>>,
        reason: String,
        held: impl Send + 'static,
    ) -> Result<u64, StoreError> {
        let backend = self.clone();
        let marking = async move {
            let _held = held;
            let (mut scan, mut marked) = (backend.records.scan(None), 0);
            while let Some(records) = scan.next().await? {
                let on_hub = records.into_iter().filter(|record| {
                    record.confirmed().is_some_and(|assignment| assignment.hub == hub)
                        && tenants.as_ref().is_none_or(|tenants| tenants.contains(record.tenant()))
                });
                let ids: Vec<RegistrationId> = on_hub.map(|record| record.registration_id().clone()).collect();
                let mut changes = futures_util::stream::iter(ids.into_iter().map(|id| {
                    let (backend, hub, reason) = (backend.clone(), &hub, reason.as_str());
                    async move { backend.suspect(&id, Some(hub), reason).await }
                }))
                .buffer_unordered(CONCURRENT_CHANGES);
                while let Some(changed) = changes.next().await {
                    marked += u64::from(changed?.is_some());
                }
            }
            Ok::<u64, StoreError>(marked)
        };
        self.base.on_own_threads(HUB_INVALIDATION, marking).await
    }

    /// Returns the record as it is afterwards; `None` if it is not on `hub` (any more).
    async fn suspect(
        &self,
        id: &RegistrationId,
        hub: Option<&HubName>,
        reason: &str,
    ) -> Result<Option<Record>, StoreError> {
        let contradict = Command::Contradict { hub: hub.cloned(), reason: reason.to_owned() };
        let changed = self.records.change(id, self.base.now(), &[], |draft| draft.apply(contradict.clone())).await;
        let record = match changed {
            Ok(((), record)) => record,
            Err(ChangeError::Unknown | ChangeError::Refused(_) | ChangeError::DeviceIdTaken(_)) => return Ok(None),
            Err(ChangeError::Store(error)) => return Err(error),
        };
        self.rejoin.enter_again(&record, Reason::Suspect).await;
        Ok(Some(record))
    }

    /// Where a reader of the change feed starts, given the last event it saw.
    #[must_use]
    pub(crate) fn feed_start(&self, last_seen: Option<&str>) -> Start {
        self.base.feed.start(last_seen)
    }

    /// Tells a reader of the feed when more can be read.
    #[must_use]
    pub(crate) fn feed_grows(&self) -> tokio::sync::watch::Receiver<u64> {
        self.base.feed.subscribe()
    }

    /// The events behind `after`, at most a page, or that some of them are not kept any more.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn feed_read(&self, after: u64) -> Result<Next, ReadError> {
        self.base.feed.read(&*self.base.store, after).await
    }

    /// The name of an event.
    #[must_use]
    pub(crate) fn feed_id(&self, number: u64) -> EventId {
        self.base.feed.id(number)
    }
}
