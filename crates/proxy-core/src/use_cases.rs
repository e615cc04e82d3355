//! What the gateway does for those who ask: devices, backends, operators.
//!
//! Each reads from top to bottom, and none knows another one's insides. They change records through [`records`](crate::records), give places
//! through [`joining`](crate::joining), and know lines by [`LineOwner`](crate::line_owner::LineOwner) alone; only `reload`, which brings
//! lines and settings into force in one moment, knows the owner itself.
//!
//! The parts: `provision` (a device asks where it belongs), `backend` (which hub is this device on), `operator` (what operators see and
//! do), `lists` (all devices, in pages), `import` (allow-lists), `reload` (new settings), `rejoin` (a known device comes into line without
//! asking).

pub mod backend;
pub mod import;
pub mod lists;
pub mod operator;
pub mod provision;
pub(crate) mod rejoin;
pub(crate) mod reload;
