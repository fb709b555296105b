//! Products of more rows than one: a tile is unpacked once and multiplied with groups of rows.

use std::ops::Range;

use super::units::Units;
use super::{
    Block, BlockType, GROUP, OutPointer, Panel, PanelBuffer, Panels, QMatrix, Shared, SideTarget, TILE, is_float,
};
use crate::threads::ThreadPool;

impl Shared<'_> {
    /// `a·x` of several rows, `[rows, Σ rank]`.
    pub(super) fn reduce(&self, pool: &ThreadPool, a: &Panels, out: &mut [f32]) {
        let out = OutPointer(out.as_mut_ptr());
        // A region costs as much as some 20,000 products.
        if self.rows * self.cols * self.side_stride < 40_000 {
            // SAFETY: only this thread writes.
            return unsafe { self.reduce_rows(a, 0..a.count(), 0..self.rows, &out) };
        }
        let units = Units::new(self.rows, self.side_stride, pool);
        let chunks = units.chunks(a.count(), pool);
        let out = &out;
        pool.run(|worker, _| {
            while let Some(range) = chunks.take(worker) {
                // SAFETY: `chunks` hands every tile of these rows to one worker.
                units.split(range, a.count(), |rows, tiles| unsafe { self.reduce_rows(a, tiles, rows, out) });
            }
        });
    }

    /// # Safety
    /// `out` is `[rows of the input, Σ rank]`; no one else writes these rows' part of these tiles.
    unsafe fn reduce_rows(&self, a: &Panels, tiles: Range<usize>, rows: Range<usize>, out: &OutPointer) {
        let mut block = Block::default();
        for tile in tiles {
            let unpacked = Unpacked { block_type: a.block_type, panel: a.panel(tile), side: None };
            let width = (a.rows - tile * TILE).min(TILE);
            for group in rows.start / GROUP..rows.end.div_ceil(GROUP) {
                unpacked.multiply(self, group, &mut block);
                for (row, values) in (group * GROUP..rows.end).zip(&block) {
                    // SAFETY: the caller's promise.
                    unsafe { out.slice(row * a.rows + tile * TILE, width) }.copy_from_slice(&values[..width]);
                }
            }
        }
    }
}

/// A tile of a weight, unpacked into a worker's scratch memory.
pub(super) struct Unpacked<'a> {
    block_type: BlockType,
    panel: Panel,
    side: Option<(&'a SideTarget, &'a [f32])>,
}

impl<'a> Unpacked<'a> {
    pub(super) fn new(
        shared: &Shared,
        buffer: &'a mut PanelBuffer,
        side_buffer: &'a mut Vec<f32>,
        weight: &QMatrix,
        side: Option<&'a SideTarget>,
        tile: usize,
    ) -> Self {
        let ops = shared.kernels.ops;
        let panel = buffer.unpack(ops, weight, tile);
        let side = side.map(|side| {
            side_buffer.resize(side.rank * TILE, 0.0);
            // SAFETY: `kernels` proves the instruction set.
            unsafe { (ops.rows.side_panel)(side.tiles(tile..tile + 1), side_buffer) };
            (side, &side_buffer[..])
        });
        Self { block_type: weight.block_type(), panel, side }
    }

    /// The products of the tile with the input's rows `8 · group..`, side path included.
    pub(super) fn multiply(&self, shared: &Shared, group: usize, out: &mut Block) {
        let ops = shared.kernels.ops;
        let block_type = self.block_type;
        let first = group * GROUP;
        let rows = (shared.rows - first).min(GROUP);
        // SAFETY: `kernels` proves the instruction set; the panel holds as many columns as the input.
        unsafe {
            if is_float(block_type) {
                *out = Block::default();
                let x = &shared.values[first * shared.cols..][..rows * shared.cols];
                (ops.float_multiply)(self.panel.d, x, shared.cols, rows, shared.cols, out);
            } else {
                let x = shared.quantized.expect("quantised for a quantised weight").group(group);
                (ops.multiply)(block_type)(self.panel, x, out);
            }
        }
        if let Some((target, b)) = self.side {
            let ax = &shared.side[first * shared.side_stride + target.start..];
            // SAFETY: `kernels` proves the instruction set; `b` is `[rank, 16]`, and `ax` has the rows.
            unsafe { (ops.float_multiply)(b.as_ptr(), ax, shared.side_stride, rows, target.rank, out) };
        }
    }
}
