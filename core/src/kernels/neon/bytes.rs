use std::arch::aarch64::*;

use super::instructions;
use crate::kernels::simd::{Bytes, Eight};

/// 32 codes.
#[derive(Clone, Copy)]
pub(super) struct Codes(pub(super) [uint8x16_t; 2]);

impl Codes {
    /// The same bits, as signed numbers.
    ///
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn signed(self) -> [int8x16_t; 2] {
        // SAFETY: the caller's promise.
        self.0.map(|half| unsafe { vreinterpretq_s8_u8(half) })
    }

    #[inline(always)]
    fn map(self, op: impl Fn(uint8x16_t) -> uint8x16_t) -> Self {
        Self(self.0.map(op))
    }
}

impl Bytes for Codes {
    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self([vld1q_u8(at), vld1q_u8(at.add(16))]) }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let packed = vld1q_u8(at);
            Self([vandq_u8(packed, vdupq_n_u8(15)), vshrq_n_u8::<4>(packed)])
        }
    }

    #[inline(always)]
    unsafe fn fifth_bits(at: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = vreinterpretq_u8_u32(vdupq_n_u32(at.cast::<u32>().read_unaligned()));
            let mask = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let byte = |first: u8| vcombine_u8(vdup_n_u8(first), vdup_n_u8(first + 1));
            let spread = |first: u8| vandq_u8(vtstq_u8(vqtbl1q_u8(bits, byte(first)), mask), vdupq_n_u8(16));
            Self([spread(0), spread(2)])
        }
    }

    #[inline(always)]
    unsafe fn bits(self, shift: usize, mask: u8) -> Self {
        // SAFETY: the caller's promise.
        self.map(|half| unsafe { vandq_u8(vshlq_u8(half, vdupq_n_s8(-(shift as i8))), vdupq_n_u8(mask)) })
    }

    #[inline(always)]
    unsafe fn left<const SHIFT: i32>(self) -> Self {
        // SAFETY: the caller's promise.
        self.map(|half| unsafe { vshlq_n_u8::<SHIFT>(half) })
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self([vorrq_u8(self.0[0], other.0[0]), vorrq_u8(self.0[1], other.0[1])]) }
    }

    #[inline(always)]
    unsafe fn flip_signs(self) -> Self {
        // SAFETY: the caller's promise.
        self.map(|half| unsafe { veorq_u8(half, vdupq_n_u8(0x80)) })
    }

    #[inline(always)]
    unsafe fn half(at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { instructions::load_half(at) }
    }
}

/// Eight f32.
#[derive(Clone, Copy)]
pub(super) struct Floats([float32x4_t; 2]);

impl Eight for Floats {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self([vdupq_n_f32(0.0); 2]) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self([vld1q_f32(at), vld1q_f32(at.add(4))]) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            vst1q_f32(at, self.0[0]);
            vst1q_f32(at.add(4), self.0[1]);
        }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8, stride: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bits: [u16; 8] = std::array::from_fn(|index| at.add(index * stride).cast::<u16>().read_unaligned());
            Self(instructions::widen_halves(vreinterpretq_u8_u16(vld1q_u16(bits.as_ptr()))))
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self([vmulq_f32(self.0[0], other.0[0]), vmulq_f32(self.0[1], other.0[1])]) }
    }

    #[inline(always)]
    unsafe fn scale(self, factor: f32) -> Self {
        // SAFETY: the caller's promise.
        Self(self.0.map(|half| unsafe { vmulq_n_f32(half, factor) }))
    }

    #[inline(always)]
    unsafe fn fma(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self([vfmaq_f32(sum.0[0], self.0[0], factor.0[0]), vfmaq_f32(sum.0[1], self.0[1], factor.0[1])]) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { vaddvq_f32(vaddq_f32(self.0[0], self.0[1])) }
    }
}
