//! Randomness, handed in: a generator named after its algorithm, so that a seed replays for ever.
#![expect(clippy::disallowed_types, reason = "here the machine's randomness is read for a seed, and nowhere else")]

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{OsRng, RngCore as _, SeedableRng as _, TryRngCore as _};

/// A stream of random numbers. Spreads waits; never makes keys.
#[derive(Debug, Clone)]
pub struct Entropy(ChaCha8Rng);

impl Entropy {
    /// The stream of `seed`.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A stream seeded by the operating system: no other is like it.
    ///
    /// # Panics
    /// If the operating system has no randomness to give: then neither TLS nor anything else would work.
    #[must_use]
    pub fn from_system() -> Self {
        let mut seed = [0; 32];
        OsRng.try_fill_bytes(&mut seed).expect("the operating system gives random numbers");
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// The second stream of the same seed, which has nothing in common with this one; always the same. Takes nothing from this one.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut second = self.0.clone();
        second.set_stream(1);
        Self(second)
    }

    /// A stream that is seeded by this one, which goes on behind what that took: another one each time.
    #[must_use]
    pub fn split(&mut self) -> Self {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// A uniform number.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A uniform duration from zero to `max`, inclusive.
    pub fn up_to(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.next_u64() % nanos.saturating_add(1).max(1))
    }
}

/// FNV-1a with a final mix: stable for ever, good enough to spread names. Not for anything an attacker profits from.
#[must_use]
pub fn hash64(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
