use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use edgeweld::CancelToken;
use edgeweld::lora::Target;
use edgeweld::model::{Backend, Config, Decoder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{GeneratorConfig, LanguageModel, Parameters};
use crate::grad::{Batch, Dropout, Grad, GroupedLora, LayerTheta, MatrixLora, Prefix};
use crate::method::{BatchNorm, BatchStatistics, ExpertPool, Gates, Router};
use crate::{Error, Result};

/// From prompts to gates and LoRAs, for one pair of cloud LM and edge model.
pub struct Generator {
    /// What it is.
    pub config: GeneratorConfig,
    /// Its trained tensors.
    pub parameters: Parameters,
    router: Router,
    pool: ExpertPool,
    layer_count: usize,
}

/// Gates of several prompts: rows are ordered by layer, then prompt.
pub struct PromptGates {
    /// `[layer · prompt, expert]`
    pub gates: Gates,
    /// Prompts in the batch.
    pub prompt_count: usize,
}

impl Generator {
    /// A generator with random parameters; its deltas are zero until it is trained (`b = 0`).
    pub fn new(config: GeneratorConfig, cloud: &Config, edge: &Config, seed: u64, device: &Device) -> Result<Self> {
        let mut parameters = Parameters::default();
        let mut random = Normal { rng: StdRng::seed_from_u64(seed), device };
        let (n, rank, layers) = (config.expert_count, config.rank, edge.layer_count());
        let (hidden, width) = (cloud.hidden_size, config.router_hidden_size);
        parameters.insert("meta", &random.tensor(&[layers, hidden], 0.1)?)?;
        parameters.insert("router.f1.weight", &random.tensor(&[width, hidden], (hidden as f64).powf(-0.5))?)?;
        parameters.insert("router.f1.bias", &random.tensor(&[width], 0.0)?)?;
        parameters.insert("router.f2.weight", &random.tensor(&[n, width], (width as f64).powf(-0.5))?)?;
        parameters.insert("router.f2.bias", &random.tensor(&[n], 0.0)?)?;
        let ones = Tensor::ones(n, candle_core::DType::F32, device)?;
        parameters.insert("router.bn.weight", &ones)?;
        parameters.insert("router.bn.bias", &ones.zeros_like()?)?;
        parameters.insert("router.bn.running_mean", &ones.zeros_like()?)?;
        parameters.insert("router.bn.running_var", &ones)?;
        let shape = config.pool_shape(edge.hidden_size, edge.ffn_size);
        for target in Target::ALL {
            let (input, output) = shape.target_size(target);
            let a = random.tensor(&[n, rank, input], (input as f64).powf(-0.5))?;
            parameters.insert(format!("pool.{}.a", target.name()), &a)?;
            parameters.insert(format!("pool.{}.b", target.name()), &random.tensor(&[n, output, rank], 0.0)?)?;
        }
        if config.cloud_rank > 0 {
            for (index, attention) in cloud.attention.iter().enumerate() {
                let sizes = [("q", attention.head_count), ("v", attention.kv_head_count)];
                for (name, heads) in sizes {
                    let a = random.tensor(&[config.cloud_rank, hidden], (hidden as f64).powf(-0.5))?;
                    let b = random.tensor(&[heads * attention.head_dim, config.cloud_rank], 0.0)?;
                    parameters.insert(format!("cloud.{index}.{name}.a"), &a)?;
                    parameters.insert(format!("cloud.{index}.{name}.b"), &b)?;
                }
            }
        }
        let tensor = |name: &str| parameters.tensor(name);
        let router = Router {
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
        };
        let pool = ExpertPool {
            shape,
            a: Target::ALL.map(|target| tensor(&format!("pool.{}.a", target.name()))),
            b: Target::ALL.map(|target| tensor(&format!("pool.{}.b", target.name()))),
        };
        Ok(Self { config, parameters, router, pool, layer_count: layers })
    }

    /// Puts the trained LoRA beside the cloud LM's q and v, if this generator has one.
    pub fn attach_cloud_lora(&self, cloud: &mut Decoder<Grad>) {
        if self.config.cloud_rank == 0 {
            return;
        }
        for (index, layer) in cloud.layers.iter_mut().enumerate() {
            let lora = |name: &str| MatrixLora {
                a: self.parameters.tensor(&format!("cloud.{index}.{name}.a")),
                b: self.parameters.tensor(&format!("cloud.{index}.{name}.b")),
                scale: 1.0,
            };
            layer.q.weight = layer.q.weight.with_lora(lora("q"));
            layer.v.weight = layer.v.weight.with_lora(lora("v"));
        }
    }

    /// Reads a prompt without gradients.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`].
    pub fn read_prompt(&self, cloud: &LanguageModel, ids: &[u32], cancel: &CancelToken) -> Result<Arc<Prefix>> {
        let limit = self.config.prompt_tokens_max;
        if ids.len() > limit || ids.is_empty() {
            return Err(Error::PromptTooLong { actual: ids.len(), limit });
        }
        let decoder = &cloud.decoder;
        let mut sequence = decoder.backend.sequence(&decoder.config.attention, ids.len())?;
        decoder.hidden(decoder.embed(ids)?, &mut sequence, None, cancel)?;
        Ok(sequence.into_prefix().expect("the prompt is not empty"))
    }

    /// Meta tokens `[prompt · layer, cloud_hidden]` of prompts that were read before; gradients reach the meta
    /// embeddings (and a cloud LoRA at the meta positions) only.
    pub fn meta_after(&self, cloud: &LanguageModel, prompts: &[Arc<Prefix>], cancel: &CancelToken) -> Result<Tensor> {
        let meta = self.parameters.tensor("meta");
        let h = Tensor::cat(&vec![meta; prompts.len()], 0)?;
        let prefixes = prompts.iter().cloned().map(Some).collect();
        let mut batch = Batch::packed(&vec![self.layer_count; prompts.len()], prefixes);
        let h = cloud.decoder.hidden(h, &mut batch, None, cancel)?;
        Ok(cloud.decoder.output_norm(&h)?)
    }

    /// Meta tokens `[prompt · layer, cloud_hidden]` of whole prompts, with gradients for the cloud LoRA too.
    pub fn meta(&self, cloud: &LanguageModel, prompts: &[Vec<u32>], cancel: &CancelToken) -> Result<Tensor> {
        let meta = self.parameters.tensor("meta");
        let (mut parts, mut lengths) = (Vec::new(), Vec::new());
        for ids in prompts {
            parts.push(cloud.decoder.embed(ids)?);
            parts.push(meta.clone());
            lengths.push(ids.len() + self.layer_count);
        }
        let mut batch = Batch::packed(&lengths, vec![None; prompts.len()]);
        let h = cloud.decoder.hidden(Tensor::cat(&parts, 0)?, &mut batch, None, cancel)?;
        let mut end = 0;
        let mut rows = Vec::new();
        for length in lengths {
            end += length;
            rows.push(h.narrow(0, end - self.layer_count, self.layer_count)?);
        }
        Ok(cloud.decoder.output_norm(&Tensor::cat(&rows, 0)?)?)
    }

    /// Gates at inference, from [`meta`](Self::meta).
    pub fn gates(&self, meta: &Tensor) -> Result<PromptGates> {
        self.select(&self.router.forward(meta)?)
    }

    /// Gates in training, and what the batch adds to the running statistics.
    pub fn gates_train(&self, meta: &Tensor) -> Result<(PromptGates, BatchStatistics)> {
        let (logits, statistics) = self.router.forward_train(meta)?;
        Ok((self.select(&logits)?, statistics))
    }

    /// Takes a batch into the running statistics.
    pub fn update_statistics(&self, batch: &BatchStatistics) -> Result<()> {
        let (mean, var) = self.router.norm.updated(batch)?;
        self.parameters.var("router.bn.running_mean").set(&mean)?;
        self.parameters.var("router.bn.running_var").set(&var)?;
        Ok(())
    }

    // [prompt · layer, expert] -> [layer · prompt, expert]
    fn select(&self, logits: &Tensor) -> Result<PromptGates> {
        let (rows, experts) = logits.dims2()?;
        let prompt_count = rows / self.layer_count;
        let logits = logits.reshape((prompt_count, self.layer_count, experts))?.transpose(0, 1)?;
        let logits = logits.contiguous()?.reshape((rows, experts))?;
        Ok(PromptGates { gates: Gates::from_logits(&logits, self.config.top_k)?, prompt_count })
    }

    /// The side path of every edge layer, where `rows` are the batch rows of each prompt.
    pub fn thetas(
        &self,
        prompts: &PromptGates,
        rows: &Arc<[Range<usize>]>,
        dropout: Option<Dropout>,
    ) -> Result<Vec<LayerTheta>> {
        let composition = self.config.composition;
        let rank = self.pool.composed_rank(composition, self.config.top_k);
        let layer = |index: usize| {
            let gates = prompts.gates.narrow(index * prompts.prompt_count, prompts.prompt_count)?;
            let grouped = |target: Target| -> Result<Option<GroupedLora>> {
                let (a, b) = self.pool.compose(&gates, target, composition)?;
                let theta = Tensor::cat(&[a.flatten_from(1)?, b.flatten_from(1)?], 1)?;
                let place = (index * Target::ALL.len() + target as usize) as u64;
                let dropout = dropout.map(|dropout| Dropout { seed: dropout.seed.wrapping_add(place), ..dropout });
                Ok(Some(GroupedLora { theta, groups: rows.clone(), rank, scale: self.config.scale(), dropout }))
            };
            Ok(LayerTheta { gate: grouped(Target::Gate)?, up: grouped(Target::Up)?, down: grouped(Target::Down)? })
        };
        (0..self.layer_count).map(layer).collect()
    }

    /// The expert pool.
    pub fn pool(&self) -> &ExpertPool {
        &self.pool
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
