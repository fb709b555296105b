use serde::{Deserialize, Serialize};

use crate::method::{Composition, PoolShape};
use crate::{Error, Result};

/// Where the router's input of an edge layer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The paper's: the cloud LM's final state at that layer's meta embedding, which follows the prompt.
    #[default]
    Meta,
    /// The mean of the cloud LM's states over the prompt's tokens after two thirds of its layers, standardised, plus
    /// the layer's embedding. Nothing is differentiated through the cloud LM, so a prompt is read once for all steps.
    Pooled,
    /// The layer's embedding alone, so that every prompt gets the same LoRA: for baselines and ablations.
    None,
    /// No prompt: each layer has `expert_count` experts of its own, and the FFN's input chooses among them token by
    /// token. With `top_k = expert_count` that is LoRAMoE (arXiv 2312.09979), with fewer MixLoRA (arXiv 2404.15159).
    /// What depends on the token can be neither merged nor made a pack: for baselines.
    Token,
}

/// How the router's logits become gates in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// The `top_k` largest (Eq. 6–7).
    #[default]
    KeepTop,
    /// The `top_k` largest after adding Gumbel noise (the paper's Table 8); without noise at inference.
    Gumbel,
    /// No choice: the logits themselves weigh all experts, whatever their size and sign. Router and pool are then one
    /// network whose last layer, the pool, gives the LoRA's weights: direct generation (the paper's Table 9).
    Direct,
}

/// What a generator is; the paper's values are the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Experts in the pool that the router chooses from (per layer for [`Reading::Token`]); 0 leaves the shared experts
    /// alone: plain multi-task LoRA.
    pub expert_count: usize,
    /// Experts kept per layer.
    pub top_k: usize,
    /// Adds one expert per layer that is always on with gate 1: what all tasks share need not be routed.
    pub shared_expert: bool,
    /// Rank of an expert's pairs.
    pub rank: usize,
    /// `alpha / rank` is the factor on every delta.
    pub alpha: f32,
    /// How experts become one LoRA.
    pub composition: Composition,
    /// How the router chooses.
    pub routing: Routing,
    /// What the router reads.
    pub reading: Reading,
    /// Edge layers below this one get no delta. Their states then depend on the item only, so training keeps them.
    pub first_layer: usize,
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
            shared_expert: false,
            rank: 16,
            alpha: 16.0,
            composition: Composition::Average,
            routing: Routing::KeepTop,
            reading: Reading::Meta,
            first_layer: 0,
            router_hidden_size: 256,
            cloud_rank: 16,
            prompt_tokens_max: 2048,
        }
    }
}

impl GeneratorConfig {
    /// # Errors
    /// [`Error::InvalidOption`] for values that make no generator for an edge model of `layer_count` layers.
    pub fn check(&self, layer_count: usize) -> Result<()> {
        let invalid = |option, reason: String| Err(Error::InvalidOption { option, reason });
        if self.first_layer >= layer_count {
            return invalid("first_layer", format!("{} of {layer_count} layers", self.first_layer));
        }
        if self.top_k > self.expert_count || (self.top_k == 0) != (self.expert_count == 0) {
            return invalid("top_k", format!("{} of {} experts", self.top_k, self.expert_count));
        }
        if self.expert_count == 0 && !self.shared_expert {
            return invalid("expert_count", "without experts and without shared experts there is no LoRA".into());
        }
        if self.reading == Reading::Token && self.shared_expert {
            return invalid("shared_expert", "experts that tokens choose from are not shared by prompts".into());
        }
        if self.reading == Reading::Token && self.routing != Routing::KeepTop {
            return invalid("routing", "tokens keep the largest gates".into());
        }
        if self.routing == Routing::Direct && self.top_k < self.expert_count {
            return invalid("top_k", "direct generation keeps all experts".into());
        }
        if self.expert_count == 0 && self.reading != Reading::None {
            return invalid("reading", "nothing is routed without experts: it must be \"none\"".into());
        }
        if self.cloud_rank > 0 && self.reading != Reading::Meta {
            return invalid("cloud_rank", "only reading = \"meta\" differentiates through the cloud LM".into());
        }
        let positive = [
            ("rank", self.rank),
            ("router_hidden_size", self.router_hidden_size),
            ("prompt_tokens_max", self.prompt_tokens_max),
        ];
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((option, _)) => invalid(option, "must be above zero".into()),
            None => Ok(()),
        }
    }

    /// Whether a router turns what was read of a prompt into gates.
    pub fn routes_prompts(&self) -> bool {
        self.expert_count > 0 && self.reading != Reading::Token
    }

    /// Experts of the pool: those the router chooses from, then the shared ones of `layer_count` edge layers; or those
    /// that the tokens of each layer choose from, layer after layer.
    pub fn pool_size(&self, layer_count: usize) -> usize {
        let layers = layer_count - self.first_layer;
        match self.reading {
            Reading::Token => self.expert_count * layers,
            _ => self.expert_count + if self.shared_expert { layers } else { 0 },
        }
    }

    /// Experts that make up the LoRA of one layer.
    pub fn active_experts(&self) -> usize {
        self.top_k + usize::from(self.shared_expert)
    }

    /// The pool for an edge model of these sizes.
    pub fn pool_shape(&self, layer_count: usize, hidden_size: usize, ffn_size: usize) -> PoolShape {
        PoolShape { expert_count: self.pool_size(layer_count), rank: self.rank, hidden_size, ffn_size }
    }

    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}
