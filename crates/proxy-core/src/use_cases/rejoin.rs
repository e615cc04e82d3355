//! A known device comes into line without asking for it: its assignment was contradicted, or an operator wants another try.

use std::sync::Arc;

use crate::base::{Base, StoreError};
use crate::device::{AssignmentState, Command, Reason, Record};
use crate::ids::RegistrationId;
use crate::joining::{Entry, JoinError, Joining, Wish};
use crate::place::Class;
use crate::records::Records;
use crate::store::CommitError;

/// Puts known devices into line.
#[derive(Debug, Clone)]
pub(crate) struct Rejoin {
    base: Arc<Base>,
    records: Arc<Records>,
    joining: Arc<Joining>,
}

impl Rejoin {
    pub(crate) const fn new(base: Arc<Base>, records: Arc<Records>, joining: Arc<Joining>) -> Self {
        Self { base, records, joining }
    }

    /// Puts a known device into line without being asked by it. If that cannot be done now, it is done when the device asks.
    pub(super) async fn enter_again(&self, record: &Record, reason: Reason) {
        let idle = record.pending().is_none() && record.blocked().is_none() && record.retired().is_none();
        let suspect = record.assignment().is_none_or(|assignment| assignment.state != AssignmentState::Confirmed);
        let refused = self.base.refusal(record, self.base.now()).is_some();
        if !idle || !suspect || refused || self.base.is_stopping() {
            return;
        }
        if let Err(error) = self.try_enter(record.registration_id(), reason).await {
            tracing::info!(registration_id = %record.registration_id(), %error, "not in line yet; the device's next request will try again");
        }
    }

    /// One try to put a device into line; a lost race means that somebody else decided.
    async fn try_enter(&self, id: &RegistrationId, reason: Reason) -> Result<(), JoinError> {
        let Some(old) = self.records.load(id).await.map_err(StoreError::from)? else { return Ok(()) };
        if old.record.pending().is_some()
            || !self.base.look_at_settings().enrollments.contains_key(old.record.enrollment())
        {
            return Ok(());
        }
        let class = if old.record.assignment().is_none() { Class::First } else { Class::Background };
        let now = self.base.now();
        let entry = Entry { class, wish: Wish::Any, asked: None };
        let join = move |seat| Command::Join { seat, reason, payload: None, reprovision: false };
        let entered = self.joining.enter(self.records.draft(old, now), entry, join).await?;
        entered.or_else(|error| match error {
            CommitError::Conflict { .. } => Ok(()),
            error => Err(StoreError::from(error).into()),
        })
    }
}
