//! What a backend's writer answers, whatever it was asked: so that one queue keeps the order of all that is written.

use super::lease::{Lease, LeaseError};
use super::{CommitError, Sequence};

/// What came of something that was decided. It is told once what it builds on is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The numbers that a commit was given.
    Numbers(Vec<Sequence>),
    /// A lease as it is now.
    Lease(Lease),
    /// A lease was not what was expected, but this.
    Lost(Option<Lease>),
}

/// An answer, or why there is none.
pub(super) type Outcome = Result<Answer, CommitError>;

/// The outcome of a commit, for whoever asked for one.
pub(super) fn of_commit(outcome: Outcome) -> Result<Vec<Sequence>, CommitError> {
    outcome.map(|answer| match answer {
        Answer::Numbers(numbers) => numbers,
        Answer::Lease(_) | Answer::Lost(_) => Vec::new(),
    })
}

/// The outcome of a lease's change, for whoever asked for one.
pub(super) fn of_lease(outcome: Outcome) -> Result<Lease, LeaseError> {
    match outcome {
        Ok(Answer::Lease(lease)) => Ok(lease),
        Ok(Answer::Lost(now)) => Err(LeaseError::Lost { now }),
        Ok(Answer::Numbers(_)) => Err(LeaseError::Refused("it was answered as a commit".to_owned())),
        Err(CommitError::Refused(why)) => Err(LeaseError::Refused(why)),
        Err(CommitError::ReadOnly(why) | CommitError::Failed(why)) => Err(LeaseError::Unavailable(why)),
        Err(error @ (CommitError::Busy | CommitError::Conflict { .. } | CommitError::Fenced)) => {
            Err(LeaseError::Unavailable(error.to_string()))
        }
    }
}
