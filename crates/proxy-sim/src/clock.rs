//! The clocks of the simulated machines.
//!
//! Invariant: true time is tokio's paused clock since the run began. The gateway's boot-time clock follows it and starts anew at a
//! reboot; its wall clock can be wrong. Devices and DPS live by true time.

use std::time::Duration;

use parking_lot::Mutex;
use rate_control::time::{BootId, BootTag, Clock, Mono, Now, Process, WallTime};
use tokio::time::Instant;

/// 2026-01-01T00:00:00Z.
const EPOCH_MILLIS: i64 = 1_767_225_600_000;

#[derive(Debug)]
pub(crate) struct SimClock {
    /// Which machine's.
    machine: usize,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    booted: Instant,
    /// How long the machine had been up by then.
    uptime: Duration,
    boots: u32,
    wall_offset_millis: i64,
}

impl SimClock {
    /// The clocks of the first, second … machine. Each has been up for another time by now.
    pub(crate) fn new(machine: usize) -> Self {
        let now = Instant::now();
        let uptime = Duration::from_secs(5 + 1_000 * machine as u64);
        let state = State { booted: now, uptime, boots: 1, wall_offset_millis: 0 };
        Self { machine, began: now, state: Mutex::new(state) }
    }

    /// True time since the run began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// True time in Unix milliseconds.
    pub(crate) fn unix_millis(&self) -> i64 {
        EPOCH_MILLIS + i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX - EPOCH_MILLIS)
    }

    /// The moment `elapsed` after the run began.
    pub(crate) fn at(&self, elapsed: Duration) -> Instant {
        self.began + elapsed
    }

    /// The machine boots; our process starts when it has been up for `uptime`.
    pub(crate) fn reboot(&self, uptime: Duration) {
        let mut state = self.state.lock();
        state.uptime = uptime;
        state.booted = Instant::now();
        state.boots += 1;
    }

    /// Sets the gateway's wall clock wrong by `offset`.
    pub(crate) fn set_wall_offset_millis(&self, offset: i64) {
        self.state.lock().wall_offset_millis = offset;
    }
}

fn boot_id(machine: usize, boots: u32) -> BootId {
    BootId(if machine == 0 { format!("boot-{boots}") } else { format!("machine-{machine}-boot-{boots}") })
}

impl Clock for SimClock {
    fn now(&self) -> Now {
        let state = self.state.lock();
        let mono = Mono::default().after(state.uptime + state.booted.elapsed());
        let process = Process {
            boot: BootTag::of(&boot_id(self.machine, state.boots)),
            began: Mono::default().after(state.uptime),
        };
        Now { mono, wall: WallTime::from_unix_millis(self.unix_millis() + state.wall_offset_millis), process }
    }

    fn boot_id(&self) -> BootId {
        boot_id(self.machine, self.state.lock().boots)
    }
}
