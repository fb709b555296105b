//! The candle backend: GPUs, and on the CPU a dequantised f32 reference ("exact mode").

mod device;
mod sequence;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, Module, Tensor};
pub use device::Device;
pub use sequence::CandleSequence;

use super::backend::{Backend, Sequence};
use super::config::{Activation, AttentionParams};
use super::cpu::check_ids;
use crate::lora::{LayerLora, LoraPair};
use crate::quant::{BlockType, QMatrix, dequantize};
use crate::{Error, Result};

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Backend { backend: "candle", reason: error.to_string() }
    }
}

/// The candle backend on one device.
///
/// On the CPU every weight is dequantised to f32 at its first use, and activations stay f32: the meaning that the
/// other backends are compared with, not a fast path. On GPUs weights stay quantised where candle has the kernel.
#[derive(Debug)]
pub struct Candle {
    device: candle_core::Device,
}

impl Candle {
    /// The backend on `device`.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] if the device is missing or its feature is not compiled in.
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self { device: device.open()? })
    }

    fn tensor(&self, values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape.into(), &self.device)?)
    }
}

/// A weight as the file stores it, and as candle multiplies with it.
#[derive(Clone)]
pub struct CandleMatrix {
    source: QMatrix,
    weight: Arc<OnceLock<Weight>>,
}

enum Weight {
    /// `[in, out]`, a transposed view
    Dense(Tensor),
    Quantized(QMatMul),
}

impl CandleMatrix {
    /// `y = W · x`
    fn forward(&self, backend: &Candle, x: &Tensor) -> Result<Tensor> {
        let weight = match self.weight.get() {
            Some(weight) => weight,
            None => {
                let weight = self.weight(backend)?;
                self.weight.get_or_init(|| weight)
            }
        };
        Ok(match weight {
            Weight::Dense(weight) => x.matmul(weight)?,
            Weight::Quantized(weight) => weight.forward(x)?,
        })
    }

    fn weight(&self, backend: &Candle) -> Result<Weight> {
        let source = &self.source;
        let shape = (source.rows(), source.cols());
        if !backend.device.is_cpu()
            && let Some(dtype) = candle_type(source.block_type())
        {
            let storage = QStorage::from_data(source.bytes().into(), &backend.device, dtype)?;
            return Ok(Weight::Quantized(QMatMul::from_qtensor(QTensor::new(storage, shape)?)?));
        }
        let mut values = vec![0.0; source.rows() * source.cols()];
        dequantize(source.block_type(), source.bytes(), &mut values);
        Ok(Weight::Dense(backend.tensor(values, shape)?.t()?))
    }
}

