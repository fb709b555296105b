use super::activations::{BLOCK, Buffer, TILE};
use super::formats::{is_float, sub_len};
use super::side_memory::{Kept, SideMemory};
use super::side_path::prefetch;
use super::{Ops, Panel};
use crate::quant::{BlockType, QMatrix};

/// Memory of an unpacked tile, reused from tile to tile.
#[derive(Default)]
pub(super) struct PanelBuffer {
    codes: Buffer,
    d: Buffer,
    m: Buffer,
}

/// Values of a panel's parts.
struct Sizes {
    codes: usize,
    d: usize,
    m: usize,
}

impl Sizes {
    fn of(block_type: BlockType, cols: usize) -> Self {
        if is_float(block_type) {
            return Self { codes: 0, d: cols * TILE, m: 0 };
        }
        let scales = cols / sub_len(block_type) * TILE;
        Self { codes: cols * TILE, d: scales, m: scales }
    }
}

impl PanelBuffer {
    /// Unpacks the weight's rows from `16 · tile` on.
    pub(super) fn unpack(&mut self, ops: &Ops, weight: &QMatrix, tile: usize) -> Panel {
        let (size, cols, block_type) = (weight.row_size_bytes(), weight.cols(), weight.block_type());
        let sizes = Sizes::of(block_type, cols);
        let panel = Panel {
            codes: self.codes.reserve(sizes.codes),
            d: self.d.reserve(sizes.d),
            m: self.m.reserve(sizes.m),
            scale_stride: TILE,
        };
        let rows = (weight.rows() - tile * TILE).min(TILE);
        let weights = weight.bytes()[tile * TILE * size..][..rows * size].as_ptr();
        // SAFETY: kernels prove the instruction set; the slice above holds the rows; the panel has room for them.
        unsafe {
            if is_float(block_type) {
                (ops.float_unpack)(block_type)(weights, size, rows, cols, panel.d);
            } else {
                (ops.unpack)(block_type)(weights, size, rows, cols / BLOCK, panel);
            }
        }
        panel
    }
}

/// A small matrix, unpacked once; of quantised ones, all blocks of a row have the same `d` and `m`, which is kept once.
pub(super) struct Panels {
    codes: Kept<u8>,
    d: Kept<f32>,
    m: Kept<f32>,
    /// Of one panel.
    sizes: Sizes,
    pub(super) block_type: BlockType,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Panels {
    pub(super) fn new(ops: &Ops, memory: &SideMemory, weight: &QMatrix) -> Self {
        let (block_type, rows, cols) = (weight.block_type(), weight.rows(), weight.cols());
        let mut sizes = Sizes::of(block_type, cols);
        if !is_float(block_type) {
            (sizes.d, sizes.m) = (TILE, TILE);
        }
        let (mut codes, mut d, mut m) = (Vec::new(), Vec::new(), Vec::new());
        let mut unpacked = PanelBuffer::default();
        for tile in 0..rows.div_ceil(TILE) {
            let panel = unpacked.unpack(ops, weight, tile);
            // SAFETY: the panel has at least these sizes.
            unsafe {
                codes.extend_from_slice(std::slice::from_raw_parts(panel.codes, sizes.codes));
                d.extend_from_slice(std::slice::from_raw_parts(panel.d, sizes.d));
                m.extend_from_slice(std::slice::from_raw_parts(panel.m, sizes.m));
            }
        }
        Self { codes: memory.keep(&codes), d: memory.keep(&d), m: memory.keep(&m), sizes, block_type, rows, cols }
    }

    /// Panels of 16 rows.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// For reading.
    pub(super) fn panel(&self, index: usize) -> Panel {
        Panel {
            codes: self.codes[index * self.sizes.codes..].as_ptr().cast_mut(),
            d: self.d[index * self.sizes.d..].as_ptr().cast_mut(),
            m: self.m[index * self.sizes.m..].as_ptr().cast_mut(),
            scale_stride: if is_float(self.block_type) { TILE } else { 0 },
        }
    }

    /// Fetches `share` of `shares` equal stretches.
    pub(super) fn prefetch(&self, share: usize, shares: usize) {
        let part = |len: usize| len * share / shares..len * (share + 1) / shares;
        prefetch(&self.codes[part(self.codes.len())]);
        prefetch(&self.d[part(self.d.len())]);
        prefetch(&self.m);
    }
}
