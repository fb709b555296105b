//! One-row products of the 4- and 5-bit block types with AVX-512: four blocks at a time.
//!
//! Two vectors hold four blocks. One permutation gathers their packed codes, 16 bytes per block, each block in its
//! quarter of the vector; low halves are then the codes of columns 0–15, high halves those of 16–31. So unpacking,
//! converting and scaling cost an instruction per four blocks, and all but the last addition stay in the lanes.
//!
//! The activations lie accordingly, see [`place`]: per four blocks 64 high bytes of columns 0–15, 64 high bytes of
//! columns 16–31, then the low bytes in the same order.

use std::arch::x86_64::*;

use crate::kernels::activations::{CODES_BYTES, Group};
use crate::kernels::simd::formats::{Format, Q4_0, Q4_1, Q5_0, Q5_1};

/// Blocks of 32 weights per step.
const BLOCKS: usize = 4;
/// How far ahead of their use weights are fetched. The arithmetic is dense enough that the loads alone do not look
/// far enough ahead: without this, reading from memory is a third slower.
const PREFETCH_BYTES: usize = 4096;

/// Where a block type's parts are.
pub(super) trait Quads: Format {
    /// The 16 bytes of packed codes.
    const CODES_AT: usize;
    /// The 32 fifth bits.
    const FIFTH_BITS_AT: Option<usize>;
    /// `m = -offset · d`; without one, `m` follows `d`.
    const OFFSET: Option<f32>;

    /// Where the words of the four blocks' packed codes are in the two vectors.
    const CODES: [i16; 32] = {
        let mut index = [0; 32];
        let mut at = 0;
        while at < 32 {
            index[at] = word(Self::SIZE_BYTES, at / 8 * Self::SIZE_BYTES + Self::CODES_AT + at % 8 * 2);
            at += 1;
        }
        index
    };
    /// Where `d` of the four blocks is, then `m`.
    const SCALES: [i16; 8] = pairs(Self::SIZE_BYTES, 0);
    /// Where the fifth bits of columns 0–15 of the four blocks are, then of columns 16–31.
    const FIFTH_BITS: [i16; 8] = match Self::FIFTH_BITS_AT {
        Some(at) => pairs(Self::SIZE_BYTES, at),
        None => [0; 8],
    };
}

impl Quads for Q4_0 {
    const CODES_AT: usize = 2;
    const FIFTH_BITS_AT: Option<usize> = None;
    const OFFSET: Option<f32> = Some(8.0);
}

impl Quads for Q4_1 {
    const CODES_AT: usize = 4;
    const FIFTH_BITS_AT: Option<usize> = None;
    const OFFSET: Option<f32> = None;
}

impl Quads for Q5_0 {
    const CODES_AT: usize = 6;
    const FIFTH_BITS_AT: Option<usize> = Some(2);
    const OFFSET: Option<f32> = Some(16.0);
}

impl Quads for Q5_1 {
    const CODES_AT: usize = 8;
    const FIFTH_BITS_AT: Option<usize> = Some(4);
    const OFFSET: Option<f32> = None;
}

/// The index of the word at byte `at` of four blocks, of which the first vector holds the first 64 bytes and the
/// second the last 64.
const fn word(size_bytes: usize, at: usize) -> i16 {
    let second = BLOCKS * size_bytes - 64;
    if at < 64 { (at / 2) as i16 } else { (32 + (at - second) / 2) as i16 }
}

/// The words at byte `at` of the four blocks, then the words that follow those.
const fn pairs(size_bytes: usize, at: usize) -> [i16; 8] {
    let mut index = [0; 8];
    let mut lane = 0;
    while lane < 8 {
        index[lane] = word(size_bytes, lane % 4 * size_bytes + at + lane / 4 * 2);
        lane += 1;
    }
    index
}

/// Where the 16 codes of `part` (high bytes of columns 0–15 and 16–31, low bytes of both) of a block are.
pub(super) fn place(block: usize, part: usize) -> usize {
    block / BLOCKS * BLOCKS * CODES_BYTES + part * 64 + block % BLOCKS * 16
}

/// # Safety
/// As of every [`Gemv`](crate::kernels::Gemv); the codes of `x` are followed by the same codes in the order of
/// [`place`], whole steps of them; the CPU has the instructions of this module's parent.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn gemv_rows<F: Quads>(weights: *const u8, row_size_bytes: usize, x: Group, out: &mut [f32]) {
    let (pairs, last) = out.as_chunks_mut();
    // SAFETY: the caller's promise covers every row.
    unsafe {
        for (index, out) in pairs.iter_mut().enumerate() {
            rows::<F, 2>(weights.add(index * 2 * row_size_bytes), row_size_bytes, x, out);
        }
        for out in last {
            rows::<F, 1>(weights.add(pairs.len() * 2 * row_size_bytes), row_size_bytes, x, std::array::from_mut(out));
        }
    }
}

