//! The FFN's gated activation.

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use edgeweld::model::Activation;
use rayon::prelude::*;

use super::exp::exp;
use super::matmul::{elements, with_elements};
use super::primitive;

/// Elements per task of a parallel loop.
const CHUNK: usize = 8192;

/// `activation(gate) ⊙ up`.
pub(super) fn glu(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if !gate.device().is_cpu() {
        return primitive::glu(gate, up, activation);
    }
    gate.apply_op2(up, Glu { activation })
}

struct Glu {
    activation: Activation,
}

/// sqrt(2/π)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

// (activation(x), its derivative)
fn silu(x: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
}

fn gelu_tanh(x: f32) -> (f32, f32) {
    let inner = GELU_SCALE * (x + GELU_CUBIC * x * x * x);
    let tanh = inner.tanh();
    let inner_slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
    (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope)
}

// Both loops are made for each activation, so that it is part of them and not called per element.
fn forward(gate: &[f32], up: &[f32], activation: impl Fn(f32) -> (f32, f32) + Sync) -> Vec<f32> {
    let mut y = vec![0f32; gate.len()];
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    y.par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (gate, up))| {
        y.iter_mut().zip(gate.iter().zip(up)).for_each(|(y, (&gate, up))| *y = activation(gate).0 * up);
    });
    y
}

// The gradients of gate and up.
fn backward(
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    activation: impl Fn(f32) -> (f32, f32) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0f32; gate.len()], vec![0f32; up.len()]);
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
    let outputs = dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK));
    outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), dy))| {
        let inputs = gate.iter().zip(up).zip(dy);
        dgate.iter_mut().zip(dup).zip(inputs).for_each(|((dgate, dup), ((&gate, up), dy))| {
            let (value, slope) = activation(gate);
            *dgate = dy * up * slope;
            *dup = dy * value;
        });
    });
    (dgate, dup)
}

impl CustomOp2 for Glu {
    fn name(&self) -> &'static str {
        "glu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (elements(gate, gl)?, elements(up, ul)?);
        let y = match self.activation {
            Activation::Silu => forward(gate, up, silu),
            Activation::GeluTanh => forward(gate, up, gelu_tanh),
        };
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dgate, dup) = with_elements(gate, |gate| {
            with_elements(up, |up| {
                with_elements(dy, |dy| {
                    Ok(match self.activation {
                        Activation::Silu => backward(gate, up, dy, silu),
                        Activation::GeluTanh => backward(gate, up, dy, gelu_tanh),
                    })
                })
            })
        })?;
        let tensor = |data: Vec<f32>| Tensor::from_vec(data, gate.shape(), &Device::Cpu).map(Some);
        Ok((tensor(dgate)?, tensor(dup)?))
    }
}
