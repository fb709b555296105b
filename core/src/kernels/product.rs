mod many_rows;
mod one_row;
mod side_alone;
mod units;

use std::cell::RefCell;
use std::ops::Range;

use super::activations::{BLOCK, CODES_BYTES, GROUP, Group, Input, Quantized, TILE};
use super::formats::is_float;
use super::lone_row::{LoneRow, WorkerSums};
use super::panels::{PanelBuffer, Panels};
use super::side_path::{SideInput, SidePath, SideTarget};
use super::{Block, Kernels, OutPointer, Panel};
use crate::model::Activation;
use crate::quant::{BlockType, QMatrix};
use crate::threads::ThreadPool;

use many_rows::Unpacked;
use units::Units;

/// One matrix product `y[r, o] = Σ x[r, i] · W[o, i] + bias[o]`.
pub struct Product<'a> {
    /// `W`, `[out, in]`
    pub weight: &'a QMatrix,
    /// `[out]`
    pub bias: Option<&'a [f32]>,
    /// `y`, row-major `[rows, out]`
    pub out: &'a mut [f32],
}

/// What the workers share: the input in the forms the weights need, and `a·x` of the side path.
struct Shared<'a> {
    kernels: Kernels,
    values: &'a [f32],
    cols: usize,
    rows: usize,
    quantized: Option<Quantized>,
    /// `a·x` of more rows than one: `[rows, side_stride]`
    side: &'a [f32],
    side_stride: usize,
    /// `a·x` of one.
    lone_row: Option<LoneRow<'a>>,
}

/// A worker's memory.
#[derive(Default)]
struct Scratch {
    panels: [PanelBuffer; 2],
    side: [Vec<f32>; 2],
    lone_row: WorkerSums,
    /// Of one row, `up·x` while the gate's product is in the output.
    ups: Vec<f32>,
    /// Of one row, the features whose products are done: index of the product and stretch.
    done: Vec<(usize, Range<usize>)>,
}

