//! The head and the loss in one operator, so that logits exist for a few rows at a time only.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::exp;
use super::matmul::{Into, Mat, elements, matmul, with_elements};
use super::primitive;

/// Rows whose logits are in memory at once.
const CHUNK_ROWS: usize = 64;

/// What a row should predict: `(token id, probability)`, summing to 1; one entry for a label.
pub type SparseTarget = Vec<(u32, f32)>;

/// Cross-entropy of each row of `h` (`[rows, hidden]`, after the output norm) against its target: `[rows]`, in nats.
pub fn head_loss(h: &Tensor, head: &Tensor, softcap: Option<f32>, targets: Vec<SparseTarget>) -> Result<Tensor> {
    if !h.device().is_cpu() {
        return primitive::head_loss(h, head, softcap, &targets);
    }
    h.contiguous()?.apply_op1(HeadLoss { head: head.clone(), softcap, targets, dh: Mutex::default() })
}

struct HeadLoss {
    head: Tensor,
    softcap: Option<f32>,
    targets: Vec<SparseTarget>,
    // The gradient of each row's own loss, made in the forward pass while the logits are there.
    dh: Mutex<Vec<f32>>,
}

impl HeadLoss {
    // Turns one row of logits into the loss's gradient and returns the loss.
    fn row(&self, logits: &mut [f32], target: &SparseTarget) -> f32 {
        let cap = |x: f32| self.softcap.map_or(x, |cap| cap * (x / cap).tanh());
        if self.softcap.is_some() {
            logits.iter_mut().for_each(|x| *x = cap(*x));
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
        let log_sum = max + sum.ln();
        let loss = target.iter().map(|&(id, p)| p * (log_sum - logits[id as usize])).sum();
        let mass: f32 = target.iter().map(|(_, p)| p).sum();
        let slope = |x: f32| self.softcap.map_or(1.0, |cap| 1.0 - (x / cap) * (x / cap));
        let at_targets: Vec<f32> = target.iter().map(|&(id, _)| slope(logits[id as usize])).collect();
        logits.iter_mut().for_each(|x| *x = slope(*x) * mass * exp(*x - log_sum));
        for (&(id, p), slope) in target.iter().zip(at_targets) {
            logits[id as usize] -= p * slope;
        }
        loss
    }

    fn forward(&self, h: &[f32]) -> Result<Vec<f32>> {
        let (vocab, hidden) = self.head.dims2()?;
        let mut losses = vec![0f32; self.targets.len()];
        let mut dh = vec![0f32; h.len()];
        with_elements(&self.head, |head| {
            let head = Mat::new(head, vocab, hidden);
            let chunks = h.chunks(CHUNK_ROWS * hidden).zip(dh.chunks_mut(CHUNK_ROWS * hidden));
            let outputs = losses.chunks_mut(CHUNK_ROWS).zip(self.targets.chunks(CHUNK_ROWS));
            for ((h, dh), (losses, targets)) in chunks.zip(outputs) {
                let rows = losses.len();
                let mut logits = vec![0f32; rows * vocab];
                matmul(&mut logits, vocab, Into::Overwrite, 1.0, Mat::new(h, rows, hidden), head.t());
                let rows_of_logits = logits.par_chunks_mut(vocab);
                rows_of_logits.zip(losses.par_iter_mut()).zip(targets.par_iter()).for_each(
                    |((logits, loss), target)| {
                        *loss = self.row(logits, target);
                    },
                );
                matmul(dh, hidden, Into::Overwrite, 1.0, Mat::new(&logits, rows, vocab), head);
            }
            Ok(())
        })?;
        *self.dh.lock().expect("no panic while held") = dh;
        Ok(losses)
    }
}

impl CustomOp1 for HeadLoss {
    fn name(&self) -> &'static str {
        "head-loss"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let h = elements(storage, layout)?;
        if layout.dims() != [self.targets.len(), self.head.dim(1)?] {
            candle_core::bail!("head loss: {:?} for {} targets", layout.dims(), self.targets.len());
        }
        Ok((CpuStorage::F32(self.forward(h)?), self.targets.len().into()))
    }

    fn bwd(&self, h: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let mut dh = self.dh.lock().expect("no panic while held").clone();
        with_elements(dloss, |dloss| {
            for (row, factor) in dh.chunks_mut(self.head.dim(1)?).zip(dloss) {
                row.iter_mut().for_each(|x| *x *= factor);
            }
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(dh, h.shape(), &Device::Cpu)?))
    }
}
