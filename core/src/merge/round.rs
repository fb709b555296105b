//! Rounding `W + Δ` into blocks, row by row.
//!
//! The base sits exactly on its grid, so nearest rounding of a delta smaller than half a step gives the base back.
//! *Amplified rounding* rounds `μ·Δ` to whole steps instead, with the smallest `μ` per row that keeps the row's gain
//! `<Δ, W'−W> / ‖Δ‖²` at 1. Among all ways to change codes by whole steps `u` it is the one with the least noise for
//! that gain: with `<Δ, u>` held, `‖u − Δ‖²` differs from `‖u‖²` by a constant, and minimising
//! `‖u‖² − 2μ·<Δ, u>` code by code is rounding `μ·Δ` to nearest. Where steps are fine (Q8_0), `μ` is 1; where they
//! are coarse, few codes move, those with the largest delta. Steps and mins stay, so `unmerge` by codes is possible
//! and every reader of the format reads the result.

use super::Rounding;
use crate::quant::{Block, BlockType, GROUPS_MAX, blocks, blocks_mut, dequantize, quantize, with_block};

/// Sums over weights that tell how much of a delta arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// `‖Δ‖²`
    pub(super) delta: f64,
    /// `<Δ, W'−W>`
    pub(super) kept: f64,
    /// `‖W'−W−Δ‖²`
    pub(super) error: f64,
    /// `‖W‖²`
    pub(super) base: f64,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        self.delta += other.delta;
        self.kept += other.kept;
        self.error += other.error;
        self.base += other.base;
    }
}

/// A run of rows of one matrix to re-quantise.
pub(super) struct Rows<'a> {
    pub(super) from: BlockType,
    pub(super) to: BlockType,
    pub(super) cols: usize,
    /// The base's blocks.
    pub(super) source: &'a [u8],
    /// The merged blocks.
    pub(super) target: &'a mut [u8],
    /// `[rank, cols]`
    pub(super) a: &'a [f32],
    /// `[rows, rank]`, without the scale
    pub(super) b: &'a [f32],
    pub(super) scale: f32,
    /// Index of the first row in its matrix.
    pub(super) first: usize,
}

impl Rows<'_> {
    /// Re-quantises the rows; the result depends on nothing but the arguments.
    pub(super) fn round(self, rounding: Rounding) -> Sums {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has AVX2 and FMA.
            return unsafe { round_avx2(self, rounding) };
        }
        round_rows(self, rounding)
    }
}

// The same code for wider registers. Sums of products are `mul_add` everywhere, which rounds once with or without the
// instruction, so that every machine gets the same bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn round_avx2(rows: Rows<'_>, rounding: Rounding) -> Sums {
    round_rows(rows, rounding)
}

#[inline(always)]
fn round_rows(rows: Rows<'_>, rounding: Rounding) -> Sums {
    let Rows { from, to, cols, source, target, a, b, scale, first } = rows;
    let (source_size, target_size) = (from.row_size_bytes(cols).unwrap_or(0), to.row_size_bytes(cols).unwrap_or(0));
    let rank = a.len() / cols;
    let mut deltas = vec![0.0; ROWS_AT_ONCE * cols];
    let mut scratch = Scratch::new(cols);
    let mut amplification = Amplification::default();
    let mut sums = Sums::default();
    let parts = source.chunks(source_size * ROWS_AT_ONCE).zip(target.chunks_mut(target_size * ROWS_AT_ONCE));
    for (part, ((source, target), b)) in parts.zip(b.chunks(rank * ROWS_AT_ONCE)).enumerate() {
        products(b, scale, a, rank, &mut deltas);
        let rows = source.chunks_exact(source_size).zip(target.chunks_exact_mut(target_size));
        for (index, ((source, target), delta)) in rows.zip(deltas.chunks_exact(cols)).enumerate() {
            let norm = dot(delta, delta);
            if norm == 0.0 && from == to {
                target.copy_from_slice(source);
                continue;
            }
            let row = Row { source, target, delta, norm, index: first + part * ROWS_AT_ONCE + index };
            let in_codes = from == to && rounding != Rounding::Nearest;
            let row_sums = match in_codes {
                true => with_block!(from, B => row.round_codes::<B>(rounding, &mut amplification, &mut scratch),
                    row.round_values(from, to, rounding, &mut scratch)),
                false => row.round_values(from, to, rounding, &mut scratch),
            };
            sums.add(&row_sums);
        }
    }
    sums
}

