//! AVX2 with FMA and F16C.
//!
//! Codes are widened to 16 bits and multiplied with the 16-bit activations in pairs, which one instruction adds in 32
//! bits. A block of activations is 32 codes in column order.

use std::arch::x86_64::*;

use super::unpack::unpack_rows;
use super::{bytes, floats};
use crate::kernels::activations::{BLOCK, CODE_MAX, CODES_BYTES, Group, TILE};
use crate::kernels::simd::by_format;
use crate::kernels::simd::formats::{self, Format};
use crate::kernels::simd::gemv::{self, Dot};
use crate::kernels::{Block, Gemv, Multiply, Ops, Panel, SideInput, SideTiles, Unpack};
use crate::quant::BlockType;

crate::kernels::rows::row_ops!(true, "avx2,fma,f16c");

pub(in crate::kernels) static OPS: Ops = Ops {
    quantize,
    gemv,
    unpack,
    multiply,
    float_gemv: floats::gemv,
    float_unpack: floats::unpack,
    float_multiply,
    side_rows,
    rows: &ROW_OPS,
};

/// Rows whose sums of 16 features are in registers at a time.
const ROWS_AT_ONCE: usize = 4;

/// Whether this CPU has what [`OPS`] needs.
pub(in crate::kernels) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

fn gemv(block_type: BlockType) -> Gemv {
    by_format!(block_type, gemv_rows)
}

fn unpack(block_type: BlockType) -> Unpack {
    by_format!(block_type, unpack_pairs)
}

fn multiply(block_type: BlockType) -> Multiply {
    by_format!(block_type, multiply_panel)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantize(values: &[f32], group: Group, row: usize) {
    for (block, values) in values.chunks_exact(BLOCK).enumerate() {
        let at = block * group.rows + row;
        // SAFETY: `values` has 32 elements; the group has room for this row.
        unsafe {
            let values: [__m256; 4] = std::array::from_fn(|part| _mm256_loadu_ps(values.as_ptr().add(part * 8)));
            let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
            let [a, b, c, d] = values.map(|values| _mm256_and_ps(values, magnitude));
            let largest = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
            let largest = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps::<1>(largest));
            let largest = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
            let scale = _mm_cvtss_f32(_mm_max_ss(largest, _mm_shuffle_ps::<1>(largest, largest))) / CODE_MAX;
            let inverse = _mm256_set1_ps(if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 });
            let [a, b, c, d] = values.map(|values| _mm256_cvtps_epi32(_mm256_mul_ps(values, inverse)));
            for (half, codes) in [_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)].into_iter().enumerate() {
                // Packing works within 128-bit halves: groups of 4 columns come out as 0 2 1 3.
                let codes = _mm256_permute4x64_epi64::<0b11_01_10_00>(codes);
                _mm256_store_si256(group.codes.add(at * CODES_BYTES + half * 32).cast(), codes);
            }
            let halves = [sum(_mm256_add_epi32(a, b)), sum(_mm256_add_epi32(c, d))];
            *group.scales.add(at) = scale;
            *group.sums.add(at) = scale * (halves[0] + halves[1]) as f32;
            *group.half_sums.add(at * 2) = scale * halves[0] as f32;
            *group.half_sums.add(at * 2 + 1) = scale * halves[1] as f32;
        }
    }
}

#[inline(always)]
unsafe fn sum(lanes: __m256i) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
        let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }
}

struct Avx2;

impl Dot for Avx2 {
    type Codes = __m256i;
    type Floats = __m256;
    type Sums = __m256;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn total(sums: __m256) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { bytes::sum(sums) }
    }

    #[inline(always)]
    unsafe fn add<const SUB: usize>(codes: __m256i, x: *const u8, factors: [f32; 2], sums: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let (first, second) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
            let x = [_mm256_load_si256(x.cast()), _mm256_load_si256(x.add(32).cast())];
            let first = _mm256_madd_epi16(_mm256_cvtepu8_epi16(first), x[0]);
            let second = _mm256_madd_epi16(_mm256_cvtepu8_epi16(second), x[1]);
            if SUB == 16 {
                let sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(first), _mm256_set1_ps(factors[0]), sums);
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(second), _mm256_set1_ps(factors[1]), sums)
            } else {
                let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(first, second));
                _mm256_fmadd_ps(dot, _mm256_set1_ps(factors[0]), sums)
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemv_rows<F: Format>(weights: *const u8, row_size_bytes: usize, x: Group, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { gemv::gemv_rows::<F, Avx2>(weights, row_size_bytes, x, out) }
}

