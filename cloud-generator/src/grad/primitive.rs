//! The same operators from tensor primitives: for devices other than the CPU, and the reference in tests.

use candle_core::{D, DType, Result, Tensor};
use edgeweld::model::Activation;

use super::attention::Attend;
use super::{GroupedLora, SparseTarget};

/// See [`edgeweld::model::Backend::project`]; dropout's mask is drawn by the device and so differs from the CPU's.
pub fn linear(x: &Tensor, weight: &Tensor, lora: Option<&GroupedLora>) -> Result<Tensor> {
    let y = x.matmul(&weight.detach().t()?)?;
    let Some(lora) = lora else { return Ok(y) };
    let (out, input) = weight.dims2()?;
    let mut deltas = Vec::with_capacity(lora.groups.len());
    for (group, rows) in lora.groups.iter().enumerate() {
        let theta = lora.theta.get(group)?;
        let a = theta.narrow(0, 0, lora.rank * input)?.reshape((lora.rank, input))?;
        let b = theta.narrow(0, lora.rank * input, out * lora.rank)?.reshape((out, lora.rank))?;
        let mut x = x.narrow(0, rows.start, rows.len())?;
        if let Some(dropout) = lora.dropout {
            let keep = 1.0 - f64::from(dropout.probability);
            let mask = x.detach().rand_like(0.0, 1.0)?.lt(keep)?.to_dtype(x.dtype())?;
            x = (x.mul(&mask)? / keep)?;
        }
        deltas.push((x.matmul(&a.t()?)?.matmul(&b.t()?)? * f64::from(lora.scale))?);
    }
    y.add(&Tensor::cat(&deltas, 0)?)
}

/// See [`edgeweld::model::Backend::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?;
    x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(&weight.detach())
}

/// `activation(gate) ⊙ up`.
pub fn glu(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
    };
    gate.mul(up)
}

/// See [`super::head_loss`].
pub fn head_loss(h: &Tensor, head: &Tensor, softcap: Option<f32>, targets: &[SparseTarget]) -> Result<Tensor> {
    let mut logits = h.matmul(&head.detach().t()?)?;
    if let Some(cap) = softcap {
        logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let log_sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()?.add(&max)?;
    let log_probabilities = logits.broadcast_sub(&log_sum)?;
    let vocab = head.dim(0)?;
    let mut dense = vec![0f32; targets.len() * vocab];
    for (row, target) in targets.iter().enumerate() {
        target.iter().for_each(|&(id, p)| dense[row * vocab + id as usize] += p);
    }
    let dense = Tensor::from_vec(dense, (targets.len(), vocab), h.device())?.to_dtype(h.dtype())?;
    log_probabilities.mul(&dense)?.sum(D::Minus1)?.neg()
}

/// Attention of one layer over packed sequences; also the rotated keys.
pub(super) fn attend(op: &Attend, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
    let params = &op.params;
    let group = params.head_count / params.kv_head_count;
    let (mut outputs, mut all_keys) = (Vec::new(), Vec::new());
    for (index, range) in op.ranges.iter().enumerate() {
        let (rows, past) = (range.len(), op.past(index));
        let heads = |x: &Tensor, count: usize| {
            x.narrow(0, range.start, rows)?.reshape((rows, count, params.head_dim))?.transpose(0, 1)?.contiguous()
        };
        let (mut q, mut k) = (heads(q, params.head_count)?, heads(k, params.kv_head_count)?);
        if let Some(norm) = &op.q_norm {
            q = rms_norm(&q, norm, params.norm_epsilon)?;
        }
        if let Some(norm) = &op.k_norm {
            k = rms_norm(&k, norm, params.norm_epsilon)?;
        }
        let q = rotate(&q, op, past)?;
        let k = rotate(&k, op, past)?;
        let v = heads(v, params.kv_head_count)?;
        all_keys.push(k.transpose(0, 1)?.flatten_from(1)?);
        let (mut keys, mut values) = (k, v);
        if let Some(prefix) = &op.prefixes[index] {
            let (k, v) = &prefix.layers[op.layer];
            let heads = |x: &Tensor| x.reshape((past, params.kv_head_count, params.head_dim))?.transpose(0, 1);
            keys = Tensor::cat(&[&heads(k)?.contiguous()?, &keys], 1)?;
            values = Tensor::cat(&[&heads(v)?.contiguous()?, &values], 1)?;
        }
        let repeat = |x: &Tensor| {
            let (heads, len, dim) = x.dims3()?;
            x.unsqueeze(1)?.broadcast_as((heads, group, len, dim))?.reshape((heads * group, len, dim))
        };
        let mut scores = (q.matmul(&repeat(&keys)?.t()?)? * f64::from(params.scale))?;
        if let Some(cap) = params.softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let scores = scores.broadcast_add(&mask(rows, past, params.window, q.device(), q.dtype())?)?;
        let max = scores.max_keepdim(D::Minus1)?.detach();
        let exp = scores.broadcast_sub(&max)?.exp()?;
        let p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        outputs.push(p.matmul(&repeat(&values)?)?.transpose(0, 1)?.flatten_from(1)?);
    }
    Ok((Tensor::cat(&outputs, 0)?, Tensor::cat(&all_keys, 0)?))
}

fn mask(rows: usize, past: usize, window: Option<usize>, device: &candle_core::Device, dtype: DType) -> Result<Tensor> {
    let visible = |row: usize, key: usize| key <= past + row && window.is_none_or(|window| past + row - key < window);
    let values: Vec<f32> = (0..rows)
        .flat_map(|row| (0..past + rows).map(move |key| if visible(row, key) { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    Tensor::from_vec(values, (rows, past + rows), device)?.to_dtype(dtype)
}

// x: [heads, rows, head_dim]
fn rotate(x: &Tensor, op: &Attend, past: usize) -> Result<Tensor> {
    let rope = &op.params.rope;
    let (heads, rows, dim) = x.dims3()?;
    let half = rope.inverse_frequencies.len();
    let angles = (0..rows).flat_map(|row| rope.inverse_frequencies.iter().map(move |f| (past + row) as f32 * f));
    let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
    let table = |values: Vec<f32>| Tensor::from_vec(values, (1, rows, half), x.device())?.to_dtype(x.dtype());
    let (sin, cos) = (table(sin)?, table(cos)?);
    let (first, second) = if rope.interleaved {
        let pairs = x.reshape((heads, rows, half, 2))?;
        (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
    } else {
        (x.narrow(2, 0, half)?, x.narrow(2, half, half)?)
    };
    let turned_first = first.broadcast_mul(&cos)?.sub(&second.broadcast_mul(&sin)?)?;
    let turned_second = first.broadcast_mul(&sin)?.add(&second.broadcast_mul(&cos)?)?;
    if rope.interleaved {
        Tensor::stack(&[turned_first, turned_second], 3)?.reshape((heads, rows, dim))
    } else {
        Tensor::cat(&[turned_first, turned_second], 2)
    }
}
