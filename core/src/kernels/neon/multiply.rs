//! Panels times rows, the same for every way to multiply.

use std::arch::aarch64::*;

use super::dots::Way;
use crate::kernels::activations::{BLOCK, CODES_BYTES, Group, TILE};
use crate::kernels::{Block, Panel};

/// # Safety
/// The panel, unpacked for `W`, has as many columns as `x`; the CPU has what `W` needs.
#[inline(always)]
pub(super) unsafe fn multiply_panel<W: Way, const SUB: usize>(panel: Panel, x: Group, out: &mut Block) {
    let mut row = 0;
    while row < x.rows {
        let count = (x.rows - row).min(W::ROWS_MAX);
        // SAFETY: the caller's promise; `x` has the rows.
        unsafe {
            match count {
                4 => multiply_rows::<W, SUB, 4>(panel, x, row, out),
                3 => multiply_rows::<W, SUB, 3>(panel, x, row, out),
                2 => multiply_rows::<W, SUB, 2>(panel, x, row, out),
                _ => multiply_rows::<W, SUB, 1>(panel, x, row, out),
            }
        }
        row += count;
    }
}

/// # Safety
/// As [`multiply_panel`]; `x` has `ROWS` rows from `first_row`.
#[inline(always)]
unsafe fn multiply_rows<W: Way, const SUB: usize, const ROWS: usize>(
    panel: Panel,
    x: Group,
    first_row: usize,
    out: &mut Block,
) {
    let subs = BLOCK / SUB;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 4]; ROWS];
        for at in 0..x.blocks {
            for sub in 0..subs {
                let first = at * subs + sub;
                let place = at * x.rows + first_row;
                let codes = x.codes.add(place * CODES_BYTES + sub * SUB * 2);
                let dots = W::dots::<SUB, ROWS>(panel.codes.add(first * SUB * TILE), codes);
                for row in 0..ROWS {
                    let x_scale = *x.scales.add(place + row);
                    let x_sum =
                        if SUB == 16 { *x.half_sums.add((place + row) * 2 + sub) } else { *x.sums.add(place + row) };
                    for quad in 0..4 {
                        let d = vld1q_f32(panel.d.add(first * panel.scale_stride + quad * 4));
                        let m = vld1q_f32(panel.m.add(first * panel.scale_stride + quad * 4));
                        let sum = &mut sums[row][quad];
                        *sum = vfmaq_f32(*sum, vcvtq_f32_s32(dots[row][quad]), vmulq_n_f32(d, x_scale));
                        *sum = vfmaq_n_f32(*sum, m, x_sum);
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(&mut out[first_row..]) {
            for (quad, sum) in sums.iter().enumerate() {
                vst1q_f32(out.as_mut_ptr().add(quad * 4), *sum);
            }
        }
    }
}
