use std::sync::Arc;

use super::{MergeOptions, ProbeReport, Refusal, TensorReport};
use crate::model::{Answer, Backend, Decoder};
use crate::{CancelToken, Error, Result};

/// Texts that a proof runs through both models when an app has none of its own: plain prose, dialogue, a list, code
/// and another language, so that many kinds of next token are compared.
pub const PROBE_TEXTS: [&str; 5] = [
    "The harbour was quiet that morning. A few boats lay against the wall, their ropes slack, and an old man sat on an \
     upturned crate mending a net. When the ferry came in at nine, only two people got off: a woman with a red suitcase \
     and a boy who carried a cage with a small green bird in it.",
    "User: My order arrived two days late and one of the cups is broken. What can I do?\nAssistant: I am sorry to hear \
     that. You can ask for a replacement or a refund within thirty days. Please send a photo of the broken cup and your \
     order number, and we will take care of it.",
    "To make the soup you need: 1. two onions, 2. four carrots, 3. a litre of stock, 4. salt and pepper. Chop the onions \
     and fry them for five minutes, then add the carrots and the stock and let everything cook for half an hour.",
    "def average(values):\n    \"\"\"Return the arithmetic mean of a list of numbers.\"\"\"\n    if not values:\n        raise \
     ValueError(\"no values\")\n    return sum(values) / len(values)\n",
    "La réunion est reportée à jeudi prochain, à quatorze heures. Merci de confirmer votre présence avant mardi et \
     d'envoyer vos questions par courrier électronique.",
];

/// Rows whose logits are in memory at once.
const ROWS_AT_ONCE: usize = 16;

/// The side path's answers to the probe texts: what every merge is compared with.
pub(super) struct Reference {
    texts: Vec<Text>,
    base_agreement: f64,
}

struct Text {
    ids: Vec<u32>,
    side_path: Box<dyn Answer>,
}

impl Reference {
    pub(super) fn new<B: Backend>(
        base: &Arc<Decoder<B>>,
        side_path: &Arc<[B::Lora]>,
        probes: &[Vec<u32>],
        cancel: &CancelToken,
    ) -> Result<Self> {
        let texts = probes
            .iter()
            .filter(|ids| ids.len() >= 2)
            .map(|ids| Ok(Text { ids: ids.clone(), side_path: B::answer(base, Some(side_path), ids, cancel)? }));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        if texts.is_empty() {
            let reason = "a proof needs at least one text of two tokens".to_owned();
            return Err(Error::InvalidOption { option: "probes", reason });
        }
        let mut reference = Self { texts, base_agreement: 0.0 };
        reference.base_agreement = reference.compare(base, cancel)?.agreement;
        Ok(reference)
    }

    /// Runs the probe texts through `merged` and compares every token's prediction.
    pub(super) fn compare<B: Backend>(
        &mut self,
        merged: &Arc<Decoder<B>>,
        cancel: &CancelToken,
    ) -> Result<ProbeReport> {
        let mut sums = Comparison::default();
        for Text { ids, side_path } in &mut self.texts {
            let mut answer = B::answer(merged, None, ids, cancel)?;
            for first in (0..ids.len()).step_by(ROWS_AT_ONCE) {
                cancel.check()?;
                let rows = first..ids.len().min(first + ROWS_AT_ONCE);
                let (mut expected, mut actual) = (Vec::new(), Vec::new());
                side_path.logits(rows.clone(), &mut expected)?;
                answer.logits(rows.clone(), &mut actual)?;
                let vocab = expected.len() / rows.len();
                for (row, (expected, actual)) in rows.zip(expected.chunks_exact(vocab).zip(actual.chunks_exact(vocab)))
                {
                    sums.add(expected, actual, ids.get(row + 1).copied());
                }
            }
        }
        Ok(sums.report(self.base_agreement))
    }
}

#[derive(Default)]
struct Comparison {
    tokens: usize,
    agreed: usize,
    predicted: usize,
    /// Negative log-likelihoods, side path and merged.
    surprise: (f64, f64),
    divergence: f64,
}

impl Comparison {
    fn add(&mut self, expected: &[f32], actual: &[f32], next: Option<u32>) {
        let (expected_norm, actual_norm) = (log_sum_exp(expected), log_sum_exp(actual));
        self.tokens += 1;
        self.agreed += usize::from(most_likely(expected) == most_likely(actual));
        self.divergence += expected
            .iter()
            .zip(actual)
            .map(|(&p, &q)| {
                let (p, q) = (f64::from(p) - expected_norm, f64::from(q) - actual_norm);
                if p < -40.0 { 0.0 } else { p.exp() * (p - q) }
            })
            .sum::<f64>();
        if let Some(next) = next.map(|id| id as usize).filter(|&id| id < expected.len()) {
            self.predicted += 1;
            self.surprise.0 += expected_norm - f64::from(expected[next]);
            self.surprise.1 += actual_norm - f64::from(actual[next]);
        }
    }

    fn report(&self, base_agreement: f64) -> ProbeReport {
        let tokens = self.tokens.max(1) as f64;
        ProbeReport {
            token_count: self.tokens,
            agreement: self.agreed as f64 / tokens,
            perplexity_ratio: ((self.surprise.1 - self.surprise.0) / self.predicted.max(1) as f64).exp(),
            divergence: self.divergence / tokens,
            base_agreement,
        }
    }
}

