use std::sync::Arc;

use candle_core::Tensor;
use edgeweld::CancelToken;
use edgeweld::model::Backend;

use super::{Generator, LanguageModel, Reading};
use crate::grad::{Batch, Prefix};
use crate::{Error, Result};

/// Added to the variance of a pooled prompt's elements.
const EPSILON: f64 = 1e-5;

/// A prompt as the frozen cloud LM has read it.
#[derive(Clone)]
pub enum PromptState {
    /// Its keys and values ([`Reading::Meta`]).
    Prefix(Arc<Prefix>),
    /// Its mean state, `[cloud_hidden]`, before standardisation ([`Reading::Pooled`]).
    Pooled(Tensor),
    /// Nothing ([`Reading::None`]).
    None,
}

impl PromptState {
    /// Bytes it takes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Prefix(prefix) => prefix.size_bytes(),
            Self::Pooled(state) => 4 * state.elem_count(),
            Self::None => 0,
        }
    }
}

impl Generator {
    /// Reads a prompt without gradients.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`].
    pub fn read_prompt(&self, cloud: &LanguageModel, ids: &[u32], cancel: &CancelToken) -> Result<PromptState> {
        let limit = self.config.prompt_tokens_max;
        let reads = matches!(self.config.reading, Reading::Meta | Reading::Pooled);
        if reads && (ids.len() > limit || ids.is_empty()) {
            return Err(Error::PromptTooLong { actual: ids.len(), limit });
        }
        let decoder = &cloud.decoder;
        match self.config.reading {
            Reading::Meta => {
                let mut sequence = decoder.backend.sequence(&decoder.config.attention, ids.len())?;
                decoder.hidden(decoder.embed(ids)?, &mut sequence, None, cancel)?;
                Ok(PromptState::Prefix(sequence.into_prefix().expect("the prompt is not empty")))
            }
            Reading::Pooled => {
                let states = cloud.states(ids, (decoder.config.layer_count() * 2).div_ceil(3), cancel)?;
                Ok(PromptState::Pooled(states.mean(0)?))
            }
            Reading::None | Reading::Token => Ok(PromptState::None),
        }
    }

    /// Meta tokens `[prompt · layer, cloud_hidden]` of prompts that were read before, one per edge layer from
    /// `first_layer` on. Gradients reach the meta embeddings (and a cloud LoRA at the meta positions) only.
    pub fn meta_after(&self, cloud: &LanguageModel, prompts: &[PromptState], cancel: &CancelToken) -> Result<Tensor> {
        let layers = self.active_layers();
        if self.config.expert_count == 0 {
            // Nothing is routed: only the number of rows counts.
            let device = self.pool().a[0].device();
            return Ok(Tensor::zeros((prompts.len() * layers, 1), candle_core::DType::F32, device)?);
        }
        let meta = self.parameters.tensor("meta");
        let (mut prefixes, mut pooled) = (Vec::new(), Vec::new());
        for prompt in prompts {
            match prompt {
                PromptState::Prefix(prefix) => prefixes.push(Some(prefix.clone())),
                PromptState::Pooled(state) => pooled.push(self.standardise(state)?.broadcast_add(&meta)?),
                PromptState::None => pooled.push(meta.clone()),
            }
        }
        if prefixes.is_empty() {
            return Ok(Tensor::cat(&pooled, 0)?);
        }
        let h = Tensor::cat(&vec![meta; prompts.len()], 0)?;
        let mut batch = Batch::packed(&vec![layers; prompts.len()], prefixes);
        let h = cloud.decoder.hidden(h, &mut batch, None, cancel)?;
        Ok(cloud.decoder.output_norm(&h)?)
    }

    /// Meta tokens `[prompt · layer, cloud_hidden]` of whole prompts, with gradients for the cloud LoRA too.
    pub fn meta(&self, cloud: &LanguageModel, prompts: &[Vec<u32>], cancel: &CancelToken) -> Result<Tensor> {
        if self.config.reading != Reading::Meta {
            let read = prompts.iter().map(|ids| self.read_prompt(cloud, ids, cancel));
            return self.meta_after(cloud, &read.collect::<Result<Vec<_>>>()?, cancel);
        }
        let (meta, layers) = (self.parameters.tensor("meta"), self.active_layers());
        let (mut parts, mut lengths) = (Vec::new(), Vec::new());
        for ids in prompts {
            parts.push(cloud.decoder.embed(ids)?);
            parts.push(meta.clone());
            lengths.push(ids.len() + layers);
        }
        let mut batch = Batch::packed(&lengths, vec![None; prompts.len()]);
        let h = cloud.decoder.hidden(Tensor::cat(&parts, 0)?, &mut batch, None, cancel)?;
        let mut end = 0;
        let mut rows = Vec::new();
        for length in lengths {
            end += length;
            rows.push(h.narrow(0, end - layers, layers)?);
        }
        Ok(cloud.decoder.output_norm(&Tensor::cat(&rows, 0)?)?)
    }

    /// Sets what pooled prompts are standardised by to the mean and variance of `prompts`; nothing for other readings.
    pub fn fit_reading(&self, prompts: &[PromptState]) -> Result<()> {
        let pooled = prompts.iter().filter_map(|prompt| match prompt {
            PromptState::Pooled(state) => Some(state.clone()),
            PromptState::Prefix(_) | PromptState::None => None,
        });
        let pooled: Vec<Tensor> = pooled.collect();
        if pooled.len() < 2 {
            return Ok(());
        }
        let states = Tensor::stack(&pooled, 0)?;
        let mean = states.mean(0)?;
        let var = states.broadcast_sub(&mean)?.sqr()?.mean(0)?;
        self.parameters.var("prompt.running_mean").set(&mean)?;
        self.parameters.var("prompt.running_var").set(&var)?;
        Ok(())
    }

    // [cloud_hidden] -> [1, cloud_hidden]
    fn standardise(&self, state: &Tensor) -> Result<Tensor> {
        let (mean, var) = (self.parameters.tensor("prompt.running_mean"), self.parameters.tensor("prompt.running_var"));
        let deviation = (var.detach() + EPSILON)?.sqrt()?;
        Ok(state.sub(&mean.detach())?.div(&deviation)?.unsqueeze(0)?)
    }
}
