use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::TrainConfig;
use super::adamw::{AdamW, accumulate};
use crate::Result;
use crate::generator::{Generator, Parameters};
use crate::method::BatchStatistics;

/// One generator in training with what its optimiser remembers. Several learn from the same passes.
pub struct Learner {
    /// `generator` or `baseline`: the name of its folder.
    pub name: &'static str,
    /// What learns.
    pub generator: Generator,
    /// Optimiser state.
    pub optimizer: AdamW,
    /// The exponential average of the weights, where the configuration asks for one.
    pub average: BTreeMap<String, Tensor>,
    gradients: BTreeMap<String, Tensor>,
    statistics: Vec<BatchStatistics>,
}

impl Learner {
    pub(super) fn new(name: &'static str, generator: Generator) -> Self {
        Self {
            name,
            generator,
            optimizer: AdamW::default(),
            average: BTreeMap::new(),
            gradients: BTreeMap::new(),
            statistics: Vec::new(),
        }
    }

    /// The gradients of the passes since the last update, by the parameter's name.
    pub fn gradients(&self) -> &BTreeMap<String, Tensor> {
        &self.gradients
    }

    /// Adds one pass's gradients to those of this step.
    pub(super) fn take(&mut self, gradients: &GradStore, statistics: Option<BatchStatistics>) -> Result<()> {
        self.statistics.extend(statistics);
        accumulate(&mut self.gradients, &self.generator.parameters, gradients)
    }

    /// Forgets the gradients that were taken, such as those of an interrupted step.
    pub fn forget(&mut self) {
        self.gradients.clear();
        self.statistics.clear();
    }

    /// The optimiser step number `step` (from 0) with what was taken. Returns the gradients' norm before clipping.
    pub(super) fn update(&mut self, config: &TrainConfig, step: u64) -> Result<f64> {
        for batch in std::mem::take(&mut self.statistics) {
            self.generator.update_statistics(&batch)?;
        }
        let share = config.rate(step);
        let rate = |name: &str| {
            share * if name.starts_with("pool.") { config.pool_learning_rate } else { config.learning_rate }
        };
        let gradients = std::mem::take(&mut self.gradients);
        let parameters = &self.generator.parameters;
        let norm = self.optimizer.update(parameters, &gradients, step, rate, config.weight_decay, config.clip_norm)?;
        if config.weight_average > 0.0 {
            // Early averages would remember the start: until then the decay is lower.
            let decay = config.weight_average.min((step + 1) as f64 / (step + 10) as f64);
            for (name, var) in parameters.iter() {
                let now = var.as_detached_tensor();
                let average = match self.average.remove(name) {
                    Some(average) => ((average * decay)? + (now * (1.0 - decay))?)?,
                    None => now.copy()?,
                };
                self.average.insert(name.to_owned(), average);
            }
        }
        Ok(norm)
    }

    /// Calls `f` with the generator holding its averaged weights, if there are any.
    pub(super) fn with_average<R>(&self, f: impl FnOnce(&Generator) -> Result<R>) -> Result<R> {
        let parameters = &self.generator.parameters;
        let last: BTreeMap<&str, Tensor> = match self.average.is_empty() {
            true => BTreeMap::new(),
            false => parameters
                .iter()
                .map(|(name, var)| Ok((name, var.as_detached_tensor().copy()?)))
                .collect::<Result<_>>()?,
        };
        let set = |parameters: &Parameters, name: &str, value: &Tensor| parameters.var(name).set(value);
        for (name, value) in &self.average {
            set(parameters, name, value)?;
        }
        let result = f(&self.generator);
        for (name, value) in &last {
            set(parameters, name, value)?;
        }
        result
    }
}
