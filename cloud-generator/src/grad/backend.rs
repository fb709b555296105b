use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use edgeweld::lora::{LayerLora, LoraPair, Target};
use edgeweld::model::{Activation, AttentionParams, Backend};
use edgeweld::quant::{QMatrix, dequantize};
use edgeweld::{Error, Result};

use super::attention::Attend;
use super::batch::Batch;
use super::linear::{GroupedLora, linear};
use super::token_experts::TokenExperts;
use super::{glu, norm, primitive};

/// The differentiable backend, in f32 on the dequantised weights.
pub struct Grad {
    device: Device,
}

/// A frozen weight, dequantised when first needed as a whole, with an optional LoRA that is trained with it.
#[derive(Clone)]
pub struct GradMatrix {
    weight: Arc<Weight>,
    lora: Option<MatrixLora>,
}

struct Weight {
    source: QMatrix,
    dense: OnceLock<Tensor>,
    device: Device,
}

/// A trained LoRA of one projection, used for all rows (the cloud LM's q and v).
#[derive(Clone)]
pub struct MatrixLora {
    /// `[rank, in]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
    /// `alpha / rank`
    pub scale: f32,
}

/// The LoRA of one layer's FFN.
pub enum LayerTheta {
    /// A pair for every group of rows; `None` keeps the weight.
    Groups {
        /// For `gate_proj`.
        gate: Option<GroupedLora>,
        /// For `up_proj`.
        up: Option<GroupedLora>,
        /// For `down_proj`.
        down: Option<GroupedLora>,
    },
    /// Experts that every token chooses from.
    Tokens(TokenExperts),
}

impl Grad {
    /// A backend on `device`.
    pub fn new(device: Device) -> Self {
        Self { device }
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl GradMatrix {
    /// The weight `[out, in]` in f32.
    pub fn dense(&self) -> Result<Tensor> {
        let weight = &self.weight;
        if let Some(dense) = weight.dense.get() {
            return Ok(dense.clone());
        }
        let source = &weight.source;
        let mut values = vec![0f32; source.rows() * source.cols()];
        dequantize(source.block_type(), source.bytes(), &mut values);
        let dense = tensor(Tensor::from_vec(values, (source.rows(), source.cols()), &weight.device))?;
        Ok(weight.dense.get_or_init(|| dense).clone())
    }

    /// The same weight with a LoRA beside it.
    pub fn with_lora(&self, lora: MatrixLora) -> Self {
        Self { weight: self.weight.clone(), lora: Some(lora) }
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.dense()?;
        let Some(lora) = &self.lora else { return tensor(linear(x, &weight, None)) };
        let run = || {
            let theta = Tensor::cat(&[lora.a.flatten_all()?, lora.b.flatten_all()?], 0)?.unsqueeze(0)?;
            let (rank, rows) = (lora.a.dim(0)?, x.dim(0)?);
            let grouped = GroupedLora { theta, groups: Arc::new([0..rows]), rank, scale: lora.scale, dropout: None };
            linear(x, &weight, Some(&grouped))
        };
        tensor(run())
    }
}

fn tensor<T>(result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|error| Error::Backend { backend: "grad", reason: error.to_string() })
}

impl Backend for Grad {
    type Tensor = Tensor;
    type Matrix = GradMatrix;
    type Vector = Tensor;
    type Lora = LayerTheta;
    type Sequence = Batch;

    fn matrix(&self, source: QMatrix) -> Result<GradMatrix> {
        let weight = Weight { source, dense: OnceLock::new(), device: self.device.clone() };
        Ok(GradMatrix { weight: Arc::new(weight), lora: None })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        let len = values.len();
        tensor(Tensor::from_vec(values, len, &self.device))
    }

    /// One pair for all rows; its row count is not known here, so the group's range is open.
    fn lora(&self, layer: &LayerLora, scale: f32) -> Result<LayerTheta> {
        let grouped = |pair: &Option<LoraPair>| -> Result<Option<GroupedLora>> {
            let Some(LoraPair { a, b }) = pair else { return Ok(None) };
            let values: Vec<f32> = a.iter().chain(b).copied().collect();
            let theta = tensor(Tensor::from_vec(values, (1, a.len() + b.len()), &self.device))?;
            Ok(Some(GroupedLora { theta, groups: Arc::new([0..usize::MAX]), rank: a.nrows(), scale, dropout: None }))
        };
        Ok(LayerTheta::Groups { gate: grouped(&layer.gate)?, up: grouped(&layer.up)?, down: grouped(&layer.down)? })
    }

    fn sequence(&self, layers: &[AttentionParams], capacity: usize) -> Result<Batch> {
        Ok(Batch::single(layers, capacity))
    }

