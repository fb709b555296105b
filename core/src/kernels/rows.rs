//! Row operators, written once and compiled once per instruction set.
//!
//! The loops keep 16 independent lanes, so that the compiler vectorises sums without reordering what is written.
//! `FMA` says whether a fused multiply-add is one instruction; the scalar twin rounds twice instead.

use half::slice::HalfFloatSliceExt;

use super::activations::TILE;
use super::side_path::{RUN, SideTiles};
use crate::model::Activation;

/// Row operators of one instruction set. Safety contract of all: the CPU has it. Lengths must be equal where two
/// slices are walked together; the shorter ends the walk.
#[derive(Clone, Copy)]
pub(super) struct RowOps {
    /// `out = x / sqrt(mean(x²) + epsilon) · weight`
    pub(super) rms_norm: unsafe fn(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]),
    /// `gate = silu(gate) · up`
    pub(super) silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    /// `gate = gelu_tanh(gate) · up`
    pub(super) gelu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    /// `x = cap · tanh(x / cap)`
    pub(super) softcap: unsafe fn(x: &mut [f32], cap: f32),
    /// `out = scale · b` of a tile, `[rank, 16]`
    pub(super) side_panel: unsafe fn(tile: SideTiles, out: &mut [f32]),
}

impl RowOps {
    pub(super) fn gate(&self, activation: Activation) -> unsafe fn(gate: &mut [f32], up: &[f32]) {
        match activation {
            Activation::Silu => self.silu_mul,
            Activation::GeluTanh => self.gelu_mul,
        }
    }
}

/// Defines `ROW_OPS` of an instruction set: every operator, compiled with these target features.
macro_rules! row_ops {
    ($fma:literal $(, $features:literal)?) => {
        pub(in crate::kernels) static ROW_OPS: $crate::kernels::rows::RowOps = {
            use $crate::kernels::rows as source;
            $(#[target_feature(enable = $features)])?
            fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                source::rms_norm::<$fma>(x, weight, epsilon, out);
            }
            $(#[target_feature(enable = $features)])?
            fn silu_mul(gate: &mut [f32], up: &[f32]) {
                source::silu_mul::<$fma>(gate, up);
            }
            $(#[target_feature(enable = $features)])?
            fn gelu_mul(gate: &mut [f32], up: &[f32]) {
                source::gelu_mul::<$fma>(gate, up);
            }
            $(#[target_feature(enable = $features)])?
            fn softcap(x: &mut [f32], cap: f32) {
                source::softcap::<$fma>(x, cap);
            }
            $(#[target_feature(enable = $features)])?
            fn side_panel(tile: $crate::kernels::side_path::SideTiles, out: &mut [f32]) {
                source::side_panel(tile, out);
            }
            source::RowOps { rms_norm, silu_mul, gelu_mul, softcap, side_panel }
        };
    };
}
pub(super) use row_ops;

const LANES: usize = 16;

#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES * 2];
    let (a_chunks, a_rest) = a.as_chunks::<{ LANES * 2 }>();
    let (b_chunks, b_rest) = b.as_chunks::<{ LANES * 2 }>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES * 2 {
            sums[lane] = mul_add::<FMA>(a[lane], b[lane], sums[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    rest + halve_sum(sums)
}

#[inline(always)]
fn halve_sum(mut sums: [f32; LANES * 2]) -> f32 {
    let mut width = LANES;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
pub(super) fn rms_norm<const FMA: bool>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let factor = 1.0 / (dot::<FMA>(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

#[inline(always)]
pub(super) fn silu_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
    }
}

#[inline(always)]
pub(super) fn gelu_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let inner = SQRT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x);
        // 0.5 · (1 + tanh(z)) = 1 / (1 + exp(-2z))
        *gate = x / (1.0 + exp::<FMA>(-2.0 * inner)) * up;
    }
}

#[inline(always)]
pub(super) fn softcap<const FMA: bool>(x: &mut [f32], cap: f32) {
    let inverse = 2.0 / cap;
    for x in x {
        // tanh(z) = 1 - 2 / (1 + exp(2z))
        *x = cap * (1.0 - 2.0 / (1.0 + exp::<FMA>(*x * inverse)));
    }
}

/// `e^x` to within 2 units in the last place; 0 below -87, at most `e^88`.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that n · ln 2 is exact to more digits than an f32 has.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2²³ rounds to the nearest integer, which is then in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x < 88.0 { x } else { 88.0 };
    let clamped = if clamped > -87.0 { clamped } else { -87.0 };
    let shifted = mul_add::<FMA>(clamped, LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = mul_add::<FMA>(n, -LN2_LOW, mul_add::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4;
    p = mul_add::<FMA>(p, r, 1.398_2e-3);
    p = mul_add::<FMA>(p, r, 8.333_452e-3);
    p = mul_add::<FMA>(p, r, 4.166_579_6e-2);
    p = mul_add::<FMA>(p, r, 1.666_666_6e-1);
    p = mul_add::<FMA>(p, r, 0.5);
    let p = mul_add::<FMA>(p, r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let value = p * power;
    if x < -87.0 { 0.0 } else { value }
}

/// A tile of `scale · b` as `[rank, 16]`, for rows that are multiplied together.
#[inline(always)]
pub(super) fn side_panel(tile: SideTiles, out: &mut [f32]) {
    let mut steps = [0.0; TILE];
    tile.steps[0].convert_to_f32_slice(&mut steps);
    steps.iter_mut().for_each(|step| *step *= tile.step);
    for (codes, out) in tile.codes.iter().zip(out.chunks_mut(TILE * RUN)) {
        // The last run may be a part.
        for (index, out) in out.chunks_exact_mut(TILE).enumerate() {
            for lane in 0..TILE {
                out[lane] = steps[lane] * f32::from(codes[lane * RUN + index]);
            }
        }
    }
}
