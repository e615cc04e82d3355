//! Polling: DPS works on the registration, and tells when asked.

use std::time::Duration;

use super::{Attempt, NotGoing, RESUME_SPREAD_MIN, Ready, Settled};
use crate::device::Step;
use crate::ids::OperationId;
use crate::owner::dispatcher::count;
use crate::registration::{self, Next, POLL_WAIT_MIN};
use crate::upstream::CallResult;
use crate::upstream::verdict::{Call, Named};
use rate_control::ledger::SendId;
use rate_control::time::Mono;

/// Events about failing polls in one registration's part of the timeline.
const POLL_EVENTS_MAX: u32 = 4;

/// How the polling of one registration goes.
struct Polling {
    operation_id: OperationId,
    begun: Mono,
    /// Polls in a row that failed.
    failures: u32,
    /// Times in a row that the record could not be read.
    unread: u32,
    /// Events that the timeline has heard.
    events: u32,
    /// What DPS called its last answer; none if somebody else spoke last, or nobody.
    last_named: Option<Named>,
    /// As counted when the last poll began.
    recoveries: u64,
}

/// What one poll came to.
enum Polled {
    /// The next one is after this wait.
    Again(Duration),
    /// The registration goes on otherwise.
    Next(Next),
    /// The attempt is over.
    Over,
}

impl Attempt {
    pub(super) async fn poll(&self, operation_id: OperationId, first_wait: Duration) {
        let mut polling = Polling {
            operation_id,
            begun: self.now().mono,
            failures: 0,
            unread: 0,
            events: 0,
            last_named: Some(Named::default()),
            recoveries: self.dispatcher.recoveries(),
        };
        let mut wait = first_wait;
        loop {
            tokio::select! {
                biased;
                // The operation ID is on disk: the next process goes on from here.
                () = self.base.stopping.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                // The poll that was put off while calls failed may have the hub.
                () = self.dispatcher.recovered(polling.recoveries), if polling.failures > 0 => {
                    polling.recoveries = self.dispatcher.recoveries();
                    wait = POLL_WAIT_MIN + self.base.spread(RESUME_SPREAD_MIN);
                    continue;
                }
            }
            // Boxed: this waits most of the time.
            match Box::pin(self.poll_once(&mut polling)).await {
                Polled::Again(next) => wait = next,
                Polled::Next(next) => {
                    let _nothing_to_poll = Box::pin(self.follow(next, Settled::default())).await;
                    return;
                }
                Polled::Over => return,
            }
        }
    }

    async fn poll_once(&self, polling: &mut Polling) -> Polled {
        let settings = self.base.settings();
        let record = match self.records.load(&self.id).await {
            Ok(Some(versioned)) => versioned.record,
            Ok(None) => {
                self.finish(false);
                return Polled::Over;
            }
            Err(_) => {
                polling.unread += 1;
                return Polled::Again(self.poll_backoff(polling.unread));
            }
        };
        polling.unread = 0;
        polling.recoveries = self.dispatcher.recoveries();
        let known = tokio::select! {
            biased;
            () = self.base.stopping.cancelled() => return Polled::Over,
            known = self.clocks.know_time(&self.dispatcher) => known,
        };
        if let Err(failure) = known {
            let wait = self.poll_backoff(polling.failures + 1);
            return self.poll_failed(polling, wait, &failure.to_string()).await;
        }
        let mut ready = match self.prepare(&settings, &record, SendId::default(), self.now()) {
            Ok(ready) => ready,
            Err(NotGoing::NoTime) => return Polled::Again(POLL_WAIT_MIN),
            Err(NotGoing::Refused(words)) => return Polled::Next(Next::Refuse { words, by_dps: false }),
            Err(NotGoing::Elsewhere | NotGoing::Blocked | NotGoing::UnderWay | NotGoing::InFlight(_)) => {
                self.finish(false);
                return Polled::Over;
            }
        };
        if self.now().mono.since(polling.begun) > settings.registration.assigning_max {
            let named = polling.last_named.take();
            return Polled::Next(self.with_situation(&ready, polling.failures, |situation, entropy| {
                registration::out_of_time(situation, named, entropy)
            }));
        }
        let connection = tokio::select! {
            biased;
            () = self.base.stopping.cancelled() => return Polled::Over,
            connection = self.dispatcher.connection() => connection,
        };
        // Others may have held the connection for long: only what is signed now is good for the whole call.
        let Ok(leaving) = self.sign(&mut ready) else { return Polled::Again(POLL_WAIT_MIN) };
        count(&self.dispatcher.counts.polls);
        let sent = self.now().mono;
        let result = leaving.upstream.poll(&leaving.caller, &polling.operation_id).await;
        drop(connection);
        self.polled(polling, &ready, sent, &result).await
    }

    async fn polled(&self, polling: &mut Polling, ready: &Ready, sent: Mono, result: &CallResult) -> Polled {
        let evidence = self.learn_from(Call::Poll, result);
        match result {
            Ok(answer) => {
                polling.last_named = registration::no_result(answer, evidence);
                if let Some(date) = answer.date {
                    self.clocks.hear_date(&self.dispatcher, date, sent);
                }
            }
            Err(no_answer) => {
                let counts = &self.dispatcher.counts;
                count(if no_answer.never_left() { &counts.unreachable } else { &counts.lost });
                polling.last_named = None;
            }
        }
        match self.decide(Call::Poll, ready, result, evidence, polling.failures) {
            Next::PollAgain { wait, failed: Some(why) } => self.poll_failed(polling, wait, &why).await,
            Next::PollAgain { wait, failed: None } => {
                polling.failures = 0;
                self.dispatcher.line.lock().polls_failed(self.place, None);
                Polled::Again(wait)
            }
            next => Polled::Next(next),
        }
    }

    /// One more poll in a row failed. The timeline hears of the first one, as long as that leaves room for other events.
    async fn poll_failed(&self, polling: &mut Polling, wait: Duration, why: &str) -> Polled {
        polling.failures += 1;
        let in_a_row = polling.failures;
        tracing::debug!(why, in_a_row, "a poll failed");
        self.dispatcher.line.lock().polls_failed(self.place, Some((in_a_row, why.to_owned())));
        if in_a_row > 1 || polling.events == POLL_EVENTS_MAX {
            return Polled::Again(wait);
        }
        polling.events += 1;
        let why = format!("a poll failed: {why}; polling continues");
        let taken = self.take_step_or_finish(Settled::default(), Step::Event { why }).await;
        if taken { Polled::Again(wait) } else { Polled::Over }
    }

    fn poll_backoff(&self, failures: u32) -> Duration {
        let registration = &self.base.settings().registration;
        registration::poll_backoff(registration, failures, &mut self.base.entropy.lock())
    }
}