/// Rows whose deltas are computed together, so that `a` is read once for all of them.
const ROWS_AT_ONCE: usize = 4;

/// Room for one row, reused.
struct Scratch {
    codes: Vec<u8>,
    /// `Δ / step`
    steps_wanted: Vec<f32>,
    /// `Δ · step`, what one step adds to the kept sum
    weight: Vec<f32>,
    /// Fewest and most steps that stay within the codes.
    low: Vec<f32>,
    high: Vec<f32>,
    /// Steps taken, or the row that was tried.
    taken: Vec<f32>,
    base: Vec<f32>,
    step: Vec<f32>,
}

impl Scratch {
    fn new(cols: usize) -> Self {
        let zeros = || vec![0.0; cols];
        Self {
            codes: vec![0; cols],
            steps_wanted: zeros(),
            weight: zeros(),
            low: zeros(),
            high: zeros(),
            taken: zeros(),
            base: zeros(),
            step: zeros(),
        }
    }
}

struct Row<'a> {
    source: &'a [u8],
    target: &'a mut [u8],
    delta: &'a [f32],
    norm: f64,
    index: usize,
}

impl Row<'_> {
    /// Moves codes by whole steps.
    #[inline(always)]
    fn round_codes<B: Block>(
        self,
        rounding: Rounding,
        amplification: &mut Amplification,
        scratch: &mut Scratch,
    ) -> Sums {
        let Scratch { codes, steps_wanted, weight, low, high, taken, base, step } = scratch;
        let (mut steps, mut mins) = ([0.0; GROUPS_MAX], [0.0; GROUPS_MAX]);
        for (i, block) in blocks::<B>(self.source).iter().enumerate() {
            block.codes(&mut codes[i * B::LEN..][..B::LEN]);
            block.steps(&mut steps, &mut mins);
            for (g, (&d, &min)) in steps.iter().zip(&mins).take(B::LEN / B::GROUP).enumerate() {
                // A group without a usable step cannot move.
                let usable = d != 0.0 && (d * d).is_normal();
                let (d, inverse) = if usable { (d, 1.0 / d) } else { (0.0, 0.0) };
                let at = i * B::LEN + g * B::GROUP..i * B::LEN + (g + 1) * B::GROUP;
                let (codes, delta) = (&codes[at.clone()], &self.delta[at.clone()]);
                let (wanted, weight) = (&mut steps_wanted[at.clone()], &mut weight[at.clone()]);
                let (low, high) = (&mut low[at.clone()], &mut high[at.clone()]);
                let (base, step) = (&mut base[at.clone()], &mut step[at]);
                for j in 0..B::GROUP {
                    wanted[j] = delta[j] * inverse;
                    weight[j] = delta[j] * d;
                    low[j] = smaller((i32::from(*B::CODES.start()) - i32::from(codes[j])) as f32, 0.0);
                    high[j] = larger((i32::from(*B::CODES.end()) - i32::from(codes[j])) as f32, 0.0);
                    base[j] = d * (i32::from(codes[j]) - i32::from(B::ZERO)) as f32 + if usable { min } else { 0.0 };
                    step[j] = d;
                }
            }
        }
        if rounding == Rounding::Stochastic {
            for (j, taken) in taken.iter_mut().enumerate() {
                let steps = (steps_wanted[j] + dither(self.index, j)).floor();
                *taken = larger(smaller(steps, high[j]), low[j]);
            }
        } else {
            let row = RowSteps { wanted: steps_wanted, weight, low, high };
            let mu = amplification.of_row(self.norm, dot(step, step), step.len(), &row);
            for (j, taken) in taken.iter_mut().enumerate() {
                *taken = whole_steps(mu, steps_wanted[j], low[j], high[j]);
            }
        }
        self.target.copy_from_slice(self.source);
        for (i, block) in blocks_mut::<B>(self.target).iter_mut().enumerate() {
            let at = i * B::LEN..(i + 1) * B::LEN;
            let codes = &mut codes[at.clone()];
            for (code, taken) in codes.iter_mut().zip(&taken[at]) {
                *code = (i32::from(*code) + *taken as i32) as u8;
            }
            block.set_codes(codes);
        }
        // W' − W, exactly, for the sums.
        taken.iter_mut().zip(step.iter()).for_each(|(taken, step)| *taken *= step);
        measure(self.delta, taken, base, self.norm)
    }

    /// Quantises the values of `W + μ·Δ` afresh, with new steps: nearest rounding, promotion and float types.
    #[inline(always)]
    fn round_values(self, from: BlockType, to: BlockType, rounding: Rounding, scratch: &mut Scratch) -> Sums {
        let Scratch { base, taken, step: sum, .. } = scratch;
        dequantize(from, self.source, base);
        let mut mu = 1.0;
        // Nearest rounding onto another grid loses a little; a second and third try make up for it.
        for tries_left in (0..if rounding == Rounding::Amplified { 3 } else { 1 }).rev() {
            for ((sum, base), delta) in sum.iter_mut().zip(base.iter()).zip(self.delta) {
                *sum = base + mu * delta;
            }
            quantize(to, sum, self.target);
            dequantize(to, self.target, taken);
            taken.iter_mut().zip(base.iter()).for_each(|(value, base)| *value -= base);
            let gain = dot(self.delta, taken) / self.norm;
            if tries_left == 0 || !((0.25..0.99).contains(&gain) || (1.01..4.0).contains(&gain)) {
                break;
            }
            mu = (mu / gain as f32).clamp(0.5, 4.0);
        }
        measure(self.delta, taken, base, self.norm)
    }
}

