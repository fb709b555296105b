//! Three ways to multiply integers: the heart of the one-row product and of the panel product.

use std::arch::aarch64::*;

use super::bytes::{Codes, Floats};
use super::instructions::{sdot, sdot_lane, smmla};
use crate::kernels::activations::{CODES_BYTES, TILE};
use crate::kernels::simd::gemv::Dot;

/// How a panel is laid out and multiplied.
///
/// # Safety
/// Every function needs the instruction set.
pub(super) trait Way: Dot<Codes = Codes> {
    /// Columns that a panel keeps together per feature: codes are `[cols / RUN, 16, RUN]`.
    const RUN: usize;
    /// Rows whose sums fit the registers.
    const ROWS_MAX: usize;

    /// Dot products of `SUB` columns of 16 features with `ROWS` rows; the rows of `x` are blocks apart.
    ///
    /// # Safety
    /// `SUB · 16` codes can be read at `codes`, and as many columns of every row at `x`.
    unsafe fn dots<const SUB: usize, const ROWS: usize>(codes: *const u8, x: *const u8) -> [[int32x4_t; 4]; ROWS];
}

/// 16-bit products; for every 64-bit ARM. Activation codes are in column order.
pub(super) struct Plain;

/// `sdot`, on the two bytes of an activation code apart. Activation codes are in planes.
pub(super) struct Dotprod;

/// `smmla` for panels: one instruction multiplies 8 columns of 2 features with both bytes of 8 activation codes.
pub(super) struct I8mm;

/// The parts of [`Dot`] that are the same on all.
macro_rules! dot_sums {
    ($signed:literal) => {
        type Codes = Codes;
        type Floats = Floats;
        type Sums = float32x4_t;
        const SIGNED: bool = $signed;

        #[inline(always)]
        unsafe fn zero() -> float32x4_t {
            // SAFETY: the caller's promise.
            unsafe { vdupq_n_f32(0.0) }
        }

        #[inline(always)]
        unsafe fn total(sums: float32x4_t) -> f32 {
            // SAFETY: the caller's promise.
            unsafe { vaddvq_f32(sums) }
        }
    };
}

/// `sums + factors · dots`, the dots of the two halves of a block.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn add_halves<const SUB: usize>(dots: [int32x4_t; 2], factors: [f32; 2], sums: float32x4_t) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        if SUB == 16 {
            let sums = vfmaq_n_f32(sums, vcvtq_f32_s32(dots[0]), factors[0]);
            vfmaq_n_f32(sums, vcvtq_f32_s32(dots[1]), factors[1])
        } else {
            vfmaq_n_f32(sums, vcvtq_f32_s32(vaddq_s32(dots[0], dots[1])), factors[0])
        }
    }
}

impl Dot for Plain {
    dot_sums!(false);

    #[inline(always)]
    unsafe fn add<const SUB: usize>(codes: Codes, x: *const u8, factors: [f32; 2], sums: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let mut dots = [vdupq_n_s32(0); 2];
            for (half, dot) in dots.iter_mut().enumerate() {
                for (part, codes) in widen(codes.0[half]).into_iter().enumerate() {
                    let x = vld1q_s16(x.add(half * 32 + part * 16).cast());
                    *dot = vmlal_high_s16(vmlal_s16(*dot, vget_low_s16(codes), vget_low_s16(x)), codes, x);
                }
            }
            add_halves::<SUB>(dots, factors, sums)
        }
    }
}

/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn widen(codes: uint8x16_t) -> [int16x8_t; 2] {
    // SAFETY: the caller's promise.
    unsafe { [vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes))), vreinterpretq_s16_u16(vmovl_high_u8(codes))] }
}

impl Way for Plain {
    const RUN: usize = 1;
    const ROWS_MAX: usize = 4;

    #[inline(always)]
    unsafe fn dots<const SUB: usize, const ROWS: usize>(codes: *const u8, x: *const u8) -> [[int32x4_t; 4]; ROWS] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut dots = [[vdupq_n_s32(0); 4]; ROWS];
            for step in 0..SUB / 8 {
                let x: [int16x8_t; ROWS] =
                    std::array::from_fn(|row| vld1q_s16(x.add(row * CODES_BYTES + step * 16).cast()));
                macro_rules! column {
                    ($($lane:literal)*) => {$(
                        let [low, high] = widen(vld1q_u8(codes.add((step * 8 + $lane) * TILE)));
                        for (dots, x) in dots.iter_mut().zip(x) {
                            dots[0] = vmlal_laneq_s16::<$lane>(dots[0], vget_low_s16(low), x);
                            dots[1] = vmlal_high_laneq_s16::<$lane>(dots[1], low, x);
                            dots[2] = vmlal_laneq_s16::<$lane>(dots[2], vget_low_s16(high), x);
                            dots[3] = vmlal_high_laneq_s16::<$lane>(dots[3], high, x);
                        }
                    )*};
                }
                column!(0 1 2 3 4 5 6 7);
            }
            dots
        }
    }
}

