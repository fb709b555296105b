//! Panels from quantised weights: codes of 16 features, interleaved by 4 or 2 columns.

use std::arch::x86_64::*;

use crate::kernels::Panel;
use crate::kernels::activations::{BLOCK, TILE};
use crate::kernels::simd::formats::Format;

/// With `PAIRS`, codes are interleaved by 2 columns instead of 4.
///
/// # Safety
/// `rows` (1 to 16) rows of `blocks` blocks can be read at `weights`; the panel has room for 16; the CPU has AVX2 and
/// F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack_rows<F: Format, const PAIRS: bool>(
    weights: *const u8,
    row_size_bytes: usize,
    rows: usize,
    blocks: usize,
    panel: Panel,
) {
    let subs = BLOCK / F::SUB;
    // Rows that a narrow last tile lacks repeat its last row; their products are not stored.
    let row_bytes: [*const u8; TILE] =
        std::array::from_fn(|row| weights.wrapping_add(row.min(rows - 1) * row_size_bytes));
    let (mut d, mut m) = ([0f32; 16], [0f32; 16]);
    for outer in 0..blocks / F::BLOCKS {
        // SAFETY: the caller's promise.
        unsafe {
            for (row, bytes) in row_bytes.iter().enumerate() {
                F::scales::<__m256i>(bytes.add(outer * F::SIZE_BYTES), &mut d, &mut m);
                for sub in 0..F::BLOCKS * subs {
                    let place = (outer * F::BLOCKS * subs + sub) * TILE + row;
                    *panel.d.add(place) = d[sub];
                    *panel.m.add(place) = m[sub];
                }
            }
            for index in 0..F::BLOCKS {
                let place = panel.codes.add((outer * F::BLOCKS + index) * BLOCK * TILE);
                for half in 0..2 {
                    let mut rows = [_mm256_setzero_si256(); 8];
                    for (row, codes) in rows.iter_mut().enumerate() {
                        *codes = F::codes(row_bytes[half * 8 + row].add(outer * F::SIZE_BYTES), index);
                    }
                    for (step, codes) in transpose(rows).into_iter().enumerate() {
                        let place = place.add(step * TILE * 4);
                        if PAIRS {
                            let codes = split_pairs(codes);
                            _mm_store_si128(place.add(half * 16).cast(), _mm256_castsi256_si128(codes));
                            let second = place.add(TILE * 2 + half * 16);
                            _mm_store_si128(second.cast(), _mm256_extracti128_si256::<1>(codes));
                        } else {
                            _mm256_store_si256(place.add(half * 32).cast(), codes);
                        }
                    }
                }
            }
        }
    }
}

/// The first two bytes of every word in the low half, the others in the high half.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn split_pairs(words: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        let split = _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(order));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(split)
    }
}

/// Word `j` of vector `i` becomes word `i` of vector `j`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
pub(super) unsafe fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b, c, d, e, f, g, h] = rows;
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        let (ef_low, ef_high) = (_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f));
        let (gh_low, gh_high) = (_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h));
        // Columns 0 and 4 of rows 0–3, 1 and 5, 2 and 6, 3 and 7; then of rows 4–7.
        let low = [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ];
        let high = [
            _mm256_unpacklo_epi64(ef_low, gh_low),
            _mm256_unpackhi_epi64(ef_low, gh_low),
            _mm256_unpacklo_epi64(ef_high, gh_high),
            _mm256_unpackhi_epi64(ef_high, gh_high),
        ];
        [
            _mm256_permute2x128_si256::<0x20>(low[0], high[0]),
            _mm256_permute2x128_si256::<0x20>(low[1], high[1]),
            _mm256_permute2x128_si256::<0x20>(low[2], high[2]),
            _mm256_permute2x128_si256::<0x20>(low[3], high[3]),
            _mm256_permute2x128_si256::<0x31>(low[0], high[0]),
            _mm256_permute2x128_si256::<0x31>(low[1], high[1]),
            _mm256_permute2x128_si256::<0x31>(low[2], high[2]),
            _mm256_permute2x128_si256::<0x31>(low[3], high[3]),
        ]
    }
}
