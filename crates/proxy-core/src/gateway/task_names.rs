//! The names of the gateway's tasks, as logs and metrics tell them.

/// Serves the line of one instance.
pub(super) const DISPATCHER: &str = "dispatcher";
/// Carries one registration out.
pub(super) const REGISTRATION: &str = "registration";
/// Polls a registration that an earlier process began.
pub(super) const POLL: &str = "poll";
/// A write that goes on whatever becomes of its request.
pub(super) const COMMIT: &str = "commit";
/// Keeps what DPS let us know for the next process.
pub(super) const NOTES: &str = "notes";
/// Books devices on other instances while theirs fails.
pub(super) const RELIEF: &str = "relief";
/// Keeps an instance's clock known.
pub(super) const CLOCK: &str = "clock";
/// Keeps the change feed within its retention.
pub(super) const FEED_PRUNING: &str = "feed-pruning";
/// Reads a page of all devices.
pub(super) const LIST: &str = "list";
/// Marks all assignments to a hub.
pub(super) const HUB_INVALIDATION: &str = "hub-invalidation";
/// Puts lines of an allow-list into the store.
pub(super) const IMPORT: &str = "import";
/// Notices what becomes of the store.
pub(super) const STORE_WATCH: &str = "store-watch";
