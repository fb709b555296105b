//! A pack's LoRA pairs, where a graph finds them.

use std::array;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use ndarray::ArrayView2;
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::value::{Tensor, TensorElementType};

use super::library::failed;
use crate::Result;
use crate::kernels::{Kept, Kernels, SideMemory, SidePath};
use crate::lora::{LayerLora, LoraPair, LoraSet, Target};

/// How a graph takes pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PairInputs {
    /// Two inputs per pair, in f32, for standard operators: in files, so that any program runs them.
    Tensors,
    /// One input that says where the pairs lie, for [our operator](super::side_operator).
    Place,
}

/// The input that says where the pairs lie.
pub(super) const PLACE: &str = "side_path";
/// Its value: address of the first layer's [`OnnxLora`], and how many layers there are. Zeros without a pack.
pub(super) type Place = [i64; 2];

/// How the pairs of a graph are kept, and where.
pub(super) struct PairMemory {
    inputs: PairInputs,
    kernels: Kernels,
    memory: SideMemory,
}

/// One layer's side path.
pub struct OnnxLora {
    /// Of the whole model, as it came.
    lora: Arc<LoraSet>,
    layer: usize,
    memory: Arc<PairMemory>,
    kept: OnceLock<Pairs>,
}

/// Pairs where tokens read them fastest.
pub(super) enum Pairs {
    /// Of gate and up, which share their input, and of down: in 8 bits, for our operator.
    Own([Option<SidePath>; 2]),
    /// In f32, for standard operators, in the order of [`Target::ALL`].
    Tensors([Option<[Kept<f32>; 2]>; 3]),
}

/// `a` or `b` as a graph's input.
pub(super) type Factor<'a> = ArrayView2<'a, f32>;

impl PairMemory {
    pub(super) fn new(inputs: PairInputs) -> Arc<Self> {
        Arc::new(Self { inputs, kernels: Kernels::detect(), memory: SideMemory::default() })
    }
}

impl OnnxLora {
    /// Of one layer.
    pub(super) fn new(layer: &LayerLora, scale: f32, memory: &Arc<PairMemory>) -> Self {
        let lora = Arc::new(LoraSet { scale, layers: vec![layer.clone()] });
        Self { lora, layer: 0, memory: memory.clone(), kept: OnceLock::new() }
    }

    /// Of every layer. The pairs stay where they are until the first run: who switches packs does not wait for them.
    pub(super) fn all(lora: &Arc<LoraSet>, memory: &Arc<PairMemory>) -> Arc<[Self]> {
        let lora = match memory.inputs {
            PairInputs::Tensors if !is_plain(lora) => Arc::new(plain(lora)),
            _ => lora.clone(),
        };
        let of_layer = |layer| Self { lora: lora.clone(), layer, memory: memory.clone(), kept: OnceLock::new() };
        (0..lora.layers.len()).map(of_layer).collect()
    }

    /// As they came, in f32.
    pub(super) fn pairs(&self) -> &LayerLora {
        &self.lora.layers[self.layer]
    }

    /// The factor on every `b·a` of [`pairs`](Self::pairs).
    pub(super) fn scale(&self) -> f32 {
        self.lora.scale
    }

    /// `a` and `b` where they are now, for graphs that take tensors.
    pub(super) fn factors(&self, target: Target) -> Option<[Factor<'_>; 2]> {
        let LoraPair { a, b } = self.pairs().pair(target)?;
        let Some(Pairs::Tensors(kept)) = self.kept.get() else { return Some([a.view(), b.view()]) };
        let [kept_a, kept_b] = kept[target as usize].as_ref()?;
        let view = |dim, values| ArrayView2::from_shape(dim, values).expect("copied from as many values");
        Some([view(a.dim(), kept_a), view(b.dim(), kept_b)])
    }

    /// Width of the input that some targets share; `None` if none of them has a pair.
    pub(super) fn cols(&self, targets: Range<usize>) -> Option<usize> {
        Target::ALL[targets].iter().find_map(|target| self.pairs().pair(*target)).map(|pair| pair.a.ncols())
    }

    /// Whether the pairs are where tokens read them fastest.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.get().is_some()
    }

    /// Puts the pairs where tokens read them fastest.
    pub(super) fn keep(&self) -> &Pairs {
        let PairMemory { inputs, kernels, memory } = &*self.memory;
        let layer = self.pairs();
        self.kept.get_or_init(|| match inputs {
            PairInputs::Place => {
                let side_path = |pairs: &[_]| SidePath::new(kernels, memory, pairs, self.scale());
                Pairs::Own([side_path(&[layer.gate.as_ref(), layer.up.as_ref()]), side_path(&[layer.down.as_ref()])])
            }
            PairInputs::Tensors => Pairs::Tensors(Target::ALL.map(|target| {
                let LoraPair { a, b } = layer.pair(target)?;
                Some([a, b].map(|factor| memory.keep(factor.as_slice().expect("row by row"))))
            })),
        })
    }

    /// `y += scale · b·(a·x)` on the calling thread, for `x` of `[rows, in]` and `y` of `[rows, targets · out]`: some of
    /// [`Target::ALL`] that share their input.
    pub(super) fn add(&self, targets: Range<usize>, x: &[f32], y: &mut [f32]) {
        let Pairs::Own([gate_up, down]) = self.keep() else { return };
        let (side_path, targets) = match targets.start {
            first if first == Target::Down as usize => (down, 0..1),
            _ => (gate_up, targets),
        };
        if let Some(side_path) = side_path {
            self.memory.kernels.add_side_path(side_path, targets, x, y);
        }
    }
}

fn pairs(lora: &LoraSet) -> impl Iterator<Item = &LoraPair> {
    lora.layers.iter().flat_map(|layer| Target::ALL.map(|target| layer.pair(target))).flatten()
}

/// Whether tensors can be read from it: row by row, without a scale.
fn is_plain(lora: &LoraSet) -> bool {
    lora.scale == 1.0 && pairs(lora).all(|pair| pair.a.is_standard_layout() && pair.b.is_standard_layout())
}

/// The same, such that tensors can be read from it.
fn plain(lora: &LoraSet) -> LoraSet {
    let mut layers = lora.layers.clone();
    let pairs = layers.iter_mut().flat_map(|layer| [&mut layer.gate, &mut layer.up, &mut layer.down]);
    for LoraPair { a, b } in pairs.flatten() {
        *a = a.as_standard_layout().into_owned();
        *b = b.as_standard_layout().into_owned() * lora.scale;
    }
    LoraSet { scale: 1.0, layers }
}

/// A tensor that reads a factor where it is: it must not outlive the factor, and neither a binding of it. `ort` itself copies
/// borrowed memory when it is bound.
pub(super) fn tensor(factor: Factor) -> Result<Tensor<f32>> {
    let memory = MemoryInfo::default();
    let shape: [i64; 2] = array::from_fn(|axis| factor.shape()[axis] as i64);
    let (data, size_bytes) = (factor.as_ptr().cast_mut().cast(), factor.len() * size_of::<f32>());
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

/// The graph's input for `a` (`[rank, in]`) or `b` (`[out, rank]`) of a target.
pub(super) fn input_name(layer: usize, target: Target, part: &str) -> String {
    format!("layers.{layer}.{}.lora_{part}", target.name())
}
