//! A pack's LoRA pairs, where a graph finds them.

use std::any::Any;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{Array2, ArrayView2};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::value::{Tensor, TensorElementType};

use super::library::failed;
use super::memory::HugePages;
use crate::lora::{LayerLora, LoraPair, LoraSet, Target};
use crate::{Error, Result};

/// Where pairs are kept.
static MEMORY: HugePages = HugePages::new();

/// How a graph takes pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PairInputs {
    /// Two inputs per pair, in f32, for standard operators: in files, so that any program runs them.
    Tensors,
    /// One input that says where the pairs lie, for [our operator](super::side_operator).
    Table,
}

/// The input that says where the pairs lie: an [`Entry`] per target and layer, `[layers, 3, 4]`.
pub(super) const TABLE: &str = "side_path";

/// Addresses of a pair's `a` and `b`, its rank, and the bytes of a value: 4 for f32, 2 for f16. Zeros if there is none.
pub(super) type Entry = [i64; 4];

/// One layer's side path.
#[derive(Default)]
pub struct OnnxLora {
    /// In f32, as they came.
    given: Pairs,
    /// In huge pages, once they were [kept](Self::keep).
    kept: OnceLock<Pairs>,
}

/// `a` and `b`, the scale in one of them, in the order of [`Target::ALL`].
pub(super) type Pairs = [Option<[Factor; 2]>; 3];

/// `a` or `b`, where it lies, row by row.
pub(super) struct Factor {
    at: NonNull<u8>,
    pub(super) dim: (usize, usize),
    value_bytes: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the owner keeps the values, and nobody changes them.
unsafe impl Send for Factor {}
// SAFETY: as above.
unsafe impl Sync for Factor {}

impl OnnxLora {
    /// Copies of one layer's pairs, for graphs with a table.
    pub(super) fn new(layer: &LayerLora, scale: f32) -> Result<Self> {
        let lora = Self::given(layer, |pair| Ok([Factor::scaled(&pair.a, 1.0)?, Factor::scaled(&pair.b, scale)?]))?;
        lora.keep(PairInputs::Table)?;
        Ok(lora)
    }

    /// Every layer's pairs, read where they are: copying those of a small model takes longer than a token. A scale other
    /// than 1 goes into a copy of the smaller part.
    pub(super) fn all(lora: &Arc<LoraSet>) -> Result<Arc<[Self]>> {
        let factor = |array: &Array2<f32>, scale| match array.as_slice() {
            Some(values) if scale == 1.0 => Ok(Factor {
                at: NonNull::from(values).cast(),
                dim: array.dim(),
                value_bytes: size_of::<f32>(),
                _owner: lora.clone(),
            }),
            _ => Factor::scaled(array, scale),
        };
        let factors = |pair: &LoraPair| {
            let (a, b) = match lora.scale {
                1.0 => (1.0, 1.0),
                scale if pair.a.len() < pair.b.len() => (scale, 1.0),
                scale => (1.0, scale),
            };
            Ok([factor(&pair.a, a)?, factor(&pair.b, b)?])
        };
        lora.layers.iter().map(|layer| Self::given(layer, factors)).collect()
    }

    fn given(layer: &LayerLora, factors: impl Fn(&LoraPair) -> Result<[Factor; 2]>) -> Result<Self> {
        let mut given = Pairs::default();
        for (place, target) in given.iter_mut().zip(Target::ALL) {
            *place = layer.pair(target).map(&factors).transpose()?;
        }
        Ok(Self { given, kept: OnceLock::new() })
    }

    /// The pairs where they are now.
    pub(super) fn pairs(&self) -> &Pairs {
        self.kept.get().unwrap_or(&self.given)
    }

    /// The pairs in f32.
    pub(super) fn floats(&self) -> LayerLora {
        let mut layer = LayerLora::default();
        for (pair, target) in self.given.iter().zip(Target::ALL) {
            let Some([a, b]) = pair else { continue };
            *layer.pair_mut(target) = Some(LoraPair { a: a.floats().to_owned(), b: b.floats().to_owned() });
        }
        layer
    }

    /// Whether the pairs are where tokens read them fastest.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.get().is_some()
    }

