#![allow(non_camel_case_types, reason = "the names are ggml's own")]
//! How each block type yields its codes in registers: 32 codes at a time, in column order.

use super::{Bytes, Eight};
use crate::kernels::formats::{q3_k_scales, six_bit_pairs, sub_len};
use crate::quant::BlockType;

/// A quantised block type.
pub(in crate::kernels) trait Format {
    const TYPE: BlockType;
    /// Bytes per block.
    const SIZE_BYTES: usize = Self::TYPE.block_size_bytes();
    /// Blocks of 32 weights per block.
    const BLOCKS: usize = Self::TYPE.block_len() / 32;
    /// Weights per scale.
    const SUB: usize = sub_len(Self::TYPE);
    /// Whether codes use all 8 bits: signed numbers offset by 128, with `m = -128 · d`.
    const WIDE: bool = matches!(Self::TYPE, BlockType::Q8_0 | BlockType::Q8_1 | BlockType::Q8_K);

    /// The codes of the `index`-th 32 weights.
    ///
    /// # Safety
    /// A block can be read at `block`; the CPU has the instruction set of `B`.
    unsafe fn codes<B: Bytes>(block: *const u8, index: usize) -> B;

    /// `d` and `m` of every sub-block.
    ///
    /// # Safety
    /// As [`codes`](Self::codes).
    unsafe fn scales<B: Bytes>(block: *const u8, d: &mut [f32; 16], m: &mut [f32; 16]);

    /// `d` and `m` of eight times 32 weights that share one pair each: of eight blocks, or of one of 256 weights.
    ///
    /// # Safety
    /// That many can be read at `block`; the CPU has the instruction set of `B` and `E`.
    #[inline(always)]
    unsafe fn eight_scales<B: Bytes, E: Eight>(block: *const u8) -> (E, E) {
        let (mut d, mut m) = ([0f32; 16], [0f32; 16]);
        // SAFETY: the caller's promise.
        unsafe {
            Self::scales::<B>(block, &mut d, &mut m);
            (E::load(d.as_ptr()), E::load(m.as_ptr()))
        }
    }
}

macro_rules! legacy {
    ($name:ident, $size:expr, |$block:ident| $codes:expr, $offset:expr) => {
        pub(in crate::kernels) struct $name;

        impl Format for $name {
            const TYPE: BlockType = BlockType::$name;

            #[inline(always)]
            unsafe fn codes<B: Bytes>($block: *const u8, _: usize) -> B {
                const { assert!(Self::SIZE_BYTES == $size && Self::BLOCKS == 1) };
                // SAFETY: the caller's promise.
                unsafe { $codes }
            }

            #[inline(always)]
            unsafe fn scales<B: Bytes>(block: *const u8, d: &mut [f32; 16], m: &mut [f32; 16]) {
                let offset: Option<f32> = $offset;
                // SAFETY: the caller's promise.
                unsafe {
                    d[0] = B::half(block);
                    m[0] = match offset {
                        Some(offset) => -offset * d[0],
                        None => B::half(block.add(2)),
                    };
                }
            }

            #[inline(always)]
            unsafe fn eight_scales<B: Bytes, E: Eight>(block: *const u8) -> (E, E) {
                let offset: Option<f32> = $offset;
                // SAFETY: the caller's promise.
                unsafe {
                    let d = E::halves(block, Self::SIZE_BYTES);
                    match offset {
                        Some(offset) => (d, d.scale(-offset)),
                        None => (d, E::halves(block.add(2), Self::SIZE_BYTES)),
                    }
                }
            }
        }
    };
}

legacy!(Q4_0, 2 + 16, |block| B::nibbles(block.add(2)), Some(8.0));
legacy!(Q4_1, 4 + 16, |block| B::nibbles(block.add(4)), None);
legacy!(Q5_0, 2 + 4 + 16, |block| B::nibbles(block.add(6)).or(B::fifth_bits(block.add(2))), Some(16.0));
legacy!(Q5_1, 4 + 4 + 16, |block| B::nibbles(block.add(8)).or(B::fifth_bits(block.add(4))), None);
legacy!(Q8_0, 2 + 32, |block| B::load(block.add(2)).flip_signs(), Some(128.0));
legacy!(Q8_1, 4 + 32, |block| B::load(block.add(4)).flip_signs(), Some(128.0));

