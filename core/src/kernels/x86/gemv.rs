//! `out[o] = W[o, ..] · x`, one row at a time, unpacked in registers.

use std::arch::x86_64::*;

use super::formats::Format;
use crate::kernels::activations::{CODES_BYTES, Group};

/// How an instruction set multiplies a block's codes.
pub(super) trait Dot {
    /// `sums + factors · dot(codes, x)`, spread over the lanes. `x` is a block in the instruction set's own order;
    /// with `SUB == 16`, each half of the block has a factor.
    ///
    /// # Safety
    /// A block can be read at `x`; the CPU has the instruction set.
    unsafe fn add<const SUB: usize>(codes: __m256i, x: *const u8, factors: [f32; 2], sums: __m256) -> __m256;
}

/// Sum of the lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn sum(lanes: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// # Safety
/// `out.len()` rows of `row_size_bytes` can be read at `weights`, each with as many columns as the one row of `x`;
/// the CPU has AVX2, FMA, F16C and what `D` needs.
#[inline(always)]
pub(super) unsafe fn gemv_rows<F: Format, D: Dot>(
    weights: *const u8,
    row_size_bytes: usize,
    x: Group,
    out: &mut [f32],
) {
    let (mut d, mut m) = ([0f32; 16], [0f32; 16]);
    for (row, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = weights.add(row * row_size_bytes);
            let mut sums = _mm256_setzero_ps();
            let mut offset = 0.0;
            for outer in 0..x.blocks / F::BLOCKS {
                let block = bytes.add(outer * F::SIZE_BYTES);
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(1024).cast());
                F::scales(block, &mut d, &mut m);
                for index in 0..F::BLOCKS {
                    let at = outer * F::BLOCKS + index;
                    let (codes, x_codes) = (F::codes(block, index), x.codes.add(at * CODES_BYTES));
                    let scale = *x.scales.add(at);
                    if F::SUB == 16 {
                        offset += m[index * 2] * *x.half_sums.add(at * 2);
                        offset += m[index * 2 + 1] * *x.half_sums.add(at * 2 + 1);
                        sums = D::add::<16>(codes, x_codes, [d[index * 2] * scale, d[index * 2 + 1] * scale], sums);
                    } else {
                        offset += m[index] * *x.sums.add(at);
                        sums = D::add::<32>(codes, x_codes, [d[index] * scale; 2], sums);
                    }
                }
            }
            *out = offset + sum(sums);
        }
    }
}
