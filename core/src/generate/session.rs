use std::sync::Arc;
use std::time::Instant;

use super::arm::{Arm, choose};
use super::engine::Engine;
use super::options::{FinishReason, GenerateOptions, Generation, Token, TokenListener};
use super::specialize::MergedPack;
use super::stop::StopStrings;
use crate::chat::{Message, RenderOptions};
use crate::model::{LogitRows, Runner};
use crate::sample::Sampler;
use crate::{Error, Result};

/// Prompt tokens between two progress reports.
const PREFILL_STEP: usize = 256;

/// One conversation: the KV cache and the tokens in it. Not shared between threads at once.
pub struct Session {
    pub(super) engine: Engine,
    pub(super) runner: Box<dyn Runner>,
    /// The pack whose weights the runner uses; `None` for the base.
    pub(super) pack: Option<Arc<MergedPack>>,
    /// The tokens whose keys and values the runner has cached.
    pub(super) cached: Vec<u32>,
}

impl Session {
    pub(super) fn new(engine: Engine) -> Result<Self> {
        let pack = engine.pack();
        let runner = engine.runner_with(pack.as_deref())?;
        Ok(Self { engine, runner, pack, cached: Vec::new() })
    }

    /// Answers `messages`: the whole conversation so far, as an app keeps it. What the KV cache already holds of it
    /// is not computed again.
    ///
    /// Apps keep sending their system prompt. If it is the one that the merged pack stands for, it is dropped and the
    /// pack answers; any other prompt stays and the base model answers. [`Generation::arm`] says which it was.
    ///
    /// # Errors
    /// [`Error::ContextFull`] before anything is computed; [`Error::Template`]; [`Error::InvalidOption`]. A cancelled
    /// turn is not an error: see [`FinishReason::Cancelled`].
    pub fn chat(
        &mut self,
        messages: &[Message],
        options: &GenerateOptions,
        listener: &mut dyn TokenListener,
    ) -> Result<Generation> {
        let start = Instant::now();
        let engine = self.engine.clone();
        let choice = choose(engine.pack(), messages);
        // A pack was made for conversations without any system turn, the template's own included.
        let render = RenderOptions { default_system: !choice.arm.uses_pack(), ..Default::default() };
        let prompt = engine.template().encode(engine.tokenizer(), &choice.messages, &render)?;
        self.switch(choice.pack)?;
        // A model without turn tokens ends its turn by starting the next one.
        let stop = engine.template().stop_strings().iter().map(|stop| (*stop).to_owned());
        let stop = options.stop.iter().cloned().chain(stop).collect();
        self.answer(&prompt, &GenerateOptions { stop, ..options.clone() }, listener, choice.arm, start)
    }