/// What the rows of one job hand on.
#[derive(Default)]
struct Amplification {
    /// `μ·‖Δ‖/‖step‖`, which changes little from row to row.
    relative: Option<f64>,
    /// What the rows so far kept too little of `<Δ, Δ>`, or too much if negative: the next one makes up for it. A row of
    /// coarse steps comes only near its own, and where one step is more than a row's whole delta, some rows take none.
    owed: f64,
}

impl Amplification {
    /// The `μ` of one row; `steps` is the sum of the `count` squared steps.
    #[inline(always)]
    fn of_row(&mut self, norm: f64, steps: f64, count: usize, row: &impl Kept) -> f32 {
        let wanted = norm + self.owed;
        if wanted <= 0.0 {
            self.owed = wanted;
            return 0.0;
        }
        let relative_norm = (norm / steps).sqrt();
        let start = (self.relative.unwrap_or(relative_norm) / relative_norm) as f32;
        let start = if start.is_finite() { start.clamp(1.0, LARGEST) } else { 1.0 };
        // Around `μ`, codes move whose delta is half a step divided by `μ`: each adds `step²/2μ` to the kept sum. Half of
        // that is as near as the row can come.
        let granularity = 0.25 * steps / (count as f64 * wanted);
        let (mu, kept) = amplify(wanted, start, granularity, row);
        if kept > 0.0 {
            self.relative = Some(f64::from(mu) * relative_norm).filter(|relative| relative.is_finite());
        }
        let owed = wanted - kept;
        self.owed = if owed.is_finite() { owed } else { 0.0 };
        mu
    }
}

/// Beyond it the codes' ends, not the step, keep the delta out.
const LARGEST: f32 = 1024.0;