unsafe fn unpack_pairs<F: Format>(weights: *const u8, row_size_bytes: usize, rows: usize, blocks: usize, panel: Panel) {
    // SAFETY: the caller's promise.
    unsafe { unpack_rows::<F, true>(weights, row_size_bytes, rows, blocks, panel) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_panel<F: Format>(panel: Panel, x: Group, out: &mut Block) {
    let mut row = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while x.rows - row >= ROWS_AT_ONCE {
            multiply_rows::<F, ROWS_AT_ONCE>(panel, x, row, out);
            row += ROWS_AT_ONCE;
        }
        match x.rows - row {
            3 => multiply_rows::<F, 3>(panel, x, row, out),
            2 => multiply_rows::<F, 2>(panel, x, row, out),
            1 => multiply_rows::<F, 1>(panel, x, row, out),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn multiply_rows<F: Format, const ROWS: usize>(panel: Panel, x: Group, first_row: usize, out: &mut Block) {
    let subs = BLOCK / F::SUB;
    // SAFETY: the panel and `x` have `blocks` blocks, and `x` has the rows.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        for at in 0..x.blocks {
            for sub in 0..subs {
                let first = at * subs + sub;
                let codes = panel.codes.add(first * F::SUB * TILE);
                let place = at * x.rows + first_row;
                let dots = dots::<F, ROWS>(codes, x.codes.add(place * CODES_BYTES + sub * F::SUB * 2));
                let (d, m) = (panel.d.add(first * panel.scale_stride), panel.m.add(first * panel.scale_stride));
                let d = [_mm256_loadu_ps(d), _mm256_loadu_ps(d.add(8))];
                let m = [_mm256_loadu_ps(m), _mm256_loadu_ps(m.add(8))];
                for row in 0..ROWS {
                    let place = place + row;
                    let x_scale = _mm256_set1_ps(*x.scales.add(place));
                    let x_sum = if F::SUB == 16 { *x.half_sums.add(place * 2 + sub) } else { *x.sums.add(place) };
                    for half in 0..2 {
                        let factor = _mm256_mul_ps(d[half], x_scale);
                        let sum = &mut sums[row][half];
                        *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[row][half]), factor, *sum);
                        *sum = _mm256_fmadd_ps(m[half], _mm256_set1_ps(x_sum), *sum);
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(&mut out[first_row..]) {
            _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[1]);
        }
    }
}

/// Dot products of a sub-block of 16 features with `ROWS` rows of `x`.
#[inline(always)]
unsafe fn dots<F: Format, const ROWS: usize>(codes: *const u8, x: *const u8) -> [[__m256i; 2]; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); 2]; ROWS];
        for step in 0..F::SUB / 2 {
            let weights = codes.add(step * TILE * 2).cast::<__m128i>();
            let weights =
                [_mm256_cvtepu8_epi16(_mm_load_si128(weights)), _mm256_cvtepu8_epi16(_mm_load_si128(weights.add(1)))];
            for (row, dots) in dots.iter_mut().enumerate() {
                let x = _mm256_set1_epi32(*x.add(row * CODES_BYTES).cast::<i32>().add(step));
                for (dot, weights) in dots.iter_mut().zip(weights) {
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(weights, x));
                }
            }
        }
        dots
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn float_multiply(panel: *const f32, x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut Block) {
    debug_assert!(x.len() >= (rows - 1) * stride + cols);
    for (index, out) in out[..rows].chunks_mut(ROWS_AT_ONCE).enumerate() {
        let x = &x[index * ROWS_AT_ONCE * stride..];
        // SAFETY: the panel has `cols · 16` values and `x` the rows of this chunk.
        unsafe {
            match out.len() {
                1 => float_multiply_rows::<1>(panel, x, stride, cols, out),
                2 => float_multiply_rows::<2>(panel, x, stride, cols, out),
                3 => float_multiply_rows::<3>(panel, x, stride, cols, out),
                _ => float_multiply_rows::<ROWS_AT_ONCE>(panel, x, stride, cols, out),
            }
        }
    }
}

/// # Safety
/// The panel has `cols · 16` values, and `x` and `out` have `ROWS` rows.
#[inline(always)]
unsafe fn float_multiply_rows<const ROWS: usize>(
    panel: *const f32,
    x: &[f32],
    stride: usize,
    cols: usize,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        for (sums, out) in sums.iter_mut().zip(&*out) {
            *sums = [_mm256_loadu_ps(out.as_ptr()), _mm256_loadu_ps(out.as_ptr().add(8))];
        }
        for col in 0..cols {
            let weights = [_mm256_loadu_ps(panel.add(col * TILE)), _mm256_loadu_ps(panel.add(col * TILE + 8))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*x.get_unchecked(row * stride + col));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm256_fmadd_ps(weights, x, *sum);
                }
            }
        }
        for (sums, out) in sums.iter().zip(out) {
            _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn side_rows(b: SideTiles, ax: SideInput, out: &mut [[f32; TILE]]) {
    debug_assert!(b.steps.len() == out.len() && b.codes.len() == out.len() * ax.runs.len());
    let step = _mm256_set1_ps(b.step * ax.step);
    let mut codes = b.codes.iter();
    for (steps, out) in b.steps.iter().zip(out) {
        // SAFETY: 64 codes of 16 outputs at a time; four codes of `ax` are one 64-bit number.
        unsafe {
            // Of four outputs each, in two sums.
            let mut dots = [_mm256_setzero_si256(); 4];
            for (ax, codes) in ax.runs.iter().zip(&mut codes) {
                let ax = _mm256_set1_epi64x(ax.codes.as_ptr().cast::<i64>().read());
                for (quad, dot) in dots.iter_mut().enumerate() {
                    let b = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.as_ptr().cast::<__m128i>().add(quad)));
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(b, ax));
                }
            }
            for half in 0..2 {
                let dot = _mm256_hadd_epi32(dots[half * 2], dots[half * 2 + 1]);
                let dot = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(dot));
                let steps = _mm256_cvtph_ps(_mm_loadu_si128(steps.as_ptr().add(half * 8).cast()));
                let out = out.as_mut_ptr().add(half * 8);
                _mm256_storeu_ps(out, _mm256_fmadd_ps(dot, _mm256_mul_ps(steps, step), _mm256_loadu_ps(out)));
            }
        }
    }
}
