use edgeweld::lora::{LayerLora, LoraPair, LoraSet};
use edgeweld::model::Config;
use ndarray::Array2;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A LoRA for every target of a model, with uniform random values up to `limit`: it costs what a trained one costs, for
/// measurements.
pub fn random_lora(config: &Config, rank: usize, limit: f32, seed: u64) -> LoraSet {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut matrix = |rows, cols| Array2::from_shape_simple_fn((rows, cols), || random.random_range(-limit..limit));
    let mut pair = |out, input| Some(LoraPair { a: matrix(rank, input), b: matrix(out, rank) });
    let (hidden, ffn) = (config.hidden_size, config.ffn_size);
    let mut layer = || LayerLora { gate: pair(ffn, hidden), up: pair(ffn, hidden), down: pair(hidden, ffn) };
    LoraSet { scale: 1.0, layers: (0..config.layer_count()).map(|_| layer()).collect() }
}
