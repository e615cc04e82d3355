//! Key material that cannot be printed.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

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
}

impl SymmetricKey {
    /// Decodes a key. White space around it is ignored, as it comes from files.
    ///
    /// # Errors
    /// [`InvalidKey`] if it is not base64 or not 16 to 64 bytes long (limits: DPS's own for symmetric-key enrollments).
    pub fn from_base64(text: &str) -> Result<Self, InvalidKey> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| InvalidKey::NotBase64)?);
        if (16..=64).contains(&bytes.len()) {
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
}
