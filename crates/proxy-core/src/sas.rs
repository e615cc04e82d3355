//! Shared access signatures and key derivation, as DPS and IoT Hub define them.
//!
//! Invariants:
//! - A signature is checked over the `sr` text exactly as it was received. SDKs encode it in six different ways and every one
//!   of them is accepted by the real service, so a verifier that re-encodes it refuses real devices.
//! - Comparison is constant time. Nothing here prints a signature or a key.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;

use crate::ids::{DeviceId, HubName};
use crate::secret::SymmetricKey;

/// What must be escaped in one path segment or query value: everything but RFC 3986's unreserved characters.
pub(crate) const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Longest credential that is looked at, in bytes.
pub const CREDENTIAL_BYTES_MAX: usize = 2048;

fn hmac_sha256(key: &SymmetricKey, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// The key of one device of a symmetric-key enrollment group: `HMAC-SHA256(group key, id)`.
///
/// The derivation is case-sensitive; DPS itself is asked with the registration ID (lower case).
/// Source: "How to provision devices using symmetric key enrollment groups" (Microsoft).
#[must_use]
pub fn derive_device_key(group_key: &SymmetricKey, id: &str) -> SymmetricKey {
    SymmetricKey::from_digest(hmac_sha256(group_key, &[id.as_bytes()]).finalize().into_bytes().into())
}

/// `sr` of a device registration token, in the spelling most SDKs send: `{scope}%2Fregistrations%2F{id}`.
pub(crate) fn resource(id_scope: &str, id: &str) -> String {
    format!("{id_scope}%2Fregistrations%2F{}", utf8_percent_encode(id, UNRESERVED))
}

/// A SAS token over `resource`, which must already be percent-encoded. `key_name` becomes `skn`.
#[must_use]
pub fn device_token(key: &SymmetricKey, resource: &str, expiry_unix_seconds: i64, key_name: Option<&str>) -> String {
    let expiry = expiry_unix_seconds.to_string();
    let signature = hmac_sha256(key, &[resource.as_bytes(), b"\n", expiry.as_bytes()]).finalize().into_bytes();
    let signature = STANDARD.encode(signature);
    let signature = utf8_percent_encode(&signature, UNRESERVED);
    let key_name = key_name.map(|name| format!("&skn={name}")).unwrap_or_default();
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{key_name}")
}

/// A token with which the device connects to its assigned hub.
#[must_use]
pub fn hub_token(key: &SymmetricKey, hub: &HubName, device_id: &DeviceId, expiry_unix_seconds: i64) -> String {
    let resource = format!("{}%2Fdevices%2F{}", hub, utf8_percent_encode(device_id.as_str(), UNRESERVED));
    device_token(key, &resource, expiry_unix_seconds, None)
}

/// A SAS token as received, taken apart but not believed.
#[derive(Clone, PartialEq, Eq)]
pub struct SasToken<'a> {
    resource_raw: &'a str,
    expiry_raw: &'a str,
    signature: [u8; 32],
    /// The audience in front of `/registrations/`, decoded and folded to lower case.
    pub audience: String,
    /// The registration ID that the token is for, decoded and folded to lower case.
    pub registration_id: String,
    /// `se`: Unix seconds at which the token ends.
    pub expiry_unix_seconds: i64,
}

impl fmt::Debug for SasToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SasToken").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// The text is not a SAS token for a registration: which part of it is wrong, in words that repeat nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedToken(pub &'static str);

const SHAPE: MalformedToken = MalformedToken("the token is not of the form sr=…&sig=…&se=…");
const INCOMPLETE: MalformedToken = MalformedToken("the token lacks sr, sig or se");
const DOUBLED: MalformedToken = MalformedToken("the token has sr, sig or se twice");
const RESOURCE: MalformedToken = MalformedToken("the token's sr is not {audience}/registrations/{registrationId}");
const SIGNATURE: MalformedToken = MalformedToken("the token's sig is not the base64 of 32 bytes");
const EXPIRY: MalformedToken = MalformedToken("the token's se is not a number of seconds");

