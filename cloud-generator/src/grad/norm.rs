//! RMS norm with a frozen weight.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::matmul::{elements, with_elements};
use super::primitive;

/// `x / sqrt(mean(x²) + epsilon) · weight`, row by row of `weight.len()` elements.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return primitive::rms_norm(x, weight, epsilon);
    }
    x.apply_op1(RmsNorm { weight: weight.clone(), epsilon })
}

/// One row in place.
pub(super) fn normalise(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let r = inverse_rms(x, epsilon);
    x.iter_mut().zip(weight).for_each(|(x, w)| *x *= r * w);
}

/// Turns the gradient of a normed row into that of the row `x`, in place.
// y = r·w·x with r = (mean(x²)+ε)^-½:  dx = r·(w·dy) − x · r³/n · Σ(w·dy·x)
pub(super) fn normalise_back(x: &[f32], weight: &[f32], epsilon: f32, dy: &mut [f32]) {
    let r = inverse_rms(x, epsilon);
    dy.iter_mut().zip(weight).for_each(|(d, w)| *d *= w);
    let dot: f32 = dy.iter().zip(x).map(|(d, x)| d * x).sum();
    let factor = r * r * r * dot / x.len() as f32;
    dy.iter_mut().zip(x).for_each(|(d, x)| *d = r * *d - factor * x);
}

fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32 + epsilon).sqrt()
}

struct RmsNorm {
    weight: Tensor,
    epsilon: f32,
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = elements(storage, layout)?.to_vec();
        with_elements(&self.weight, |weight| {
            y.par_chunks_mut(weight.len()).for_each(|row| normalise(row, weight, self.epsilon));
            Ok(())
        })?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = with_elements(dy, |dy| Ok(dy.to_vec()))?;
        with_elements(x, |x| {
            with_elements(&self.weight, |weight| {
                let rows = dx.par_chunks_mut(weight.len()).zip(x.par_chunks(weight.len()));
                rows.for_each(|(dy, x)| normalise_back(x, weight, self.epsilon, dy));
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}
