//! The calls that draw on the registration quota, and the judge who counts them.

use super::message::{Answer, Request};
use super::refusal::Refusal;
use super::{Case, Dps};
use crate::call_kind::CallKind;
use crate::operation::Plan;

impl Dps {
    pub(super) fn draws_on_quota(&self, kind: CallKind) -> bool {
        kind == CallKind::Register || (kind == CallKind::Lookup && self.config.lookup_counts)
    }

    pub(super) fn judge_call(&mut self, case: &mut Case) {
        case.counted = true;
        self.stats.registrations_counted += 1;
        let inside = self.judge.count(case.now.monotonic_ns);
        if inside > self.quota.quota().count {
            self.stats.over_quota_sliding += 1;
        }
    }

    /// Register and lookup calls, which draw on the registration quota.
    pub(super) fn metered(
        &mut self,
        request: &Request<'_>,
        id: &str,
        case: &mut Case,
        plan: Plan,
        told: bool,
    ) -> Result<Answer, Refusal> {
        let now = case.now.monotonic_ns;
        let draws = self.draws_on_quota(case.kind);
        if draws {
            let room = if self.config.rejected_count { self.quota.charge(now) } else { self.quota.check(now) };
            if self.config.rejected_count || room.is_err() {
                // A throttled call is always judged, else an overrun could not be seen.
                self.judge_call(case);
            }
            if let Err(wait) = room {
                case.throttled = true;
                self.stats.throttled += 1;
                return Err(Refusal::throttled(wait));
            }
        }
        let served = match case.kind {
            CallKind::Register => self.register(request, id, case, plan, told),
            _ => self.lookup(request, id, case),
        };
        if draws && !self.config.rejected_count && served.is_ok() {
            self.quota.record(now);
            self.judge_call(case);
        }
        served
    }
}
