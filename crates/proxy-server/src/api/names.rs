//! Names and moments, as they are written: each with its grammar.

use std::fmt;

use proxy_core::ids;
use rate_control::time::{StoredMoment, WallTime};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// A name that the core has parsed.
macro_rules! name {
    ($(#[$attribute:meta])* $name:ident) => {
        #[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
        $(#[$attribute])*
        pub struct $name(ids::$name);

        impl From<ids::$name> for $name {
            fn from(name: ids::$name) -> Self {
                Self(name)
            }
        }

        impl From<&ids::$name> for $name {
            fn from(name: &ids::$name) -> Self {
                Self(name.clone())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.0.as_str())
            }
        }
    };
}

name!(
    /// What DPS knows a device by: the hardware ID in lower case.
    #[schema(
        value_type = String,
        min_length = 1,
        max_length = 128,
        pattern = "^[a-z0-9]([a-z0-9._:-]{0,126}[a-z0-9-])?$",
        examples("sn-007-888-abc")
    )]
    RegistrationId
);

name!(
    /// What its hub knows a device by. Case-sensitive, and given by DPS; for devices of an enrollment group the registration ID.
    #[schema(
        value_type = String,
        min_length = 1,
        max_length = 128,
        pattern = "^[!-~]{1,128}$",
        examples("sn-007-888-abc")
    )]
    DeviceId
);

name!(
    /// Host name of an IoT hub, in lower case.
    #[schema(
        value_type = String,
        min_length = 1,
        max_length = 253,
        pattern = "^[a-z0-9.-]{1,253}$",
        examples("hub-a.azure-devices.net")
    )]
    HubName
);

name!(
    /// Our name of one DPS instance, as configured.
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,62}$", examples("eu-1"))]
    InstanceName
);

name!(
    /// Owner of devices, as configured.
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,62}$", examples("default"))]
    TenantName
);

name!(
    /// Our name of one logical enrollment, as configured.
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,62}$", examples("fleet"))]
    EnrollmentName
);

name!(
    /// ID scope of one DPS instance.
    #[schema(value_type = String, pattern = "^[0-9A-Za-z]{1,64}$", examples("0ne000AB12C"))]
    IdScope
);

name!(
    /// DPS's name for one running registration.
    #[schema(value_type = String, pattern = "^[!-~]{1,256}$")]
    OperationId
);

/// A device's hardware ID, in whatever case; in lower case it is the registration ID.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(
    value_type = String,
    min_length = 1,
    max_length = 128,
    pattern = "^[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9-])?$",
    examples("SN-007-888-abc")
)]
pub struct HardwareId(pub String);

/// A host name, in whatever case and with or without the dot that may end it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(
    value_type = String,
    min_length = 1,
    max_length = 253,
    pattern = "^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*[.]?$",
    examples("hub-a.azure-devices.net")
)]
pub struct HostName(pub String);

/// A moment in UTC, to the millisecond, by the wall clock (RFC 3339).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, format = DateTime, examples("2026-11-24T04:00:00.000Z"))]
pub struct Moment(WallTime);

impl From<WallTime> for Moment {
    fn from(moment: WallTime) -> Self {
        Self(moment)
    }
}

/// Its wall time alone: what else is stored is ours.
impl From<StoredMoment> for Moment {
    fn from(moment: StoredMoment) -> Self {
        Self(moment.wall())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_without_what_only_this_machine_understands() {
        let written = |moment: Moment| serde_json::to_string(&moment).unwrap();
        let wall = WallTime::from_unix_millis(1_795_521_600_000);
        let stored: StoredMoment =
            serde_json::from_str("\"2026-11-24T12:00:00.000Z[_boot=0123456789abcdef-7]\"").unwrap();
        assert_eq!(written(wall.into()), "\"2026-11-24T12:00:00.000Z\"");
        assert_eq!(written(stored.into()), written(wall.into()));
    }
}
