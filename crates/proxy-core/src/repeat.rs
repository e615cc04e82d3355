//! Holds back one device that repeats far faster than it was told to.
//!
//! Invariants:
//! - Fixed memory: [`CELLS`] cells, each of which belongs to the device that asked last of those that share it.
//! - It errs on the lenient side: a device is never held back for what another one did (but for one chance in 2^32 that two of one
//!   cell have one tag), while one that shares its cell may now and then repeat more.

use std::hash::{DefaultHasher, Hasher as _};
use std::time::Duration;

use parking_lot::Mutex;

use crate::ids::RegistrationId;
use rate_control::time::Mono;

const CELLS: usize = 1 << 16;

#[derive(Debug, Default)]
struct Cell {
    /// Theoretical arrival time of the next request, in nanoseconds of the boot-time clock.
    arrival: u64,
    /// Tells the devices of one cell apart.
    tag: u32,
}

/// One token bucket per device, approximately.
#[derive(Debug)]
pub struct RepeatGuard {
    cells: Box<[Mutex<Cell>]>,
    seed: u64,
    interval: u64,
    tolerance: u64,
}

impl RepeatGuard {
    /// Lets `burst` requests through at once and one per `interval` from there. `seed` decides which devices share a cell.
    #[must_use]
    pub fn new(burst: u32, interval: Duration, seed: u64) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Self {
            cells: (0..CELLS).map(|_| Mutex::default()).collect(),
            seed,
            interval,
            tolerance: interval.saturating_mul(u64::from(burst.max(1) - 1)),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// How long the device has to wait, if it is too fast. The request is then not counted.
    pub fn check(&self, id: &RegistrationId, now: Mono) -> Result<(), Duration> {
        let (index, tag) = self.cell_of(id);
        let mut cell = self.cells[index].lock();
        let now = now.as_nanos();
        if cell.tag != tag {
            *cell = Cell { arrival: 0, tag };
        }
        if cell.arrival > now.saturating_add(self.tolerance) {
            return Err(Duration::from_nanos(cell.arrival - now - self.tolerance));
        }
        cell.arrival = cell.arrival.max(now).saturating_add(self.interval);
        Ok(())
    }

    fn cell_of(&self, id: &RegistrationId) -> (usize, u32) {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(id.as_str().as_bytes());
        let hash = hasher.finish();
        ((hash % CELLS as u64) as usize, (hash >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> RegistrationId {
        RegistrationId::parse(text).unwrap()
    }

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let guard = RepeatGuard::new(3, Duration::from_secs(2), 1);
        let at = |millis: u64| Mono::from_nanos(1_000_000_000 + millis * 1_000_000);
        for _ in 0..3 {
            assert_eq!(guard.check(&id("device-1"), at(0)), Ok(()));
        }
        assert_eq!(guard.check(&id("device-1"), at(500)), Err(Duration::from_millis(1500)));
        assert_eq!(guard.check(&id("device-1"), at(2000)), Ok(()));
        assert!(guard.check(&id("device-1"), at(2000)).is_err());
        assert_eq!(guard.check(&id("device-2"), at(500)), Ok(()));
    }

    #[test]
    fn a_hammering_device_holds_back_none_of_those_that_share_its_cell() {
        let guard = RepeatGuard::new(3, Duration::from_secs(2), 1);
        let now = Mono::from_nanos(1_000_000_000);
        let hammer = id("hammer");
        let others = (0..1_000_000).map(|number| id(&format!("device-{number:06}")));
        let sharing: Vec<_> = others.filter(|other| guard.cell_of(other).0 == guard.cell_of(&hammer).0).collect();
        assert!(sharing.len() > 3, "{}", sharing.len());
        for other in &sharing {
            while guard.check(&hammer, now).is_ok() {}
            assert_eq!(guard.check(other, now), Ok(()), "{other}");
        }
    }

    #[test]
    fn which_devices_share_a_cell_is_another_matter_in_each_process() {
        let cells = |seed| {
            let guard = RepeatGuard::new(3, Duration::from_secs(2), seed);
            (0..8).map(|number| guard.cell_of(&id(&format!("device-{number}"))).0).collect::<Vec<_>>()
        };
        assert_ne!(cells(1), cells(2));
    }
}
