//! The names of the gateway's tasks, as logs and metrics tell them.

/// Serves the line of one instance.
pub(crate) const DISPATCHER: &str = "dispatcher";
/// Carries one registration out.
pub(crate) const REGISTRATION: &str = "registration";
/// Polls a registration that an earlier process began.
pub(crate) const POLL: &str = "poll";
/// A write that goes on whatever becomes of its request.
pub(crate) const COMMIT: &str = "commit";
/// Keeps what DPS let us know for the next process.
pub(crate) const NOTES: &str = "notes";
/// Books devices on other instances while theirs fails.
pub(crate) const RELIEF: &str = "relief";
/// Looks how the sends of earlier owners end.
pub(crate) const ORPHANS: &str = "orphans";
/// Keeps an instance's clock known.
pub(crate) const CLOCK: &str = "clock";
/// Keeps the change feed within its retention.
pub(crate) const FEED_PRUNING: &str = "feed-pruning";
/// Reads a page of all devices.
pub(crate) const LIST: &str = "list";
/// Marks all assignments to a hub.
pub(crate) const HUB_INVALIDATION: &str = "hub-invalidation";
/// Puts lines of an allow-list into the store.
pub(crate) const IMPORT: &str = "import";
/// Notices what becomes of the store.
pub(crate) const STORE_WATCH: &str = "store-watch";
