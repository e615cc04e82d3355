//! Leases: one owner at a time for something that several processes on one store could own, and the fence that keeps an earlier owner's
//! commits out.
//!
//! What a lease is for, and what of it no safety depends on, is in [`rate_control::ownership`]; this is what the store keeps of it.
//!
//! Invariants every backend keeps:
//! - **An epoch is given once.** Each taking gives the epoch after the last one, also after a release, a close and a crash.
//! - **One of many wins.** A lease is taken from exactly what the taker has seen, or not at all.
//! - **A taking comes after every commit that was fenced with the epoch before, and after it none is applied.** So what its owner reads
//!   then is all that its predecessors have written.
//! - **Time means nothing here.** No lease runs out by itself, and no clock of the store is read.
//!
//! What a change makes of a lease is decided here, in one function, for backends that decide in one place; PostgreSQL's functions say the
//! same.

use std::collections::BTreeMap;
use std::fmt;

use rate_control::entropy::Entropy;
use rate_control::ownership::{Beat, Epoch};
use rate_control::time::{BootId, Mono};
use serde::{Deserialize, Serialize};

use crate::ids::{LeaseName, ReplicaName};

/// The longest ID of a boot, in bytes.
const BOOT_ID_MAX: usize = 128;

/// The last moment of a clock that a lease can hold: 292 years after a boot.
const MONO_MAX: Mono = Mono::from_nanos(i64::MAX.unsigned_abs());

/// Names a process that may own a lease: 16 bytes that it has drawn at random when it began, so that no other is taken for it, not even
/// the next one of the same replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub [u8; 16]);

impl OwnerId {
    /// A new one.
    #[must_use]
    pub fn random(entropy: &mut Entropy) -> Self {
        Self((u128::from(entropy.next_u64()) << 64 | u128::from(entropy.next_u64())).to_be_bytes())
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for OwnerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OwnerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| u128::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes()));
        rate_control::text::read(deserializer, "32 hexadecimal digits", parse)
    }
}

/// Who owns a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseOwner {
    /// The process.
    pub id: OwnerId,
    /// What people call it.
    pub replica: ReplicaName,
}

/// What an owner's boot-time clock read. Whoever counts on what that owner has sent needs it:
/// [`Sightings`](rate_control::ownership::Sightings).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// Of which boot of its machine; at most 128 printable ASCII characters.
    pub boot: BootId,
    /// What it read.
    pub mono: Mono,
}

impl ClockReading {
    fn validate(&self) -> Result<(), LeaseError> {
        let boot = &self.boot.0;
        if !(1..=BOOT_ID_MAX).contains(&boot.len()) || !boot.bytes().all(|byte| byte.is_ascii_graphic()) {
            let why = format!("the ID of a boot has 1 to {BOOT_ID_MAX} printable ASCII characters");
            return Err(LeaseError::Refused(why));
        }
        if self.mono > MONO_MAX {
            return Err(LeaseError::Refused("a clock reads more than a lease can hold".to_owned()));
        }
        Ok(())
    }

    /// The later one, of one owner: a renewal that arrives late takes nothing back.
    fn or_later(self, other: Self) -> Self {
        if self.boot == other.boot && self.mono > other.mono { self } else { other }
    }
}

/// A lease as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// How often it was taken: 1 the first time.
    pub epoch: Epoch,
    /// Grows with each renewal and with the release; 0 when it was taken.
    pub beat: Beat,
    /// Who has taken it.
    pub owner: LeaseOwner,
    /// The owner's clock at the last change.
    pub reading: ClockReading,
    /// Whether the owner has given it back: anybody may take it at once, and a commit that is fenced with its epoch is refused.
    pub released: bool,
}

impl Lease {
    /// Whether `owner` owns it. A process that finds itself here, in an epoch that it did not know of, owns it and goes on as after a taking:
    /// its own had no answer.
    #[must_use]
    pub fn is_owned_by(&self, owner: OwnerId) -> bool {
        self.owner.id == owner && !self.released
    }

