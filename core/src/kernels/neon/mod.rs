//! Kernels for 64-bit ARM: plain NEON, with the dot product instruction (`dotprod`), and with the matrix product
//! instruction (`i8mm`).

mod bytes;
mod dots;
mod floats;
mod instructions;
mod multiply;
mod quantize;
mod side_rows;
mod unpack;

use std::arch::is_aarch64_feature_detected;

use super::formats::sub_len;
use super::simd::formats::{self, Format};
use super::simd::{by_format, gemv};
use super::{Gemv, Multiply, Ops, Unpack};
use crate::kernels::activations::Group;
use crate::quant::BlockType;

use dots::{Dotprod, I8mm, Plain};

super::rows::row_ops!(true, "neon");

/// Defines the kernels of one way to multiply.
macro_rules! ops {
    ($name:ident, $way:ident, $quantize:ident, $side_rows:ident, $features:literal) => {
        pub(in crate::kernels) static $name: Ops = {
            #[target_feature(enable = $features)]
            unsafe fn gemv_rows<F: Format>(weights: *const u8, row_size_bytes: usize, x: Group, out: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { gemv::gemv_rows::<F, $way>(weights, row_size_bytes, x, out) }
            }
            #[target_feature(enable = $features)]
            unsafe fn multiply_panel<const SUB: usize>(panel: super::Panel, x: Group, out: &mut super::Block) {
                // SAFETY: the caller's promise.
                unsafe { multiply::multiply_panel::<$way, SUB>(panel, x, out) }
            }
            fn gemv(block_type: BlockType) -> Gemv {
                by_format!(block_type, gemv_rows)
            }
            fn unpack(block_type: BlockType) -> Unpack {
                use self::unpack::unpack_rows;
                by_format!(block_type, unpack_rows, $way)
            }
            fn multiply(block_type: BlockType) -> Multiply {
                if sub_len(block_type) == 16 { multiply_panel::<16> } else { multiply_panel::<32> }
            }
            Ops {
                quantize: quantize::$quantize,
                gemv,
                float_gemv: floats::gemv,
                unpack,
                multiply,
                float_unpack: floats::unpack,
                float_multiply: floats::multiply,
                side_rows: side_rows::$side_rows,
                rows: &ROW_OPS,
            }
        };
    };
}

ops!(PLAIN, Plain, in_order, plain, "neon");
ops!(DOTPROD, Dotprod, in_planes, dotprod, "neon,dotprod");
ops!(I8MM, I8mm, in_planes, dotprod, "neon,dotprod,i8mm");

/// Whether this CPU has what [`PLAIN`] needs; every 64-bit ARM does, unless it has no floating point.
pub(in crate::kernels) fn plain_available() -> bool {
    is_aarch64_feature_detected!("neon")
}

/// Whether this CPU has what [`DOTPROD`] needs.
pub(in crate::kernels) fn dotprod_available() -> bool {
    plain_available() && is_aarch64_feature_detected!("dotprod")
}

/// Whether this CPU has what [`I8MM`] needs.
pub(in crate::kernels) fn i8mm_available() -> bool {
    dotprod_available() && is_aarch64_feature_detected!("i8mm")
}
