use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use edgeweld::CancelToken;

use super::items::{Items, Turn};
use super::{Learner, Sampler, Step, TrainConfig, Weighting};
use crate::generator::{Generator, LanguageModel, PromptState, Reading};
use crate::grad::{Batch, Dropout, LayerTheta, SparseTarget, head_loss};
use crate::method::BatchStatistics;
use crate::{Error, Result};

/// A generator, and if asked for a baseline beside it, in training.
pub struct Trainer {
    /// Settings.
    pub config: TrainConfig,
    /// What learns: the generator first.
    pub learners: Vec<Learner>,
    /// Optimiser steps done.
    pub step: u64,
    pub(super) cloud: LanguageModel,
    pub(super) items: Items,
    sampler: Sampler,
    prompts: HashMap<String, PromptState>,
    prompts_size_bytes: usize,
}

/// What one optimiser step did.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Share of the peak learning rate.
    pub rate: f64,
    /// Cloud and edge tokens of its passes.
    pub tokens: usize,
    /// The generator's losses, then the baseline's.
    pub learners: Vec<LearnerReport>,
}

/// What one optimiser step did to one learner.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct LearnerReport {
    /// Mean cross-entropy of the answers, nats per label token (or item-weighted).
    pub loss: f64,
    /// Cross-entropy of the right choice among the first tokens of all, where items have choices.
    pub choice_loss: f64,
    /// Share of these items where the right choice is the likeliest.
    pub choice_accuracy: f64,
    /// Eq. 9 without α.
    pub load_balance: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
}

// The turns of one pass, ready for the layers with deltas.
struct Lessons {
    turns: Vec<Turn>,
    // [rows, hidden] before the first layer with a delta
    states: Tensor,
    // Rows of each prompt.
    groups: Arc<[Range<usize>]>,
}

impl Trainer {
    /// A trainer at step 0.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a configuration that no run can work with.
    pub fn new(
        config: TrainConfig,
        mut cloud: LanguageModel,
        edge: LanguageModel,
        sampler: Sampler,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        if sampler.counts() == [0, 0, 0] {
            return Err(Error::InvalidOption { option: "--data", reason: "there is nothing to train on".into() });
        }
        let mut learners = Vec::new();
        let configs = std::iter::once(("generator", &config.generator))
            .chain(config.baseline.as_ref().map(|baseline| ("baseline", baseline)));
        for (name, generator) in configs {
            if generator.first_layer != config.generator.first_layer || name == "baseline" && generator.cloud_rank > 0 {
                let reason = "first_layer must be the generator's and cloud_rank 0: they share passes".into();
                return Err(Error::InvalidOption { option: "baseline", reason });
            }
            let (cloud, edge) = (&cloud.decoder.config, &edge.decoder.config);
            let generator = Generator::new(generator.clone(), cloud, edge, config.seed, device)?;
            learners.push(Learner::new(name, generator));
        }
        learners[0].generator.attach_cloud_lora(&mut cloud.decoder);
        let items = Items::new(edge, &config);
        let prompts = HashMap::new();
        Ok(Self { config, learners, step: 0, cloud, items, sampler, prompts, prompts_size_bytes: 0 })
    }

    /// Reads the tasks' prompts and standardises pooled ones by them; to be called once before the first step, not
    /// for a resumed run. Nothing for generators that do not pool.
    pub fn fit_reading(&mut self, cancel: &CancelToken) -> Result<()> {
        if self.learners[0].generator.config.reading != Reading::Pooled {
            return Ok(());
        }
        let prompts = self.sampler.prompts(&self.config);
        let states = prompts.iter().map(|prompt| Ok(self.read(0, prompt, true, cancel)?.0));
        let states = states.collect::<Result<Vec<_>>>()?;
        self.learners[0].generator.fit_reading(&states)
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// [`edgeweld::Error::Cancelled`] within one layer of the cancellation, with everything as before the step.
    pub fn advance(&mut self, cancel: &CancelToken) -> Result<StepReport> {
        self.learners.iter_mut().for_each(Learner::forget);
        let mut report = StepReport { step: self.step + 1, rate: self.config.rate(self.step), ..Default::default() };
        report.learners = vec![LearnerReport::default(); self.learners.len()];
        let count = self.config.accumulation as u64;
        for pass in self.step * count..(self.step + 1) * count {
            let steps = self.sampler.pass(&self.config, pass);
            self.learn(&steps, pass, &mut report, cancel)?;
        }
        for (learner, report) in self.learners.iter_mut().zip(&mut report.learners) {
            report.gradient_norm = learner.update(&self.config, self.step)?;
        }
        self.step += 1;
        Ok(report)
    }

    /// Adds the gradients of one pass, a share of `1 / accumulation`, to those the learners keep
    /// ([`Learner::gradients`]), and its losses to `report`, which has an entry per learner. No weight changes.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn learn(&mut self, steps: &[Step], pass: u64, report: &mut StepReport, cancel: &CancelToken) -> Result<()> {
        let count = self.config.accumulation as f64;
        let lessons = self.lessons(steps, cancel)?;
        report.tokens += lessons.states.dim(0)?;
        for learner in 0..self.learners.len() {
            let (total, tokens, statistics, part) = self.loss(learner, steps, &lessons, pass, cancel)?;
            let gradients = (total / count)?.backward()?;
            cancel.check()?;
            self.learners[learner].take(&gradients, statistics)?;
            report.tokens += tokens;
            report.learners[learner].add(&part, count);
        }
        Ok(())
    }