impl<'a> SasToken<'a> {
    /// Takes `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]` apart: parameters in any order, `skn` ignored, hexadecimal
    /// escapes of either case, a raw `+` in `sig` kept as what it is, and a fraction of `se` signed but not counted.
    ///
    /// # Errors
    /// [`MalformedToken`] if a part is missing, doubled or not of its form, or if the text exceeds [`CREDENTIAL_BYTES_MAX`].
    pub fn parse(text: &'a str) -> Result<Self, MalformedToken> {
        if text.len() > CREDENTIAL_BYTES_MAX {
            return Err(MalformedToken("the credential is longer than 2,048 bytes"));
        }
        let (scheme, parameters) = text.split_once(' ').ok_or(SHAPE)?;
        if !scheme.eq_ignore_ascii_case("SharedAccessSignature") {
            return Err(SHAPE);
        }
        let (mut resource, mut signature, mut expiry) = (None, None, None);
        for parameter in parameters.trim().split('&') {
            let (name, value) = parameter.split_once('=').ok_or(SHAPE)?;
            let slot = match name {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(DOUBLED);
            }
        }
        let (Some(resource_raw), Some(signature), Some(expiry_raw)) = (resource, signature, expiry) else {
            return Err(INCOMPLETE);
        };
        let decoded = percent_decode_str(resource_raw).decode_utf8().map_err(|_| RESOURCE)?.to_ascii_lowercase();
        let (audience, registration_id) = decoded.split_once("/registrations/").ok_or(RESOURCE)?;
        let signature = percent_decode_str(signature).decode_utf8().map_err(|_| SIGNATURE)?;
        let signature = STANDARD.decode(signature.as_ref()).map_err(|_| SIGNATURE)?;
        Ok(Self {
            resource_raw,
            expiry_raw,
            signature: signature.try_into().map_err(|_| SIGNATURE)?,
            audience: audience.to_owned(),
            registration_id: registration_id.to_owned(),
            expiry_unix_seconds: expiry_seconds(expiry_raw)?,
        })
    }

    /// Whether `key` signed this token. Constant time.
    #[must_use]
    pub fn is_signed_by(&self, key: &SymmetricKey) -> bool {
        hmac_sha256(key, &[self.resource_raw.as_bytes(), b"\n", self.expiry_raw.as_bytes()])
            .verify_slice(&self.signature)
            .is_ok()
    }
}

