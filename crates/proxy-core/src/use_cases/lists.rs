//! Lists of all devices, in pages: what backends and operators read from beginning to end.
//!
//! Invariants:
//! - A page is read and decoded on the gateway's own threads, a few rows at a time, so that whoever serves requests does not stand still
//!   meanwhile.
//! - A page looks at no more than [`EXAMINED_MAX`] records: it may be short, or empty, and still not be the last one. Only a page
//!   without `next` is.
//! - Pages are in the order of the registration IDs. A device that comes or goes while the list is read may be in it or not; every other
//!   device is in it once.
//! - The feed position of a list of assignments is taken before its first page is read and goes with the cursor: whoever follows the feed
//!   from there misses nothing, and hears of some changes that are in the list already (their revisions tell).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::backend::AssignmentView;
use crate::base::Base;
use crate::base::task_names::LIST;
use crate::device::{AssignmentState, Record, Stage};
use crate::feed::{EventId, Start};
use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, RegistrationId, TenantName};
use crate::records::Records;
use crate::store::ReadError;
use rate_control::time::Now;

/// Records that one page looks at, at most.
pub const EXAMINED_MAX: usize = 20_000;

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// At most as many as were asked for.
    pub items: Vec<T>,
    /// Behind which device the next page begins; `None` if this is the last one.
    pub next: Option<RegistrationId>,
}

/// Where a list of assignments goes on: a position in the feed, taken before its first page, and the last device so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Follow the feed from here when the list is read.
    pub position: EventId,
    /// The last device of the page before.
    pub after: RegistrationId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~{}", self.position, self.after)
    }
}

/// Not a cursor of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a cursor that a page of this list gave as `next`")]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let (position, after) = text.split_once('~').ok_or(NoCursor)?;
        let position = EventId::parse(position).ok_or(NoCursor)?;
        Ok(Self { position, after: RegistrationId::parse(after).map_err(|_| NoCursor)? })
    }
}

/// Why a page of assignments was not read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The feed does not go back to where the list began, or is another store's.
    #[error("the changes since this list began are no longer kept; start it again")]
    Outdated,
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What a device is to us. Each is in exactly one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationState {
    /// On the allow-list, and never came.
    Listed,
    /// In line.
    Waiting,
    /// Its registration is with DPS.
    UnderWay,
    /// It has a confirmed hub.
    Assigned,
    /// Its assignment was contradicted, and it is not in line.
    Suspect,
    /// An operator moved it, and it is not in line.
    Moved,
    /// DPS refused it, and that is still believed.
    Refused,
    /// It came, and has neither place nor assignment.
    Idle,
    /// An operator keeps it out.
    Blocked,
    /// An operator deleted it.
    Retired,
}

impl RegistrationState {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Listed,
        Self::Waiting,
        Self::UnderWay,
        Self::Assigned,
        Self::Suspect,
        Self::Moved,
        Self::Refused,
        Self::Idle,
        Self::Blocked,
        Self::Retired,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Waiting => "waiting",
            Self::UnderWay => "under-way",
            Self::Assigned => "assigned",
            Self::Suspect => "suspect",
            Self::Moved => "moved",
            Self::Refused => "refused",
            Self::Idle => "idle",
            Self::Blocked => "blocked",
            Self::Retired => "retired",
        }
    }

    /// `refused`: whether DPS's refusal is still believed.
    fn of(record: &Record, refused: bool) -> Self {
        let stage = record.pending().map(|pending| &pending.stage);
        match (stage, record.assignment().map(|assignment| assignment.state)) {
            _ if record.retired().is_some() => Self::Retired,
            _ if record.blocked().is_some() => Self::Blocked,
            (Some(Stage::Waiting), _) => Self::Waiting,
            (Some(Stage::Sent { .. } | Stage::Assigning { .. }), _) => Self::UnderWay,
            (None, _) if refused => Self::Refused,
            (None, Some(AssignmentState::Confirmed)) => Self::Assigned,
            (None, Some(AssignmentState::Suspect)) => Self::Suspect,
            (None, Some(AssignmentState::Moved)) => Self::Moved,
            (None, Some(AssignmentState::Retired)) => Self::Retired,
            (None, None) if record.was_seen() => Self::Idle,
            (None, None) => Self::Listed,
        }
    }
}

/// One device in a list of operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationSummary {
    /// Who.
    pub registration_id: RegistrationId,
    /// Whose; unknown while it was only blocked.
    pub tenant: Option<TenantName>,
    /// By which rules; unknown while it was only blocked.
    pub enrollment: Option<EnrollmentName>,
    /// What it is to us.
    pub state: RegistrationState,
    /// The instance that it waits for, or that assigned it.
    pub instance: Option<InstanceName>,
    /// Its hub, in whatever state the assignment is.
    pub assigned_hub: Option<HubName>,
    /// As its hub knows it.
    pub device_id: Option<DeviceId>,
}

