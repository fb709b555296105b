//! The scalar twins: what every kernel means, and what runs where no instruction set is known.

use super::activations::{BLOCK, CODES_BYTES, Group, TILE, quantize_scalar};
use super::formats::{float_at, sub_len, unpack_block};
use super::side_path::side_rows_scalar;
use super::{Block, FloatGemv, FloatUnpack, Gemv, Multiply, Ops, Panel, Unpack};
use crate::quant::BlockType;

super::rows::row_ops!(false);

pub(super) static OPS: Ops = Ops {
    quantize: quantize_scalar,
    gemv,
    float_gemv,
    unpack,
    multiply,
    float_unpack,
    float_multiply,
    side_rows: side_rows_scalar,
    rows: &ROW_OPS,
};

/// Calls `$function::<{ block type }>` through a constant, so that each type gets a plain function pointer.
macro_rules! by_type {
    ($block_type:expr, $function:ident, [$($name:ident),*]) => {
        match $block_type {
            $(BlockType::$name => $function::<{ BlockType::$name.ggml_number() }>,)*
            other => unreachable!("{other} is of the other kind"),
        }
    };
}

fn gemv(block_type: BlockType) -> Gemv {
    by_type!(block_type, gemv_rows, [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K])
}

pub(super) fn unpack(block_type: BlockType) -> Unpack {
    by_type!(block_type, unpack_rows, [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K])
}

fn float_gemv(block_type: BlockType) -> FloatGemv {
    by_type!(block_type, float_gemv_rows, [F32, F16, BF16])
}

fn float_unpack(block_type: BlockType) -> FloatUnpack {
    by_type!(block_type, float_unpack_rows, [F32, F16, BF16])
}

fn multiply(block_type: BlockType) -> Multiply {
    if sub_len(block_type) == 16 { multiply_panel::<16> } else { multiply_panel::<32> }
}

fn typed<const TYPE: u32>() -> BlockType {
    BlockType::from_ggml(TYPE).expect("a number of this crate's own table")
}

/// # Safety
/// `out.len()` rows of `row_size_bytes` can be read at `weights`.
pub(super) unsafe fn gemv_rows<const TYPE: u32>(weights: *const u8, row_size_bytes: usize, x: Group, out: &mut [f32]) {
    let block_type = typed::<TYPE>();
    let sub = sub_len(block_type);
    let (mut codes, mut d, mut m) = ([0u8; 256], [0f32; 16], [0f32; 16]);
    for (row, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(weights.add(row * row_size_bytes), row_size_bytes) };
        let mut sum = 0.0;
        for (block, bytes) in bytes.chunks_exact(block_type.block_size_bytes()).enumerate() {
            unpack_block(block_type, bytes, &mut codes, &mut d, &mut m);
            for (index, codes) in codes[..block_type.block_len()].chunks_exact(sub).enumerate() {
                let first = block * block_type.block_len() + index * sub;
                // SAFETY: a row of `x` has as many columns as a row of the weight, and `x` has one row.
                let (x, scale, x_sum) = unsafe {
                    let sum = if sub == 16 { *x.half_sums.add(first / 16) } else { *x.sums.add(first / BLOCK) };
                    let codes = x.codes.add(first * CODES_BYTES / BLOCK).cast::<i16>();
                    (std::slice::from_raw_parts(codes, sub), *x.scales.add(first / BLOCK), sum)
                };
                let dot: i32 = codes.iter().zip(x).map(|(code, x)| i32::from(*code) * i32::from(*x)).sum();
                sum += d[index] * scale * dot as f32 + m[index] * x_sum;
            }
        }
        *out = sum;
    }
}

