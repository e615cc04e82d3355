//! Devices, written after Microsoft's description of shared access signatures and sharing no code with the service.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;

/// Primary key of the enrollment group `fleet` at every [`TestDps`](crate::TestDps).
pub const FLEET_KEY: &str = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";

/// The host name that devices call the gateway by, and sign for.
pub const AUDIENCE: &str = "gateway.test";

fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

/// The key of one device of an enrollment group.
///
/// # Panics
/// If the group key is not base64.
#[must_use]
pub fn derive_key(group_key_base64: &str, id: &str) -> Vec<u8> {
    hmac_sha256(&STANDARD.decode(group_key_base64).expect("a base64 key"), id.as_bytes())
}

/// Seconds since 1970, `ahead` from now.
///
/// # Panics
/// If the clock stands before 1970.
#[must_use]
pub fn unix_seconds_in(ahead: Duration) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970") + ahead;
    i64::try_from(now.as_secs()).expect("a year that fits")
}

/// A device that has its own symmetric key.
#[derive(Debug, Clone)]
pub struct TestDevice {
    /// What it sends, in its own spelling.
    pub hardware_id: String,
    /// Its key.
    pub key: Vec<u8>,
}

impl TestDevice {
    /// A device of the group `fleet`, with the key derived from its lower-case ID.
    #[must_use]
    pub fn of_fleet(hardware_id: &str) -> Self {
        Self::of_group(FLEET_KEY, hardware_id)
    }

    /// A device of a group, with the key derived from its lower-case ID.
    #[must_use]
    pub fn of_group(group_key_base64: &str, hardware_id: &str) -> Self {
        Self { hardware_id: hardware_id.to_owned(), key: derive_key(group_key_base64, &hardware_id.to_lowercase()) }
    }

    /// A device with a key of its own.
    ///
    /// # Panics
    /// If the key is not base64.
    #[must_use]
    pub fn with_key(key_base64: &str, hardware_id: &str) -> Self {
        Self { hardware_id: hardware_id.to_owned(), key: STANDARD.decode(key_base64).expect("a base64 key") }
    }

    /// `hardwareId` in lower case.
    #[must_use]
    pub fn registration_id(&self) -> String {
        self.hardware_id.to_lowercase()
    }

    /// An `Authorization` value for `audience` that is valid until `expiry` (Unix seconds).
    #[must_use]
    pub fn credential(&self, audience: &str, expiry: i64) -> String {
        let id = utf8_percent_encode(&self.registration_id(), NON_ALPHANUMERIC).to_string();
        self.credential_over(&format!("{audience}%2Fregistrations%2F{id}"), expiry)
    }

    /// The same over an `sr` text of any spelling.
    #[must_use]
    pub fn credential_over(&self, sr: &str, expiry: i64) -> String {
        self.credential_with_se(sr, &expiry.to_string())
    }

    /// The same with an `se` of any spelling.
    #[must_use]
    pub fn credential_with_se(&self, sr: &str, se: &str) -> String {
        format!("SharedAccessSignature sr={sr}&sig={}&se={se}", self.signature(sr, se))
    }

    /// `sig` for an `sr` and an `se` text, percent-encoded.
    #[must_use]
    pub fn signature(&self, sr: &str, expiry: impl std::fmt::Display) -> String {
        let signature = STANDARD.encode(hmac_sha256(&self.key, format!("{sr}\n{expiry}").as_bytes()));
        utf8_percent_encode(&signature, NON_ALPHANUMERIC).to_string()
    }

    /// What it usually presents: its token for [`AUDIENCE`], valid for an hour.
    #[must_use]
    pub fn usual_credential(&self) -> String {
        self.credential(AUDIENCE, unix_seconds_in(Duration::from_hours(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_are_those_of_the_documentation() {
        let key = derive_key(FLEET_KEY, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6");
        assert_eq!(STANDARD.encode(key), "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=");
        let device = TestDevice::of_group("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "device-0001");
        let expected = "J9TaGgz5PHy6RKWwa7IBooOI90vHSc9deCMdhN%2B40OM%3D";
        assert_eq!(device.signature("0ne000AB12C%2Fregistrations%2Fdevice-0001", 1_900_000_000), expected);
    }
}
