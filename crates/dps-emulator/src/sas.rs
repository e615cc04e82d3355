//! Shared access signatures as devices send them, verified the way the service must.
//!
//! Invariants:
//! - The signature is checked over the raw `sr` text. SDKs encode it in six ways, and all of them work in production.
//! - `+` in a value is a plus sign, never a space; escapes may be upper- or lower-case hexadecimal.
//! - Signatures are compared in constant time.
//!
//! Source: "Control access to Azure IoT Hub DPS" and "Symmetric key attestation" (Microsoft), and the SDKs themselves.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::percent_decode_str;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// HMAC-SHA256 of a message.
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The key of one device of a symmetric-key enrollment group: `HMAC-SHA256(group key, UTF-8 of the ID)`, case-sensitive.
#[must_use]
pub fn derive_device_key(group_key: &[u8], registration_id: &str) -> [u8; 32] {
    hmac_sha256(group_key, &[registration_id.as_bytes()])
}

/// Signs as a device does, for tests and demonstrations: base64 of the signature over `sr` exactly as given.
#[must_use]
pub fn sign(key: &[u8], sr: &str, se: &str) -> String {
    STANDARD.encode(hmac_sha256(key, &[sr.as_bytes(), b"\n", se.as_bytes()]))
}

/// A whole token in the form of the .NET SDK (`%2F`, order sr, sig, se, skn).
#[must_use]
pub fn device_token(key: &[u8], id_scope: &str, registration_id: &str, expires_unix: u64) -> String {
    const SET: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let escape = |text: &str| percent_encoding::utf8_percent_encode(text, SET).to_string();
    let sr = escape(&format!("{id_scope}/registrations/{registration_id}"));
    let se = expires_unix.to_string();
    let sig = escape(&sign(key, &sr, &se));
    format!("SharedAccessSignature sr={sr}&sig={sig}&se={se}&skn=registration")
}

/// A token taken apart, nothing verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    sr: &'a str,
    signature: Vec<u8>,
    se: &'a str,
    /// Unix seconds.
    pub(crate) expires: u64,
}

