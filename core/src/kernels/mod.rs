//! The CPU backend's arithmetic: matrix products on quantised weights, attention, and row operators.
//!
//! # Matrix products
//!
//! `y[r, o] = Σ x[r, i] · W[o, i]`. Weights are read in place, as the GGUF file stores them; a weight is `d · code + m`
//! with one `(d, m)` per 32 (or 16) columns. Activations are quantised once per input to 16 bits per block of 32
//! columns, so that a block's contribution is `d · scale · dot(codes) + m · Σx`.
//!
//! - One row (decode): a `gemv` kernel per block type unpacks in registers; the cost is reading the weights.
//! - More rows (prefill): 16 output features at a time are unpacked into a *panel* (codes interleaved by 4 or 2
//!   columns, as integer dot instructions want them) that one kernel for all block types multiplies with 8 rows at a time.
//!
//! # Instruction sets
//!
//! [`Kernels::detect`] picks the best one once; a [`Kernels`] value proves that the CPU has it. Every kernel has a
//! scalar twin, which is its meaning. Folders per architecture (`x86`, `neon`) hold what differs; `simd` holds what they
//! share, above all how each block type unpacks.

mod activations;
mod formats;
mod isa;
mod lone_row;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
mod product;
mod rows;
mod rows_api;
mod scalar;
mod side_memory;
mod side_path;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{Activations, Input};
pub use isa::{Isa, Kernels};
pub use product::Product;
#[cfg(feature = "onnx")]
pub(crate) use side_memory::Kept;
pub use side_memory::SideMemory;
pub use side_path::SidePath;

use activations::Group;
use rows::RowOps;
use side_path::{SideInput, SideTiles};

use crate::model::Activation;
use crate::quant::BlockType;

/// Output memory that workers write disjoint parts of.
#[derive(Clone, Copy)]
struct OutPointer(*mut f32);

// SAFETY: the product code gives every element to one worker only.
unsafe impl Sync for OutPointer {}
// SAFETY: as above.
unsafe impl Send for OutPointer {}

/// 16 output features, unpacked: `w[o, i] = d · code + m`.
#[derive(Clone, Copy)]
struct Panel {
    /// `[cols / run, 16, run]`: the run of columns that the instruction set multiplies at once.
    codes: *mut u8,
    /// `[cols / sub_len, 16]`
    d: *mut f32,
    /// `[cols / sub_len, 16]`
    m: *mut f32,
    /// Values from one sub-block's `d` and `m` to the next one's: 16, or none if a row has only one of each.
    scale_stride: usize,
}

/// Rows × output features of one kernel call.
type Block = [[f32; activations::TILE]; activations::GROUP];

/// What an instruction set provides. Every function's safety contract includes: the CPU has the instruction set.
struct Ops {
    /// Quantises one row into its place in a group.
    quantize: unsafe fn(values: &[f32], group: Group, row: usize),
    /// `out[o] = W[o, ..] · x` for consecutive rows `o` of a quantised weight and the only row of `x`.
    gemv: fn(BlockType) -> Gemv,
    /// The same for float weights.
    float_gemv: fn(BlockType) -> FloatGemv,
    /// Unpacks up to 16 rows of a quantised weight into a panel.
    unpack: fn(BlockType) -> Unpack,
    /// Multiplies a panel with a group of rows.
    multiply: fn(BlockType) -> Multiply,
    /// Unpacks up to 16 rows of a float weight as `[cols, 16]` f32.
    float_unpack: fn(BlockType) -> FloatUnpack,
    /// Adds the products of 16 unpacked float rows with up to [`activations::GROUP`] rows of f32.
    float_multiply: FloatMultiply,
    /// `out += b · ax` for one row; `b` has as many tiles as `out`, and as many runs as `ax`.
    side_rows: unsafe fn(b: SideTiles, ax: SideInput, out: &mut [[f32; activations::TILE]]),
    rows: &'static RowOps,
}

impl Ops {
    fn gate(&self, activation: Activation) -> unsafe fn(gate: &mut [f32], up: &[f32]) {
        self.rows.gate(activation)
    }
}

/// `(first row's bytes, bytes per row, x, out)`; `out.len()` rows are read.
type Gemv = unsafe fn(weights: *const u8, row_size_bytes: usize, x: Group, out: &mut [f32]);
type FloatGemv = unsafe fn(weights: *const u8, row_size_bytes: usize, x: &[f32], out: &mut [f32]);
/// `(first row's bytes, bytes per row, rows, blocks of 32 per row, panel)`
type Unpack = unsafe fn(weights: *const u8, row_size_bytes: usize, rows: usize, blocks: usize, panel: Panel);
type Multiply = unsafe fn(panel: Panel, x: Group, out: &mut Block);
/// `(panel, first row of x, values from row to row, rows, cols, out)`
type FloatMultiply = unsafe fn(panel: *const f32, x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut Block);
/// `(first row's bytes, bytes per row, rows, cols, panel)`
type FloatUnpack = unsafe fn(weights: *const u8, row_size_bytes: usize, rows: usize, cols: usize, panel: *mut f32);
