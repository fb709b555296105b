//! Memory in huge pages: pairs of side paths, and the weights of ONNX Runtime's sessions.
//!
//! A decoded token reads all of it once, a side path's in some hundred stretches of a few pages each. In pages of 4 KiB nearly
//! every one of those would wait for an address translation that the weights have pushed out since the last token (half of
//! a side path's cost), and a processor does not fetch ahead across the end of a page.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::{MmapOptions, MmapRaw};

/// Size of a huge page of x86-64, and of 64-bit ARM with 4 KiB pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
pub(crate) const CACHE_LINE_BYTES: usize = 64;
/// What a kernel may read beyond the end.
const SLACK_BYTES: usize = 1024;

/// Hands out memory in huge pages, where the system has them. A piece is given back with the last value in it.
pub(crate) struct HugePages {
    least_bytes: usize,
    last: Mutex<Last>,
}

/// The piece that was taken from last, and how much of it.
struct Last {
    piece: Weak<Piece>,
    used: usize,
}

/// Whole huge pages.
pub(crate) struct Piece {
    map: MmapRaw,
    /// Where the first huge page begins.
    offset: usize,
}

impl HugePages {
    /// Memory is taken from the system in pieces of `least_bytes`, or of a multiple where a value is larger. Of one that is
    /// not full yet, only the huge pages that are used take memory.
    pub(crate) const fn new(least_bytes: usize) -> Self {
        assert!(least_bytes >= HUGE_PAGE_BYTES && least_bytes.is_multiple_of(HUGE_PAGE_BYTES));
        Self { least_bytes, last: Mutex::new(Last { piece: Weak::new(), used: 0 }) }
    }

    /// `size_bytes` of zeros that nobody else has, from a cache line on, and what keeps them; `None` if the system has no
    /// more. A kilobyte beyond them may be read.
    pub(crate) fn take(&self, size_bytes: usize) -> Option<(NonNull<u8>, Arc<Piece>)> {
        let size = size_bytes.checked_next_multiple_of(CACHE_LINE_BYTES)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = match last.piece.upgrade().filter(|piece| piece.room() - last.used >= size) {
            Some(piece) => piece,
            None => {
                let size = size.checked_add(SLACK_BYTES)?.checked_next_multiple_of(self.least_bytes)?;
                let piece = Arc::new(Piece::new(size)?);
                *last = Last { piece: Arc::downgrade(&piece), used: 0 };
                piece
            }
        };
        // SAFETY: `used + size` is within the piece.
        let at = unsafe { piece.map.as_mut_ptr().add(piece.offset + last.used) };
        last.used += size;
        Some((NonNull::new(at)?, piece))
    }
}

impl Piece {
    fn new(size_bytes: usize) -> Option<Self> {
        // The system aligns to its own pages.
        let map = MmapOptions::new().len(size_bytes.checked_add(HUGE_PAGE_BYTES)?).map_anon().ok()?;
        let offset = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: advice about memory of our own changes nothing in it. Refused where the system has no huge pages, which
        // costs only speed.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        unsafe {
            libc::madvise(map.as_ptr().add(offset).cast_mut().cast(), size_bytes, libc::MADV_HUGEPAGE);
        }
        Some(Self { map: map.into(), offset })
    }

    fn room(&self) -> usize {
        self.map.len() - HUGE_PAGE_BYTES - SLACK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_share_a_piece_until_it_is_full_and_give_it_back_with_the_last() {
        let pages = HugePages::new(HUGE_PAGE_BYTES);
        let full = HUGE_PAGE_BYTES - SLACK_BYTES - 3 * CACHE_LINE_BYTES;
        let taken = [1, 100, 0, full, 7, 2 * HUGE_PAGE_BYTES].map(|size_bytes| {
            let (at, piece) = pages.take(size_bytes).unwrap();
            assert_eq!(at.as_ptr().align_offset(CACHE_LINE_BYTES), 0);
            // SAFETY: nobody else has these bytes; the slack is readable.
            unsafe {
                assert_eq!(at.as_ptr().add(size_bytes + SLACK_BYTES - 1).read(), 0);
                at.as_ptr().write_bytes(size_bytes as u8, size_bytes);
            }
            (at, piece)
        });
        let [first, second, none, filling, next, large] = &taken;
        assert_eq!(first.0.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        assert_eq!(second.0.as_ptr() as usize - first.0.as_ptr() as usize, CACHE_LINE_BYTES);
        assert!(Arc::ptr_eq(&first.1, &none.1) && Arc::ptr_eq(&first.1, &filling.1));
        assert!(!Arc::ptr_eq(&filling.1, &next.1) && !Arc::ptr_eq(&next.1, &large.1));
        // SAFETY: written above.
        assert_eq!(unsafe { [*second.0.as_ptr().add(99), *next.0.as_ptr().add(6)] }, [100, 7]);
        let piece = Arc::downgrade(&first.1);
        drop(taken);
        assert_eq!(piece.strong_count(), 0);
    }

    #[test]
    fn what_the_system_cannot_have_is_refused() {
        let pages = HugePages::new(HUGE_PAGE_BYTES);
        assert!(pages.take(usize::MAX).is_none());
        assert!(pages.take(usize::MAX / 2).is_none());
    }
}
