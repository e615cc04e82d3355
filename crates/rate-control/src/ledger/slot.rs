//! A slot as it is kept on disk, and what an earlier process or owner left of it.

use serde::{Deserialize, Serialize};

use crate::epoch::Epoch;
use crate::time::{BootId, Mono};

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// DPS answered.
    Answered,
    /// The answer was given up; DPS may still count the send until the network's longest delay has passed.
    Abandoned,
    /// It never left, and cannot any more.
    NeverLeft,
}

/// One slot as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotRecord {
    /// The boot whose clock `sent` and `answered` are read from.
    pub boot: BootId,
    /// When the slot was taken.
    pub sent: Mono,
    /// When the answer came; `None` while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Mono>,
    /// When the answer was given up; the slot is then held for the network's longest delay as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<Mono>,
    /// Which send it is. Earlier releases did not name them.
    #[serde(default)]
    pub send: SendId,
}

/// Names one send for good: the epoch that it was armed under, and its number there. A slot is used again and again; by this an owner that was
/// deposed knows whether it still holds its own send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct SendId {
    /// Under which it was armed.
    pub epoch: Epoch,
    /// Counted by the owner.
    pub number: u64,
}

/// What an earlier process left of a send, by this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftSend {
    /// When its slot was taken, or a little later; `None` if nothing is known of it.
    pub sent: Option<Mono>,
    /// How it ended and when, or a little later; `None` for an orphan.
    pub end: Option<(Settlement, Mono)>,
}

impl SlotRecord {
    /// What the record of an earlier process becomes when another one starts at `now` while the earlier one is gone; `None` if it stays. What
    /// had no answer was given up by now at the latest, and moments of another boot's clock are not comparable. It has to be written down:
    /// else every start begins the hold anew, and starts in a row take the quota away for good.
    #[must_use]
    pub fn taken_over(&self, boot: &BootId, now: Mono) -> Option<Self> {
        let same_boot = self.boot == *boot;
        if same_boot && (self.answered.is_some() || self.abandoned.is_some()) {
            return None;
        }
        Some(Self {
            boot: boot.clone(),
            sent: if same_boot { self.sent } else { now },
            answered: self.answered.map(|_| now),
            abandoned: self.answered.is_none().then_some(now),
            send: self.send,
        })
    }

    /// What a process that is gone left of it: within one boot, moments are exact. Across boots, an answered send counts as answered now. What
    /// had no answer may still be on its way: it was given up now.
    #[must_use]
    pub fn left_by_the_dead(&self, boot: &BootId, now: Mono) -> LeftSend {
        let same_boot = self.boot == *boot;
        let ours = |moment: Mono| if same_boot && moment <= now { moment } else { now };
        let end = self.settled().map_or((Settlement::Abandoned, now), |(settlement, ended)| (settlement, ours(ended)));
        LeftSend { sent: same_boot.then(|| self.sent.min(now)), end: Some(end) }
    }

    /// How it ended and when, by its own boot's clock.
    #[must_use]
    pub fn settled(&self) -> Option<(Settlement, Mono)> {
        let answered = self.answered.map(|answered| (Settlement::Answered, answered));
        answered.or_else(|| self.abandoned.map(|abandoned| (Settlement::Abandoned, abandoned)))
    }
}
