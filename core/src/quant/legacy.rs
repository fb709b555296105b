//! Blocks of 32 weights with one half-precision step: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1.

use std::ops::RangeInclusive;

use super::BlockType;
use super::block::{Block, F16, NO_MIN};
use super::k_fit::largest;

/// 4-bit, symmetric.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ4_0 {
    pub(crate) d: F16,
    pub(crate) qs: [u8; 16],
}

/// 4-bit with a min.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ4_1 {
    pub(crate) d: F16,
    pub(crate) m: F16,
    pub(crate) qs: [u8; 16],
}

/// 5-bit, symmetric.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ5_0 {
    pub(crate) d: F16,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; 16],
}

/// 5-bit with a min.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ5_1 {
    pub(crate) d: F16,
    pub(crate) m: F16,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; 16],
}

/// 8-bit, symmetric; `qs` holds two's complement bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ8_0 {
    pub(crate) d: F16,
    pub(crate) qs: [u8; 32],
}

/// Q8_0 with `s = d · Σ qs`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockQ8_1 {
    pub(crate) d: F16,
    pub(crate) s: F16,
    pub(crate) qs: [u8; 32],
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ4_0 {
    const TYPE: BlockType = BlockType::Q4_0;
    const GROUP: usize = 32;
    const CODES: RangeInclusive<u8> = 0..=15;
    const ZERO: u8 = 8;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_nibbles(&self.qs, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_nibbles(codes);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        (steps[0], mins[0]) = (self.d.get(), NO_MIN);
    }

    fn quantize(x: &[f32]) -> Self {
        let d = largest(x) / -8.0;
        let inverse = reciprocal(d);
        Self { d: F16::new(d), qs: pack_nibbles(&codes(x, |x| ((x * inverse + 8.5) as i8 as u8).min(15))) }
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ4_1 {
    const TYPE: BlockType = BlockType::Q4_1;
    const GROUP: usize = 32;
    const CODES: RangeInclusive<u8> = 0..=15;
    const ZERO: u8 = 0;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_nibbles(&self.qs, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_nibbles(codes);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        (steps[0], mins[0]) = (self.d.get(), self.m.get());
    }

    fn quantize(x: &[f32]) -> Self {
        let (min, max) = extremes(x);
        let d = (max - min) / 15.0;
        let inverse = reciprocal(d);
        let codes = codes(x, |x| (((x - min) * inverse + 0.5) as i8 as u8).min(15));
        Self { d: F16::new(d), m: F16::new(min), qs: pack_nibbles(&codes) }
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ5_0 {
    const TYPE: BlockType = BlockType::Q5_0;
    const GROUP: usize = 32;
    const CODES: RangeInclusive<u8> = 0..=31;
    const ZERO: u8 = 16;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_nibbles(&self.qs, codes);
        add_fifth_bits(self.qh, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_nibbles(codes);
        self.qh = fifth_bits(codes);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        (steps[0], mins[0]) = (self.d.get(), NO_MIN);
    }

    fn quantize(x: &[f32]) -> Self {
        let d = largest(x) / -16.0;
        let inverse = reciprocal(d);
        let codes = codes(x, |x| ((x * inverse + 16.5) as i8 as u8).min(31));
        Self { d: F16::new(d), qh: fifth_bits(&codes), qs: pack_nibbles(&codes) }
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ5_1 {
    const TYPE: BlockType = BlockType::Q5_1;
    const GROUP: usize = 32;
    const CODES: RangeInclusive<u8> = 0..=31;
    const ZERO: u8 = 0;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        unpack_nibbles(&self.qs, codes);
        add_fifth_bits(self.qh, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack_nibbles(codes);
        self.qh = fifth_bits(codes);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        (steps[0], mins[0]) = (self.d.get(), self.m.get());
    }

    fn quantize(x: &[f32]) -> Self {
        let (min, max) = extremes(x);
        let d = (max - min) / 31.0;
        let inverse = reciprocal(d);
        let codes = codes(x, |x| (((x - min) * inverse + 0.5) as u8).min(31));
        Self { d: F16::new(d), m: F16::new(min), qh: fifth_bits(&codes), qs: pack_nibbles(&codes) }
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ8_0 {
    const TYPE: BlockType = BlockType::Q8_0;
    const GROUP: usize = 32;
    // -128 is left out, as in ggml: kernels may negate codes.
    const CODES: RangeInclusive<u8> = 1..=255;
    const ZERO: u8 = 128;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        flip_signs(&self.qs, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        flip_signs(codes, &mut self.qs);
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        (steps[0], mins[0]) = (self.d.get(), NO_MIN);
    }

    fn quantize(x: &[f32]) -> Self {
        let (d, qs) = quantize_bytes(x);
        Self { d: F16::new(d), qs }
    }
}

// SAFETY: `repr(C)` over byte arrays only.
unsafe impl Block for BlockQ8_1 {
    const TYPE: BlockType = BlockType::Q8_1;
    const GROUP: usize = 32;
    const CODES: RangeInclusive<u8> = 1..=255;
    const ZERO: u8 = 128;

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        flip_signs(&self.qs, codes);
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        flip_signs(codes, &mut self.qs);
        self.s = F16::new(sum(&self.qs) as f32 * self.d.get());
    }

    #[inline(always)]
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]) {
        (steps[0], mins[0]) = (self.d.get(), NO_MIN);
    }

    fn quantize(x: &[f32]) -> Self {
        let (d, qs) = quantize_bytes(x);
        Self { d: F16::new(d), s: F16::new(sum(&qs) as f32 * d), qs }
    }
}

/// Low nibbles are the first half of the block, high nibbles the second.
#[inline(always)]
fn unpack_nibbles(qs: &[u8; 16], codes: &mut [u8]) {
    // A copy cannot overlap the codes, so the loop vectorises.
    let qs = *qs;
    let (low, high) = codes[..32].split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(qs) {
        (*low, *high) = (q & 15, q >> 4);
    }
}

#[inline(always)]
fn pack_nibbles(codes: &[u8]) -> [u8; 16] {
    // Not `array::from_fn`: a closure would not be compiled for the instruction set of the function that calls this.
    let mut qs = [0; 16];
    let (low, high) = codes[..32].split_at(16);
    for ((q, low), high) in qs.iter_mut().zip(low).zip(high) {
        *q = low & 15 | high << 4;
    }
    qs
}

/// Bit `i` of the little-endian word is the fifth bit of code `i`.
#[inline(always)]
fn add_fifth_bits(qh: [u8; 4], codes: &mut [u8]) {
    let qh = u32::from_le_bytes(qh);
    for (i, code) in codes[..32].iter_mut().enumerate() {
        *code |= ((qh >> i) as u8 & 1) << 4;
    }
}

#[inline(always)]
fn fifth_bits(codes: &[u8]) -> [u8; 4] {
    let mut word = 0;
    for (i, code) in codes[..32].iter().enumerate() {
        word |= u32::from(code >> 4 & 1) << i;
    }
    word.to_le_bytes()
}

/// Two's complement to offset binary and back.
#[inline(always)]
pub(super) fn flip_signs(from: &[u8], to: &mut [u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from ^ 0x80;
    }
}

fn sum(qs: &[u8]) -> i32 {
    qs.iter().map(|&q| i32::from(q as i8)).sum()
}

fn codes(x: &[f32], code: impl Fn(f32) -> u8) -> [u8; 32] {
    std::array::from_fn(|i| code(x[i]))
}

fn extremes(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(min, max), &x| (if x < min { x } else { min }, if x > max { x } else { max }))
}

fn reciprocal(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

fn quantize_bytes(x: &[f32]) -> (f32, [u8; 32]) {
    let d = largest(x).abs() / 127.0;
    let inverse = reciprocal(d);
    (d, codes(x, |x| (x * inverse).round() as i8 as u8))
}

const _: () = {
    assert!(size_of::<BlockQ4_0>() == 18);
    assert!(size_of::<BlockQ4_1>() == 20);
    assert!(size_of::<BlockQ5_0>() == 22);
    assert!(size_of::<BlockQ5_1>() == 24);
    assert!(size_of::<BlockQ8_0>() == 34);
    assert!(size_of::<BlockQ8_1>() == 36);
};
