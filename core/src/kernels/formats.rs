//! The scalar meaning of every block type: a weight is `d · code + m`, with one `(d, m)` per sub-block.

use half::{bf16, f16};

use crate::quant::BlockType;

/// Weights that share one `(d, m)`: 16 in the block types with 16-wide sub-blocks, else 32.
pub(super) const fn sub_len(block_type: BlockType) -> usize {
    match block_type {
        BlockType::Q2_K | BlockType::Q3_K | BlockType::Q6_K => 16,
        _ => 32,
    }
}

/// Whether the weights are floats, multiplied with unquantised activations.
pub(super) const fn is_float(block_type: BlockType) -> bool {
    matches!(block_type, BlockType::F32 | BlockType::F16 | BlockType::BF16)
}

/// Unpacks one block of a quantised type: a code per weight, and `d` and `m` per sub-block.
///
/// # Panics
/// If a slice is shorter than the block type demands, or the type is a float type.
pub(super) fn unpack_block(block_type: BlockType, block: &[u8], codes: &mut [u8], d: &mut [f32], m: &mut [f32]) {
    match block_type {
        BlockType::Q4_0 => {
            nibbles(&block[2..18], codes);
            symmetric(half_at(block, 0), 8.0, d, m);
        }
        BlockType::Q4_1 => {
            nibbles(&block[4..20], codes);
            (d[0], m[0]) = (half_at(block, 0), half_at(block, 2));
        }
        BlockType::Q5_0 => {
            nibbles(&block[6..22], codes);
            fifth_bits(&block[2..6], codes);
            symmetric(half_at(block, 0), 16.0, d, m);
        }
        BlockType::Q5_1 => {
            nibbles(&block[8..24], codes);
            fifth_bits(&block[4..8], codes);
            (d[0], m[0]) = (half_at(block, 0), half_at(block, 2));
        }
        BlockType::Q8_0 => {
            signed(&block[2..34], codes);
            symmetric(half_at(block, 0), 128.0, d, m);
        }
        BlockType::Q8_1 => {
            signed(&block[4..36], codes);
            symmetric(half_at(block, 0), 128.0, d, m);
        }
        BlockType::Q8_K => {
            signed(&block[4..260], codes);
            for sub in 0..8 {
                symmetric(
                    f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                    128.0,
                    &mut d[sub..],
                    &mut m[sub..],
                );
            }
        }
        BlockType::Q2_K => q2_k(block, codes, d, m),
        BlockType::Q3_K => q3_k(block, codes, d, m),
        BlockType::Q4_K | BlockType::Q5_K => q4_k_q5_k(block_type, block, codes, d, m),
        BlockType::Q6_K => q6_k(block, codes, d, m),
        BlockType::F32 | BlockType::F16 | BlockType::BF16 => unreachable!("{block_type} has no codes"),
    }
}

/// Element `index` of a row of floats.
pub(super) fn float_at(block_type: BlockType, row: &[u8], index: usize) -> f32 {
    match block_type {
        BlockType::F32 => {
            let at = index * 4;
            f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
        }
        BlockType::F16 => half_at(row, index * 2),
        BlockType::BF16 => bf16::from_le_bytes([row[index * 2], row[index * 2 + 1]]).to_f32(),
        _ => unreachable!("{block_type} is not a float type"),
    }
}

/// The 6-bit scales and mins of Q4_K and Q5_K.
#[inline(always)]
pub(super) fn six_bit_pairs(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let word = |index: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| packed[index * 4 + byte]));
    let eight = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    let (scales, mins, rest) = (word(0), word(1), word(2));
    // The first four are whole; the others have 4 bits in the rest and 2 above the first four.
    let high = |word: u32| (word >> 6 & 0x0303_0303) << 4;
    (
        eight(scales & 0x3f3f_3f3f, rest & 0x0f0f_0f0f | high(scales)),
        eight(mins & 0x3f3f_3f3f, rest >> 4 & 0x0f0f_0f0f | high(mins)),
    )
}

