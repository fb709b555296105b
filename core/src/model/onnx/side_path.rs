//! A pack's LoRA pairs as inputs of the graph.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use ndarray::Array2;
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::value::{Tensor, TensorElementType};

use super::library::failed;
use crate::Result;
use crate::lora::{LayerLora, LoraPair, LoraSet, Target};

/// One layer's side path: what its graph inputs are bound to.
#[derive(Default)]
pub struct OnnxLora {
    /// `a` and `b`, the scale in one of them, in the order of [`Target::ALL`]. Some lie in `_source`, so they are before it.
    pub(super) pairs: [Option<[Tensor<f32>; 2]>; 3],
    _source: Option<Arc<LoraSet>>,
}

impl OnnxLora {
    /// Copies of one layer's pairs.
    pub(super) fn new(layer: &LayerLora, scale: f32) -> Result<Self> {
        let mut pairs = [None, None, None];
        for (place, target) in pairs.iter_mut().zip(Target::ALL) {
            let Some(pair) = layer.pair(target) else { continue };
            *place = Some([copied(&pair.a, 1.0)?, copied(&pair.b, scale)?]);
        }
        Ok(Self { pairs, _source: None })
    }

    /// Every layer's pairs, read where they are: copying those of a small model takes longer than a token. A scale other
    /// than 1 goes into a copy of the smaller part.
    pub(super) fn all(lora: &Arc<LoraSet>) -> Result<Arc<[Self]>> {
        let tensors = |pair: &LoraPair| -> Result<_> {
            let (a, b) = match lora.scale {
                1.0 => (1.0, 1.0),
                scale if pair.a.len() < pair.b.len() => (scale, 1.0),
                scale => (1.0, scale),
            };
            let tensor = |array: &Array2<f32>, factor| match array.as_slice() {
                // SAFETY: the values stay in `_source`, which the tensor's owner holds and drops after it, unchanged: nothing
                // here has more than a shared reference to them.
                Some(values) if factor == 1.0 => unsafe { borrowed(array.dim(), values) },
                _ => copied(array, factor),
            };
            Ok([tensor(&pair.a, a)?, tensor(&pair.b, b)?])
        };
        let layer = |layer: &LayerLora| -> Result<_> {
            let mut pairs = [None, None, None];
            for (place, target) in pairs.iter_mut().zip(Target::ALL) {
                *place = layer.pair(target).map(tensors).transpose()?;
            }
            Ok(Self { pairs, _source: Some(lora.clone()) })
        };
        lora.layers.iter().map(layer).collect()
    }
}

fn copied(array: &Array2<f32>, factor: f32) -> Result<Tensor<f32>> {
    let values: Vec<f32> = match array.as_slice() {
        Some(values) if factor == 1.0 => values.to_vec(),
        _ => array.iter().map(|value| value * factor).collect(),
    };
    Tensor::from_array(([array.nrows(), array.ncols()], values)).map_err(failed)
}

/// A tensor of `values`, which is not copied. `ort` itself copies borrowed memory when it is bound.
///
/// # Safety
/// `values` must stay where it is, and unchanged, as long as the tensor or a binding of it is used.
unsafe fn borrowed((rows, cols): (usize, usize), values: &[f32]) -> Result<Tensor<f32>> {
    let (memory, shape) = (MemoryInfo::default(), [rows as i64, cols as i64]);
    let (data, element) = (values.as_ptr().cast_mut().cast(), TensorElementType::Float32.into());
    let mut value = ptr::null_mut();
    // SAFETY: data and shape have the lengths that are given; the graph only reads its inputs.
    ort::ortsys![@ort: unsafe CreateTensorWithDataAsOrtValue(
        memory.ptr(), data, size_of_val(values), shape.as_ptr(), shape.len(), element, &mut value) as Result]
    .map_err(failed)?;
    let value = NonNull::new(value).expect("a call that succeeds gives a value");
    // SAFETY: it was just made, as a tensor of f32.
    Ok(unsafe { Tensor::from_ptr(value, Some(&Allocator::default())) })
}

/// The graph's input for `a` (`[rank, in]`) or `b` (`[out, rank]`) of a target.
pub(super) fn input_name(layer: usize, target: Target, part: &str) -> String {
    format!("layers.{layer}.{}.lora_{part}", target.name())
}
