//! Where a device stands in the line of an instance: the words that records, lines and operators share.

use serde::{Deserialize, Serialize};

/// A place's sequence number in the line of one instance, given by the store in the order of joining and never reused. (Earlier releases gave
/// numbers to each class of a line on its own.)
pub type Sequence = u64;

/// Which lane of its tenant a place is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Moved ahead by an operator.
    Expedited,
    /// A device without an assignment.
    First,
    /// A device that has an assignment and asks for another, or whose assignment was contradicted.
    Reprovision,
    /// Nobody at the door: a backend or an operator wants the assignment confirmed.
    Background,
}

impl Class {
    /// All of them, in order of departure.
    pub const ALL: [Self; 4] = [Self::Expedited, Self::First, Self::Reprovision, Self::Background];

    /// Those that are not urgent, in order of departure.
    pub const ORDINARY: [Self; 3] = [Self::First, Self::Reprovision, Self::Background];
}

/// A place in the line of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The class.
    pub class: Class,
    /// The number, unique within the class.
    pub sequence: Sequence,
}

impl Place {
    /// Behind all that have a number: where a device of `class` stands that joins, until the store has given it one.
    #[must_use]
    pub const fn last(class: Class) -> Self {
        Self { class, sequence: Sequence::MAX }
    }

    /// Whether the store has given it its number.
    #[must_use]
    pub const fn is_numbered(self) -> bool {
        self.sequence != Sequence::MAX
    }
}
