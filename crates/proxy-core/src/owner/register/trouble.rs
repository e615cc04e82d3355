//! Calls to the instance fail, or go through again: the circuit, its counters, and one line of the log per change of state.

use super::Attempt;
use crate::owner::dispatcher::count;
use crate::upstream::evidence::{self, Evidence};
use crate::upstream::verdict::Call;
use crate::upstream::{CallResult, Said};

impl Attempt {
    /// Acts upon what the end of a call is evidence of, as far as the instance is concerned.
    ///
    /// A poll that fails is counted and changes nothing else: registrations and lookups find out by themselves. What DPS tells in an answer
    /// to a poll about the registration counts as the registration's own end.
    pub(super) fn learn_from(&self, call: Call, result: &CallResult) -> Evidence {
        let evidence = evidence::weigh(call, result);
        let about_a_registration =
            call != Call::Poll || matches!(result, Ok(answer) if matches!(answer.said, Said::Progress(_)));
        match evidence {
            Evidence::Works if call != Call::Poll => self.instance_works(),
            Evidence::Against(blame) => {
                count(self.dispatcher.counts.blamed.of(blame));
                if about_a_registration {
                    let (why, now) = (evidence::words(result), self.now().mono);
                    self.dispatcher.failed(blame, &why, now, &mut self.base.entropy.lock());
                }
            }
            Evidence::Works | Evidence::Nothing => {}
        }
        evidence
    }

    fn instance_works(&self) {
        if self.dispatcher.line.lock().instance_works() {
            *self.dispatcher.trouble.lock() = None;
            tracing::info!(instance = %self.dispatcher.name, "calls to the instance go through again");
            self.dispatcher.recover();
        }
        self.dispatcher.bell.notify_one();
    }
}
