use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use edgeweld::CancelToken;
use edgeweld::tokenizer::EncodeOptions;

use super::adamw::{AdamW, accumulate};
use super::{Sampler, Step, TrainConfig, Weighting};
use crate::Result;
use crate::generator::{Generator, LanguageModel, PromptGates, user_turn};
use crate::grad::{Batch, Dropout, Prefix, SparseTarget, head_loss};
use crate::method::{BatchStatistics, load_balance};

/// A generator in training.
pub struct Trainer {
    /// Settings.
    pub config: TrainConfig,
    /// What learns.
    pub generator: Generator,
    /// Optimiser state.
    pub optimizer: AdamW,
    /// Optimiser steps done.
    pub step: u64,
    pub(super) cloud: LanguageModel,
    pub(super) edge: LanguageModel,
    sampler: Sampler,
    prompts: HashMap<String, Arc<Prefix>>,
    prompts_size_bytes: usize,
}

/// What one optimiser step did.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Mean cross-entropy of the answers, nats per label token (or item-weighted).
    pub loss: f64,
    /// Eq. 9 without α.
    pub load_balance: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Share of the peak learning rate.
    pub schedule: f64,
    /// Cloud and edge tokens that were computed.
    pub tokens: usize,
}

// One turn with its answer: rows of the edge batch.
struct Turn {
    ids: Vec<u32>,
    // Rows that predict a label token.
    labels: Range<usize>,
}

impl Trainer {
    /// A trainer at step 0.
    pub fn new(
        config: TrainConfig,
        generator: Generator,
        mut cloud: LanguageModel,
        edge: LanguageModel,
        sampler: Sampler,
    ) -> Self {
        generator.attach_cloud_lora(&mut cloud.decoder);
        Self {
            config,
            generator,
            optimizer: AdamW::default(),
            step: 0,
            cloud,
            edge,
            sampler,
            prompts: HashMap::new(),
            prompts_size_bytes: 0,
        }
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// [`edgeweld::Error::Cancelled`] within one layer of the cancellation, with everything as before the step.
    pub fn advance(&mut self, cancel: &CancelToken) -> Result<StepReport> {
        let mut gradients = BTreeMap::new();
        let mut report = StepReport { step: self.step + 1, ..StepReport::default() };
        let count = self.config.accumulation;
        let mut statistics = Vec::new();
        for index in 0..count {
            let pass = self.step * count as u64 + index as u64;
            let steps = self.sampler.pass(&self.config, pass);
            let (loss, balance, batch, tokens) = self.loss(&steps, Some(pass), cancel)?;
            let total = ((&loss + (&balance * self.config.load_balance)?)? / count as f64)?;
            let grads = total.backward()?;
            cancel.check()?;
            accumulate(&mut gradients, &self.generator.parameters, &grads)?;
            report.loss += f64::from(loss.to_scalar::<f32>()?) / count as f64;
            report.load_balance += f64::from(balance.to_scalar::<f32>()?) / count as f64;
            report.tokens += tokens;
            statistics.push(batch);
        }
        for batch in &statistics {
            self.generator.update_statistics(batch)?;
        }
        report.schedule = self.config.schedule(self.step);
        let rate = |name: &str| {
            let peak =
                if name.starts_with("pool.") { self.config.pool_learning_rate } else { self.config.learning_rate };
            peak * report.schedule
        };
        let (decay, clip) = (self.config.weight_decay, self.config.clip_norm);
        report.gradient_norm =
            self.optimizer.update(&self.generator.parameters, &gradients, self.step, rate, decay, clip)?;
        self.step += 1;
        Ok(report)
    }

    // (answer loss, load balance, batch statistics, tokens computed)
    fn loss(
        &mut self,
        steps: &[Step],
        dropout_seed: Option<u64>,
        cancel: &CancelToken,
    ) -> Result<(Tensor, Tensor, BatchStatistics, usize)> {
        let (gates, statistics, cloud_tokens) = self.read(steps, cancel)?;
        let balance = load_balance(&gates.gates.values)?;

        let (mut turns, mut groups, mut row_count) = (Vec::new(), Vec::new(), 0);
        for step in steps {
            let start = row_count;
            for (item, answer) in &step.items {
                let turn = self.turn(&item.input, answer)?;
                row_count += turn.ids.len();
                turns.push(turn);
            }
            groups.push(start..row_count);
        }
        let dropout = dropout_seed.filter(|_| self.config.dropout > 0.0).map(|pass| Dropout {
            probability: self.config.dropout,
            seed: self.config.seed.wrapping_add(pass.wrapping_mul(1 << 20)),
        });
        let thetas = self.generator.thetas(&gates, &groups.into(), dropout)?;
        let loss = self.answer_loss(&turns, Some(&thetas), cancel)?;
        Ok((loss, balance, statistics, cloud_tokens + row_count))
    }

    fn answer_loss(
        &self,
        turns: &[Turn],
        thetas: Option<&[crate::grad::LayerTheta]>,
        cancel: &CancelToken,
    ) -> Result<Tensor> {
        let decoder = &self.edge.decoder;
        let ids: Vec<u32> = turns.iter().flat_map(|turn| turn.ids.iter().copied()).collect();
        let lengths: Vec<usize> = turns.iter().map(|turn| turn.ids.len()).collect();
        let mut batch = Batch::packed(&lengths, vec![None; turns.len()]);
        let h = decoder.hidden(decoder.embed(&ids)?, &mut batch, thetas, cancel)?;

        let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::<SparseTarget>::new(), Vec::new());
        let mut start = 0;
        for turn in turns {
            for row in turn.labels.clone() {
                rows.push((start + row) as u32);
                targets.push(vec![(turn.ids[row + 1], 1.0)]);
                weights.push(match self.config.weighting {
                    Weighting::Token => 1.0,
                    Weighting::Item => 1.0 / turn.labels.len() as f32,
                });
            }
            start += turn.ids.len();
        }
        let total: f32 = weights.iter().sum();
        let device = h.device().clone();
        let count = rows.len();
        let h = h.index_select(&Tensor::from_vec(rows, count, &device)?, 0)?;
        let h = decoder.output_norm(&h)?;
        let losses = head_loss(&h, &decoder.head.dense()?, decoder.config.logit_softcap, targets)?;
        let weights = Tensor::from_vec(weights, count, &device)?;
        Ok((losses.mul(&weights)?.sum_all()? / f64::from(total))?)
    }

