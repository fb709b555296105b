//! The inner loops with AVX2, and with AVX-512 VNNI. Only `round_avx2` and `round_avx512` name the types, where the CPU
//! has what they need.

use std::arch::x86_64::*;

use super::factors::{TILE, Tile};
use super::lanes::{CHUNK, Lanes, Moved, Moves, Promotion, block_step};
use super::total;
use crate::quant::F16;
use crate::quant::legacy::BlockQ8_0;

/// With AVX2, FMA and F16C.
pub(super) struct Avx2;

/// With AVX-512 F, BW, DQ, VL and VNNI.
pub(super) struct Avx512Vnni;

macro_rules! lanes {
    ($name:ident, $module:ident) => {
        impl Lanes for $name {
            #[inline(always)]
            fn sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], out: &mut [i32]) {
                // SAFETY: see the module.
                unsafe { $module::sums::<R>(a, b, out) }
            }

            #[inline(always)]
            fn shifted_sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], shifts: [u32; R], out: &mut [i16]) {
                // SAFETY: see the module.
                unsafe { $module::shifted_sums::<R>(a, b, shifts, out) }
            }

            #[inline(always)]
            fn move_codes<const GROUP: usize>(codes: &mut [u8], row: &Moves<'_>) -> Moved {
                // SAFETY: see the module.
                unsafe { $module::move_codes::<GROUP>(codes, row) }
            }

            #[inline(always)]
            fn promote<const GROUP: usize>(row: &Promotion<'_>, out: &mut [BlockQ8_0]) -> Moved {
                // SAFETY: see the module.
                unsafe { $module::promote::<GROUP>(row, out) }
            }
        }
    };
}
lanes!(Avx2, avx2);
lanes!(Avx512Vnni, avx512);

/// Both halves of a register's words.
#[inline(always)]
fn word(pair: [i16; 2]) -> i32 {
    i32::from(pair[1]) << 16 | i32::from(pair[0]) & 0xffff
}

