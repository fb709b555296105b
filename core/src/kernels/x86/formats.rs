#![allow(non_camel_case_types, reason = "the names are ggml's own")]
//! How each block type yields its codes in registers: 32 codes at a time, in column order.

use std::arch::x86_64::*;

use crate::kernels::formats::{q3_k_scales, six_bit_pairs};

/// A quantised block type. All functions need AVX2 and F16C.
pub(super) trait Format {
    /// Bytes per block.
    const SIZE_BYTES: usize;
    /// Blocks of 32 weights per block.
    const BLOCKS: usize;
    /// Weights per scale.
    const SUB: usize;

    /// The codes of the `index`-th 32 weights.
    ///
    /// # Safety
    /// A block can be read at `block`; the CPU has AVX2.
    unsafe fn codes(block: *const u8, index: usize) -> __m256i;

    /// `d` and `m` of every sub-block.
    ///
    /// # Safety
    /// As [`codes`](Self::codes), and F16C.
    unsafe fn scales(block: *const u8, d: &mut [f32; 16], m: &mut [f32; 16]);
}

#[inline(always)]
unsafe fn half_at(block: *const u8, at: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = block.add(at).cast::<u16>().read_unaligned();
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
}

#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let packed = _mm_loadu_si128(at.cast());
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(packed), _mm_srli_epi16::<4>(packed));
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// Bit `i` of the 32 bits at `at` as 16 in byte `i`.
#[inline(always)]
unsafe fn fifth_bits(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
        let select = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
        let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let hit = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, select), mask), mask);
        _mm256_and_si256(hit, _mm256_set1_epi8(16))
    }
}

/// `(bytes >> shift) & mask`, for shifts below 8.
#[inline(always)]
unsafe fn bits(bytes: __m256i, shift: usize, mask: i8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32)), _mm256_set1_epi8(mask)) }
}

macro_rules! legacy {
    ($name:ident, $size:literal, |$block:ident| $codes:expr, $offset:expr) => {
        pub(super) struct $name;

        impl Format for $name {
            const SIZE_BYTES: usize = $size;
            const BLOCKS: usize = 1;
            const SUB: usize = 32;

            #[inline(always)]
            unsafe fn codes($block: *const u8, _: usize) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { $codes }
            }

            #[inline(always)]
            unsafe fn scales(block: *const u8, d: &mut [f32; 16], m: &mut [f32; 16]) {
                let offset: Option<f32> = $offset;
                // SAFETY: the caller's promise.
                unsafe {
                    d[0] = half_at(block, 0);
                    m[0] = match offset {
                        Some(offset) => -offset * d[0],
                        None => half_at(block, 2),
                    };
                }
            }
        }
    };
}

legacy!(Q4_0, 18, |block| nibbles(block.add(2)), Some(8.0));
legacy!(Q4_1, 20, |block| nibbles(block.add(4)), None);
legacy!(Q5_0, 22, |block| _mm256_or_si256(nibbles(block.add(6)), fifth_bits(block.add(2))), Some(16.0));
legacy!(Q5_1, 24, |block| _mm256_or_si256(nibbles(block.add(8)), fifth_bits(block.add(4))), None);
legacy!(
    Q8_0,
    34,
    |block| _mm256_xor_si256(_mm256_loadu_si256(block.add(2).cast()), _mm256_set1_epi8(-128)),
    Some(128.0)
);
legacy!(
    Q8_1,
    36,
    |block| _mm256_xor_si256(_mm256_loadu_si256(block.add(4).cast()), _mm256_set1_epi8(-128)),
    Some(128.0)
);

macro_rules! k_quant {
    ($name:ident, $size:literal, $sub:literal, |$block:ident, $index:ident| $codes:expr, |$d:ident, $m:ident| $scales:expr) => {
        pub(super) struct $name;

        impl Format for $name {
            const SIZE_BYTES: usize = $size;
            const BLOCKS: usize = 8;
            const SUB: usize = $sub;

            #[inline(always)]
            unsafe fn codes($block: *const u8, $index: usize) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { $codes }
            }

            #[inline(always)]
            unsafe fn scales($block: *const u8, $d: &mut [f32; 16], $m: &mut [f32; 16]) {
                // SAFETY: the caller's promise.
                unsafe { $scales }
            }
        }
    };
}

k_quant!(
    Q2_K,
    84,
    16,
    |block, index| bits(_mm256_loadu_si256(block.add(16 + index / 4 * 32).cast()), index % 4 * 2, 3),
    |d, m| {
        let (scale, min) = (half_at(block, 80), half_at(block, 82));
        for sub in 0..16 {
            d[sub] = scale * f32::from(*block.add(sub) & 15);
            m[sub] = -min * f32::from(*block.add(sub) >> 4);
        }
    }
);
k_quant!(
    Q3_K,
    110,
    16,
    |block, index| {
        let low = bits(_mm256_loadu_si256(block.add(32 + index / 4 * 32).cast()), index % 4 * 2, 3);
        let high = bits(_mm256_loadu_si256(block.cast()), index, 1);
        _mm256_or_si256(low, _mm256_slli_epi16::<2>(high))
    },
    |d, m| {
        let scale = half_at(block, 108);
        for (sub, packed) in q3_k_scales(std::slice::from_raw_parts(block.add(96), 12)).into_iter().enumerate() {
            d[sub] = scale * (f32::from(packed) - 32.0);
            m[sub] = -4.0 * d[sub];
        }
    }
);
k_quant!(
    Q4_K,
    144,
    32,
    |block, index| bits(_mm256_loadu_si256(block.add(16 + index / 2 * 32).cast()), index % 2 * 4, 15),
    |d, m| k_scales(block, d, m)
);
k_quant!(
    Q5_K,
    176,
    32,
    |block, index| {
        let low = bits(_mm256_loadu_si256(block.add(48 + index / 2 * 32).cast()), index % 2 * 4, 15);
        let high = bits(_mm256_loadu_si256(block.add(16).cast()), index, 1);
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
    },
    |d, m| k_scales(block, d, m)
);
k_quant!(
    Q6_K,
    210,
    16,
    |block, index| {
        let (half, part) = (index / 4, index % 4);
        let low = bits(_mm256_loadu_si256(block.add(half * 64 + part % 2 * 32).cast()), part / 2 * 4, 15);
        let high = bits(_mm256_loadu_si256(block.add(128 + half * 32).cast()), part * 2, 3);
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
    },
    |d, m| {
        let scale = half_at(block, 208);
        for sub in 0..16 {
            d[sub] = scale * f32::from(*block.add(192 + sub) as i8);
            m[sub] = -32.0 * d[sub];
        }
    }
);

k_quant!(
    Q8_K,
    292,
    32,
    |block, index| _mm256_xor_si256(_mm256_loadu_si256(block.add(4 + index * 32).cast()), _mm256_set1_epi8(-128)),
    |d, m| {
        let scale = block.cast::<f32>().read_unaligned();
        d[..8].fill(scale);
        m[..8].fill(-128.0 * scale);
    }
);

#[inline(always)]
unsafe fn k_scales(block: *const u8, d: &mut [f32; 16], m: &mut [f32; 16]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (scale, min) = (half_at(block, 0), half_at(block, 2));
        let (scales, mins) = six_bit_pairs(std::slice::from_raw_parts(block.add(4), 12));
        for sub in 0..8 {
            d[sub] = scale * f32::from(scales[sub]);
            m[sub] = -min * f32::from(mins[sub]);
        }
    }
}
