use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use edgeweld::lora::Target;
use edgeweld::model::{Config, Decoder};

use super::{GeneratorConfig, Parameters, Routing, init};
use crate::Result;
use crate::grad::{Dropout, Grad, GroupedLora, LayerTheta, MatrixLora, TokenExperts};
use crate::method::{BatchStatistics, ExpertPool, Gates, Router, gumbel_noise, load_balance};

/// From prompts to gates and LoRAs, for one pair of cloud LM and edge model.
pub struct Generator {
    /// What it is.
    pub config: GeneratorConfig,
    /// Its trained tensors.
    pub parameters: Parameters,
    router: Option<Router>,
    pool: ExpertPool,
    layer_count: usize,
}

/// Gates of several prompts: rows are ordered by layer, then prompt.
pub struct PromptGates {
    /// `[layer · prompt, expert]`, for the edge layers from the generator's `first_layer` on.
    pub gates: Gates,
    /// Prompts in the batch.
    pub prompt_count: usize,
    /// Edge layers before the first row, which get no delta.
    pub first_layer: usize,
    /// Experts that the router chose from, which come first; 0 where it does not choose.
    pub routed_count: usize,
}

impl PromptGates {
    /// Eq. 9 without α, over the experts that the router chose from; zero where there are none.
    pub fn load_balance(&self) -> Result<Tensor> {
        let values = &self.gates.values;
        match self.routed_count {
            0 => Ok(Tensor::zeros((), DType::F32, values.device())?),
            count => Ok(load_balance(&values.narrow(1, 0, count)?)?),
        }
    }
}

