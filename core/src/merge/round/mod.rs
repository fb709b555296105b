//! Rounding `W + Δ` into blocks, row by row.
//!
//! The base sits exactly on its grid, so nearest rounding of a delta smaller than half a step gives the base back.
//! *Amplified rounding* rounds `μ·Δ` to whole steps instead, with the `μ` per row that keeps the row's gain
//! `<Δ, W'−W> / ‖Δ‖²` at 1. Among all ways to change codes by whole steps `u` it is the one with the least noise for
//! that gain: with `<Δ, u>` held, `‖u − Δ‖²` differs from `‖u‖²` by a constant, and minimising
//! `‖u‖² − 2μ·<Δ, u>` code by code is rounding `μ·Δ` to nearest. Where steps are fine (Q8_0), `μ` is 1; where they
//! are coarse, few codes move, those with the largest delta. Steps and mins stay, so `unmerge` by codes is possible
//! and every reader of the format reads the result.
//!
//! A merge shall cost little more than copying the weights. So the product is one of integers, `μ` comes from a formula
//! that the rows before correct (`gain`), and each row is read, rounded and written once while it is in the nearest cache.

mod codes;
mod factors;
mod gain;
mod lanes;
mod values;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::Rounding;
use crate::quant::{BlockType, dequantize, with_block};
pub(super) use factors::Factors;
use factors::RowScale;
use gain::Amplification;
use lanes::Lanes;

/// Totals over weights that tell how much of a delta arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// `‖Δ‖²`
    pub(super) delta: f64,
    /// `<Δ, W'−W>`
    pub(super) kept: f64,
    /// `‖W'−W−Δ‖²`
    pub(super) error: f64,
    /// `‖Δ‖²` and `‖W‖²` of the rows that were measured for it.
    pub(super) sampled: (f64, f64),
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        self.delta += other.delta;
        self.kept += other.kept;
        self.error += other.error;
        self.sampled.0 += other.sampled.0;
        self.sampled.1 += other.sampled.1;
    }
}

/// Rows whose sums are computed together, so that `a` is read once for all of them.
const ROWS_AT_ONCE: usize = 4;
/// One in so many rows tells how large the base's weights are.
const SAMPLED_ROWS: usize = 32;

/// A run of rows of one matrix to re-quantise.
pub(super) struct Rows<'a> {
    pub(super) from: BlockType,
    pub(super) to: BlockType,
    pub(super) cols: usize,
    /// The base's blocks.
    pub(super) source: &'a [u8],
    /// The merged blocks.
    pub(super) target: &'a mut [u8],
    /// The whole matrix's.
    pub(super) factors: &'a Factors,
    /// Index of the first row in its matrix.
    pub(super) first: usize,
}

impl Rows<'_> {
    /// Re-quantises the rows; the result depends on nothing but the arguments.
    pub(super) fn round(self, rounding: Rounding) -> Totals {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                // SAFETY: the CPU has what the function needs.
                return unsafe { round_avx512(self, rounding) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                // SAFETY: the CPU has what the function needs.
                return unsafe { round_avx2(self, rounding) };
            }
        }
        round_rows::<lanes::Portable>(self, rounding)
    }
}

#[cfg(test)]
type Round = fn(Rows<'_>, Rounding) -> Totals;

#[cfg(test)]
impl Rows<'_> {
    /// The code of every instruction set that this machine has.
    pub(super) fn every_way() -> Vec<(&'static str, Round)> {
        let mut ways: Vec<(&'static str, Round)> =
            vec![("any machine", |rows, how| round_rows::<lanes::Portable>(rows, how))];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            // SAFETY: the CPU has what the function needs.
            ways.push(("AVX2", |rows, how| unsafe { round_avx2(rows, how) }));
        }
        // `Rows::round` itself takes AVX-512 where it is.
        ways
    }
}

// The same code for wider registers. Products of factors are integers and other sums `mul_add`, which rounds once with or
// without the instruction, so that every machine gets the same bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn round_avx512(rows: Rows<'_>, rounding: Rounding) -> Totals {
    round_rows::<x86::Avx512Vnni>(rows, rounding)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_avx2(rows: Rows<'_>, rounding: Rounding) -> Totals {
    round_rows::<x86::Avx2>(rows, rounding)
}

/// One row to round.
struct Row<'a> {
    source: &'a [u8],
    target: &'a mut [u8],
    scale: RowScale,
    /// Index in its matrix.
    index: usize,
}

/// What became of one row.
struct Arrived {
    /// `<Δ, W'−W>`
    kept: f64,
    /// `‖W'−W−Δ‖²`
    error: f64,
}