/// The worst tensor outside the gain limits.
pub(super) fn check_gains(tensors: &[TensorReport], options: &MergeOptions) -> Option<Refusal> {
    let (low, high) = options.gain_limits;
    // A NaN gain, from NaN weights, is the worst.
    let miss = |tensor: &TensorReport| if tensor.gain.is_nan() { f64::INFINITY } else { (tensor.gain - 1.0).abs() };
    let worst = tensors
        .iter()
        .filter(|tensor| !(low..=high).contains(&tensor.gain))
        .max_by(|a, b| miss(a).total_cmp(&miss(b)))?;
    Some(Refusal::Gain { target: worst.name(), gain: worst.gain, low, high })
}

/// Whether a probe is worth its time: root mean square over tensors of the change that is not the delta, relative to the
/// weights.
pub(super) fn check_noise(tensors: &[TensorReport], options: &MergeOptions) -> Option<Refusal> {
    let square = |tensor: &TensorReport| (tensor.noise * tensor.relative_norm).powi(2);
    let noise = (tensors.iter().map(square).sum::<f64>() / tensors.len().max(1) as f64).sqrt();
    // Written so that NaN is refused.
    (!(noise <= options.noise_max)).then_some(Refusal::Noise { noise, limit: options.noise_max })
}

/// Whether the merged model answers as the side path does.
pub(super) fn check_probe(probe: &ProbeReport, options: &MergeOptions) -> Option<Refusal> {
    let limit = options.perplexity_change_max;
    // Written so that NaN is refused.
    if !(probe.agreement >= options.agreement_min) {
        return Some(Refusal::Agreement { agreement: probe.agreement, limit: options.agreement_min });
    }
    if !((probe.perplexity_ratio - 1.0).abs() <= limit) {
        return Some(Refusal::Perplexity { ratio: probe.perplexity_ratio, limit });
    }
    None
}

fn most_likely(logits: &[f32]) -> usize {
    logits.iter().enumerate().fold(0, |best, (i, logit)| if *logit > logits[best] { i } else { best })
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Target;
    use crate::quant::BlockType;

    fn tensor(gain: f64) -> TensorReport {
        TensorReport {
            layer: 0,
            target: Target::Up,
            block_type_before: BlockType::Q4_0,
            block_type_after: BlockType::Q4_0,
            gain,
            noise: 0.0,
            relative_norm: 0.01,
        }
    }

    #[test]
    fn refuses_the_gain_farthest_from_one() {
        let options = MergeOptions::default();
        assert_eq!(check_gains(&[tensor(0.96), tensor(1.04)], &options), None);
        let refusal = check_gains(&[tensor(0.9), tensor(1.3), tensor(1.0)], &options);
        assert!(matches!(refusal, Some(Refusal::Gain { gain: 1.3, .. })), "{refusal:?}");
        let refusal = check_gains(&[tensor(0.1), tensor(f64::NAN)], &options);
        assert!(matches!(refusal, Some(Refusal::Gain { gain, .. }) if gain.is_nan()), "{refusal:?}");
    }

    #[test]
    fn refuses_rounding_that_is_louder_than_the_limit() {
        let options = MergeOptions { noise_max: 0.01, ..MergeOptions::default() };
        let noisy = |noise| TensorReport { noise, ..tensor(1.0) };
        // The deltas have 1% of the weights' norm.
        assert_eq!(check_noise(&[noisy(0.5), noisy(1.2)], &options), None);
        let refusal = check_noise(&[noisy(0.5), noisy(2.0)], &options);
        assert!(
            matches!(refusal, Some(Refusal::Noise { noise, .. }) if (0.014..0.015).contains(&noise)),
            "{refusal:?}"
        );
        assert!(check_noise(&[noisy(f64::NAN)], &options).is_some());
    }

    #[test]
    fn comparison_measures_agreement_divergence_and_perplexity() {
        let mut sums = Comparison::default();
        sums.add(&[0.0, 1.0], &[0.0, 1.0], Some(1));
        sums.add(&[0.0, 1.0], &[1.0, 0.0], Some(1));
        sums.add(&[2.0, 0.0], &[2.0, 0.0], None);
        let report = sums.report(0.5);
        assert_eq!((report.token_count, report.agreement), (3, 2.0 / 3.0));
        // The second row's next token lost a factor e; two rows are predicted.
        assert!((report.perplexity_ratio - 0.5_f64.exp()).abs() < 1e-9, "{report:?}");
        // KL of (1-s, s) from (s, 1-s) with s = sigmoid(1), in one row of three.
        let s = 1.0 / (1.0 + (-1.0_f64).exp());
        assert!((report.divergence - (2.0 * s - 1.0) / 3.0).abs() < 1e-9, "{report:?}");
    }

    #[test]
    fn refuses_probes_that_differ_or_are_not_numbers() {
        let options = MergeOptions::default();
        let good = ProbeReport {
            token_count: 9,
            agreement: 0.99,
            perplexity_ratio: 1.005,
            divergence: 0.0,
            base_agreement: 0.5,
        };
        assert_eq!(check_probe(&good, &options), None);
        assert!(matches!(
            check_probe(&ProbeReport { agreement: 0.97, ..good }, &options),
            Some(Refusal::Agreement { .. })
        ));
        for ratio in [0.98, 1.02, f64::NAN] {
            let refusal = check_probe(&ProbeReport { perplexity_ratio: ratio, ..good }, &options);
            assert!(matches!(refusal, Some(Refusal::Perplexity { .. })), "{ratio}");
        }
    }
}