    fn embed(&self, table: &GradMatrix, ids: &[u32], scale: f32) -> Result<Tensor> {
        let source = &table.weight.source;
        let mut values = vec![0f32; ids.len() * source.cols()];
        for (&id, row) in ids.iter().zip(values.chunks_mut(source.cols())) {
            if id as usize >= source.rows() {
                let reason = format!("token id {id}, vocabulary of {}", source.rows());
                return Err(Error::Backend { backend: "grad", reason });
            }
            dequantize(source.block_type(), source.row(id as usize), row);
            row.iter_mut().for_each(|x| *x *= scale);
        }
        tensor(Tensor::from_vec(values, (ids.len(), source.cols()), &self.device))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
        tensor(norm::rms_norm(x, weight, epsilon))
    }

    fn project<const N: usize>(
        &self,
        x: &Tensor,
        weights: [&GradMatrix; N],
        biases: [Option<&Tensor>; N],
    ) -> Result<[Tensor; N]> {
        let mut outputs = Vec::with_capacity(N);
        for (weight, bias) in weights.into_iter().zip(biases) {
            let y = weight.apply(x)?;
            outputs.push(match bias {
                None => y,
                Some(bias) => tensor(y.broadcast_add(bias))?,
            });
        }
        Ok(outputs.try_into().expect("one output per weight"))
    }

    fn attend(
        &self,
        layer: usize,
        [q, k, v]: [Tensor; 3],
        q_norm: Option<&Tensor>,
        k_norm: Option<&Tensor>,
        params: &AttentionParams,
        sequence: &mut Batch,
    ) -> Result<Tensor> {
        let rows = self.row_count(&q);
        let op = Attend {
            params: params.clone(),
            layer,
            q_norm: q_norm.cloned(),
            k_norm: k_norm.cloned(),
            ranges: sequence.ranges(rows),
            prefixes: sequence.prefixes.clone(),
        };
        let keep = sequence.pending.is_some();
        if !self.device.is_cpu() {
            let (y, keys) = tensor(primitive::attend(&op, &q, &k, &v))?;
            sequence.keep(keys.detach(), v.detach());
            return Ok(y);
        }
        if keep {
            sequence.keep(tensor(op.cached_keys(&k))?, v.detach());
        }
        tensor(q.apply_op3(&k, &v, op))
    }

    fn ffn_in(
        &self,
        x: &Tensor,
        gate: &GradMatrix,
        up: &GradMatrix,
        activation: Activation,
        lora: Option<&LayerTheta>,
    ) -> Result<Tensor> {
        if let Some(LayerTheta::Tokens(experts)) = lora {
            tensor(experts.route(x))?;
        }
        let gate = ffn_linear(x, gate, lora, Target::Gate)?;
        let up = ffn_linear(x, up, lora, Target::Up)?;
        tensor(glu::glu(&gate, &up, activation))
    }

    fn ffn_out(&self, x: &Tensor, down: &GradMatrix, lora: Option<&LayerTheta>) -> Result<Tensor> {
        ffn_linear(x, down, lora, Target::Down)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        tensor(x.add(y))
    }

    fn softcap(&self, x: Tensor, cap: f32) -> Result<Tensor> {
        let run = || (x / f64::from(cap))?.tanh()? * f64::from(cap);
        tensor(run())
    }

    fn rows(&self, x: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        tensor(x.narrow(0, rows.start, rows.len()))
    }

    fn row_count(&self, x: &Tensor) -> usize {
        x.dims()[0]
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<()> {
        *out = tensor(x.flatten_all().and_then(|x| x.to_vec1()))?;
        Ok(())
    }
}

// One projection of the FFN with its part of the layer's LoRA.
fn ffn_linear(x: &Tensor, weight: &GradMatrix, lora: Option<&LayerTheta>, target: Target) -> Result<Tensor> {
    let weight = weight.dense()?;
    match lora {
        None => with_group(x, &weight, None),
        Some(LayerTheta::Groups { gate, up, down }) => {
            let group = match target {
                Target::Gate => gate,
                Target::Up => up,
                Target::Down => down,
            };
            with_group(x, &weight, group.as_ref())
        }
        Some(LayerTheta::Tokens(experts)) => {
            tensor(linear(x, &weight, None).and_then(|y| y.add(&experts.delta(x, target)?)))
        }
    }
}

// An open group (see `lora`) is closed at the last row.
fn with_group(x: &Tensor, weight: &Tensor, lora: Option<&GroupedLora>) -> Result<Tensor> {
    let rows = x.dims()[0];
    let closed = match lora {
        Some(lora) if lora.groups.last().is_some_and(|group| group.end == usize::MAX) => {
            Some(GroupedLora { groups: Arc::new([0..rows]), ..lora.clone() })
        }
        _ => None,
    };
    tensor(linear(x, weight, closed.as_ref().or(lora)))
}