    /// Whether commits that are fenced with `epoch` are applied.
    #[must_use]
    pub fn holds(&self, epoch: Epoch) -> bool {
        self.epoch == epoch && !self.released
    }
}

/// A lease in one epoch. A [`Commit`](super::Commit) that carries it is applied only while that epoch is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Whose epoch.
    pub lease: LeaseName,
    /// Under which the commit was decided.
    pub epoch: Epoch,
}

/// Why a lease was not changed, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// It is not as was expected, and was not changed: somebody else has it, has renewed it, or it was given back.
    #[error("{}", lost(now.as_ref()))]
    Lost {
        /// As it is now, or was a moment ago; `None` if it was never taken.
        now: Option<Lease>,
    },
    /// The store does not answer, or takes no writes. The change may have happened all the same, or may happen a little later: repeat it,
    /// or read.
    #[error("the store cannot change a lease now: {0}")]
    Unavailable(String),
    /// This can never be done: a bound is exceeded, or what it builds on is damaged.
    #[error("the change of a lease is refused: {0}")]
    Refused(String),
}

fn lost(now: Option<&Lease>) -> String {
    match now {
        None => "nobody has ever taken this lease".to_owned(),
        Some(Lease { epoch: Epoch(epoch), owner, released: true, .. }) => {
            format!("the lease is in epoch {epoch}, of {}, who has given it back", owner.replica)
        }
        Some(Lease { epoch: Epoch(epoch), owner, .. }) => {
            format!("the lease is in epoch {epoch}, of {}", owner.replica)
        }
    }
}

/// What becomes of a lease. Each may be repeated: what has happened already is granted again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseChange {
    /// It gets a new owner and the epoch after the one that was seen, if it still is what was seen. Of many who have seen the same, one
    /// is granted it.
    ///
    /// It is granted when every commit that was fenced with the epoch before has ended: what is read from then on is all that was applied
    /// under it.
    ///
    /// Nothing is asked about time: whoever takes what was not given back has waited for as long as it should
    /// ([`LeaseWatch`](rate_control::ownership::LeaseWatch)), unless the store [is exclusive](super::Store::is_exclusive).
    Take {
        /// The epoch and the beat that were seen; `None`: that nobody has ever taken it.
        seen: Option<(Epoch, Beat)>,
        /// The new owner.
        owner: LeaseOwner,
        /// Its clock.
        reading: ClockReading,
    },
    /// Its beat grows, if the owner holds it in this epoch.
    Renew {
        /// The epoch.
        epoch: Epoch,
        /// The owner.
        owner: OwnerId,
        /// Its clock.
        reading: ClockReading,
    },
    /// The owner gives it back, if it holds it in this epoch: anybody may take it at once, and commits that are fenced with this epoch
    /// are refused from then on. The epoch, the owner and the reading stay. To be done when nothing is under way any more, and before the
    /// store is closed.
    Release {
        /// The epoch.
        epoch: Epoch,
        /// The owner.
        owner: OwnerId,
        /// Its clock: the last that others see of it.
        reading: ClockReading,
    },
}

impl LeaseChange {
    /// Refuses what no backend can hold, before it costs anything. For backends.
    ///
    /// # Errors
    /// [`LeaseError::Refused`], which names the bound.
    pub fn validate(&self) -> Result<(), LeaseError> {
        match self {
            Self::Take { reading, .. } | Self::Renew { reading, .. } | Self::Release { reading, .. } => {
                reading.validate()
            }
        }
    }

