//! A record on its way from one stored state to the next.

use super::command::{Command, Rejected};
use super::effects::Effects;
use super::record::{Record, Versioned};
use crate::place::Sequence;
use crate::store::{Change, Expect, Key, Version, Write};
use rate_control::time::Now;

/// A record that is being changed, the version that the change began from, and what it asks of others.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    record: Record,
    version: Option<Version>,
    effects: Effects,
    now: Now,
    timeline_max: usize,
}

impl Draft {
    /// Begins to change a stored record, at `now`. Its timeline keeps `timeline_max` events.
    #[must_use]
    pub fn of(Versioned { record, version }: Versioned, now: Now, timeline_max: usize) -> Self {
        let outline = record.outline();
        let effects = Effects { before: Some(outline.clone()), after: Some(outline) };
        Self { record, version: Some(version), effects, now, timeline_max }
    }

    /// Begins a record that was never stored.
    #[must_use]
    pub fn new(record: Record, now: Now, timeline_max: usize) -> Self {
        let effects = Effects::of_new(&record);
        Self { record, version: None, effects, now, timeline_max }
    }

    /// The record as it is so far.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// What all of the changes ask of others, once they are on disk.
    #[must_use]
    pub const fn effects(&self) -> &Effects {
        &self.effects
    }

    /// One more change.
    ///
    /// # Errors
    /// [`Rejected`] if it does not fit; the draft is as before then.
    pub fn apply(&mut self, command: Command) -> Result<(), Rejected> {
        let effects = self.record.apply(command, self.now, self.timeline_max)?;
        self.effects.after = effects.after;
        Ok(())
    }

    /// The write that replaces the stored record with this one, if nobody was faster.
    #[must_use]
    pub fn write(&self) -> Write {
        let change = Change::Put { value: self.record.encode(), placing: self.record.placing() };
        Write { key: self.key(), expect: self.expect(), change }
    }

    /// The record was written: if it joined a line, its place has this number from now on.
    pub fn take_number(&mut self, given: Option<Sequence>) {
        let joined = self.record.pending.as_mut().filter(|pending| !pending.place.is_numbered());
        if let (Some(pending), Some(number)) = (joined, given) {
            pending.place.sequence = number;
            self.effects.after = Some(self.record.outline());
        }
    }

    fn key(&self) -> Key {
        Record::key(self.record.registration_id())
    }

    fn expect(&self) -> Expect {
        self.version.map_or(Expect::Absent, Expect::Version)
    }

    /// The write that deletes the stored record, if nobody was faster.
    #[must_use]
    pub fn deletion(&self) -> Write {
        Write::delete(self.key(), self.expect())
    }

    /// The record as it was made.
    #[must_use]
    pub fn into_record(self) -> Record {
        self.record
    }
}
