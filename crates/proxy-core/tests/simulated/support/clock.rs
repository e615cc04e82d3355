//! The clocks of a simulated machine, and a small seeded generator.

use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::supervise::{self, Task};
use rate_control::time::{BootId, BootTag, Clock, Mono, Now, Process, WallTime};
use tokio::time::Instant;

/// 2026-01-01T00:00:00Z.
pub(crate) const EPOCH_MILLIS: i64 = 1_767_225_600_000;

/// How long the machine has been up when the test begins.
const UPTIME: Duration = Duration::from_secs(5);

/// Boot time follows tokio's paused clock and starts anew at a reboot; the wall clock can be set.
#[derive(Debug)]
pub(crate) struct TestClock {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    booted: Instant,
    /// How long the machine had been up by then.
    uptime: Duration,
    /// Told apart from those of other machines.
    machine: u32,
    boots: u32,
    wall_offset_millis: i64,
    /// Tasks that die when they ask for the time, each once.
    dying: Vec<Task>,
}

impl TestClock {
    pub(crate) fn new() -> Self {
        Self::of_machine(1, UPTIME)
    }

    /// The clocks of one of several machines, which has been up for `uptime`.
    pub(crate) fn of_machine(machine: u32, uptime: Duration) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            state: Mutex::new(State {
                booted: now,
                uptime,
                machine,
                boots: 1,
                wall_offset_millis: 0,
                dying: Vec::new(),
            }),
        }
    }

    /// Simulated time since the test began; no clock of the machine can change it.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// True time, whatever our wall clock reads.
    pub(crate) fn true_unix_seconds(&self) -> i64 {
        EPOCH_MILLIS / 1000 + i64::try_from(self.elapsed().as_secs()).unwrap()
    }

    /// The machine boots; our process starts when it has been up for `uptime`.
    pub(crate) fn reboot(&self, uptime: Duration) {
        let mut state = self.state.lock();
        state.uptime = uptime;
        state.booted = Instant::now();
        state.boots += 1;
    }

    /// The task panics when it asks for the time; called again, once more after that.
    pub(crate) fn kill_task(&self, task: Task) {
        self.state.lock().dying.push(task);
    }

    pub(crate) fn set_wall_offset_millis(&self, offset: i64) {
        self.state.lock().wall_offset_millis = offset;
    }
}

fn boot_id(state: &State) -> BootId {
    let State { machine, boots, .. } = state;
    BootId(if *machine == 1 { format!("boot-{boots}") } else { format!("boot-{boots}-of-{machine}") })
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        let mut state = self.state.lock();
        if let Some(task) = supervise::current().filter(|_| !state.dying.is_empty())
            && let Some(index) = state.dying.iter().position(|dying| *dying == task)
        {
            state.dying.remove(index);
            drop(state);
            panic!("a fault for the test");
        }
        let mono = Mono::default().after(state.uptime + state.booted.elapsed());
        let process = Process { boot: BootTag::of(&boot_id(&state)), began: Mono::default().after(state.uptime) };
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap();
        Now { mono, wall: WallTime::from_unix_millis(EPOCH_MILLIS + elapsed + state.wall_offset_millis), process }
    }

    fn boot_id(&self) -> BootId {
        boot_id(&self.state.lock())
    }
}

/// SplitMix64: enough to choose by, and the same for ever.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}