/// Quantised types that candle multiplies with on GPUs.
fn candle_type(block_type: BlockType) -> Option<GgmlDType> {
    Some(match block_type {
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2_K => GgmlDType::Q2K,
        BlockType::Q3_K => GgmlDType::Q3K,
        BlockType::Q4_K => GgmlDType::Q4K,
        BlockType::Q5_K => GgmlDType::Q5K,
        BlockType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// One layer's side path.
pub struct CandleLora {
    gate: Option<Pair>,
    up: Option<Pair>,
    down: Option<Pair>,
}

struct Pair {
    /// `[in, rank]`
    a: Tensor,
    /// `[rank, out]`, times the scale
    b: Tensor,
}

impl Pair {
    fn new(backend: &Candle, pair: &LoraPair, scale: f32) -> Result<Self> {
        let a = backend.tensor(pair.a.iter().copied().collect(), pair.a.dim())?;
        let b = backend.tensor(pair.b.iter().map(|value| value * scale).collect(), pair.b.dim())?;
        Ok(Self { a: a.t()?.contiguous()?, b: b.t()?.contiguous()? })
    }

    /// `y + scale · b·(a·x)`
    fn add_to(pair: Option<&Self>, y: Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(match pair {
            Some(pair) => (y + x.matmul(&pair.a)?.matmul(&pair.b)?)?,
            None => y,
        })
    }
}

fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let norm = (mean + f64::from(epsilon))?.sqrt()?;
    Ok(x.broadcast_div(&norm)?.broadcast_mul(weight)?)
}

fn softcap(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    Ok(((x / cap)?.tanh()? * cap)?)
}

impl Backend for Candle {
    type Tensor = Tensor;
    type Matrix = CandleMatrix;
    type Vector = Tensor;
    type Lora = CandleLora;
    type Sequence = CandleSequence;

    fn matrix(&self, source: QMatrix) -> Result<CandleMatrix> {
        Ok(CandleMatrix { source, weight: Arc::default() })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        let len = values.len();
        self.tensor(values, len)
    }

    fn lora(&self, layer: &LayerLora, scale: f32) -> Result<CandleLora> {
        let pair = |pair: &Option<LoraPair>| pair.as_ref().map(|pair| Pair::new(self, pair, scale)).transpose();
        Ok(CandleLora { gate: pair(&layer.gate)?, up: pair(&layer.up)?, down: pair(&layer.down)? })
    }

    fn sequence(&self, layers: &[AttentionParams], capacity: usize) -> Result<CandleSequence> {
        Ok(CandleSequence::new(layers, capacity, self.device.clone()))
    }

    fn embed(&self, table: &CandleMatrix, ids: &[u32], scale: f32) -> Result<Tensor> {
        let table = &table.source;
        check_ids(ids, table.rows())?;
        let mut values = vec![0.0; ids.len() * table.cols()];
        for (id, row) in ids.iter().zip(values.chunks_exact_mut(table.cols())) {
            dequantize(table.block_type(), table.row(*id as usize), row);
            row.iter_mut().for_each(|value| *value *= scale);
        }
        self.tensor(values, (ids.len(), table.cols()))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
        rms_norm(x, weight, epsilon)
    }

    fn project<const N: usize>(
        &self,
        x: &Tensor,
        weights: [&CandleMatrix; N],
        biases: [Option<&Tensor>; N],
    ) -> Result<[Tensor; N]> {
        let mut outs = Vec::with_capacity(N);
        for (weight, bias) in weights.into_iter().zip(biases) {
            let y = weight.forward(self, x)?;
            outs.push(match bias {
                Some(bias) => y.broadcast_add(bias)?,
                None => y,
            });
        }
        Ok(outs.try_into().expect("one output per weight"))
    }

    fn attend(
        &self,
        layer: usize,
        qkv: [Tensor; 3],
        q_norm: Option<&Tensor>,
        k_norm: Option<&Tensor>,
        params: &AttentionParams,
        sequence: &mut CandleSequence,
    ) -> Result<Tensor> {
        let [q, k, v] = qkv;
        let (start, rows) = (sequence.len(), q.dim(0)?);
        let (heads, kv_heads, dim) = (params.head_count, params.kv_head_count, params.head_dim);
        let (cos, sin) = sequence.rotation(&params.rope, rows)?;
        let rotated = |x: Tensor, heads: usize, norm: Option<&Tensor>| -> Result<Tensor> {
            let x = x.reshape((rows, heads, dim))?;
            let x = match norm {
                Some(norm) => rms_norm(&x, norm, params.norm_epsilon)?,
                None => x,
            };
            let pair_dim = if params.rope.interleaved { 3 } else { 2 };
            let pairs = if params.rope.interleaved { (rows, heads, dim / 2, 2) } else { (rows, heads, 2, dim / 2) };
            let x = x.reshape(pairs)?;
            let (low, high) =
                (x.narrow(pair_dim, 0, 1)?.squeeze(pair_dim)?, x.narrow(pair_dim, 1, 1)?.squeeze(pair_dim)?);
            let new_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
            let new_high = (low.broadcast_mul(&sin)? + high.broadcast_mul(&cos)?)?;
            let x = Tensor::stack(&[new_low, new_high], pair_dim)?.reshape((rows, heads, dim))?;
            Ok(x.transpose(0, 1)?.contiguous()?)
        };
        let q = (rotated(q, heads, q_norm)? * f64::from(params.scale))?;
        let k = rotated(k, kv_heads, k_norm)?;
        let v = v.reshape((rows, kv_heads, dim))?.transpose(0, 1)?.contiguous()?;

        let first = params.window.map_or(0, |window| (start + 1).saturating_sub(window));
        let (k, v) = sequence.append(layer, &k, &v, first)?;
        let keys = k.dim(1)?;
        // Query heads that share a key/value head are rows of one product.
        let q = q.reshape((kv_heads, heads / kv_heads * rows, dim))?;
        let mut scores = q.matmul(&k.t()?)?.reshape((heads, rows, keys))?;
        if let Some(cap) = params.softcap {
            scores = softcap(&scores, cap)?;
        }
        if rows > 1 {
            scores = scores.broadcast_add(&self.mask(start, rows, first, keys, params.window)?)?;
        }
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let out = weights.reshape((kv_heads, heads / kv_heads * rows, keys))?.matmul(&v)?;
        Ok(out.reshape((heads, rows, dim))?.transpose(0, 1)?.reshape((rows, heads * dim))?)
    }

    fn ffn_in(
        &self,
        x: &Tensor,
        gate: &CandleMatrix,
        up: &CandleMatrix,
        activation: Activation,
        lora: Option<&CandleLora>,
    ) -> Result<Tensor> {
        let gate = Pair::add_to(lora.and_then(|lora| lora.gate.as_ref()), gate.forward(self, x)?, x)?;
        let up = Pair::add_to(lora.and_then(|lora| lora.up.as_ref()), up.forward(self, x)?, x)?;
        let gate = match activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        Ok((gate * up)?)
    }

    fn ffn_out(&self, x: &Tensor, down: &CandleMatrix, lora: Option<&CandleLora>) -> Result<Tensor> {
        Pair::add_to(lora.and_then(|lora| lora.down.as_ref()), down.forward(self, x)?, x)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x + y)?)
    }

    fn softcap(&self, x: Tensor, cap: f32) -> Result<Tensor> {
        softcap(&x, cap)
    }

    fn rows(&self, x: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        Ok(x.narrow(0, rows.start, rows.len())?)
    }

    fn row_count(&self, x: &Tensor) -> usize {
        x.dims()[0]
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<()> {
        *out = x.flatten_all()?.to_vec1()?;
        Ok(())
    }
}

impl Candle {
    /// `[rows, keys]`: zero where the row at position `start + row` sees the key at position `first + key`.
    fn mask(&self, start: usize, rows: usize, first: usize, keys: usize, window: Option<usize>) -> Result<Tensor> {
        let mut values = Vec::with_capacity(rows * keys);
        for position in start..start + rows {
            let oldest = window.map_or(0, |window| (position + 1).saturating_sub(window));
            let visible = |key: usize| (oldest..=position).contains(&key);
            values.extend((first..first + keys).map(|key| if visible(key) { 0.0 } else { f32::NEG_INFINITY }));
        }
        self.tensor(values, (rows, keys))
    }
}
