//! Panels from quantised weights.

use std::arch::aarch64::*;

use super::bytes::Codes;
use super::dots::Way;
use crate::kernels::Panel;
use crate::kernels::activations::{BLOCK, TILE};
use crate::kernels::simd::Bytes;
use crate::kernels::simd::formats::Format;

/// # Safety
/// `rows` (1 to 16) rows of `blocks` blocks can be read at `weights`; the panel has room for 16; the CPU has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn unpack_rows<F: Format, W: Way>(
    weights: *const u8,
    row_size_bytes: usize,
    rows: usize,
    blocks: usize,
    panel: Panel,
) {
    let (subs, signed) = (BLOCK / F::SUB, F::WIDE && W::SIGNED);
    let (mut d, mut m) = ([0f32; 16], [0f32; 16]);
    for outer in 0..blocks / F::BLOCKS {
        for row in 0..TILE {
            // Rows that a narrow last tile lacks repeat its last row; their products are not stored.
            // SAFETY: the caller's promise.
            unsafe {
                let block = weights.add(row.min(rows - 1) * row_size_bytes + outer * F::SIZE_BYTES);
                F::scales::<Codes>(block, &mut d, &mut m);
                for sub in 0..F::BLOCKS * subs {
                    let place = (outer * F::BLOCKS * subs + sub) * TILE + row;
                    *panel.d.add(place) = d[sub];
                    // Wide codes as signed bytes are what the file stores, and then there is no `m`.
                    *panel.m.add(place) = if signed { 0.0 } else { m[sub] };
                }
                for index in 0..F::BLOCKS {
                    let codes = F::codes::<Codes>(block, index);
                    let codes = if signed { codes.flip_signs() } else { codes };
                    let place = panel.codes.add((outer * F::BLOCKS + index) * BLOCK * TILE);
                    store::<W>(codes, place, row);
                }
            }
        }
        if W::RUN == 1 {
            for index in outer * F::BLOCKS..(outer + 1) * F::BLOCKS {
                // SAFETY: the block's codes have just been written.
                unsafe { spread_fours(panel.codes.add(index * BLOCK * TILE)) };
            }
        }
    }
}

/// Stores a row's 32 codes in runs of 8 or 4 columns, the runs of 16 rows side by side.
///
/// # Safety
/// `32 · 16` bytes can be written at `place`.
#[inline(always)]
unsafe fn store<W: Way>(codes: Codes, place: *mut u8, row: usize) {
    for (half, codes) in codes.0.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            if W::RUN == 8 {
                let (codes, place) = (vreinterpretq_u64_u8(codes), place.cast::<u64>().add(half * 2 * TILE + row));
                vst1q_lane_u64::<0>(place, codes);
                vst1q_lane_u64::<1>(place.add(TILE), codes);
            } else {
                let (codes, place) = (vreinterpretq_u32_u8(codes), place.cast::<u32>().add(half * 4 * TILE + row));
                vst1q_lane_u32::<0>(place, codes);
                vst1q_lane_u32::<1>(place.add(TILE), codes);
                vst1q_lane_u32::<2>(place.add(2 * TILE), codes);
                vst1q_lane_u32::<3>(place.add(3 * TILE), codes);
            }
        }
    }
}

/// `[8, 16, 4]` to `[32, 16]`, in place.
///
/// # Safety
/// `32 · 16` bytes can be read and written at `codes`.
#[inline(always)]
unsafe fn spread_fours(codes: *mut u8) {
    for step in 0..BLOCK / 4 {
        // SAFETY: the caller's promise.
        unsafe {
            let place = codes.add(step * 4 * TILE);
            let columns = vld4q_u8(place);
            vst1q_u8(place, columns.0);
            vst1q_u8(place.add(TILE), columns.1);
            vst1q_u8(place.add(2 * TILE), columns.2);
            vst1q_u8(place.add(3 * TILE), columns.3);
        }
    }
}
