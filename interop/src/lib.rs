//! Nothing of its own: `tests/` holds proxy-core's signer against azure_iot_sdk's, `examples/device.rs` is a device that asks a
//! running dps-proxy for its hub and connects to it with that SDK. Run by `.ci/interop-rust`.
