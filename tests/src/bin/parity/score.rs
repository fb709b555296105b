//! One case's distance from its reference.

use anyhow::{Result, ensure};
use edgeweld::CancelToken;
use edgeweld::model::{LogitRows, Runner};

use crate::golden::ModelCase;

/// A logit gap below this may flip with quantised activations.
const MARGIN: f32 = 0.3;
/// Largest relative error of the mean NLL.
const NLL_ERROR_MAX: f64 = 0.01;

/// How far a case is from its reference.
pub(crate) struct Score {
    /// Relative error of the mean NLL.
    pub(crate) nll_error: f64,
    /// Largest absolute difference of the reference's top log-probabilities.
    pub(crate) logprob_error: f32,
    /// Whether the likeliest token is the reference's; `None` where the reference's gap is below the margin.
    pub(crate) top_1: Option<bool>,
    /// Greedy steps equal to the reference's, and how many must be.
    pub(crate) greedy: (usize, usize),
}

impl Score {
    /// Runs the case on an emptied `runner` of a model with `vocab` tokens.
    pub(crate) fn of(case: &ModelCase, runner: &mut dyn Runner, vocab: usize) -> Result<Self> {
        for id in case.ids.iter().chain(&case.top_ids).chain(&case.greedy_ids) {
            ensure!((*id as usize) < vocab, "id {id} is outside the model's vocabulary of {vocab}");
        }
        let cancel = CancelToken::new();
        runner.truncate(0);
        let logits = runner.forward(&case.ids, LogitRows::All, &cancel)?;
        let nll: f64 = logits
            .chunks_exact(vocab)
            .zip(&case.ids[1..])
            .map(|(row, id)| log_normalizer(row) - f64::from(row[*id as usize]))
            .sum();
        let nll = nll / (case.ids.len() - 1) as f64;

        let last = &logits[logits.len() - vocab..];
        let normalizer = log_normalizer(last);
        let logprob = |id: u32| (f64::from(last[id as usize]) - normalizer) as f32;
        let errors = case.top_ids.iter().zip(&case.top_logprobs).map(|(id, expected)| (logprob(*id) - expected).abs());
        let mut next = argmax(last);
        let gap = case.top_logprobs[0] - case.top_logprobs[1];
        let mut score = Self {
            nll_error: (nll - case.mean_nll).abs() / case.mean_nll,
            logprob_error: errors.fold(0.0, worse),
            top_1: (gap > MARGIN).then_some(next == case.top_ids[0]),
            greedy: (0, case.greedy_margin.iter().take_while(|margin| **margin >= MARGIN).count()),
        };
        for expected in &case.greedy_ids[..score.greedy.1] {
            if next != *expected {
                break;
            }
            score.greedy.0 += 1;
            next = argmax(runner.forward(&[next], LogitRows::Last, &cancel)?);
        }
        Ok(score)
    }

    /// Whether it is within every bar; log-probabilities within `logprob_error_max`.
    pub(crate) fn passes(&self, logprob_error_max: f32) -> bool {
        self.nll_error <= NLL_ERROR_MAX
            && self.logprob_error <= logprob_error_max
            && self.top_1 != Some(false)
            && self.greedy.0 == self.greedy.1
    }
}

/// The larger one, NaN above all.
fn worse(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// `ln Σ exp(logit)`
fn log_normalizer(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln()
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model whose logits are the same after every token.
    struct Constant(Vec<f32>, Vec<f32>);

    impl Runner for Constant {
        fn len(&self) -> usize {
            0
        }
        fn capacity(&self) -> usize {
            usize::MAX
        }
        fn cache_size_bytes(&self) -> usize {
            0
        }
        fn truncate(&mut self, _: usize) {}
        fn forward(&mut self, ids: &[u32], rows: LogitRows, _: &CancelToken) -> edgeweld::Result<&mut [f32]> {
            self.1 = self.0.repeat(if rows == LogitRows::All { ids.len() } else { 1 });
            Ok(&mut self.1)
        }
        fn write_state(&self, _: &mut Vec<u8>) -> edgeweld::Result<()> {
            Ok(())
        }
        fn read_state(&mut self, _: usize, _: &[u8]) -> edgeweld::Result<()> {
            Ok(())
        }
    }

    /// What `[0, ln 3]` gives: probabilities 1/4 and 3/4.
    fn exact() -> ModelCase {
        let (low, high) = (0.25_f32.ln(), 0.75_f32.ln());
        ModelCase {
            text: String::new(),
            ids: vec![0, 1, 0],
            mean_nll: -f64::from(low + high) / 2.0,
            top_ids: vec![1, 0],
            top_logprobs: vec![high, low],
            greedy_ids: vec![1, 1, 0],
            greedy_margin: vec![1.1, 1.1, 0.2],
        }
    }

    fn score(case: &ModelCase, low: f32) -> Score {
        Score::of(case, &mut Constant(vec![low, 3_f32.ln()], Vec::new()), 2).unwrap()
    }

    #[test]
    fn an_equal_model_passes_and_steps_after_a_small_margin_do_not_count() {
        let score = score(&exact(), 0.0);
        assert!(score.nll_error < 1e-6 && score.logprob_error < 1e-6, "{} {}", score.nll_error, score.logprob_error);
        assert_eq!((score.top_1, score.greedy), (Some(true), (2, 2)));
        assert!(score.passes(0.02));
    }

    #[test]
    fn each_bar_is_missed_by_its_own_figure() {
        let missed = |case: &ModelCase| score(case, 0.0);
        let nll = missed(&ModelCase { mean_nll: exact().mean_nll * 1.02, ..exact() });
        assert!(!nll.passes(0.02) && nll.nll_error > 0.019);
        let logprob = missed(&ModelCase { top_logprobs: vec![0.75_f32.ln(), 0.25_f32.ln() - 0.1], ..exact() });
        assert!(!logprob.passes(0.02) && logprob.passes(0.15));
        let top_1 = missed(&ModelCase { top_ids: vec![0, 1], greedy_ids: vec![1, 1, 1], ..exact() });
        assert_eq!(top_1.top_1, Some(false));
        assert!(!top_1.passes(f32::INFINITY));
        let greedy = missed(&ModelCase { greedy_ids: vec![1, 0, 0], ..exact() });
        assert_eq!(greedy.greedy, (1, 2));
        assert!(!greedy.passes(0.02));
        assert!(!score(&exact(), f32::NAN).passes(0.15), "NaN passes nothing");
    }

    #[test]
    fn ids_outside_the_vocabulary_are_an_error() {
        let case = ModelCase { top_ids: vec![1, 7], ..exact() };
        let error = Score::of(&case, &mut Constant(vec![0.0, 1.0], Vec::new()), 2).err().unwrap();
        assert_eq!(error.to_string(), "id 7 is outside the model's vocabulary of 2");
    }
}