#[inline(always)]
fn round_rows<L: Lanes>(rows: Rows<'_>, rounding: Rounding) -> Totals {
    let Rows { from, to, cols, source, target, factors, first } = rows;
    let (source_size, target_size) = (from.row_size_bytes(cols).unwrap_or(0), to.row_size_bytes(cols).unwrap_or(0));
    let way = match to {
        _ if from == to && rounding != Rounding::Nearest && from.block_len() > 1 => Way::Codes,
        BlockType::Q8_0 if from.block_len() > 1 => Way::Promote,
        _ => Way::Values,
    };
    let mut code_scratch = codes::Scratch::new(if way == Way::Values { 0 } else { cols });
    let mut value_scratch = values::Scratch::new(if way == Way::Values { cols } else { 0 });
    let mut base = vec![0.0; cols];
    let mut sums = vec![0; if way == Way::Codes { 0 } else { ROWS_AT_ONCE * factors.padded_cols }];
    let mut shifted = vec![0; if way == Way::Codes { ROWS_AT_ONCE * factors.padded_cols } else { 0 }];
    let mut amplification = Amplification::default();
    let mut totals = Totals::default();

    let parts = source.chunks(source_size * ROWS_AT_ONCE).zip(target.chunks_mut(target_size * ROWS_AT_ONCE));
    for (part, (source, target)) in parts.enumerate() {
        let first = first + part * ROWS_AT_ONCE;
        let count = source.len() / source_size;
        let scales = &factors.rows[first..first + count];
        let b = &factors.b[first * factors.pairs..][..count * factors.pairs];
        match (way, count) {
            (Way::Codes, ROWS_AT_ONCE) => {
                let shifts = std::array::from_fn(|i| scales[i].shift);
                L::shifted_sums::<ROWS_AT_ONCE>(&factors.a, b, shifts, &mut shifted);
            }
            (Way::Codes, _) => {
                let rows = shifted.chunks_exact_mut(factors.padded_cols).zip(b.chunks_exact(factors.pairs)).zip(scales);
                rows.for_each(|((out, b), scale)| L::shifted_sums::<1>(&factors.a, b, [scale.shift], out));
            }
            (_, ROWS_AT_ONCE) => L::sums::<ROWS_AT_ONCE>(&factors.a, b, &mut sums),
            _ => {
                let rows = sums.chunks_exact_mut(factors.padded_cols).zip(b.chunks_exact(factors.pairs));
                rows.for_each(|(sums, b)| L::sums::<1>(&factors.a, b, sums));
            }
        }
        // The rows of one part are asked for the same, so that none waits for the one before.
        let norm = scales.iter().map(|scale| f64::from(scale.norm)).sum();
        let asked = if rounding == Rounding::Amplified { amplification.asked(norm) } else { 1.0 };
        let mut kept = 0.0;
        let rows = source.chunks_exact(source_size).zip(target.chunks_exact_mut(target_size)).zip(scales).enumerate();
        for (i, ((source, target), scale)) in rows {
            if scale.norm == 0.0 && from == to {
                target.copy_from_slice(source);
                continue;
            }
            let place = i * factors.padded_cols..i * factors.padded_cols + cols;
            if (first + i).is_multiple_of(SAMPLED_ROWS) {
                dequantize(from, source, &mut base);
                totals.sampled.0 += f64::from(scale.norm);
                totals.sampled.1 += dot(&base, &base);
            }
            let row = Row { source, target, scale: *scale, index: first + i };
            let mu = asked.min(VALUE_AMPLIFICATION_MAX) as f32;
            let arrived = match way {
                Way::Codes => {
                    let deltas = &shifted[place];
                    with_block!(from, B => codes::round::<B, L>(row, deltas, rounding, asked, &mut code_scratch),
                        unreachable!("float types have no codes"))
                }
                Way::Promote => {
                    let sums = &sums[place];
                    with_block!(from, B => codes::promote::<B, L>(row, sums, mu, &mut code_scratch),
                        unreachable!("float types have no codes"))
                }
                Way::Values => values::round(row, &sums[place], from, to, mu, &mut value_scratch),
            };
            kept += arrived.kept;
            totals.error += arrived.error;
        }
        amplification.note(norm, asked, kept);
        totals.delta += norm;
        totals.kept += kept;
    }
    totals
}

/// How the rows get their new blocks.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Codes,
    Promote,
    Values,
}

/// `μ` stays within this where values are quantised afresh: a grid that needs more has no place for the delta.
const VALUE_AMPLIFICATION_MAX: f64 = 4.0;

#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f64 {
    let mut sums = [0.0_f32; 16];
    let (x_chunks, y_chunks) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    for (x, y) in x_chunks.0.iter().zip(y_chunks.0) {
        for l in 0..16 {
            sums[l] = x[l].mul_add(y[l], sums[l]);
        }
    }
    let rest: f32 = x_chunks.1.iter().zip(y_chunks.1).map(|(x, y)| x * y).sum();
    sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() + f64::from(rest)
}

/// The sum of all lanes.
#[inline(always)]
fn total(mut lanes: [f32; 16]) -> f32 {
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
