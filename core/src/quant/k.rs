//! K-quants: blocks of 256 weights whose groups have quantised steps and mins. Q2_K … Q6_K, Q8_K.

use std::ops::RangeInclusive;

use super::BlockType;
use super::block::{Block, F16, NO_MIN, nearest_int};
use super::k_fit::{SMALLEST, fit_affine, fit_q3, fit_symmetric, largest, nearest_codes};
use super::legacy::flip_signs;

/// 2-bit with a min; groups of 16, 4-bit steps (low nibble) and mins (high nibble).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ2K {
    pub(crate) scales: [u8; 16],
    pub(crate) qs: [u8; 64],
    pub(crate) d: F16,
    pub(crate) dmin: F16,
}

/// 3-bit, symmetric; groups of 16, 6-bit steps.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ3K {
    pub(crate) hmask: [u8; 32],
    pub(crate) qs: [u8; 64],
    pub(crate) scales: [u8; 12],
    pub(crate) d: F16,
}

/// 4-bit with a min; groups of 32, 6-bit steps and mins.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ4K {
    pub(crate) d: F16,
    pub(crate) dmin: F16,
    pub(crate) scales: [u8; 12],
    pub(crate) qs: [u8; 128],
}

/// 5-bit with a min; groups of 32, 6-bit steps and mins.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ5K {
    pub(crate) d: F16,
    pub(crate) dmin: F16,
    pub(crate) scales: [u8; 12],
    pub(crate) qh: [u8; 32],
    pub(crate) qs: [u8; 128],
}

/// 6-bit, symmetric; groups of 16, 8-bit steps.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ6K {
    pub(crate) ql: [u8; 128],
    pub(crate) qh: [u8; 64],
    pub(crate) scales: [u8; 16],
    pub(crate) d: F16,
}

