//! AVX-512 with VNNI.
//!
//! The dot instruction multiplies unsigned with signed bytes, so an activation code is two of those, `256 · high + low`:
//! a block of activations is 32 high bytes, then 32 low bytes. A row that is alone has them in a second order too, for
//! [`quads`].

use std::arch::x86_64::*;

use super::unpack::unpack_rows;
use super::{bytes, floats, quads};
use crate::kernels::activations::{BLOCK, CODE_MAX, CODES_BYTES, GROUP, Group, TILE};
use crate::kernels::formats::sub_len;
use crate::kernels::simd::by_format;
use crate::kernels::simd::formats::{self, Format};
use crate::kernels::simd::gemv::{self, Dot};
use crate::kernels::{Block, Gemv, Multiply, Ops, Panel, SideInput, SideTiles, Unpack};
use crate::quant::BlockType;

crate::kernels::rows::row_ops!(true, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq");

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

/// Whether this CPU has what [`OPS`] needs.
pub(in crate::kernels) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

fn gemv(block_type: BlockType) -> Gemv {
    match block_type {
        BlockType::Q4_0 => quads::gemv_rows::<formats::Q4_0>,
        BlockType::Q4_1 => quads::gemv_rows::<formats::Q4_1>,
        BlockType::Q5_0 => quads::gemv_rows::<formats::Q5_0>,
        BlockType::Q5_1 => quads::gemv_rows::<formats::Q5_1>,
        block_type => by_format!(block_type, gemv_rows),
    }
}

fn unpack(block_type: BlockType) -> Unpack {
    by_format!(block_type, unpack_fours)
}

fn multiply(block_type: BlockType) -> Multiply {
    if sub_len(block_type) == 16 { multiply_panel::<16> } else { multiply_panel::<32> }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn quantize(values: &[f32], group: Group, row: usize) {
    for (block, values) in values.chunks_exact(BLOCK).enumerate() {
        let at = block * group.rows + row;
        // SAFETY: `values` has 32 elements; the group has room for this row.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)));
            let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
            let scale = largest / CODE_MAX;
            let inverse = _mm512_set1_ps(if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 });
            let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
            let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
            let codes = group.codes.add(at * CODES_BYTES);
            for (half, values) in [low, high].into_iter().enumerate() {
                // The low byte, as a signed number, leaves a multiple of 256.
                let rounded = _mm512_srai_epi32::<8>(_mm512_add_epi32(values, _mm512_set1_epi32(128)));
                for (part, bytes) in
                    [_mm512_cvtepi32_epi8(rounded), _mm512_cvtepi32_epi8(values)].into_iter().enumerate()
                {
                    _mm_store_si128(codes.add(part * BLOCK + half * 16).cast(), bytes);
                    if group.rows == 1 {
                        let second = group.codes.add(group.blocks * CODES_BYTES);
                        _mm_store_si128(second.add(quads::place(block, part * 2 + half)).cast(), bytes);
                    }
                }
            }
            let halves = [_mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high)];
            *group.scales.add(at) = scale;
            *group.sums.add(at) = scale * (halves[0] + halves[1]) as f32;
            *group.half_sums.add(at * 2) = scale * halves[0] as f32;
            *group.half_sums.add(at * 2 + 1) = scale * halves[1] as f32;
        }
    }
}

struct Vnni;

impl Dot for Vnni {
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
            let (high, low) = (_mm256_load_si256(x.cast()), _mm256_load_si256(x.add(BLOCK).cast()));
            let high = _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, high);
            let dot = _mm256_dpbusd_epi32(_mm256_slli_epi32::<8>(high), codes, low);
            let factor = if SUB == 16 {
                _mm256_set_m128(_mm_set1_ps(factors[1]), _mm_set1_ps(factors[0]))
            } else {
                _mm256_set1_ps(factors[0])
            };
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, sums)
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn gemv_rows<F: Format>(weights: *const u8, row_size_bytes: usize, x: Group, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { gemv::gemv_rows::<F, Vnni>(weights, row_size_bytes, x, out) }
}

