//! Whether an instance that fails is left in peace, and its devices served.

use std::time::Duration;

use proxy_core::ids::InstanceName;

use super::Violation;
use super::way::Ways;
use crate::invariant::Invariant;
use crate::network::WINDOW;
use crate::scenario::Occasion;

/// Trials of an instance that is out of order for at most four minutes: the waits between them grow to half a minute and are spread evenly
/// from nothing, so that 9 are usual, and so many unheard of.
const TRIALS_MAX: usize = 25;

/// Of its quota an instance uses at least this part while devices wait that it could serve.
const USED_MIN: f64 = 0.5;

/// Steps by which a window is moved along.
const STEP: Duration = Duration::from_secs(10);

/// The instance that fails, since when, and until when.
fn outage<'a>(ways: &'a Ways<'_>) -> Option<(&'a InstanceName, Duration, Duration)> {
    let mut found = ways.scenario.occasions.iter().filter_map(|(at, occasion)| match occasion {
        Occasion::Outage { instance, .. } => Some((*instance, *at)),
        _ => None,
    });
    let ((instance, from), (_, until)) = (found.next()?, found.next()?);
    Some((&ways.scenario.instances[instance].name, from, until))
}

/// No more calls go to it than the circuit lets through.
pub(super) fn trials(ways: &Ways<'_>) -> Option<Violation> {
    let (instance, from, until) = outage(ways)?;
    let plan = ways.scenario.instances.iter().find(|plan| plan.name == *instance)?;
    let tried = ways.sent(instance, from, until).len();
    // Until the first of them fail, they leave at their pace.
    let unaware = ways.scenario.request_timeout.as_secs_f64() * f64::from(plan.quota) / WINDOW.as_secs_f64();
    let most = TRIALS_MAX + plan.burst as usize + ways.scenario.breaker_threshold as usize + unaware as usize;
    (tried > most).then(|| {
        let detail = format!("{tried} registrations left for {instance} while it was out of order, {most} may");
        Violation { invariant: Invariant::CircuitOpen, at: until, detail }
    })
}

/// Windows between two moments in which `instance` did little while devices waited for longer than what it could have done.
fn idle(ways: &Ways<'_>, instance: &InstanceName, from: Duration, until: Duration) -> Option<(Duration, usize, usize)> {
    let plan = ways.scenario.instances.iter().find(|plan| plan.name == *instance)?;
    let mut begins = from;
    while begins + WINDOW <= until {
        let ends = begins + WINDOW;
        let sent = ways.sent(instance, begins, ends).len();
        let waited = ways.devices.iter().filter(|way| way.waits_at(begins) && way.waits_at(ends)).count();
        if (sent as f64) < USED_MIN * f64::from(plan.quota) && waited > plan.quota as usize / 2 {
            return Some((ends, sent, waited));
        }
        begins += STEP;
    }
    None
}

/// While it fails, the other one serves its devices.
pub(super) fn relief(ways: &Ways<'_>) -> Option<Violation> {
    let (instance, from, until) = outage(ways)?;
    let other = ways.scenario.instances.iter().find(|plan| plan.name != *instance)?;
    let noticed = from + ways.scenario.request_timeout * 2 + ways.scenario.rebook_after + STEP;
    let (at, sent, waited) = idle(ways, &other.name, noticed, until)?;
    let detail = format!(
        "{instance} failed, and {waited} devices waited for a minute in which {sent} registrations left for {}",
        other.name
    );
    Some(Violation { invariant: Invariant::SoonerElsewhere, at, detail })
}

/// When it works again, it does its part.
pub(super) fn home_again(ways: &Ways<'_>) -> Option<Violation> {
    let (instance, _, until) = outage(ways)?;
    let last = ways.devices.iter().filter_map(|way| way.left()).max()?;
    let (at, sent, waited) = idle(ways, instance, until + ways.scenario.backoff_max + STEP, last)?;
    let detail = format!(
        "{instance} worked again, and {waited} devices waited for a minute in which {sent} registrations left for it"
    );
    Some(Violation { invariant: Invariant::SoonerElsewhere, at, detail })
}

/// A device is registered again only after an outcome that nobody knows, or that was none.
pub(super) fn none_in_vain(ways: &Ways<'_>) -> Vec<Violation> {
    let slow = ways.scenario.is_slow();
    let late = if slow { Duration::from_secs(20) } else { Duration::ZERO };
    let written = ways.scenario.sync_every * 2 + Duration::from_millis(5) + late;
    let mut violations = Vec::new();
    // Whose end could not be asked for meanwhile is registered again when it has taken too long.
    let outage = outage(ways).map_or((Duration::MAX, Duration::ZERO), |(_, from, until)| (from, until));
    for (device, way) in ways.devices.iter().enumerate() {
        for pair in way.sends.windows(2) {
            let (first, second) = (pair[0].at, pair[1].at);
            let between = way.ended.iter().filter(|ended| ended.sent >= first && ended.at <= second);
            let (mut heard, mut in_doubt) = (false, false);
            for ended in between {
                heard |= ended.sent == first;
                in_doubt |= ended.status.is_none_or(|status| status >= 429);
                // What was heard may not have been on disk yet.
                in_doubt |= ways.ends.iter().any(|end| (ended.at..=ended.at + written).contains(end));
            }
            in_doubt |= first < outage.1 && outage.0 < second;
            if heard && !in_doubt {
                let detail = format!("device {device} was registered again although the first outcome was clear");
                violations.push(Violation { invariant: Invariant::NoneInVain, at: second, detail });
            }
        }
    }
    violations
}
