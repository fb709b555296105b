//! A pack's LoRA pairs as inputs of the graph.

use std::any::Any;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use memmap2::MmapRaw;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::value::{Tensor, TensorElementType};

use super::library::failed;
use super::memory::HugePages;
use crate::lora::{LayerLora, LoraPair, LoraSet, Target};
use crate::{Error, Result};

/// Kept pairs of every side path.
static MEMORY: HugePages = HugePages::new();

/// One layer's side path: what its graph inputs are bound to.
#[derive(Default)]
pub struct OnnxLora {
    /// As they came.
    given: Pairs,
    /// Copies in huge pages, once they were made.
    kept: OnceLock<Pairs>,
}

/// `a` and `b`, the scale in one of them, in the order of [`Target::ALL`].
pub(super) type Pairs = [Option<[Factor; 2]>; 3];

/// `a` or `b`, where it lies.
pub(super) struct Factor {
    pub(super) tensor: Tensor<f32>,
    /// After the tensor, which does not own its values.
    owner: Arc<dyn Any + Send + Sync>,
}

impl OnnxLora {
    /// Copies of one layer's pairs.
    pub(super) fn new(layer: &LayerLora, scale: f32) -> Result<Self> {
        let mut given = Pairs::default();
        for (place, target) in given.iter_mut().zip(Target::ALL) {
            let Some(pair) = layer.pair(target) else { continue };
            *place = Some([copied(pair.a.view(), 1.0)?, copied(pair.b.view(), scale)?]);
        }
        Ok(Self { given, kept: OnceLock::new() })
    }

    /// Every layer's pairs, read where they are: copying those of a small model takes longer than a token. A scale other
    /// than 1 goes into a copy of the smaller part.
    pub(super) fn all(lora: &Arc<LoraSet>) -> Result<Arc<[Self]>> {
        let factors = |pair: &LoraPair| -> Result<_> {
            let (a, b) = match lora.scale {
                1.0 => (1.0, 1.0),
                scale if pair.a.len() < pair.b.len() => (scale, 1.0),
                scale => (1.0, scale),
            };
            let factor = |array: &Array2<f32>, scale| match array.as_slice() {
                Some(values) if scale == 1.0 => {
                    // SAFETY: the values are in the set, and unchanged: there are only shared references to it.
                    let tensor = unsafe { borrowed(array.dim(), values.as_ptr())? };
                    Ok(Factor { tensor, owner: lora.clone() })
                }
                _ => copied(array.view(), scale),
            };
            Ok([factor(&pair.a, a)?, factor(&pair.b, b)?])
        };
        let layer = |layer: &LayerLora| -> Result<_> {
            let mut given = Pairs::default();
            for (place, target) in given.iter_mut().zip(Target::ALL) {
                *place = layer.pair(target).map(factors).transpose()?;
            }
            Ok(Self { given, kept: OnceLock::new() })
        };
        lora.layers.iter().map(layer).collect()
    }

    /// The pairs, in huge pages if they were [kept](Self::keep).
    pub(super) fn pairs(&self) -> &Pairs {
        self.kept.get().unwrap_or(&self.given)
    }

    /// Whether the pairs lie in huge pages.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.get().is_some() || self.given.iter().flatten().flatten().all(|factor| factor.owner.is::<MmapRaw>())
    }

    /// Copies the pairs into huge pages, for the tokens to come.
    pub(super) fn keep(&self) -> Result<&Pairs> {
        if !self.is_kept() {
            let mut kept = Pairs::default();
            for (place, pair) in kept.iter_mut().zip(&self.given) {
                let Some([a, b]) = pair else { continue };
                *place = Some([copied(a.values(), 1.0)?, copied(b.values(), 1.0)?]);
            }
            // Another sequence may have been faster.
            let _ = self.kept.set(kept);
        }
        Ok(self.pairs())
    }
}

impl Factor {
    pub(super) fn values(&self) -> ArrayView2<'_, f32> {
        let (shape, values) = self.tensor.extract_tensor();
        let shape = (shape[0] as usize, shape[1] as usize);
        ArrayView2::from_shape(shape, values).expect("a tensor has as many values as its shape says")
    }
}

/// `array` times `scale`, in huge pages.
fn copied(array: ArrayView2<'_, f32>, scale: f32) -> Result<Factor> {
    let size_bytes = array.len() * size_of::<f32>();
    let out_of_memory = || format!("no memory for {size_bytes} bytes of a pack's pairs");
    let (at, owner) =
        MEMORY.take(size_bytes).ok_or_else(|| Error::Backend { backend: "onnx", reason: out_of_memory() })?;
    let at = at.cast::<f32>().as_ptr();
    // SAFETY: taken for as many values, which nobody else has.
    let mut copy = unsafe { ArrayViewMut2::from_shape_ptr(array.dim(), at) };
    if scale == 1.0 {
        copy.assign(&array)
    } else {
        copy.zip_mut_with(&array, |copy, value| *copy = value * scale)
    };
    // SAFETY: kept by the owner, and written above for the last time.
    let tensor = unsafe { borrowed(array.dim(), at)? };
    Ok(Factor { tensor, owner })
}

/// A tensor of `values`, row by row, which are not copied. `ort` itself copies borrowed memory when it is bound.
///
/// # Safety
/// There are as many values; they stay where they are, and unchanged, as long as the tensor or a binding of it is used.
unsafe fn borrowed((rows, cols): (usize, usize), values: *const f32) -> Result<Tensor<f32>> {
    let (memory, shape) = (MemoryInfo::default(), [rows as i64, cols as i64]);
    let (data, size_bytes) = (values.cast_mut().cast(), rows * cols * size_of::<f32>());
    let element = TensorElementType::Float32.into();
    let mut value = ptr::null_mut();
    // SAFETY: data and shape have the lengths that are given; the graph only reads its inputs.
    ort::ortsys![@ort: unsafe CreateTensorWithDataAsOrtValue(
        memory.ptr(), data, size_bytes, shape.as_ptr(), shape.len(), element, &mut value) as Result]
    .map_err(failed)?;
    let value = NonNull::new(value).expect("a call that succeeds gives a value");
    // SAFETY: it was just made, as a tensor of f32.
    Ok(unsafe { Tensor::from_ptr(value, Some(&Allocator::default())) })
}

/// The graph's input for `a` (`[rank, in]`) or `b` (`[out, rank]`) of a target.
pub(super) fn input_name(layer: usize, target: Target, part: &str) -> String {
    format!("layers.{layer}.{}.lora_{part}", target.name())
}
