use std::collections::BTreeMap;

use ndarray::Axis;

use super::tensors::{self, Tensor};
use super::{
    Composition, Content, ExpertPool, Gates, GeneratorInfo, LoraShape, Manifest, Measurement, ModelIdentity,
    PackDefect, PayloadDescriptor, PromptInfo, RawPack, ResidualPrompt, SecretKey, payload,
};
use crate::lora::{LoraSet, Target};
use crate::{Digest, Error, Result};

/// Element type of the LoRA values in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Half precision: a rounding error of 0.02% of each value, half the bytes.
    #[default]
    F16,
    /// Brain float.
    Bf16,
    /// Single precision.
    F32,
}

/// What a pack says about itself, beyond what its tensors show.
#[derive(Clone, Debug)]
pub struct PackInfo {
    /// The edge model it fits.
    pub model: ModelIdentity,
    /// The prompt it replaces; `None` for a pool.
    pub prompt: Option<PromptInfo>,
    /// Text that stays in the context.
    pub residual_prompt: Option<ResidualPrompt>,
    /// Who made it and how.
    pub generator: GeneratorInfo,
    /// How well it did.
    pub quality: Vec<Measurement>,
    /// Free text for people and apps.
    pub labels: BTreeMap<String, String>,
}

/// Writes a dense pack. The same arguments give the same bytes.
///
/// `composition` says how the pairs were mixed from experts, if they were. `signer: None` makes an unsigned pack,
/// which devices refuse by default.
///
/// # Errors
/// [`Error::InvalidPack`] if a value or shape is outside the format's limits: not finite, too large, or layers
/// that differ in targets, rank or dimensions.
pub fn write_dense(
    lora: &LoraSet,
    composition: Option<Composition>,
    precision: Precision,
    info: PackInfo,
    signer: Option<&SecretKey>,
) -> Result<Vec<u8>> {
    let first = lora.layers.first();
    let targets: Vec<Target> =
        Target::ALL.into_iter().filter(|target| first.is_some_and(|layer| layer.pair(*target).is_some())).collect();
    let pair = targets.first().and_then(|target| first?.pair(*target));
    let (target, pair) = targets.first().zip(pair).ok_or_else(|| shape_defect("the LoRA has no layer or no target"))?;
    let (inner, outer) = (pair.a.ncols(), pair.b.nrows());
    let (hidden_size, ffn_size) = if *target == Target::Down { (outer, inner) } else { (inner, outer) };
    let rank = pair.a.nrows();
    let shape = LoraShape {
        layer_count: dimension(lora.layers.len())?,
        hidden_size: dimension(hidden_size)?,
        ffn_size: dimension(ffn_size)?,
        rank: dimension(rank)?,
        alpha: lora.scale * rank as f32,
        targets,
    };
    let tensors = payload::encode_dense(lora, &shape, precision)?;
    write(Content::Dense { composition }, shape, &tensors, info, signer)
}

/// Writes a gates pack: under 1 KB of payload, to be expanded with the pool whose file has `pool_digest`.
///
/// # Errors
/// [`Error::InvalidPack`] if the gates do not fit the pool or a value is outside the format's limits.
pub fn write_gates(
    gates: &Gates,
    composition: Composition,
    pool: &ExpertPool,
    pool_digest: Digest,
    info: PackInfo,
    signer: Option<&SecretKey>,
) -> Result<Vec<u8>> {
    let (shape, expert_count) = pool_shape(pool, gates.weights.nrows())?;
    let tensors = payload::encode_gates(gates)?;
    write(Content::Gates { composition, expert_count, pool: pool_digest }, shape, &tensors, info, signer)
}

/// Writes an expert pool for an edge model of `layer_count` layers.
///
/// # Errors
/// [`Error::InvalidPack`] if a value or shape is outside the format's limits.
pub fn write_pool(
    pool: &ExpertPool,
    layer_count: usize,
    precision: Precision,
    info: PackInfo,
    signer: Option<&SecretKey>,
) -> Result<Vec<u8>> {
    let (shape, expert_count) = pool_shape(pool, layer_count)?;
    let tensors = payload::encode_pool(pool, precision)?;
    write(Content::Pool { expert_count }, shape, &tensors, info, signer)
}

fn pool_shape(pool: &ExpertPool, layer_count: usize) -> Result<(LoraShape, u32)> {
    let targets = pool.targets();
    let (target, pair) = targets
        .first()
        .and_then(|target| Some((*target, pool.pair(*target)?)))
        .ok_or_else(|| shape_defect("the pool has no target"))?;
    let (inner, outer) = (pair.a.len_of(Axis(2)), pair.b.len_of(Axis(1)));
    let (hidden_size, ffn_size) = if target == Target::Down { (outer, inner) } else { (inner, outer) };
    let rank = pair.a.len_of(Axis(1));
    let shape = LoraShape {
        layer_count: dimension(layer_count)?,
        hidden_size: dimension(hidden_size)?,
        ffn_size: dimension(ffn_size)?,
        rank: dimension(rank)?,
        alpha: pool.alpha,
        targets,
    };
    Ok((shape, dimension(pair.a.len_of(Axis(0)))?))
}

fn write(
    content: Content,
    shape: LoraShape,
    tensors: &[Tensor],
    info: PackInfo,
    signer: Option<&SecretKey>,
) -> Result<Vec<u8>> {
    let tensors = tensors::write(tensors)?;
    // What a reader would refuse is refused here, by the reader's own code.
    match content {
        Content::Dense { .. } => drop(payload::decode_dense(&tensors, &shape)?),
        Content::Gates { expert_count, .. } => {
            drop(payload::decode_gates(&tensors, shape.layer_count, expert_count)?);
        }
        Content::Pool { expert_count } => drop(payload::decode_pool(&tensors, &shape, expert_count)?),
    }
    let frame = tensors::compress(&tensors);
    let manifest = Manifest {
        content,
        model: info.model,
        shape,
        prompt: info.prompt,
        residual_prompt: info.residual_prompt,
        payload: PayloadDescriptor {
            digest: Digest::of(&frame),
            size_bytes: frame.len() as u64,
            tensors_size_bytes: tensors.len() as u64,
        },
        generator: info.generator,
        quality: info.quality,
        labels: info.labels,
    };
    Ok(RawPack::assemble(&manifest.write()?, &frame, signer))
}

fn dimension(size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| shape_defect("a dimension does not fit 32 bits"))
}

fn shape_defect(reason: &str) -> Error {
    PackDefect::ManifestField { field: "shape", reason: reason.into() }.into()
}
