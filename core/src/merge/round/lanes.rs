//! The inner loops of a merge: what they mean, in plain code, which is also what machines without AVX2 run.

use super::factors::{TILE, Tile};
use super::total;
use crate::quant::legacy::BlockQ8_0;
use crate::quant::{Block as _, F16};

/// Weights whose codes move together.
pub(super) const CHUNK: usize = 32;

/// The inner loops of one instruction set. Every implementation gives the same bytes as [`Portable`].
pub(super) trait Lanes {
    /// `out: [R, cols]` = `b·a`, with `a: [cols / 16, pairs]` and `b: [R, pairs]`; `cols` is a multiple of 32.
    fn sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], out: &mut [i32]);

    /// As [`sums`](Self::sums), each row divided by `2^shift` to nearest.
    fn shifted_sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], shifts: [u32; R], out: &mut [i16]);

    /// Moves codes by the steps nearest to `μ·Δ`.
    fn move_codes<const GROUP: usize>(codes: &mut [u8], row: &Moves<'_>) -> Moved;

    /// Quantises `W + μ·Δ` to Q8_0 as [`quantize`](crate::quant::quantize) does.
    fn promote<const GROUP: usize>(row: &Promotion<'_>, out: &mut [BlockQ8_0]) -> Moved;
}

/// What moves the codes of one row.
pub(super) struct Moves<'a> {
    /// `Δ` in units of 14 bits and a sign.
    pub(super) deltas: &'a [i16],
    /// One per group.
    pub(super) factors: &'a [Factor],
    /// One per group.
    pub(super) steps: &'a [f32],
    /// Least and greatest code.
    pub(super) low: i16,
    pub(super) high: i16,
}

/// `delta · multiplier / 2^(16 + shift)`, rounded to nearest, are the steps to take. Each number stands twice, because
/// 32 bits from memory fill a register at no cost.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) multiplier: [i16; 2],
    /// From 1 to 15.
    pub(super) shift: [i16; 2],
    /// `2^shift / 2`
    pub(super) half: [i16; 2],
}

/// A row to promote.
pub(super) struct Promotion<'a> {
    pub(super) codes: &'a [u8],
    /// Steps and mins, one per group: `W = step · (code − zero) + min`.
    pub(super) steps: &'a [f32],
    pub(super) mins: &'a [f32],
    pub(super) zero: u8,
    /// `Δ = unit · sum`
    pub(super) sums: &'a [i32],
    pub(super) unit: f32,
    pub(super) mu: f32,
}

/// Sums over the weights of one row.
#[derive(Clone, Copy, Default)]
pub(super) struct Moved {
    /// `<Δ, W'−W>`; of moved codes in units.
    pub(super) kept: f32,
    /// `‖W'−W‖²` of moved codes, `‖W'−W−Δ‖²` of promoted rows.
    pub(super) square: f32,
}

/// Any machine.
pub(super) struct Portable;