/// `256 · high + low`
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn join(high: int32x4_t, low: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vaddq_s32(vshlq_n_s32::<8>(high), low) }
}

impl Dot for Dotprod {
    dot_sums!(true);

    #[inline(always)]
    unsafe fn add<const SUB: usize>(codes: Codes, x: *const u8, factors: [f32; 2], sums: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = codes.signed();
            // A loop, not a closure: that would be a function of its own, compiled without `dotprod`.
            let mut dots = [vdupq_n_s32(0); 2];
            for half in 0..2 {
                // Two runs of 8 columns: 8 high bytes and 8 low bytes each.
                let planes = vld2q_u64(x.add(half * 32).cast());
                let high = sdot(dots[half], codes[half], vreinterpretq_s8_u64(planes.0));
                dots[half] = sdot(vshlq_n_s32::<8>(high), codes[half], vreinterpretq_s8_u64(planes.1));
            }
            add_halves::<SUB>(dots, factors, sums)
        }
    }
}

impl Way for Dotprod {
    const RUN: usize = 4;
    const ROWS_MAX: usize = 2;

    #[inline(always)]
    unsafe fn dots<const SUB: usize, const ROWS: usize>(codes: *const u8, x: *const u8) -> [[int32x4_t; 4]; ROWS] {
        // SAFETY: the caller's promise.
        unsafe {
            let (mut highs, mut lows) = ([[vdupq_n_s32(0); 4]; ROWS], [[vdupq_n_s32(0); 4]; ROWS]);
            for step in 0..SUB / 8 {
                let x: [int8x16_t; ROWS] =
                    std::array::from_fn(|row| vld1q_s8(x.add(row * CODES_BYTES + step * 16).cast()));
                let codes = codes.add(step * 8 * TILE).cast::<i8>();
                for quad in 0..4 {
                    let codes = [vld1q_s8(codes.add(quad * 16)), vld1q_s8(codes.add(4 * TILE + quad * 16))];
                    for row in 0..ROWS {
                        let high = sdot_lane::<0>(highs[row][quad], codes[0], x[row]);
                        highs[row][quad] = sdot_lane::<1>(high, codes[1], x[row]);
                        let low = sdot_lane::<2>(lows[row][quad], codes[0], x[row]);
                        lows[row][quad] = sdot_lane::<3>(low, codes[1], x[row]);
                    }
                }
            }
            std::array::from_fn(|row| std::array::from_fn(|quad| join(highs[row][quad], lows[row][quad])))
        }
    }
}

impl Dot for I8mm {
    dot_sums!(true);

    #[inline(always)]
    unsafe fn add<const SUB: usize>(codes: Codes, x: *const u8, factors: [f32; 2], sums: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise. With one row, half of what `smmla` computes would be of no use.
        unsafe { Dotprod::add::<SUB>(codes, x, factors, sums) }
    }
}

impl Way for I8mm {
    const RUN: usize = 8;
    const ROWS_MAX: usize = 2;

    #[inline(always)]
    unsafe fn dots<const SUB: usize, const ROWS: usize>(codes: *const u8, x: *const u8) -> [[int32x4_t; 4]; ROWS] {
        // SAFETY: the caller's promise.
        unsafe {
            // Per two features: feature 0 · high bytes, feature 0 · low bytes, and the same of feature 1.
            let mut pairs = [[vdupq_n_s32(0); 8]; ROWS];
            for step in 0..SUB / 8 {
                let x: [int8x16_t; ROWS] =
                    std::array::from_fn(|row| vld1q_s8(x.add(row * CODES_BYTES + step * 16).cast()));
                for pair in 0..8 {
                    let codes = vld1q_s8(codes.add(step * 8 * TILE + pair * 16).cast());
                    for row in 0..ROWS {
                        pairs[row][pair] = smmla(pairs[row][pair], codes, x[row]);
                    }
                }
            }
            pairs.map(|pairs| {
                std::array::from_fn(|quad| {
                    let (a, b) = (pairs[quad * 2], pairs[quad * 2 + 1]);
                    join(vuzp1q_s32(a, b), vuzp2q_s32(a, b))
                })
            })
        }
    }
}
