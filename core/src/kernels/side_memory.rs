use std::alloc::{Layout, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::huge_pages::{CACHE_LINE_BYTES, HugePages, Piece};

/// Packs are smaller than this, or not much larger.
const PIECE_BYTES: usize = 2 << 20;

/// Memory of side paths, in huge pages where the system has them.
pub struct SideMemory(HugePages);

/// Values in a [`SideMemory`], from a cache line on.
pub(crate) struct Kept<T> {
    at: NonNull<T>,
    len: usize,
    _piece: Arc<Piece>,
}

// SAFETY: the values are plain, owned, written before they are shared, and only read afterwards.
unsafe impl<T: Sync> Send for Kept<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Kept<T> {}

impl Default for SideMemory {
    fn default() -> Self {
        Self(HugePages::new(PIECE_BYTES))
    }
}

impl SideMemory {
    /// Copies `values`.
    pub(crate) fn keep<T: Copy>(&self, values: &[T]) -> Kept<T> {
        const { assert!(align_of::<T>() <= CACHE_LINE_BYTES) }
        let Some((at, piece)) = self.0.take(size_of_val(values)) else { handle_alloc_error(Layout::for_value(values)) };
        let at = at.cast::<T>();
        // SAFETY: these bytes are nobody else's, and as many.
        unsafe { at.as_ptr().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Kept { at, len: values.len(), _piece: piece }
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: written by `keep`, in a piece that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_were() {
        let memory = SideMemory::default();
        let values = |seed: usize, len: usize| (0..len).map(|i| (seed * 31 + i) as u32).collect::<Vec<_>>();
        // The last is more than a piece.
        let lens = [1, 17, 0, 300_000, 5, 260_000, 1_200_000];
        let kept: Vec<_> = lens.iter().enumerate().map(|(seed, len)| memory.keep(&values(seed, *len))).collect();
        for (seed, kept) in kept.iter().enumerate() {
            assert!(**kept == values(seed, lens[seed]), "{} values", lens[seed]);
        }
    }
}