/// The `μ` for which [`Kept::kept`], a rising step function, comes nearest to `wanted`, searched from `start`; and what it
/// keeps. `granularity` divided by `μ` is the share of `wanted` that is near enough.
#[inline(always)]
fn amplify(wanted: f64, start: f32, granularity: f64, row: &impl Kept) -> (f32, f64) {
    /// Evaluations of one row; each is one pass over it.
    const TRIES: usize = 10;
    /// Where a row's gain is good enough, whatever its steps: the next rows make up for it.
    const TOLERANCE: f64 = 0.02;

    let (mut low, mut high) = (0.0_f32, f32::INFINITY);
    let (mut best, mut best_kept, mut best_miss) = (start, 0.0, f64::INFINITY);
    let (mut mu, mut last) = (start, None);
    for _ in 0..TRIES {
        let kept = row.kept(mu);
        let ratio = kept / wanted;
        let miss = (ratio - 1.0).abs();
        if miss < best_miss {
            (best, best_kept, best_miss) = (mu, kept, miss);
        }
        if miss < f64::max(TOLERANCE, granularity / f64::from(mu)) || (ratio < 1.0 && mu >= LARGEST) {
            break;
        }
        if ratio < 1.0 {
            low = mu
        } else {
            high = mu
        }
        // Where the line through the last two points reaches 1. Additions, divisions and roots only, which every machine
        // rounds alike.
        let factor = match last {
            Some((last_mu, last_ratio)) if ratio != last_ratio => {
                1.0 + (1.0 - ratio) * (1.0 - f64::from(last_mu) / f64::from(mu)) / (ratio - last_ratio)
            }
            _ => (1.0 / ratio.max(0.05)).sqrt(),
        };
        last = Some((mu, ratio));
        let factor = if ratio < 1.0 { factor.clamp(1.01, 4.0) } else { factor.clamp(0.25, 0.99) };
        mu = (mu * factor as f32).min(LARGEST);
        if !(low < mu && mu < high) {
            mu = (low * high).sqrt();
        }
    }
    (best, best_kept)
}

/// `<Δ, u>` as a function of `μ`. A trait and not a closure, because a closure is not compiled for the instruction set of
/// the function that calls it.
trait Kept {
    fn kept(&self, mu: f32) -> f64;
}

/// The steps that the codes of one row could take.
struct RowSteps<'a> {
    wanted: &'a [f32],
    weight: &'a [f32],
    low: &'a [f32],
    high: &'a [f32],
}

impl Kept for RowSteps<'_> {
    #[inline(always)]
    fn kept(&self, mu: f32) -> f64 {
        let mut sums = [0.0_f32; 16];
        let (wanted, weight) = (self.wanted.as_chunks::<16>().0, self.weight.as_chunks::<16>().0);
        let (low, high) = (self.low.as_chunks::<16>().0, self.high.as_chunks::<16>().0);
        for (((wanted, weight), low), high) in wanted.iter().zip(weight).zip(low).zip(high) {
            for l in 0..16 {
                sums[l] = whole_steps(mu, wanted[l], low[l], high[l]).mul_add(weight[l], sums[l]);
            }
        }
        sums.iter().map(|&sum| f64::from(sum)).sum()
    }
}

/// `μ · wanted` to the nearest whole number within `[low, high]`.
#[inline(always)]
fn whole_steps(mu: f32, wanted: f32, low: f32, high: f32) -> f32 {
    // 1.5·2^23: adding it leaves no fraction bits, in the default rounding mode; it vectorises everywhere.
    const NO_FRACTION: f32 = 12_582_912.0;
    larger(smaller(mu * wanted, high), low) + NO_FRACTION - NO_FRACTION
}