/// # Safety
/// `rows` (at most 16) rows of `blocks` blocks can be read at `weights`; the panel has room for them.
pub(super) unsafe fn unpack_rows<const TYPE: u32>(
    weights: *const u8,
    row_size_bytes: usize,
    rows: usize,
    blocks: usize,
    panel: Panel,
) {
    let block_type = typed::<TYPE>();
    let sub = sub_len(block_type);
    let (mut codes, mut d, mut m) = ([0u8; 256], [0f32; 16], [0f32; 16]);
    for row in 0..TILE {
        for block in 0..blocks * BLOCK / block_type.block_len() {
            if row < rows {
                let size = block_type.block_size_bytes();
                // SAFETY: the caller's promise.
                let bytes =
                    unsafe { std::slice::from_raw_parts(weights.add(row * row_size_bytes + block * size), size) };
                unpack_block(block_type, bytes, &mut codes, &mut d, &mut m);
            } else {
                (codes, d, m) = ([0; 256], [0.0; 16], [0.0; 16]);
            }
            let first = block * block_type.block_len();
            for (index, code) in codes[..block_type.block_len()].iter().enumerate() {
                let col = first + index;
                // SAFETY: the panel has `cols · 16` codes.
                unsafe { *panel.codes.add((col / 4 * TILE + row) * 4 + col % 4) = *code };
            }
            for index in 0..block_type.block_len() / sub {
                // SAFETY: the panel has `cols / sub · 16` scales.
                unsafe {
                    *panel.d.add((first / sub + index) * TILE + row) = d[index];
                    *panel.m.add((first / sub + index) * TILE + row) = m[index];
                }
            }
        }
    }
}

/// # Safety
/// The panel holds as many columns as `x`.
unsafe fn multiply_panel<const SUB: usize>(panel: Panel, x: Group, out: &mut Block) {
    *out = Block::default();
    for sub in 0..x.blocks * BLOCK / SUB {
        let col = sub * SUB;
        for (row, out) in out[..x.rows].iter_mut().enumerate() {
            let at = col / BLOCK * x.rows + row;
            for (feature, out) in out.iter_mut().enumerate() {
                let mut dot = 0;
                for index in 0..SUB {
                    // SAFETY: the caller's promise.
                    dot += unsafe {
                        i32::from(*panel.codes.add(((col + index) / 4 * TILE + feature) * 4 + index % 4))
                            * i32::from(*x.codes.add(at * CODES_BYTES).cast::<i16>().add(col % BLOCK + index))
                    };
                }
                // SAFETY: as above.
                unsafe {
                    let x_sum = if SUB == 16 { *x.half_sums.add(at * 2 + sub % 2) } else { *x.sums.add(at) };
                    let scales = sub * panel.scale_stride + feature;
                    let (d, m) = (*panel.d.add(scales), *panel.m.add(scales));
                    *out += d * *x.scales.add(at) * dot as f32 + m * x_sum;
                }
            }
        }
    }
}

/// # Safety
/// `out.len()` rows of `x.len()` floats can be read at `weights`.
unsafe fn float_gemv_rows<const TYPE: u32>(weights: *const u8, row_size_bytes: usize, x: &[f32], out: &mut [f32]) {
    for (row, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(weights.add(row * row_size_bytes), row_size_bytes) };
        *out = x.iter().enumerate().map(|(col, x)| x * float_at(typed::<TYPE>(), bytes, col)).sum();
    }
}

/// # Safety
/// `rows` (at most 16) rows of `cols` floats can be read at `weights`; the panel has room for `cols · 16`.
pub(super) unsafe fn float_unpack_rows<const TYPE: u32>(
    weights: *const u8,
    row_size_bytes: usize,
    rows: usize,
    cols: usize,
    panel: *mut f32,
) {
    for row in 0..TILE {
        for col in 0..cols {
            let value = if row < rows {
                // SAFETY: the caller's promise.
                let bytes = unsafe { std::slice::from_raw_parts(weights.add(row * row_size_bytes), row_size_bytes) };
                float_at(typed::<TYPE>(), bytes, col)
            } else {
                0.0
            };
            // SAFETY: the panel has `cols · 16` values.
            unsafe { *panel.add(col * TILE + row) = value };
        }
    }
}

/// # Safety
/// The panel holds `cols · 16` values.
unsafe fn float_multiply(panel: *const f32, x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut Block) {
    for (row, out) in out[..rows].iter_mut().enumerate() {
        for (col, x) in x[row * stride..][..cols].iter().enumerate() {
            for (feature, out) in out.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *out += x * unsafe { *panel.add(col * TILE + feature) };
            }
        }
    }
}
