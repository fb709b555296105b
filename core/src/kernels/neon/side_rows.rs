//! `b·(a·x)` of one row, by 16-bit products and by the dot product instruction.

use std::arch::aarch64::*;

use half::f16;

use super::instructions::{load_halves, sdot_lane};
use crate::kernels::activations::TILE;
use crate::kernels::{SideInput, SideTiles};

#[target_feature(enable = "neon")]
pub(super) unsafe fn plain(b: SideTiles, ax: SideInput, out: &mut [[f32; TILE]]) {
    debug_assert!(b.steps.len() == out.len() && b.codes.len() == out.len() * ax.runs.len());
    let mut codes = b.codes.iter();
    for (steps, out) in b.steps.iter().zip(out) {
        // SAFETY: 64 codes of 16 outputs at a time.
        unsafe {
            let mut dots = [vdupq_n_s32(0); 4];
            for (ax, b) in ax.runs.iter().zip(&mut codes) {
                let ranks = vld4q_s8(b.as_ptr());
                for (codes, ax) in [ranks.0, ranks.1, ranks.2, ranks.3].into_iter().zip(ax.codes) {
                    for (half, codes) in [vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes)].into_iter().enumerate() {
                        dots[half * 2] = vmlal_n_s16(dots[half * 2], vget_low_s16(codes), ax);
                        dots[half * 2 + 1] = vmlal_high_n_s16(dots[half * 2 + 1], codes, ax);
                    }
                }
            }
            add(dots, steps, b.step * ax.step, out);
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dotprod(b: SideTiles, ax: SideInput, out: &mut [[f32; TILE]]) {
    debug_assert!(b.steps.len() == out.len() && b.codes.len() == out.len() * ax.runs.len());
    let mut codes = b.codes.iter();
    for (steps, out) in b.steps.iter().zip(out) {
        // SAFETY: 64 codes of 16 outputs at a time; a run is 16 bytes, of which the third and the last four are `high` and
        // `low`.
        unsafe {
            let (mut highs, mut lows) = ([vdupq_n_s32(0); 4], [vdupq_n_s32(0); 4]);
            for (ax, b) in ax.runs.iter().zip(&mut codes) {
                let ax = vld1q_s8(std::ptr::from_ref(ax).cast());
                for quad in 0..4 {
                    let b = vld1q_s8(b.as_ptr().add(quad * 16));
                    highs[quad] = sdot_lane::<2>(highs[quad], b, ax);
                    lows[quad] = sdot_lane::<3>(lows[quad], b, ax);
                }
            }
            let mut dots = lows;
            for (dot, high) in dots.iter_mut().zip(highs) {
                *dot = vaddq_s32(vshlq_n_s32::<8>(high), *dot);
            }
            add(dots, steps, b.step * ax.step, out);
        }
    }
}

/// `out += steps · step · dots`
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn add(dots: [int32x4_t; 4], steps: &[f16; TILE], step: f32, out: &mut [f32; TILE]) {
    // SAFETY: 16 steps and 16 outputs.
    unsafe {
        for (half, dots) in dots.as_chunks::<2>().0.iter().enumerate() {
            let steps = load_halves(steps.as_ptr().add(half * 8).cast());
            for (quad, (dot, steps)) in dots.iter().zip(steps).enumerate() {
                let out = out.as_mut_ptr().add(half * 8 + quad * 4);
                vst1q_f32(out, vfmaq_f32(vld1q_f32(out), vcvtq_f32_s32(*dot), vmulq_n_f32(steps, step)));
            }
        }
    }
}
