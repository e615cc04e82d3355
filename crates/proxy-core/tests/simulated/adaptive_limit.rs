//! The adaptive limit of a line before a DPS that takes less than it should, whatever way it counts. Everything runs on handed time, with the
//! line as it is in service.
//!
//! What is promised of a line that has run for a minute, while DPS takes at least a tenth of the quota: from the fourth minute on, averaged over
//! ten, it uses 0.8 to 1.1 of what DPS takes; in an hour that begins then, under 1 % of its calls are refused; it is back at the quota within
//! 30 minutes after the cause is gone; and one refusal by chance in 1,000 calls leaves 0.8 of the quota.
//!
//! Each test prints what it measured, for docs/decisions/0009: `cargo test -p proxy-core --test simulated adaptive_limit -- --nocapture`

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use proxy_core::ids::{RegistrationId, TenantName};
use proxy_core::line::lane::JobKind;
use proxy_core::line::scheduler::Fairness;
use proxy_core::line::{Admission, Line, Next, RecoveryState};
use proxy_core::place::{Class, Place};
use rate_control::ledger::SlotId;
use rate_control::time::Mono;

use crate::support::{name, seconds, settings};

const MINUTE: u64 = 60_000;

/// How DPS counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Sliding,
    Fixed,
    /// Holds so many per cent of a minute's calls.
    Bucket(u64),
}

const SHAPES: [Shape; 4] = [Shape::Sliding, Shape::Fixed, Shape::Bucket(10), Shape::Bucket(100)];

/// What DPS takes. Times are milliseconds.
#[derive(Debug)]
struct Dps {
    shape: Shape,
    per_minute: u64,
    /// Refused calls count, too.
    refused_count: bool,
    /// The wait that it names in seconds, if not the one until a call fits.
    names: Option<u64>,
    counted: VecDeque<u64>,
    /// In units of 1/60,000 of a call.
    level: u64,
    filled_at: u64,
}

impl Dps {
    fn new(shape: Shape, per_minute: u64) -> Self {
        let (counted, level, filled_at) = (VecDeque::new(), u64::MAX, 0);
        let mut dps = Self { shape, per_minute, refused_count: false, names: None, counted, level, filled_at };
        dps.change(per_minute);
        dps
    }

    fn change(&mut self, per_minute: u64) {
        self.per_minute = per_minute;
        if let Shape::Bucket(percent) = self.shape {
            self.level = self.level.min(per_minute * percent / 100 * MINUTE);
        }
    }

    /// `Err` is the wait that it names, in whole seconds.
    fn call(&mut self, now: u64) -> Result<(), u64> {
        let wait = self.wait(now);
        if wait == 0 || self.refused_count {
            self.counted.push_back(now);
            self.level = self.level.saturating_sub(MINUTE);
        }
        if wait == 0 { Ok(()) } else { Err(self.names.unwrap_or_else(|| self.wait(now).div_ceil(1000).max(1))) }
    }

    fn wait(&mut self, now: u64) -> u64 {
        let within = |at: u64| match self.shape {
            Shape::Fixed => at / MINUTE == now / MINUTE,
            Shape::Sliding | Shape::Bucket(_) => at + MINUTE > now,
        };
        while self.counted.front().is_some_and(|at| !within(*at)) {
            self.counted.pop_front();
        }
        match self.shape {
            Shape::Fixed if (self.counted.len() as u64) < self.per_minute => 0,
            Shape::Fixed => (now / MINUTE + 1) * MINUTE - now,
            Shape::Sliding => match (self.counted.len() as u64).checked_sub(self.per_minute) {
                None => 0,
                Some(over) => self.counted[usize::try_from(over).unwrap()] + MINUTE - now,
            },
            Shape::Bucket(_) => {
                self.level += (now - self.filled_at) * self.per_minute;
                self.filled_at = now;
                self.change(self.per_minute);
                MINUTE.saturating_sub(self.level).div_ceil(self.per_minute)
            }
        }
    }
}

/// A call that is out.
#[derive(Debug)]
struct Out {
    place: Place,
    slot: Option<SlotId>,
    sent: u64,
    refused: Option<u64>,
}

/// A line in which somebody always waits, and its DPS.
struct Run {
    dps: Dps,
    line: Line,
    tenant: TenantName,
    now: u64,
    /// By when they arrive, and by when the answer is heard.
    leaving: BTreeMap<(u64, u64), Out>,
    answers: BTreeMap<(u64, u64), Out>,
    names: u64,
    dice: u64,
    /// Calls of others per minute, when the next one arrives, and when those arrived that were taken.
    others: u64,
    other_at: u64,
    others_taken: Vec<u64>,
    /// So many calls in a thousand are refused, whatever the quota.
    by_chance: u64,
    /// When calls arrived that were taken, and that were refused.
    taken: Vec<u64>,
    refused: Vec<u64>,
}

