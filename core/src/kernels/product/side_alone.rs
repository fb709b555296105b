//! The side path beside products that another library computes.

use std::cell::RefCell;
use std::ops::Range;

use super::{Block, GROUP, Kernels, Shared, SidePath, SideTarget, TILE, WorkerSums};
use crate::kernels::Activations;
use crate::threads::ThreadPool;

/// A calling thread's memory.
struct Caller {
    activations: Activations,
    sums: WorkerSums,
    /// `[rank, 16]`
    b: Vec<f32>,
    /// The caller alone.
    pool: ThreadPool,
}

thread_local! {
    static CALLER: RefCell<Caller> =
        RefCell::new(Caller { activations: Activations::new(), sums: WorkerSums::default(), b: Vec::new(), pool: ThreadPool::new(1) });
}

impl Kernels {
    /// `y += scale · b·(a·x)` on the calling thread, for `x` of `[rows, in]` and `y` of `[rows, targets · out]`, in which some
    /// targets' outputs, equally many, lie one after the other.
    ///
    /// # Panics
    /// If `x` or `y` do not have the side path's widths.
    pub fn add_side_path(&self, side: &SidePath, targets: Range<usize>, x: &[f32], y: &mut [f32]) {
        CALLER.with_borrow_mut(|Caller { activations, sums, b, pool }| {
            let mut x = activations.input(x, side.a.cols);
            let rows = x.rows();
            assert!(y.len().is_multiple_of(rows * targets.len()), "{} outputs for {rows} rows", y.len());
            let (width, out) = (y.len() / rows, y.len() / rows / targets.len());
            let shared = self.share(pool, &mut x, std::iter::empty(), Some(side));
            if let Some(lone_row) = &shared.lone_row {
                lone_row.start(sums, 0);
                shared.reduce_parts(sums);
                lone_row.finish(sums);
            }
            for (index, target) in side.targets[targets].iter().enumerate() {
                let Some(target) = target else { continue };
                assert_eq!(target.out, out, "a side path has the products' output features");
                let first = index * out;
                match rows {
                    1 => shared.add_side(target, sums.input(target), 0..out, &mut y[first..first + out]),
                    _ => shared.add_rows(target, b, &mut y[first..], width),
                }
            }
        });
    }
}

impl Shared<'_> {
    /// `y += b·(a·x)` of all rows, which are `width` wide and begin with the target's outputs.
    fn add_rows(&self, target: &SideTarget, b: &mut Vec<f32>, y: &mut [f32], width: usize) {
        let ops = self.kernels.ops;
        b.resize(target.rank * TILE, 0.0);
        for tile in 0..target.out.div_ceil(TILE) {
            // SAFETY: `kernels` proves the instruction set; the buffer has the rank's rows.
            unsafe { (ops.rows.side_panel)(target.tiles(tile..tile + 1), b) };
            let first = tile * TILE;
            let features = (target.out - first).min(TILE);
            for row in (0..self.rows).step_by(GROUP) {
                let rows = (self.rows - row).min(GROUP);
                let ax = &self.side[row * self.side_stride + target.start..];
                let mut block = Block::default();
                // SAFETY: `kernels` proves the instruction set; `b` is `[rank, 16]`, and `ax` has the rows.
                unsafe { (ops.float_multiply)(b.as_ptr(), ax, self.side_stride, rows, target.rank, &mut block) };
                for (row, delta) in (row..row + rows).zip(&block) {
                    let y = &mut y[row * width + first..][..features];
                    y.iter_mut().zip(delta).for_each(|(y, delta)| *y += delta);
                }
            }
        }
    }
}
