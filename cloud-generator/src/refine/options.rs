use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a pack is refined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefineOptions {
    /// Rank of the LoRA pairs; a generator's LoRA keeps its own.
    pub rank: usize,
    /// `alpha / rank` is the factor on every delta.
    pub alpha: f32,
    /// Most optimiser steps.
    pub step_count: u64,
    /// Most minutes of training; the learning rate reaches zero by then.
    pub minutes: f64,
    /// Student tokens per step.
    pub batch_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps until the peak.
    pub warmup_steps: u64,
    /// Gradient norm above which gradients are scaled down.
    pub clip_norm: f64,
    /// Share of the loss on greedy answers that counts the teacher's token alone; the rest is its distribution.
    pub label_weight: f32,
    /// Likeliest tokens of the teacher that are kept per position.
    pub top_k: usize,
    /// Longest answer in tokens.
    pub answer_tokens_max: usize,
    /// Answers per training query that are sampled from the teacher, beside its greedy one.
    pub sampled_answers: usize,
    /// Temperature of these.
    pub temperature: f32,
    /// Training queries that are sampled from the model itself, in the manner of the given ones.
    pub sampled_queries: usize,
    /// Steps between two looks at the `dev` queries.
    pub eval_steps: u64,
    /// Looks without progress after which training stops.
    pub patience: u64,
    /// Makes the run repeatable.
    pub seed: u64,
}

impl Default for RefineOptions {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 16.0,
            step_count: 400,
            minutes: 12.0,
            batch_tokens: 320,
            learning_rate: 2e-3,
            warmup_steps: 10,
            clip_norm: 1.0,
            label_weight: 0.1,
            top_k: 64,
            answer_tokens_max: 64,
            sampled_answers: 0,
            temperature: 0.8,
            sampled_queries: 0,
            eval_steps: 20,
            patience: 6,
            seed: 20_251_113,
        }
    }
}

impl RefineOptions {
    /// Reads a TOML file of what differs from the defaults; these without one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] for a setting that does not exist or a value of another type.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        toml::from_str(&text).map_err(|error| Error::InvalidFile { path: path.into(), reason: error.to_string() })
    }

    /// # Errors
    /// [`Error::InvalidOption`] for a value that no run can work with.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("--rank", self.rank > 0),
            ("--steps", self.step_count > 0),
            ("--minutes", self.minutes > 0.0),
            ("--batch-tokens", self.batch_tokens > 0),
            ("--learning-rate", self.learning_rate > 0.0),
            ("--top-k", self.top_k > 0),
            ("--answer-tokens", self.answer_tokens_max > 0),
            ("--eval-steps", self.eval_steps > 0),
        ];
        match positive.into_iter().find(|(_, good)| !good) {
            Some((option, _)) => Err(Error::InvalidOption { option, reason: "must be above zero".into() }),
            None => Ok(()),
        }
    }

    /// Share of the peak learning rate when `done` of the run (0 to 1) is over after `step` steps.
    pub(super) fn schedule(&self, step: u64, done: f64) -> f64 {
        let warmup = ((step + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        warmup * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }
}
