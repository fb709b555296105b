use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Kernels;
use super::activations::{self, TILE};
use super::panels::Panels;
use super::side_memory::{Kept, SideMemory};
use crate::lora::LoraPair;
use crate::quant::{BlockType, QMatrix, WeightBytes, quantize};

/// LoRA pairs whose targets share one input, ready to run beside the matrix product: `y += scale · b·(a·x)`.
///
/// The `a` of all pairs are one matrix, so that `a·x` is computed once; `b` lies in the order in which products write
/// their outputs, four ranks at a time, as the instructions for products of bytes add them up. Both have 8 bits per
/// value and one step per row, which keeps the delta to within 1% of its size.
pub struct SidePath {
    /// `[Σ rank, in]`
    pub(super) a: Panels,
    /// One per product, in its order.
    pub(super) targets: Vec<Option<SideTarget>>,
}

/// One target's part of a [`SidePath`].
pub(super) struct SideTarget {
    /// Among the targets that share the input.
    pub(super) index: usize,
    /// Where this target's part of `a·x` starts.
    pub(super) start: usize,
    /// Where its runs start, if every target's part is rounded up to whole runs.
    pub(super) first_run: usize,
    pub(super) rank: usize,
    pub(super) out: usize,
    /// `[out / 16, rank / 4, 16, 4]`; what the last tile or the last run lacks is zero.
    codes: Kept<i8>,
    /// `[out / 16, 16]`
    steps: Kept<f16>,
    /// Factor of all `steps`.
    step: f32,
}

/// Ranks of `b` that lie together.
pub(super) const RUN: usize = 4;

/// Some tiles of 16 outputs of a target. Of output `o` of a tile and rank `r`, `scale · b[o, r]` is
/// `step · steps[o] · codes[r / 4][4 · o + r % 4]`.
#[derive(Clone, Copy)]
pub(super) struct SideTiles<'a> {
    /// `[tiles, rank / 4, 16, 4]`
    pub(super) codes: &'a [[i8; RUN * TILE]],
    /// `[tiles, 16]`
    pub(super) steps: &'a [[f16; TILE]],
    pub(super) step: f32,
}

/// One row's `a·x` of one target, in 16 bits: `step · codes`.
#[derive(Clone, Copy)]
pub(super) struct SideInput<'a> {
    /// As many as those of a tile.
    pub(super) runs: &'a [RankRun],
    pub(super) step: f32,
}

/// Codes of `a·x` whole, and as the two bytes of `256 · high + low`.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub(super) struct RankRun {
    pub(super) codes: [i16; RUN],
    pub(super) high: [i8; RUN],
    pub(super) low: [i8; RUN],
}

impl SidePath {
    /// One entry per product, in the order of the products' call; `None` if no product has a pair.
    ///
    /// # Panics
    /// If the pairs do not have the same input width.
    pub fn new(kernels: &Kernels, memory: &SideMemory, pairs: &[Option<&LoraPair>], scale: f32) -> Option<Self> {
        let cols = pairs.iter().flatten().next()?.a.ncols();
        // No model that takes packs has rows that are not whole blocks; f32 keeps the rest right.
        let block_type = if cols.is_multiple_of(32) { BlockType::Q8_0 } else { BlockType::F32 };
        let (mut rows, mut run_count) = (0, 0);
        let mut a = Vec::new();
        let mut targets = Vec::with_capacity(pairs.len());
        for (index, pair) in pairs.iter().enumerate() {
            targets.push(pair.map(|pair| {
                assert_eq!(pair.a.ncols(), cols, "pairs of one side path share their input");
                let mut target = SideTarget::new(memory, pair, scale);
                (target.index, target.start, target.first_run) = (index, rows, run_count);
                rows += target.rank;
                run_count += target.run_count();
                let values = pair.a.as_standard_layout();
                let values = values.as_slice().expect("standard layout");
                let start = a.len();
                a.resize(start + values.len() / block_type.block_len() * block_type.block_size_bytes(), 0);
                match block_type {
                    BlockType::Q8_0 => quantize_rows(values, cols, &mut a[start..]),
                    _ => quantize(block_type, values, &mut a[start..]),
                }
                target
            }));
        }
        let a = QMatrix::new(WeightBytes::Owned(a.into()), block_type, rows, cols).expect("sized by construction");
        Some(Self { a: Panels::new(kernels.ops, memory, &a), targets })
    }

