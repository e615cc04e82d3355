//! The learner of a line before a DPS that takes less than it should: three shapes of its quota, with refused calls counted or
//! not, from the first call on or from the middle of a drain. Everything runs on handed time, with the line as it is in service.

use std::collections::{BTreeMap, VecDeque};

use proxy_core::ids::{RegistrationId, TenantName};
use proxy_core::line::lane::JobKind;
use proxy_core::line::scheduler::Fairness;
use proxy_core::line::{Admission, Line, Next, RecoveryState};
use proxy_core::place::{Class, Place};
use rate_control::ledger::SlotId;
use rate_control::time::{BootId, Mono};

use crate::support::{name, settings};

const MINUTE: u64 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Sliding,
    Fixed,
    /// Holds so many per cent of a minute's calls.
    Bucket(u64),
}

/// What DPS takes. Times are milliseconds.
#[derive(Debug)]
struct Dps {
    shape: Shape,
    refused_count: bool,
    per_minute: u64,
    /// The wait that it names in seconds, if not the one until a call fits.
    names: Option<u64>,
    counted: VecDeque<u64>,
    /// In units of 1/60,000 of a call.
    level: u64,
    filled_at: u64,
}

impl Dps {
    fn new(shape: Shape, refused_count: bool, per_minute: u64) -> Self {
        let (counted, level, filled_at) = (VecDeque::new(), 0, 0);
        let mut dps = Self { shape, refused_count, per_minute, names: None, counted, level, filled_at };
        dps.level = dps.full();
        dps
    }

    fn full(&self) -> u64 {
        match self.shape {
            Shape::Bucket(percent) => self.per_minute * percent / 100 * MINUTE,
            Shape::Sliding | Shape::Fixed => 0,
        }
    }

    fn change(&mut self, per_minute: u64) {
        self.per_minute = per_minute;
        self.level = self.level.min(self.full());
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
                self.level = (self.level + (now - self.filled_at) * self.per_minute).min(self.full());
                self.filled_at = now;
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
    /// Each way of a call takes so much longer.
    slower: u64,
    /// Calls of others per minute, and when the next one arrives.
    others: u64,
    other_at: u64,
    /// So many calls of others at once, every so many milliseconds.
    bursts: Option<(u64, u64)>,
    burst_at: u64,
    /// So many calls in a hundred are refused, whatever the quota.
    by_chance_percent: u64,
    sent: Vec<u64>,
    refused: Vec<u64>,
    /// When the refused ones were sent.
    refused_sent: Vec<u64>,
    /// The limit, whenever it changed.
    limits: Vec<(u64, u32)>,
    /// Whenever it came down: and how many calls were out then, the refused one left aside.
    steps_down: Vec<(u64, usize)>,
}

fn at(millis: u64) -> Mono {
    Mono::from_nanos(millis * 1_000_000)
}

impl Run {
    fn new(quota: u32, dps: Dps) -> Self {
        Self::with_in_flight_max(quota, dps, 10_000)
    }

