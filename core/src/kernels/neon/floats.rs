//! Float weights, and the side path.

use std::arch::aarch64::*;

use super::instructions::{load_half, load_halves};
use crate::kernels::activations::TILE;
use crate::kernels::{Block, FloatGemv, FloatUnpack};
use crate::quant::BlockType;

/// Rows whose sums of 16 features are in registers at a time.
const ROWS_AT_ONCE: usize = 4;

/// A float type of weights.
///
/// # Safety
/// Every function reads at `at`, and needs NEON.
trait Float {
    const SIZE_BYTES: usize;

    /// Eight values.
    unsafe fn load(at: *const u8) -> [float32x4_t; 2];

    /// One value.
    unsafe fn load_one(at: *const u8) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Float for F32 {
    const SIZE_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller's promise. As bytes: the file aligns nothing to 4.
        unsafe { [vreinterpretq_f32_u8(vld1q_u8(at)), vreinterpretq_f32_u8(vld1q_u8(at.add(16)))] }
    }

    #[inline(always)]
    unsafe fn load_one(at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<f32>().read_unaligned() }
    }
}

impl Float for F16 {
    const SIZE_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller's promise.
        unsafe { load_halves(at) }
    }

    #[inline(always)]
    unsafe fn load_one(at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { load_half(at) }
    }
}

impl Float for Bf16 {
    const SIZE_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = vreinterpretq_u16_u8(vld1q_u8(at));
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(bits)), vshll_high_n_u16::<16>(bits));
            [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)]
        }
    }

    #[inline(always)]
    unsafe fn load_one(at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        f32::from_bits(u32::from(unsafe { at.cast::<u16>().read_unaligned() }) << 16)
    }
}

pub(super) fn gemv(block_type: BlockType) -> FloatGemv {
    match block_type {
        BlockType::F32 => gemv_rows::<F32>,
        BlockType::F16 => gemv_rows::<F16>,
        BlockType::BF16 => gemv_rows::<Bf16>,
        other => unreachable!("{other} is not a float type"),
    }
}

pub(super) fn unpack(block_type: BlockType) -> FloatUnpack {
    match block_type {
        BlockType::F32 => unpack_rows::<F32>,
        BlockType::F16 => unpack_rows::<F16>,
        BlockType::BF16 => unpack_rows::<Bf16>,
        other => unreachable!("{other} is not a float type"),
    }
}

#[target_feature(enable = "neon")]
unsafe fn gemv_rows<F: Float>(weights: *const u8, row_size_bytes: usize, x: &[f32], out: &mut [f32]) {
    for (index, out) in out.chunks_mut(ROWS_AT_ONCE).enumerate() {
        // SAFETY: the caller's promise covers every row.
        unsafe {
            let weights = weights.add(index * ROWS_AT_ONCE * row_size_bytes);
            match out.len() {
                ROWS_AT_ONCE => gemv_some::<F, ROWS_AT_ONCE>(weights, row_size_bytes, x, out),
                len => (0..len).for_each(|row| {
                    gemv_some::<F, 1>(weights.add(row * row_size_bytes), row_size_bytes, x, &mut out[row..]);
                }),
            }
        }
    }
}

/// # Safety
/// `ROWS` rows can be read; the CPU has NEON.
#[inline(always)]
unsafe fn gemv_some<F: Float, const ROWS: usize>(
    weights: *const u8,
    row_size_bytes: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let (chunks, rest) = x.as_chunks::<8>();
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 2]; ROWS];
        for (index, x) in chunks.iter().enumerate() {
            let x = [vld1q_f32(x.as_ptr()), vld1q_f32(x.as_ptr().add(4))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let weights = F::load(weights.add(row * row_size_bytes + index * 8 * F::SIZE_BYTES));
                *sums = [vfmaq_f32(sums[0], weights[0], x[0]), vfmaq_f32(sums[1], weights[1], x[1])];
            }
        }
        for (row, (sums, out)) in sums.iter().zip(out).enumerate() {
            let mut value = vaddvq_f32(vaddq_f32(sums[0], sums[1]));
            for (index, x) in rest.iter().enumerate() {
                let col = chunks.len() * 8 + index;
                value += x * F::load_one(weights.add(row * row_size_bytes + col * F::SIZE_BYTES));
            }
            *out = value;
        }
    }
}

#[target_feature(enable = "neon")]
unsafe fn unpack_rows<F: Float>(weights: *const u8, row_size_bytes: usize, rows: usize, cols: usize, panel: *mut f32) {
    for row in 0..TILE {
        // Rows that a narrow last tile lacks repeat its last row; their products are not stored.
        // SAFETY: the caller's promise.
        unsafe {
            let (bytes, panel) = (weights.add(row.min(rows - 1) * row_size_bytes), panel.add(row));
            for col in (0..cols / 8 * 8).step_by(8) {
                for (half, values) in F::load(bytes.add(col * F::SIZE_BYTES)).into_iter().enumerate() {
                    let place = panel.add((col + half * 4) * TILE);
                    vst1q_lane_f32::<0>(place, values);
                    vst1q_lane_f32::<1>(place.add(TILE), values);
                    vst1q_lane_f32::<2>(place.add(2 * TILE), values);
                    vst1q_lane_f32::<3>(place.add(3 * TILE), values);
                }
            }
            for col in cols / 8 * 8..cols {
                *panel.add(col * TILE) = F::load_one(bytes.add(col * F::SIZE_BYTES));
            }
        }
    }
}

#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply(panel: *const f32, x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut Block) {
    debug_assert!(x.len() >= (rows - 1) * stride + cols);
    for (index, out) in out[..rows].chunks_mut(ROWS_AT_ONCE).enumerate() {
        let x = &x[index * ROWS_AT_ONCE * stride..];
        // SAFETY: the panel has `cols · 16` values and `x` the rows of this chunk.
        unsafe {
            match out.len() {
                1 => multiply_rows::<1>(panel, x, stride, cols, out),
                2 => multiply_rows::<2>(panel, x, stride, cols, out),
                3 => multiply_rows::<3>(panel, x, stride, cols, out),
                _ => multiply_rows::<ROWS_AT_ONCE>(panel, x, stride, cols, out),
            }
        }
    }
}

/// # Safety
/// The panel has `cols · 16` values, and `x` and `out` have `ROWS` rows; the CPU has NEON.
#[inline(always)]
unsafe fn multiply_rows<const ROWS: usize>(
    panel: *const f32,
    x: &[f32],
    stride: usize,
    cols: usize,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let quads =
            |values: *const f32| -> [float32x4_t; 4] { std::array::from_fn(|quad| vld1q_f32(values.add(quad * 4))) };
        let mut sums: [[float32x4_t; 4]; ROWS] = std::array::from_fn(|row| quads(out[row].as_ptr()));
        for col in 0..cols {
            let weights = quads(panel.add(col * TILE));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = *x.get_unchecked(row * stride + col);
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = vfmaq_n_f32(*sum, weights, x);
                }
            }
        }
        for (sums, out) in sums.iter().zip(out) {
            for (quad, sum) in sums.iter().enumerate() {
                vst1q_f32(out.as_mut_ptr().add(quad * 4), *sum);
            }
        }
    }
}