impl<'a> Token<'a> {
    /// Takes a header value apart. The error is for the journal and the log, never for the client.
    pub(crate) fn parse(header: &'a str) -> Result<Self, &'static str> {
        let (scheme, rest) = header.trim().split_once(' ').ok_or("not a shared access signature")?;
        if !scheme.eq_ignore_ascii_case("SharedAccessSignature") {
            return Err("not a shared access signature");
        }
        let (mut sr, mut sig, mut se, mut skn) = (None, None, None, None);
        for pair in rest.trim().split('&') {
            let (name, value) = pair.split_once('=').ok_or("a token parameter without a value")?;
            let slot = match name {
                "sr" => &mut sr,
                "sig" => &mut sig,
                "se" => &mut se,
                "skn" => &mut skn,
                _ => return Err("an unknown token parameter"),
            };
            if slot.replace(value).is_some() {
                return Err("a token parameter given twice");
            }
        }
        // Python leaves skn out, Java sends it empty.
        if !matches!(skn, None | Some("" | "registration")) {
            return Err("skn is not `registration`");
        }
        let (sr, sig, se) = (sr.ok_or("no sr")?, sig.ok_or("no sig")?, se.ok_or("no se")?);
        let decoded: Vec<u8> = percent_decode_str(sig).collect();
        let signature = STANDARD.decode(decoded).map_err(|_| "sig is not base64")?;
        if se.is_empty() || !se.bytes().all(|b| b.is_ascii_digit()) {
            return Err("se is not a whole number of seconds");
        }
        let expires = se.parse().map_err(|_| "se is out of range")?;
        Ok(Self { sr, signature, se, expires })
    }

    /// Whether the token is for this device of this instance; compared without case, after decoding.
    pub(crate) fn is_for(&self, id_scope: &str, registration_id: &str) -> bool {
        let Ok(audience) = percent_decode_str(self.sr).decode_utf8() else { return false };
        let mut parts = audience.split('/');
        matches!(
            (parts.next(), parts.next(), parts.next(), parts.next()),
            (Some(scope), Some(middle), Some(id), None)
                if scope.eq_ignore_ascii_case(id_scope)
                    && middle.eq_ignore_ascii_case("registrations")
                    && id.eq_ignore_ascii_case(registration_id)
        )
    }

    /// Whether this key made the signature.
    pub(crate) fn is_signed_with(&self, key: &[u8]) -> bool {
        let expected = hmac_sha256(key, &[self.sr.as_bytes(), b"\n", self.se.as_bytes()]);
        bool::from(expected.as_slice().ct_eq(&self.signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: &str = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
    const G2: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const K1: &str = "OycyYByY1ii3rpTZvjHN0Jpe7PEs3qYqTaN5QaJZg2I=";
    const K2: &str = "yZrDIknV7WCjZ7YWlnhoAZvT6j64n2qvIWI2on7yvPU=";

    fn key(text: &str) -> Vec<u8> {
        STANDARD.decode(text).unwrap()
    }

    /// The first one is published by Microsoft; the others were computed with OpenSSL, Node and the Python SDK.
    #[test]
    fn derivation_vectors() {
        for (group, id, derived) in [
            (G, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="),
            (G, "SN-007-888-ABC-MAC-A1-B2-C3-D4-E5-F6", "9GWVnYuoOLXlHc346XjhLRb9pKgIOrKSwxDRSOgnvXo="),
            (G, "device-0001", "PZgkWWi/IxFP5nGJyhVmEYW+IkXpXvqVqWIptBc4HmU="),
            (G, "Plant_7.line:3-a", "UOnAiz7uRHyFNYE8AnBKYvW3BaO+Vn4Jc23h3wGDqZs="),
            (G, "plant_7.line:3-a", "tNDVtQeyy/T8O3IumVV6U4Zd7pwyIrc1/Xfw83XPvVY="),
            (G2, "device-0001", K1),
            (G2, "gw01:sensor_9.x-a", K2),
        ] {
            assert_eq!(STANDARD.encode(derive_device_key(&key(group), id)), derived, "{id}");
        }
    }

    const SAS_VECTORS: [(&str, &str, &str); 11] = [
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
    ];

    /// Scope `0ne000AB12C`, se 1900000000. Every spelling is one that some SDK or document uses.
    #[test]
    fn signature_vectors_verify_in_every_spelling() {
        for (secret, sr, sig) in SAS_VECTORS {
            assert_eq!(sign(&key(secret), sr, "1900000000"), sig, "{sr}");
            let id = if secret == K1 { "device-0001" } else { "gw01:sensor_9.x-a" };
            let raw = sig.to_owned();
            let upper = sig.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
            let lower = sig.replace('+', "%2b").replace('/', "%2f").replace('=', "%3d");
            for sig in [&raw, &upper, &lower] {
                for header in [
                    format!("SharedAccessSignature sr={sr}&sig={sig}&se=1900000000&skn=registration"),
                    format!("SharedAccessSignature sr={sr}&sig={sig}&skn=registration&se=1900000000"),
                    format!("SharedAccessSignature sr={sr}&sig={sig}&se=1900000000&skn="),
                    format!("SharedAccessSignature se=1900000000&sig={sig}&sr={sr}"),
                ] {
                    let token = Token::parse(&header).unwrap();
                    assert_eq!(token.expires, 1_900_000_000);
                    assert!(token.is_signed_with(&key(secret)), "{header}");
                    assert!(token.is_for("0ne000AB12C", id), "{header}");
                    assert!(!token.is_for("0ne000AB12D", id));
                    assert!(!token.is_for("0ne000AB12C", "device-0002"));
                    assert!(!token.is_signed_with(&key(G2)));
                }
            }
        }
    }

    #[test]
    fn whole_token_vector() {
        assert_eq!(
            device_token(&key(K1), "0ne000AB12C", "device-0001", 1_900_000_000),
            "SharedAccessSignature sr=0ne000AB12C%2Fregistrations%2Fdevice-0001\
             &sig=J9TaGgz5PHy6RKWwa7IBooOI90vHSc9deCMdhN%2B40OM%3D&se=1900000000&skn=registration"
        );
    }

    #[test]
    fn malformed_tokens_are_refused() {
        for header in [
            "",
            "SharedAccessSignature",
            "Bearer abc",
            "SharedAccessSignature sr=a/registrations/b&sig=AAAA",
            "SharedAccessSignature sr=a/registrations/b&se=1",
            "SharedAccessSignature sig=AAAA&se=1",
            "SharedAccessSignature sr=a&sr=b&sig=AAAA&se=1",
            "SharedAccessSignature sr=a&sig=AAAA&se=1&zz=1",
            "SharedAccessSignature sr=a&sig=AAAA&se=1.5",
            "SharedAccessSignature sr=a&sig=AAAA&se=-1",
            "SharedAccessSignature sr=a&sig=AAAA&se=99999999999999999999999",
            "SharedAccessSignature sr=a&sig=!!&se=1",
            "SharedAccessSignature sr=a&sig=AAAA&se=1&skn=owner",
        ] {
            assert!(Token::parse(header).is_err(), "{header}");
        }
        let (_, sr, sig) = SAS_VECTORS[0];
        let spaced = format!("SharedAccessSignature sr={sr}&sig={}&se=1900000000", sig.replace('+', " "));
        assert!(Token::parse(&spaced).is_err(), "a plus sign is not a space");
        let extra = Token::parse("SharedAccessSignature sr=s/registrations/d/x&sig=AAAA&se=1").unwrap();
        assert!(!extra.is_for("s", "d"));
        assert!(!extra.is_for("s", "d/x"));
    }
}
