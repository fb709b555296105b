use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::{Kernel, Lanes};

/// 4 lanes.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// # Safety
/// The CPU has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon(()))
}

// SAFETY of every block: a value of this type exists only in functions compiled for NEON, which `dispatch` calls
// after detecting it; loads and stores check their slices first.
impl Lanes for Neon {
    type F32 = float32x4_t;
    const COUNT: usize = 4;
    const TILE_ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    fn load(self, values: &[f32]) -> float32x4_t {
        let values = &values[..4];
        // SAFETY: see above.
        unsafe { vld1q_f32(values.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, values: &[f16]) -> float32x4_t {
        let values = &values[..4];
        let wide: float32x4_t;
        // SAFETY: see above. Widening f16 is in every ARMv8; Rust's intrinsic for it is not stable yet.
        unsafe {
            let narrow = vld1_u16(values.as_ptr().cast::<u16>());
            asm!("fcvtl {wide:v}.4s, {narrow:v}.4h", wide = lateout(vreg) wide, narrow = in(vreg) narrow,
                 options(pure, nomem, nostack, preserves_flags));
        }
        wide
    }
    #[inline(always)]
    fn load_i8(self, values: &[i8]) -> float32x4_t {
        let values = &values[..4];
        // SAFETY: see above; four bytes are read, wherever they lie.
        unsafe {
            let bytes = u64::from(values.as_ptr().cast::<u32>().read_unaligned());
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(bytes)))))
        }
    }
    #[inline(always)]
    fn store(self, vector: float32x4_t, out: &mut [f32]) {
        let out = &mut out[..4];
        // SAFETY: see above.
        unsafe { vst1q_f32(out.as_mut_ptr(), vector) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn exp2_of_magic(self, n: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe {
            let bits = vshlq_n_s32::<23>(vreinterpretq_s32_f32(n));
            vreinterpretq_f32_s32(vaddq_s32(bits, vdupq_n_s32(0x3f80_0000)))
        }
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: see above.
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    fn largest(self, a: float32x4_t) -> f32 {
        // SAFETY: see above.
        unsafe { vmaxvq_f32(a) }
    }
}
