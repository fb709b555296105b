//! `out[o] = W[o, ..] · x`, unpacked in registers.

use super::formats::Format;
use super::{Bytes, Eight};
use crate::kernels::activations::{CODES_BYTES, Group};

/// How an instruction set multiplies a block's codes.
///
/// # Safety
/// Every function needs the instruction set.
pub(in crate::kernels) trait Dot {
    type Codes: Bytes;
    type Floats: Eight;
    /// Some lanes of f32.
    type Sums: Copy;
    /// Whether the instructions take codes as signed bytes.
    const SIGNED: bool;

    unsafe fn zero() -> Self::Sums;

    /// `sums + factors · dot(codes, x)`, spread over the lanes. `x` is a block in the instruction set's own order;
    /// with `SUB == 16`, each half of the block has a factor.
    ///
    /// # Safety
    /// A block can be read at `x`.
    unsafe fn add<const SUB: usize>(
        codes: Self::Codes,
        x: *const u8,
        factors: [f32; 2],
        sums: Self::Sums,
    ) -> Self::Sums;

    /// Sum of the lanes.
    unsafe fn total(sums: Self::Sums) -> f32;
}

/// Blocks of 32 weights whose scales are converted together.
const BLOCKS: usize = 8;

/// # Safety
/// `out.len()` rows of `row_size_bytes` can be read at `weights`, each with as many columns as the one row of `x`;
/// the CPU has what `D` needs.
#[inline(always)]
pub(in crate::kernels) unsafe fn gemv_rows<F: Format, D: Dot>(
    weights: *const u8,
    row_size_bytes: usize,
    x: Group,
    out: &mut [f32],
) {
    // One row after the other and no prefetch: memory is then one stream, which CPUs foresee best. Two rows at a time
    // were up to 40% slower.
    for (row, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *out = unsafe { dot_row::<F, D>(weights.add(row * row_size_bytes), x) };
    }
}

/// # Safety
/// As [`gemv_rows`], for the row at `weights`.
#[inline(always)]
unsafe fn dot_row<F: Format, D: Dot>(weights: *const u8, x: Group) -> f32 {
    // Wide codes as signed bytes are what the file stores, and then there is no `m`.
    let signed = F::WIDE && D::SIGNED;
    let codes_at = |block: *const u8, index: usize| {
        // SAFETY: only called for blocks of the row, below.
        unsafe {
            let codes = F::codes::<D::Codes>(block, index);
            if signed { codes.flip_signs() } else { codes }
        }
    };
    // SAFETY: the caller's promise; `x` has one row, so that its scales and sums are side by side.
    unsafe {
        // Two chains of additions, so that one need not wait for the other.
        let mut sums = [D::zero(); 2];
        let mut offsets = D::Floats::zero();
        let (mut d, mut m) = ([0f32; 16], [0f32; 16]);
        for first in (0..x.blocks / BLOCKS * BLOCKS).step_by(BLOCKS) {
            let block = weights.add(first / F::BLOCKS * F::SIZE_BYTES);
            if F::SUB == 16 {
                F::scales::<D::Codes>(block, &mut d, &mut m);
                for half in [0, 8] {
                    let x_sums = D::Floats::load(x.half_sums.add(first * 2 + half));
                    offsets = D::Floats::load(m.as_ptr().add(half)).fma(x_sums, offsets);
                }
            } else {
                let (scales, mins) = F::eight_scales::<D::Codes, D::Floats>(block);
                scales.mul(D::Floats::load(x.scales.add(first))).store(d.as_mut_ptr());
                if !signed {
                    offsets = mins.fma(D::Floats::load(x.sums.add(first)), offsets);
                }
            }
            for index in 0..BLOCKS {
                let codes =
                    if F::BLOCKS == 1 { codes_at(block.add(index * F::SIZE_BYTES), 0) } else { codes_at(block, index) };
                let (x_codes, sum) = (x.codes.add((first + index) * CODES_BYTES), &mut sums[index % 2]);
                *sum = if F::SUB == 16 {
                    let scale = *x.scales.add(first + index);
                    D::add::<16>(codes, x_codes, [d[index * 2] * scale, d[index * 2 + 1] * scale], *sum)
                } else {
                    D::add::<32>(codes, x_codes, [d[index]; 2], *sum)
                };
            }
        }
        let mut offset = offsets.sum();
        // Rows of large blocks have no rest.
        for at in x.blocks / BLOCKS * BLOCKS..if F::BLOCKS == 1 { x.blocks } else { 0 } {
            let block = weights.add(at * F::SIZE_BYTES);
            F::scales::<D::Codes>(block, &mut d, &mut m);
            if !signed {
                offset += m[0] * *x.sums.add(at);
            }
            let factor = d[0] * *x.scales.add(at);
            sums[0] = D::add::<32>(codes_at(block, 0), x.codes.add(at * CODES_BYTES), [factor; 2], sums[0]);
        }
        offset + D::total(sums[0]) + D::total(sums[1])
    }
}
