//! A pack's LoRA pairs as inputs of the graph.

use ndarray::Array2;
use ort::value::Tensor;

use super::library::failed;
use crate::Result;
use crate::lora::{LayerLora, Target};

/// One layer's side path: what its graph inputs are bound to.
#[derive(Default)]
pub struct OnnxLora {
    /// `a` and `scale · b`, in the order of [`Target::ALL`].
    pub(super) pairs: [Option<[Tensor<f32>; 2]>; 3],
}

impl OnnxLora {
    pub(super) fn new(layer: &LayerLora, scale: f32) -> Result<Self> {
        let mut pairs = [None, None, None];
        for (place, target) in pairs.iter_mut().zip(Target::ALL) {
            let Some(pair) = layer.pair(target) else { continue };
            *place = Some([tensor(&pair.a, 1.0)?, tensor(&pair.b, scale)?]);
        }
        Ok(Self { pairs })
    }
}

fn tensor(array: &Array2<f32>, factor: f32) -> Result<Tensor<f32>> {
    let values: Vec<f32> = match array.as_slice() {
        Some(values) if factor == 1.0 => values.to_vec(),
        _ => array.iter().map(|value| value * factor).collect(),
    };
    Tensor::from_array(([array.nrows(), array.ncols()], values)).map_err(failed)
}

/// The graph's input for `a` (`[rank, in]`) or `b` (`[out, rank]`) of a target.
pub(super) fn input_name(layer: usize, target: Target, part: &str) -> String {
    format!("layers.{layer}.{}.lora_{part}", target.name())
}