    fn lessons(&mut self, steps: &[Step], cancel: &CancelToken) -> Result<Lessons> {
        let (mut turns, mut states, mut groups, mut row_count) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for step in steps {
            let start = row_count;
            let prompt = self.config.prompt_in_context.then_some(step.prompt.as_str());
            for sample in &step.samples {
                let turn = self.items.turn(sample, prompt)?;
                row_count += turn.ids.len();
                states.push(self.items.state(&turn.ids, cancel)?);
                turns.push(turn);
            }
            groups.push(start..row_count);
        }
        Ok(Lessons { turns, states: Tensor::cat(&states, 0)?, groups: groups.into() })
    }

    // (total loss, cloud tokens computed, batch statistics, parts)
    fn loss(
        &mut self,
        learner: usize,
        steps: &[Step],
        lessons: &Lessons,
        pass: u64,
        cancel: &CancelToken,
    ) -> Result<(Tensor, usize, Option<BatchStatistics>, LearnerReport)> {
        let seed = self.config.seed.wrapping_add(pass.wrapping_mul(1 << 20));
        let dropout = (self.config.dropout > 0.0).then_some(Dropout { probability: self.config.dropout, seed });
        let by_token = self.learners[learner].generator.config.reading == Reading::Token;
        let (mut tokens, mut statistics, mut prompts) = (0, None, None);
        let thetas = if by_token {
            self.learners[learner].generator.token_thetas(dropout)?
        } else {
            let (meta, computed) = self.meta(learner, steps, cancel)?;
            let generator = &self.learners[learner].generator;
            let (gates, batch) = generator.gates_train(&meta, seed)?;
            let thetas = generator.thetas(&gates, &lessons.groups, dropout)?;
            (tokens, statistics, prompts) = (computed, batch, Some(gates));
            thetas
        };
        let config = &self.config;
        let (answers, choices) = self.answer_loss(lessons, &thetas, cancel)?;
        // Tokens have chosen their gates only now.
        let balance = prompts.map_or_else(|| token_load_balance(&thetas), |gates| gates.load_balance())?;
        let mut total = (&answers + (&balance * config.load_balance)?)?;
        let mut report =
            LearnerReport { loss: scalar(&answers)?, load_balance: scalar(&balance)?, ..Default::default() };
        if let Some((loss, accuracy)) = choices {
            (report.choice_loss, report.choice_accuracy) = (scalar(&loss)?, accuracy);
            total = (total + (loss * config.choice_weight)?)?;
        }
        Ok((total, tokens, statistics, report))
    }

    // (loss of the answers' tokens, (loss, accuracy) of the choices)
    fn answer_loss(
        &self,
        lessons: &Lessons,
        thetas: &[LayerTheta],
        cancel: &CancelToken,
    ) -> Result<(Tensor, Option<(Tensor, f64)>)> {
        let decoder = &self.items.upper;
        let lengths: Vec<usize> = lessons.turns.iter().map(|turn| turn.ids.len()).collect();
        let mut batch = Batch::packed(&lengths, vec![None; lengths.len()]);
        let h = decoder.hidden(lessons.states.clone(), &mut batch, Some(thetas), cancel)?;

        let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::<SparseTarget>::new(), Vec::new());
        // Rows of `rows` that predict the first token of an answer with choices.
        let mut choices: Vec<(u32, &[u32], usize)> = Vec::new();
        let mut start = 0;
        for turn in &lessons.turns {
            if self.config.choice_weight > 0.0
                && let Some((ids, right)) = &turn.choices
            {
                choices.push((rows.len() as u32, ids, *right));
            }
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
        let head = decoder.head.dense()?;
        let losses = head_loss(&h, &head, decoder.config.logit_softcap, targets)?;
        let weights = Tensor::from_vec(weights, count, &device)?;
        let answers = (losses.mul(&weights)?.sum_all()? / f64::from(total))?;
        Ok((answers, choice_loss(&h, &head, decoder.config.logit_softcap, &choices)?))
    }