    fn with_in_flight_max(quota: u32, dps: Dps, in_flight_max: usize) -> Self {
        let mut rules = settings(&[("a", quota)]);
        let instance = rules.instances.get_mut(&name("a")).unwrap();
        (instance.learn_limit, instance.learned_min_per_minute) = (true, quota / 10);
        instance.burst = 10;
        rules.registration.in_flight_max = in_flight_max;
        let (instance, fairness) = (&rules.instances[&name("a")], Fairness::of(&rules, &name("a")));
        let boot = BootId("boot".to_owned());
        let line =
            Line::new(instance, (&rules.line, &rules.registration), fairness, RecoveryState::default(), &boot, at(0));
        Self {
            dps,
            line,
            tenant: TenantName::parse("default").unwrap(),
            now: 0,
            leaving: BTreeMap::new(),
            answers: BTreeMap::new(),
            names: 0,
            dice: 1,
            slower: 0,
            others: 0,
            other_at: 0,
            bursts: None,
            burst_at: 0,
            by_chance_percent: 0,
            sent: Vec::new(),
            refused: Vec::new(),
            refused_sent: Vec::new(),
            limits: Vec::new(),
            steps_down: Vec::new(),
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

    /// There is always somebody in line.
    fn run(&mut self, seconds: u64) {
        self.run_with(u64::MAX, seconds);
    }

    /// Nobody comes.
    fn idle(&mut self, seconds: u64) {
        self.run_with(0, seconds);
    }

    /// As many come, some of them only when others have gone.
    fn run_with(&mut self, mut devices: u64, seconds: u64) {
        let end = self.now + seconds * 1000;
        while self.now < end {
            while self.line.waiting() < 100 && devices > 0 {
                devices -= 1;
                let id = RegistrationId::parse(&format!("sn-{}", self.number())).unwrap();
                let place = self.line.reserve(&self.tenant, id, Class::First, at(self.now)).unwrap();
                self.line.confirm(&self.tenant, place);
            }
            self.arrive_others();
            self.arrive();
            self.hear();
            let mut due = end;
            loop {
                let departure = match self.line.next(at(self.now)) {
                    Next::Depart(departure) => departure,
                    Next::WaitUntil(moment) => {
                        due = due.min(moment.as_nanos().div_ceil(1_000_000));
                        break;
                    }
                    Next::Idle => break,
                };
                self.sent.push(self.now);
                let arrives = self.now + 20 + self.below(130) + self.slower;
                let out = Out { place: departure.place, slot: departure.slot, sent: self.now, refused: None };
                let number = self.number();
                self.leaving.insert((arrives, number), out);
            }
            let limit = self.line.limit_per_minute();
            if self.limits.last().is_none_or(|last| last.1 != limit) {
                self.limits.push((self.now, limit));
            }
            let events = [self.leaving.keys().next(), self.answers.keys().next()];
            let due = if self.others > 0 { due.min(self.other_at) } else { due };
            let due = self.bursts.map_or(due, |(_, every)| due.min((self.now / every + 1) * every));
            let due = events.into_iter().flatten().fold(due, |due, event| due.min(event.0));
            self.now = due.max(self.now + 1);
        }
    }

    /// Evenly but for a jitter as long as the time between two of them; and bursts.
    fn arrive_others(&mut self) {
        if let Some((calls, every)) = self.bursts.filter(|(_, every)| self.now / every > self.burst_at) {
            self.burst_at = self.now / every;
            for _ in 0..calls {
                let _ = self.dps.call(self.now);
            }
        }
        while self.others > 0 && self.other_at <= self.now {
            let _ = self.dps.call(self.now);
            let between = MINUTE / self.others;
            self.other_at = (self.now / between + 1) * between + self.below(between);
        }
    }

    fn arrive(&mut self) {
        while self.leaving.first_key_value().is_some_and(|(key, _)| key.0 <= self.now) {
            let ((_, number), mut out) = self.leaving.pop_first().unwrap();
            out.refused = self.dps.call(self.now).err();
            if self.by_chance_percent > 0 && self.below(100) < self.by_chance_percent {
                out.refused = out.refused.or(Some(2));
            }
            if out.refused.is_some() {
                self.refused.push(self.now);
                self.refused_sent.push(out.sent);
            }
            let heard = self.now + 20 + self.below(130) + self.slower;
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
                    let limit = self.line.limit_per_minute();
                    self.line.throttled(Some(sent), at(self.now + wait * 1000), now);
                    if self.line.limit_per_minute() < limit {
                        self.steps_down.push((self.now, self.leaving.len() + self.answers.len()));
                    }
                    self.line.come_back(out.place, JobKind::Register, now, now);
                }
            }
        }
    }
}

/// What a lower quota cost, and what was made of it, over the hour that begins with it and the one after that.
struct Hours {
    run: Run,
    began: u64,
    what: String,
}

impl Hours {
    /// `before` seconds at the configured quota, then `seconds` at `real`.
    fn new(quotas: (u32, u64), shape: Shape, refused_count: bool, before: u64, seconds: u64) -> Self {
        Self::naming(None, quotas, shape, refused_count, before, seconds)
    }