    /// Puts the pairs where tokens read them fastest: into huge pages, and in f16 if the graph takes that.
    pub(super) fn keep(&self, inputs: PairInputs) -> Result<&Pairs> {
        if !self.is_kept() {
            let fits = |factor: &Factor| factor.floats().iter().all(|value| value.abs() <= f16::MAX.to_f32());
            let mut kept = Pairs::default();
            for (place, pair) in kept.iter_mut().zip(&self.given) {
                let Some(pair @ [a, b]) = pair else { continue };
                let in_f16 = inputs == PairInputs::Table && pair.iter().all(fits);
                *place = Some([a.kept(in_f16)?, b.kept(in_f16)?]);
            }
            // Another sequence may have been faster.
            let _ = self.kept.set(kept);
        }
        Ok(self.pairs())
    }
}

impl Factor {
    /// A copy of `array`, times `scale`.
    fn scaled(array: &Array2<f32>, scale: f32) -> Result<Self> {
        let values: Vec<f32> = array.iter().map(|value| value * scale).collect();
        Self::in_huge_pages(&values, array.dim())
    }

    /// A copy of one in f32.
    fn kept(&self, in_f16: bool) -> Result<Self> {
        let values = self.floats();
        let values = values.as_slice().expect("row by row");
        if !in_f16 {
            return Self::in_huge_pages(values, self.dim);
        }
        let mut halves = vec![f16::ZERO; values.len()];
        halves.convert_from_f32_slice(values);
        Self::in_huge_pages(&halves, self.dim)
    }

    fn in_huge_pages<T: Copy>(values: &[T], dim: (usize, usize)) -> Result<Self> {
        let size_bytes = size_of_val(values);
        let out_of_memory = || format!("no memory for {size_bytes} bytes of a pack's pairs");
        let (at, owner) =
            MEMORY.take(size_bytes).ok_or_else(|| Error::Backend { backend: "onnx", reason: out_of_memory() })?;
        // SAFETY: taken for as many bytes, from a cache line on, which nobody else has.
        unsafe { at.cast::<T>().as_ptr().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Ok(Self { at, dim, value_bytes: size_of::<T>(), _owner: owner })
    }

    /// One in f32.
    fn floats(&self) -> ArrayView2<'_, f32> {
        assert_eq!(self.value_bytes, size_of::<f32>(), "only kept factors are in f16");
        // SAFETY: they are f32, as many as the shape says, and the owner keeps them.
        unsafe { ArrayView2::from_shape_ptr(self.dim, self.at.cast().as_ptr()) }
    }

    /// The entry of a pair.
    pub(super) fn entry([a, b]: &[Self; 2]) -> Entry {
        let address = |factor: &Self| factor.at.as_ptr().expose_provenance() as i64;
        [address(a), address(b), a.dim.0 as i64, a.value_bytes as i64]
    }

    /// One in f32 as a tensor, which reads it where it is: it must not outlive this one, and neither a binding of it.
    /// `ort` itself copies borrowed memory when it is bound.
    pub(super) fn tensor(&self) -> Result<Tensor<f32>> {
        let values = self.floats();
        let (memory, shape) = (MemoryInfo::default(), [self.dim.0 as i64, self.dim.1 as i64]);
        let (data, size_bytes) = (values.as_ptr().cast_mut().cast(), values.len() * size_of::<f32>());
        let mut value = ptr::null_mut();
        // SAFETY: data and shape have the lengths that are given; the graph only reads its inputs.
        ort::ortsys![@ort: unsafe CreateTensorWithDataAsOrtValue(
            memory.ptr(), data, size_bytes, shape.as_ptr(), shape.len(), TensorElementType::Float32.into(), &mut value)
            as Result]
        .map_err(failed)?;
        let value = NonNull::new(value).expect("a call that succeeds gives a value");
        // SAFETY: it was just made, as a tensor of f32.
        Ok(unsafe { Tensor::from_ptr(value, Some(&Allocator::default())) })
    }
}

/// The graph's input for `a` (`[rank, in]`) or `b` (`[out, rank]`) of a target.
pub(super) fn input_name(layer: usize, target: Target, part: &str) -> String {
    format!("layers.{layer}.{}.lora_{part}", target.name())
}
