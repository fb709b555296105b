use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::{Error, Result};

/// Prefix of a public key's text form.
const PUBLIC_PREFIX: &str = "ed25519:";
/// Prefix of a secret key's text form; unlike the public one, so that neither is taken for the other.
const SECRET_PREFIX: &str = "ed25519-secret:";

/// An Ed25519 public key, written `ed25519:<64 lower-case hex digits>`; it is its own key id.
///
/// Never a weak (small-order) key: those are refused where a key is made, because signatures under
/// them verify for any message.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// # Errors
    /// [`Error::BadSignature`] if the bytes are no curve point or a weak key.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| malformed("the public key is not a curve point"))?;
        if key.is_weak() {
            return Err(malformed("the public key has small order"));
        }
        Ok(Self(key))
    }

    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Strict verification (canonical encodings only): one signature per message and key is valid.
    pub(crate) fn verify(&self, message: &[u8], signature: &[u8; 64]) -> Result<()> {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).map_err(|_| malformed("the signature does not match the manifest"))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&public_text(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    /// Accepts surrounding white space, so that a key file's line end does not matter.
    fn from_str(text: &str) -> Result<Self> {
        let bytes = unhex(text, PUBLIC_PREFIX).ok_or_else(|| malformed("a public key is ed25519:<64 hex digits>"))?;
        Self::from_bytes(&bytes)
    }
}

/// An Ed25519 secret key. Wiped from memory when dropped; `Debug` shows the public half only.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of a 32-byte seed, which must come from the system's random source.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Text form for a key file: `ed25519-secret:<64 hex digits>`. Keep it where only its owner can read it.
    pub fn to_secret_text(&self) -> String {
        format!("{SECRET_PREFIX}{}", hex(self.0.as_bytes()))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public_key())
    }
}

impl FromStr for SecretKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let seed =
            unhex(text, SECRET_PREFIX).ok_or_else(|| malformed("a secret key is ed25519-secret:<64 hex digits>"))?;
        Ok(Self::from_seed(&seed))
    }
}

pub(super) fn public_text(key: &[u8; 32]) -> String {
    format!("{PUBLIC_PREFIX}{}", hex(key))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str, prefix: &str) -> Option<[u8; 32]> {
    let digits = text.trim().strip_prefix(prefix)?.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

fn malformed(reason: &str) -> Error {
    Error::BadSignature { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_texts_round_trip_and_are_not_confused() {
        let secret = SecretKey::from_seed(&[7; 32]);
        let public = secret.public_key();
        assert_eq!(format!("{public}\n").parse::<PublicKey>().unwrap(), public);
        assert_eq!(secret.to_secret_text().parse::<SecretKey>().unwrap().public_key(), public);
        assert!(secret.to_secret_text().parse::<PublicKey>().is_err());
        assert!(public.to_string().parse::<SecretKey>().is_err());
        assert!(!format!("{secret:?}").contains(&secret.to_secret_text()[15..]));
    }

    #[test]
    fn rejects_weak_public_keys() {
        // The identity, the point of order two, and a point of order eight.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut order_two = [0xff; 32];
        order_two[0] = 0xec;
        order_two[31] = 0x7f;
        let order_eight = "ed25519:c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a";
        assert!(matches!(PublicKey::from_bytes(&identity), Err(Error::BadSignature { .. })));
        assert!(matches!(PublicKey::from_bytes(&order_two), Err(Error::BadSignature { .. })));
        assert!(matches!(order_eight.parse::<PublicKey>(), Err(Error::BadSignature { .. })));
    }
}
