use candle_core::{DType, Device, Tensor};
use edgeweld::lora::Target;
use edgeweld::model::Config;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{GeneratorConfig, Parameters, Reading};
use crate::Result;
use crate::method::{BatchNorm, ExpertPool, Router};

/// Random parameters of a generator; its deltas are zero until it is trained (`b = 0`).
pub(super) fn parameters(
    config: &GeneratorConfig,
    cloud: &Config,
    edge: &Config,
    seed: u64,
    device: &Device,
) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    let mut random = Normal { rng: StdRng::seed_from_u64(seed), device };
    let (n, rank, hidden) = (config.expert_count, config.rank, cloud.hidden_size);
    let layers = edge.layer_count() - config.first_layer;
    if config.routes_prompts() {
        // A token embedding's size where the cloud LM reads it; that of the standardised prompt where it is added.
        let deviation = if config.reading == Reading::Meta { 0.1 } else { 1.0 };
        parameters.insert("meta", &random.tensor(&[layers, hidden], deviation)?)?;
        let width = config.router_hidden_size;
        parameters.insert("router.f1.weight", &random.tensor(&[width, hidden], (hidden as f64).powf(-0.5))?)?;
        parameters.insert("router.f1.bias", &random.tensor(&[width], 0.0)?)?;
        parameters.insert("router.f2.weight", &random.tensor(&[n, width], (width as f64).powf(-0.5))?)?;
        parameters.insert("router.f2.bias", &random.tensor(&[n], 0.0)?)?;
        let ones = Tensor::ones(n, DType::F32, device)?;
        parameters.insert("router.bn.weight", &ones)?;
        parameters.insert("router.bn.bias", &ones.zeros_like()?)?;
        parameters.insert("router.bn.running_mean", &ones.zeros_like()?)?;
        parameters.insert("router.bn.running_var", &ones)?;
    }
    if config.reading == Reading::Token {
        let router = random.tensor(&[layers, n, edge.hidden_size], (edge.hidden_size as f64).powf(-0.5))?;
        parameters.insert("router.tokens", &router)?;
    }
    if config.reading == Reading::Pooled {
        let ones = Tensor::ones(hidden, DType::F32, device)?;
        parameters.insert("prompt.running_mean", &ones.zeros_like()?)?;
        parameters.insert("prompt.running_var", &ones)?;
    }
    let shape = config.pool_shape(edge.layer_count(), edge.hidden_size, edge.ffn_size);
    for target in Target::ALL {
        let (input, output) = shape.target_size(target);
        let a = random.tensor(&[shape.expert_count, rank, input], (input as f64).powf(-0.5))?;
        parameters.insert(format!("pool.{}.a", target.name()), &a)?;
        let b = random.tensor(&[shape.expert_count, output, rank], 0.0)?;
        parameters.insert(format!("pool.{}.b", target.name()), &b)?;
    }
    if config.cloud_rank > 0 {
        for (index, attention) in cloud.attention.iter().enumerate() {
            for (name, heads) in [("q", attention.head_count), ("v", attention.kv_head_count)] {
                let a = random.tensor(&[config.cloud_rank, hidden], (hidden as f64).powf(-0.5))?;
                let b = random.tensor(&[heads * attention.head_dim, config.cloud_rank], 0.0)?;
                parameters.insert(format!("cloud.{index}.{name}.a"), &a)?;
                parameters.insert(format!("cloud.{index}.{name}.b"), &b)?;
            }
        }
    }
    Ok(parameters)
}

/// The router over these parameters.
pub(super) fn router(parameters: &Parameters) -> Router {
    let tensor = |name: &str| parameters.tensor(name);
    Router {
        f1_weight: tensor("router.f1.weight"),
        f1_bias: tensor("router.f1.bias"),
        f2_weight: tensor("router.f2.weight"),
        f2_bias: tensor("router.f2.bias"),
        norm: BatchNorm {
            weight: tensor("router.bn.weight"),
            bias: tensor("router.bn.bias"),
            running_mean: tensor("router.bn.running_mean"),
            running_var: tensor("router.bn.running_var"),
        },
    }
}

/// The expert pool over these parameters.
pub(super) fn pool(config: &GeneratorConfig, parameters: &Parameters, edge: &Config) -> ExpertPool {
    ExpertPool {
        shape: config.pool_shape(edge.layer_count(), edge.hidden_size, edge.ffn_size),
        a: Target::ALL.map(|target| parameters.tensor(&format!("pool.{}.a", target.name()))),
        b: Target::ALL.map(|target| parameters.tensor(&format!("pool.{}.b", target.name()))),
    }
}

struct Normal<'a> {
    rng: StdRng,
    device: &'a Device,
}

impl Normal<'_> {
    // Box-Muller, so that a seed gives the same generator on every device.
    fn tensor(&mut self, shape: &[usize], deviation: f64) -> Result<Tensor> {
        let mut value = || {
            let (u, v): (f64, f64) = (self.rng.random(), self.rng.random());
            (deviation * (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
        Ok(Tensor::from_vec(values, shape, self.device)?)
    }
}