mod avx2 {
    use super::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], out: &mut [i32]) {
        let (pairs, cols) = (b.len() / R, out.len() / R);
        for (index, tiles) in a.chunks_exact(pairs).enumerate() {
            for (r, sums) in tile_sums::<R>(tiles, b).iter().enumerate() {
                let out = out[r * cols + index * TILE..][..TILE].as_chunks_mut::<8>().0;
                for (out, sum) in out.iter_mut().zip(sums) {
                    // SAFETY: eight integers are 32 bytes.
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), *sum) }
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn shifted_sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], shifts: [u32; R], out: &mut [i16]) {
        let (pairs, cols) = (b.len() / R, out.len() / R);
        for (index, tiles) in a.chunks_exact(pairs).enumerate() {
            for (r, (sums, shift)) in tile_sums::<R>(tiles, b).iter().zip(shifts).enumerate() {
                let half = _mm256_set1_epi32(1 << shift >> 1);
                let shift = _mm_cvtsi32_si128(shift as i32);
                let shifted = sums.map(|sum| _mm256_sra_epi32(_mm256_add_epi32(sum, half), shift));
                // Packing takes 128 bits of each in turn.
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(shifted[0], shifted[1]));
                let out = &mut out[r * cols + index * TILE..][..TILE];
                // SAFETY: 16 short integers are 32 bytes.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), packed) }
            }
        }
    }

    /// `[R, 16]`
    #[inline]
    #[target_feature(enable = "avx2")]
    fn tile_sums<const R: usize>(tiles: &[Tile], b: &[[i16; 2]]) -> [[__m256i; 2]; R] {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        for (pair, Tile(tile)) in tiles.iter().enumerate() {
            let tile = tile.as_ptr().cast::<__m256i>();
            // SAFETY: a tile is 64 bytes, aligned.
            let tile = unsafe { [_mm256_load_si256(tile), _mm256_load_si256(tile.add(1))] };
            for (r, sums) in sums.iter_mut().enumerate() {
                let b = _mm256_set1_epi32(word(b[r * tiles.len() + pair]));
                for (sum, tile) in sums.iter_mut().zip(tile) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(tile, b));
                }
            }
        }
        sums
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn move_codes<const GROUP: usize>(codes: &mut [u8], row: &Moves<'_>) -> Moved {
        let (low, high) = (_mm256_set1_epi16(row.low), _mm256_set1_epi16(row.high));
        let (mut kept, mut square) = ([_mm256_setzero_ps(); 2], [_mm256_setzero_ps(); 2]);
        let groups = codes.chunks_exact_mut(GROUP).zip(row.deltas.chunks_exact(GROUP));
        for ((codes, deltas), (factor, step)) in groups.zip(row.factors.iter().zip(row.steps)) {
            let multiplier = _mm256_set1_epi32(word(factor.multiplier));
            let half = _mm256_set1_epi32(word(factor.half));
            let shift = _mm_cvtsi32_si128(i32::from(factor.shift[0]));
            let (step, step_square) = (_mm256_set1_ps(*step), _mm256_set1_ps(step * step));
            let parts = codes.as_chunks_mut::<16>().0.iter_mut().zip(deltas.as_chunks::<16>().0);
            for (i, (codes, delta)) in parts.enumerate() {
                // SAFETY: 16 deltas are 32 bytes, 16 codes 16.
                let (delta, old) =
                    unsafe { (_mm256_loadu_si256(delta.as_ptr().cast()), _mm_loadu_si128(codes.as_ptr().cast())) };
                let steps = _mm256_sra_epi16(_mm256_add_epi16(_mm256_mulhi_epi16(delta, multiplier), half), shift);
                let old = _mm256_cvtepu8_epi16(old);
                let new = _mm256_min_epi16(_mm256_add_epi16(old, steps), _mm256_max_epi16(high, old));
                let new = _mm256_max_epi16(new, low);
                let taken = _mm256_sub_epi16(new, old);
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(new, new));
                // SAFETY: as above.
                unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm256_castsi256_si128(packed)) };
                let lane = i % 2;
                let product = _mm256_cvtepi32_ps(_mm256_madd_epi16(taken, delta));
                kept[lane] = _mm256_fmadd_ps(product, step, kept[lane]);
                let product = _mm256_cvtepi32_ps(_mm256_madd_epi16(taken, taken));
                square[lane] = _mm256_fmadd_ps(product, step_square, square[lane]);
            }
        }
        Moved { kept: total(lanes(kept)), square: total(lanes(square)) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn promote<const GROUP: usize>(row: &Promotion<'_>, out: &mut [BlockQ8_0]) -> Moved {
        let (unit, mu, zero) =
            (_mm256_set1_ps(row.unit), _mm256_set1_ps(row.mu), _mm256_set1_epi32(i32::from(row.zero)));
        let sign = _mm256_set1_ps(-0.0);
        let almost_half = _mm256_set1_ps(0.5_f32.next_down());
        let (mut kept, mut error) = ([_mm256_setzero_ps(); 2], [_mm256_setzero_ps(); 2]);
        let blocks = row.codes.as_chunks::<CHUNK>().0.iter().zip(row.sums.as_chunks::<CHUNK>().0).zip(out);
        for (index, ((codes, sums), block)) in blocks.enumerate() {
            let (mut bases, mut deltas, mut wanted) =
                ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4]);
            let mut largest = _mm256_setzero_ps();
            for i in 0..4 {
                // SAFETY: a block has 32 values, 8 for each `i`.
                let (sum, code) = unsafe {
                    (_mm256_loadu_si256(sums.as_ptr().add(8 * i).cast()), _mm_loadu_si64(codes.as_ptr().add(8 * i)))
                };
                let group = (index * CHUNK + 8 * i) / GROUP;
                let code = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(code), zero));
                let scaled = _mm256_mul_ps(_mm256_set1_ps(row.steps[group]), code);
                bases[i] = _mm256_add_ps(scaled, _mm256_set1_ps(row.mins[group]));
                deltas[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), unit);
                wanted[i] = _mm256_fmadd_ps(mu, deltas[i], bases[i]);
                // The second operand is what is kept beside a NaN.
                largest = _mm256_max_ps(_mm256_andnot_ps(sign, wanted[i]), largest);
            }
            let (step, inverse) = block_step(max(largest));
            let half = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(step));
            block.d = F16::from_bits(_mm_cvtsi128_si32(half) as u16);
            let (step, inverse) = (_mm256_broadcastss_ps(_mm_cvtph_ps(half)), _mm256_set1_ps(inverse));
            let mut codes = [_mm256_setzero_si256(); 4];
            for i in 0..4 {
                // To nearest, halves away from zero.
                let scaled = _mm256_mul_ps(wanted[i], inverse);
                let away = _mm256_or_ps(_mm256_and_ps(scaled, sign), almost_half);
                codes[i] = _mm256_cvttps_epi32(_mm256_add_ps(scaled, away));
                let change = _mm256_fmsub_ps(_mm256_cvtepi32_ps(codes[i]), step, bases[i]);
                kept[i % 2] = _mm256_fmadd_ps(deltas[i], change, kept[i % 2]);
                let miss = _mm256_sub_ps(change, deltas[i]);
                error[i % 2] = _mm256_fmadd_ps(miss, miss, error[i % 2]);
            }
            let codes =
                _mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]), _mm256_packs_epi32(codes[2], codes[3]));
            // Packing twice leaves the words in the order 0 2 4 6 1 3 5 7.
            let codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            // SAFETY: a block has 32 codes.
            unsafe { _mm256_storeu_si256(block.qs.as_mut_ptr().cast(), codes) };
        }
        Moved { kept: total(lanes(kept)), square: total(lanes(error)) }
    }

    #[target_feature(enable = "avx2")]
    fn lanes(values: [__m256; 2]) -> [f32; 16] {
        let mut lanes = [0.0; 16];
        // SAFETY: 16 floats are two registers.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), values[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), values[1]);
        }
        lanes
    }

    #[target_feature(enable = "avx2")]
    fn max(values: __m256) -> f32 {
        let four = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps::<1>(values));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}

