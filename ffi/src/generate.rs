use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeweld::{CancelToken, generate, sample};

use crate::SdkError;

/// How the next token is chosen; greedy by default, which is how small specialised models answer best. For varied text
/// set a temperature (0.7 is a common value) and a seed that differs between runs.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct SamplerOptions {
    /// 0 takes the likeliest token; 1 draws from the model's distribution; at most 100.
    #[uniffi(default = 0.0)]
    pub temperature: f32,
    /// Only this many likeliest tokens; 0 for all.
    #[uniffi(default = 40)]
    pub top_k: u32,
    /// Only the likeliest tokens that together have this probability, in (0, 1].
    #[uniffi(default = 0.95)]
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest, in [0, 1].
    #[uniffi(default = 0.05)]
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 for none.
    #[uniffi(default = 1.0)]
    pub repetition_penalty: f32,
    /// How many of the last tokens count as recent.
    #[uniffi(default = 64)]
    pub repetition_window: u32,
    /// Equal seeds give equal answers on every platform.
    #[uniffi(default = 0)]
    pub seed: u64,
    /// Report log-probabilities: of the chosen token and of this many likeliest ones. Costs time at every token.
    #[uniffi(default = None)]
    pub logprobs: Option<u32>,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        let core = sample::SamplerOptions::default();
        Self {
            temperature: core.temperature,
            top_k: core.top_k as u32,
            top_p: core.top_p,
            min_p: core.min_p,
            repetition_penalty: core.repetition_penalty,
            repetition_window: core.repetition_window as u32,
            seed: core.seed,
            logprobs: None,
        }
    }
}

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, uniffi::Enum)]
pub enum Constraint {
    /// JSON that this JSON schema describes.
    JsonSchema {
        /// The schema as JSON text.
        schema: String,
    },
    /// Text that this regular expression matches from start to end.
    Regex {
        /// The expression.
        pattern: String,
    },
}

/// How one turn is generated.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct GenerateOptions {
    /// Most tokens to generate; also bounded by the context.
    #[uniffi(default = 256)]
    pub max_tokens: u32,
    /// How the next token is chosen.
    #[uniffi(default)]
    pub sampler: SamplerOptions,
    /// Texts that end the answer. They are not part of it.
    #[uniffi(default = [])]
    pub stop: Vec<String>,
    /// What the answer must look like.
    #[uniffi(default = None)]
    pub constraint: Option<Constraint>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_tokens: 256, sampler: SamplerOptions::default(), stop: Vec::new(), constraint: None }
    }
}

impl GenerateOptions {
    pub(crate) fn into_core(self, cancel: CancelToken) -> generate::GenerateOptions {
        let sampler = sample::SamplerOptions {
            temperature: self.sampler.temperature,
            top_k: self.sampler.top_k as usize,
            top_p: self.sampler.top_p,
            min_p: self.sampler.min_p,
            repetition_penalty: self.sampler.repetition_penalty,
            repetition_window: self.sampler.repetition_window as usize,
            seed: self.sampler.seed,
            logprobs: self.sampler.logprobs.map(|count| count as usize),
        };
        let constraint = self.constraint.map(|constraint| match constraint {
            Constraint::JsonSchema { schema } => sample::Constraint::JsonSchema(schema),
            Constraint::Regex { pattern } => sample::Constraint::Regex(pattern),
        });
        generate::GenerateOptions { max_tokens: self.max_tokens as usize, sampler, stop: self.stop, constraint, cancel }
    }
}

/// A token and its natural-log probability.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct TokenLogprob {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Its natural-log probability.
    pub logprob: f32,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// The text that became certain with it: whole characters, nothing of a stop text. May be empty.
    pub text: String,
    /// Its natural-log probability, if the sampler options ask for it.
    pub logprob: Option<f32>,
    /// The likeliest tokens with theirs, as many as the sampler options ask for.
    pub top_logprobs: Vec<TokenLogprob>,
}

impl From<&generate::Token> for Token {
    fn from(token: &generate::Token) -> Self {
        let top = token.top_logprobs.iter().map(|&(id, logprob)| TokenLogprob { id, logprob });
        Self { id: token.id, text: token.text.clone(), logprob: token.logprob, top_logprobs: top.collect() }
    }
}

/// Receives a turn's tokens on the thread that called. An exception ends the turn and arrives at the caller.
#[uniffi::export(rust, foreign)]
pub trait TokenListener: Send + Sync {
    /// A token was generated. The last call may carry the rest of the text that was held back.
    fn on_token(&self, token: Token) -> Result<(), SdkError>;

