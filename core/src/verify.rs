//! The trust boundary: the only way from a [`RawPack`] to values that a model may use.
//!
//! Checks run from cheap and safe to expensive and exposed: size, signature, payload digest, bounded
//! decompression, strict parsing, and last the match with the loaded model.

use std::sync::Arc;

use crate::lora::LoraSet;
use crate::pack::{self, Content, ExpertPool, Gates, Manifest, ModelIdentity, PackDefect, PublicKey, RawPack};
use crate::{Digest, Error, Result};

/// Largest accepted pack by default: a rank-16 pack of an 8B model has 110 MB.
pub const PACK_SIZE_BYTES_MAX: u64 = 256 << 20;
/// Largest accepted payload after decompression, by default.
pub const TENSORS_SIZE_BYTES_MAX: u64 = 512 << 20;

/// Whom the device trusts, and how much it is willing to read.
#[derive(Clone, Debug)]
pub struct TrustPolicy {
    /// Keys whose packs are accepted.
    pub trusted: Vec<PublicKey>,
    /// Keys whose packs are refused, also when they are in `trusted`.
    pub revoked: Vec<PublicKey>,
    /// Accepts packs that nobody signed: **anyone who can reach the file then controls the model's answers.** For
    /// development. Signed packs are still checked against `trusted`.
    pub danger_accept_unsigned: bool,
    /// Largest file.
    pub pack_size_bytes_max: u64,
    /// Largest payload after decompression.
    pub tensors_size_bytes_max: u64,
}

impl Default for TrustPolicy {
    /// Trusts nobody.
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            revoked: Vec::new(),
            danger_accept_unsigned: false,
            pack_size_bytes_max: PACK_SIZE_BYTES_MAX,
            tensors_size_bytes_max: TENSORS_SIZE_BYTES_MAX,
        }
    }
}

impl TrustPolicy {
    /// Trusts these keys.
    pub fn trusting(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self { trusted: keys.into_iter().collect(), ..Self::default() }
    }
}

/// A pack that passed every check for one model. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedPack {
    manifest: Manifest,
    digest: Digest,
    signer: Option<PublicKey>,
    lora: Arc<LoraSet>,
    gates: Option<Gates>,
}

impl VerifiedPack {
    /// The signed manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Digest of the pack's file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Who signed it; `None` only under [`TrustPolicy::danger_accept_unsigned`].
    pub fn signer(&self) -> Option<&PublicKey> {
        self.signer.as_ref()
    }

    /// The LoRA of every layer; a gates pack's is already mixed from its pool.
    pub fn lora(&self) -> &LoraSet {
        &self.lora
    }

    /// The same, for a backend that reads the pairs where they are.
    pub(crate) fn shared_lora(&self) -> &Arc<LoraSet> {
        &self.lora
    }

    /// The gates of a gates pack.
    pub fn gates(&self) -> Option<&Gates> {
        self.gates.as_ref()
    }
}

/// An expert pool that passed every check for one model. Only [`verify_pool`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedPool {
    manifest: Manifest,
    digest: Digest,
    pool: ExpertPool,
}

impl VerifiedPool {
    /// The signed manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Digest of the pool's file, by which gates packs name it.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The experts.
    pub fn pool(&self) -> &ExpertPool {
        &self.pool
    }
}

/// What a pack or pool file holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Contents {
    /// The LoRA of a dense pack.
    Dense(LoraSet),
    /// The gates of a gates pack, which mean nothing without their pool.
    Gates(Gates),
    /// The experts of a pool.
    Pool(Box<ExpertPool>),
}

/// A file that passed every check but the match with a model: to look at and to convert, not to merge.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The signed manifest.
    pub manifest: Manifest,
    /// Who signed it; `None` only under [`TrustPolicy::danger_accept_unsigned`].
    pub signer: Option<PublicKey>,
    /// What the payload holds.
    pub contents: Contents,
}

/// Checks a pack or pool as [`verify`] does, without a model to match and without a gates pack's pool.
///
/// # Errors
/// As [`verify`], except [`Error::BaseModelMismatch`] and [`Error::PoolMissing`].
pub fn inspect(raw: &RawPack, trust: &TrustPolicy) -> Result<Inspection> {
    let (signer, manifest, tensors) = open(raw, trust)?;
    let shape = &manifest.shape;
    let contents = match manifest.content {
        Content::Dense { .. } => Contents::Dense(pack::decode_dense(&tensors, shape)?),
        Content::Gates { expert_count, .. } => {
            Contents::Gates(pack::decode_gates(&tensors, shape.layer_count, expert_count)?)
        }
        Content::Pool { expert_count } => Contents::Pool(Box::new(pack::decode_pool(&tensors, shape, expert_count)?)),
    };
    Ok(Inspection { manifest, signer, contents })
}