/// The sixteen 6-bit scales of Q3_K, still offset by 32.
pub(super) fn q3_k_scales(packed: &[u8]) -> [u8; 16] {
    std::array::from_fn(|sub| {
        let low = if sub < 8 { packed[sub] & 15 } else { packed[sub - 8] >> 4 };
        low | ((packed[8 + sub % 4] >> (2 * (sub / 4))) & 3) << 4
    })
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn symmetric(scale: f32, offset: f32, d: &mut [f32], m: &mut [f32]) {
    (d[0], m[0]) = (scale, -offset * scale);
}

fn nibbles(packed: &[u8], codes: &mut [u8]) {
    for (index, byte) in packed.iter().enumerate() {
        (codes[index], codes[index + 16]) = (byte & 15, byte >> 4);
    }
}

fn fifth_bits(packed: &[u8], codes: &mut [u8]) {
    for (index, code) in codes[..32].iter_mut().enumerate() {
        *code |= ((packed[index / 8] >> (index % 8)) & 1) << 4;
    }
}

fn signed(packed: &[u8], codes: &mut [u8]) {
    packed.iter().zip(codes).for_each(|(byte, code)| *code = byte ^ 0x80);
}

fn q2_k(block: &[u8], codes: &mut [u8], d: &mut [f32], m: &mut [f32]) {
    let (scale, min) = (half_at(block, 80), half_at(block, 82));
    for (index, code) in codes[..256].iter_mut().enumerate() {
        let (half, shift, lane) = (index / 128, index % 128 / 32 * 2, index % 32);
        *code = (block[16 + half * 32 + lane] >> shift) & 3;
    }
    for sub in 0..16 {
        d[sub] = scale * f32::from(block[sub] & 15);
        m[sub] = -min * f32::from(block[sub] >> 4);
    }
}

fn q3_k(block: &[u8], codes: &mut [u8], d: &mut [f32], m: &mut [f32]) {
    let scale = half_at(block, 108);
    for (index, code) in codes[..256].iter_mut().enumerate() {
        let (half, part, lane) = (index / 128, index % 128 / 32, index % 32);
        let high = (block[lane] >> (half * 4 + part)) & 1;
        *code = ((block[32 + half * 32 + lane] >> (part * 2)) & 3) | high << 2;
    }
    for (sub, packed) in q3_k_scales(&block[96..108]).into_iter().enumerate() {
        symmetric(scale * (f32::from(packed) - 32.0), 4.0, &mut d[sub..], &mut m[sub..]);
    }
}

fn q4_k_q5_k(block_type: BlockType, block: &[u8], codes: &mut [u8], d: &mut [f32], m: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let (high, low) =
        if block_type == BlockType::Q5_K { (&block[16..48], &block[48..]) } else { (&[][..], &block[16..]) };
    for (index, code) in codes[..256].iter_mut().enumerate() {
        let (sub, lane) = (index / 32, index % 32);
        *code = (low[sub / 2 * 32 + lane] >> (sub % 2 * 4)) & 15;
        if let Some(bits) = high.get(lane) {
            *code |= ((bits >> sub) & 1) << 4;
        }
    }
    let (scales, mins) = six_bit_pairs(&block[4..16]);
    for sub in 0..8 {
        d[sub] = scale * f32::from(scales[sub]);
        m[sub] = -min * f32::from(mins[sub]);
    }
}

fn q6_k(block: &[u8], codes: &mut [u8], d: &mut [f32], m: &mut [f32]) {
    let scale = half_at(block, 208);
    for (index, code) in codes[..256].iter_mut().enumerate() {
        let (half, part, lane) = (index / 128, index % 128 / 32, index % 32);
        let low = (block[half * 64 + part % 2 * 32 + lane] >> (part / 2 * 4)) & 15;
        let high = (block[128 + half * 32 + lane] >> (part * 2)) & 3;
        *code = low | high << 4;
    }
    for sub in 0..16 {
        symmetric(scale * f32::from(block[192 + sub] as i8), 32.0, &mut d[sub..], &mut m[sub..]);
    }
}
