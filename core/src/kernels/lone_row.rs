use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::OutPointer;
use super::activations::TILE;
use super::panels::Panels;
use super::side_path::{RankRun, SideInput, SidePath, SideTarget, round_input};
use crate::threads::Shares;

/// Spins between two yields while a worker waits for another, which may have lost its core.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Stretches of columns per panel of `a`: parts that workers share, the same however many there are.
pub(super) const COLUMN_PARTS: usize = 4;

/// Buffers of a [`LoneRow`], reused from call to call.
#[derive(Default)]
pub(super) struct LoneRowBuffers {
    /// `[panels, column parts, 16]`
    parts: Vec<[f32; TILE]>,
    /// `[panels, 16]`
    ax: Vec<f32>,
    /// Of all targets.
    runs: Vec<RankRun>,
    /// One per product.
    steps: Vec<f32>,
}

/// `a·x` of the only row of an input, computed inside the region that needs it: a region of its own, or one worker alone,
/// would cost as much as all the rest of the side path.
///
/// A worker fetches its part of `a` at the start and computes with it after its first product, by when it has come from
/// memory; who finishes the last part adds them up. The sums are used after all products.
pub(super) struct LoneRow<'a> {
    path: &'a SidePath,
    parts: *mut [f32; TILE],
    ax: OutPointer,
    runs: *mut RankRun,
    steps: *mut f32,
    shares: Shares,
    worker_count: usize,
    /// Parts that are not computed yet.
    left: AtomicUsize,
    ready: AtomicBool,
}

// SAFETY: `shares` hands every part to one worker; `ax`, `runs` and `steps` are written by one, before `ready`, and read
// after it.
unsafe impl Sync for LoneRow<'_> {}

impl<'a> LoneRow<'a> {
    pub(super) fn new(path: &'a SidePath, buffers: &'a mut LoneRowBuffers, worker_count: usize) -> Self {
        let part_count = path.a.count() * COLUMN_PARTS;
        buffers.parts.resize(part_count, [0.0; TILE]);
        buffers.ax.resize(path.a.count() * TILE, 0.0);
        buffers.runs.resize(path.run_count(), RankRun::default());
        buffers.steps.resize(path.targets.len(), 0.0);
        Self {
            path,
            parts: buffers.parts.as_mut_ptr(),
            ax: OutPointer(buffers.ax.as_mut_ptr()),
            runs: buffers.runs.as_mut_ptr(),
            steps: buffers.steps.as_mut_ptr(),
            shares: Shares::new(part_count, 1, worker_count, worker_count),
            worker_count,
            left: AtomicUsize::new(part_count),
            ready: AtomicBool::new(part_count == 0),
        }
    }

    pub(super) fn a(&self) -> &Panels {
        &self.path.a
    }

    /// Fetches what `worker` will compute with as a rule.
    pub(super) fn prefetch(&self, worker: usize) {
        self.path.a.prefetch(worker, self.worker_count);
    }

    /// Computes parts, `worker`'s own first, until all are taken. `product(panel, column part)` must not panic: other
    /// workers wait for every part.
    pub(super) fn compute(&self, worker: usize, product: impl Fn(usize, usize) -> [f32; TILE]) {
        if self.left.load(Ordering::Relaxed) == 0 {
            return;
        }
        while let Some(parts) = self.shares.take(worker) {
            for part in parts.clone() {
                let values = product(part / COLUMN_PARTS, part % COLUMN_PARTS);
                // SAFETY: `shares` hands this part to this worker.
                unsafe { *self.parts.add(part) = values };
            }
            // The last to finish sees what the others wrote.
            if self.left.fetch_sub(parts.len(), Ordering::AcqRel) == parts.len() {
                self.finish();
                self.ready.store(true, Ordering::Release);
            }
        }
    }

    /// `target`'s part of `a·x`, once the workers have computed it.
    pub(super) fn wait(&self, target: &SideTarget) -> SideInput<'_> {
        let mut spins = 0u32;
        while !self.ready.load(Ordering::Acquire) {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        // SAFETY: nobody writes after `ready`; the buffers have the sizes of `new`.
        unsafe {
            let runs = std::slice::from_raw_parts(self.runs.add(target.first_run), target.run_count());
            SideInput { runs, step: *self.steps.add(target.index) }
        }
    }

    /// Adds up the parts and rounds their sums.
    fn finish(&self) {
        let count = self.path.a.count();
        // SAFETY: all parts are written, and only this worker goes on from here; the buffers have the sizes of `new`.
        unsafe {
            let parts = std::slice::from_raw_parts(self.parts, count * COLUMN_PARTS);
            let ax = self.ax.slice(0, count * TILE);
            for (parts, ax) in parts.as_chunks::<COLUMN_PARTS>().0.iter().zip(ax.as_chunks_mut::<TILE>().0) {
                *ax = std::array::from_fn(|index| parts.iter().map(|part| part[index]).sum());
            }
            for target in self.path.targets.iter().flatten() {
                let runs = std::slice::from_raw_parts_mut(self.runs.add(target.first_run), target.run_count());
                *self.steps.add(target.index) = round_input(&ax[target.start..][..target.rank], runs);
            }
        }
    }
}
