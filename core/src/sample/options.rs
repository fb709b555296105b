use crate::{Error, Result};

/// How the next token is chosen.
///
/// The default is greedy: small specialised models answer best and reproducibly that way. For varied text set
/// `temperature` (0.7 is a common value) and a `seed` that differs between runs; the other defaults then keep
/// unlikely tokens out.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// 0 takes the likeliest token; 1 draws from the model's distribution; at most 100. Default: 0.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens; 0 for all. Default: 40.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability, in (0, 1]. Default: 0.95.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest, in [0, 1]. Default: 0.05.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 for none, at least 0.01, at most 100. It
    /// also applies at temperature 0. Default: 1.
    pub repetition_penalty: f32,
    /// How many of the last tokens count as recent. Default: 64.
    pub repetition_window: usize,
    /// Seeds the draw: equal seeds and logits give equal tokens on every platform. Default: 0.
    pub seed: u64,
    /// Report log-probabilities: of the chosen token and of this many likeliest ones, at most 1,000. Default:
    /// `None`, because the sum over the vocabulary costs time at every token.
    pub logprobs: Option<usize>,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplerOptions {
    /// # Errors
    /// [`Error::InvalidOption`] for the first value outside its range.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            ("temperature", self.temperature, (0.0..=100.0).contains(&self.temperature), "from 0 to 100"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                (0.01..=100.0).contains(&self.repetition_penalty),
                "from 0.01 to 100",
            ),
            ("logprobs", self.logprobs.unwrap_or(0) as f32, self.logprobs.unwrap_or(0) <= 1000, "at most 1000"),
        ];
        for (option, value, valid, range) in checks {
            if !valid {
                return Err(Error::InvalidOption { option, reason: format!("{value} is not {range}") });
            }
        }
        Ok(())
    }
}
