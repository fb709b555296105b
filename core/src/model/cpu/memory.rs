use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use half::f16;

use crate::{Error, Result};

const CACHE_LINE_BYTES: usize = 64;

/// Types of which any bytes are a value, and zeros are zero.
///
/// # Safety
/// Just that, and an alignment of at most a cache line.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: transparent u16.
unsafe impl Plain for f16 {}
// SAFETY: an integer.
unsafe impl Plain for i8 {}

/// Zeroed memory whose untouched pages cost nothing: a KV cache for the whole context only takes what is used.
///
/// Why not `Vec`? It aborts where the system refuses, and fills with f16 zeros by hand, which touches every page.
pub(super) struct CacheMemory {
    allocation: NonNull<u8>,
    layout: Layout,
    /// Bytes to the first cache line. Asking the allocator for the alignment would make it clear the pages itself.
    offset: usize,
    len: usize,
}

// SAFETY: the memory is owned, and reached only through `&self` and `&mut self`.
unsafe impl Send for CacheMemory {}
// SAFETY: as above.
unsafe impl Sync for CacheMemory {}

impl CacheMemory {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the system has not as much memory.
    pub(super) fn zeroed(len: usize) -> Result<Self> {
        let refused = || Error::InvalidOption {
            option: "context_length",
            reason: format!("the system has no memory for {len} bytes of cache"),
        };
        let size_bytes = len.checked_add(CACHE_LINE_BYTES).ok_or_else(refused)?;
        let layout = Layout::from_size_align(size_bytes, 1).map_err(|_| refused())?;
        // SAFETY: the layout's size is not zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        let address = allocation.as_ptr().addr();
        let offset = address.next_multiple_of(CACHE_LINE_BYTES) - address;
        Ok(Self { allocation, layout, offset, len })
    }

    pub(super) fn as_slice<T: Plain>(&self) -> &[T] {
        // SAFETY: `len` initialised bytes lie behind the offset, aligned for `T`, of which any bytes are a value.
        unsafe {
            std::slice::from_raw_parts(self.allocation.as_ptr().add(self.offset).cast(), self.len / size_of::<T>())
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.allocation.as_ptr().add(self.offset), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.as_ptr().add(self.offset), self.len) }
    }
}

impl Drop for CacheMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}