/// Whole seconds of `se`, of which a fraction is cut off; more than fits is as good as never.
fn expiry_seconds(text: &str) -> Result<i64, MalformedToken> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(whole) && digits(fraction) { Ok(whole.parse().unwrap_or(i64::MAX)) } else { Err(EXPIRY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP_KEY: &str = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
    const GROUP_KEY_2: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const K1: &str = "OycyYByY1ii3rpTZvjHN0Jpe7PEs3qYqTaN5QaJZg2I=";
    const K2: &str = "yZrDIknV7WCjZ7YWlnhoAZvT6j64n2qvIWI2on7yvPU=";

    fn key(text: &str) -> SymmetricKey {
        SymmetricKey::from_base64(text).unwrap()
    }

    #[test]
    fn derived_keys_match_the_published_and_computed_vectors() {
        for (group, id, expected) in [
            (GROUP_KEY, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="),
            (GROUP_KEY, "SN-007-888-ABC-MAC-A1-B2-C3-D4-E5-F6", "9GWVnYuoOLXlHc346XjhLRb9pKgIOrKSwxDRSOgnvXo="),
            (GROUP_KEY, "device-0001", "PZgkWWi/IxFP5nGJyhVmEYW+IkXpXvqVqWIptBc4HmU="),
            (GROUP_KEY, "Plant_7.line:3-a", "UOnAiz7uRHyFNYE8AnBKYvW3BaO+Vn4Jc23h3wGDqZs="),
            (GROUP_KEY, "plant_7.line:3-a", "tNDVtQeyy/T8O3IumVV6U4Zd7pwyIrc1/Xfw83XPvVY="),
            (GROUP_KEY_2, "device-0001", K1),
            (GROUP_KEY_2, "gw01:sensor_9.x-a", K2),
        ] {
            assert_eq!(derive_device_key(&key(group), id).expose_base64(), expected, "{id}");
        }
    }

    #[test]
    fn signatures_match_the_vectors_in_every_spelling_of_sr() {
        for (device_key, resource, signature) in [
            (K1, "0ne000AB12C/registrations/device-0001", "Ikhw08L+bNiR/hTtslMhJ1b+/045IkdB0uJUGFzb3jg="),
            (K1, "0ne000AB12C%2Fregistrations%2Fdevice-0001", "J9TaGgz5PHy6RKWwa7IBooOI90vHSc9deCMdhN+40OM="),
            (K1, "0ne000AB12C%2fregistrations%2fdevice-0001", "rPiEP0cB0eOuiQ0ez+TkeRZj4zu2DlCxhkAkT45M1l4="),
            (K1, "0ne000ab12c%2Fregistrations%2Fdevice-0001", "UoaY6jHYcGK2Ax8rPf87TEh+y9EK6YdyBgGO4AqMTno="),
            (K1, "0ne000ab12c%2fregistrations%2fdevice-0001", "96jhczdan9jXItlTlG1N9yd1JgubZUuUhRiNRxkCyqc="),
            (K2, "0ne000AB12C/registrations/gw01:sensor_9.x-a", "b6smD2WlPEsy006YWQqDmL20mnniVQryLDYpMahMLvI="),
            (K2, "0ne000AB12C%2Fregistrations%2Fgw01%3Asensor_9.x-a", "I8xiFvg2MLKMg74HjZ+GaK0XWjnV4HCg9Rbvdz7Xrns="),
            (K2, "0ne000AB12C%2fregistrations%2fgw01%3Asensor_9.x-a", "TbQaa7MlrGmxBDLQLhXuoHo20wuJjdCYFt2iOp4gDvQ="),
            (K2, "0ne000AB12C%2fregistrations%2fgw01%3asensor_9.x-a", "b1fXfKmHSYcjlUsHo5wwBvY7ftpDdgi8J93jWC+dzJs="),
            (K2, "0ne000ab12c%2Fregistrations%2Fgw01%3Asensor_9.x-a", "ptdBrYHJiTa3vxotpv7GcWgXueLFhxkE/SkqaKYkfuQ="),
            (K2, "0ne000ab12c%2fregistrations%2fgw01%3asensor_9.x-a", "cuRnehgzIykxjJjNGEjYnV9RQvnCxign1A/5Y/Aki94="),
        ] {
            let raw = format!("SharedAccessSignature se=1900000000&sr={resource}&skn=&sig={signature}");
            let token = SasToken::parse(&raw).unwrap();
            assert!(token.is_signed_by(&key(device_key)), "{resource}");
            assert!(!token.is_signed_by(&key(GROUP_KEY)), "{resource}");
            assert_eq!(token.audience, "0ne000ab12c");
            let escaped = device_token(&key(device_key), resource, 1_900_000_000, None);
            assert!(SasToken::parse(&escaped).unwrap().is_signed_by(&key(device_key)));
            let lower_hex = escaped.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d");
            let sig_lower = escaped.split("&sig=").nth(1).unwrap().to_owned();
            assert!(!sig_lower.is_empty() && SasToken::parse(&lower_hex).is_ok());
        }
    }

    #[test]
    fn a_whole_token_is_spelled_as_the_sdks_spell_it() {
        assert_eq!(
            device_token(&key(K1), &resource("0ne000AB12C", "device-0001"), 1_900_000_000, Some("registration")),
            "SharedAccessSignature sr=0ne000AB12C%2Fregistrations%2Fdevice-0001&sig=J9TaGgz5PHy6RKWwa7IBooOI90vHSc9deCMdhN%2B40OM%3D&se=1900000000&skn=registration"
        );
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let sig = "J9TaGgz5PHy6RKWwa7IBooOI90vHSc9deCMdhN%2B40OM%3D";
        for (text, why) in [
            ("", SHAPE),
            ("SharedAccessSignature", SHAPE),
            ("Bearer sr=a/registrations/b&sig=x&se=1", SHAPE),
            ("SharedAccessSignature hello", SHAPE),
            ("SharedAccessSignature sr=a/registrations/b&se=1", INCOMPLETE),
            ("SharedAccessSignature sr=a/registrations/b&sig=AAAA&se=1", SIGNATURE),
            (&format!("SharedAccessSignature sr=a/devices/b&sig={sig}&se=1"), RESOURCE),
            (&format!("SharedAccessSignature sr=%ff%fe/registrations/b&sig={sig}&se=1"), RESOURCE),
            (&format!("SharedAccessSignature sr=a/registrations/b&sig={sig}&se=1&se=2"), DOUBLED),
            (&format!("SharedAccessSignature sr=a/registrations/b&sig={sig}&se=-1"), EXPIRY),
            (&format!("SharedAccessSignature sr=a/registrations/b&sig={sig}&se=1."), EXPIRY),
            (&format!("SharedAccessSignature sr=a/registrations/b&sig={sig}&se=.5"), EXPIRY),
            (&format!("SharedAccessSignature sr=a/registrations/b&sig={sig}&se=1.5.5"), EXPIRY),
            (&format!("SharedAccessSignature sr=a/registrations/b&sig={sig}&se=1e9"), EXPIRY),
        ] {
            assert_eq!(SasToken::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn the_end_of_a_token_is_read_with_a_fraction_and_however_late_it_is() {
        for (se, seconds) in [
            ("1900000000", 1_900_000_000),
            ("1900000000.75", 1_900_000_000),
            ("1900000000000", 1_900_000_000_000),
            ("99999999999999999999", i64::MAX),
        ] {
            assert_eq!(expiry_seconds(se), Ok(seconds), "{se}");
        }
        let resource = "a/registrations/b";
        let signature = hmac_sha256(&key(K1), &[resource.as_bytes(), b"\n1900000000.75"]).finalize().into_bytes();
        let signature = STANDARD.encode(signature);
        let text = format!("SharedAccessSignature sr={resource}&sig={signature}&se=1900000000.75");
        assert!(SasToken::parse(&text).unwrap().is_signed_by(&key(K1)), "what was signed is the text, not the number");
    }
}
