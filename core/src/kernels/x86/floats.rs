//! Float weights with AVX2, FMA and F16C, for AVX-512 too.

use std::arch::x86_64::*;

use super::bytes::sum;
use super::unpack::transpose;
use crate::kernels::activations::TILE;
use crate::kernels::{FloatGemv, FloatUnpack};
use crate::quant::BlockType;

/// A float type of weights.
trait Float {
    const SIZE_BYTES: usize;

    /// Eight values.
    ///
    /// # Safety
    /// They can be read at `at`; the CPU has AVX2 and F16C.
    unsafe fn load(at: *const u8) -> __m256;

    /// One value.
    ///
    /// # Safety
    /// As [`load`](Self::load).
    unsafe fn load_one(at: *const u8) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Float for F32 {
    const SIZE_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
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
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_one(at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned())))) }
    }
}

impl Float for Bf16 {
    const SIZE_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())))) }
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

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemv_rows<F: Float>(weights: *const u8, row_size_bytes: usize, x: &[f32], out: &mut [f32]) {
    let mut first = 0;
    // SAFETY: the caller's promise covers every row.
    unsafe {
        while out.len() - first >= 4 {
            gemv_some::<F, 4>(weights.add(first * row_size_bytes), row_size_bytes, x, &mut out[first..]);
            first += 4;
        }
        while first < out.len() {
            gemv_some::<F, 1>(weights.add(first * row_size_bytes), row_size_bytes, x, &mut out[first..]);
            first += 1;
        }
    }
}

/// # Safety
/// `ROWS` rows can be read.
#[inline(always)]
unsafe fn gemv_some<F: Float, const ROWS: usize>(
    weights: *const u8,
    row_size_bytes: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let (chunks, rest) = x.as_chunks::<16>();
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        for (index, x) in chunks.iter().enumerate() {
            let x = [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let at = weights.add(row * row_size_bytes + index * 16 * F::SIZE_BYTES);
                sums[0] = _mm256_fmadd_ps(F::load(at), x[0], sums[0]);
                sums[1] = _mm256_fmadd_ps(F::load(at.add(8 * F::SIZE_BYTES)), x[1], sums[1]);
            }
        }
        for (row, (sums, out)) in sums.iter().zip(out).enumerate() {
            let mut value = sum(_mm256_add_ps(sums[0], sums[1]));
            for (index, x) in rest.iter().enumerate() {
                value +=
                    x * F::load_one(weights.add(row * row_size_bytes + (chunks.len() * 16 + index) * F::SIZE_BYTES));
            }
            *out = value;
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_rows<F: Float>(weights: *const u8, row_size_bytes: usize, rows: usize, cols: usize, panel: *mut f32) {
    // Rows that a narrow last tile lacks repeat its last row; their products are not stored.
    let row_bytes = |row: usize| weights.wrapping_add(row.min(rows - 1) * row_size_bytes);
    for half in 0..TILE / 8 {
        // SAFETY: the caller's promise.
        unsafe {
            for col in (0..cols / 8 * 8).step_by(8) {
                let mut values = [_mm256_setzero_si256(); 8];
                for (row, values) in values.iter_mut().enumerate() {
                    *values = _mm256_castps_si256(F::load(row_bytes(half * 8 + row).add(col * F::SIZE_BYTES)));
                }
                for (offset, values) in transpose(values).into_iter().enumerate() {
                    _mm256_storeu_si256(panel.add((col + offset) * TILE + half * 8).cast(), values);
                }
            }
            for col in cols / 8 * 8..cols {
                for row in half * 8..half * 8 + 8 {
                    *panel.add(col * TILE + row) = F::load_one(row_bytes(row).add(col * F::SIZE_BYTES));
                }
            }
        }
    }
}
