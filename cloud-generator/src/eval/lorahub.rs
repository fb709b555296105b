//! LoraHub (arXiv 2307.13269): one weight per expert, the same in every layer, that fits a task's few examples best.
//! The search needs no gradients: a (1+1) evolution strategy whose step grows after a success and shrinks after a failure.

use edgeweld::CancelToken;
use edgeweld::lora::{LayerLora, LoraSet};
use edgeweld::pack::{Composition, ExpertPool, Gates};
use ndarray::Array2;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Request;
use super::score::log_likelihoods;
use crate::Result;
use crate::edge_model::EdgeModel;
use crate::generator::Generator;

/// Weights that are tried; the paper's 40.
const TRIALS: usize = 40;
/// Factor of the mean absolute weight in what is minimised; the paper's 0.05.
const PENALTY: f64 = 0.05;
/// Weights stay between minus and plus this; the paper's 1.5.
const WEIGHT_MAX: f32 = 1.5;
const SEED: u64 = 20_251_113;

// The experts of a generator as weights see them.
struct Experts {
    pool: ExpertPool,
    composition: Composition,
    layer_count: usize,
    first_layer: usize,
    routed_count: usize,
    shared: bool,
}

/// The LoRA of `generator`'s experts that fits `shots`, which are requests for right answers. Shared experts, if it has
/// them, stay as they are.
///
/// # Errors
/// [`edgeweld::Error::Cancelled`].
pub fn lorahub(edge: &EdgeModel, generator: &Generator, shots: &[Request], cancel: &CancelToken) -> Result<LoraSet> {
    let config = &generator.config;
    let experts = Experts {
        pool: generator.pack_pool()?,
        composition: config.composition.into(),
        layer_count: edge.decoder.config.layer_count(),
        first_layer: config.first_layer,
        routed_count: config.expert_count,
        shared: config.shared_expert,
    };
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut best = vec![0f32; experts.routed_count];
    let mut least = loss(edge, &experts.mix(&best)?, &best, shots, cancel)?;
    let mut step = 0.3;
    for _ in 1..TRIALS {
        let trial: Vec<f32> =
            best.iter().map(|weight| (weight + step * normal(&mut rng)).clamp(-WEIGHT_MAX, WEIGHT_MAX)).collect();
        let value = loss(edge, &experts.mix(&trial)?, &trial, shots, cancel)?;
        if value < least {
            (best, least) = (trial, value);
            step *= 1.5;
        } else {
            // One success in five trials keeps the step as it is.
            step *= 1.5f32.powf(-0.25);
        }
    }
    experts.mix(&best)
}

impl Experts {
    fn mix(&self, weights: &[f32]) -> Result<LoraSet> {
        let shared = if self.shared { self.layer_count - self.first_layer } else { 0 };
        let mut gates = Array2::zeros((self.layer_count, self.routed_count + shared));
        for layer in self.first_layer..self.layer_count {
            weights.iter().enumerate().for_each(|(expert, weight)| gates[[layer, expert]] = *weight);
            if self.shared {
                gates[[layer, self.routed_count + layer - self.first_layer]] = 1.0;
            }
        }
        let mut lora = self.pool.mix(&Gates { weights: gates }, self.composition)?;
        lora.layers[..self.first_layer].fill(LayerLora::default());
        Ok(lora)
    }
}

// Mean negative log-likelihood of the shots' answers per token, and the penalty.
fn loss(edge: &EdgeModel, lora: &LoraSet, weights: &[f32], shots: &[Request], cancel: &CancelToken) -> Result<f64> {
    let longest = shots.iter().map(|shot| shot.ids.len()).max().unwrap_or(0);
    let mut reader = edge.reader(longest + 1, Some(edge.side_path(lora)?))?;
    let likelihood: f64 = log_likelihoods(&mut reader, shots, cancel)?.iter().sum();
    let tokens: usize = shots.iter().map(|shot| shot.ids.len() - shot.first).sum();
    let size: f64 = weights.iter().map(|weight| f64::from(weight.abs())).sum();
    Ok(-likelihood / tokens.max(1) as f64 + PENALTY * size / weights.len().max(1) as f64)
}

// Box and Muller.
fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (rng.random_range(f32::MIN_POSITIVE..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