/// `ROWS` rows share the loads of `x`. They are read side by side, which CPUs foresee badly; so the fetching ahead goes
/// through memory in its order.
///
/// # Safety
/// As [`gemv_rows`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn rows<F: Quads, const ROWS: usize>(
    weights: *const u8,
    row_size_bytes: usize,
    x: Group,
    out: &mut [f32; ROWS],
) {
    let (whole, rest) = (x.blocks / BLOCKS, x.blocks % BLOCKS);
    let (size_bytes, second_at) = (BLOCKS * F::SIZE_BYTES, BLOCKS * F::SIZE_BYTES - 64);
    // SAFETY: the caller's promise; the masks leave out what is beyond the row.
    unsafe {
        let x_codes = x.codes.add(x.blocks * CODES_BYTES);
        let mut sums = [Sums { products: _mm512_setzero_ps(), offsets: _mm_setzero_ps() }; ROWS];
        for step in 0..whole {
            let at = step * BLOCKS;
            let x = QuadInput {
                codes: x_codes.add(at * CODES_BYTES),
                scales: _mm_loadu_ps(x.scales.add(at)),
                sums: _mm_loadu_ps(x.sums.add(at)),
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                let ahead = weights.wrapping_add(PREFETCH_BYTES + (step * ROWS + row) * size_bytes);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
                let blocks = weights.add(row * row_size_bytes + step * size_bytes);
                let blocks = [_mm512_loadu_si512(blocks.cast()), _mm512_loadu_si512(blocks.add(second_at).cast())];
                *sums = add::<F>(blocks, x, *sums);
            }
        }
        if rest > 0 {
            let at = whole * BLOCKS;
            let lanes = low_bits(rest) as __mmask8;
            let x = QuadInput {
                codes: x_codes.add(at * CODES_BYTES),
                scales: _mm_maskz_loadu_ps(lanes, x.scales.add(at)),
                sums: _mm_maskz_loadu_ps(lanes, x.sums.add(at)),
            };
            let rest_bytes = rest * F::SIZE_BYTES;
            let masks = [low_bits(rest_bytes), low_bits(rest_bytes.saturating_sub(second_at))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let blocks = weights.add(row * row_size_bytes + whole * size_bytes);
                let second = blocks.wrapping_add(second_at);
                let blocks = [
                    _mm512_maskz_loadu_epi8(masks[0], blocks.cast()),
                    _mm512_maskz_loadu_epi8(masks[1], second.cast()),
                ];
                *sums = add::<F>(blocks, x, *sums);
            }
        }
        let factor = _mm_set1_ps(F::OFFSET.map_or(1.0, |offset| -offset));
        for (sums, out) in sums.iter().zip(out) {
            let offsets = _mm512_zextps128_ps512(_mm_mul_ps(sums.offsets, factor));
            *out = _mm512_reduce_add_ps(_mm512_add_ps(sums.products, offsets));
        }
    }
}

/// Four blocks of the input.
#[derive(Clone, Copy)]
struct QuadInput {
    /// 256 bytes, aligned to cache lines.
    codes: *const u8,
    scales: __m128,
    sums: __m128,
}

#[derive(Clone, Copy)]
struct Sums {
    /// `Σ d · scale · dot(codes, x)`, spread over the lanes.
    products: __m512,
    /// `Σ m · Σx`, or `Σ d · Σx` where `m` is a multiple of `d`.
    offsets: __m128,
}

/// Adds the products of four blocks.
///
/// # Safety
/// The codes of `x` can be read; the CPU has the instruction sets.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn add<F: Quads>([first, second]: [__m512i; 2], x: QuadInput, sums: Sums) -> Sums {
    // SAFETY: the index tables have the sizes of the vectors; `x` as the caller promises.
    unsafe {
        let index = _mm512_loadu_si512(F::CODES.as_ptr().cast());
        let packed = _mm512_permutex2var_epi16(first, index, second);
        let nibble = _mm512_set1_epi8(15);
        let mut low = _mm512_and_si512(packed, nibble);
        let mut high = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), nibble);
        if F::FIFTH_BITS_AT.is_some() {
            let bits = words(first, second, &F::FIFTH_BITS);
            let sixteen = _mm512_set1_epi8(16);
            low = _mm512_mask_add_epi8(low, _mm_cvtsi128_si64(bits) as __mmask64, low, sixteen);
            high = _mm512_mask_add_epi8(high, _mm_extract_epi64::<1>(bits) as __mmask64, high, sixteen);
        }
        let part = |part: usize| _mm512_load_si512(x.codes.add(part * 64).cast());
        let dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, part(0));
        let dot = _mm512_slli_epi32::<8>(_mm512_dpbusd_epi32(dot, high, part(1)));
        let dot = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(dot, low, part(2)), high, part(3));

        let d_m = _mm256_cvtph_ps(words(first, second, &F::SCALES));
        let d = _mm256_castps256_ps128(d_m);
        let m = if F::OFFSET.is_some() { d } else { _mm256_extractf128_ps::<1>(d_m) };
        // Block i's factor in its quarter.
        let quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let factors = _mm512_permutexvar_ps(quarters, _mm512_castps128_ps512(_mm_mul_ps(d, x.scales)));
        Sums {
            products: _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factors, sums.products),
            offsets: _mm_fmadd_ps(m, x.sums, sums.offsets),
        }
    }
}

/// Eight words of two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn words(first: __m512i, second: __m512i, index: &[i16; 8]) -> __m128i {
    // SAFETY: eight words.
    let lanes = _mm512_castsi128_si512(unsafe { _mm_loadu_si128(index.as_ptr().cast()) });
    if index.iter().all(|word| *word < 32) {
        return _mm512_castsi512_si128(_mm512_permutexvar_epi16(lanes, first));
    }
    _mm512_castsi512_si128(_mm512_permutex2var_epi16(first, lanes, second))
}

/// The lowest `count` bits, all from 64 on.
fn low_bits(count: usize) -> u64 {
    if count < 64 { (1 << count) - 1 } else { u64::MAX }
}
