use std::sync::Arc;
use std::time::Instant;

use super::answer::Answer;
use super::arm::{Arm, choose};
use super::choose::Chooser;
use super::engine::Engine;
use super::options::{FinishReason, GenerateOptions, Generation, TokenListener};
use super::specialize::MergedPack;
use crate::chat::{Message, RenderOptions};
use crate::model::{LogitRows, Runner};
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
        let engine = self.engine.clone();
        let chooser = Chooser::new(&engine, options)?;
        let mut generation = Generation {
            text: String::new(),
            arm,
            prompt_tokens: prompt.len(),
            reused_tokens: self.reuse(prompt),
            generated_tokens: 0,
            prefill_ms: 0.0,
            time_to_first_token_ms: 0.0,
            decode_tokens_per_second: 0.0,
            finish_reason: FinishReason::Length,
        };
        let mut answer = Answer::new(engine.tokenizer(), &options.stop, listener);
        let outcome = self.run(prompt, options, chooser, &mut answer, &mut generation, start);
        let (text, stopped) = answer.finish();
        generation.text = text;
        generation.finish_reason = match outcome {
            Err(Error::Cancelled) => FinishReason::Cancelled,
            Ok(_) if stopped => FinishReason::StopString,
            reason => reason?,
        };
        log::debug!(
            "{arm}; {} prompt tokens ({} cached) in {:.0} ms, {} tokens at {:.0}/s, {:?}",
            generation.prompt_tokens,
            generation.reused_tokens,
            generation.prefill_ms,
            generation.generated_tokens,
            generation.decode_tokens_per_second,
            generation.finish_reason
        );
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
            self.engine.change_runner(&mut self.runner, pack.as_deref())?;
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

    /// Prefills what is not cached of `prompt`, then decodes; answers why it stopped.
    fn run(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut chooser: Chooser,
        answer: &mut Answer<'_>,
        generation: &mut Generation,
        start: Instant,
    ) -> Result<FinishReason> {
        let engine = self.engine.clone();
        answer.listener.on_prefill(self.cached.len(), prompt.len());
        // All of the prompt but the last step, whose logits are needed.
        while prompt.len() - self.cached.len() > PREFILL_STEP {
            let ids = &prompt[self.cached.len()..][..PREFILL_STEP];
            self.runner.forward(ids, LogitRows::None, &options.cancel)?;
            self.cached.extend_from_slice(ids);
            answer.listener.on_prefill(self.cached.len(), prompt.len());
        }
        let mut pending = prompt[self.cached.len()..].to_vec();
        let mut first = None;
        while generation.generated_tokens < options.max_tokens
            && self.cached.len() + pending.len() <= self.runner.capacity()
        {
            let logits = self.runner.forward(&pending, LogitRows::Last, &options.cancel)?;
            self.cached.append(&mut pending);
            let sampled = chooser.choose(logits, &self.cached)?;
            let first = *first.get_or_insert_with(|| {
                generation.prefill_ms = milliseconds(start);
                generation.time_to_first_token_ms = generation.prefill_ms;
                answer.listener.on_prefill(prompt.len(), prompt.len());
                Instant::now()
            });
            if engine.tokenizer().is_end(sampled.id) {
                return Ok(FinishReason::EndOfTurn);
            }
            chooser.accept(sampled.id)?;
            if generation.generated_tokens > 0 {
                generation.decode_tokens_per_second =
                    generation.generated_tokens as f64 / first.elapsed().as_secs_f64();
            }
            generation.generated_tokens += 1;
            pending.push(sampled.id);
            if !answer.push(sampled) {
                return Ok(FinishReason::StopString);
            }
        }
        Ok(FinishReason::Length)
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
