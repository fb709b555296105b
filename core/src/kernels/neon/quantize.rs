//! Activations to 16-bit codes, in the two orders that the ways to multiply want.

use std::arch::aarch64::*;

use crate::kernels::activations::{BLOCK, CODE_MAX, CODES_BYTES, Group};

/// Codes in column order: plain NEON multiplies 16-bit numbers.
///
/// # Safety
/// As [`quantize_scalar`](crate::kernels::activations::quantize_scalar); the CPU has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn in_order(values: &[f32], group: Group, row: usize) {
    // SAFETY: the caller's promise; `place` has room for 8 codes.
    unsafe { quantize(values, group, row, |codes, place| vst1q_s16(place.cast(), codes)) }
}

/// Codes as `256 · high + low`: per 8 columns, 8 high bytes and 8 low bytes, both signed.
///
/// # Safety
/// As [`in_order`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn in_planes(values: &[f32], group: Group, row: usize) {
    // SAFETY: the caller's promise; `place` has room for 16 bytes.
    unsafe {
        quantize(values, group, row, |codes, place| {
            // The low byte, as a signed number, leaves a multiple of 256.
            let high = vshrn_n_s16::<8>(vaddq_s16(codes, vdupq_n_s16(128)));
            vst1q_s8(place.cast(), vcombine_s8(high, vmovn_s16(codes)));
        });
    }
}

/// Calls `store` with every 8 codes and their 16 bytes in the group.
///
/// # Safety
/// As [`in_order`].
#[inline(always)]
unsafe fn quantize(values: &[f32], group: Group, row: usize, store: impl Fn(int16x8_t, *mut u8)) {
    for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
        let at = block * group.rows + row;
        // SAFETY: `values` has 32 elements; the group has room for this row.
        unsafe {
            let values: [float32x4_t; 8] = std::array::from_fn(|part| vld1q_f32(values.as_ptr().add(part * 4)));
            let largest = values.iter().fold(vdupq_n_f32(0.0), |largest, part| vmaxq_f32(largest, vabsq_f32(*part)));
            let scale = vmaxvq_f32(largest) / CODE_MAX;
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let codes = values.map(|part| vcvtnq_s32_f32(vmulq_n_f32(part, inverse)));
            let mut sums = [vdupq_n_s32(0); 2];
            for part in 0..4 {
                let (a, b) = (codes[part * 2], codes[part * 2 + 1]);
                store(vcombine_s16(vmovn_s32(a), vmovn_s32(b)), group.codes.add(at * CODES_BYTES + part * 16));
                sums[part / 2] = vaddq_s32(sums[part / 2], vaddq_s32(a, b));
            }
            let halves = sums.map(|sum| vaddvq_s32(sum));
            *group.scales.add(at) = scale;
            *group.sums.add(at) = scale * (halves[0] + halves[1]) as f32;
            *group.half_sums.add(at * 2) = scale * halves[0] as f32;
            *group.half_sums.add(at * 2 + 1) = scale * halves[1] as f32;
        }
    }
}