macro_rules! k_quant {
    ($name:ident, $size:expr, |$block:ident, $index:ident| $codes:expr, |$d:ident, $m:ident| $scales:expr) => {
        pub(in crate::kernels) struct $name;

        impl Format for $name {
            const TYPE: BlockType = BlockType::$name;

            #[inline(always)]
            unsafe fn codes<B: Bytes>($block: *const u8, $index: usize) -> B {
                const { assert!(Self::SIZE_BYTES == $size && Self::BLOCKS == 8) };
                // SAFETY: the caller's promise.
                unsafe { $codes }
            }

            #[inline(always)]
            unsafe fn scales<B: Bytes>($block: *const u8, $d: &mut [f32; 16], $m: &mut [f32; 16]) {
                // SAFETY: the caller's promise.
                unsafe { $scales }
            }
        }
    };
}

k_quant!(Q2_K, 16 + 64 + 4, |block, index| B::load(block.add(16 + index / 4 * 32)).bits(index % 4 * 2, 3), |d, m| {
    let (scale, min) = (B::half(block.add(80)), B::half(block.add(82)));
    for sub in 0..16 {
        d[sub] = scale * f32::from(*block.add(sub) & 15);
        m[sub] = -min * f32::from(*block.add(sub) >> 4);
    }
});
k_quant!(
    Q3_K,
    32 + 64 + 12 + 2,
    |block, index| {
        let low = B::load(block.add(32 + index / 4 * 32)).bits(index % 4 * 2, 3);
        low.or(B::load(block).bits(index, 1).left::<2>())
    },
    |d, m| {
        let scale = B::half(block.add(108));
        for (sub, packed) in q3_k_scales(std::slice::from_raw_parts(block.add(96), 12)).into_iter().enumerate() {
            d[sub] = scale * (f32::from(packed) - 32.0);
            m[sub] = -4.0 * d[sub];
        }
    }
);
k_quant!(Q4_K, 4 + 12 + 128, |block, index| B::load(block.add(16 + index / 2 * 32)).bits(index % 2 * 4, 15), |d, m| {
    k_scales::<B>(block, d, m)
});
k_quant!(
    Q5_K,
    4 + 12 + 32 + 128,
    |block, index| {
        let low = B::load(block.add(48 + index / 2 * 32)).bits(index % 2 * 4, 15);
        low.or(B::load(block.add(16)).bits(index, 1).left::<4>())
    },
    |d, m| k_scales::<B>(block, d, m)
);
k_quant!(
    Q6_K,
    128 + 64 + 16 + 2,
    |block, index| {
        let (half, part) = (index / 4, index % 4);
        let low = B::load(block.add(half * 64 + part % 2 * 32)).bits(part / 2 * 4, 15);
        low.or(B::load(block.add(128 + half * 32)).bits(part * 2, 3).left::<4>())
    },
    |d, m| {
        let scale = B::half(block.add(208));
        for sub in 0..16 {
            d[sub] = scale * f32::from(*block.add(192 + sub) as i8);
            m[sub] = -32.0 * d[sub];
        }
    }
);
k_quant!(Q8_K, 4 + 256 + 32, |block, index| B::load(block.add(4 + index * 32)).flip_signs(), |d, m| {
    let scale = block.cast::<f32>().read_unaligned();
    d[..8].fill(scale);
    m[..8].fill(-128.0 * scale);
});

/// # Safety
/// 16 bytes can be read at `block`; the CPU has the instruction set of `B`.
#[inline(always)]
unsafe fn k_scales<B: Bytes>(block: *const u8, d: &mut [f32; 16], m: &mut [f32; 16]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (scale, min) = (B::half(block), B::half(block.add(2)));
        let (scales, mins) = six_bit_pairs(std::slice::from_raw_parts(block.add(4), 12));
        for sub in 0..8 {
            d[sub] = scale * f32::from(scales[sub]);
            m[sub] = -min * f32::from(mins[sub]);
        }
    }
}
