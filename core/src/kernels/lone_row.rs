use std::sync::atomic::{AtomicUsize, Ordering};

use super::activations::TILE;
use super::panels::Panels;
use super::side_path::{RankRun, SideInput, SidePath, SideTarget, round_input};

/// Spins between two yields while a worker waits for another, which may have lost its core.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Stretches of columns per panel of `a`: what workers share, the same however many there are.
pub(super) const COLUMN_PARTS: usize = 4;

/// `[panels, column parts, 16]` of a [`LoneRow`], reused from call to call.
pub(super) type Parts = Vec<[f32; TILE]>;

/// `a·x` of the only row of an input, computed inside the region that needs it: a region of its own, or one worker alone,
/// would cost as much as all the rest of the side path.
///
/// A worker fetches its parts of `a` at the start and computes with them after its first product, by when they have come
/// from memory. After all products it adds up everybody's parts. What one core writes and another reads costs as much as
/// the arithmetic, so each worker's parts and one count are all that they exchange.
pub(super) struct LoneRow<'a> {
    path: &'a SidePath,
    parts: *mut [f32; TILE],
    part_count: usize,
    worker_count: usize,
    computing: Computing,
}

/// Workers whose parts are not computed yet; in a cache line of its own, since writing it takes the line from all others.
#[repr(align(64))]
struct Computing(AtomicUsize);

// SAFETY: every part is written by one worker, before it leaves `computing`, and read when all have.
unsafe impl Sync for LoneRow<'_> {}

/// What one worker has of a [`LoneRow`]; its buffers are reused from call to call.
#[derive(Default)]
pub(super) struct WorkerSums {
    worker: usize,
    computed: bool,
    /// `[panels, 16]`
    ax: Vec<f32>,
    /// Of all targets.
    runs: Vec<RankRun>,
    /// One per product.
    steps: Vec<f32>,
}

impl<'a> LoneRow<'a> {
    pub(super) fn new(path: &'a SidePath, parts: &'a mut Parts, worker_count: usize) -> Self {
        let part_count = path.a.count() * COLUMN_PARTS;
        parts.resize(part_count, [0.0; TILE]);
        let computing = Computing(AtomicUsize::new(worker_count));
        Self { path, parts: parts.as_mut_ptr(), part_count, worker_count, computing }
    }

    pub(super) fn a(&self) -> &Panels {
        &self.path.a
    }

    /// What every worker does first. It fetches what [`compute`](Self::compute) needs.
    pub(super) fn start(&self, sums: &mut WorkerSums, worker: usize) {
        (sums.worker, sums.computed) = (worker, false);
        self.path.a.prefetch(worker, self.worker_count);
    }

    /// Computes the worker's parts, unless it has; every worker must, since all wait for all parts.
    /// `product(panel, column part)` must not panic.
    pub(super) fn compute(&self, sums: &mut WorkerSums, product: impl Fn(usize, usize) -> [f32; TILE]) {
        if sums.computed {
            return;
        }
        let first = |worker: usize| self.part_count * worker / self.worker_count;
        for part in first(sums.worker)..first(sums.worker + 1) {
            let values = product(part / COLUMN_PARTS, part % COLUMN_PARTS);
            // SAFETY: no other worker has this part.
            unsafe { *self.parts.add(part) = values };
        }
        sums.computed = true;
        self.computing.0.fetch_sub(1, Ordering::Release);
    }

    /// Adds up the parts and rounds their sums, once all workers have computed theirs.
    pub(super) fn finish(&self, sums: &mut WorkerSums) {
        let mut spins = 0u32;
        while self.computing.0.load(Ordering::Acquire) > 0 {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        sums.ax.resize(self.path.a.count() * TILE, 0.0);
        sums.runs.resize(self.path.run_count(), RankRun::default());
        sums.steps.resize(self.path.targets.len(), 0.0);
        // SAFETY: all parts are written, and nobody writes them again.
        let parts = unsafe { std::slice::from_raw_parts(self.parts, self.part_count) };
        for (parts, ax) in parts.as_chunks::<COLUMN_PARTS>().0.iter().zip(sums.ax.as_chunks_mut::<TILE>().0) {
            *ax = std::array::from_fn(|index| parts.iter().map(|part| part[index]).sum());
        }
        for target in self.path.targets.iter().flatten() {
            let runs = &mut sums.runs[target.first_run..][..target.run_count()];
            sums.steps[target.index] = round_input(&sums.ax[target.start..][..target.rank], runs);
        }
    }
}

impl WorkerSums {
    /// `target`'s part of `a·x`, of a finished one.
    pub(super) fn input(&self, target: &SideTarget) -> SideInput<'_> {
        let runs = &self.runs[target.first_run..][..target.run_count()];
        SideInput { runs, step: self.steps[target.index] }
    }
}
