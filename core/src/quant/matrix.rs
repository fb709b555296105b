use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

use super::BlockType;
use crate::{Error, Result};

/// The bytes of a weight: a part of a memory-mapped file, or owned memory. Clones share them.
#[derive(Clone)]
pub enum WeightBytes {
    /// Clean pages of a file that the system may drop and read again.
    Mapped {
        /// The whole file.
        file: Arc<Mmap>,
        /// The weight's bytes in it.
        range: Range<usize>,
    },
    /// Memory of this process.
    Owned(Arc<[u8]>),
    /// A part of memory that several weights of this process share, such as all that a merge made.
    Shared {
        /// All of it; anonymous.
        memory: Arc<Mmap>,
        /// The weight's bytes in it.
        range: Range<usize>,
    },
}

impl Deref for WeightBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped { file: memory, range } | Self::Shared { memory, range } => &memory[range.clone()],
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A weight matrix `[rows, cols]` = `[out, in]`, stored row by row in blocks. Clones share the bytes.
#[derive(Clone)]
pub struct QMatrix {
    bytes: WeightBytes,
    block_type: BlockType,
    rows: usize,
    cols: usize,
}

impl QMatrix {
    /// # Errors
    /// [`Error::ShapeMismatch`] if a row is not a whole number of blocks or the bytes have another length.
    pub fn new(bytes: WeightBytes, block_type: BlockType, rows: usize, cols: usize) -> Result<Self> {
        let size = block_type.row_size_bytes(cols).and_then(|row| row.checked_mul(rows));
        if size != Some(bytes.len()) {
            return Err(Error::ShapeMismatch {
                tensor: format!("{block_type} matrix [{rows}, {cols}]"),
                expected: vec![size.unwrap_or(0)],
                actual: vec![bytes.len()],
            });
        }
        Ok(Self { bytes, block_type, rows, cols })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the weights are stored.
    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// Bytes of one row.
    pub fn row_size_bytes(&self) -> usize {
        self.bytes.len().checked_div(self.rows).unwrap_or(0)
    }

    /// All blocks, row by row.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, to share them.
    pub fn weight_bytes(&self) -> WeightBytes {
        self.bytes.clone()
    }

    /// The blocks of row `row`.
    ///
    /// # Panics
    /// If `row >= rows`.
    pub fn row(&self, row: usize) -> &[u8] {
        let size = self.row_size_bytes();
        &self.bytes[row * size..][..size]
    }
}
