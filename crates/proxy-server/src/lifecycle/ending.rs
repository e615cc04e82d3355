//! How the service ends: the last line of its log and its exit status, true to what is on disk.
//!
//! What was acknowledged is on disk, because it was acknowledged afterwards. That can turn out wrong in one way: the store's directory
//! was removed or replaced. What DPS said last may be in memory only, if the store took no writes: the next process asks DPS anew.

use std::fmt::Write as _;

use proxy_core::base::Stopped;

/// The last line; in the error case the process ends with a failure.
///
/// # Errors
/// If something was left undone that an operator has to know of: a fault ended the process, the store failed for good, or what DPS said
/// is not on disk.
pub(super) fn last_line(fault: Option<&str>, stopped: &Stopped) -> Result<String, String> {
    let Stopped { left_with_dps, unwritten, trouble } = stopped;
    let mut line = "stopped; ".to_owned();
    match trouble {
        None if *unwritten == 0 => line.push_str("every place and every answer is on disk"),
        None => line.push_str("every place is on disk"),
        Some(trouble) => {
            let on_disk = if trouble.lasting {
                "the store failed"
            } else {
                "everything that was acknowledged is on disk; the store took no writes"
            };
            let _ = write!(
                line,
                "{on_disk} since {} ({} commits refused): {}",
                trouble.since, trouble.refused, trouble.why
            );
        }
    }
    if *unwritten > 0 {
        let _ = write!(
            line,
            "; answers of DPS about {unwritten} devices could not be written: the next start asks DPS again"
        );
    }
    if *left_with_dps > 0 {
        let _ = write!(
            line,
            "; DPS is still processing {left_with_dps} registrations; the next start continues to poll them"
        );
    }
    if let Some(fault) = fault {
        let _ = write!(line, "; it stopped because {fault}");
    }
    let sound = fault.is_none() && *unwritten == 0 && !trouble.as_ref().is_some_and(|trouble| trouble.lasting);
    if sound { Ok(line) } else { Err(line) }
}

#[cfg(test)]
mod tests {
    use proxy_core::store::watched::Trouble;
    use rate_control::time::WallTime;

    use super::*;

    fn stopped() -> Stopped {
        Stopped { left_with_dps: 0, unwritten: 0, trouble: None }
    }

    fn trouble(lasting: bool) -> Option<Trouble> {
        Some(Trouble { since: WallTime::from_unix_millis(0), why: "the disk is full".to_owned(), lasting, refused: 7 })
    }

    #[test]
    fn only_what_is_on_disk_is_said_to_be() {
        let line = last_line(None, &stopped()).unwrap();
        assert_eq!(line, "stopped; every place and every answer is on disk");
        let line = last_line(None, &Stopped { left_with_dps: 3, ..stopped() }).unwrap();
        assert!(line.contains("still processing 3"), "{line}");

        let line = last_line(None, &Stopped { trouble: trouble(false), ..stopped() }).unwrap();
        assert!(line.contains("was acknowledged is on disk") && line.contains("since 1970-01-01"), "{line}");
        assert!(line.contains("7 commits") && line.contains("the disk is full"), "{line}");

        let line = last_line(None, &Stopped { unwritten: 2, trouble: trouble(false), ..stopped() }).unwrap_err();
        assert!(line.contains("about 2 devices could not be written"), "{line}");
        let line = last_line(None, &Stopped { trouble: trouble(true), ..stopped() }).unwrap_err();
        assert!(line.contains("the store failed") && !line.contains("is on disk"), "{line}");
    }

    #[test]
    fn a_fault_of_ours_is_told_and_is_a_failure() {
        let line = last_line(Some("the dispatcher of instance eu-1 panicked twice"), &stopped()).unwrap_err();
        assert!(line.contains("eu-1 panicked twice"), "{line}");
    }
}
