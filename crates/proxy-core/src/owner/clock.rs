//! What DPS's clocks read: for what is signed for DPS, and to tell whether our own wall clock is right ([`AgreedTime`](crate::base)).
//!
//! Invariant:
//! - No token leaves for an instance whose clock was not read within the last hour ([`crate::dps_clock::GOOD_FOR`]), or since a clock of ours
//!   jumped. It is read by a call that carries no credential and spends nothing. The one exception: somebody with a certificate for DPS's
//!   name answers that call in DPS's stead, again and again. Then a guess is made, and told in the log.

use std::sync::Arc;
use std::time::Duration;

use super::dispatcher::{Asking, Dispatcher, count};
use super::lines::Lines;
use super::recovered_limits::keep_pause;
use crate::base::task_names::NOTES;
use crate::base::{Base, Standing};
use crate::dps_clock::DpsClock;
use crate::registration;
use crate::upstream::NoAnswer;
use crate::upstream::evidence::{self, Evidence, weigh};
use crate::upstream::time::{Speaker, TimeAnswer};
use crate::upstream::verdict::Call;
use rate_control::time::{Mono, Now, WallLead, WallTime};

/// Between two looks at whether the clock of an instance has to be read again, and between two tries to read it while nobody waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// After so many answers in a row of somebody who stands before DPS, and none of DPS, what is signed goes by a guess.
const UNANSWERED_MAX: u32 = 3;

/// The question for the time was throttled, so nothing is signed yet.
const THROTTLED: NoAnswer = NoAnswer::Withheld("DPS throttled the request for its time");

/// Reads the clocks of DPS, and tells what they say together.
#[derive(Debug, Clone)]
pub(super) struct Clocks {
    base: Arc<Base>,
    lines: Arc<Lines>,
}

impl Clocks {
    pub(super) const fn new(base: Arc<Base>, lines: Arc<Lines>) -> Self {
        Self { base, lines }
    }

    /// An answer of DPS was dated `date`; its call was sent at `sent`.
    pub(super) fn hear_date(&self, dispatcher: &Dispatcher, date: WallTime, sent: Mono) {
        let now = self.base.now();
        let agreed_time = &self.base.agreed_time;
        let ahead = {
            let mut clock = dispatcher.dps_clock.lock();
            clock.observe(date, sent, now);
            clock.ahead_of_boot_millis()
        };
        // Asked of all instances only when this one has news: it is seldom, and answers are many.
        if ahead.is_some_and(|ahead| agreed_time.is_news(ahead, now)) {
            let dispatchers = self.lines.all();
            let known = |dispatcher: &Arc<Dispatcher>| {
                let clock = *dispatcher.dps_clock.lock();
                clock.ahead_of_boot_millis().filter(|_| clock.is_known(now))
            };
            let readings = dispatchers.values().filter_map(known).collect();
            agreed_time.take(readings, dispatchers.len(), now);
        }
        agreed_time.tell_change(now);
    }

    /// Reads the instance's clock, unless something can be signed by what is known of it; whoever asks meanwhile shares the answer.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Nobody who speaks for DPS answered, or it is not to be asked yet.
    pub(super) async fn know_time(&self, dispatcher: &Arc<Dispatcher>) -> Result<(), NoAnswer> {
        self.read_time(dispatcher, |clock, now| !clock.can_sign(now)).await
    }