// One instruction each, unlike `f32::min` and `max`, which treat NaN.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `deltas = scale · b·a`, one row per `rank` values of `b`.
#[inline(always)]
fn products(b: &[f32], scale: f32, a: &[f32], rank: usize, deltas: &mut [f32]) {
    const LANES: usize = 16;
    let cols = a.len() / rank;
    if b.len() < rank * ROWS_AT_ONCE {
        for (b, delta) in b.chunks_exact(rank).zip(deltas.chunks_exact_mut(cols)) {
            for j in 0..cols {
                delta[j] = scale * element(b, a, cols, j);
            }
        }
        return;
    }
    let (b, _) = b.split_at(rank * ROWS_AT_ONCE);
    let whole = cols / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let mut sums = [[0.0_f32; LANES]; ROWS_AT_ONCE];
        for (r, a) in a.chunks_exact(cols).enumerate() {
            let a: &[f32; LANES] = a[start..start + LANES].try_into().expect("LANES values");
            for (row, sums) in sums.iter_mut().enumerate() {
                let b = b[row * rank + r];
                for lane in 0..LANES {
                    sums[lane] = b.mul_add(a[lane], sums[lane]);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let delta = &mut deltas[row * cols + start..][..LANES];
            delta.iter_mut().zip(sums).for_each(|(delta, sum)| *delta = scale * sum);
        }
    }
    for (b, delta) in b.chunks_exact(rank).zip(deltas.chunks_exact_mut(cols)) {
        for j in whole..cols {
            delta[j] = scale * element(b, a, cols, j);
        }
    }
}

#[inline(always)]
fn element(b: &[f32], a: &[f32], cols: usize, col: usize) -> f32 {
    b.iter().zip(a.chunks_exact(cols)).fold(0.0, |sum, (b, a)| b.mul_add(a[col], sum))
}

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

/// `change` is `W' − W`.
#[inline(always)]
fn measure(delta: &[f32], change: &[f32], base: &[f32], norm: f64) -> Sums {
    let kept = dot(delta, change);
    // ‖u − Δ‖² = ‖u‖² − 2<u, Δ> + ‖Δ‖²
    let error = (dot(change, change) - 2.0 * kept + norm).max(0.0);
    Sums { delta: norm, kept, error, base: dot(base, base) }
}

/// A uniform number in `[0, 1)` that depends only on the place.
fn dither(row: usize, col: usize) -> f32 {
    let mut x = ((row as u64) << 32 | col as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ x >> 31) >> 40) as f32 / (1 << 24) as f32
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::gguf::GgufFile;
    use crate::lora::LoraSet;

    /// Layer 0's `up`, merged by the code that every machine can run, in jobs like those of `requantize`.
    pub(in crate::merge) fn portable(file: &GgufFile, lora: &LoraSet) -> Vec<u8> {
        let base = file.matrix("blk.0.ffn_up.weight").unwrap();
        let pair = lora.layers[0].up.as_ref().unwrap();
        let (a, b) = (pair.a.as_slice().unwrap(), pair.b.as_slice().unwrap());
        let (from, cols) = (base.block_type(), base.cols());
        let mut merged = vec![0; base.bytes().len()];
        let step = 64 * base.row_size_bytes();
        for (i, (target, source)) in merged.chunks_mut(step).zip(base.bytes().chunks(step)).enumerate() {
            let b = &b[i * 64 * pair.a.nrows()..][..target.len() / base.row_size_bytes() * pair.a.nrows()];
            let rows = Rows { from, to: from, cols, source, target, a, b, scale: lora.scale, first: i * 64 };
            round_rows(rows, Rounding::Amplified);
        }
        merged
    }

    #[test]
    fn products_agree_with_ndarray_for_odd_widths_and_few_rows() {
        let a = ndarray::Array2::from_shape_fn((3, 37), |(i, j)| (i * 7 + j) as f32 * 0.25 - 3.0);
        for rows in [ROWS_AT_ONCE, 2] {
            let b = ndarray::Array2::from_shape_fn((rows, 3), |(i, j)| (i + j * 5) as f32 * 0.5 - 2.0);
            let mut deltas = vec![0.0; rows * 37];
            products(b.as_slice().unwrap(), 0.5, a.as_slice().unwrap(), 3, &mut deltas);
            assert_eq!(deltas, (b.dot(&a) * 0.5).into_raw_vec_and_offset().0);
        }
    }

    #[test]
    fn amplification_finds_the_jump_of_a_step_function() {
        struct Function(fn(f32) -> f64);
        impl Kept for Function {
            fn kept(&self, mu: f32) -> f64 {
                self.0(mu)
            }
        }
        // Gain jumps from 0.2 to 1.1 at 7.3: the nearer side is above.
        let (mu, kept) = amplify(1.0, 1.0, 0.0, &Function(|mu| if mu < 7.3 { 0.2 } else { 1.1 }));
        assert!(mu >= 7.3 && kept == 1.1, "{mu}");
        let (mu, _) = amplify(4.0, 300.0, 0.0, &Function(|mu| f64::from(mu) * 2.0));
        assert!((mu - 2.0).abs() < 0.02, "{mu}");
        assert!(amplify(1.0, 1.0, 0.0, &Function(|_| 0.0)).0.is_finite());
    }
}
