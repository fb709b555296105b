use serde::{Deserialize, Serialize};

use crate::method::{Composition, PoolShape};

/// What a generator is; the paper's values are the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Experts in the pool.
    pub expert_count: usize,
    /// Experts kept per layer.
    pub top_k: usize,
    /// Rank of an expert's pairs.
    pub rank: usize,
    /// `alpha / rank` is the factor on every delta.
    pub alpha: f32,
    /// How experts become one LoRA.
    pub composition: Composition,
    /// Width between the router's two layers.
    pub router_hidden_size: usize,
    /// Rank of the LoRA on the cloud LM's q and v; 0 leaves the cloud LM frozen, and its reading of a prompt is
    /// then computed once and kept.
    pub cloud_rank: usize,
    /// Longest prompt in cloud tokens.
    pub prompt_tokens_max: usize,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            expert_count: 8,
            top_k: 2,
            rank: 16,
            alpha: 16.0,
            composition: Composition::Average,
            router_hidden_size: 256,
            cloud_rank: 16,
            prompt_tokens_max: 2048,
        }
    }
}

impl GeneratorConfig {
    /// The pool for an edge model of these widths.
    pub fn pool_shape(&self, hidden_size: usize, ffn_size: usize) -> PoolShape {
        PoolShape { expert_count: self.expert_count, rank: self.rank, hidden_size, ffn_size }
    }

    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}