    /// Continues `text` without a chat template. Control tokens written in it are text.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn complete(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        listener: &mut dyn TokenListener,
    ) -> Result<Generation> {
        let prompt = self.engine.tokenizer().encode(text, Default::default())?;
        self.generate(&prompt, options, listener)
    }

    /// Continues the tokens `prompt`.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        listener: &mut dyn TokenListener,
    ) -> Result<Generation> {
        let start = Instant::now();
        let pack = self.engine.pack();
        let arm = if pack.is_some() { Arm::PackAlone } else { Arm::Base };
        self.switch(pack)?;
        self.answer(prompt, options, listener, arm, start)
    }

    fn answer(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        listener: &mut dyn TokenListener,
        arm: Arm,
        start: Instant,
    ) -> Result<Generation> {
        if prompt.is_empty() {
            return Err(Error::InvalidOption { option: "prompt", reason: "has no tokens".to_owned() });
        }
        let available = self.runner.capacity();
        if prompt.len() >= available {
            return Err(Error::ContextFull { required: prompt.len() + 1, available });
        }
        let reused_tokens = self.reuse(prompt);
        let mut generation = Generation {
            text: String::new(),
            arm,
            prompt_tokens: prompt.len(),
            reused_tokens,
            generated_tokens: 0,
            prefill_ms: 0.0,
            time_to_first_token_ms: 0.0,
            decode_tokens_per_second: 0.0,
            finish_reason: FinishReason::Length,
        };
        match self.run(prompt, options, listener, &mut generation, start) {
            Err(Error::Cancelled) => generation.finish_reason = FinishReason::Cancelled,
            result => result?,
        }
        Ok(generation)
    }

    /// Forgets the conversation, keeping the memory.
    pub fn clear(&mut self) {
        self.runner.truncate(0);
        self.cached.clear();
    }

    /// Makes the base model, or the model with `pack` in it, the one that answers. Keys and values of one are worth
    /// nothing to the other, so a switch empties the cache.
    pub(super) fn switch(&mut self, pack: Option<Arc<MergedPack>>) -> Result<()> {
        let same = match (&self.pack, &pack) {
            (Some(current), Some(wanted)) => Arc::ptr_eq(current, wanted),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.runner = self.engine.runner_with(pack.as_deref())?;
            self.cached.clear();
            self.pack = pack;
        }
        Ok(())
    }

    /// Tokens in the KV cache.
    pub fn cached_tokens(&self) -> usize {
        self.cached.len()
    }

    /// Bytes the cached keys and values take.
    pub fn cache_size_bytes(&self) -> usize {
        self.runner.cache_size_bytes()
    }

    /// Cuts the KV cache to what it shares with `prompt`, less the last token, whose logits are needed.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let shared = self.cached.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        self.runner.truncate(shared);
        self.cached.truncate(shared);
        shared
    }

    fn run(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        listener: &mut dyn TokenListener,
        generation: &mut Generation,
        start: Instant,
    ) -> Result<()> {
        let engine = self.engine.clone();
        let tokenizer = engine.tokenizer();
        let mut sampler = Sampler::new(options.sampler.clone())?;
        #[cfg(feature = "constrain")]
        let mut constraint = options.constraint.as_ref().map(|wanted| engine.compile(wanted)).transpose()?;
        let mut text = tokenizer.decode_stream();
        let mut stop = StopStrings::new(&options.stop);

        // All of the prompt but the last step, whose logits are needed.
        listener.on_prefill(self.cached.len(), prompt.len());
        while prompt.len() - self.cached.len() > PREFILL_STEP {
            let ids = &prompt[self.cached.len()..][..PREFILL_STEP];
            self.runner.forward(ids, LogitRows::None, &options.cancel)?;
            self.cached.extend_from_slice(ids);
            listener.on_prefill(self.cached.len(), prompt.len());
        }
        let mut pending = prompt[self.cached.len()..].to_vec();
        let mut first_token = None;
        let end =
            |generation: &mut Generation, rest: String, reason, listener: &mut dyn TokenListener, last: &Token| {
                if !rest.is_empty() {
                    generation.text += &rest;
                    listener.on_token(&Token { text: rest, ..last.clone() });
                }
                generation.finish_reason = reason;
            };
        let mut token = Token { id: 0, text: String::new(), logprob: None, top_logprobs: Vec::new() };
        let mut result = Ok(());
        let mut reason = FinishReason::Length;
        while generation.generated_tokens < options.max_tokens
            && self.cached.len() + pending.len() <= self.runner.capacity()
        {
            let logits = match self.runner.forward(&pending, LogitRows::Last, &options.cancel) {
                Ok(logits) => logits,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            self.cached.append(&mut pending);
            #[cfg(feature = "constrain")]
            let mask = constraint.as_mut().map(|state| state.mask()).transpose()?;
            #[cfg(not(feature = "constrain"))]
            let mask = None;
            let sampled = sampler.sample(logits, &self.cached, mask.as_ref())?;
            let now = Instant::now();
            if first_token.is_none() {
                first_token = Some(now);
                generation.prefill_ms = milliseconds(start);
                generation.time_to_first_token_ms = generation.prefill_ms;
                listener.on_prefill(prompt.len(), prompt.len());
            }
            if tokenizer.is_end(sampled.id) {
                reason = FinishReason::EndOfTurn;
                break;
            }
            #[cfg(feature = "constrain")]
            if let Some(state) = &mut constraint {
                state.accept(sampled.id)?;
            }
            generation.generated_tokens += 1;
            let (certain, found) = stop.push(&text.push(tokenizer, sampled.id));
            token = Token { id: sampled.id, text: certain, logprob: sampled.logprob, top_logprobs: sampled.top };
            generation.text += &token.text;
            listener.on_token(&token);
            if let Some(first) = first_token
                && generation.generated_tokens > 1
            {
                let seconds = (now - first).as_secs_f64();
                generation.decode_tokens_per_second = (generation.generated_tokens - 1) as f64 / seconds;
            }
            if found {
                generation.finish_reason = FinishReason::StopString;
                return Ok(());
            }
            pending.push(sampled.id);
        }
        let (mut rest, found) = stop.push(&text.finish());
        rest += &stop.finish();
        end(generation, rest, if found { FinishReason::StopString } else { reason }, listener, &token);
        result
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
