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
