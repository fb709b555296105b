use std::cmp::Ordering;

use super::random::Random;
use super::{SamplerOptions, TokenMask};
use crate::{Error, Result};

/// The token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// Its log-probability, natural logarithm: log-softmax of the raw logits, before penalty, mask and
    /// temperature. `None` unless [`SamplerOptions::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The likeliest tokens by the same measure, best first, as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Chooses tokens; one per generation, because it holds the random numbers' state.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    random: Random,
    /// Tokens still in the running, with their logits.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// # Errors
    /// [`Error::InvalidOption`] when `options` are not valid.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self { random: Random::new(options.seed), options, candidates: Vec::new() })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Chooses the next token from `logits`, `[vocab]`, which are overwritten where a penalty or mask applies.
    /// `history` are the tokens so far, oldest first; `allowed` is a constraint's mask.
    ///
    /// At temperature 0 the result is the first of the largest logits, exactly. Logits that are NaN count as -∞.
    ///
    /// # Errors
    /// [`Error::NoToken`] when no token is allowed and has a logit above -∞.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32], allowed: Option<&TokenMask>) -> Result<Sampled> {
        let log_sum = self.options.logprobs.map(|_| log_sum_exp(logits));
        let top = match (self.options.logprobs, log_sum) {
            (Some(count), Some(log_sum)) if count > 0 => {
                largest(logits, count, &mut self.candidates);
                self.candidates.iter().map(|&(id, logit)| (id, (f64::from(logit) - log_sum) as f32)).collect()
            }
            _ => Vec::new(),
        };
        let penalised = self.penalise(logits, history);
        if let Some(mask) = allowed {
            mask.apply(logits);
        }
        let id = if self.options.temperature == 0.0 { argmax(logits) } else { self.draw(logits) };
        let id = id.ok_or(Error::NoToken)?;
        let raw = penalised.iter().find(|entry| entry.0 == id).map_or(logits[id as usize], |entry| entry.1);
        let logprob = log_sum.map(|log_sum| (f64::from(raw) - log_sum) as f32);
        Ok(Sampled { id, logprob, top })
    }

    /// Applies the repetition penalty; answers the raw logits of the tokens it changed.
    fn penalise(&self, logits: &mut [f32], history: &[u32]) -> Vec<(u32, f32)> {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return Vec::new();
        }
        let mut recent = history[history.len().saturating_sub(self.options.repetition_window)..].to_vec();
        recent.sort_unstable();
        recent.dedup();
        recent.retain(|&id| (id as usize) < logits.len());
        let change = |id: u32| {
            let logit = &mut logits[id as usize];
            let raw = *logit;
            *logit = if raw > 0.0 { raw / penalty } else { raw * penalty };
            (id, raw)
        };
        recent.into_iter().map(change).collect()
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        self.keep_likely(logits);
        let &(_, highest) = self.candidates.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let temperature = f64::from(self.options.temperature);
        let weight = |logit: f32| {
            // A logit of +∞ leaves no room for others.
            if logit == highest { 1.0 } else { (f64::from(logit - highest) / temperature).exp() }
        };
        let sum: f64 = self.candidates.iter().map(|candidate| weight(candidate.1)).sum();
        let mut left = self.random.unit() * sum;
        for &(id, logit) in &self.candidates {
            left -= weight(logit);
            if left < 0.0 {
                return Some(id);
            }
        }
        self.candidates.last().map(|candidate| candidate.0)
    }

    /// Fills the candidates: top-k, then top-p, then min-p.
    fn keep_likely(&mut self, logits: &[f32]) {
        let SamplerOptions { top_k, top_p, min_p, .. } = self.options;
        let candidates = &mut self.candidates;
        if top_k > 0 {
            largest(logits, top_k, candidates);
        } else {
            candidates.clear();
            let all = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
            candidates.extend(all.map(|(id, &logit)| (id as u32, logit)));
            if top_p == 1.0 && min_p == 0.0 {
                return; // the draw needs no order
            }
        }
        let Some(highest) = candidates.iter().map(|candidate| candidate.1).reduce(f32::max) else { return };
        let weight = |logit: f32| if logit == highest { 1.0 } else { f64::from(logit - highest).exp() };
        if top_p < 1.0 {
            let mut wanted = f64::from(top_p) * candidates.iter().map(|candidate| weight(candidate.1)).sum::<f64>();
            // Sorting a whole vocabulary is slow, and a few tokens are almost always enough.
            let mut sorted = if top_k > 0 { candidates.len() } else { 0 };
            let mut kept = 0;
            while wanted > 0.0 && kept < candidates.len() {
                if kept == sorted {
                    sorted = (kept * 4).max(256).min(candidates.len());
                    if sorted < candidates.len() {
                        candidates[kept..].select_nth_unstable_by(sorted - kept, likeliest_first);
                    }
                    candidates[kept..sorted].sort_unstable_by(likeliest_first);
                }
                wanted -= weight(candidates[kept].1);
                kept += 1;
            }
            candidates.truncate(kept.max(1));
        }
        candidates.retain(|candidate| weight(candidate.1) >= f64::from(min_p));
    }
}

/// Higher logit first, then lower id, so that the order never depends on the algorithm.
fn likeliest_first(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The first of the largest logits; `None` when all are -∞ or NaN.
fn argmax(logits: &[f32]) -> Option<u32> {
    // Eight running maxima, so that the compiler can use vector registers; `>` is false for NaN.
    let mut highest = [f32::NEG_INFINITY; 8];
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        for (highest, &logit) in highest.iter_mut().zip(chunk) {
            *highest = if logit > *highest { logit } else { *highest };
        }
    }
    let highest = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    if highest == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&logit| logit == highest).map(|id| id as u32)
}

/// Puts the `count` largest logits above -∞ into `out`, likeliest first.
fn largest(logits: &[f32], count: usize, out: &mut Vec<(u32, f32)>) {
    out.clear();
    let room = count.saturating_mul(2).max(64);
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > threshold {
            out.push((id as u32, logit));
            if out.len() >= room {
                // Later tokens with the same logit as the last one kept have higher ids, and lose.
                out.select_nth_unstable_by(count - 1, likeliest_first);
                out.truncate(count);
                threshold = out[count - 1].1;
            }
        }
    }
    out.sort_unstable_by(likeliest_first);
    out.truncate(count);
}

/// Logarithm of the sum of exponentials, NaN counted as -∞.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    if highest == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let sum: f64 = logits.iter().filter(|logit| !logit.is_nan()).map(|&logit| f64::from((logit - highest).exp())).sum();
    f64::from(highest) + sum.ln()
}
