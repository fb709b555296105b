use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Free buffers kept for reuse; a forward pass has no more than this many at a time.
const FREE_MAX: usize = 16;
/// A buffer larger than this (256 rows of logits, say) goes back to the system.
const KEPT_LEN_MAX: usize = 4 << 20;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Hands out buffers and takes them back, so that a decoded token allocates nothing.
#[derive(Default)]
pub(super) struct Arena {
    free: Mutex<Vec<Vec<Line>>>,
}

impl Arena {
    /// A buffer `[rows, cols]` with arbitrary contents.
    pub(super) fn take(self: &Arc<Self>, rows: usize, cols: usize) -> Buffer {
        let lines = (rows * cols).div_ceil(16);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, else the largest, which grows.
        let fits = |buffer: &Vec<Line>| (buffer.capacity() < lines, buffer.capacity().abs_diff(lines));
        let best = (0..free.len()).min_by_key(|index| fits(&free[*index]));
        let mut data = best.map(|index| free.swap_remove(index)).unwrap_or_default();
        drop(free);
        if data.len() < lines {
            data.resize(lines, Line([0.0; 16]));
        }
        Buffer { data, rows, cols, arena: self.clone() }
    }
}

/// Activations `[rows, cols]`, row-major, aligned to cache lines.
pub struct Buffer {
    data: Vec<Line>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    arena: Arc<Arena>,
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let len = self.rows * self.cols;
        assert!(len <= self.data.len() * 16);
        // SAFETY: a `Line` is 16 f32 without padding, and `len` of them are in `data`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.cols;
        assert!(len <= self.data.len() * 16);
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut free = self.arena.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_MAX && data.len() * 16 <= KEPT_LEN_MAX {
            free.push(data);
        }
    }
}
