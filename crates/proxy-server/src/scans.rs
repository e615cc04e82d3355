//! One reading of all records at a time per token: pages of lists, and the marking of a whole hub.
//!
//! Invariant: whoever holds a token costs the store one such reading at most, however many requests it sends.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::plane::Plane;

/// Plane and name of the token.
type Token = (&'static str, String);

/// The token has a reading under way already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderWay;

/// The tokens that have a reading under way.
#[derive(Debug, Clone, Default)]
pub struct Scans(Arc<Mutex<BTreeSet<Token>>>);

impl Scans {
    /// Begins a reading for the token `name`; it is over when what this returns is dropped.
    ///
    /// # Errors
    /// If the token has one under way.
    pub fn begin(&self, plane: Plane, name: &str) -> Result<Scan, UnderWay> {
        let token = (plane.as_str(), name.to_owned());
        if self.0.lock().insert(token.clone()) {
            return Ok(Scan { scans: self.clone(), token });
        }
        Err(UnderWay)
    }
}

/// A reading under way.
#[derive(Debug)]
#[must_use]
pub struct Scan {
    scans: Scans,
    token: Token,
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.scans.0.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_one_at_a_time_and_tokens_of_one_name_on_two_planes_are_two() {
        let scans = Scans::default();
        let first = scans.begin(Plane::Backend, "a").unwrap();
        assert_eq!(scans.begin(Plane::Backend, "a").unwrap_err(), UnderWay);
        let _others = [scans.begin(Plane::Backend, "b").unwrap(), scans.begin(Plane::Operator, "a").unwrap()];
        drop(first);
        let _again = scans.begin(Plane::Backend, "a").unwrap();
    }
}