    /// Reads the instance's clock if it is `wanted`.
    async fn read_time(
        &self,
        dispatcher: &Arc<Dispatcher>,
        wanted: fn(&DpsClock, Now) -> bool,
    ) -> Result<(), NoAnswer> {
        let is_wanted = |now| wanted(&dispatcher.dps_clock.lock(), now);
        let asked = self.base.now();
        if !is_wanted(asked) {
            return Ok(());
        }
        let mut asking = dispatcher.asking_time.lock().await;
        let now = self.base.now();
        if !is_wanted(now) {
            return Ok(());
        }
        if let Some((_, failure)) = asking.last_failure.as_ref().filter(|(at, _)| *at >= asked.mono) {
            return Err(failure.clone());
        }
        if now.mono < asking.not_before {
            return Err(THROTTLED);
        }
        let upstream = Arc::clone(&dispatcher.upstream.read());
        let read = match upstream.time().await {
            Ok(answer) => self.take_time(dispatcher, &mut asking, &answer, now.mono),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &read
            && *failure != THROTTLED
        {
            let counts = &dispatcher.counts;
            count(if failure.never_left() { &counts.unreachable } else { &counts.lost });
        }
        asking.last_failure = read.as_ref().err().map(|failure| (self.base.now().mono, failure.clone()));
        read
    }

    /// The instance, or somebody in front of it, answered the question for its time, which was sent at `sent`.
    fn take_time(
        &self,
        dispatcher: &Arc<Dispatcher>,
        asking: &mut Asking,
        answer: &TimeAnswer,
        sent: Mono,
    ) -> Result<(), NoAnswer> {
        let throttled = answer.http_status == 429;
        if throttled {
            asking.not_before = self.question_throttled(dispatcher, answer.retry_after);
        }
        if let Some(date) = answer.date.filter(|_| answer.speaker == Speaker::Dps) {
            asking.unanswered = 0;
            self.hear_date(dispatcher, date, sent);
            return Ok(());
        }
        if answer.speaker != Speaker::Stranger {
            asking.unanswered = asking.unanswered.saturating_add(1);
            if asking.unanswered >= UNANSWERED_MAX {
                self.assume_time(dispatcher, answer);
                return Ok(());
            }
        }
        if throttled {
            return Err(THROTTLED);
        }
        let http_status = answer.http_status;
        Err(NoAnswer::Lost(format!(
            "HTTP {http_status} to the request for the time, which is not an answer of DPS or has no Date header"
        )))
    }

    /// Nobody of the instance goes for as long as was asked for, and it is asked for the time no sooner. Until when.
    fn question_throttled(&self, dispatcher: &Arc<Dispatcher>, retry_after: Option<Duration>) -> Mono {
        let wait = registration::throttle_wait(&self.base.settings().registration, retry_after);
        tracing::warn!(instance = %dispatcher.name, wait_seconds = wait.as_secs(), "DPS throttled the request for its time");
        let now = self.base.now().mono;
        let until = now.after(wait);
        dispatcher.line.lock().throttled(None, until, now);
        self.base.spawn(NOTES, keep_pause(Arc::clone(&self.base), Arc::clone(dispatcher)));
        until
    }

    /// Somebody who proved to stand before DPS lets no question for the time through, again and again. What is signed goes by the best guess,
    /// until DPS says something: every answer of it is dated.
    fn assume_time(&self, dispatcher: &Dispatcher, answer: &TimeAnswer) {
        let now = self.base.now();
        let boot_millis = now.wall.unix_millis().saturating_sub(WallLead::of(now).millis());
        let own = dispatcher.dps_clock.lock().last_ahead_of_boot_millis(now);
        let agreed = match self.base.agreed_time.standing(now) {
            Standing::Settled(offset) => offset.map(|offset| offset.saturating_add(WallLead::of(now).millis())),
            Standing::Doubtful { .. } | Standing::GivenUp => None,
        };
        let (ahead_of_boot, goes_by) = match (own, agreed) {
            (Some(own), _) => (own, "the last known reading of its clock"),
            (None, Some(agreed)) => (agreed, "the time of the other instances"),
            // The earlier of the two, so that nothing is good for longer than it should be as long as one of them is right.
            (None, None) => {
                let dated = answer.date.map(|date| date.unix_millis().saturating_sub(boot_millis));
                let ours = WallLead::of(now).millis();
                (
                    dated.map_or(ours, |dated| dated.min(ours)),
                    "this machine's clock or the date of that answer, whichever is earlier",
                )
            }
        };
        dispatcher.dps_clock.lock().assume(ahead_of_boot, now);
        tracing::warn!(
            instance = %dispatcher.name, http_status = answer.http_status, goes_by,
            "something between this machine and DPS answers the request for DPS's time in its place: tokens are signed by an estimate until DPS itself answers; let GET .../registrations/-/operations/- through"
        );
    }

    /// Somebody could go, but the instance's clock is unknown: asks for it. A failure is one of the instance, as of any call.
    pub(super) async fn learn_time(&self, dispatcher: &Arc<Dispatcher>) {
        dispatcher.line.lock().tries();
        if let Err(failure) = self.know_time(dispatcher).await {
            let result = Err(failure);
            if let Evidence::Against(blame) = weigh(Call::Lookup, &result) {
                count(dispatcher.counts.blamed.of(blame));
                dispatcher.failed(
                    blame,
                    &evidence::words(&result),
                    self.base.now().mono,
                    &mut self.base.entropy.lock(),
                );
            }
        }
    }

    /// Keeps the instance's clock known while nobody waits for it: devices' credentials are to be judged by the right time from the start,
    /// and by the clocks of all instances.
    pub(super) async fn keep_time(self, dispatcher: Arc<Dispatcher>) {
        loop {
            let rung = self.base.agreed_time.rung();
            let known = tokio::select! {
                biased;
                () = self.base.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                known = self.read_time(&dispatcher, DpsClock::is_due) => known,
            };
            if let Err(failure) = &known {
                tracing::debug!(instance = %dispatcher.name, %failure, "the instance's clock could not be read");
            }
            tokio::select! {
                biased;
                () = self.base.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                () = rung => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}