    /// Of all targets.
    pub(super) fn run_count(&self) -> usize {
        self.targets.iter().flatten().map(SideTarget::run_count).sum()
    }
}

impl SideTarget {
    fn new(memory: &SideMemory, pair: &LoraPair, scale: f32) -> Self {
        let (out, rank) = pair.b.dim();
        let (tiles, runs) = (out.div_ceil(TILE), rank.div_ceil(RUN));
        let values = pair.b.as_standard_layout();
        let values = values.as_slice().expect("standard layout");
        let rows = || values.chunks_exact(rank.max(1));
        // Relative to the largest one, no step that matters is too small for 16 bits.
        let unit = largest(values) / CODE_MAX;
        let exact: Vec<f32> = rows().map(|row| largest(row) / CODE_MAX * inverse(unit)).collect();
        let (mut steps, rounded) = steps_at_least(&exact);
        steps.resize(tiles * TILE, f16::ZERO);
        let mut codes = vec![[0; RUN]; tiles * runs * TILE];
        let mut row_codes = vec![0; rank];
        for (output, (row, step)) in rows().zip(rounded).enumerate() {
            let inverse = inverse(step * unit);
            // Row by row and only then to their places: as many instructions for sixteen as for one.
            row_codes.iter_mut().zip(row).for_each(|(code, value)| *code = round(value * inverse) as i8);
            let places = codes[output / TILE * runs * TILE + output % TILE..].iter_mut().step_by(TILE);
            for (place, run) in places.zip(row_codes.chunks(RUN)) {
                match run.first_chunk() {
                    Some(run) => *place = *run,
                    None => place[..run.len()].copy_from_slice(run),
                }
            }
        }
        let codes = codes.as_flattened();
        let (codes, steps) = (memory.keep(codes), memory.keep(&steps));
        Self { index: 0, start: 0, first_run: 0, rank, out, codes, steps, step: scale * unit }
    }

    /// `rank / 4`, rounded up.
    pub(super) fn run_count(&self) -> usize {
        self.rank.div_ceil(RUN)
    }

    /// Fetches what [`tiles`](Self::tiles) gives: too short a stretch for the CPU to foresee.
    pub(super) fn prefetch(&self, tiles: Range<usize>) {
        let SideTiles { codes, steps, .. } = self.tiles(tiles);
        prefetch(codes);
        prefetch(steps);
    }

    /// The outputs from `16 · tiles.start` on.
    pub(super) fn tiles(&self, tiles: Range<usize>) -> SideTiles<'_> {
        let runs = tiles.start * self.run_count()..tiles.end * self.run_count();
        SideTiles { codes: &self.codes.as_chunks().0[runs], steps: &self.steps.as_chunks().0[tiles], step: self.step }
    }
}

/// Asks the CPU to have `values` in its second-level cache soon.
pub(super) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of_val(values)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, without effect on what the program computes; every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().cast::<i8>().wrapping_add(at)) };
    }
    // Stable Rust has no such hint for 64-bit ARM.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Rows of `a` in Q8_0 whose blocks have one step per row.
