use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::OutPointer;
use super::side_path::{SideInput, SidePath, SideTarget, round_input};
use crate::threads::{Chunks, ThreadPool};

/// Spins between two yields while a worker waits for another, which may have lost its core.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// Buffers of a [`LoneRow`], reused from call to call.
#[derive(Default)]
pub(super) struct LoneRowBuffers {
    /// `[Σ rank]`
    ax: Vec<f32>,
    /// `[Σ pairs]`
    codes: Vec<[i16; 2]>,
    /// One per target.
    steps: Vec<f32>,
}

/// `a·x` of the only row of an input, computed inside the region that needs it: a region of its own, or one worker alone,
/// would cost as much as all the rest of the side path.
///
/// Workers take parts of `a` before their parts of the products; who finishes the last one rounds the result. When a
/// worker needs it, after its first products, it is there as a rule.
pub(super) struct LoneRow<'a> {
    path: &'a SidePath,
    ax: OutPointer,
    codes: *mut [i16; 2],
    steps: *mut f32,
    parts: Chunks,
    /// Rows of `a` that are not computed yet.
    left: AtomicUsize,
    ready: AtomicBool,
}

// SAFETY: `parts` hands every value of `ax` to one worker; `codes` and `steps` are written by one, before `ready`, and
// read after it.
unsafe impl Sync for LoneRow<'_> {}

impl<'a> LoneRow<'a> {
    pub(super) fn new(path: &'a SidePath, buffers: &'a mut LoneRowBuffers, pool: &ThreadPool) -> Self {
        let rows = path.a.rows();
        buffers.ax.resize(rows, 0.0);
        buffers.codes.resize(path.pair_count(), [0; 2]);
        buffers.steps.resize(path.targets.len(), 0.0);
        Self {
            path,
            ax: OutPointer(buffers.ax.as_mut_ptr()),
            codes: buffers.codes.as_mut_ptr(),
            steps: buffers.steps.as_mut_ptr(),
            parts: Chunks::new(rows, rows.div_ceil(pool.worker_count())),
            left: AtomicUsize::new(rows),
            ready: AtomicBool::new(rows == 0),
        }
    }

    /// Computes parts of `a·x` until all are taken. `product` must not panic: other workers wait for every part.
    pub(super) fn compute(&self, product: impl Fn(&SidePath, Range<usize>, &mut [f32])) {
        while let Some(rows) = self.parts.take() {
            let count = rows.len();
            // SAFETY: `parts` hands these rows to this worker.
            let out = unsafe { self.ax.slice(rows.start, count) };
            product(self.path, rows, out);
            // The last to finish sees what the others wrote.
            if self.left.fetch_sub(count, Ordering::AcqRel) == count {
                self.round();
                self.ready.store(true, Ordering::Release);
            }
        }
    }

    fn round(&self) {
        for target in self.path.targets.iter().flatten() {
            // SAFETY: all of `ax` is written, and only this worker rounds; the buffers have the sizes of `new`.
            unsafe {
                let ax = self.ax.slice(target.start, target.rank);
                let codes = std::slice::from_raw_parts_mut(self.codes.add(target.first_pair), target.pair_count());
                *self.steps.add(target.index) = round_input(ax, codes);
            }
        }
    }

    /// Waits for `target`'s part of `a·x`.
    pub(super) fn input(&self, target: &SideTarget) -> SideInput<'_> {
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
            let codes = std::slice::from_raw_parts(self.codes.add(target.first_pair), target.pair_count());
            SideInput { codes, step: *self.steps.add(target.index) }
        }
    }
}
