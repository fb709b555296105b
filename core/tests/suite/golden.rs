//! The real models against figures made with `transformers` in f32 on the same weights. The test program gives `load`.

use edgeweld::CancelToken;
use edgeweld::generate::LoadOptions;
use edgeweld::model::LogitRows;
use serde::Deserialize;

use super::{load, models};

/// A reference margin below this may flip with quantised activations.
const MARGIN: f32 = 0.3;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    mean_nll: f64,
    top_ids: Vec<u32>,
    top_logprobs: Vec<f32>,
    greedy_ids: Vec<u32>,
    greedy_margin: Vec<f32>,
}

/// Largest difference of a top-20 log-probability. The bar of `cargo xtask parity` is 0.15; 0.006 is measured
/// (docs/measurements.md), and a kernel that is only plausible would show here.
const TOLERANCE: f32 = 0.03;

pub(super) const SMOLLM2: &str = include_str!("../fixtures/golden/smollm2-135m-instruct.json");
pub(super) const GEMMA3: &str = include_str!("../fixtures/golden/gemma3-270m.json");

#[test]
fn smollm2_agrees_with_the_reference() {
    check(models::SMOLLM2, SMOLLM2, LoadOptions::default(), TOLERANCE);
}

#[test]
fn gemma3_agrees_with_the_reference() {
    check(models::GEMMA3, GEMMA3, LoadOptions::default(), TOLERANCE);
}

/// `tolerance` is of a top-20 log-probability.
pub(super) fn check(model: &str, golden: &str, options: LoadOptions, tolerance: f32) {
    let golden: Golden = serde_json::from_str(golden).unwrap();
    let cancel = CancelToken::new();
    let engine = load(&models::path(model), LoadOptions { context_length: Some(2048), ..options });
    let vocab = engine.shape().vocab_size;
    let mut runner = engine.runner().unwrap();
    for case in &golden.cases {
        let title: String = case.text.chars().take(40).collect();
        runner.truncate(0);
        let logits = runner.forward(&case.ids, LogitRows::All, &cancel).unwrap();
        let rows: Vec<Vec<f32>> = logits.chunks_exact(vocab).map(log_softmax).collect();
        assert_eq!(rows.len(), case.ids.len());
        let nll: f64 = rows.iter().zip(&case.ids[1..]).map(|(row, id)| -f64::from(row[*id as usize])).sum();
        let nll = nll / (case.ids.len() - 1) as f64;
        assert!((nll / case.mean_nll - 1.0).abs() < 0.01, "{title}: NLL {nll}, expected {}", case.mean_nll);

        let last = rows.last().unwrap();
        let mut worst = 0.0f32;
        for (id, expected) in case.top_ids.iter().zip(&case.top_logprobs) {
            worst = worst.max((last[*id as usize] - expected).abs());
        }
        println!("{title:?}: NLL {nll:.4} / {:.4}, worst logprob difference {worst:.4}", case.mean_nll);
        assert!(worst < tolerance, "{title}: a logprob differs by {worst}");
        if case.top_logprobs[0] - case.top_logprobs[1] > MARGIN {
            assert_eq!(argmax(last), case.top_ids[0], "{title}");
        }

        let mut next = argmax(last);
        for (step, (expected, margin)) in case.greedy_ids.iter().zip(&case.greedy_margin).enumerate() {
            if *margin < MARGIN {
                break;
            }
            assert_eq!(next, *expected, "{title}: greedy step {step}");
            next = argmax(runner.forward(&[next], LogitRows::Last, &cancel).unwrap());
        }
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    logits.iter().map(|logit| logit - largest - total.ln() as f32).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}
