use std::arch::x86_64::*;

use crate::kernels::simd::{Bytes, Eight};

/// Needs AVX2 and F16C.
impl Bytes for __m256i {
    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let packed = _mm_loadu_si128(at.cast());
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(packed), _mm_srli_epi16::<4>(packed));
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    unsafe fn fifth_bits(at: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
            let select = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
            let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let hit = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, select), mask), mask);
            _mm256_and_si256(hit, _mm256_set1_epi8(16))
        }
    }

    #[inline(always)]
    unsafe fn bits(self, shift: usize, mask: u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let shifted = _mm256_srl_epi16(self, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    unsafe fn left<const SHIFT: i32>(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_slli_epi16::<SHIFT>(self) }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_or_si256(self, other) }
    }

    #[inline(always)]
    unsafe fn flip_signs(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_xor_si256(self, _mm256_set1_epi8(-128)) }
    }

    #[inline(always)]
    unsafe fn half(at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = at.cast::<u16>().read_unaligned();
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
        }
    }
}

/// Needs AVX2, FMA and F16C.
impl Eight for __m256 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(at, self) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8, stride: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let half = |index: usize| i32::from(at.add(index * stride).cast::<i16>().read_unaligned());
            let halves = _mm_cvtsi32_si128(half(0));
            let halves = _mm_insert_epi16::<1>(halves, half(1));
            let halves = _mm_insert_epi16::<2>(halves, half(2));
            let halves = _mm_insert_epi16::<3>(halves, half(3));
            let halves = _mm_insert_epi16::<4>(halves, half(4));
            let halves = _mm_insert_epi16::<5>(halves, half(5));
            let halves = _mm_insert_epi16::<6>(halves, half(6));
            _mm256_cvtph_ps(_mm_insert_epi16::<7>(halves, half(7)))
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn scale(self, factor: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_mul_ps(self, _mm256_set1_ps(factor)) }
    }

    #[inline(always)]
    unsafe fn fma(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(self, factor, sum) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { sum(self) }
    }
}

/// Sum of the lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn sum(lanes: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}
