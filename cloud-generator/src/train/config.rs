use serde::{Deserialize, Serialize};

use crate::generator::GeneratorConfig;

/// How label tokens count in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Each token alike (Eq. 10).
    #[default]
    Token,
    /// Each item alike, so that long answers do not drown labels.
    Item,
}

/// Everything `train` needs to know; the defaults are the paper's (Table 10).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The generator.
    pub generator: GeneratorConfig,
    /// Makes the run repeatable.
    pub seed: u64,
    /// Optimiser steps.
    pub step_count: u64,
    /// Forward and backward passes per optimiser step.
    pub accumulation: usize,
    /// Prompts per pass.
    pub prompts_per_pass: usize,
    /// Items per prompt; they share its LoRA.
    pub items_per_prompt: usize,
    /// Longest turn with answer in edge tokens; longer items are cut at the front of the input.
    pub item_tokens_max: usize,
    /// Most examples shown in a prompt.
    pub examples_max: usize,
    /// Peak learning rate of the meta embeddings, router and cloud LoRA.
    pub learning_rate: f64,
    /// Peak learning rate of the pool.
    pub pool_learning_rate: f64,
    /// Steps until the peak.
    pub warmup_steps: u64,
    /// AdamW's decoupled decay.
    pub weight_decay: f64,
    /// Gradient norm above which gradients are scaled down.
    pub clip_norm: f64,
    /// α of Eq. 9.
    pub load_balance: f64,
    /// Dropout on the input of the edge LoRA.
    pub dropout: f32,
    /// How label tokens count.
    pub weighting: Weighting,
    /// Minutes between checkpoints.
    pub checkpoint_minutes: f64,
    /// Most bytes of prompts kept read, where the cloud LM is frozen.
    pub prompt_cache_bytes: usize,
    /// Share of passes' prompts drawn from single-item instruction data rather than from tasks.
    pub instruction_share: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            generator: GeneratorConfig::default(),
            seed: 20_251_113,
            step_count: 4000,
            accumulation: 1,
            prompts_per_pass: 8,
            items_per_prompt: 8,
            item_tokens_max: 2048,
            examples_max: 2,
            learning_rate: 2e-5,
            pool_learning_rate: 2e-5,
            warmup_steps: 50,
            weight_decay: 0.1,
            clip_norm: 1.0,
            load_balance: 0.01,
            dropout: 0.05,
            weighting: Weighting::Token,
            checkpoint_minutes: 10.0,
            prompt_cache_bytes: 1 << 30,
            instruction_share: 0.2,
        }
    }
}

impl TrainConfig {
    /// Share of the peak learning rate at `step` (from 0): linear warm-up, then half a cosine to zero.
    pub fn schedule(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = self.step_count.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / span).min(1.0);
        0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}