    /// This many of the conversation's tokens are read.
    fn on_prefill(&self, done_tokens: u64, total_tokens: u64) -> Result<(), SdkError>;
}

/// Hands core's tokens to a listener, whose failure stops the turn.
pub(crate) struct Relay {
    listener: Option<Arc<dyn TokenListener>>,
    cancel: CancelToken,
    /// What the listener threw.
    failure: Option<SdkError>,
    /// How long each token was on its way to the listener and back.
    tokens: Vec<Duration>,
}

impl Relay {
    pub(crate) fn new(listener: Option<Arc<dyn TokenListener>>, cancel: CancelToken) -> Self {
        Self { listener, cancel, failure: None, tokens: Vec::new() }
    }

    fn call(&mut self, call: impl FnOnce(&dyn TokenListener) -> Result<(), SdkError>) {
        if self.failure.is_some() {
            return;
        }
        let Some(listener) = &self.listener else { return };
        if let Err(error) = call(&**listener) {
            self.failure = Some(error);
            self.cancel.cancel();
        }
    }

    /// What the listener threw, or the microseconds of the median token's way.
    pub(crate) fn end(mut self) -> Result<f64, SdkError> {
        let middle = self.tokens.len() / 2;
        self.tokens.sort_unstable();
        let median = self.tokens.get(middle).map_or(0.0, |time| time.as_secs_f64() * 1e6);
        self.failure.map_or(Ok(median), Err)
    }
}

impl generate::TokenListener for Relay {
    fn on_token(&mut self, token: &generate::Token) {
        let start = Instant::now();
        self.call(|listener| listener.on_token(token.into()));
        self.tokens.push(start.elapsed());
    }

    fn on_prefill(&mut self, done: usize, total: usize) {
        self.call(|listener| listener.on_prefill(done as u64, total as u64));
    }
}

/// What a turn was answered with, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Arm {
    /// The base model: no pack is merged and the conversation has no system prompt.
    Base,
    /// The base model with the system prompt in its context: no pack is merged.
    Prompt,
    /// The base model with the system prompt in its context: the merged pack stands for another prompt.
    OtherPrompt,
    /// The merged pack: it stands for the system prompt, which was dropped.
    Pack,
    /// The merged pack: the conversation has no system prompt.
    PackAlone,
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text appeared.
    StopString,
    /// The most tokens were reached, or the context is full.
    Length,
    /// The task was cancelled; the text so far is kept and the session stays usable.
    Cancelled,
}

/// The result of one turn.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Generation {
    /// The answer.
    pub text: String,
    /// What answered, and why.
    pub arm: Arm,
    /// Tokens of the conversation as the model read it.
    pub prompt_tokens: u64,
    /// Of these, tokens that were cached from earlier turns.
    pub reused_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Milliseconds spent on reading the conversation.
    pub prefill_ms: f64,
    /// Milliseconds from the call to the first token.
    pub time_to_first_token_ms: f64,
    /// Tokens per second after the first; 0 if there was at most one.
    pub decode_tokens_per_second: f64,
    /// Microseconds of a token's way to the listener and back, the median of the turn's tokens. More than a few percent of a
    /// token's time: the listener does too much.
    pub listener_us: f64,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

impl Generation {
    pub(crate) fn new(core: generate::Generation, listener_us: f64) -> Self {
        use edgeweld::generate as core_types;
        Self {
            text: core.text,
            arm: match core.arm {
                core_types::Arm::Prompt => Arm::Prompt,
                core_types::Arm::OtherPrompt => Arm::OtherPrompt,
                core_types::Arm::Pack => Arm::Pack,
                core_types::Arm::PackAlone => Arm::PackAlone,
                _ => Arm::Base,
            },
            prompt_tokens: core.prompt_tokens as u64,
            reused_tokens: core.reused_tokens as u64,
            generated_tokens: core.generated_tokens as u64,
            prefill_ms: core.prefill_ms,
            time_to_first_token_ms: core.time_to_first_token_ms,
            decode_tokens_per_second: core.decode_tokens_per_second,
            listener_us,
            finish_reason: match core.finish_reason {
                core_types::FinishReason::EndOfTurn => FinishReason::EndOfTurn,
                core_types::FinishReason::StopString => FinishReason::StopString,
                core_types::FinishReason::Cancelled => FinishReason::Cancelled,
                _ => FinishReason::Length,
            },
        }
    }
}
