use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use edgeweld::CancelToken;
use edgeweld::lora::{LayerLora, LoraPair, LoraSet, Target};
use edgeweld::model::{Config, Decoder};
use ndarray::Array2;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::generator::Parameters;
use crate::grad::{Batch, Grad, GroupedLora, LayerTheta, SparseTarget, head_loss};
use crate::train::AdamW;
use crate::{Error, Result};

/// One sequence to learn: a user's turn with an answer, and what to expect at the answer's tokens.
pub struct Lesson {
    /// Turn and answer, without the answer's last token: nothing is predicted from it.
    pub ids: Vec<u32>,
    /// What the last rows of `ids` should predict, one entry each.
    pub targets: Vec<SparseTarget>,
}

/// The LoRA that is refined, as trained tensors: one flat `[1, rank·in + out·rank]` per layer and target.
pub struct Student {
    /// Its tensors.
    pub parameters: Parameters,
    /// Optimiser state.
    pub optimizer: AdamW,
    rank: usize,
    scale: f32,
    // (in, out) per target
    sizes: [(usize, usize); 3],
    layer_count: usize,
}

fn name(layer: usize, target: Target) -> String {
    format!("lora.{layer}.{}", target.name())
}

impl Student {
    /// A LoRA whose deltas are zero.
    pub fn new(config: &Config, rank: usize, alpha: f32, seed: u64, decoder: &Decoder<Grad>) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let sizes = sizes(config);
        let mut parameters = Parameters::default();
        for layer in 0..config.layer_count() {
            for target in Target::ALL {
                let (input, output) = sizes[target as usize];
                // Uniform with the variance 1 / (3·in) that PEFT's Kaiming initialisation has.
                let bound = (input as f32).powf(-0.5);
                let a = (0..rank * input).map(|_| rng.random_range(-bound..bound));
                let values: Vec<f32> = a.chain(std::iter::repeat_n(0.0, output * rank)).collect();
                let len = values.len();
                parameters
                    .insert(name(layer, target), &Tensor::from_vec(values, (1, len), decoder.backend.device())?)?;
            }
        }
        let scale = alpha / rank as f32;
        let layer_count = config.layer_count();
        Ok(Self { parameters, optimizer: AdamW::default(), rank, scale, sizes, layer_count })
    }

    /// A LoRA that starts from `lora`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `lora` has not one pair of the same rank for every target of this model.
    pub fn from_lora(config: &Config, lora: &LoraSet, decoder: &Decoder<Grad>) -> Result<Self> {
        let invalid = |reason: &str| Error::InvalidOption { option: "--generator", reason: reason.into() };
        let first = lora.layers.first().and_then(|layer| layer.gate.as_ref());
        let rank = first.map(|pair| pair.a.nrows()).ok_or_else(|| invalid("its LoRA has no gate_proj"))?;
        let student = Self::new(config, rank, lora.scale * rank as f32, 0, decoder)?;
        if lora.layers.len() != student.layer_count {
            return Err(invalid("its LoRA has another number of layers"));
        }
        for (layer, pairs) in lora.layers.iter().enumerate() {
            for target in Target::ALL {
                let (input, output) = student.sizes[target as usize];
                let pair =
                    pairs.pair(target).filter(|pair| pair.a.dim() == (rank, input) && pair.b.dim() == (output, rank));
                let LoraPair { a, b } = pair.ok_or_else(|| invalid("its LoRA does not fit the edge model"))?;
                let values: Vec<f32> = a.iter().chain(b).copied().collect();
                let len = values.len();
                let tensor = Tensor::from_vec(values, (1, len), decoder.backend.device())?;
                student.parameters.var(&name(layer, target)).set(&tensor)?;
            }
        }
        Ok(student)
    }

    /// Rank of its pairs.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The LoRA as it is now.
    pub fn lora(&self) -> Result<LoraSet> {
        let layer = |layer: usize| -> Result<LayerLora> {
            let mut pairs = LayerLora::default();
            for target in Target::ALL {
                let (input, output) = self.sizes[target as usize];
                let values: Vec<f32> = self.parameters.tensor(&name(layer, target)).flatten_all()?.to_vec1()?;
                let (a, b) = values.split_at(self.rank * input);
                let matrix = |shape, values: &[f32]| {
                    Array2::from_shape_vec(shape, values.to_vec()).expect("the size it was made with")
                };
                *pairs.pair_mut(target) =
                    Some(LoraPair { a: matrix((self.rank, input), a), b: matrix((output, self.rank), b) });
            }
            Ok(pairs)
        };
        Ok(LoraSet { scale: self.scale, layers: (0..self.layer_count).map(layer).collect::<Result<_>>()? })
    }

    /// Mean cross-entropy of the lessons' targets, nats per answer token: a scalar with gradients for the LoRA.
    pub fn loss(&self, decoder: &Decoder<Grad>, lessons: &[&Lesson], cancel: &CancelToken) -> Result<Tensor> {
        let ids: Vec<u32> = lessons.iter().flat_map(|lesson| lesson.ids.iter().copied()).collect();
        let groups: Arc<[_]> = Arc::new([0..ids.len()]);
        let theta = |layer: usize, target: Target| {
            let theta = self.parameters.tensor(&name(layer, target));
            Some(GroupedLora { theta, groups: groups.clone(), rank: self.rank, scale: self.scale, dropout: None })
        };
        let thetas: Vec<LayerTheta> = (0..self.layer_count)
            .map(|layer| LayerTheta::Groups {
                gate: theta(layer, Target::Gate),
                up: theta(layer, Target::Up),
                down: theta(layer, Target::Down),
            })
            .collect();
        let lengths: Vec<usize> = lessons.iter().map(|lesson| lesson.ids.len()).collect();
        let mut batch = Batch::packed(&lengths, vec![None; lessons.len()]);
        let h = decoder.hidden(decoder.embed(&ids)?, &mut batch, Some(&thetas), cancel)?;

        let (mut rows, mut targets, mut end) = (Vec::new(), Vec::new(), 0);
        for lesson in lessons {
            end += lesson.ids.len();
            rows.extend((end - lesson.targets.len()) as u32..end as u32);
            targets.extend(lesson.targets.iter().cloned());
        }
        let count = rows.len();
        let h = h.index_select(&Tensor::from_vec(rows, count, h.device())?, 0)?;
        let losses =
            head_loss(&decoder.output_norm(&h)?, &decoder.head.dense()?, decoder.config.logit_softcap, targets)?;
        Ok((losses.sum_all()? / count as f64)?)
    }

    /// One optimiser step on `lessons`; `step` counts from 0. Returns the loss before it.
    ///
    /// # Errors
    /// [`edgeweld::Error::Cancelled`] within one layer of the cancellation, with everything as before the step.
    pub fn advance(
        &mut self,
        decoder: &Decoder<Grad>,
        lessons: &[&Lesson],
        step: u64,
        learning_rate: f64,
        clip_norm: f64,
        cancel: &CancelToken,
    ) -> Result<f64> {
        let loss = self.loss(decoder, lessons, cancel)?;
        let grads = loss.backward()?;
        cancel.check()?;
        let mut gradients = BTreeMap::new();
        for (name, var) in self.parameters.trained() {
            if let Some(gradient) = grads.get(var.as_tensor()) {
                gradients.insert(name.to_owned(), gradient.clone());
            }
        }
        self.optimizer.update(&self.parameters, &gradients, step, |_| learning_rate, 0.0, clip_norm)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}

fn sizes(config: &Config) -> [(usize, usize); 3] {
    Target::ALL.map(|target| match target {
        Target::Gate | Target::Up => (config.hidden_size, config.ffn_size),
        Target::Down => (config.ffn_size, config.hidden_size),
    })
}