impl Scratch {
    /// Notes that a stretch is done; neighbours become one.
    fn note(&mut self, product: usize, features: Range<usize>) {
        match self.done.last_mut() {
            Some((last, done)) if *last == product && done.end == features.start => done.end = features.end,
            _ => self.done.push((product, features)),
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Kernels {
    /// Computes products that share the input `x` in one parallel region, each with its part of `side`, if any.
    ///
    /// # Panics
    /// If shapes do not fit: `weight.cols() == x.cols()`, `out.len() == rows · weight.rows()`, one target of `side` per
    /// product.
    pub fn matmul(&self, pool: &ThreadPool, x: &mut Input, products: &mut [Product], side: Option<&SidePath>) {
        for (index, product) in products.iter().enumerate() {
            check(x, product.weight, product.out, side, index);
            assert!(product.bias.is_none_or(|bias| bias.len() == product.weight.rows()), "one bias per output feature");
        }
        let shared = self.share(pool, x, products.iter().map(|product| product.weight), side);
        let units = Units::new(shared.rows, products.iter().map(|product| product.weight.rows()).sum(), pool);
        let tiles: usize = products.iter().map(|product| product.weight.rows().div_ceil(TILE)).sum();
        let chunks = units.chunks(tiles, pool);
        let products = &*products;
        pool.run(|worker, _| {
            SCRATCH.with_borrow_mut(|scratch| {
                shared.start(scratch, worker);
                while let Some(range) = chunks.take(worker) {
                    units.split(range, tiles, |rows, mut range| {
                        let mut first = 0;
                        for (index, product) in products.iter().enumerate() {
                            let end = first + product.weight.rows().div_ceil(TILE);
                            let part = range.start.max(first)..range.end.min(end);
                            if !part.is_empty() {
                                let target = side.and_then(|side| side.targets[index].as_ref());
                                let tiles = part.start - first..part.end - first;
                                // SAFETY: `chunks` hands every tile of these rows to one worker.
                                unsafe { product_tiles(&shared, scratch, product, index, target, tiles, rows.clone()) };
                                range.start = part.end;
                            }
                            first = end;
                        }
                    });
                }
                shared.finish(scratch);
                for (index, features) in scratch.done.drain(..) {
                    if let Some(target) = side.and_then(|side| side.targets[index].as_ref()) {
                        let out = OutPointer(products[index].out.as_ptr().cast_mut());
                        // SAFETY: this worker alone has computed these features.
                        let out = unsafe { out.slice(features.start, features.len()) };
                        shared.add_side(target, scratch.lone_row.input(target), features, out);
                    }
                }
            });
        });
    }

    /// `out = activation(gate·x) ⊙ (up·x)`, `[rows, ffn]`; the targets of `side` are the gate's and the up
    /// projection's.
    ///
    /// # Panics
    /// As [`matmul`](Self::matmul); `gate` and `up` have one shape.
    pub fn gated(
        &self,
        pool: &ThreadPool,
        x: &mut Input,
        [gate, up]: [&QMatrix; 2],
        activation: Activation,
        side: Option<&SidePath>,
        out: &mut [f32],
    ) {
        check(x, gate, out, side, 0);
        check(x, up, out, side, 1);
        let shared = self.share(pool, x, [gate, up].into_iter(), side);
        let targets = [0, 1].map(|index| side.and_then(|side| side.targets[index].as_ref()));
        let tiles = gate.rows().div_ceil(TILE);
        let activate = self.ops.gate(activation);
        let units = Units::new(shared.rows, gate.rows() * 2, pool);
        let chunks = units.chunks(tiles, pool);
        let out = OutPointer(out.as_mut_ptr());
        let out = &out;
        pool.run(|worker, _| {
            SCRATCH.with_borrow_mut(|scratch| {
                shared.start(scratch, worker);
                while let Some(range) = chunks.take(worker) {
                    units.split(range, tiles, |rows, tiles| {
                        // SAFETY: `chunks` hands every tile of these rows to one worker.
                        unsafe { gated_tiles(&shared, scratch, [gate, up], targets, activation, out, tiles, rows) };
                    });
                }
                shared.finish(scratch);
                let Scratch { ups, done, lone_row, .. } = scratch;
                for (_, features) in done.drain(..) {
                    // SAFETY: this worker alone has computed these features.
                    let gates = unsafe { out.slice(features.start, features.len()) };
                    let ups = &mut ups[features.clone()];
                    if let Some(target) = targets[0] {
                        shared.add_side(target, lone_row.input(target), features.clone(), gates);
                    }
                    if let Some(target) = targets[1] {
                        shared.add_side(target, lone_row.input(target), features, ups);
                    }
                    // SAFETY: `kernels` proves the instruction set.
                    unsafe { activate(gates, ups) };
                }
            });
        });
    }

    fn share<'a, 'w>(
        &self,
        pool: &ThreadPool,
        x: &'a mut Input,
        weights: impl Iterator<Item = &'w QMatrix>,
        side: Option<&'a SidePath>,
    ) -> Shared<'a>
    where
        'a: 'w,
    {
        let mut block_types = weights.map(QMatrix::block_type).chain(side.map(|side| side.a.block_type));
        let quantized = block_types.any(|block_type| !is_float(block_type)).then(|| x.quantized(self, pool));
        let mut shared = Shared {
            kernels: *self,
            values: x.values,
            cols: x.cols,
            rows: x.rows,
            quantized,
            side: &[],
            side_stride: side.map_or(0, |side| side.a.rows),
            lone_row: None,
        };
        match side {
            Some(side) if x.rows == 1 => {
                shared.lone_row = Some(LoneRow::new(side, &mut x.buffers.lone_row, pool.worker_count()));
            }
            Some(side) => {
                let buffer = &mut x.buffers.side;
                buffer.resize(x.rows * shared.side_stride, 0.0);
                shared.reduce(pool, &side.a, buffer);
                shared.side = buffer;
            }
            None => {}
        }
        shared
    }
}

fn check(x: &Input, weight: &QMatrix, out: &[f32], side: Option<&SidePath>, index: usize) {
    assert_eq!(weight.cols(), x.cols, "a weight's columns are the input's");
    assert_eq!(out.len(), x.rows * weight.rows(), "the output is [rows, out]");
    if let Some(side) = side {
        assert_eq!(side.a.cols, x.cols, "a side path's columns are the input's");
        if let Some(target) = &side.targets[index] {
            assert_eq!(target.out, weight.rows(), "a side path has the weight's output features");
        }
    }
}

/// Of one row, all but the side path, which comes after all products: between them it would keep the memory waiting.
///
/// # Safety
/// No one else writes these features of these rows of the product's output.
unsafe fn product_tiles(
    shared: &Shared,
    scratch: &mut Scratch,
    product: &Product,
    index: usize,
    side: Option<&SideTarget>,
    tiles: Range<usize>,
    rows: Range<usize>,
) {
    let features = product.weight.rows();
    let out = OutPointer(product.out.as_ptr().cast_mut());
    if shared.rows == 1 {
        let range = tiles.start * TILE..(tiles.end * TILE).min(features);
        // SAFETY: the caller's promise.
        let out = unsafe { out.slice(range.start, range.len()) };
        shared.gemv(product.weight, side, range.clone(), out, &mut scratch.lone_row);
        if let Some(bias) = product.bias {
            out.iter_mut().zip(&bias[range.clone()]).for_each(|(out, bias)| *out += bias);
        }
        scratch.note(index, range);
        return;
    }
    let mut block = Block::default();
    for tile in tiles {
        let first = tile * TILE;
        let width = (features - first).min(TILE);
        let unpacked = Unpacked::new(shared, &mut scratch.panels[0], &mut scratch.side[0], product.weight, side, tile);
        for group in rows.start / GROUP..rows.end.div_ceil(GROUP) {
            unpacked.multiply(shared, group, &mut block);
            for (row, values) in (group * GROUP..rows.end).zip(&block) {
                // SAFETY: the caller's promise.
                let out = unsafe { out.slice(row * features + first, width) };
                match product.bias {
                    Some(bias) => (0..width).for_each(|index| out[index] = values[index] + bias[first + index]),
                    None => out.copy_from_slice(&values[..width]),
                }
            }
        }
    }
}

/// Of one row, only both products: the gates to `out`, the others to `scratch.ups`.
///
/// # Safety
/// No one else writes these features of these rows of `out`.
unsafe fn gated_tiles(
    shared: &Shared,
    scratch: &mut Scratch,
    [gate, up]: [&QMatrix; 2],
    side: [Option<&SideTarget>; 2],
    activation: Activation,
    out: &OutPointer,
    tiles: Range<usize>,
    rows: Range<usize>,
) {
    let features = gate.rows();
    let activate = shared.kernels.ops.gate(activation);
    if shared.rows == 1 {
        let range = tiles.start * TILE..(tiles.end * TILE).min(features);
        // SAFETY: the caller's promise.
        let out = unsafe { out.slice(range.start, range.len()) };
        if scratch.ups.len() < features {
            scratch.ups.resize(features, 0.0);
        }
        shared.gemv(gate, side[0], range.clone(), out, &mut scratch.lone_row);
        shared.gemv(up, side[1], range.clone(), &mut scratch.ups[range.clone()], &mut scratch.lone_row);
        scratch.note(0, range);
        return;
    }
    let (mut gates, mut ups) = (Block::default(), Block::default());
    let Scratch { panels: [gate_panel, up_panel], side: [gate_side, up_side], .. } = scratch;
    for tile in tiles {
        let first = tile * TILE;
        let width = (features - first).min(TILE);
        let gate = Unpacked::new(shared, gate_panel, gate_side, gate, side[0], tile);
        let up = Unpacked::new(shared, up_panel, up_side, up, side[1], tile);
        for group in rows.start / GROUP..rows.end.div_ceil(GROUP) {
            gate.multiply(shared, group, &mut gates);
            up.multiply(shared, group, &mut ups);
            // SAFETY: `kernels` proves the instruction set.
            unsafe { activate(gates.as_flattened_mut(), ups.as_flattened()) };
            for (row, values) in (group * GROUP..rows.end).zip(&gates) {
                // SAFETY: the caller's promise.
                unsafe { out.slice(row * features + first, width) }.copy_from_slice(&values[..width]);
            }
        }
    }
}
