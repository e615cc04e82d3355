//! Which linked hub a device gets under hashed allocation.

use std::sync::Arc;

use crate::config::HubConfig;
use crate::seeded::mix;

/// The linked hubs, for hashed allocation.
pub(crate) struct Hubs {
    hubs: Vec<(Arc<str>, u64, f64)>,
}

impl Hubs {
    pub(crate) fn new(hubs: &[HubConfig]) -> Self {
        let hash_name = |name: &str| hash(name.to_ascii_lowercase().as_bytes());
        Self {
            hubs: hubs.iter().map(|h| (Arc::from(h.name.as_str()), hash_name(&h.name), f64::from(h.weight))).collect(),
        }
    }

    /// Weighted rendezvous hashing: even by weight, the same for ever, and a change of hubs moves only the devices it must.
    /// The service documents "hashed" as even by weight and says no more.
    pub(crate) fn hashed(&self, registration_id: &str) -> Option<Arc<str>> {
        let device = hash(registration_id.as_bytes());
        let score = |(_, name, weight): &&(Arc<str>, u64, f64)| {
            let unit = ((mix(device ^ name) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            -unit.ln() / weight
        };
        self.hubs.iter().min_by(|a, b| score(a).total_cmp(&score(b))).map(|(name, ..)| Arc::clone(name))
    }
}

/// FNV-1a, scattered; it must be the same in every build and run.
fn hash(bytes: &[u8]) -> u64 {
    mix(bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn spread(hubs: &[HubConfig], devices: u32) -> BTreeMap<String, u32> {
        let hubs = Hubs::new(hubs);
        let mut counts = BTreeMap::new();
        for i in 0..devices {
            *counts.entry(hubs.hashed(&format!("device-{i:04}")).unwrap().to_string()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn hashing_is_even_by_weight() {
        let equal = spread(&["a", "b", "c", "d"].map(HubConfig::new), 40_000);
        assert!(equal.values().all(|&n| (9_600..10_400).contains(&n)), "{equal:?}");
        let weighted = [HubConfig { name: "a".into(), weight: 3 }, HubConfig::new("b")];
        let counts = spread(&weighted, 40_000);
        assert!((29_500..30_500).contains(&counts["a"]), "{counts:?}");
    }

    #[test]
    fn hashing_never_changes_between_builds() {
        let hubs = Hubs::new(&["hub-a.azure-devices.net", "hub-b.azure-devices.net"].map(HubConfig::new));
        let got: String =
            (0..16).map(|i| hubs.hashed(&format!("device-{i:04}")).unwrap().as_bytes()[4] as char).collect();
        assert_eq!(got, GOLDEN);
    }

    const GOLDEN: &str = "ababaabbabaaaaba";

    #[test]
    fn a_new_hub_takes_devices_and_moves_no_others() {
        let (before, after) =
            (Hubs::new(&["a", "b"].map(HubConfig::new)), Hubs::new(&["a", "b", "c"].map(HubConfig::new)));
        let mut moved = 0;
        for i in 0..3000 {
            let id = format!("d{i}");
            let (old, new) = (before.hashed(&id).unwrap(), after.hashed(&id).unwrap());
            if old != new {
                assert_eq!(&*new, "c");
                moved += 1;
            }
        }
        assert!((850..1150).contains(&moved), "{moved}");
        assert_eq!(Hubs::new(&[]).hashed("d"), None);
    }
}
