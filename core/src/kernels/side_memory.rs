use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Size of a huge page of x86-64, and of 64-bit ARM with 4 KiB pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
const CACHE_LINE_BYTES: usize = 64;
/// What a kernel may read beyond the end.
const SLACK_BYTES: usize = 1024;

/// Memory of side paths, in huge pages where the system has them.
///
/// A decoded token reads a pack once, in some hundred stretches of a few pages each. In pages of 4 KiB nearly every one of
/// those would wait for a translation that the weights have pushed out since the last token: half of a side path's cost.
#[derive(Default)]
pub struct SideMemory(Mutex<Last>);

/// The block that was taken from last, and how much of it.
#[derive(Default)]
struct Last {
    block: Weak<Block>,
    used: usize,
}

/// Whole huge pages, given back with the last value in them.
struct Block {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned; values in it are written before they are shared, and only read afterwards.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// Values in a [`SideMemory`], from a cache line on.
pub(crate) struct Kept<T> {
    at: NonNull<T>,
    len: usize,
    _block: Arc<Block>,
}

// SAFETY: as of `Block`; the values are plain.
unsafe impl<T: Sync> Send for Kept<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Kept<T> {}

impl SideMemory {
    /// Copies `values`.
    pub(crate) fn keep<T: Copy>(&self, values: &[T]) -> Kept<T> {
        const { assert!(align_of::<T>() <= CACHE_LINE_BYTES) }
        let size_bytes = size_of_val(values).next_multiple_of(CACHE_LINE_BYTES);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let block = match last.block.upgrade().filter(|block| block.room() >= last.used + size_bytes) {
            Some(block) => block,
            None => {
                let block = Arc::new(Block::new(size_bytes));
                *last = Last { block: Arc::downgrade(&block), used: 0 };
                block
            }
        };
        // SAFETY: `used + size_bytes` is within the block, and no one else has this stretch of it.
        let at = unsafe {
            let at = block.at.add(last.used).cast::<T>();
            at.as_ptr().copy_from_nonoverlapping(values.as_ptr(), values.len());
            at
        };
        last.used += size_bytes;
        Kept { at, len: values.len(), _block: block }
    }
}

impl Block {
    /// Room for at least `size_bytes`.
    fn new(size_bytes: usize) -> Self {
        let size = (size_bytes + SLACK_BYTES).next_multiple_of(HUGE_PAGE_BYTES);
        let layout = Layout::from_size_align(size, HUGE_PAGE_BYTES).expect("a pack's size");
        // SAFETY: the layout's size is not zero; advice about memory of our own changes nothing in it.
        unsafe {
            let Some(at) = NonNull::new(alloc(layout)) else { handle_alloc_error(layout) };
            // Refused where the system has no huge pages, which costs only speed.
            #[cfg(any(target_os = "linux", target_os = "android"))]
            libc::madvise(at.as_ptr().cast(), size, libc::MADV_HUGEPAGE);
            at.write_bytes(0, size);
            Self { at, layout }
        }
    }

    fn room(&self) -> usize {
        self.layout.size() - SLACK_BYTES
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.at.as_ptr(), self.layout) }
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: written by `keep`, in a block that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_were_and_share_blocks() {
        let memory = SideMemory::default();
        let values = |seed: usize, len: usize| (0..len).map(|i| (seed * 31 + i) as u32).collect::<Vec<_>>();
        // The last is more than a block.
        let lens = [1, 17, 0, 300_000, 5, 260_000, 1_200_000];
        let kept: Vec<_> = lens.iter().enumerate().map(|(seed, len)| memory.keep(&values(seed, *len))).collect();
        for (seed, kept) in kept.iter().enumerate() {
            assert!(**kept == values(seed, lens[seed]), "{} values", lens[seed]);
            assert!(kept.at.as_ptr().cast::<u8>().align_offset(CACHE_LINE_BYTES) == 0);
        }
        assert!(Arc::ptr_eq(&kept[0]._block, &kept[4]._block));
        assert!(!Arc::ptr_eq(&kept[4]._block, &kept[5]._block));
    }

    #[test]
    fn a_block_is_given_back_with_its_last_value() {
        let memory = SideMemory::default();
        let (first, second) = (memory.keep(&[1.0f32]), memory.keep(&[2.0f32]));
        drop(first);
        assert_eq!(second[..], [2.0]);
        let block = memory.0.lock().unwrap().block.clone();
        assert_eq!(block.strong_count(), 1);
        drop(second);
        assert_eq!(block.strong_count(), 0);
        assert_eq!(memory.keep(&[3i8])[..], [3]);
    }
}