/// Checks a pack against the device's trust and the loaded model.
///
/// A gates pack needs its pool: without one the call ends with [`Error::PoolMissing`], whose digest says which file
/// to fetch and [`verify_pool`].
///
/// # Errors
/// [`Error::TooLarge`], [`Error::UnsignedPack`], [`Error::RevokedKey`], [`Error::UntrustedKey`],
/// [`Error::BadSignature`], [`Error::DigestMismatch`], [`Error::InvalidPack`], [`Error::BaseModelMismatch`],
/// [`Error::PoolMissing`].
pub fn verify(
    raw: &RawPack,
    trust: &TrustPolicy,
    model: &ModelIdentity,
    pool: Option<&VerifiedPool>,
) -> Result<VerifiedPack> {
    let (signer, manifest, tensors) = open(raw, trust)?;
    let (lora, gates) = match manifest.content {
        Content::Dense { .. } => (Some(pack::decode_dense(&tensors, &manifest.shape)?), None),
        Content::Gates { expert_count, .. } => {
            (None, Some(pack::decode_gates(&tensors, manifest.shape.layer_count, expert_count)?))
        }
        Content::Pool { .. } => return Err(PackDefect::Kind { expected: "pack", actual: "pool" }.into()),
    };
    match_model(&manifest.model, model)?;
    let lora = match (lora, &gates) {
        (Some(lora), _) => lora,
        (None, Some(gates)) => expand(gates, &manifest, pool)?,
        (None, None) => unreachable!("a payload is a LoRA or gates"),
    };
    Ok(VerifiedPack { digest: raw.digest(), manifest, signer, lora: Arc::new(lora), gates })
}

/// Checks an expert pool against the device's trust and the loaded model.
///
/// # Errors
/// As [`verify`], except [`Error::PoolMissing`].
pub fn verify_pool(raw: &RawPack, trust: &TrustPolicy, model: &ModelIdentity) -> Result<VerifiedPool> {
    let (_, manifest, tensors) = open(raw, trust)?;
    let Content::Pool { expert_count } = manifest.content else {
        return Err(PackDefect::Kind { expected: "pool", actual: manifest.content.name() }.into());
    };
    let pool = pack::decode_pool(&tensors, &manifest.shape, expert_count)?;
    match_model(&manifest.model, model)?;
    Ok(VerifiedPool { digest: raw.digest(), manifest, pool })
}

/// Size → signature → manifest → payload digest → bounded decompression.
fn open(raw: &RawPack, trust: &TrustPolicy) -> Result<(Option<PublicKey>, Manifest, Vec<u8>)> {
    if raw.size_bytes() > trust.pack_size_bytes_max {
        return Err(Error::TooLarge { actual_bytes: raw.size_bytes(), limit_bytes: trust.pack_size_bytes_max });
    }
    let signer = check_signer(raw, trust)?;
    let manifest = raw.unverified_manifest()?;
    let (frame, payload) = (raw.payload(), &manifest.payload);
    if frame.len() as u64 != payload.size_bytes {
        return Err(
            PackDefect::PayloadLength { expected_bytes: payload.size_bytes, actual_bytes: frame.len() as u64 }.into()
        );
    }
    let actual = Digest::of(frame);
    if actual != payload.digest {
        return Err(Error::DigestMismatch { expected: payload.digest, actual });
    }
    let limit_bytes = pack::payload_size_limit(&manifest.shape, &manifest.content);
    if payload.tensors_size_bytes > limit_bytes {
        return Err(PackDefect::Expansion { actual_bytes: payload.tensors_size_bytes, limit_bytes }.into());
    }
    if payload.tensors_size_bytes > trust.tensors_size_bytes_max {
        return Err(Error::TooLarge {
            actual_bytes: payload.tensors_size_bytes,
            limit_bytes: trust.tensors_size_bytes_max,
        });
    }
    let tensors = pack::decompress(frame, payload.tensors_size_bytes)?;
    Ok((signer, manifest, tensors))
}

fn check_signer(raw: &RawPack, trust: &TrustPolicy) -> Result<Option<PublicKey>> {
    let Some(claim) = raw.unverified_signature() else {
        return if trust.danger_accept_unsigned { Ok(None) } else { Err(Error::UnsignedPack) };
    };
    // The lists hold whole keys, so no key that is weak or malformed gets as far as the curve arithmetic.
    if let Some(key) = trust.revoked.iter().find(|key| *key.as_bytes() == claim.key) {
        return Err(Error::RevokedKey { key: key.to_string() });
    }
    let key = trust
        .trusted
        .iter()
        .find(|key| *key.as_bytes() == claim.key)
        .ok_or_else(|| Error::UntrustedKey { key: claim.key_text() })?;
    raw.check_signature(key)?;
    Ok(Some(*key))
}

pub(crate) fn match_model(pack: &ModelIdentity, model: &ModelIdentity) -> Result<()> {
    let digest = |digest: &Option<Digest>| digest.map_or("none".to_string(), |digest| digest.to_string());
    // The most telling difference first: another architecture also has other digests.
    let fields = [
        ("architecture", model.architecture.clone(), pack.architecture.clone()),
        ("quantization", model.quantization.clone(), pack.quantization.clone()),
        ("tokenizer", model.tokenizer.to_string(), pack.tokenizer.to_string()),
        ("chat template", digest(&model.template), digest(&pack.template)),
        ("base model", model.base.to_string(), pack.base.to_string()),
    ];
    for (field, expected, actual) in fields {
        if expected != actual {
            return Err(Error::BaseModelMismatch { field, expected, actual });
        }
    }
    Ok(())
}

fn expand(gates: &Gates, manifest: &Manifest, pool: Option<&VerifiedPool>) -> Result<LoraSet> {
    let Content::Gates { composition, expert_count, pool: digest } = manifest.content else {
        unreachable!("only gates packs are expanded")
    };
    let pool = pool.ok_or(Error::PoolMissing { digest })?;
    if pool.digest != digest {
        return Err(Error::DigestMismatch { expected: digest, actual: pool.digest });
    }
    if pool.manifest.content != (Content::Pool { expert_count }) || pool.manifest.shape != manifest.shape {
        return Err(PackDefect::ManifestField {
            field: "shape",
            reason: "the pack's dimensions are not its pool's".into(),
        }
        .into());
    }
    pool.pool.mix(gates, composition)
}
