//! Products of an input of one row, and its side path.

use std::ops::Range;

use super::{
    BLOCK, Block, CODES_BYTES, Group, Panels, QMatrix, Scratch, Shared, SideInput, SideTarget, TILE, WorkerSums,
    is_float,
};
use crate::kernels::lone_row::COLUMN_PARTS;

impl Shared<'_> {
    /// What a worker does first in a region.
    pub(super) fn start(&self, scratch: &mut Scratch, worker: usize) {
        // A panic may have left some.
        scratch.done.clear();
        if let Some(lone_row) = &self.lone_row {
            lone_row.start(&mut scratch.lone_row, worker);
        }
    }

    /// What a worker does after its products: `a·x` of one row is ready then.
    pub(super) fn finish(&self, scratch: &mut Scratch) {
        self.reduce_parts(&mut scratch.lone_row);
        if let Some(lone_row) = self.lone_row.as_ref().filter(|_| !scratch.done.is_empty()) {
            lone_row.finish(&mut scratch.lone_row);
        }
    }

    /// The worker's parts of one row's `a·x`, unless it has computed them.
    pub(super) fn reduce_parts(&self, sums: &mut WorkerSums) {
        if let Some(lone_row) = &self.lone_row {
            lone_row.compute(sums, |panel, part| self.reduce_part(lone_row.a(), panel, part));
        }
    }

    /// One row's product with some columns of 16 rows of `a`.
    fn reduce_part(&self, a: &Panels, panel: usize, part: usize) -> [f32; TILE] {
        let (ops, mut panel) = (self.kernels.ops, a.panel(panel));
        let mut block = Block::default();
        let Some(quantized) = self.quantized.filter(|_| !is_float(a.block_type)) else {
            if part == 0 {
                // SAFETY: `kernels` proves the instruction set; the panel holds as many columns as the input.
                unsafe { (ops.float_multiply)(panel.d, self.values, self.cols, 1, self.cols, &mut block) };
            }
            return block[0];
        };
        let x = quantized.group(0);
        let (first, end) = (x.blocks * part / COLUMN_PARTS, x.blocks * (part + 1) / COLUMN_PARTS);
        // SAFETY: as above; the blocks are those of the input's only row.
        unsafe {
            panel.codes = panel.codes.add(first * BLOCK * TILE);
            let x = Group {
                codes: x.codes.add(first * CODES_BYTES),
                scales: x.scales.add(first),
                sums: x.sums.add(first),
                half_sums: x.half_sums.add(first * 2),
                rows: 1,
                blocks: end - first,
            };
            (ops.multiply)(a.block_type)(panel, x, &mut block);
        }
        block[0]
    }

    /// `out = W[features, ..] · x` for an input of one row; then the worker's parts of `a·x`.
    pub(super) fn gemv(
        &self,
        weight: &QMatrix,
        side: Option<&SideTarget>,
        features: Range<usize>,
        out: &mut [f32],
        sums: &mut WorkerSums,
    ) {
        if let Some(side) = side {
            side.prefetch(tiles(&features));
        }
        let size = weight.row_size_bytes();
        let weights = weight.bytes()[features.start * size..features.end * size].as_ptr();
        let (ops, block_type) = (self.kernels.ops, weight.block_type());
        // SAFETY: `kernels` proves the instruction set; the slice above holds the rows; the input has as many columns.
        unsafe {
            if is_float(block_type) {
                (ops.float_gemv)(block_type)(weights, size, self.values, out);
            } else {
                let x = self.quantized.expect("quantised for a quantised weight").group(0);
                (ops.gemv)(block_type)(weights, size, x, out);
            }
        }
        self.reduce_parts(sums);
    }

    /// `out += b[features, ..] · a·x` for an input of one row; the range starts at a tile.
    pub(super) fn add_side(&self, side: &SideTarget, ax: SideInput, features: Range<usize>, out: &mut [f32]) {
        let (ops, tiles) = (self.kernels.ops, tiles(&features));
        let (whole, rest) = out.as_chunks_mut::<TILE>();
        let whole_tiles = tiles.start..tiles.start + whole.len();
        // SAFETY: `kernels` proves the instruction set; tiles and runs are as many on both sides.
        unsafe {
            (ops.side_rows)(side.tiles(whole_tiles), ax, whole);
            if !rest.is_empty() {
                let mut last = [[0.0; TILE]];
                last[0][..rest.len()].copy_from_slice(rest);
                (ops.side_rows)(side.tiles(tiles.end - 1..tiles.end), ax, &mut last);
                rest.copy_from_slice(&last[0][..rest.len()]);
            }
        }
    }
}

/// The tiles that hold `features`.
fn tiles(features: &Range<usize>) -> Range<usize> {
    features.start / TILE..features.end.div_ceil(TILE)
}
