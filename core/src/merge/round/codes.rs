//! Rows of codes: moving them by whole steps, while the base's steps and mins stay, and promoting them.

use super::factors::SHIFTED_BITS;
use super::lanes::{CHUNK, Factor, Lanes, Moved, Moves, Promotion};
use super::{Arrived, Rounding, Row, dot, gain};
use crate::quant::{Block, GROUPS_MAX, blocks, blocks_mut};

/// Room for one row, reused.
pub(super) struct Scratch {
    codes: Vec<u8>,
    /// One per group, and room for one block more than there is.
    steps: Vec<f32>,
    mins: Vec<f32>,
    factors: Vec<Factor>,
}

impl Scratch {
    pub(super) fn new(cols: usize) -> Self {
        let factors = vec![Factor::new(0.0); cols];
        let groups = || vec![0.0; cols + GROUPS_MAX];
        Self { codes: vec![0; cols], steps: groups(), mins: groups(), factors }
    }

    /// Reads a row's codes, steps and mins.
    #[inline(always)]
    fn unpack<B: Block>(&mut self, row: &[u8]) {
        let groups = B::LEN / B::GROUP;
        for (i, block) in blocks::<B>(row).iter().enumerate() {
            block.codes(&mut self.codes[i * B::LEN..][..B::LEN]);
            block.steps(&mut self.steps[i * groups..], &mut self.mins[i * groups..]);
        }
    }
}

impl Factor {
    /// The factor nearest to `steps_per_unit`; zero where that is too small to move anything.
    #[inline(always)]
    fn new(steps_per_unit: f32) -> Self {
        // 1.m · 2^e as a number of 15 bits over 2^16, and a shift.
        let bits = steps_per_unit.to_bits();
        let multiplier = (bits >> 9 & 0x3fff | 0x4000) as i16;
        let shift = 125 - (bits >> 23 & 0xff) as i32;
        let multiplier = if shift > 15 { 0 } else { multiplier };
        let multiplier = if shift < 1 { i16::MAX } else { multiplier };
        let multiplier = if steps_per_unit < 0.0 { -multiplier } else { multiplier };
        let shift = shift.clamp(1, 15) as i16;
        Self { multiplier: [multiplier; 2], shift: [shift; 2], half: [1 << (shift - 1); 2] }
    }
}

/// Moves the codes of one row by the steps nearest to `μ·Δ`, for a gain of `asked` by the formula, or by dithered ones.
#[inline(always)]
pub(super) fn round<B: Block, L: Lanes>(
    row: Row<'_>,
    deltas: &[i16],
    rounding: Rounding,
    asked: f64,
    scratch: &mut Scratch,
) -> Arrived {
    scratch.unpack::<B>(row.source);
    let Scratch { codes, steps, factors, .. } = scratch;
    let steps = &mut steps[..codes.len() / B::GROUP];
    // A group without a usable step cannot move.
    steps.iter_mut().for_each(|step| *step = if (*step * *step).is_normal() { *step } else { 0.0 });
    let unit = row.scale.shifted_unit();
    let (low, high) = (i16::from(*B::CODES.start()), i16::from(*B::CODES.end()));
    let moves = Moves { deltas, factors: &[], steps, low, high };
    let moved = if rounding == Rounding::Stochastic {
        dithered::<B>(codes, &moves, unit, row.index)
    } else {
        let deviation = (row.scale.norm / codes.len() as f32).sqrt();
        let step = (dot(steps, steps) as f32 / steps.len() as f32).sqrt();
        let steps_per_unit = unit * gain::factor(asked as f32, deviation, step);
        for (factor, step) in factors.iter_mut().zip(steps.iter()) {
            *factor = Factor::new(if *step == 0.0 { 0.0 } else { steps_per_unit / step });
        }
        let moves = Moves { factors, ..moves };
        match B::GROUP {
            16 => L::move_codes::<16>(codes, &moves),
            CHUNK => L::move_codes::<CHUNK>(codes, &moves),
            _ => L::move_codes::<256>(codes, &moves),
        }
    };
    let parts = blocks::<B>(row.source).iter().zip(blocks_mut::<B>(row.target)).zip(codes.chunks_exact(B::LEN));
    for ((source, target), codes) in parts {
        let mut block = *source;
        block.set_codes(codes);
        *target = block;
    }
    let kept = f64::from(moved.kept) * f64::from(unit);
    // ‖u − Δ‖² = ‖u‖² − 2<u, Δ> + ‖Δ‖²
    let error = (f64::from(moved.square) - 2.0 * kept + f64::from(row.scale.norm)).max(0.0);
    Arrived { kept, error }
}

/// Quantises one row afresh, to Q8_0: what nearly every promotion is. A fine grid keeps about what it is given.
#[inline(always)]
pub(super) fn promote<B: Block, L: Lanes>(row: Row<'_>, sums: &[i32], mu: f32, scratch: &mut Scratch) -> Arrived {
    scratch.unpack::<B>(row.source);
    let Scratch { codes, steps, mins, .. } = scratch;
    let promotion = Promotion { codes, steps, mins, zero: B::ZERO, sums, unit: row.scale.unit, mu };
    let out = blocks_mut(row.target);
    let moved = match B::GROUP {
        16 => L::promote::<16>(&promotion, out),
        CHUNK => L::promote::<CHUNK>(&promotion, out),
        _ => L::promote::<256>(&promotion, out),
    };
    Arrived { kept: f64::from(moved.kept), error: f64::from(moved.square) }
}

/// Moves codes by the steps of `Δ`, or one more by chance: unbiased. Only for comparison, so in plain code.
fn dithered<B: Block>(codes: &mut [u8], moves: &Moves<'_>, unit: f32, row: usize) -> Moved {
    let (mut kept, mut square) = (0.0, 0.0);
    for (col, (code, delta)) in codes.iter_mut().zip(moves.deltas).enumerate() {
        let (step, delta) = (moves.steps[col / B::GROUP], f32::from(*delta));
        let steps = if step == 0.0 { 0.0 } else { (delta * unit / step + dither(row, col)).floor() };
        let old = i16::from(*code);
        let new = (old + steps.clamp(-512.0, 512.0) as i16).min(moves.high.max(old)).max(moves.low);
        *code = new as u8;
        let change = f32::from(new - old) * step;
        kept += delta * change;
        square += change * change;
    }
    Moved { kept, square }
}

/// A uniform number in `[0, 1)` that depends only on the place.
fn dither(row: usize, col: usize) -> f32 {
    let mut x = ((row as u64) << 32 | col as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ x >> 31) >> 40) as f32 / (1 << 24) as f32
}

const _: () =
    assert!(SHIFTED_BITS == 14, "a multiplier of 15 bits, 16 bits shifted out and half a step fit into 16 bits");
