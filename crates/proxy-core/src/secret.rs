//! Key material that cannot be printed.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// Bytes of a symmetric key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// A symmetric key as DPS hands it out: base64 of 16 to 64 bytes. Held decoded, wiped when dropped, printed as `***`.
#[derive(Clone)]
pub struct SymmetricKey(Arc<Zeroizing<Vec<u8>>>);

/// A text that is not a symmetric key. `Display` names the rule and never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It does not decode.
    #[error("the key is not base64 (standard alphabet, with padding)")]
    NotBase64,
    /// It decodes to a length that DPS does not accept.
    #[error("the key has {0} bytes after decoding; DPS keys have 16 to 64")]
    WrongLength(usize),
    /// It stands in quotes.
    #[error("the key stands in quotes; remove them")]
    Quoted,
    /// What it decodes to is base64 of a key.
    #[error("the key was encoded in base64 twice (as in a Kubernetes manifest); decode it once")]
    EncodedTwice,
    /// A whole connection string.
    #[error("this is a connection string; take only what stands behind SharedAccessKey= in it")]
    ConnectionString,
    /// A token that was made with the key.
    #[error("this is a SAS token, which was made with the key, and not the key")]
    Token,
    /// Hexadecimal digits.
    #[error("the key is written in hexadecimal digits; it has to be base64")]
    Hexadecimal,
    /// The alphabet for URLs.
    #[error("the key has - or _ in it, as base64 for URLs has; the standard alphabet has + and / instead")]
    UrlSafe,
    /// The end is missing.
    #[error("the key has lost the = at its end; copy it whole")]
    Unpadded,
    /// A PEM file.
    #[error("this is a PEM file (a certificate or another kind of key), not a symmetric key")]
    Pem,
}

/// What a text that should be a key clearly is instead, although base64 might take it.
fn mistaken(compact: &str) -> Option<InvalidKey> {
    let has = |part: &str| compact.to_ascii_lowercase().contains(part);
    if compact.starts_with(['"', '\'']) || compact.ends_with(['"', '\'']) {
        Some(InvalidKey::Quoted)
    } else if compact.starts_with("-----BEGIN") || compact.starts_with("LS0tLS1CRUdJTi") {
        Some(InvalidKey::Pem)
    } else if has("sharedaccesskey=") {
        Some(InvalidKey::ConnectionString)
    } else if has("sharedaccesssignature") || has("&sig=") {
        Some(InvalidKey::Token)
    } else if compact.len() >= 32 && compact.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Some(InvalidKey::Hexadecimal)
    } else {
        None
    }
}

/// Whether `bytes` are the text of a key in base64. A key may consist of letters by chance or choice, but hardly of a whole base64
/// text with its padding.
fn is_base64_of_a_key(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii();
    let decoded = STANDARD.decode(text).map(Zeroizing::new);
    decoded.is_ok_and(|decoded| {
        KEY_BYTES.contains(&decoded.len()) && (text.ends_with(b"=") || !KEY_BYTES.contains(&bytes.len()))
    })
}

impl SymmetricKey {
    /// Decodes a key. White space around it and in it is ignored, as it comes from files and some of them wrap it.
    ///
    /// # Errors
    /// [`InvalidKey`] if it is not base64 or not 16 to 64 bytes long (limits: DPS's own for symmetric-key enrollments), by its likely
    /// cause.
    pub fn from_base64(text: &str) -> Result<Self, InvalidKey> {
        let is_blank = |character: &char| character.is_whitespace() || *character == '\u{feff}';
        let compact: Zeroizing<String> =
            Zeroizing::new(text.chars().filter(|character| !is_blank(character)).collect());
        if let Some(mistaken) = mistaken(&compact) {
            return Err(mistaken);
        }
        let decoded = |engine: &GeneralPurpose| engine.decode(compact.as_bytes()).map(Zeroizing::new).ok();
        let is_key = |bytes: Zeroizing<Vec<u8>>| KEY_BYTES.contains(&bytes.len());
        let Some(bytes) = decoded(&STANDARD) else {
            return Err(if decoded(&STANDARD_NO_PAD).is_some_and(is_key) {
                InvalidKey::Unpadded
            } else if [&URL_SAFE, &URL_SAFE_NO_PAD].into_iter().any(|engine| decoded(engine).is_some_and(is_key)) {
                InvalidKey::UrlSafe
            } else {
                InvalidKey::NotBase64
            });
        };
        if is_base64_of_a_key(&bytes) {
            return Err(InvalidKey::EncodedTwice);
        }
        if KEY_BYTES.contains(&bytes.len()) {
            Ok(Self(Arc::new(bytes)))
        } else {
            Err(InvalidKey::WrongLength(bytes.len()))
        }
    }

