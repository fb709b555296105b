//! Instructions whose intrinsics are not stable in Rust. Each wrapper is inlined into a function that enables its
//! target feature.

use std::arch::aarch64::*;
use std::arch::asm;

/// `sums[i] += Σ a[4i + j] · b[4i + j]`, of signed bytes.
///
/// # Safety
/// The CPU has `dotprod`.
#[inline(always)]
pub(super) unsafe fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; only registers are touched.
    unsafe {
        asm!("sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b", sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// `sums[i] += Σ a[4i + j] · b[4 · LANE + j]`, of signed bytes.
///
/// # Safety
/// The CPU has `dotprod`.
#[inline(always)]
pub(super) unsafe fn sdot_lane<const LANE: usize>(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; only registers are touched.
    unsafe {
        asm!("sdot {sums:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]", sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
             lane = const LANE, options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// `sums[2i + j] += Σ a[8i + k] · b[8j + k]`, of signed bytes.
///
/// # Safety
/// The CPU has `i8mm`.
#[inline(always)]
pub(super) unsafe fn smmla(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; only registers are touched.
    unsafe {
        asm!("smmla {sums:v}.4s, {a:v}.16b, {b:v}.16b", sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// One f16.
///
/// # Safety
/// It can be read at `at`.
#[inline(always)]
pub(super) unsafe fn load_half(at: *const u8) -> f32 {
    let wide: f32;
    // SAFETY: the caller's promise; a plain 16-bit load into a vector register.
    unsafe {
        asm!("ldr {wide:h}, [{at}]", "fcvt {wide:s}, {wide:h}", wide = out(vreg) wide, at = in(reg) at,
             options(pure, readonly, nostack, preserves_flags));
    }
    wide
}

/// Eight f16 as two vectors of f32.
///
/// # Safety
/// They can be read at `at`.
#[inline(always)]
pub(super) unsafe fn load_halves(at: *const u8) -> [float32x4_t; 2] {
    // SAFETY: the caller's promise.
    unsafe { widen_halves(vld1q_u8(at)) }
}

/// The eight f16 of a vector.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn widen_halves(halves: uint8x16_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: the caller's promise; only registers are touched.
    unsafe {
        asm!("fcvtl {low:v}.4s, {halves:v}.4h", "fcvtl2 {high:v}.4s, {halves:v}.8h", low = out(vreg) low,
             high = lateout(vreg) high, halves = in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}
