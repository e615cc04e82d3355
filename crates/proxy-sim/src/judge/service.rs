//! How well the service served.
//!
//! Judged in orderly runs only, where nothing is in the way but what the run is about, so that bounds can be tight.

use std::time::Duration;

use super::way::Ways;
use super::{Violation, lines, told, trouble};
use crate::log::Entry;
use crate::scenario::{Course, Scenario};

/// Judges an orderly run.
pub(super) fn judge(scenario: &Scenario, log: &[Entry]) -> Vec<Violation> {
    if scenario.course == Course::Mishaps {
        return Vec::new();
    }
    let ways = Ways::read(scenario, log);
    let mut violations = trouble::none_in_vain(&ways);
    if scenario.is_slow() {
        // A store, or an owner of the lines, that takes seconds keeps devices waiting; nothing tight can be asked of the service then.
        return violations;
    }
    match scenario.course {
        Course::Mishaps => {}
        Course::Storm => {
            violations.extend(lines::quota_used(&ways));
            violations.extend(lines::paced(&ways));
            violations.extend(lines::order(&ways, Duration::from_secs(1)));
            violations.extend(lines::shares(&ways));
            violations.extend(told::in_time(&ways));
            violations.extend(told::two_requests(&ways));
        }
        Course::Expedited => {
            violations.extend(lines::quota_used(&ways));
            violations.extend(lines::paced(&ways));
            violations.extend(lines::urgent_first(&ways));
            violations.extend(lines::urgent_share(&ways));
        }
        // A device whose outcome is unknown is looked up before it goes again.
        Course::Kills => violations.extend(lines::order(&ways, Duration::from_secs(10))),
        Course::Outage => {
            violations.extend(trouble::trials(&ways));
            violations.extend(trouble::relief(&ways));
            violations.extend(trouble::home_again(&ways));
        }
    }
    violations
}