/// 8-bit, symmetric, one single-precision step; `bsums` are the sums of 16 codes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ8K {
    pub(crate) d: [u8; 4],
    pub(crate) qs: [u8; 256],
    pub(crate) bsums: [[u8; 2]; 16],
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ2K {
    const TYPE: BlockType = BlockType::Q2_K;
    const GROUP: usize = 16;
    const CODES: RangeInclusive<u8> = 0..=3;
    const ZERO: u8 = 0;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_pairs(&self.qs, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_pairs(codes);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        let (d, dmin) = (self.d.get(), self.dmin.get());
        for ((step, min), scale) in steps.iter_mut().zip(mins).zip(self.scales) {
            (*step, *min) = (d * f32::from(scale & 15), -(dmin * f32::from(scale >> 4)));
        }
    }

    fn quantize(x: &[f32]) -> Self {
        let (mut codes, mut fits) = ([0; 256], [(0.0, 0.0); 16]);
        for ((x, codes), fit) in x.chunks(16).zip(codes.chunks_mut(16)).zip(&mut fits) {
            let weights: [f32; 16] = std::array::from_fn(|i| x[i].abs());
            *fit = fit_affine(3, x, &weights, codes, -0.5, 15, true);
        }
        let (max_step, max_min) = maxima(&fits);
        let mut block = Self {
            scales: [0; 16],
            qs: [0; 64],
            d: F16::new(if max_step > 0.0 { max_step / 15.0 } else { 0.0 }),
            dmin: F16::new(if max_min > 0.0 { max_min / 15.0 } else { 0.0 }),
        };
        let inverse = |max: f32| if max > 0.0 { 15.0 / max } else { 0.0 };
        for (scale, (step, min)) in block.scales.iter_mut().zip(fits) {
            *scale = nearest_u8(inverse(max_step) * step) | nearest_u8(inverse(max_min) * min) << 4;
        }
        nearest_codes(&block, x, &mut codes);
        block.set_codes(&codes);
        block
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ3K {
    const TYPE: BlockType = BlockType::Q3_K;
    const GROUP: usize = 16;
    const CODES: RangeInclusive<u8> = 0..=7;
    const ZERO: u8 = 4;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_pairs(&self.qs, codes);
        let hmask = self.hmask;
        for (bit, codes) in codes[..256].chunks_exact_mut(32).enumerate() {
            for (code, high) in codes.iter_mut().zip(hmask) {
                *code |= (high >> bit & 1) << 2;
            }
        }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_pairs(codes);
        self.hmask = gather_bits(codes, 2);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        let d = self.d.get();
        for (j, (step, min)) in steps[..16].iter_mut().zip(mins).enumerate() {
            let low = self.scales[j % 8] >> (j / 8 * 4) & 15;
            let high = self.scales[8 + j % 4] >> (j / 4 * 2) & 3;
            (*step, *min) = (d * f32::from((low | high << 4) as i8 - 32), NO_MIN);
        }
    }

    fn quantize(x: &[f32]) -> Self {
        let (mut codes, mut steps) = ([0; 256], [0.0; 16]);
        for ((x, codes), step) in x.chunks(16).zip(codes.chunks_mut(16)).zip(&mut steps) {
            *step = fit_q3(x, codes);
        }
        let max = largest(&steps);
        let mut block = Self { hmask: [0; 32], qs: [0; 64], scales: [0; 12], d: F16::default() };
        if max != 0.0 {
            let inverse = -32.0 / max;
            for (j, step) in steps.into_iter().enumerate() {
                let scale = (nearest_int(inverse * step) as i8).clamp(-32, 31) + 32;
                block.scales[j % 8] |= (scale as u8 & 15) << (j / 8 * 4);
                block.scales[8 + j % 4] |= (scale as u8 >> 4) << (j / 4 * 2);
            }
            block.d = F16::new(1.0 / inverse);
        }
        nearest_codes(&block, x, &mut codes);
        block.set_codes(&codes);
        block
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ4K {
    const TYPE: BlockType = BlockType::Q4_K;
    const GROUP: usize = 32;
    const CODES: RangeInclusive<u8> = 0..=15;
    const ZERO: u8 = 0;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_low_nibbles(&self.qs, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_low_nibbles(codes);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        unpack_steps(self.d, self.dmin, &self.scales, steps, mins);
    }

    fn quantize(x: &[f32]) -> Self {
        let mut codes = [0; 256];
        let (d, dmin, scales) = fit_groups(x, &mut codes, 15, -1.0, 20);
        let mut block = Self { d, dmin, scales, qs: [0; 128] };
        nearest_codes(&block, x, &mut codes);
        block.set_codes(&codes);
        block
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ5K {
    const TYPE: BlockType = BlockType::Q5_K;
    const GROUP: usize = 32;
    const CODES: RangeInclusive<u8> = 0..=31;
    const ZERO: u8 = 0;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_low_nibbles(&self.qs, codes);
        let qh = self.qh;
        for (bit, codes) in codes[..256].chunks_exact_mut(32).enumerate() {
            for (code, high) in codes.iter_mut().zip(qh) {
                *code |= (high >> bit & 1) << 4;
            }
        }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_low_nibbles(codes);
        self.qh = gather_bits(codes, 4);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        unpack_steps(self.d, self.dmin, &self.scales, steps, mins);
    }

    fn quantize(x: &[f32]) -> Self {
        let mut codes = [0; 256];
        let (d, dmin, scales) = fit_groups(x, &mut codes, 31, -0.5, 15);
        let mut block = Self { d, dmin, scales, qh: [0; 32], qs: [0; 128] };
        nearest_codes(&block, x, &mut codes);
        block.set_codes(&codes);
        block
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ6K {
    const TYPE: BlockType = BlockType::Q6_K;
    const GROUP: usize = 16;
    const CODES: RangeInclusive<u8> = 0..=63;
    const ZERO: u8 = 32;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        let (ql, qh) = (self.ql, self.qh);
        let halves = codes[..256].chunks_exact_mut(128).zip(ql.chunks_exact(64).zip(qh.chunks_exact(32)));
        for (codes, (ql, qh)) in halves {
            for l in 0..32 {
                codes[l] = ql[l] & 15 | (qh[l] & 3) << 4;
                codes[l + 32] = ql[l + 32] & 15 | (qh[l] >> 2 & 3) << 4;
                codes[l + 64] = ql[l] >> 4 | (qh[l] >> 4 & 3) << 4;
                codes[l + 96] = ql[l + 32] >> 4 | (qh[l] >> 6) << 4;
            }
        }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        let (mut low, mut high) = ([0; 128], [0; 64]);
        let halves = codes[..256].chunks_exact(128).zip(low.chunks_exact_mut(64).zip(high.chunks_exact_mut(32)));
        for (codes, (ql, qh)) in halves {
            for l in 0..32 {
                let [a, b, c, d] = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
                ql[l] = a & 15 | c << 4;
                ql[l + 32] = b & 15 | d << 4;
                qh[l] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
            }
        }
        (self.ql, self.qh) = (low, high);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        let d = self.d.get();
        for ((step, min), scale) in steps.iter_mut().zip(mins).zip(self.scales) {
            (*step, *min) = (d * f32::from(scale as i8), NO_MIN);
        }
    }

    fn quantize(x: &[f32]) -> Self {
        let (mut codes, mut steps) = ([0; 256], [0.0; 16]);
        for ((x, codes), step) in x.chunks(16).zip(codes.chunks_mut(16)).zip(&mut steps) {
            *step = fit_symmetric(32, x, codes);
        }
        let max = largest(&steps);
        let mut block = Self { ql: [0; 128], qh: [0; 64], scales: [0; 16], d: F16::default() };
        if max.abs() < SMALLEST {
            return block;
        }
        let inverse = -128.0 / max;
        block.d = F16::new(1.0 / inverse);
        block.scales = std::array::from_fn(|j| nearest_int(inverse * steps[j]).min(127) as u8);
        nearest_codes(&block, x, &mut codes);
        block.set_codes(&codes);
        block
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ8K {
    const TYPE: BlockType = BlockType::Q8_K;
    const GROUP: usize = 256;
    const CODES: RangeInclusive<u8> = 1..=255;
    const ZERO: u8 = 128;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        flip_signs(&self.qs, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        flip_signs(codes, &mut self.qs);
        for (sum, qs) in self.bsums.iter_mut().zip(self.qs.chunks_exact(16)) {
            *sum = qs.iter().map(|&q| i16::from(q as i8)).sum::<i16>().to_le_bytes();
        }
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        (steps[0], mins[0]) = (f32::from_le_bytes(self.d), NO_MIN);
    }

    fn quantize(x: &[f32]) -> Self {
        let mut block = Self { d: [0; 4], qs: [0; 256], bsums: [[0; 2]; 16] };
        let max = largest(x);
        if max == 0.0 {
            return block;
        }
        let inverse = -127.0 / max;
        let codes: [u8; 256] = std::array::from_fn(|i| nearest_int(inverse * x[i]).clamp(-128, 127) as u8 ^ 0x80);
        block.d = (1.0 / inverse).to_le_bytes();
        block.set_codes(&codes);
        block
    }
}

/// Four 2-bit codes per byte: byte `32h + i` holds weights `128h + i + {0, 32, 64, 96}`.
#[inline(always)]
fn unpack_pairs(qs: &[u8; 64], codes: &mut [u8]) {
    // A copy cannot overlap the codes, so the loops vectorise.
    let qs = *qs;
    for (codes, qs) in codes[..256].chunks_exact_mut(128).zip(qs.chunks_exact(32)) {
        for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, q) in codes.iter_mut().zip(qs) {
                *code = q >> (2 * j) & 3;
            }
        }
    }
}

#[inline(always)]
fn pack_pairs(codes: &[u8]) -> [u8; 64] {
    // Not `array::from_fn`: a closure would not be compiled for the instruction set of the function that calls this.
    let mut qs = [0; 64];
    for (qs, codes) in qs.chunks_exact_mut(32).zip(codes.chunks_exact(128)) {
        for i in 0..32 {
            qs[i] = codes[i] & 3 | (codes[i + 32] & 3) << 2 | (codes[i + 64] & 3) << 4 | (codes[i + 96] & 3) << 6;
        }
    }
    qs
}

/// Byte `32h + i` holds weight `64h + i` in its low and `64h + 32 + i` in its high nibble.
#[inline(always)]
fn unpack_low_nibbles(qs: &[u8; 128], codes: &mut [u8]) {
    let qs = *qs;
    for (codes, qs) in codes[..256].chunks_exact_mut(64).zip(qs.chunks_exact(32)) {
        let (low, high) = codes.split_at_mut(32);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(qs) {
            (*low, *high) = (q & 15, q >> 4);
        }
    }
}

#[inline(always)]
fn pack_low_nibbles(codes: &[u8]) -> [u8; 128] {
    let mut qs = [0; 128];
    for (qs, codes) in qs.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        for i in 0..32 {
            qs[i] = codes[i] & 15 | codes[i + 32] << 4;
        }
    }
    qs
}

/// Bit `bit` of code `32·j + i` as bit `j` of byte `i`.
#[inline(always)]
fn gather_bits(codes: &[u8], bit: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (j, codes) in codes.chunks_exact(32).enumerate() {
        for (byte, code) in bytes.iter_mut().zip(codes) {
            *byte |= (code >> bit & 1) << j;
        }
    }
    bytes
}

/// Eight 6-bit steps and eight 6-bit mins in 12 bytes.
#[inline(always)]
fn unpack_steps(d: F16, dmin: F16, scales: &[u8; 12], steps: &mut [f32], mins: &mut [f32]) {
    let (d, dmin) = (d.get(), dmin.get());
    for (j, (step, min)) in steps[..8].iter_mut().zip(mins).enumerate() {
        let (scale, offset) = if j < 4 {
            (scales[j] & 63, scales[j + 4] & 63)
        } else {
            (scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4)
        };
        (*step, *min) = (d * f32::from(scale), -(dmin * f32::from(offset)));
    }
}

/// The steps and mins of Q4_K and Q5_K: `(d, dmin, scales)`.
fn fit_groups(x: &[f32], codes: &mut [u8; 256], code_max: i32, first: f32, tries: i32) -> (F16, F16, [u8; 12]) {
    let mut fits = [(0.0, 0.0); 8];
    for ((x, codes), fit) in x.chunks(32).zip(codes.chunks_mut(32)).zip(&mut fits) {
        let mean_square = x.iter().map(|x| x * x).fold(0.0, |sum, square| sum + square) / 32.0;
        let weights: [f32; 32] = std::array::from_fn(|i| mean_square.sqrt() + x[i].abs());
        *fit = fit_affine(code_max, x, &weights, codes, first, tries, false);
    }
    let (max_step, max_min) = maxima(&fits);
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let mut scales = [0; 12];
    for (j, (step, min)) in fits.into_iter().enumerate() {
        let step = nearest_u8(inverse(max_step) * step).min(63);
        let min = nearest_u8(inverse(max_min) * min).min(63);
        if j < 4 {
            (scales[j], scales[j + 4]) = (step, min);
        } else {
            scales[j + 4] = step & 15 | min << 4;
            scales[j - 4] |= step >> 4 << 6;
            scales[j] |= min >> 4 << 6;
        }
    }
    (F16::new(max_step / 63.0), F16::new(max_min / 63.0), scales)
}

/// The largest step and min, or 0.
fn maxima(fits: &[(f32, f32)]) -> (f32, f32) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    fits.iter().fold((0.0, 0.0), |max, fit| (larger(max.0, fit.0), larger(max.1, fit.1)))
}

fn nearest_u8(x: f32) -> u8 {
    nearest_int(x) as u8
}

const _: () = {
    assert!(size_of::<BlockQ2K>() == 84);
    assert!(size_of::<BlockQ3K>() == 110);
    assert!(size_of::<BlockQ4K>() == 144);
    assert!(size_of::<BlockQ5K>() == 176);
    assert!(size_of::<BlockQ6K>() == 210);
    assert!(size_of::<BlockQ8K>() == 292);
};
