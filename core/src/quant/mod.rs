//! Quantised weights: ggml's block types, conversion from and to f32, and matrices of blocks.

mod block;
mod block_type;
mod convert;
mod float;
pub(crate) mod k;
mod k_fit;
pub(crate) mod legacy;
mod matrix;

pub(crate) use block::{Block, F16, GROUPS_MAX, blocks, blocks_mut, nearest_int};
pub use block_type::BlockType;
pub(crate) use convert::with_block;
pub use convert::{dequantize, quantize};
pub use matrix::{QMatrix, WeightBytes};