    // Meta tokens of the steps' prompts, and the cloud tokens that were computed.
    fn meta(&mut self, learner: usize, steps: &[Step], cancel: &CancelToken) -> Result<(Tensor, usize)> {
        if self.learners[learner].generator.config.cloud_rank > 0 {
            let ids = steps.iter().map(|step| self.prompt_ids(learner, &step.prompt)).collect::<Result<Vec<_>>>()?;
            let generator = &self.learners[learner].generator;
            let tokens = ids.iter().map(|ids| ids.len() + generator.active_layers()).sum();
            return Ok((generator.meta(&self.cloud, &ids, cancel)?, tokens));
        }
        let (mut states, mut tokens) = (Vec::with_capacity(steps.len()), 0);
        for step in steps {
            let (state, read) = self.read(learner, &step.prompt, step.recurs, cancel)?;
            tokens += read;
            if matches!(state, PromptState::Prefix(_)) {
                tokens += self.learners[learner].generator.active_layers();
            }
            states.push(state);
        }
        Ok((self.learners[learner].generator.meta_after(&self.cloud, &states, cancel)?, tokens))
    }

    // The frozen cloud LM's reading of a prompt, kept if it will come back; and the tokens that were computed.
    fn read(&mut self, learner: usize, prompt: &str, keep: bool, cancel: &CancelToken) -> Result<(PromptState, usize)> {
        let generator = &self.learners[learner].generator;
        if generator.config.reading == Reading::None {
            return Ok((PromptState::None, 0));
        }
        // Learners may read in different ways.
        let key = format!("{:?} {prompt}", generator.config.reading);
        if let Some(state) = self.prompts.get(&key) {
            return Ok((state.clone(), 0));
        }
        let ids = self.prompt_ids(learner, prompt)?;
        let state = self.learners[learner].generator.read_prompt(&self.cloud, &ids, cancel)?;
        if keep && self.prompts_size_bytes < self.config.prompt_cache_bytes {
            self.prompts_size_bytes += state.size_bytes();
            self.prompts.insert(key, state.clone());
        }
        Ok((state, ids.len()))
    }

    fn prompt_ids(&self, learner: usize, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = self.cloud.encode(prompt)?;
        ids.truncate(self.learners[learner].generator.config.prompt_tokens_max);
        Ok(ids)
    }
}

impl LearnerReport {
    // Adds one of `count` passes to the mean.
    fn add(&mut self, part: &Self, count: f64) {
        self.loss += part.loss / count;
        self.choice_loss += part.choice_loss / count;
        self.choice_accuracy += part.choice_accuracy / count;
        self.load_balance += part.load_balance / count;
    }
}

// Eq. 9 without α, mean over layers.
fn token_load_balance(thetas: &[LayerTheta]) -> Result<Tensor> {
    let mut layers = Vec::with_capacity(thetas.len());
    for theta in thetas {
        if let LayerTheta::Tokens(experts) = theta {
            layers.extend(experts.load_balance()?);
        }
    }
    Ok(Tensor::stack(&layers, 0)?.mean(0)?)
}

// Cross-entropy over the first tokens of the choices, mean over items; none without items that have choices.
fn choice_loss(
    h: &Tensor,
    head: &Tensor,
    softcap: Option<f32>,
    choices: &[(u32, &[u32], usize)],
) -> Result<Option<(Tensor, f64)>> {
    let (mut losses, mut hits) = (Vec::with_capacity(choices.len()), 0);
    for &(row, ids, right) in choices {
        // [choice, hidden], constants
        let weights = head.detach().index_select(&Tensor::new(ids, h.device())?, 0)?;
        let mut logits = h.narrow(0, row as usize, 1)?.matmul(&weights.t()?)?.squeeze(0)?;
        if let Some(cap) = softcap {
            logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let max = logits.max(0)?.detach();
        let log_sum = logits.broadcast_sub(&max)?.exp()?.sum_all()?.log()?.add(&max)?;
        let right_logit = logits.get(right)?;
        hits += usize::from(scalar(&right_logit)? >= scalar(&max)?);
        losses.push(log_sum.sub(&right_logit)?);
    }
    if losses.is_empty() {
        return Ok(None);
    }
    let mean = Tensor::stack(&losses, 0)?.mean(0)?;
    Ok(Some((mean, hits as f64 / choices.len() as f64)))
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_scalar::<f32>()?))
}
