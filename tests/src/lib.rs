//! Harness for black-box tests: the real binary, real sockets, emulated DPS instances, and devices that share no code with the service.
//!
//! A test reads like a day of the service:
//!
//! ```no_run
//! # async fn day() {
//! use dps_proxy_tests::{TestDevice, TestDps, TestGateway};
//!
//! let dps = TestDps::start().await;
//! let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
//! let device = TestDevice::of_fleet("sn-1");
//! let hub = gateway.assigned(&device).await.json["assignedHub"].clone();
//! assert_eq!(hub, dps.hubs()[0]);
//! # }
//! ```
//!
//! - [`TestGateway`] writes a configuration and secrets into a directory of its own, starts `dps-proxy serve` on ports that the system
//!   chooses, and reads the addresses from the service's own log. It can be killed, terminated, restarted on its store and given
//!   another configuration while it runs.
//! - [`TestDps`] is an emulated DPS instance with TLS; its field `emulator` gives faults, journal and counters.
//! - [`TestDevice`] signs its tokens with `hmac` and `sha2` directly, after Microsoft's description.
//! - [`Reply`] is an answer with its status, headers and JSON; [`Reply::problem`] checks everything that holds for every problem document.
//! - [`load`] is a fleet of any size for measurements.
//! - [`raw`] sends bytes that no HTTP library would send; [`sse`] reads server-sent events.
//! - [`eventually`] waits for a condition, never for a time.
//!
//! Invariant: whatever a test leaves behind is killed by its own process ID when the handle is dropped, and a service that has
//! panicked fails the test that ran it.

pub mod binary;
pub mod config;
pub mod device;
pub mod dps;
pub mod gateway;
pub mod load;
pub mod raw;
pub mod recorder;
pub mod relay;
pub mod reply;
pub mod sse;
pub mod wait;

pub use config::ConfigText;
pub use device::TestDevice;
pub use dps::{TestDps, test_ca};
pub use gateway::{Ask, GatewayBuilder, Plane, TestGateway};
pub use recorder::{Recorded, Recorder};
pub use reply::Reply;
pub use wait::{PATIENCE, eventually, eventually_some};
