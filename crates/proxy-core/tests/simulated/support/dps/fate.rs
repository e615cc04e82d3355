//! What becomes of a call: on its way, at DPS, and on the way back.

use std::time::Duration;

use super::MAX_DELAY;
use crate::support::clock::Dice;

/// What DPS does with a call that arrived.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    /// Its job.
    Serve,
    /// An error with DPS's own code in it.
    Error { http_status: u16, error_code: Option<i64>, retry_after: Option<u64> },
    /// Its job, and an answer that cannot be read.
    Unreadable,
    /// A web page in DPS's stead, which never hears of the call.
    WebPage,
    /// Nothing there, said without a word.
    NotThere,
    /// Accepts the registration, which then ends as failed with this code.
    Fail(i64),
    /// Accepts the registration, which then stays `assigning`.
    Stuck,
    /// Ends the registration as disabled.
    Disabled,
}

/// The fate of one call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fate {
    Answered {
        there: Duration,
        back: Duration,
        reply: Reply,
    },
    /// The caller gives up after `gives_up`; the call arrives that long after it was sent, if at all.
    Lost {
        gives_up: Duration,
        arrives: Option<Duration>,
    },
    NeverLeft,
    /// The caller panics before anything leaves.
    Dies,
}

impl Fate {
    pub(crate) fn reply(reply: Reply) -> Self {
        Self::Answered { there: Duration::from_millis(20), back: Duration::from_millis(20), reply }
    }

    pub(crate) fn error(http_status: u16, error_code: Option<i64>) -> Self {
        Self::reply(Reply::Error { http_status, error_code, retry_after: None })
    }

    pub(crate) fn throttled(retry_after: Option<u64>) -> Self {
        Self::reply(Reply::Error { http_status: 429, error_code: Some(429_001), retry_after })
    }

    pub(crate) fn lost_before_arrival() -> Self {
        Self::Lost { gives_up: Duration::from_secs(5), arrives: None }
    }

    pub(crate) fn lost_after_commit() -> Self {
        Self::Lost { gives_up: Duration::from_secs(5), arrives: Some(Duration::from_millis(200)) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Register,
    Poll,
    Lookup,
}

/// How calls fare that no script names.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    pub(crate) there: (u64, u64),
    pub(crate) back: (u64, u64),
    /// Out of 1000 calls.
    pub(crate) lost: u64,
    pub(crate) never_left: u64,
    pub(crate) slow: u64,
    pub(crate) throttled: u64,
    pub(crate) failing: u64,
    pub(crate) unreadable: u64,
}

impl Weather {
    /// Every answer takes `millis`, and nothing goes wrong.
    pub(crate) fn fair(millis: u64) -> Self {
        let half = millis / 2;
        Self {
            there: (half, half),
            back: (millis - half, millis - half),
            lost: 0,
            never_left: 0,
            slow: 0,
            throttled: 0,
            failing: 0,
            unreadable: 0,
        }
    }

    pub(crate) fn foul() -> Self {
        Self {
            there: (0, 900),
            back: (0, 900),
            lost: 40,
            never_left: 20,
            slow: 60,
            throttled: 10,
            failing: 20,
            unreadable: 10,
        }
    }

    pub(super) fn fate(&self, dice: &mut Dice) -> Fate {
        let roll = dice.below(1000);
        let mut bound = 0;
        let mut falls = |share: u64| {
            bound += share;
            roll < bound
        };
        if falls(self.lost) {
            let gives_up = dice.millis(10, 20_000);
            let latest = u64::try_from((gives_up + MAX_DELAY).as_millis()).unwrap();
            let arrives = dice.chance(700).then(|| dice.millis(0, latest));
            return Fate::Lost { gives_up, arrives };
        }
        if falls(self.never_left) {
            return Fate::NeverLeft;
        }
        let (mut there, mut back) = (dice.millis(self.there.0, self.there.1), dice.millis(self.back.0, self.back.1));
        if falls(self.slow) {
            there = dice.millis(0, 15_000);
            back = dice.millis(0, 15_000);
        }
        let reply = if falls(self.throttled) {
            Reply::Error { http_status: 429, error_code: None, retry_after: dice.chance(500).then_some(3) }
        } else if falls(self.failing) {
            Reply::Error { http_status: 500, error_code: Some(500_001), retry_after: None }
        } else if falls(self.unreadable) {
            Reply::Unreadable
        } else {
            Reply::Serve
        };
        Fate::Answered { there, back, reply }
    }
}
