//! Polling: DPS works on the registration, and tells when asked.

use std::time::Duration;

use super::{Attempt, NotGoing, RESUME_SPREAD_MIN, Settled, no_result};
use crate::gateway::dispatch::count;
use crate::ids::OperationId;
use crate::upstream::verdict::{Call, Named, Verdict, trace};
use crate::upstream::{Answer, Said, Status};
use rate_control::retry;

/// Least wait between two polls of one device: DPS allows 5 per 10 s.
const POLL_WAIT_MIN: Duration = Duration::from_secs(2);

/// Events about failing polls in one registration's part of the timeline.
const POLL_EVENTS_MAX: u32 = 4;

impl Attempt {
    pub(super) fn poll_wait(&self, retry_after: Option<Duration>) -> Duration {
        let registration = &self.gateway.settings().registration;
        let most = registration.poll_interval_max.max(POLL_WAIT_MIN);
        retry_after
            .unwrap_or(registration.poll_interval)
            .clamp(registration.poll_interval.clamp(POLL_WAIT_MIN, most), most)
    }

    pub(super) async fn poll(&self, operation_id: OperationId, first_wait: Duration) {
        let begun = self.now().mono;
        let mut wait = first_wait;
        let (mut unread, mut failures, mut events) = (0, 0, 0);
        // What DPS called its last answer; none if somebody else spoke last, or nobody.
        let mut last_named = Some(Named::default());
        let mut recoveries = self.dispatcher.recoveries();
        loop {
            tokio::select! {
                biased;
                // The operation ID is on disk: the next process goes on from here.
                () = self.gateway.stopping.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                // The poll that was put off while calls failed may have the hub.
                () = self.dispatcher.recovered(recoveries), if failures > 0 => {
                    recoveries = self.dispatcher.recoveries();
                    wait = POLL_WAIT_MIN + self.gateway.spread(RESUME_SPREAD_MIN);
                    continue;
                }
            }
            let settings = self.gateway.settings();
            if self.now().mono.since(begun) > settings.registration.assigning_max {
                let why = "DPS gave no result in time";
                return self.go_again(why, Duration::ZERO, last_named, Settled::default()).await;
            }
            let record = match self.gateway.load(&self.id).await {
                Ok(Some(versioned)) => versioned.record,
                Ok(None) => return self.finish(false),
                Err(_) => {
                    unread += 1;
                    wait = self.poll_backoff(unread);
                    continue;
                }
            };
            unread = 0;
            recoveries = self.dispatcher.recoveries();
            let known = tokio::select! {
                biased;
                () = self.gateway.stopping.cancelled() => return,
                known = self.gateway.know_time(&self.dispatcher) => known,
            };
            if let Err(failure) = known {
                failures += 1;
                if !self.poll_failed(failures, &mut events, &failure.to_string()).await {
                    return;
                }
                wait = self.poll_backoff(failures);
                continue;
            }
            let ready = match self.prepare(&settings, &record, self.now()) {
                Ok(ready) => ready,
                Err(NotGoing::NoTime) => continue,
                Err(NotGoing::Elsewhere | NotGoing::Blocked) => return self.finish(false),
                Err(NotGoing::Refused(words)) => return self.refuse(words, Settled::default()).await,
            };
            let connection = tokio::select! {
                biased;
                () = self.gateway.stopping.cancelled() => return,
                connection = self.dispatcher.connection() => connection,
            };
            count(&self.dispatcher.counts.polls);
            let sent = self.now().mono;
            let result = self.upstream().poll(&ready.caller, &operation_id).await;
            drop(connection);
            let evidence = self.learn_from(Call::Poll, &result);
            let answer = match result {
                Ok(answer) => answer,
                Err(no_answer) => {
                    let counts = &self.dispatcher.counts;
                    count(if no_answer.never_left() { &counts.unreachable } else { &counts.lost });
                    let why = no_answer.to_string();
                    last_named = None;
                    failures += 1;
                    if !self.poll_failed(failures, &mut events, &why).await {
                        return;
                    }
                    wait = self.poll_backoff(failures);
                    continue;
                }
            };
            tracing::trace!("DPS answered a poll");
            last_named = no_result(&answer, evidence);
            if let Some(date) = answer.date {
                self.gateway.hear_date(&self.dispatcher, date, sent);
            }
            match self.judge(Call::Poll, &answer, &ready.caller) {
                Verdict::Assigning { .. } => {
                    failures = 0;
                    self.dispatcher.line.lock().polls_failed(self.place, None);
                    wait = self.poll_wait(answer.retry_after);
                }
                // Too many polls of this device; registrations have a quota of their own.
                Verdict::Throttled { retry_after, tracking_id } => {
                    failures += 1;
                    let why = format!("DPS throttled it{}", trace(tracking_id.as_deref()));
                    if !self.poll_failed(failures, &mut events, &why).await {
                        return;
                    }
                    wait = self.poll_wait(retry_after.map(|wait| wait.max(POLL_WAIT_MIN * 2)));
                }
                Verdict::Retry { why } | Verdict::Unknown { why } if answer_is_not_final(&answer) => {
                    failures += 1;
                    if !self.poll_failed(failures, &mut events, &why).await {
                        return;
                    }
                    wait = self.poll_backoff(failures);
                }
                verdict => {
                    let judged = (verdict, &answer, evidence);
                    let _nothing_to_poll = self.follow(Call::Poll, judged, Settled::default()).await;
                    return;
                }
            }
        }
    }

    /// The last polls of the device failed, so many in a row. Its timeline hears of the first one, as long as that leaves room for
    /// other events. False if the attempt is over.
    async fn poll_failed(&self, in_a_row: u32, events: &mut u32, why: &str) -> bool {
        tracing::debug!(why, in_a_row, "a poll failed");
        self.dispatcher.line.lock().polls_failed(self.place, Some((in_a_row, why.to_owned())));
        if in_a_row > 1 || *events == POLL_EVENTS_MAX {
            return true;
        }
        *events += 1;
        self.edit_mine(Settled::default(), &format!("a poll failed: {why}; we go on polling"), |_| {}).await
    }

    fn poll_backoff(&self, failures: u32) -> Duration {
        let registration = &self.gateway.settings().registration;
        let ceiling = retry::ceiling(failures, registration.backoff_min, registration.poll_interval_max);
        POLL_WAIT_MIN.max(ceiling) + self.gateway.spread(POLL_WAIT_MIN)
    }
}

/// A failed poll says nothing about the registration; a registration that *failed* does.
fn answer_is_not_final(answer: &Answer) -> bool {
    !matches!(&answer.said, Said::Progress(progress) if progress.status == Status::Failed)
}
