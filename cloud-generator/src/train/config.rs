use serde::{Deserialize, Serialize};

use crate::generator::GeneratorConfig;
use crate::{Error, Result};

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

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine to zero at the last step.
    #[default]
    Cosine,
    /// At its peak; with `weight_average` the run can be stopped at any step.
    Constant,
}

/// Everything `train` needs to know; the defaults are the paper's (Table 10).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
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
    /// Longest turn with answer in edge tokens.
    pub item_tokens_max: usize,
    /// Leaves longer items out, instead of cutting them at the front of the input.
    pub leave_out_long_items: bool,
    /// Most items of one task; the first ones of a shuffle. All if absent.
    pub items_per_task_max: Option<usize>,
    /// Most examples shown in a prompt.
    pub examples_max: usize,
    /// Peak learning rate of the meta embeddings, router and cloud LoRA.
    pub learning_rate: f64,
    /// Peak learning rate of the pool.
    pub pool_learning_rate: f64,
    /// Steps until the peak.
    pub warmup_steps: u64,
    /// What comes after the warm-up.
    pub schedule: Schedule,
    /// AdamW's decoupled decay.
    pub weight_decay: f64,
    /// Gradient norm above which gradients are scaled down.
    pub clip_norm: f64,
    /// What is saved as the generator: the exponential average of the weights with this decay per step; 0 for the
    /// last weights.
    pub weight_average: f64,
    /// α of Eq. 9.
    pub load_balance: f64,
    /// Weight of a second loss where an item has choices: cross-entropy of the right one among their first tokens.
    pub choice_weight: f64,
    /// Most different answers for a task to count as one with a label set.
    pub choices_max: usize,
    /// Dropout on the input of the edge LoRA.
    pub dropout: f32,
    /// How label tokens count.
    pub weighting: Weighting,
    /// Minutes between checkpoints.
    pub checkpoint_minutes: f64,
    /// Most bytes of prompts kept read, where the cloud LM is frozen.
    pub prompt_cache_bytes: usize,
    /// Most bytes of items kept as the edge layers without a delta have left them.
    pub item_cache_bytes: usize,
    /// Share of passes' prompts drawn from single-item instruction data rather than from tasks.
    pub instruction_share: f64,
    /// Share of the other prompts drawn from tasks with choices or a label set; each task alike if absent.
    pub label_share: Option<f64>,
    /// Share of multiple-choice items that are learnt as lm-evaluation-harness asks them (plain text that the answer
    /// continues) instead of as a user's turn with the options listed.
    pub harness_share: f64,
    /// Shows the prompt to the edge model too, as the system message of every turn: for a plain LoRA that keeps its
    /// prompt, as a baseline.
    pub prompt_in_context: bool,
    /// The generator.
    pub generator: GeneratorConfig,
    /// A second one that learns from the same passes: the baseline to compare with, on equal data and steps.
    pub baseline: Option<GeneratorConfig>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 20_251_113,
            step_count: 4000,
            accumulation: 1,
            prompts_per_pass: 8,
            items_per_prompt: 8,
            item_tokens_max: 2048,
            leave_out_long_items: false,
            items_per_task_max: None,
            examples_max: 2,
            learning_rate: 2e-5,
            pool_learning_rate: 2e-5,
            warmup_steps: 50,
            schedule: Schedule::Cosine,
            weight_decay: 0.1,
            clip_norm: 1.0,
            weight_average: 0.0,
            load_balance: 0.01,
            choice_weight: 0.0,
            choices_max: 16,
            dropout: 0.05,
            weighting: Weighting::Token,
            checkpoint_minutes: 10.0,
            prompt_cache_bytes: 1 << 30,
            item_cache_bytes: 1 << 30,
            instruction_share: 0.2,
            label_share: None,
            harness_share: 0.0,
            prompt_in_context: false,
            generator: GeneratorConfig::default(),
            baseline: None,
        }
    }
}

impl TrainConfig {
    /// # Errors
    /// [`Error::InvalidOption`] for a value that no run can work with; sizes of generators are checked with the models.
    pub fn check(&self) -> Result<()> {
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let rules = [
            ("step_count", self.step_count > 0, "must be above zero"),
            ("accumulation", self.accumulation > 0, "must be above zero"),
            ("prompts_per_pass", self.prompts_per_pass > 0, "must be above zero"),
            ("items_per_prompt", self.items_per_prompt > 0, "must be above zero"),
            ("items_per_task_max", self.items_per_task_max != Some(0), "must be above zero"),
            ("item_tokens_max", self.item_tokens_max > 1, "must leave room for a turn and an answer"),
            ("learning_rate", self.learning_rate >= 0.0, "must not be negative"),
            ("pool_learning_rate", self.pool_learning_rate >= 0.0, "must not be negative"),
            ("clip_norm", self.clip_norm > 0.0, "must be above zero"),
            ("weight_average", (0.0..1.0).contains(&self.weight_average), "must be in [0, 1)"),
            ("dropout", (0.0..1.0).contains(&self.dropout), "must be in [0, 1)"),
            ("instruction_share", share(self.instruction_share), "must be in [0, 1]"),
            ("harness_share", share(self.harness_share), "must be in [0, 1]"),
            ("label_share", self.label_share.is_none_or(share), "must be in [0, 1]"),
            ("checkpoint_minutes", self.checkpoint_minutes > 0.0, "must be above zero"),
        ];
        match rules.into_iter().find(|(_, good, _)| !good) {
            Some((option, _, reason)) => Err(Error::InvalidOption { option, reason: reason.into() }),
            None => Ok(()),
        }
    }

    /// Share of the peak learning rate at `step` (from 0): linear warm-up, then the schedule.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine => {
                let span = self.step_count.saturating_sub(self.warmup_steps).max(1) as f64;
                let progress = ((step - self.warmup_steps) as f64 / span).min(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}
