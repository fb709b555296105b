use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use half::f16;

use crate::{Error, Result};

const CACHE_LINE_BYTES: usize = 64;

/// Zeroed f16 memory whose untouched pages cost nothing: a KV cache for the whole context only takes what is used.
///
/// Why not `Vec`? It aborts where the system refuses, and fills with f16 zeros by hand, which touches every page.
pub(super) struct HalfMemory {
    allocation: NonNull<u8>,
    layout: Layout,
    /// Bytes to the first cache line. Asking the allocator for the alignment would make it clear the pages itself.
    offset: usize,
    len: usize,
}

// SAFETY: the memory is owned, and reached only through `&self` and `&mut self`.
unsafe impl Send for HalfMemory {}
// SAFETY: as above.
unsafe impl Sync for HalfMemory {}

impl HalfMemory {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the system has not as much memory.
    pub(super) fn zeroed(len: usize) -> Result<Self> {
        let refused = || Error::InvalidOption {
            option: "context_length",
            reason: format!("the system has no memory for {len} cached values"),
        };
        let size_bytes = len.checked_mul(2).and_then(|size| size.checked_add(CACHE_LINE_BYTES)).ok_or_else(refused)?;
        let layout = Layout::from_size_align(size_bytes, align_of::<f16>()).map_err(|_| refused())?;
        // SAFETY: the layout's size is not zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        let offset = allocation.as_ptr().align_offset(CACHE_LINE_BYTES).min(CACHE_LINE_BYTES) & !1;
        Ok(Self { allocation, layout, offset, len })
    }

    pub(super) fn as_slice(&self) -> &[f16] {
        // SAFETY: `len` f16 lie behind the offset; all-zero bytes are valid f16.
        unsafe { std::slice::from_raw_parts(self.allocation.as_ptr().add(self.offset).cast(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f16] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.as_ptr().add(self.offset).cast(), self.len) }
    }
}

impl Drop for HalfMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}