    // Gates of the steps' prompts.
    fn read(&mut self, steps: &[Step], cancel: &CancelToken) -> Result<(PromptGates, BatchStatistics, usize)> {
        let layer_count = self.edge.decoder.config.layer_count();
        let mut ids = Vec::with_capacity(steps.len());
        for step in steps {
            let mut prompt = self.cloud.encode(&step.prompt)?;
            prompt.truncate(self.generator.config.prompt_tokens_max);
            ids.push(prompt);
        }
        let mut tokens = layer_count * steps.len();
        let meta = if self.generator.config.cloud_rank > 0 {
            tokens += ids.iter().map(Vec::len).sum::<usize>();
            self.generator.meta(&self.cloud, &ids, cancel)?
        } else {
            let mut prefixes = Vec::with_capacity(ids.len());
            for (step, ids) in steps.iter().zip(&ids) {
                if let Some(prefix) = self.prompts.get(&step.prompt) {
                    prefixes.push(prefix.clone());
                    continue;
                }
                tokens += ids.len();
                let prefix = self.generator.read_prompt(&self.cloud, ids, cancel)?;
                // Single-item instructions hardly come back: only prompts of tasks are kept.
                if step.items.len() > 1 && self.prompts_size_bytes < self.config.prompt_cache_bytes {
                    self.prompts_size_bytes += prefix.size_bytes();
                    self.prompts.insert(step.prompt.clone(), prefix.clone());
                }
                prefixes.push(prefix);
            }
            self.generator.meta_after(&self.cloud, &prefixes, cancel)?
        };
        let (gates, statistics) = self.generator.gates_train(&meta)?;
        Ok((gates, statistics, tokens))
    }

    // The turn, the answer and the end of turn; the input is cut in front if they are too long.
    fn turn(&self, input: &str, answer: &str) -> Result<Turn> {
        let tokenizer = &self.edge.tokenizer;
        let plain = EncodeOptions { add_special: false, parse_special: false };
        let limit = self.config.item_tokens_max;
        let mut ids = user_turn(tokenizer, None, input)?;
        let mut answer = tokenizer.encode(answer, plain)?;
        answer.extend(tokenizer.special_token("<|im_end|>").or(tokenizer.eos()));
        answer.truncate(limit / 2);
        if ids.len() + answer.len() > limit {
            ids.drain(..ids.len() + answer.len() - limit);
        }
        let first = ids.len() - 1;
        ids.extend(answer);
        Ok(Turn { labels: first..ids.len() - 1, ids })
    }
}
