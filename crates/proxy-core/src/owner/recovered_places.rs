//! The places that an earlier process gave, from when they are read until they stand in their line again.
//!
//! They are read in the order of the IDs and put back in the order of the places, so all of them are in memory at once, beside the
//! line that grows out of them. Therefore each takes 32 bytes and the length of its ID here.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{OperationId, RegistrationId, TenantName};
use crate::place::{Class, Place};
use rate_control::time::Mono;

/// Waiting is kept in these.
const AGO_UNIT: Duration = Duration::from_millis(100);

/// How the earlier process left a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecoveredStage {
    /// It waits, and may go from that moment on, if there is one.
    Waiting { not_before: Option<Mono> },
    /// Its registration may have left.
    UnknownOutcome,
    /// DPS works on it.
    Operation(OperationId),
}

/// A device that an earlier process left in line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecoveredPlace {
    pub(crate) place: Place,
    pub(crate) tenant: TenantName,
    pub(crate) id: RegistrationId,
    /// How long it has waited; kept in tenths of a second.
    pub(crate) ago: Duration,
    pub(crate) what: RecoveredStage,
}

#[derive(Debug, Clone, Copy)]
struct Compact {
    sequence: u64,
    id_at: usize,
    ago: u32,
    /// Index of its tenant.
    tenant: u32,
    /// Index of how it was left; `u32::MAX` for the many that just wait.
    what: u32,
    class: Class,
    id_length: u8,
}

/// The devices that an earlier process left in the line of one instance.
#[derive(Debug, Default)]
pub(crate) struct RecoveredLine {
    places: Vec<Compact>,
    ids: String,
    /// One of each name, however many devices have it.
    tenants: Vec<TenantName>,
    tenant_index: BTreeMap<TenantName, u32>,
    uncommon: Vec<RecoveredStage>,
}

impl RecoveredLine {
    /// Adds one, in any order.
    pub(crate) fn add(&mut self, left: RecoveredPlace) {
        let RecoveredPlace { place, tenant, id, ago, what } = left;
        let tenant = self.tenant_index.get(&tenant).copied().unwrap_or_else(|| {
            self.tenants.push(tenant.clone());
            let number = index(self.tenants.len() - 1);
            self.tenant_index.insert(tenant, number);
            number
        });
        let what = match what {
            RecoveredStage::Waiting { not_before: None } => u32::MAX,
            what => {
                self.uncommon.push(what);
                index(self.uncommon.len() - 1)
            }
        };
        let id_at = self.ids.len();
        self.ids.push_str(id.as_str());
        self.places.push(Compact {
            sequence: place.sequence,
            id_at,
            ago: u32::try_from(ago.as_millis() / AGO_UNIT.as_millis()).unwrap_or(u32::MAX),
            tenant,
            what,
            class: place.class,
            id_length: u8::try_from(id.as_str().len()).expect("a registration ID is at most 128 long"),
        });
    }

    /// All of them in the order of their places.
    pub(crate) fn into_ordered(mut self) -> impl Iterator<Item = RecoveredPlace> {
        // Places are unique, and the stable sort would need half as much memory again.
        self.places.sort_unstable_by_key(|compact| (compact.class, compact.sequence));
        let Self { places, ids, tenants, uncommon, .. } = self;
        places.into_iter().map(move |compact| {
            let id = &ids[compact.id_at..compact.id_at + usize::from(compact.id_length)];
            let what = uncommon.get(compact.what as usize).cloned();
            RecoveredPlace {
                place: Place { class: compact.class, sequence: compact.sequence },
                tenant: tenants[compact.tenant as usize].clone(),
                id: RegistrationId::parse(id).expect("it was one"),
                ago: AGO_UNIT * compact.ago,
                what: what.unwrap_or(RecoveredStage::Waiting { not_before: None }),
            }
        })
    }
}

/// `line.length_max` is far below what this can count.
fn index(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_comes_out_in_the_order_of_the_places() {
        let left = |class, sequence, tenant: &str, what| RecoveredPlace {
            place: Place { class, sequence },
            tenant: TenantName::parse(tenant).unwrap(),
            id: RegistrationId::parse(&format!("sn-{sequence}")).unwrap(),
            ago: Duration::from_millis(1_200),
            what,
        };
        let waits = || RecoveredStage::Waiting { not_before: None };
        let later = RecoveredStage::Waiting { not_before: Some(Mono::from_nanos(7)) };
        let operation = RecoveredStage::Operation(OperationId::parse("5.1").unwrap());
        let ordered = [
            left(Class::Expedited, 9, "b", waits()),
            left(Class::First, 1, "a", later),
            left(Class::First, 2, "b", operation),
            left(Class::First, 30, "a", RecoveredStage::UnknownOutcome),
            left(Class::Background, 3, "c", waits()),
        ];
        let mut line = RecoveredLine::default();
        for number in [3, 0, 4, 2, 1] {
            line.add(ordered[number].clone());
        }
        assert_eq!(line.into_ordered().collect::<Vec<_>>(), ordered);
    }

    #[test]
    fn a_place_takes_32_bytes() {
        assert_eq!(size_of::<Compact>(), 32);
    }
}
