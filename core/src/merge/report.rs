use std::time::Duration;

use super::round::Totals;
use super::{MergeMode, Rounding};
use crate::lora::Target;
use crate::quant::BlockType;

/// What became of one tensor's delta.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorReport {
    /// Layer index.
    pub layer: usize,
    /// Which projection.
    pub target: Target,
    /// Block type of the base weight.
    pub block_type_before: BlockType,
    /// Block type of the merged weight.
    pub block_type_after: BlockType,
    /// `<Δ, W'−W> / ‖Δ‖²`: the share of the delta that survived. 1 for a zero delta.
    pub gain: f64,
    /// `‖W'−W−Δ‖ / ‖Δ‖`. 0 for a zero delta.
    pub noise: f64,
    /// `‖Δ‖ / ‖W‖`, from every 32nd row.
    pub relative_norm: f64,
}

impl TensorReport {
    pub(super) fn new(layer: usize, target: Target, before: BlockType, after: BlockType, totals: &Totals) -> Self {
        let zero = totals.delta == 0.0;
        let (delta, base) = totals.sampled;
        Self {
            layer,
            target,
            block_type_before: before,
            block_type_after: after,
            gain: if zero { 1.0 } else { totals.kept / totals.delta },
            noise: if zero { 0.0 } else { (totals.error / totals.delta).sqrt() },
            relative_norm: if base == 0.0 { 0.0 } else { (delta / base).sqrt() },
        }
    }

    /// `3.up_proj`
    pub fn name(&self) -> String {
        format!("{}.{}", self.layer, self.target.name())
    }
}

/// The merged model's answers to the probe texts beside the side path's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeReport {
    /// Probe tokens compared.
    pub token_count: usize,
    /// Share of tokens whose most likely next token is the same.
    pub agreement: f64,
    /// Perplexity of the probe texts, divided by the side path's.
    pub perplexity_ratio: f64,
    /// Mean Kullback–Leibler divergence from the side path, nats per token.
    pub divergence: f64,
    /// Share of tokens whose most likely next token is the same on the base model and the side path: what a
    /// merge that did nothing would score.
    pub base_agreement: f64,
}

/// One attempt to merge, and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// [`MergeMode::Merge`] or [`MergeMode::Promote`].
    pub mode: MergeMode,
    /// Bytes of merged weights it needs.
    pub size_bytes: u64,
    /// Per tensor; empty if it was not tried.
    pub tensors: Vec<TensorReport>,
    /// `None` if it ended before the probe.
    pub probe: Option<ProbeReport>,
    /// Why it was refused; `None` if it passed.
    pub refusal: Option<Refusal>,
    /// Time to re-quantise.
    pub merge_time: Duration,
    /// Time to compare probe logits.
    pub proof_time: Duration,
}

/// Why an attempt was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The merged weights take more than the memory budget.
    #[error("needs {required_bytes} bytes, the memory budget is {budget_bytes}")]
    Memory {
        /// Bytes of merged weights.
        required_bytes: u64,
        /// [`MergeOptions::memory_budget_bytes`](super::MergeOptions::memory_budget_bytes).
        budget_bytes: u64,
    },
    /// Nothing to promote: no tensor has fewer bits than the block type asked for.
    #[error("no tensor has fewer bits than {block_type}")]
    NothingToPromote {
        /// [`MergeOptions::promote_to`](super::MergeOptions::promote_to).
        block_type: BlockType,
    },
    /// A tensor's gain is outside the limits.
    #[error("gain {gain:.3} of {target} is outside {low}–{high}")]
    Gain {
        /// The worst tensor, such as `3.up_proj`.
        target: String,
        /// Its gain.
        gain: f64,
        /// Least accepted gain.
        low: f64,
        /// Greatest accepted gain.
        high: f64,
    },
    /// Rounding changes the weights so much that a probe was not worth its time; only of
    /// [`MergeMode::Auto`].
    #[error("rounding changes the weights by {:.2}% beside the delta, the limit is {:.2}%", 100.0 * noise, 100.0 * limit)]
    Noise {
        /// `‖W'−W−Δ‖ / ‖W‖` over all merged weights.
        noise: f64,
        /// [`MergeOptions::noise_max`](super::MergeOptions::noise_max).
        limit: f64,
    },
    /// The merged model predicts other tokens than the side path.
    #[error("{agreement:.4} of the probe's top tokens agree with the side path, the limit is {limit}")]
    Agreement {
        /// Share that agrees.
        agreement: f64,
        /// Least accepted share.
        limit: f64,
    },
    /// The merged model's perplexity differs from the side path's.
    #[error("probe perplexity is {ratio:.4} of the side path's, accepted change {limit}")]
    Perplexity {
        /// Merged divided by side path.
        ratio: f64,
        /// Greatest accepted change.
        limit: f64,
    },
}

/// What a merge did, and the proof that it kept the pack.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    /// What was asked for.
    pub requested: MergeMode,
    /// What was chosen: never [`MergeMode::Auto`].
    pub chosen: MergeMode,
    /// One sentence for a log: why this mode.
    pub reason: String,
    /// How weights were rounded.
    pub rounding: Rounding,
    /// Attempts in order; the last one is the chosen one unless the side path was chosen.
    pub attempts: Vec<Attempt>,
    /// Bytes of merged weights, or of side-path factors in f32, held beside the base.
    pub extra_size_bytes: u64,
    /// Whole time, proof included.
    pub elapsed: Duration,
}

impl MergeReport {
    /// The attempt that was chosen; `None` for the side path.
    pub fn merged(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|attempt| attempt.refusal.is_none())
    }
}
