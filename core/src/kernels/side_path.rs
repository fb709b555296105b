use std::ops::Range;

use half::f16;

use super::Kernels;
use super::activations::TILE;
use super::panels::Panels;
use super::side_memory::{Kept, SideMemory};
use crate::lora::LoraPair;
use crate::quant::{BlockType, QMatrix, WeightBytes, quantize};

/// LoRA pairs whose targets share one input, ready to run beside the matrix product: `y += scale · b·(a·x)`.
///
/// The `a` of all pairs are one matrix, so that `a·x` is computed once; `b` lies in the order in which products write
/// their outputs. Both have 8 bits per value and one step per row, which keeps the delta to within 1% of its size.
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
    /// Where its pairs start, if every target's part is rounded up to whole pairs.
    pub(super) first_pair: usize,
    pub(super) rank: usize,
    pub(super) out: usize,
    /// `[out / 16, rank / 2, 16, 2]`; what the last tile or an odd rank lacks is zero.
    codes: Kept<i8>,
    /// `[out / 16, 16]`
    steps: Kept<f32>,
}

/// Some tiles of 16 outputs of a target. Of output `o` of a tile and rank `r`, `scale · b[o, r]` is
/// `steps[o] · codes[r / 2][2 · o + r % 2]`.
#[derive(Clone, Copy)]
pub(super) struct SideTiles<'a> {
    /// `[tiles, rank / 2, 16, 2]`
    pub(super) codes: &'a [[i8; 2 * TILE]],
    /// `[tiles, 16]`
    pub(super) steps: &'a [[f32; TILE]],
}

/// One row's `a·x` of one target, in 16 bits: `step · codes`.
#[derive(Clone, Copy)]
pub(super) struct SideInput<'a> {
    /// Pairs, as many as those of a tile.
    pub(super) codes: &'a [[i16; 2]],
    pub(super) step: f32,
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
        let (mut rows, mut pair_count) = (0, 0);
        let mut a = Vec::new();
        let mut targets = Vec::with_capacity(pairs.len());
        for (index, pair) in pairs.iter().enumerate() {
            targets.push(pair.map(|pair| {
                assert_eq!(pair.a.ncols(), cols, "pairs of one side path share their input");
                let mut target = SideTarget::new(memory, pair, scale);
                (target.index, target.start, target.first_pair) = (index, rows, pair_count);
                rows += target.rank;
                pair_count += target.pair_count();
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

    /// Sum of the ranks, each rounded up to whole pairs.
    pub(super) fn pair_count(&self) -> usize {
        self.targets.iter().flatten().map(SideTarget::pair_count).sum()
    }
}

impl SideTarget {
    fn new(memory: &SideMemory, pair: &LoraPair, scale: f32) -> Self {
        let (out, rank) = pair.b.dim();
        let (tiles, pairs) = (out.div_ceil(TILE), rank.div_ceil(2));
        let mut codes = vec![0; tiles * pairs * 2 * TILE];
        let mut steps = vec![0.0; tiles * TILE];
        let values = pair.b.as_standard_layout();
        let values = values.as_slice().expect("standard layout");
        for (output, row) in values.chunks_exact(rank.max(1)).enumerate() {
            let largest = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let step = largest / CODE_MAX;
            // The inverse of a denormal would be infinite.
            let inverse = if step >= f32::MIN_POSITIVE { 1.0 / step } else { 0.0 };
            steps[output] = scale * step;
            let tile = &mut codes[output / TILE * pairs * 2 * TILE..][..pairs * 2 * TILE];
            for (pair, values) in row.chunks(2).enumerate() {
                for (index, value) in values.iter().enumerate() {
                    tile[(pair * TILE + output % TILE) * 2 + index] = round(value * inverse) as i8;
                }
            }
        }
        Self { index: 0, start: 0, first_pair: 0, rank, out, codes: memory.keep(&codes), steps: memory.keep(&steps) }
    }

    /// `rank / 2`, rounded up.
    pub(super) fn pair_count(&self) -> usize {
        self.rank.div_ceil(2)
    }

    /// Fetches what [`tiles`](Self::tiles) gives: too short a stretch for the CPU to foresee.
    pub(super) fn prefetch(&self, tiles: Range<usize>) {
        let SideTiles { codes, steps } = self.tiles(tiles);
        prefetch(codes);
        prefetch(steps);
    }

    /// The outputs from `16 · tiles.start` on.
    pub(super) fn tiles(&self, tiles: Range<usize>) -> SideTiles<'_> {
        let pairs = tiles.start * self.pair_count()..tiles.end * self.pair_count();
        SideTiles { codes: &self.codes.as_chunks().0[pairs], steps: &self.steps.as_chunks().0[tiles] }
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
    for (row, blocks) in values.chunks_exact(cols).zip(blocks.chunks_exact_mut(cols / 32)) {
        let largest = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        // Rounded up, so that the largest code is not beyond 127.
        let mut step = f16::from_f32(largest / CODE_MAX);
        if step.to_f32() * CODE_MAX < largest {
            step = f16::from_bits(step.to_bits() + 1);
        }
        let inverse = if step.to_f32() > 0.0 { 1.0 / step.to_f32() } else { 0.0 };
        for (values, block) in row.chunks_exact(32).zip(blocks) {
            block[..2].copy_from_slice(&step.to_le_bytes());
            for (value, code) in values.iter().zip(&mut block[2..]) {
                *code = round(value * inverse) as i8 as u8;
            }
        }
    }
}

/// Largest code of `a` and `b`.
const CODE_MAX: f32 = 127.0;

/// The nearest whole number, of those that fit.
fn round(value: f32) -> i16 {
    // Adding 1.5 · 2²³ rounds to the nearest whole number, which is then in the low bits; `f32::round` is a call.
    (value + 12_582_912.0).to_bits() as i16
}

/// Rounds one target's `a·x` to pairs of 16-bit codes; the step.
pub(super) fn round_input(ax: &[f32], codes: &mut [[i16; 2]]) -> f32 {
    debug_assert_eq!(codes.len(), ax.len().div_ceil(2));
    let largest = ax.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    // No sum of products with codes of `b` leaves 32 bits.
    let code_max = (i32::MAX as f32 / (CODE_MAX * (2 * codes.len()) as f32)).min(32_512.0);
    let step = largest / code_max;
    let inverse = if step >= f32::MIN_POSITIVE { 1.0 / step } else { 0.0 };
    for (ax, codes) in ax.chunks(2).zip(codes) {
        let code = |index: usize| ax.get(index).map_or(0, |value| round(value * inverse));
        *codes = [code(0), code(1)];
    }
    step
}

/// The scalar twin of `side_rows`: `out += b·ax`.
pub(super) fn side_rows_scalar(b: SideTiles, ax: SideInput, out: &mut [[f32; TILE]]) {
    for (tile, out) in out.iter_mut().enumerate() {
        let codes = &b.codes[tile * ax.codes.len()..][..ax.codes.len()];
        for (output, (out, step)) in out.iter_mut().zip(b.steps[tile]).enumerate() {
            let pairs = codes.iter().zip(ax.codes);
            let dot: i32 = pairs
                .map(|(b, ax)| (0..2).map(|index| i32::from(b[output * 2 + index]) * i32::from(ax[index])).sum::<i32>())
                .sum();
            *out += step * ax.step * dot as f32;
        }
    }
}
