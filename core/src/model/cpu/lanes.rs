//! Vectors of f32 for attention. An algorithm is written once over [`Lanes`];
//! [`dispatch`] compiles it for each instruction set.

use half::f16;

use crate::kernels::Isa;

/// Every vector width divides it, and so does the padding of everything that is walked in whole vectors.
pub(super) const LANES_MAX: usize = 16;

/// The f32 vectors of one instruction set. A value proves that the CPU has it.
pub(super) trait Lanes: Copy {
    type F32: Copy;
    /// Values per vector.
    const COUNT: usize;
    /// Rows of a register tile two vectors wide: its sums and operands fit the register file.
    const TILE_ROWS: usize;

    fn splat(self, value: f32) -> Self::F32;
    /// The first `COUNT` values.
    fn load(self, values: &[f32]) -> Self::F32;
    /// The first `COUNT` values, widened.
    fn load_f16(self, values: &[f16]) -> Self::F32;
    /// The first `COUNT` values, widened.
    fn load_i8(self, values: &[i8]) -> Self::F32;
    /// To the first `COUNT` places.
    fn store(self, vector: Self::F32, out: &mut [f32]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b + c`
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `2^n` from `MAGIC + n`, for whole `n` from -126 to 127.
    fn exp2_of_magic(self, n: Self::F32) -> Self::F32;

    fn sum(self, a: Self::F32) -> f32 {
        self.to_array(a)[..Self::COUNT].iter().sum()
    }

    fn largest(self, a: Self::F32) -> f32 {
        self.to_array(a)[..Self::COUNT].iter().fold(f32::NEG_INFINITY, |largest, value| largest.max(*value))
    }

    #[inline(always)]
    fn to_array(self, a: Self::F32) -> [f32; LANES_MAX] {
        let mut values = [0.0; LANES_MAX];
        self.store(a, &mut values);
        values
    }

    /// `e^x` to 2 units in the last place; below -87 it gives at most 1.2e-38 instead of denormals.
    #[inline(always)]
    fn exp(self, x: Self::F32) -> Self::F32 {
        let x = self.min(self.max(x, self.splat(-87.3)), self.splat(88.0));
        // e^x = 2^n · e^r with |r| <= ln 2 / 2; adding MAGIC leaves n in the low bits of the mantissa.
        let magic = self.fma(x, self.splat(std::f32::consts::LOG2_E), self.splat(MAGIC));
        let n = self.sub(magic, self.splat(MAGIC));
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut y = self.splat(1.987_569_2e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            y = self.fma(y, r, self.splat(coefficient));
        }
        let y = self.fma(self.mul(y, r), r, self.add(r, self.splat(1.0)));
        self.mul(y, self.exp2_of_magic(magic))
    }
}

/// `1.5 · 2^23`: a float in whose neighbourhood the spacing is 1.
const MAGIC: f32 = 12_582_912.0;

/// An algorithm written over any [`Lanes`].
pub(super) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, to be compiled for the instruction set of `lanes`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` with the vectors of `isa`, or narrower ones if the CPU lacks it.
pub(super) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni if x86::Avx512::is_available() => {
            // SAFETY: the CPU has the instruction set.
            unsafe { x86::run_avx512(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx2 if x86::Avx2::is_available() => {
            // SAFETY: as above.
            unsafe { x86::run_avx2(kernel) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm | Isa::NeonDotprod | Isa::Neon if std::arch::is_aarch64_feature_detected!("neon") => {
            // SAFETY: the CPU has NEON.
            unsafe { neon::run(kernel) }
        }
        _ => kernel.run(Scalar),
    }
}

/// The meaning of every vector operation.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Scalar {
    #[inline(always)]
    fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Lanes for Scalar {
    type F32 = [f32; 4];
    const COUNT: usize = 4;
    const TILE_ROWS: usize = 4;

    fn splat(self, value: f32) -> [f32; 4] {
        [value; 4]
    }
    fn load(self, values: &[f32]) -> [f32; 4] {
        std::array::from_fn(|i| values[i])
    }
    fn load_f16(self, values: &[f16]) -> [f32; 4] {
        std::array::from_fn(|i| values[i].to_f32())
    }
    fn load_i8(self, values: &[i8]) -> [f32; 4] {
        std::array::from_fn(|i| f32::from(values[i]))
    }
    fn store(self, vector: [f32; 4], out: &mut [f32]) {
        out[..4].copy_from_slice(&vector);
    }
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a + b)
    }
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a - b)
    }
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a * b)
    }
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, f32::max)
    }
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, f32::min)
    }
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    fn exp2_of_magic(self, n: [f32; 4]) -> [f32; 4] {
        n.map(|n| f32::from_bits((n.to_bits() << 23).wrapping_add(1.0f32.to_bits())))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::*;

    use half::f16;

    use super::{Kernel, Lanes};

    /// 16 lanes.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    /// 8 lanes.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    impl Avx512 {
        pub(super) fn is_available() -> bool {
            is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") && Avx2::is_available()
        }
    }

    impl Avx2 {
        pub(super) fn is_available() -> bool {
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
        }
    }

    /// # Safety
    /// The CPU has AVX-512 F and VL, AVX2, FMA and F16C.
    #[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }

    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }

    macro_rules! lanes {
        ($name:ident, $vector:ty, $count:literal, $tile_rows:literal, $half:ty, $load_half:ident, $load_bytes:ident, $widen_bytes:ident,
         $from_int:ident, $splat:ident, $load:ident, $store:ident, $cvtph:ident, $add:ident, $sub:ident, $mul:ident, $max:ident, $min:ident, $fma:ident,
         $to_int:ident, $to_float:ident, $shift:ident, $add_int:ident, $splat_int:ident $(, $sum:ident, $largest:ident)?) => {
            // SAFETY of every block: a value of this type exists only in functions compiled for its instruction
            // set, which `dispatch` calls after detecting it; loads and stores check their slices first.
            impl Lanes for $name {
                type F32 = $vector;
                const COUNT: usize = $count;
                const TILE_ROWS: usize = $tile_rows;

                #[inline(always)]
                fn splat(self, value: f32) -> $vector {
                    // SAFETY: see above.
                    unsafe { $splat(value) }
                }
                #[inline(always)]
                fn load(self, values: &[f32]) -> $vector {
                    let values = &values[..$count];
                    // SAFETY: see above.
                    unsafe { $load(values.as_ptr()) }
                }
                #[inline(always)]
                fn load_f16(self, values: &[f16]) -> $vector {
                    let values = &values[..$count];
                    // SAFETY: see above; f16 is a transparent u16.
                    unsafe { $cvtph($load_half(values.as_ptr().cast::<$half>())) }
                }
                #[inline(always)]
                fn load_i8(self, values: &[i8]) -> $vector {
                    let values = &values[..$count];
                    // SAFETY: see above.
                    unsafe { $from_int($widen_bytes($load_bytes(values.as_ptr().cast()))) }
                }
                #[inline(always)]
                fn store(self, vector: $vector, out: &mut [f32]) {
                    let out = &mut out[..$count];
                    // SAFETY: see above.
                    unsafe { $store(out.as_mut_ptr(), vector) }
                }
                #[inline(always)]
                fn add(self, a: $vector, b: $vector) -> $vector {
                    // SAFETY: see above.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                fn sub(self, a: $vector, b: $vector) -> $vector {
                    // SAFETY: see above.
                    unsafe { $sub(a, b) }
                }
                #[inline(always)]
                fn mul(self, a: $vector, b: $vector) -> $vector {
                    // SAFETY: see above.
                    unsafe { $mul(a, b) }
                }
                #[inline(always)]
                fn max(self, a: $vector, b: $vector) -> $vector {
                    // SAFETY: see above.
                    unsafe { $max(a, b) }
                }
                #[inline(always)]
                fn min(self, a: $vector, b: $vector) -> $vector {
                    // SAFETY: see above.
                    unsafe { $min(a, b) }
                }
                #[inline(always)]
                fn fma(self, a: $vector, b: $vector, c: $vector) -> $vector {
                    // SAFETY: see above.
                    unsafe { $fma(a, b, c) }
                }
                #[inline(always)]
                fn exp2_of_magic(self, n: $vector) -> $vector {
                    // SAFETY: see above.
                    unsafe { $to_float($add_int($shift::<23>($to_int(n)), $splat_int(0x3f80_0000))) }
                }
                $(
                    #[inline(always)]
                    fn sum(self, a: $vector) -> f32 {
                        // SAFETY: see above.
                        unsafe { $sum(a) }
                    }
                    #[inline(always)]
                    fn largest(self, a: $vector) -> f32 {
                        // SAFETY: see above.
                        unsafe { $largest(a) }
                    }
                )?
            }
        };
    }

    lanes!(
        Avx512,
        __m512,
        16,
        8,
        __m256i,
        _mm256_loadu_si256,
        _mm_loadu_si128,
        _mm512_cvtepi8_epi32,
        _mm512_cvtepi32_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_cvtph_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        _mm512_fmadd_ps,
        _mm512_castps_si512,
        _mm512_castsi512_ps,
        _mm512_slli_epi32_,
        _mm512_add_epi32,
        _mm512_set1_epi32,
        _mm512_reduce_add_ps,
        _mm512_reduce_max_ps
    );
    lanes!(
        Avx2,
        __m256,
        8,
        4,
        __m128i,
        _mm_loadu_si128,
        _mm_loadl_epi64,
        _mm256_cvtepi8_epi32,
        _mm256_cvtepi32_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_cvtph_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        _mm256_fmadd_ps,
        _mm256_castps_si256,
        _mm256_castsi256_ps,
        _mm256_slli_epi32,
        _mm256_add_epi32,
        _mm256_set1_epi32
    );

    /// `_mm512_slli_epi32` counts with a `u32`, `_mm256_slli_epi32` with an `i32`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn _mm512_slli_epi32_<const BITS: i32>(a: __m512i) -> __m512i {
        _mm512_sll_epi32(a, _mm_cvtsi32_si128(BITS))
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            for (x, y) in self.0.chunks_exact(L::COUNT).zip(self.1.chunks_exact_mut(L::COUNT)) {
                lanes.store(lanes.exp(lanes.load(x)), y);
            }
        }
    }

    #[test]
    fn exp_agrees_with_the_standard_library_on_every_instruction_set() {
        let x: Vec<f32> = (0..16_000).map(|i| (i as f32 - 8_000.0) / 95.0).collect();
        let mut y = vec![0.0; x.len()];
        let check = |y: &[f32]| {
            for (x, y) in x.iter().zip(y) {
                let expected = f64::from(x.clamp(-87.3, 88.0)).exp();
                assert!((f64::from(*y) / expected - 1.0).abs() < 3e-7, "exp({x}) = {y}, expected {expected}");
            }
        };
        for isa in Isa::ALL {
            dispatch(*isa, Exp(&x, &mut y));
            check(&y);
        }
    }
}