    /// The same, with a DPS that names this wait.
    fn naming(
        names: Option<u64>,
        (quota, real): (u32, u64),
        shape: Shape,
        refused_count: bool,
        before: u64,
        seconds: u64,
    ) -> Self {
        let what = format!(
            "{quota} to {real}, {shape:?}, refused calls count: {refused_count}, after {before} s, names {names:?}"
        );
        let mut dps = Dps::new(shape, refused_count, if before > 0 { u64::from(quota) } else { real });
        dps.names = names;
        let mut run = Run::new(quota, dps);
        run.run(before);
        run.dps.change(real);
        let began = run.now;
        run.run(seconds);
        Self { run, began, what }
    }

    /// Calls sent, and calls refused, in an hour that begins so many seconds after the change.
    fn hour(&self, after: u64) -> (usize, usize) {
        let from = self.began + after * 1000;
        let within = |times: &[u64]| times.iter().filter(|at| (from..from + 60 * MINUTE).contains(*at)).count();
        (within(&self.run.sent), within(&self.run.refused))
    }

    fn limit_after(&self, seconds: u64) -> u32 {
        let by = self.began + seconds * 1000;
        self.run.limits.iter().take_while(|limit| limit.0 <= by).last().unwrap().1
    }
}

const SHAPES: [Shape; 3] = [Shape::Sliding, Shape::Fixed, Shape::Bucket(10)];

/// From the first call on, and so many seconds into a drain: as the slots of a burst come free, and between.
const BEFORE: [u64; 4] = [0, 120, 137, 171];

fn less_than_one_in_a_thousand_is_refused(hours: &Hours, real: u64, afters: &[u64]) {
    for after in afters {
        let (sent, refused) = hours.hour(*after);
        let what = format!("{}, in the hour from {after} s on", hours.what);
        assert!(refused * 1000 < sent, "{what}: {refused} of {sent} refused");
        let used = (sent - refused) as f64 / (60 * real) as f64;
        assert!(used > 0.85, "{what}: {used:.3} of the quota used");
    }
}

#[test]
fn a_lower_quota_is_found_within_two_minutes_and_less_than_one_call_in_a_thousand_is_refused() {
    for (quota, real) in [(1000, 200), (300, 150), (200, 100), (600, 120), (400, 300)] {
        let cases = BEFORE.into_iter().flat_map(|before| [(before, false), (before, true)]);
        for (shape, (before, refused_count)) in
            SHAPES.into_iter().flat_map(|shape| cases.clone().map(move |case| (shape, case)))
        {
            let hours = Hours::new((quota, real), shape, refused_count, before, 7200);
            less_than_one_in_a_thousand_is_refused(&hours, real, &[0, 600, 3600]);
            let found = f64::from(hours.limit_after(120)) / real as f64;
            assert!((0.83..1.1).contains(&found), "{}: {found:.2} of the real quota after two minutes", hours.what);
        }
    }
}

#[test]
fn a_lower_quota_is_found_also_where_dps_names_a_wait_that_says_nothing() {
    for (quota, real) in [(1000, 200), (300, 150), (200, 100)] {
        for (shape, names) in [Shape::Sliding, Shape::Bucket(10)].into_iter().zip([[2, 5], [5, 2]]) {
            for (before, names) in BEFORE.into_iter().zip(names.into_iter().cycle()) {
                let hours = Hours::naming(Some(names), (quota, real), shape, true, before, 7200);
                less_than_one_in_a_thousand_is_refused(&hours, real, &[0, 600, 3600]);
                let found = f64::from(hours.limit_after(120)) / real as f64;
                assert!((0.83..1.1).contains(&found), "{}: {found:.2} of the real quota after two minutes", hours.what);
            }
        }
    }
    // The end of a fixed window that is not named takes longer to find.
    for (before, names) in BEFORE.into_iter().zip([1, 2, 5, 2]) {
        let hours = Hours::naming(Some(names), (1000, 200), Shape::Fixed, true, before, 7200);
        less_than_one_in_a_thousand_is_refused(&hours, 200, &[0, 600, 3600]);
    }
}

#[test]
fn once_it_is_settled_less_than_one_call_in_a_thousand_is_refused_however_small_the_quota() {
    // At these the step itself may cost a thousandth of an hour: those that are out, and one.
    for (quota, real) in [(1000, 100), (400, 100), (200, 60), (100, 60)] {
        for (shape, before) in SHAPES.into_iter().flat_map(|shape| BEFORE.map(|before| (shape, before))) {
            let hours = Hours::new((quota, real), shape, true, before, 7200);
            less_than_one_in_a_thousand_is_refused(&hours, real, &[120, 600, 3600]);
        }
    }
}

#[test]
fn a_fixed_window_is_found_where_answers_are_slow() {
    for (quota, real) in [(400, 300), (1000, 300)] {
        let mut run = Run::new(quota, Dps::new(Shape::Fixed, false, u64::from(quota)));
        // Almost a second: with one call at a time after a refusal it takes more than a window to fill one.
        run.slower = 450;
        run.run(100);
        run.dps.change(real);
        run.run(3600);
        let at_last = f64::from(run.line.limit_per_minute()) / real as f64;
        assert!((0.9..1.1).contains(&at_last), "{quota} to {real}: {at_last:.2} of the real quota an hour later");
    }
}

#[test]
fn a_bucket_that_holds_a_whole_minute_refuses_less_than_one_call_in_a_thousand() {
    for (quota, real) in [(1000, 200), (300, 150), (200, 100), (600, 120), (400, 300)] {
        for before in [0, 137] {
            let hours = Hours::new((quota, real), Shape::Bucket(100), true, before, 7200);
            less_than_one_in_a_thousand_is_refused(&hours, real, &[0, 600, 3600]);
        }
    }
}

#[test]
fn a_quota_at_the_floor_of_the_band_is_not_sought_above_it_for_ever() {
    for shape in SHAPES {
        let hours = Hours::new((1000, 100), shape, true, 137, 7200);
        let (sent, refused) = hours.hour(3600);
        assert!(refused * 1000 < sent, "{}: {refused} of {sent} refused in the second hour", hours.what);
        assert_eq!(hours.limit_after(7000), 100, "{}", hours.what);
    }
}

#[test]
fn a_step_down_costs_at_most_the_calls_that_were_out_and_one() {
    for (quota, real, before) in [(1000, 500, 137), (1000, 900, 0), (6000, 1000, 100), (300, 150, 120), (200, 100, 171)]
    {
        for (shape, names) in SHAPES.into_iter().flat_map(|shape| [(shape, None), (shape, Some(2))]) {
            let Hours { run, what, .. } = Hours::naming(names, (quota, real), shape, false, before, 1800);
            // Each refused call had left before the step that it belongs to.
            let mut refused = run.refused_sent.clone();
            refused.sort_unstable();
            let mut before = 0;
            for (at, out) in &run.steps_down {
                let cost = refused.iter().filter(|sent| (before..*at).contains(*sent)).count();
                assert!(cost <= out + 1, "{what}: {cost} refused for the step at {at} ms, {out} were out");
                before = *at;
            }
            assert_eq!(refused.iter().filter(|sent| **sent >= before).count(), 0, "{what}: refused without a step");
        }
    }
}

#[test]
fn other_callers_of_the_same_instance_are_left_their_share() {
    // They begin with us, or were there before us.
    for (shape, others, before) in SHAPES.into_iter().flat_map(|shape| {
        [(400, 0), (400, 200), (200, 200), (600, 200)].map(|(others, before)| (shape, others, before))
    }) {
        let what = format!("{shape:?}, {others} of others, {before} s before us");
        let mut run = Run::new(1000, Dps::new(shape, false, 1000));
        run.others = others;
        run.idle(before);
        let began = run.now;
        run.run(7200);
        let (by, left) = (run.refused[0] + 2 * MINUTE, (1000 - others) as f64);
        let limit = f64::from(run.limits.iter().take_while(|limit| limit.0 <= by).last().unwrap().1);
        // In a fixed window more is left the earlier in it we come, until we come all the time.
        let most = if shape == Shape::Fixed { 1.25 } else { 1.1 };
        assert!((0.7..most).contains(&(limit / left)), "{what}: {limit} of {left} after two minutes");
        let within = |times: &[u64], from: u64| times.iter().filter(|at| **at >= from).count();
        let (sent, refused) = (within(&run.sent, began), within(&run.refused, began));
        assert!(refused * 1000 < sent, "{what}: {refused} of {sent} refused");
        let used = (sent - refused) as f64 / (120.0 * left);
        assert!(used > 0.9, "{what}: {used:.3} of what the others leave");
    }
}

#[test]
fn bursts_of_others_do_not_take_the_limit_down_for_good() {
    for minutes in [3, 5, 9, 11] {
        let mut run = Run::new(1000, Dps::new(Shape::Bucket(10), false, 1000));
        run.bursts = Some((150, minutes * MINUTE));
        run.run(3 * 3600);
        let used = run.sent.iter().filter(|at| **at >= 120 * MINUTE).count();
        assert!(used > 60 * 650, "every {minutes} minutes: {used} sent in the third hour");
    }
}

#[test]
fn refusals_by_chance_leave_the_floor_and_are_forgotten_when_they_are_over() {
    for (percent, before) in [(1, 0), (5, 0), (1, 600), (5, 600)] {
        let what = format!("{percent} % refused, {before} s after the first call");
        let mut run = Run::new(1000, Dps::new(Shape::Sliding, false, 1000));
        run.run(before);
        run.by_chance_percent = percent;
        let began = run.sent.len();
        run.run(1800);
        let over = run.sent.len();
        assert!(over - began > 30 * 80, "{what}: {} sent in half an hour", over - began);
        run.by_chance_percent = 0;
        run.run(3000);
        assert_eq!(run.line.limit_per_minute(), 1000, "{what}");
    }
}

#[test]
fn what_was_sent_before_a_storm_does_not_hide_a_bucket() {
    for (quota, real) in [(400, 300), (1000, 700), (1000, 600), (300, 150)] {
        for (calls, seconds) in [(1, 30), (1, 40), (1, 50), (6, 61)] {
            let mut run = Run::new(quota, Dps::new(Shape::Bucket(10), false, real));
            for _ in 0..calls {
                run.run_with(1, 1);
                run.idle(seconds / calls - 1);
            }
            run.run(120);
            let found = f64::from(run.line.limit_per_minute()) / real as f64;
            assert!(
                (0.83..1.15).contains(&found),
                "{quota} to {real}, {calls} calls in {seconds} s before: {found:.2}"
            );
        }
    }
}

#[test]
fn a_limit_that_is_not_what_holds_the_line_back_is_not_raised() {
    let mut run = Run::with_in_flight_max(1000, Dps::new(Shape::Sliding, false, 200), 2);
    run.run(600);
    let learned = run.line.limit_per_minute();
    assert!((180..=200).contains(&learned), "{learned}");
    // Two calls at a time, 12 s each: ten a minute.
    (run.slower, run.dps.per_minute) = (6_000, 1000);
    run.run(5400);
    assert_eq!(run.line.limit_per_minute(), learned);
}

#[test]
fn a_quota_that_is_raised_again_is_found_again() {
    for shape in SHAPES {
        let mut hours = Hours::new((1000, 200), shape, false, 0, 1500);
        hours.run.dps.change(1000);
        let before = hours.run.now;
        hours.run.run(4000);
        assert_eq!(hours.run.line.limit_per_minute(), 1000, "{}", hours.what);
        for raised in hours.run.limits.windows(2).filter(|two| two[0].0 >= before) {
            assert!(raised[1].1 <= raised[0].1 + 100, "{}: {raised:?}", hours.what);
            assert!(raised[1].0 - raised[0].0 >= MINUTE, "{}: {raised:?}", hours.what);
        }
    }
}

#[test]
fn a_line_before_a_quota_as_configured_is_never_refused_and_wastes_next_to_nothing() {
    for (quota, shape) in
        [(200, Shape::Sliding), (1000, Shape::Fixed), (1000, Shape::Bucket(10)), (6000, Shape::Sliding)]
    {
        let mut run = Run::new(quota, Dps::new(shape, true, u64::from(quota)));
        run.run(1800);
        assert_eq!((run.refused.len(), run.line.limit_per_minute()), (0, quota), "{quota} {shape:?}");
        let used = run.sent.len() as f64 / (30.0 * f64::from(quota));
        assert!(used > 0.99, "{quota} {shape:?}: {used:.4} of the quota used");
    }
}
