//! How a decoder graph is fed and read: names, types and shapes of its inputs and outputs.

use ort::value::TensorElementType;

use super::side_path::{PairInputs, input_name};
use crate::lora::{LayerLora, Target};
use crate::model::config::Config;
use crate::{Error, Result};

/// The input that says from which row on logits are wanted, in graphs that this library makes.
pub(super) const LOGIT_START: &str = "logit_start";

/// Everything a runner needs to know of a graph.
pub(super) struct Wiring {
    pub(super) ids: Integers,
    pub(super) mask: Option<Integers>,
    pub(super) positions: Option<Integers>,
    pub(super) logits: String,
    /// f32 or f16.
    pub(super) logits_type: TensorElementType,
    pub(super) logit_rows: RowsWithLogits,
    /// Keys, then values, of each layer.
    pub(super) cache: Vec<CacheWires>,
    /// f32 or f16.
    pub(super) cache_type: TensorElementType,
    /// Whether attention appends to the tensor it reads, as `GroupQueryAttention` does; else it writes a longer one.
    pub(super) appends_in_place: bool,
    /// `[out, in]` of each layer's targets that have inputs for a pair, in the order of [`Target::ALL`].
    pub(super) side_path: Vec<[Option<[usize; 2]>; 3]>,
    /// How pairs come in, where there are inputs for them.
    pub(super) pair_inputs: PairInputs,
    pub(super) vocab_size: usize,
    /// Longest context, in tokens.
    pub(super) positions_max: usize,
}

/// An input of integers.
#[derive(Clone)]
pub(super) struct Integers {
    pub(super) name: String,
    /// i32 or i64.
    pub(super) element: TensorElementType,
}

/// Which rows of a pass a graph gives logits of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowsWithLogits {
    /// Those from the input `logit_start` on.
    FromStart,
    All,
    Last,
}

/// One tensor of the KV cache, `[1, head_count, tokens, head_dim]`.
pub(super) struct CacheWires {
    pub(super) past: String,
    pub(super) present: String,
    pub(super) head_count: usize,
    pub(super) head_dim: usize,
}

impl Wiring {
    /// Of a graph that this library records.
    pub(super) fn recorded(config: &Config, positions_max: usize, with_side_path: bool) -> Self {
        let integers = |name: &str| Integers { name: name.to_owned(), element: TensorElementType::Int64 };
        let wires = |(layer, params): (usize, &crate::model::AttentionParams)| {
            ["key", "value"].map(|kind| CacheWires {
                past: format!("past_key_values.{layer}.{kind}"),
                present: format!("present.{layer}.{kind}"),
                head_count: params.kv_head_count,
                head_dim: params.head_dim,
            })
        };
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        let targets = [[ffn, hidden], [ffn, hidden], [hidden, ffn]].map(|shape| with_side_path.then_some(shape));
        Self {
            ids: integers("input_ids"),
            mask: Some(integers("attention_mask")),
            positions: None,
            logits: "logits".to_owned(),
            logits_type: TensorElementType::Float32,
            logit_rows: RowsWithLogits::FromStart,
            cache: config.attention.iter().enumerate().flat_map(wires).collect(),
            cache_type: TensorElementType::Float32,
            appends_in_place: true,
            side_path: vec![targets; config.layer_count()],
            pair_inputs: PairInputs::Place,
            vocab_size: config.vocab_size,
            positions_max,
        }
    }

    pub(super) fn has_side_path(&self) -> bool {
        self.side_path.iter().flatten().any(Option::is_some)
    }

    /// Checks that the graph has inputs for every pair of these layers, of its shapes.
    ///
    /// # Errors
    /// [`Error::TargetMissing`], [`Error::PackNeedsInput`], [`Error::ShapeMismatch`].
    pub(super) fn check_side_path<'a>(&self, lora: impl ExactSizeIterator<Item = &'a LayerLora>) -> Result<()> {
        let layers = self.side_path.len();
        if lora.len() != layers {
            let target = format!("layer {} of a model of {layers} layers", lora.len().max(layers) - 1);
            return Err(Error::TargetMissing { target });
        }
        for (layer, (pairs, shapes)) in lora.zip(&self.side_path).enumerate() {
            for (target, shape) in Target::ALL.into_iter().zip(shapes) {
                let Some(pair) = pairs.pair(target) else { continue };
                let Some([rows, cols]) = *shape else {
                    return Err(Error::PackNeedsInput { input: input_name(layer, target, "a") });
                };
                let rank = pair.a.nrows();
                for (part, expected, actual) in [("a", (rank, cols), pair.a.dim()), ("b", (rows, rank), pair.b.dim())] {
                    if actual != expected {
                        let tensor = input_name(layer, target, part);
                        let (expected, actual) = (vec![expected.0, expected.1], vec![actual.0, actual.1]);
                        return Err(Error::ShapeMismatch { tensor, expected, actual });
                    }
                }
            }
        }
        Ok(())
    }
}
