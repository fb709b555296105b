//! Projections with frozen weights, without and with a LoRA per group of rows.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::matmul::{Into, Mat, elements, matmul, with_elements};
use super::primitive;

/// Zeroes each element of a LoRA's input with a probability and scales up the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of elements that become zero.
    pub probability: f32,
    /// Which ones.
    pub seed: u64,
}

impl Dropout {
    // A hash of seed and index, so that the backward pass can make the mask again instead of keeping it.
    fn factor(&self, index: usize) -> f32 {
        let mut z = self.seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let uniform = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
        if uniform < self.probability { 0.0 } else { 1.0 / (1.0 - self.probability) }
    }

    pub(super) fn apply(&self, x: &mut [f32]) {
        x.par_chunks_mut(4096).enumerate().for_each(|(chunk, x)| {
            x.iter_mut().enumerate().for_each(|(i, x)| *x *= self.factor(chunk * 4096 + i));
        });
    }
}

/// The LoRA pairs of one projection: one pair per group of rows.
#[derive(Clone)]
pub struct GroupedLora {
    /// `[group, rank·in + out·rank]`: each group's `a: [rank, in]`, then its `b: [out, rank]`.
    pub theta: Tensor,
    /// Rows of each group, ascending; together all rows.
    pub groups: Arc<[Range<usize>]>,
    /// Rank of the pairs.
    pub rank: usize,
    /// `alpha / rank`.
    pub scale: f32,
    /// On the pairs' input.
    pub dropout: Option<Dropout>,
}

/// `y = W·x (+ scale · b·(a·x))`: `[rows, in]` to `[rows, out]`, with gradients for `x` and the pairs.
pub(super) fn linear(x: &Tensor, weight: &Tensor, lora: Option<&GroupedLora>) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return primitive::linear(x, weight, lora);
    }
    match lora {
        None => x.apply_op1(Frozen { weight: weight.clone() }),
        Some(lora) => {
            let op = WithLora { weight: weight.clone(), lora: lora.clone(), xa: Mutex::default() };
            x.apply_op2(&lora.theta, op)
        }
    }
}

struct Frozen {
    weight: Tensor,
}

fn project(x: &[f32], weight: &Tensor) -> Result<Vec<f32>> {
    let (out, input) = weight.dims2()?;
    let rows = x.len() / input;
    let mut y = vec![0f32; rows * out];
    with_elements(weight, |w| {
        matmul(&mut y, out, Into::Overwrite, 1.0, Mat::new(x, rows, input), Mat::new(w, out, input).t());
        Ok(())
    })?;
    Ok(y)
}

fn project_back(dy: &[f32], weight: &Tensor) -> Result<Vec<f32>> {
    let (out, input) = weight.dims2()?;
    let rows = dy.len() / out;
    let mut dx = vec![0f32; rows * input];
    with_elements(weight, |w| {
        matmul(&mut dx, input, Into::Overwrite, 1.0, Mat::new(dy, rows, out), Mat::new(w, out, input));
        Ok(())
    })?;
    Ok(dx)
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = project(elements(storage, layout)?, &self.weight)?;
        Ok((CpuStorage::F32(y), (layout.dims()[0], self.weight.dim(0)?).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_elements(dy, |dy| project_back(dy, &self.weight))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}

struct WithLora {
    weight: Tensor,
    lora: GroupedLora,
    // a·x of the forward pass, [rows, rank].
    xa: Mutex<Vec<f32>>,
}

impl WithLora {
    fn dropped(&self, x: &[f32]) -> Option<Vec<f32>> {
        self.lora.dropout.map(|dropout| {
            let mut x = x.to_vec();
            dropout.apply(&mut x);
            x
        })
    }

    fn forward(&self, x: &[f32], theta: &[f32]) -> Result<Vec<f32>> {
        let (out, input) = self.weight.dims2()?;
        let (rank, scale) = (self.lora.rank, self.lora.scale);
        let mut y = project(x, &self.weight)?;
        let dropped = self.dropped(x);
        let x = dropped.as_deref().unwrap_or(x);
        let mut xa = vec![0f32; x.len() / input * rank];
        for (rows, theta) in self.lora.groups.iter().zip(theta.chunks(rank * (input + out))) {
            let (a, b) = theta.split_at(rank * input);
            let (x, count) = (&x[rows.start * input..rows.end * input], rows.len());
            let xa = &mut xa[rows.start * rank..rows.end * rank];
            matmul(xa, rank, Into::Overwrite, 1.0, Mat::new(x, count, input), Mat::new(a, rank, input).t());
            let y = &mut y[rows.start * out..rows.end * out];
            matmul(y, out, Into::Accumulate, scale, Mat::new(xa, count, rank), Mat::new(b, out, rank).t());
        }
        *self.xa.lock().expect("no panic while held") = xa;
        Ok(y)
    }

    fn backward(&self, x: &[f32], theta: &[f32], dy: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let (out, input) = self.weight.dims2()?;
        let (rank, scale) = (self.lora.rank, self.lora.scale);
        let mut dx = project_back(dy, &self.weight)?;
        let dropped = self.dropped(x);
        let mut dx_dropped = dropped.as_ref().map(|x| vec![0f32; x.len()]);
        let x = dropped.as_deref().unwrap_or(x);
        let mut dtheta = vec![0f32; theta.len()];
        let xa = self.xa.lock().expect("no panic while held");
        let size = rank * (input + out);
        for ((rows, theta), dtheta) in self.lora.groups.iter().zip(theta.chunks(size)).zip(dtheta.chunks_mut(size)) {
            let (a, b) = theta.split_at(rank * input);
            let (da, db) = dtheta.split_at_mut(rank * input);
            let count = rows.len();
            let of = |data: &'_ [f32], cols: usize| rows.start * cols..(rows.end * cols).min(data.len());
            let (x, xa, dy) = (&x[of(x, input)], &xa[of(&xa, rank)], &dy[of(dy, out)]);
            let mut dxa = vec![0f32; count * rank];
            matmul(&mut dxa, rank, Into::Overwrite, scale, Mat::new(dy, count, out), Mat::new(b, out, rank));
            matmul(db, rank, Into::Overwrite, scale, Mat::new(dy, count, out).t(), Mat::new(xa, count, rank));
            matmul(da, input, Into::Overwrite, 1.0, Mat::new(&dxa, count, rank).t(), Mat::new(x, count, input));
            let dx = dx_dropped.as_mut().unwrap_or(&mut dx);
            let range = of(dx, input);
            matmul(&mut dx[range], input, Into::Accumulate, 1.0, Mat::new(&dxa, count, rank), Mat::new(a, rank, input));
        }
        if let (Some(dropout), Some(mut dx_lora)) = (self.lora.dropout, dx_dropped) {
            dropout.apply(&mut dx_lora);
            dx.iter_mut().zip(dx_lora).for_each(|(dx, d)| *dx += d);
        }
        Ok((dx, dtheta))
    }
}

impl CustomOp2 for WithLora {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, theta: &CpuStorage, tl: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(elements(x, xl)?, elements(theta, tl)?)?;
        Ok((CpuStorage::F32(y), (xl.dims()[0], self.weight.dim(0)?).into()))
    }

    fn bwd(&self, x: &Tensor, theta: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dtheta) =
            with_elements(x, |x_| with_elements(theta, |theta| with_elements(dy, |dy| self.backward(x_, theta, dy))))?;
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dtheta, theta.shape(), &Device::Cpu)?),
        ))
    }
}
