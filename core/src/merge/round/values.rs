//! Quantising `W + μ·Δ` afresh, with new steps: promotion, float types and naive rounding.

use super::{Arrived, Row, dot};
use crate::quant::{BlockType, dequantize, quantize};

/// Room for one row, reused.
pub(super) struct Scratch {
    base: Vec<f32>,
    delta: Vec<f32>,
    merged: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(cols: usize) -> Self {
        let zeros = || vec![0.0; cols];
        Self { base: zeros(), delta: zeros(), merged: zeros() }
    }
}

/// Re-quantises one row with `μ = mu`: a fine grid keeps about what it is given.
#[inline(always)]
pub(super) fn round(
    row: Row<'_>,
    sums: &[i32],
    from: BlockType,
    to: BlockType,
    mu: f32,
    scratch: &mut Scratch,
) -> Arrived {
    let Scratch { base, delta, merged } = scratch;
    dequantize(from, row.source, base);
    for (((delta, merged), base), sum) in delta.iter_mut().zip(merged.iter_mut()).zip(base.iter()).zip(sums) {
        *delta = *sum as f32 * row.scale.unit;
        *merged = mu.mul_add(*delta, *base);
    }
    quantize(to, merged, row.target);
    dequantize(to, row.target, merged);
    merged.iter_mut().zip(base.iter()).for_each(|(merged, base)| *merged -= base);
    let kept = dot(delta, merged);
    merged.iter_mut().zip(delta.iter()).for_each(|(change, delta)| *change -= delta);
    Arrived { kept, error: dot(merged, merged) }
}
