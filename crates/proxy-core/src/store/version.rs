//! What names a commit.

use std::fmt;

use parking_lot::Mutex;

use super::{Commit, Write};
use rate_control::entropy::Entropy;

/// Names a commit: 16 bytes that its writer has drawn at random and never uses again. See [`Store`](super::Store).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub [u8; 16]);

impl Version {
    /// A new one.
    #[must_use]
    pub fn random(entropy: &mut Entropy) -> Self {
        Self((u128::from(entropy.next_u64()) << 64 | u128::from(entropy.next_u64())).to_be_bytes())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Names the commits of one process.
#[derive(Debug)]
pub struct Versions(Mutex<Entropy>);

impl Versions {
    /// Draws versions from `entropy`, of which nobody else may have the same stream.
    #[must_use]
    pub const fn new(entropy: Entropy) -> Self {
        Self(Mutex::new(entropy))
    }

    /// A version that was never used.
    #[must_use]
    pub fn draw(&self) -> Version {
        Version::random(&mut self.0.lock())
    }

    /// A commit of a new version, without a fence.
    #[must_use]
    pub fn commit(&self, writes: Vec<Write>) -> Commit {
        Commit { version: self.draw(), writes, fence: None }
    }
}