mod avx512 {
    use super::*;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], out: &mut [i32]) {
        let (pairs, cols) = (b.len() / R, out.len() / R);
        for (index, tiles) in a.chunks_exact(2 * pairs).enumerate() {
            for (r, sums) in tile_sums::<R>(tiles, b).iter().enumerate() {
                let out = out[r * cols + index * 2 * TILE..][..2 * TILE].as_chunks_mut::<16>().0;
                for (out, sum) in out.iter_mut().zip(sums) {
                    // SAFETY: 16 integers are 64 bytes.
                    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *sum) }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn shifted_sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], shifts: [u32; R], out: &mut [i16]) {
        let (pairs, cols) = (b.len() / R, out.len() / R);
        // Packing takes 128 bits of each in turn.
        let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        for (index, tiles) in a.chunks_exact(2 * pairs).enumerate() {
            for (r, (sums, shift)) in tile_sums::<R>(tiles, b).iter().zip(shifts).enumerate() {
                let half = _mm512_set1_epi32(1 << shift >> 1);
                let shift = _mm_cvtsi32_si128(shift as i32);
                let shifted = sums.map(|sum| _mm512_sra_epi32(_mm512_add_epi32(sum, half), shift));
                let packed = _mm512_permutexvar_epi64(order, _mm512_packs_epi32(shifted[0], shifted[1]));
                let out = &mut out[r * cols + index * 2 * TILE..][..2 * TILE];
                // SAFETY: 32 short integers are 64 bytes.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), packed) }
            }
        }
    }

    /// `[R, 32]` of two neighbouring tiles' pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn tile_sums<const R: usize>(tiles: &[Tile], b: &[[i16; 2]]) -> [[__m512i; 2]; R] {
        let pairs = tiles.len() / 2;
        let (left, right) = tiles.split_at(pairs);
        let mut sums = [[_mm512_setzero_si512(); 2]; R];
        for (pair, (Tile(left), Tile(right))) in left.iter().zip(right).enumerate() {
            // SAFETY: a tile is 64 bytes, aligned.
            let tile = unsafe { [_mm512_load_si512(left.as_ptr().cast()), _mm512_load_si512(right.as_ptr().cast())] };
            for (r, sums) in sums.iter_mut().enumerate() {
                let b = _mm512_set1_epi32(word(b[r * pairs + pair]));
                for (sum, tile) in sums.iter_mut().zip(tile) {
                    *sum = _mm512_dpwssd_epi32(*sum, tile, b);
                }
            }
        }
        sums
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    pub(super) fn move_codes<const GROUP: usize>(codes: &mut [u8], row: &Moves<'_>) -> Moved {
        if GROUP < CHUNK {
            return avx2::move_codes::<GROUP>(codes, row);
        }
        let (low, high) = (_mm512_set1_epi16(row.low), _mm512_set1_epi16(row.high));
        let (mut kept, mut square) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let groups = codes.chunks_exact_mut(GROUP).zip(row.deltas.chunks_exact(GROUP));
        for ((codes, deltas), (factor, step)) in groups.zip(row.factors.iter().zip(row.steps)) {
            let multiplier = _mm512_set1_epi32(word(factor.multiplier));
            let half = _mm512_set1_epi32(word(factor.half));
            let shift = _mm512_set1_epi32(word(factor.shift));
            let (step, step_square) = (_mm512_set1_ps(*step), _mm512_set1_ps(step * step));
            let parts = codes.as_chunks_mut::<CHUNK>().0.iter_mut().zip(deltas.as_chunks::<CHUNK>().0);
            for (codes, delta) in parts {
                // SAFETY: 32 deltas are 64 bytes, 32 codes 32.
                let (delta, old) =
                    unsafe { (_mm512_loadu_si512(delta.as_ptr().cast()), _mm256_loadu_si256(codes.as_ptr().cast())) };
                let steps = _mm512_srav_epi16(_mm512_add_epi16(_mm512_mulhi_epi16(delta, multiplier), half), shift);
                let old = _mm512_cvtepu8_epi16(old);
                let new = _mm512_min_epi16(_mm512_add_epi16(old, steps), _mm512_max_epi16(high, old));
                let new = _mm512_max_epi16(new, low);
                let taken = _mm512_sub_epi16(new, old);
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(new)) };
                let product = _mm512_cvtepi32_ps(_mm512_madd_epi16(taken, delta));
                kept = _mm512_fmadd_ps(product, step, kept);
                let product = _mm512_cvtepi32_ps(_mm512_madd_epi16(taken, taken));
                square = _mm512_fmadd_ps(product, step_square, square);
            }
        }
        Moved { kept: total(lanes(kept)), square: total(lanes(square)) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn promote<const GROUP: usize>(row: &Promotion<'_>, out: &mut [BlockQ8_0]) -> Moved {
        let (unit, mu, zero) =
            (_mm512_set1_ps(row.unit), _mm512_set1_ps(row.mu), _mm512_set1_epi32(i32::from(row.zero)));
        let sign = _mm512_set1_ps(-0.0);
        let almost_half = _mm512_set1_ps(0.5_f32.next_down());
        let (mut kept, mut error) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let blocks = row.codes.as_chunks::<CHUNK>().0.iter().zip(row.sums.as_chunks::<CHUNK>().0).zip(out);
        for (index, ((codes, sums), block)) in blocks.enumerate() {
            // SAFETY: a block has 32 sums and codes.
            let (sums, codes) = unsafe {
                let (sums, codes) = (sums.as_ptr().cast::<__m512i>(), codes.as_ptr().cast::<__m128i>());
                (
                    [_mm512_loadu_si512(sums), _mm512_loadu_si512(sums.add(1))],
                    [_mm_loadu_si128(codes), _mm_loadu_si128(codes.add(1))],
                )
            };
            let mut base = [_mm512_setzero_ps(); 2];
            for i in 0..2 {
                let group = (index * CHUNK + 16 * i) / GROUP;
                let code = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(codes[i]), zero));
                let scaled = _mm512_mul_ps(_mm512_set1_ps(row.steps[group]), code);
                base[i] = _mm512_add_ps(scaled, _mm512_set1_ps(row.mins[group]));
            }
            let delta = sums.map(|sum| _mm512_mul_ps(_mm512_cvtepi32_ps(sum), unit));
            let wanted = [_mm512_fmadd_ps(mu, delta[0], base[0]), _mm512_fmadd_ps(mu, delta[1], base[1])];
            // The second operand is what is kept beside a NaN.
            let largest = _mm512_max_ps(_mm512_abs_ps(wanted[0]), _mm512_setzero_ps());
            let largest = _mm512_max_ps(_mm512_abs_ps(wanted[1]), largest);
            let (step, inverse) = block_step(_mm512_reduce_max_ps(largest));
            let half = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(step));
            block.d = F16::from_bits(_mm_cvtsi128_si32(half) as u16);
            let (step, inverse) = (_mm512_broadcastss_ps(_mm_cvtph_ps(half)), _mm512_set1_ps(inverse));
            for i in 0..2 {
                // To nearest, halves away from zero.
                let scaled = _mm512_mul_ps(wanted[i], inverse);
                let away = _mm512_or_ps(_mm512_and_ps(scaled, sign), almost_half);
                let codes = _mm512_cvttps_epi32(_mm512_add_ps(scaled, away));
                // SAFETY: a block has 32 codes.
                unsafe { _mm_storeu_si128(block.qs.as_mut_ptr().add(16 * i).cast(), _mm512_cvtepi32_epi8(codes)) };
                let change = _mm512_fmsub_ps(_mm512_cvtepi32_ps(codes), step, base[i]);
                kept = _mm512_fmadd_ps(delta[i], change, kept);
                let miss = _mm512_sub_ps(change, delta[i]);
                error = _mm512_fmadd_ps(miss, miss, error);
            }
        }
        Moved { kept: total(lanes(kept)), square: total(lanes(error)) }
    }

    #[target_feature(enable = "avx512f")]
    fn lanes(values: __m512) -> [f32; 16] {
        let mut lanes = [0.0; 16];
        // SAFETY: 16 floats are one register.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), values) };
        lanes
    }
}