impl Lanes for Portable {
    #[inline(always)]
    fn sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], out: &mut [i32]) {
        let (pairs, cols) = (b.len() / R, out.len() / R);
        for (index, tiles) in a.chunks_exact(pairs).enumerate() {
            for (r, sums) in tile_sums::<R>(tiles, b).iter().enumerate() {
                out[r * cols + index * TILE..][..TILE].copy_from_slice(sums);
            }
        }
    }

    #[inline(always)]
    fn shifted_sums<const R: usize>(a: &[Tile], b: &[[i16; 2]], shifts: [u32; R], out: &mut [i16]) {
        let (pairs, cols) = (b.len() / R, out.len() / R);
        for (index, tiles) in a.chunks_exact(pairs).enumerate() {
            for (r, (sums, shift)) in tile_sums::<R>(tiles, b).iter().zip(shifts).enumerate() {
                for (out, sum) in out[r * cols + index * TILE..][..TILE].iter_mut().zip(sums) {
                    *out = (sum.wrapping_add(1 << shift >> 1) >> shift) as i16;
                }
            }
        }
    }

    #[inline(always)]
    fn move_codes<const GROUP: usize>(codes: &mut [u8], row: &Moves<'_>) -> Moved {
        let (mut kept, mut square) = ([0.0_f32; 16], [0.0_f32; 16]);
        let groups = codes.chunks_exact_mut(GROUP).zip(row.deltas.chunks_exact(GROUP));
        for ((codes, deltas), (factor, step)) in groups.zip(row.factors.iter().zip(row.steps)) {
            let Factor { multiplier: [multiplier, _], shift: [shift, _], half: [half, _] } = *factor;
            let pairs = codes.as_chunks_mut::<2>().0.iter_mut().zip(deltas.as_chunks::<2>().0);
            for (i, (codes, deltas)) in pairs.enumerate() {
                let (mut product, mut taken_square) = (0, 0);
                for (code, delta) in codes.iter_mut().zip(deltas) {
                    // Rounding down twice is rounding down once: in all, to nearest.
                    let steps = ((i32::from(*delta) * i32::from(multiplier)) >> 16) as i16;
                    let steps = (steps + half) >> shift;
                    let old = i16::from(*code);
                    // A code above the range, which no writer makes, may stay there.
                    let new = (old + steps).min(row.high.max(old)).max(row.low);
                    *code = new as u8;
                    product += i32::from(new - old) * i32::from(*delta);
                    taken_square += i32::from(new - old) * i32::from(new - old);
                }
                let lane = i % 16;
                kept[lane] = (product as f32).mul_add(*step, kept[lane]);
                square[lane] = (taken_square as f32).mul_add(step * step, square[lane]);
            }
        }
        Moved { kept: total(kept), square: total(square) }
    }

    #[inline(always)]
    fn promote<const GROUP: usize>(row: &Promotion<'_>, out: &mut [BlockQ8_0]) -> Moved {
        const LEN: usize = BlockQ8_0::LEN;
        let (mut kept, mut error) = ([0.0_f32; 16], [0.0_f32; 16]);
        let blocks = row.codes.as_chunks::<LEN>().0.iter().zip(row.sums.as_chunks::<LEN>().0).zip(out);
        for (index, ((codes, sums), block)) in blocks.enumerate() {
            let (mut base, mut delta, mut wanted) = ([0.0_f32; LEN], [0.0_f32; LEN], [0.0_f32; LEN]);
            let mut largest = 0.0_f32;
            for i in 0..LEN {
                let group = (index * LEN + i) / GROUP;
                base[i] = row.steps[group] * (i32::from(codes[i]) - i32::from(row.zero)) as f32 + row.mins[group];
                delta[i] = sums[i] as f32 * row.unit;
                wanted[i] = row.mu.mul_add(delta[i], base[i]);
                largest = if wanted[i].abs() > largest { wanted[i].abs() } else { largest };
            }
            let (step, inverse) = block_step(largest);
            block.d = F16::new(step);
            let step = block.d.get();
            for i in 0..LEN {
                let code = (wanted[i] * inverse).round() as i32;
                block.qs[i] = code as i8 as u8;
                let change = (code as f32).mul_add(step, -base[i]);
                let error_here = change - delta[i];
                kept[i % 16] = delta[i].mul_add(change, kept[i % 16]);
                error[i % 16] = error_here.mul_add(error_here, error[i % 16]);
            }
        }
        Moved { kept: total(kept), square: total(error) }
    }
}

/// The step of a block with the largest magnitude `largest`, and its inverse.
#[inline(always)]
pub(super) fn block_step(largest: f32) -> (f32, f32) {
    let step = largest / 127.0;
    (step, if step != 0.0 { 1.0 / step } else { 0.0 })
}

/// `[R, 16]`
#[inline(always)]
fn tile_sums<const R: usize>(tiles: &[Tile], b: &[[i16; 2]]) -> [[i32; TILE]; R] {
    let mut sums = [[0_i32; TILE]; R];
    for (pair, Tile(tile)) in tiles.iter().enumerate() {
        for (r, sums) in sums.iter_mut().enumerate() {
            let b = b[r * tiles.len() + pair].map(i32::from);
            for (sum, a) in sums.iter_mut().zip(tile) {
                *sum = sum.wrapping_add(i32::from(a[0]) * b[0]).wrapping_add(i32::from(a[1]) * b[1]);
            }
        }
    }
    sums
}
