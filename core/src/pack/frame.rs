//! The container: one skippable zstd frame with manifest and signature, then one zstd frame.

use super::{Manifest, PackDefect, PublicKey, SecretKey};
use crate::{Digest, Error, Result};

/// The format version this build reads and writes.
pub const PACK_VERSION: u32 = 1;
/// Longest manifest: a few hundred bytes are usual; the cap bounds what an unauthenticated file makes us parse.
pub const MANIFEST_SIZE_BYTES_MAX: usize = 64 << 10;

/// zstd's skippable frame `0x184D2A57` ("W"); 0 and E of the sixteen are taken by pzstd and the seekable format.
const SKIPPABLE_MAGIC: [u8; 4] = 0x184D_2A57_u32.to_le_bytes();
const PACK_MAGIC: [u8; 8] = *b"EDGEWELD";
/// Prefix of the signed message; it keeps a signature from meaning anything in another protocol or version.
const SIGNATURE_DOMAIN: &[u8] = b"edgeweld pack v1\0";

/// Frame magic and length.
const FRAME_HEADER_SIZE: usize = 8;
/// Pack magic, version, manifest length.
const PACK_HEADER_SIZE: usize = 16;
/// Public key and signature.
const TRAILER_SIZE: usize = 32 + 64;
const MANIFEST_OFFSET: usize = FRAME_HEADER_SIZE + PACK_HEADER_SIZE;

/// Who signed, as the file claims; unverified.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The public key's 32 bytes.
    pub key: [u8; 32],
    /// The Ed25519 signature.
    pub signature: [u8; 64],
}

impl Signature {
    /// The claimed key as [`PublicKey`] writes it; it may be no valid key.
    pub fn key_text(&self) -> String {
        super::key::public_text(&self.key)
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature(by {})", self.key_text())
    }
}

/// A pack file whose lengths are consistent and whose content is hostile until [`verify`](crate::verify)d.
#[derive(Clone, PartialEq, Eq)]
pub struct RawPack {
    bytes: Vec<u8>,
    manifest_size: usize,
}

impl RawPack {
    /// Splits a file into manifest, signature and payload, parsing none of them.
    ///
    /// # Errors
    /// [`Error::InvalidPack`] (`NotAPack`, `Truncated`, `FrameLength`, `ManifestLength`) or
    /// [`Error::UnsupportedPackVersion`].
    pub fn read(bytes: Vec<u8>) -> Result<Self> {
        let truncated = |expected: usize| PackDefect::Truncated {
            expected_bytes: expected as u64,
            actual_bytes: bytes.len() as u64,
        };
        let known = bytes.len().min(4);
        if bytes[..known] != SKIPPABLE_MAGIC[..known] {
            return Err(PackDefect::NotAPack.into());
        }
        if bytes.len() < MANIFEST_OFFSET {
            return Err(truncated(MANIFEST_OFFSET).into());
        }
        let frame_size = u32_at(&bytes, 4) as usize;
        if bytes[8..16] != PACK_MAGIC {
            return Err(PackDefect::NotAPack.into());
        }
        let version = u32_at(&bytes, 16);
        if version != PACK_VERSION {
            return Err(Error::UnsupportedPackVersion { expected: PACK_VERSION, actual: version });
        }
        let manifest_size = u32_at(&bytes, 20) as usize;
        if !(1..=MANIFEST_SIZE_BYTES_MAX).contains(&manifest_size) {
            return Err(PackDefect::ManifestLength {
                actual_bytes: manifest_size as u64,
                limit_bytes: MANIFEST_SIZE_BYTES_MAX as u64,
            }
            .into());
        }
        if frame_size != PACK_HEADER_SIZE + manifest_size + TRAILER_SIZE {
            return Err(PackDefect::FrameLength.into());
        }
        if bytes.len() <= FRAME_HEADER_SIZE + frame_size {
            return Err(truncated(FRAME_HEADER_SIZE + frame_size + 1).into());
        }
        Ok(Self { bytes, manifest_size })
    }

    /// Assembles a file from its parts.
    pub(super) fn assemble(manifest: &[u8], payload: &[u8], signer: Option<&SecretKey>) -> Vec<u8> {
        let frame_size = PACK_HEADER_SIZE + manifest.len() + TRAILER_SIZE;
        let mut bytes = Vec::with_capacity(FRAME_HEADER_SIZE + frame_size + payload.len());
        bytes.extend(SKIPPABLE_MAGIC);
        bytes.extend((frame_size as u32).to_le_bytes());
        bytes.extend(PACK_MAGIC);
        bytes.extend(PACK_VERSION.to_le_bytes());
        bytes.extend((manifest.len() as u32).to_le_bytes());
        bytes.extend(manifest);
        match signer {
            Some(secret) => {
                bytes.extend(secret.public_key().as_bytes());
                bytes.extend(secret.sign(&[SIGNATURE_DOMAIN, manifest].concat()));
            }
            None => bytes.extend([0; TRAILER_SIZE]),
        }
        bytes.extend(payload);
        bytes
    }

    /// Digest of the whole file: its name in caches and on servers, and the key of KV caches made with it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// Size of the whole file.
    pub fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The whole file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The manifest **before** any signature was checked: fit to show or to learn which pool to fetch, no more.
    ///
    /// # Errors
    /// [`Error::InvalidPack`] if it is not a manifest.
    pub fn unverified_manifest(&self) -> Result<Manifest> {
        Manifest::read(self.manifest_bytes())
    }

    /// Key and signature as the file claims them; `None` if the file is unsigned.
    pub fn unverified_signature(&self) -> Option<Signature> {
        let start = MANIFEST_OFFSET + self.manifest_size;
        let trailer = &self.bytes[start..start + TRAILER_SIZE];
        if trailer.iter().all(|byte| *byte == 0) {
            return None;
        }
        let mut claim = Signature { key: [0; 32], signature: [0; 64] };
        claim.key.copy_from_slice(&trailer[..32]);
        claim.signature.copy_from_slice(&trailer[32..]);
        Some(claim)
    }

    /// Whether `key` signed this manifest.
    ///
    /// # Errors
    /// [`Error::UnsignedPack`], [`Error::UntrustedKey`] if the file names another key, or
    /// [`Error::BadSignature`].
    pub fn check_signature(&self, key: &PublicKey) -> Result<()> {
        let claim = self.unverified_signature().ok_or(Error::UnsignedPack)?;
        if claim.key != *key.as_bytes() {
            return Err(Error::UntrustedKey { key: claim.key_text() });
        }
        key.verify(&[SIGNATURE_DOMAIN, self.manifest_bytes()].concat(), &claim.signature)
    }

    pub(crate) fn manifest_bytes(&self) -> &[u8] {
        &self.bytes[MANIFEST_OFFSET..MANIFEST_OFFSET + self.manifest_size]
    }

    /// The zstd frame.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[MANIFEST_OFFSET + self.manifest_size + TRAILER_SIZE..]
    }
}

impl std::fmt::Debug for RawPack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawPack({} bytes, {:?})", self.bytes.len(), self.unverified_signature())
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}