fn quantize_rows(values: &[f32], cols: usize, out: &mut [u8]) {
    let blocks = out.as_chunks_mut::<{ size_of::<u16>() + 32 }>().0;
    let exact: Vec<f32> = values.chunks_exact(cols).map(|row| largest(row) / CODE_MAX).collect();
    let (steps, rounded) = steps_at_least(&exact);
    let rows = values.chunks_exact(cols).zip(blocks.chunks_exact_mut(cols / 32));
    for ((row, blocks), (step, rounded)) in rows.zip(steps.iter().zip(rounded)) {
        let inverse = inverse(rounded);
        for (values, block) in row.as_chunks::<32>().0.iter().zip(blocks) {
            let codes = values.map(|value| round(value * inverse) as i8 as u8);
            block[..2].copy_from_slice(&step.to_le_bytes());
            block[2..].copy_from_slice(&codes);
        }
    }
}

/// Largest code of `a` and `b`.
const CODE_MAX: f32 = 127.0;

/// Largest magnitude.
fn largest(values: &[f32]) -> f32 {
    // Bits of magnitudes are in order, and unlike `f32::max` their maxima are found four or more at a time.
    let magnitudes = values.iter().map(|value| value.abs().to_bits() as i32);
    f32::from_bits(magnitudes.fold(0, i32::max) as u32)
}

/// Rounded up, so that no code is beyond [`CODE_MAX`]; and what they are.
fn steps_at_least(exact: &[f32]) -> (Vec<f16>, Vec<f32>) {
    let (mut steps, mut rounded) = (vec![f16::ZERO; exact.len()], vec![0.0; exact.len()]);
    steps.convert_from_f32_slice(exact);
    steps.convert_to_f32_slice(&mut rounded);
    for (step, (rounded, exact)) in steps.iter_mut().zip(rounded.iter().zip(exact)) {
        *step = f16::from_bits(step.to_bits() + u16::from(rounded < exact));
    }
    steps.convert_to_f32_slice(&mut rounded);
    (steps, rounded)
}

/// `1 / step`; 0 of a denormal, whose inverse would be infinite.
fn inverse(step: f32) -> f32 {
    if step >= f32::MIN_POSITIVE { 1.0 / step } else { 0.0 }
}

/// The nearest whole number, of those that fit.
fn round(value: f32) -> i16 {
    // Adding 1.5 · 2²³ rounds to the nearest whole number, which is then in the low bits; `f32::round` is a call.
    (value + 12_582_912.0).to_bits() as i16
}

/// Rounds one target's `a·x` to 16-bit codes; the step.
pub(super) fn round_input(ax: &[f32], runs: &mut [RankRun]) -> f32 {
    debug_assert_eq!(runs.len(), ax.len().div_ceil(RUN));
    // No sum of products with codes of `b` leaves 32 bits.
    let code_max = (i32::MAX as f32 / (CODE_MAX * (RUN * runs.len()) as f32)).min(activations::CODE_MAX);
    let step = largest(ax) / code_max;
    let inverse = inverse(step);
    for (ax, run) in ax.chunks(RUN).zip(runs) {
        *run = RankRun::default();
        for (index, value) in ax.iter().enumerate() {
            let code = round(value * inverse);
            // The low byte, as a signed number, leaves a multiple of 256.
            (run.codes[index], run.high[index], run.low[index]) = (code, ((code + 128) >> 8) as i8, code as i8);
        }
    }
    step
}

/// The scalar twin of `side_rows`: `out += b·ax`.
pub(super) fn side_rows_scalar(b: SideTiles, ax: SideInput, out: &mut [[f32; TILE]]) {
    for (tile, out) in out.iter_mut().enumerate() {
        let codes = &b.codes[tile * ax.runs.len()..][..ax.runs.len()];
        for (output, (out, step)) in out.iter_mut().zip(b.steps[tile]).enumerate() {
            let products = codes.iter().zip(ax.runs).flat_map(|(b, ax)| {
                let b = &b[output * RUN..][..RUN];
                b.iter().zip(ax.codes).map(|(b, ax)| i32::from(*b) * i32::from(ax))
            });
            *out += step.to_f32() * (b.step * ax.step) * products.sum::<i32>() as f32;
        }
    }
}