    /// What `current` is afterwards; `None` if it is not what was expected. What has happened already is granted again.
    pub(super) fn of(&self, current: Option<&Lease>) -> Option<Lease> {
        match self {
            Self::Take { seen, owner, reading } => {
                let given = Epoch(seen.map_or(0, |(Epoch(epoch), _)| epoch).saturating_add(1));
                match current {
                    Some(lease) if lease.epoch == given && lease.is_owned_by(owner.id) => Some(lease.clone()),
                    current if current.map(|lease| (lease.epoch, lease.beat)) == *seen => Some(Lease {
                        epoch: given,
                        beat: Beat(0),
                        owner: owner.clone(),
                        reading: reading.clone(),
                        released: false,
                    }),
                    _ => None,
                }
            }
            Self::Renew { epoch, owner, reading } => {
                let lease = current.filter(|lease| lease.epoch == *epoch && lease.is_owned_by(*owner))?;
                Some(lease.beaten(reading, false))
            }
            Self::Release { epoch, owner, reading } => {
                let lease = current.filter(|lease| lease.epoch == *epoch && lease.owner.id == *owner)?;
                Some(if lease.released { lease.clone() } else { lease.beaten(reading, true) })
            }
        }
    }
}

impl Lease {
    fn beaten(&self, reading: &ClockReading, released: bool) -> Self {
        let beat = Beat(self.beat.0.saturating_add(1));
        Self { beat, reading: self.reading.clone().or_later(reading.clone()), released, ..self.clone() }
    }
}

/// The name in [`Table::Meta`](super::Table::Meta) of a lease's row, for backends that keep it there.
pub(super) fn row_name(name: &LeaseName) -> Vec<u8> {
    format!("store.lease/{name}").into_bytes()
}

/// A lease as it is stored in such a row.
pub(super) fn encode(lease: &Lease) -> Vec<u8> {
    serde_json::to_vec(lease).expect("names, numbers and texts are always JSON")
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(value: &[u8]) -> Result<Lease, String> {
    serde_json::from_slice(value).map_err(|error| format!("a lease cannot be read: {error}"))
}

/// The leases that a writer has read or changed, as they will be once its writes are durable.
#[derive(Debug, Default)]
pub(super) struct Leases {
    known: BTreeMap<LeaseName, Lease>,
}

impl Leases {
    pub(super) fn get(&self, name: &LeaseName) -> Option<&Lease> {
        self.known.get(name)
    }

    pub(super) fn set(&mut self, name: &LeaseName, lease: Lease) {
        self.known.insert(name.clone(), lease);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: u8) -> LeaseOwner {
        LeaseOwner { id: OwnerId([number; 16]), replica: ReplicaName::parse(&format!("replica-{number}")).unwrap() }
    }

    fn reading(mono: u64) -> ClockReading {
        ClockReading { boot: BootId("a".to_owned()), mono: Mono::from_nanos(mono) }
    }

    #[test]
    fn a_lease_comes_back_as_it_was_written() {
        let take = LeaseChange::Take { seen: None, owner: owner(7), reading: reading(5) };
        let lease = take.of(None).unwrap();
        assert_eq!(decode(&encode(&lease)), Ok(lease.clone()));
        assert!(decode(b"{}").is_err());
        let written = String::from_utf8(encode(&lease)).unwrap();
        assert!(written.contains(r#""id":"07070707070707070707070707070707""#), "{written}");
    }

    #[test]
    fn a_renewal_that_arrives_late_takes_no_time_back() {
        let lease = LeaseChange::Take { seen: None, owner: owner(7), reading: reading(5) }.of(None).unwrap();
        let renew = |lease: &Lease, mono| {
            let change = LeaseChange::Renew { epoch: Epoch(1), owner: owner(7).id, reading: reading(mono) };
            change.of(Some(lease)).unwrap()
        };
        let late = renew(&renew(&lease, 9), 8);
        assert_eq!((late.beat, late.reading), (Beat(2), reading(9)));
    }

    #[test]
    fn what_no_backend_can_hold_is_refused() {
        assert!(reading(7).validate().is_ok());
        let long = "b".repeat(BOOT_ID_MAX + 1);
        for boot in ["", "a b", "ä", "a\0", long.as_str()] {
            let reading = ClockReading { boot: BootId(boot.to_owned()), mono: Mono::default() };
            assert!(matches!(reading.validate(), Err(LeaseError::Refused(_))), "{boot:?}");
        }
        assert!(reading(u64::MAX).validate().is_err());
    }
}