impl Generator {
    /// A generator with random parameters; its deltas are zero until it is trained (`b = 0`).
    ///
    /// # Errors
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) as [`GeneratorConfig::check`] says.
    pub fn new(config: GeneratorConfig, cloud: &Config, edge: &Config, seed: u64, device: &Device) -> Result<Self> {
        config.check(edge.layer_count())?;
        let parameters = init::parameters(&config, cloud, edge, seed, device)?;
        let router = config.routes_prompts().then(|| init::router(&parameters));
        let pool = init::pool(&config, &parameters, edge);
        Ok(Self { config, parameters, router, pool, layer_count: edge.layer_count() })
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

    /// Edge layers that get a delta.
    pub fn active_layers(&self) -> usize {
        self.layer_count - self.config.first_layer
    }

    /// Gates at inference, from [`meta`](Self::meta).
    pub fn gates(&self, meta: &Tensor) -> Result<PromptGates> {
        let logits = self.router.as_ref().map(|router| router.forward(meta)).transpose()?;
        self.select(meta.dim(0)?, logits)
    }

    /// Gates in training, and what the batch adds to the running statistics; `seed` is that of Gumbel noise.
    pub fn gates_train(&self, meta: &Tensor, seed: u64) -> Result<(PromptGates, Option<BatchStatistics>)> {
        let Some(router) = &self.router else { return Ok((self.select(meta.dim(0)?, None)?, None)) };
        let (mut logits, statistics) = router.forward_train(meta)?;
        if self.config.routing == Routing::Gumbel {
            logits = logits.add(&gumbel_noise(logits.dims2()?, seed, logits.device())?)?;
        }
        Ok((self.select(meta.dim(0)?, Some(logits))?, Some(statistics)))
    }

    /// Takes a batch into the running statistics.
    pub fn update_statistics(&self, batch: &BatchStatistics) -> Result<()> {
        let Some(router) = &self.router else { return Ok(()) };
        let (mean, var) = router.norm.updated(batch)?;
        self.parameters.var("router.bn.running_mean").set(&mean)?;
        self.parameters.var("router.bn.running_var").set(&var)?;
        Ok(())
    }

    // Logits [prompt · layer, expert] become gates [layer · prompt, expert]; then the shared experts' gates.
    fn select(&self, rows: usize, logits: Option<Tensor>) -> Result<PromptGates> {
        let layers = self.active_layers();
        let prompt_count = rows / layers;
        let routed = logits.map(|logits| {
            let experts = logits.dim(1)?;
            let logits = logits.reshape((prompt_count, layers, experts))?.transpose(0, 1)?;
            let logits = logits.contiguous()?.reshape((rows, experts))?;
            match self.config.routing {
                Routing::Direct => Gates::direct(&logits),
                Routing::KeepTop | Routing::Gumbel => Gates::from_logits(&logits, self.config.top_k),
            }
        });
        let routed = routed.transpose()?;
        let expert_count = self.config.expert_count;
        let routed_count = if self.config.routing == Routing::Direct { 0 } else { expert_count };
        let shared = self.config.shared_expert.then(|| -> Result<Gates> {
            let layer_of = |row: usize| row / prompt_count;
            let mut values = vec![0f32; rows * layers];
            (0..rows).for_each(|row| values[row * layers + layer_of(row)] = 1.0);
            let values = Tensor::from_vec(values, (rows, layers), self.pool.a[0].device())?;
            let experts = (0..rows).map(|row| vec![(expert_count + layer_of(row)) as u32]).collect();
            Ok(Gates { values, experts })
        });
        let gates = match (routed, shared.transpose()?) {
            (Some(routed), Some(shared)) => routed.beside(&shared)?,
            (Some(gates), None) | (None, Some(gates)) => gates,
            (None, None) => unreachable!("the configuration was checked"),
        };
        Ok(PromptGates { gates, prompt_count, first_layer: self.config.first_layer, routed_count })
    }

    /// The side path of every edge layer from `first_layer` on, where `rows` are the batch rows of each prompt.
    pub fn thetas(
        &self,
        prompts: &PromptGates,
        rows: &Arc<[Range<usize>]>,
        dropout: Option<Dropout>,
    ) -> Result<Vec<LayerTheta>> {
        let composition = self.config.composition;
        let rank = self.pool.composed_rank(composition, self.config.active_experts());
        let layer = |index: usize| {
            let gates = prompts.gates.narrow(index * prompts.prompt_count, prompts.prompt_count)?;
            let grouped = |target: Target| -> Result<Option<GroupedLora>> {
                let (a, b) = self.pool.compose(&gates, target, composition)?;
                let theta = Tensor::cat(&[a.flatten_from(1)?, b.flatten_from(1)?], 1)?;
                let place = (index * Target::ALL.len() + target as usize) as u64;
                let dropout = dropout.map(|dropout| Dropout { seed: dropout.seed.wrapping_add(place), ..dropout });
                Ok(Some(GroupedLora { theta, groups: rows.clone(), rank, scale: self.config.scale(), dropout }))
            };
            let (gate, up, down) = (grouped(Target::Gate)?, grouped(Target::Up)?, grouped(Target::Down)?);
            Ok(LayerTheta::Groups { gate, up, down })
        };
        (0..self.active_layers()).map(layer).collect()
    }

    /// The same for a generator whose experts are chosen token by token ([`Reading::Token`](super::Reading::Token)); for
    /// one pass.
    pub fn token_thetas(&self, dropout: Option<Dropout>) -> Result<Vec<LayerTheta>> {
        let count = self.config.expert_count;
        let routers = self.parameters.tensor("router.tokens");
        let layer = |index: usize| {
            let of = |pool: &Tensor| pool.narrow(0, index * count, count);
            let [gate, up, down] = &self.pool.a;
            let a = [of(gate)?, of(up)?, of(down)?];
            let [gate, up, down] = &self.pool.b;
            let b = [of(gate)?, of(up)?, of(down)?];
            let place = (index * Target::ALL.len()) as u64;
            let dropout = dropout.map(|dropout| Dropout { seed: dropout.seed.wrapping_add(place), ..dropout });
            let (router, scale) = (routers.get(index)?, self.config.scale());
            Ok(LayerTheta::Tokens(TokenExperts::new(router, self.config.top_k, a, b, scale, dropout)))
        };
        (0..self.active_layers()).map(layer).collect()
    }

    /// The expert pool.
    pub fn pool(&self) -> &ExpertPool {
        &self.pool
    }
}
