//! The epochs of a lease. See [`ownership`](crate::ownership).

use serde::{Deserialize, Serialize};

/// How often the lease has changed hands. A write that names an earlier epoch than the one in force is refused by the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);
