//! GGUF model files: a reader that trusts nothing in the file, and a writer.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Versions 2 and 3, little-endian.

mod cursor;
mod file;
mod limits;
mod metadata;
mod parse;
mod value;
mod write;

#[cfg(test)]
mod tests;

pub use file::{GgufFile, Tensor};
pub use limits::*;
pub use metadata::{Metadata, Strings};
pub use value::{Value, ValueType};
pub use write::GgufWriter;
