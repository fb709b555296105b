//! Block-quantised weights as the operands of `MatMulNBits` and `GatherBlockQuantized`.
//!
//! Every block type is `step · (code − ZERO) + min` over groups of 16, 32 or 256 weights. Those operators compute
//! `step · (code − 2^(bits−1))`, so a type without a min needs its codes shifted and nothing else: exact. A type with
//! a min, `min' = min + step · (centre − ZERO)` beside it, adds `min' · Σ x` per group: exact as well, and 100 times
//! faster than the float zero points that `MatMulNBits` also takes, for which ONNX Runtime has no kernel of its own.

use std::io::{self, Write};

use crate::quant::{Block, BlockType, GROUPS_MAX, QMatrix, blocks, dequantize, with_block};

/// How a block type is laid out for ONNX Runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// f32, `[rows, cols]`.
    Floats,
    /// Codes of 4 or 8 bits, `[rows, cols / group]` f32 steps and, for some types, as many f32 mins.
    Blocks { bits: usize, group: usize, has_mins: bool },
}

/// One operand of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// f32 weights.
    Floats,
    /// Codes, packed from the low bits up.
    Codes,
    /// One f32 per group.
    Steps,
    /// One f32 per group.
    Mins,
}

pub(super) fn layout(block_type: BlockType) -> Layout {
    let has_mins = has_mins(block_type);
    with_block!(block_type, B => Layout::Blocks { bits: bits::<B>(), group: B::GROUP, has_mins }, Layout::Floats)
}

const fn has_mins(block_type: BlockType) -> bool {
    use BlockType::{Q2_K, Q4_1, Q4_K, Q5_1, Q5_K};
    matches!(block_type, Q2_K | Q4_1 | Q4_K | Q5_1 | Q5_K)
}

fn bits<B: Block>() -> usize {
    if *B::CODES.end() < 16 { 4 } else { 8 }
}

/// The code that becomes the operators' zero: the middle of the range where a min takes up the rest.
fn centre<B: Block>() -> u8 {
    if has_mins(B::TYPE) { B::CODES.end().div_ceil(2) } else { B::ZERO }
}

/// Writes one operand of `matrix`, row by row, little-endian.
pub(super) fn write(matrix: &QMatrix, part: Part, out: &mut dyn Write) -> io::Result<()> {
    let block_type = matrix.block_type();
    with_block!(block_type, B => write_blocks::<B>(matrix, part, out), write_floats(matrix, out))
}

fn write_floats(matrix: &QMatrix, out: &mut dyn Write) -> io::Result<()> {
    let mut values = vec![0.0; matrix.cols()];
    let mut bytes = Vec::with_capacity(4 * matrix.cols());
    for row in 0..matrix.rows() {
        dequantize(matrix.block_type(), matrix.row(row), &mut values);
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn write_blocks<B: Block>(matrix: &QMatrix, part: Part, out: &mut dyn Write) -> io::Result<()> {
    let (bits, centre) = (bits::<B>(), centre::<B>());
    // Two's complement wraps as the codes do: `code − centre + 2^(bits−1)` is in range for every code a writer may use.
    let shift = (1_u8 << (bits - 1)).wrapping_sub(centre);
    let (mut codes, mut steps, mut mins) = ([0_u8; 256], [0.0; GROUPS_MAX], [0.0; GROUPS_MAX]);
    let groups = B::LEN / B::GROUP;
    let mut bytes = Vec::new();
    for row in 0..matrix.rows() {
        bytes.clear();
        for block in blocks::<B>(matrix.row(row)) {
            match part {
                Part::Codes => {
                    block.codes(&mut codes);
                    let codes = codes[..B::LEN].iter_mut().map(|code| code.wrapping_add(shift));
                    if bits == 8 {
                        bytes.extend(codes);
                    } else {
                        let codes: Vec<u8> = codes.collect();
                        bytes.extend(codes.chunks_exact(2).map(|pair| pair[0] & 15 | pair[1] << 4));
                    }
                }
                Part::Steps | Part::Mins | Part::Floats => {
                    block.steps(&mut steps, &mut mins);
                    let offset = f32::from(centre) - f32::from(B::ZERO);
                    for (step, min) in steps[..groups].iter().zip(&mins[..groups]) {
                        let value = if part == Part::Mins { min + step * offset } else { *step };
                        bytes.extend_from_slice(&value.to_le_bytes());
                    }
                }
            }
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{WeightBytes, quantize};

    fn floats(matrix: &QMatrix, part: Part) -> Vec<f32> {
        let mut bytes = Vec::new();
        write(matrix, part, &mut bytes).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    }

    #[test]
    fn every_block_type_is_taken_over_exactly() {
        for block_type in BlockType::ALL {
            let weights: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 40.0) / 64.0).collect();
            let mut bytes = vec![0; block_type.row_size_bytes(256).unwrap() * 2];
            quantize(block_type, &weights, &mut bytes);
            let matrix = QMatrix::new(WeightBytes::Owned(bytes.into()), block_type, 2, 256).unwrap();
            let mut expected = vec![0.0; 512];
            dequantize(block_type, matrix.bytes(), &mut expected);

            let Layout::Blocks { bits, group, has_mins } = layout(block_type) else {
                assert_eq!(floats(&matrix, Part::Floats), expected, "{block_type}");
                continue;
            };
            let mut codes = Vec::new();
            write(&matrix, Part::Codes, &mut codes).unwrap();
            assert_eq!(codes.len(), 512 * bits / 8, "{block_type}");
            let steps = floats(&matrix, Part::Steps);
            let mins = if has_mins { floats(&matrix, Part::Mins) } else { vec![0.0; steps.len()] };
            assert_eq!(steps.len(), 512 / group, "{block_type}");
            for (index, expected) in expected.iter().enumerate() {
                let code = if bits == 8 { codes[index] } else { codes[index / 2] >> (4 * (index % 2)) & 15 };
                let centred = f32::from(code) - f32::from(1_u8 << (bits - 1));
                let value = steps[index / group] * centred + mins[index / group];
                assert!((value - expected).abs() <= 1e-6, "{block_type}: weight {index} is {value}, not {expected}");
            }
        }
    }
}
