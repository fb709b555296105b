//! LoRA pairs, gates and expert pools ⇄ tensors, with the shapes that the manifest implies.

use std::collections::HashSet;

use ndarray::{Array2, Array3};

use super::tensors::{Tensor, Tensors};
use super::{ExpertPair, ExpertPool, Gates, LoraShape, Precision};
use crate::Result;
use crate::lora::{LayerLora, LoraPair, LoraSet, Target};

/// Largest magnitude of any value: hundreds of times what training gives, and far from overflow in f16.
pub const VALUE_MAX: f32 = 1024.0;
/// Bytes of safetensors header per tensor that the format allows: names are under 80 bytes, entries under 200.
const HEADER_BYTES_PER_TENSOR: u64 = 256;
/// Bytes of safetensors header besides the entries: its length field, padding and `__metadata__`.
const HEADER_BYTES: u64 = 4096;

/// PEFT's name of a tensor; `half` is `A` or `B`.
pub fn peft_tensor_name(layer_index: usize, target: Target, half: char) -> String {
    format!("base_model.model.model.layers.{layer_index}.mlp.{}.lora_{half}.weight", target.name())
}

/// Name of a pool's tensor; `half` is `a` or `b`.
pub fn pool_tensor_name(target: Target, half: char) -> String {
    format!("pool.{}.{half}", target.name())
}

const GATES: &str = "gates";

pub(super) fn encode_dense(lora: &LoraSet, shape: &LoraShape, precision: Precision) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for (index, layer) in lora.layers.iter().enumerate() {
        for &target in &shape.targets {
            let Some(pair) = layer.pair(target) else { continue };
            for (half, values) in [('A', &pair.a), ('B', &pair.b)] {
                let name = peft_tensor_name(index, target, half);
                tensors.push(Tensor::new(name, values.shape(), values.iter(), precision, VALUE_MAX)?);
            }
        }
    }
    Ok(tensors)
}

pub(super) fn encode_gates(gates: &Gates) -> Result<Vec<Tensor>> {
    let weights = &gates.weights;
    Ok(vec![Tensor::new(GATES.into(), weights.shape(), weights.iter(), Precision::F32, VALUE_MAX)?])
}

pub(super) fn encode_pool(pool: &ExpertPool, precision: Precision) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for target in pool.targets() {
        let Some(pair) = pool.pair(target) else { continue };
        for (half, values) in [('a', &pair.a), ('b', &pair.b)] {
            let name = pool_tensor_name(target, half);
            tensors.push(Tensor::new(name, values.shape(), values.iter(), precision, VALUE_MAX)?);
        }
    }
    Ok(tensors)
}

/// Most bytes that the safetensors file of a manifest with this shape can need: the cap before decompression.
pub(crate) fn payload_size_limit(shape: &LoraShape, content: &super::Content) -> u64 {
    let layers = u64::from(shape.layer_count);
    let pairs = |copies: u64| {
        let width = u64::from(shape.hidden_size) + u64::from(shape.ffn_size);
        (2 * copies * shape.targets.len() as u64, copies * shape.targets.len() as u64 * u64::from(shape.rank) * width)
    };
    let (tensors, values) = match content {
        super::Content::Dense { .. } => pairs(layers),
        super::Content::Gates { expert_count, .. } => (1, layers * u64::from(*expert_count)),
        super::Content::Pool { expert_count } => pairs(u64::from(*expert_count)),
    };
    HEADER_BYTES + tensors * HEADER_BYTES_PER_TENSOR + 4 * values
}

pub(crate) fn decode_dense(bytes: &[u8], shape: &LoraShape) -> Result<LoraSet> {
    let tensors = Tensors::read(bytes)?;
    let layer_count = shape.layer_count as usize;
    let names = (0..layer_count)
        .flat_map(|layer| shape.targets.iter().map(move |target| (layer, *target)))
        .flat_map(|(layer, target)| ['A', 'B'].map(|half| peft_tensor_name(layer, target, half)));
    tensors.only(&names.collect())?;
    let rank = shape.rank as usize;
    let mut layers = Vec::with_capacity(layer_count);
    for index in 0..layer_count {
        let mut layer = LayerLora::default();
        for &target in &shape.targets {
            let (cols, rows) = shape.dimensions(target);
            let a = tensors.values(&peft_tensor_name(index, target, 'A'), &[rank, cols], VALUE_MAX)?;
            let b = tensors.values(&peft_tensor_name(index, target, 'B'), &[rows, rank], VALUE_MAX)?;
            *layer.pair_mut(target) = Some(LoraPair { a: matrix(rank, cols, a), b: matrix(rows, rank, b) });
        }
        layers.push(layer);
    }
    Ok(LoraSet { scale: shape.scale(), layers })
}

pub(crate) fn decode_gates(bytes: &[u8], layer_count: u32, expert_count: u32) -> Result<Gates> {
    let tensors = Tensors::read(bytes)?;
    tensors.only(&HashSet::from([GATES.to_string()]))?;
    let (rows, cols) = (layer_count as usize, expert_count as usize);
    Ok(Gates { weights: matrix(rows, cols, tensors.values(GATES, &[rows, cols], VALUE_MAX)?) })
}

pub(crate) fn decode_pool(bytes: &[u8], shape: &LoraShape, expert_count: u32) -> Result<ExpertPool> {
    let tensors = Tensors::read(bytes)?;
    let names = shape.targets.iter().flat_map(|target| ['a', 'b'].map(|half| pool_tensor_name(*target, half)));
    tensors.only(&names.collect())?;
    let (count, rank) = (expert_count as usize, shape.rank as usize);
    let mut pool = ExpertPool { alpha: shape.alpha, gate: None, up: None, down: None };
    for &target in &shape.targets {
        let (cols, rows) = shape.dimensions(target);
        let a = tensors.values(&pool_tensor_name(target, 'a'), &[count, rank, cols], VALUE_MAX)?;
        let b = tensors.values(&pool_tensor_name(target, 'b'), &[count, rows, rank], VALUE_MAX)?;
        *pool.pair_mut(target) = Some(ExpertPair { a: cube(count, rank, cols, a), b: cube(count, rows, rank, b) });
    }
    Ok(pool)
}

fn matrix(rows: usize, cols: usize, values: Vec<f32>) -> Array2<f32> {
    Array2::from_shape_vec((rows, cols), values).expect("the shape was checked")
}

fn cube(depth: usize, rows: usize, cols: usize, values: Vec<f32>) -> Array3<f32> {
    Array3::from_shape_vec((depth, rows, cols), values).expect("the shape was checked")
}