unsafe fn unpack_fours<F: Format>(weights: *const u8, row_size_bytes: usize, rows: usize, blocks: usize, panel: Panel) {
    // SAFETY: the caller's promise.
    unsafe { unpack_rows::<F, false>(weights, row_size_bytes, rows, blocks, panel) }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn multiply_panel<const SUB: usize>(panel: Panel, x: Group, out: &mut Block) {
    // SAFETY: the caller's promise.
    unsafe {
        match x.rows {
            1 => multiply_rows::<SUB, 1>(panel, x, out),
            2 => multiply_rows::<SUB, 2>(panel, x, out),
            3 => multiply_rows::<SUB, 3>(panel, x, out),
            4 => multiply_rows::<SUB, 4>(panel, x, out),
            5 => multiply_rows::<SUB, 5>(panel, x, out),
            6 => multiply_rows::<SUB, 6>(panel, x, out),
            7 => multiply_rows::<SUB, 7>(panel, x, out),
            _ => multiply_rows::<SUB, 8>(panel, x, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn multiply_rows<const SUB: usize, const ROWS: usize>(panel: Panel, x: Group, out: &mut Block) {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    let (subs, steps) = (BLOCK / SUB, SUB / 4);
    for at in 0..x.blocks {
        for sub in 0..subs {
            // SAFETY: the panel and `x` have `blocks` blocks.
            unsafe {
                let first = at * subs + sub;
                let scales = first * panel.scale_stride;
                let (d, m) = (_mm512_loadu_ps(panel.d.add(scales)), _mm512_loadu_ps(panel.m.add(scales)));
                let codes = panel.codes.add(first * SUB * TILE);
                for row in 0..ROWS {
                    let place = at * ROWS + row;
                    let high = x.codes.add(place * CODES_BYTES + sub * SUB).cast::<i32>();
                    let low = high.add(BLOCK / 4);
                    let (mut dot, mut low_dot) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                    for step in 0..steps {
                        let weights = _mm512_load_si512(codes.add(step * 64).cast());
                        dot = _mm512_dpbusd_epi32(dot, weights, _mm512_set1_epi32(*high.add(step)));
                        low_dot = _mm512_dpbusd_epi32(low_dot, weights, _mm512_set1_epi32(*low.add(step)));
                    }
                    let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(dot), low_dot);
                    let x_sum = if SUB == 16 { *x.half_sums.add(place * 2 + sub) } else { *x.sums.add(place) };
                    let factor = _mm512_mul_ps(d, _mm512_set1_ps(*x.scales.add(place)));
                    sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, sums[row]);
                    sums[row] = _mm512_fmadd_ps(m, _mm512_set1_ps(x_sum), sums[row]);
                }
            }
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        // SAFETY: a row of the block has 16 values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sums) };
    }
}

#[target_feature(enable = "avx2,fma,avx512f")]
unsafe fn float_multiply(panel: *const f32, x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut Block) {
    debug_assert!((1..=GROUP).contains(&rows) && x.len() >= (rows - 1) * stride + cols);
    let mut sums = [_mm512_setzero_ps(); GROUP];
    for (sum, out) in sums.iter_mut().zip(&*out) {
        // SAFETY: a row of the block has 16 values.
        *sum = unsafe { _mm512_loadu_ps(out.as_ptr()) };
    }
    for col in 0..cols {
        // SAFETY: the panel has `cols · 16` values, and `x` the rows.
        unsafe {
            let weights = _mm512_loadu_ps(panel.add(col * TILE));
            for (row, sum) in sums.iter_mut().enumerate() {
                let x = x.get_unchecked(row.min(rows - 1) * stride + col);
                *sum = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x), *sum);
            }
        }
    }
    for (sum, out) in sums.iter().zip(out).take(rows) {
        // SAFETY: a row of the block has 16 values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vnni")]
unsafe fn side_rows(b: SideTiles, ax: SideInput, out: &mut [[f32; TILE]]) {
    debug_assert!(b.steps.len() == out.len() && b.codes.len() == out.len() * ax.runs.len());
    let step = _mm512_set1_ps(b.step * ax.step);
    // The codes of `b` become unsigned by an offset of 128, which this takes off again.
    let offset = ax.runs.iter().flat_map(|run| run.codes).map(|code| i32::from(code) * -128).fold(0, i32::wrapping_add);
    let mut codes = b.codes.iter();
    for (steps, out) in b.steps.iter().zip(out) {
        // SAFETY: 64 codes of 16 outputs at a time; four bytes of `ax` are one 32-bit number.
        unsafe {
            let (mut high, mut low) = (_mm512_setzero_si512(), _mm512_set1_epi32(offset));
            for (ax, codes) in ax.runs.iter().zip(&mut codes) {
                let b = _mm512_xor_si512(_mm512_loadu_si512(codes.as_ptr().cast()), _mm512_set1_epi8(i8::MIN));
                high = _mm512_dpbusd_epi32(high, b, _mm512_set1_epi32(ax.high.as_ptr().cast::<i32>().read()));
                low = _mm512_dpbusd_epi32(low, b, _mm512_set1_epi32(ax.low.as_ptr().cast::<i32>().read()));
            }
            let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(high), low));
            let factors = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(steps.as_ptr().cast())), step);
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_fmadd_ps(dot, factors, _mm512_loadu_ps(out.as_ptr())));
        }
    }
}