/// Which devices a list of operators holds; `None` stands for any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state.
    pub state: Option<RegistrationState>,
    /// Of this tenant.
    pub tenant: Option<TenantName>,
    /// Waiting for, or assigned by, this instance.
    pub instance: Option<InstanceName>,
}

impl Filter {
    fn admits(&self, summary: &RegistrationSummary) -> bool {
        self.state.is_none_or(|state| state == summary.state)
            && self.tenant.as_ref().is_none_or(|tenant| Some(tenant) == summary.tenant.as_ref())
            && self.instance.as_ref().is_none_or(|instance| Some(instance) == summary.instance.as_ref())
    }
}

/// Reads lists. See the module.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    base: Arc<Base>,
    records: Arc<Records>,
}

impl Lists {
    pub(crate) const fn new(base: Arc<Base>, records: Arc<Records>) -> Self {
        Self { base, records }
    }

    /// A page of the assignments, in whatever state, that `tenants` (all, if `None`) may see, and the feed position of the whole list.
    ///
    /// # Errors
    /// [`ListError`].
    pub(crate) async fn assignments(
        &self,
        cursor: Option<Cursor>,
        limit: usize,
        tenants: Option<BTreeSet<TenantName>>,
    ) -> Result<(Page<AssignmentView>, EventId), ListError> {
        let (position, after) = match cursor {
            Some(Cursor { position, after }) => (position, Some(after)),
            None => match self.base.feed.start(None) {
                Start::After(number) | Start::Reset(number) => (self.base.feed.id(number), None),
            },
        };
        if matches!(self.base.feed.start(Some(&position.to_string())), Start::Reset(_)) {
            return Err(ListError::Outdated);
        }
        let page = self.page(after, limit, move |_, record| {
            let seen = tenants.as_ref().is_none_or(|tenants| tenants.contains(record.tenant()));
            record.assignment().filter(|_| seen).map(|assignment| AssignmentView::of(&record, assignment))
        });
        Ok((page.await?, position))
    }

    /// A page of the devices that `filter` admits.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn registrations(
        &self,
        after: Option<RegistrationId>,
        limit: usize,
        filter: Filter,
    ) -> Result<Page<RegistrationSummary>, ReadError> {
        let now = self.base.now();
        self.page(after, limit, move |lists, record| {
            let summary = lists.summary(&record, now);
            filter.admits(&summary).then_some(summary)
        })
        .await
    }

    fn summary(&self, record: &Record, now: Now) -> RegistrationSummary {
        let claimed = !record.is_unclaimed();
        let assignment = record.assignment();
        let waits_for = record.pending().map(|pending| &pending.instance);
        RegistrationSummary {
            registration_id: record.registration_id().clone(),
            tenant: claimed.then(|| record.tenant().clone()),
            enrollment: claimed.then(|| record.enrollment().clone()),
            state: RegistrationState::of(record, self.base.refusal(record, now).is_some()),
            instance: waits_for.or(assignment.map(|assignment| &assignment.instance)).cloned(),
            assigned_hub: assignment.map(|assignment| assignment.hub.clone()),
            device_id: assignment.map(|assignment| assignment.device_id.clone()),
        }
    }

    /// Reads a page of what `keep` makes of the records behind `after`.
    async fn page<T: Send + 'static>(
        &self,
        after: Option<RegistrationId>,
        limit: usize,
        keep: impl Fn(&Self, Record) -> Option<T> + Send + 'static,
    ) -> Result<Page<T>, ReadError> {
        let lists = self.clone();
        let reading = async move {
            let (mut items, mut examined) = (Vec::new(), 0);
            let mut scan = lists.records.scan(after);
            while let Some(records) = scan.next().await? {
                for record in records {
                    examined += 1;
                    let id = record.registration_id().clone();
                    items.extend(keep(&lists, record));
                    if items.len() >= limit || examined >= EXAMINED_MAX {
                        return Ok(Page { items, next: Some(id) });
                    }
                }
            }
            Ok(Page { items, next: None })
        };
        self.base.on_own_threads(LIST, reading).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is_one() {
        let cursor = Cursor {
            position: EventId { epoch: "0123456789abcdef".to_owned(), number: 42 },
            after: RegistrationId::parse("sn-1.a:b_c").unwrap(),
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "~", "0123-4", "0123-4~", "0123-x~sn-1", "0123-4~SN 1", "sn-1"] {
            assert_eq!(bad.parse::<Cursor>(), Err(NoCursor), "{bad}");
        }
    }
}