fn at(millis: u64) -> Mono {
    Mono::from_nanos(millis * 1_000_000)
}

impl Run {
    fn new(quota: u32, dps: Dps, adapts: bool) -> Self {
        let mut rules = settings(&[("a", quota)]);
        let instance = rules.instances.get_mut(&name("a")).unwrap();
        (instance.adaptive_limit, instance.adaptive_limit_min_per_minute) = (adapts, quota / 10);
        instance.burst = 10;
        rules.registration.in_flight_max = 10_000;
        let (instance, fairness) = (&rules.instances[&name("a")], Fairness::of(&rules, &name("a")));
        let line = Line::new(instance, (&rules.line, &rules.registration), fairness, &RecoveryState::default(), at(0));
        Self {
            dps,
            line,
            tenant: TenantName::parse("default").unwrap(),
            now: 0,
            leaving: BTreeMap::new(),
            answers: BTreeMap::new(),
            names: 0,
            dice: 1,
            others: 0,
            other_at: 0,
            others_taken: Vec::new(),
            by_chance: 0,
            taken: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn below(&mut self, most: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % most
    }

    fn number(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + seconds * 1000;
        while self.now < end {
            self.step(end);
        }
    }

    /// Until the limit is `limit`; how many minutes that took, 120 at the most.
    fn minutes_until_limit(&mut self, limit: u32) -> f64 {
        let began = self.now;
        while self.line.limit_per_minute() != limit && self.now < began + 120 * MINUTE {
            self.step(began + 120 * MINUTE);
        }
        (self.now - began) as f64 / MINUTE as f64
    }

    fn step(&mut self, end: u64) {
        while self.line.waiting() < 100 {
            let sequence = self.number();
            let id = RegistrationId::parse(&format!("sn-{sequence}")).unwrap();
            self.line.hold_room(&self.tenant, at(self.now)).unwrap();
            let place = Place { class: Class::First, sequence };
            self.line.arrive(&self.tenant, place, id, seconds(0), at(self.now));
        }
        self.arrive_others();
        self.arrive();
        self.hear();
        let due = self.leave().map_or(end, |due| due.min(end));
        let events = [self.leaving.keys().next(), self.answers.keys().next()];
        let due = if self.others > 0 { due.min(self.other_at) } else { due };
        let due = events.into_iter().flatten().fold(due, |due, event| due.min(event.0));
        self.now = due.max(self.now + 1);
    }

    /// Everybody leaves who may. When somebody may again, if that is known.
    fn leave(&mut self) -> Option<u64> {
        loop {
            let departure = match self.line.next(at(self.now)) {
                Next::Depart(departure) => departure,
                Next::WaitUntil(moment) => return Some(moment.as_nanos().div_ceil(1_000_000)),
                Next::Idle => return None,
            };
            let arrives = self.now + 20 + self.below(130);
            let out = Out { place: departure.place, slot: departure.slot, sent: self.now, refused: None };
            let number = self.number();
            self.leaving.insert((arrives, number), out);
        }
    }

    /// Evenly but for a jitter as long as the time between two of them.
    fn arrive_others(&mut self) {
        while self.others > 0 && self.other_at <= self.now {
            if self.dps.call(self.now).is_ok() {
                self.others_taken.push(self.now);
            }
            let between = MINUTE / self.others;
            self.other_at = (self.now / between + 1) * between + self.below(between);
        }
    }

    fn arrive(&mut self) {
        while self.leaving.first_key_value().is_some_and(|(key, _)| key.0 <= self.now) {
            let ((_, number), mut out) = self.leaving.pop_first().unwrap();
            out.refused = self.dps.call(self.now).err();
            if self.by_chance > 0 && self.below(1000) < self.by_chance {
                out.refused = out.refused.or(Some(2));
            }
            let times = if out.refused.is_some() { &mut self.refused } else { &mut self.taken };
            times.push(self.now);
            let heard = self.now + 20 + self.below(130);
            self.answers.insert((heard, number), out);
        }
    }

    fn hear(&mut self) {
        while self.answers.first_key_value().is_some_and(|(key, _)| key.0 <= self.now) {
            let (_, out) = self.answers.pop_first().unwrap();
            let (sent, now) = (at(out.sent), at(self.now));
            let admission = if out.refused.is_some() { Admission::Throttled } else { Admission::Admitted };
            self.line.answered(out.place, out.slot, sent, admission, now);
            match out.refused {
                None => {
                    self.line.instance_works();
                    self.line.finish(out.place, true, now);
                }
                Some(wait) => {
                    self.line.throttled(Some(sent), at(self.now + wait * 1000), now);
                    self.line.come_back(out.place, JobKind::Register, now, now);
                }
            }
        }
    }
}

/// Why DPS takes less.
#[derive(Debug, Clone, Copy)]
enum Cause {
    /// It has a lower quota.
    Takes(u64),
    /// Others call so often in a minute.
    Others(u64),
    /// It refuses so many calls in a thousand.
    Chance(u64),
}

/// What is tried: a line that has run for a while at its quota, and then something makes DPS take less.
#[derive(Debug, Clone, Copy)]
struct Case {
    quota: u32,
    shape: Shape,
    cause: Cause,
    refused_count: bool,
    names: Option<u64>,
}

impl Case {
    const fn new(quota: u32, shape: Shape, cause: Cause) -> Self {
        Self { quota, shape, cause, refused_count: false, names: None }
    }

    /// The line has run for `before` seconds.
    fn measure(&self, before: u64) -> Measured {
        let quota = u64::from(self.quota);
        let mut dps = Dps::new(self.shape, quota);
        (dps.refused_count, dps.names) = (self.refused_count, self.names);
        let mut run = Run::new(self.quota, dps, true);
        run.run(before);
        match self.cause {
            Cause::Takes(takes) => run.dps.change(takes),
            Cause::Others(others) => (run.others, run.other_at) = (others, run.now),
            Cause::Chance(per_mille) => run.by_chance = per_mille,
        }
        let began = run.now;
        run.run(63 * 60);
        let within = |times: &[u64], minutes: std::ops::Range<u64>| {
            let (from, to) = (began + minutes.start * MINUTE, began + minutes.end * MINUTE);
            times.iter().filter(|at| (from..to).contains(*at)).count() as f64
        };
        let takes = if let Cause::Takes(takes) = self.cause { takes } else { quota };
        let used = within(&run.taken, 3..13) / ((10 * takes) as f64 - within(&run.others_taken, 3..13));
        let refused = within(&run.refused, 3..63);
        let refused = refused / (refused + within(&run.taken, 3..63));
        let refused_before = within(&run.refused, 0..3);
        run.dps.change(quota);
        (run.others, run.by_chance) = (0, 0);
        let back_minutes = run.minutes_until_limit(self.quota);
        Measured { used: (used, used), refused, refused_before, back_minutes }
    }

    /// The worst of lines that have run for a little more than a minute, for two, and for half a minute more.
    fn worst(&self) -> Measured {
        [70, 120, 137, 151].map(|before| self.measure(before)).into_iter().reduce(Measured::or_worse).unwrap()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Takes(takes) => write!(f, "{} to {takes}, ", self.quota)?,
            Cause::Others(others) => write!(f, "{others} of {} taken by others, ", self.quota)?,
            Cause::Chance(per_mille) => write!(f, "{per_mille} in 1,000 refused by chance, quota {}, ", self.quota)?,
        }
        match self.shape {
            Shape::Sliding => write!(f, "sliding minute")?,
            Shape::Fixed => write!(f, "fixed minute")?,
            Shape::Bucket(percent) => write!(f, "bucket of {percent} % of a minute")?,
        }
        if self.refused_count {
            write!(f, ", refused calls count")?;
        }
        self.names.map_or(Ok(()), |names| write!(f, ", names {names} s always"))
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Of what DPS takes, from the fourth minute on over ten: the least and the most.
    used: (f64, f64),
    /// Of the calls of the hour that begins then.
    refused: f64,
    /// Calls in the three minutes before.
    refused_before: f64,
    /// After the cause was gone.
    back_minutes: f64,
}

impl Measured {
    fn or_worse(self, other: Self) -> Self {
        Self {
            used: (self.used.0.min(other.used.0), self.used.1.max(other.used.1)),
            refused: self.refused.max(other.refused),
            refused_before: self.refused_before.max(other.refused_before),
            back_minutes: self.back_minutes.max(other.back_minutes),
        }
    }

    fn is_as_promised(&self) -> bool {
        self.used.0 >= 0.8 && self.used.1 <= 1.1 && self.refused < 0.01 && self.back_minutes <= 30.0
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used: (least, most), refused, refused_before, back_minutes } = self;
        let refused = refused * 100.0;
        write!(f, "{least:.2} to {most:.2} | {refused:.2} % | {refused_before} | {back_minutes:.0}")
    }
}

/// Measures each case, prints it, and returns those that are not as promised.
fn broken(cases: impl IntoIterator<Item = Case>) -> Vec<String> {
    let measured = cases.into_iter().map(|case| (case, case.worst()));
    let mut broken = Vec::new();
    for (case, measured) in measured {
        let row = format!("| {case} | {measured} |");
        println!("{row}");
        if !measured.is_as_promised() {
            broken.push(row);
        }
    }
    broken
}

#[test]
fn what_dps_takes_is_used_and_few_calls_are_refused_however_it_counts() {
    let changes = [(1000, 400), (1000, 200), (1000, 100), (300, 150)];
    let cases =
        SHAPES.into_iter().flat_map(|shape| changes.map(|(quota, takes)| Case::new(quota, shape, Cause::Takes(takes))));
    assert_eq!(broken(cases), Vec::<String>::new());
}

#[test]
fn also_where_dps_counts_what_it_refuses_or_names_a_wait_that_says_nothing() {
    let cases = SHAPES.into_iter().flat_map(|shape| {
        let case = Case::new(1000, shape, Cause::Takes(200));
        [Case { refused_count: true, ..case }, Case { names: Some(2), ..case }, Case { names: Some(10), ..case }]
    });
    assert_eq!(broken(cases), Vec::<String>::new());
}

#[test]
fn other_callers_of_the_same_instance_are_left_their_share() {
    let cases = SHAPES
        .into_iter()
        .flat_map(|shape| [200, 400, 600].map(|others| Case::new(1000, shape, Cause::Others(others))));
    assert_eq!(broken(cases), Vec::<String>::new());
}

#[test]
fn refusals_by_chance_of_one_in_a_thousand_leave_four_fifths_of_the_quota() {
    // This is not promised, only told; and that it is forgotten.
    let often = Case::new(1000, Shape::Sliding, Cause::Chance(5));
    let measured = often.worst();
    println!("| {often} | {measured} |");
    let quotas = [1000, 600, 300];
    let cases = quotas.map(|quota| Case::new(quota, Shape::Sliding, Cause::Chance(1)));
    assert_eq!(broken(cases), Vec::<String>::new());
    assert!(measured.back_minutes <= 30.0, "{measured}");
}

#[test]
fn a_line_that_has_just_begun_is_told_and_settles_within_a_quarter_of_an_hour() {
    for (shape, takes) in SHAPES.into_iter().flat_map(|shape| [400, 200, 100].map(|takes| (shape, takes))) {
        let mut run = Run::new(1000, Dps::new(shape, takes), true);
        run.run(28 * 60);
        let within = |times: &[u64], minutes: std::ops::Range<u64>| {
            times.iter().filter(|at| (minutes.start * MINUTE..minutes.end * MINUTE).contains(*at)).count()
        };
        let [soon, later] = [3..13, 15..25].map(|minutes| within(&run.taken, minutes) as f64 / (takes * 10) as f64);
        let refused = within(&run.refused, 0..3);
        println!("| {takes} of 1000 from the first call on, {shape:?} | {soon:.2}, later {later:.2} | {refused} |");
        assert!((0.8..=1.1).contains(&later), "{shape:?}, {takes}: {later:.2} a quarter of an hour later");
    }
}

#[test]
fn a_line_before_a_quota_as_configured_is_never_refused_and_wastes_next_to_nothing() {
    for (quota, shape) in
        [(200, Shape::Sliding), (1000, Shape::Fixed), (1000, Shape::Bucket(10)), (6000, Shape::Sliding)]
    {
        let mut run = Run::new(quota, Dps::new(shape, u64::from(quota)), true);
        run.dps.refused_count = true;
        run.run(1800);
        assert_eq!((run.refused.len(), run.line.limit_per_minute()), (0, quota), "{quota} {shape:?}");
        let used = run.taken.len() as f64 / (30.0 * f64::from(quota));
        assert!(used > 0.99, "{quota} {shape:?}: {used:.4} of the quota used");
    }
}

#[test]
fn switched_off_the_quota_holds_whatever_dps_refuses() {
    let mut run = Run::new(1000, Dps::new(Shape::Sliding, 200), false);
    run.run(1200);
    assert!(run.refused.len() > 20, "{} refused", run.refused.len());
    assert_eq!(run.line.limit_per_minute(), 1000);
}
