use super::arm::Arm;
use crate::CancelToken;
#[cfg(feature = "constrain")]
use crate::sample::Constraint;
use crate::sample::SamplerOptions;

/// How one turn is generated.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens to generate; also bounded by the context.
    pub max_tokens: usize,
    /// The sampler chain; greedy by default.
    pub sampler: SamplerOptions,
    /// Texts that end the answer. They are neither part of it nor shown to the listener. A `String` is UTF-8, so there
    /// is nothing to check here; the bindings' strings are checked where they are read from foreign memory.
    pub stop: Vec<String>,
    /// What the answer must satisfy: a JSON schema, a regular expression or a grammar.
    #[cfg(feature = "constrain")]
    pub constraint: Option<Constraint>,
    /// Stops the turn from another thread, within one token.
    pub cancel: CancelToken,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampler: SamplerOptions::default(),
            stop: Vec::new(),
            #[cfg(feature = "constrain")]
            constraint: None,
            cancel: CancelToken::new(),
        }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// The text that became certain with it: whole characters, nothing of a stop string. May be empty.
    pub text: String,
    /// Its natural-log probability under the model, before sampling options, if
    /// [`SamplerOptions::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The likeliest tokens with theirs, as many as [`SamplerOptions::logprobs`] asks for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Receives a turn's tokens on the thread that generates. Closures over [`Token`] implement it.
pub trait TokenListener {
    /// A token was generated. The last call may carry the rest of the text that was held back.
    fn on_token(&mut self, token: &Token);

    /// `done` of `total` prompt tokens are in the KV cache.
    fn on_prefill(&mut self, done: usize, total: usize) {
        let _ = (done, total);
    }
}

impl<F: FnMut(&Token)> TokenListener for F {
    fn on_token(&mut self, token: &Token) {
        self(token);
    }
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop string appeared.
    StopString,
    /// [`GenerateOptions::max_tokens`] was reached, or the context is full.
    Length,
    /// The [`CancelToken`] was cancelled; the text so far is kept and the session stays usable.
    Cancelled,
}

/// The result of one turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The answer.
    pub text: String,
    /// What answered, and why.
    pub arm: Arm,
    /// Tokens of the rendered conversation.
    pub prompt_tokens: usize,
    /// Of these, tokens whose keys and values were cached already.
    pub reused_tokens: usize,
    /// Tokens generated, the one that ended the turn not counted.
    pub generated_tokens: usize,
    /// Milliseconds spent on the prompt.
    pub prefill_ms: f64,
    /// Milliseconds from the call to the first token.
    pub time_to_first_token_ms: f64,
    /// Tokens per second after the first; 0 if there was at most one.
    pub decode_tokens_per_second: f64,
    /// Why it ended.
    pub finish_reason: FinishReason,
}