    /// A key of the bytes of an HMAC-SHA256, as key derivation gives them.
    #[must_use]
    pub fn from_digest(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes.to_vec())))
    }

    /// The decoded bytes, for signing.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The base64 text, for a device that is to be handed its key.
    #[must_use]
    pub fn expose_base64(&self) -> String {
        STANDARD.encode(self.0.as_slice())
    }
}

impl fmt::Debug for SymmetricKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for SymmetricKey {
    /// Constant time in the content.
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq as _;
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for SymmetricKey {}

/// A bearer token as we keep it: only its SHA-256, compared in constant time, printed as `***`.
#[derive(Clone)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of `token`.
    #[must_use]
    pub fn of(token: &str) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(token.as_bytes()).into())
    }

    /// Whether `token` is the one this was made of. Takes the same time for any wrong token.
    #[must_use]
    pub fn matches(&self, token: &str) -> bool {
        *self == Self::of(token)
    }
}

impl PartialEq for TokenDigest {
    /// Constant time.
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenDigest {}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_printed() {
        let key = SymmetricKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
        assert_eq!(format!("{key:?} {:?}", TokenDigest::of("secret")), "*** ***");
    }

    #[test]
    fn a_wrong_key_is_named_by_rule_not_by_content() {
        assert_eq!(SymmetricKey::from_base64("not base64!"), Err(InvalidKey::NotBase64));
        assert_eq!(SymmetricKey::from_base64("AAEC"), Err(InvalidKey::WrongLength(3)));
    }

    #[test]
    fn white_space_in_a_key_is_ignored() {
        let bytes: Vec<u8> = (0..64).collect();
        let key = STANDARD.encode(&bytes);
        let wrapped = format!("\u{feff}{}\r\n {}\n\n", &key[..76], &key[76..]);
        assert_eq!(SymmetricKey::from_base64(&wrapped).unwrap().expose(), bytes);
    }

    #[test]
    fn the_likely_cause_of_a_wrong_key_is_named() {
        let key: Vec<u8> = (200..232).collect();
        let text = STANDARD.encode(&key);
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        for (wrong, cause) in [
            (format!("\"{text}\""), InvalidKey::Quoted),
            (format!("'{text}'\n"), InvalidKey::Quoted),
            (STANDARD.encode(&text), InvalidKey::EncodedTwice),
            (STANDARD.encode(format!("{text}\n")), InvalidKey::EncodedTwice),
            (STANDARD.encode(STANDARD.encode([7; 64])), InvalidKey::EncodedTwice),
            (
                format!("HostName=x.azure-devices.net;SharedAccessKeyName=a;SharedAccessKey={text}"),
                InvalidKey::ConnectionString,
            ),
            ("SharedAccessSignature sr=x&sig=y&se=1".to_owned(), InvalidKey::Token),
            (hex.to_uppercase(), InvalidKey::Hexadecimal),
            (hex, InvalidKey::Hexadecimal),
            (URL_SAFE.encode([251; 32]), InvalidKey::UrlSafe),
            (text.trim_end_matches('=').to_owned(), InvalidKey::Unpadded),
            ("-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----".to_owned(), InvalidKey::Pem),
        ] {
            assert_eq!(SymmetricKey::from_base64(&wrong), Err(cause), "{wrong}");
        }
        // A key somebody made of letters is a key.
        assert!(SymmetricKey::from_base64(&STANDARD.encode("0123456789abcdef0123456789abcdef")).is_ok());
    }
}
