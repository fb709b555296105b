use super::activations::{BLOCK, Buffer, TILE};
use super::formats::{is_float, sub_len};
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
    codes: Buffer,
    d: Buffer,
    m: Buffer,
    /// Of one panel.
    sizes: Sizes,
    pub(super) block_type: BlockType,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Panels {
    pub(super) fn new(ops: &Ops, weight: &QMatrix) -> Self {
        let (block_type, rows, cols) = (weight.block_type(), weight.rows(), weight.cols());
        let mut sizes = Sizes::of(block_type, cols);
        if !is_float(block_type) {
            (sizes.d, sizes.m) = (TILE, TILE);
        }
        let (mut codes, mut d, mut m) = (Buffer::default(), Buffer::default(), Buffer::default());
        let count = rows.div_ceil(TILE);
        let codes_at = codes.reserve::<u8>(sizes.codes * count);
        let (d_at, m_at) = (d.reserve::<f32>(sizes.d * count), m.reserve::<f32>(sizes.m * count));
        let mut unpacked = PanelBuffer::default();
        for tile in 0..count {
            let panel = unpacked.unpack(ops, weight, tile);
            // SAFETY: the buffers have room for `count` panels, and `unpacked` holds one of at least that size.
            unsafe {
                codes_at.add(tile * sizes.codes).copy_from_nonoverlapping(panel.codes, sizes.codes);
                d_at.add(tile * sizes.d).copy_from_nonoverlapping(panel.d, sizes.d);
                m_at.add(tile * sizes.m).copy_from_nonoverlapping(panel.m, sizes.m);
            }
        }
        Self { codes, d, m, sizes, block_type, rows, cols }
    }

    /// Panels of 16 rows.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    pub(super) fn panel(&self, index: usize) -> Panel {
        assert!(index < self.count(), "panel {index} of {}", self.count());
        Panel {
            codes: self.codes.as_ptr::<u8>().wrapping_add(index * self.sizes.codes),
            d: self.d.as_ptr::<f32>().wrapping_add(index * self.sizes.d),
            m: self.m.as_ptr::<f32>().wrapping_add(index * self.sizes.m),
            scale_stride: if is_float(self.block_type) { TILE } else { 0 },
        }
    }

    /// Fetches `share` of `shares` equal stretches.
    pub(super) fn prefetch(&self, share: usize, shares: usize) {
        let part = |len: usize| (len * share / shares, len * (share + 1) / shares - len * share / shares);
        let (start, len) = part(self.sizes.codes * self.count());
        prefetch(self.codes.as_ptr::<u8>().wrapping_add(start), len);
        let (start, len) = part(self.sizes.d * self.count());
        prefetch(self.d.as_ptr::<f32>().wrapping_add(start), len);
        prefetch(self.m.as_ptr::<f32>(), self.sizes.m * self.count());
    }
}
