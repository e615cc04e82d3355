//! A strict emulator of the device API of the Azure IoT Hub Device Provisioning Service (DPS), for loopback.
//!
//! It speaks the HTTPS device API: shared access signatures, symmetric-key enrollments (groups and individual ones), hashed
//! and static allocation over linked hubs, reprovisioning, quotas and poll limits. It journals every request and can be told
//! to fail in many ways. Where the service's behaviour is not documented, the default is the stricter reading, and there is
//! a switch.
//!
//! Two ways to use it: [`Emulator::start`] serves real sockets; [`Dps`] is the same thing as a function of a request and a
//! time, for simulations.
//!
//! Invariants:
//! - [`Dps`] does no I/O, reads no clock and draws no randomness but from its seed: the same calls at the same times give the
//!   same answers, byte for byte.
//! - Nothing is shared with the clients that are tested against it, so that a common mistake cannot hide.
//! - What it does not know (TPM, X.509, certificate requests, unknown members, unknown settings) it refuses in plain words.
//!
//! Nothing here was verified against live Azure.

mod allocation;
mod call_kind;
mod config;
mod config_error;
mod device_api;
mod enrollment;
mod faults;
mod journal;
mod now;
mod operation;
mod sas;
mod seeded;
mod server;
mod throttle;
mod tls;
mod wire;

pub mod cli;

pub use call_kind::CallKind;
pub use config::{
    ConcurrentRegistration, Config, DEFAULT_ID_SCOPE, DeriveFrom, GroupConfig, HubConfig, IndividualConfig, PollLimit,
    Quota, QuotaShape, ReprovisionPolicy, StaySubstatus,
};
pub use config_error::ConfigError;
pub use device_api::{Answer, Dps, Reply, Request};
pub use faults::{ActiveFault, Fault, FaultAction, FaultFile, FaultId, FaultSpec, IdMatch, Occurrence};
pub use journal::{Answered, JournalEntry, RefusedCall, Stats};
pub use now::Now;
pub use operation::Registration;
pub use sas::{derive_device_key, device_token, sign};
pub use server::{Emulator, StartError};
pub use tls::{DEFAULT_NAMES, Leaf, TestCa, Tls, TlsError, install_crypto};
pub use wire::{MESSAGE_BYTES_MAX, Status, Substatus, timestamp};
