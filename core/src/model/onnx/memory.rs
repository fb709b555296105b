//! Memory in huge pages: the weights of sessions, and the pairs of side paths.
//!
//! A decoded token reads all of it once. In pages of 4 KiB it would wait for as many address translations, and a processor
//! does not fetch ahead across the end of a page.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::{MmapOptions, MmapRaw};
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys::{OrtAllocator, OrtMemoryInfo};

/// Memory is taken from the system in pieces of at least this; of the last one, only the pages that are used take memory.
const PIECE_BYTES: usize = 32 << 20;
/// What ONNX Runtime's kernels expect of an address.
const ALIGNMENT: usize = 64;

/// Hands out memory in huge pages, where the system has them. A piece is given back with the last value in it.
pub(super) struct HugePages(Mutex<Last>);

/// The piece that was taken from last, and how much of it.
struct Last {
    piece: Weak<MmapRaw>,
    used: usize,
}

impl HugePages {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Last { piece: Weak::new(), used: 0 }))
    }

    /// `size_bytes` that nobody else has, from a cache line on, and what keeps them; `None` if the system has no more.
    pub(super) fn take(&self, size_bytes: usize) -> Option<(NonNull<u8>, Arc<MmapRaw>)> {
        let size = size_bytes.checked_next_multiple_of(ALIGNMENT)?;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = match last.piece.upgrade().filter(|piece| piece.len() - last.used >= size) {
            Some(piece) => piece,
            None => {
                let size = size.max(1).checked_next_multiple_of(PIECE_BYTES)?;
                let piece = Arc::new(MmapRaw::from(MmapOptions::new().len(size).map_anon().ok()?));
                // Refused where the system has no huge pages, which costs only speed.
                #[cfg(target_os = "linux")]
                let _ = piece.advise(memmap2::Advice::HugePage);
                *last = Last { piece: Arc::downgrade(&piece), used: 0 };
                piece
            }
        };
        // SAFETY: `used + size` is within the piece.
        let at = unsafe { piece.as_mut_ptr().add(last.used) };
        last.used += size;
        Some((NonNull::new(at)?, piece))
    }
}

/// ONNX Runtime's allocator: what it reserves for as long as a session lives lies in huge pages, the rest on the heap.
#[repr(C)]
struct WeightAllocator {
    /// First: ONNX Runtime calls these with a pointer to themselves.
    functions: OrtAllocator,
    info: MemoryInfo<'static>,
    reserved: HugePages,
}

/// What lies before each address that [`WeightAllocator`] gave out, in as many bytes as [`ALIGNMENT`].
struct Header {
    /// What keeps a reserved one.
    piece: Option<Arc<MmapRaw>>,
    /// Of one on the heap, this header included.
    size_bytes: usize,
}

const _: () = assert!(size_of::<Header>() <= ALIGNMENT);

/// Makes huge pages the memory of weights, in sessions that use the environment's allocator.
pub(super) fn register(environment: &Environment) -> ort::Result<()> {
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
    let functions = OrtAllocator {
        Alloc: Some(allocate),
        Free: Some(free),
        Info: Some(info_of),
        Reserve: Some(reserve),
        // SAFETY: the functions that must be there are.
        ..unsafe { OrtAllocator::default() }
    };
    // As long as the environment, which is the process's.
    let allocator = Box::leak(Box::new(WeightAllocator { functions, info, reserved: HugePages::new() }));
    let (environment, allocator) = (environment.ptr().cast_mut(), ptr::from_mut(allocator).cast());
    // SAFETY: both stay; the functions may be called from every thread.
    ort::ortsys![@ort: unsafe RegisterAllocator(environment, allocator) as Result]
}

/// Puts `header` before the address that is returned.
///
/// # Safety
/// From `at` on there is room for the header, aligned to [`ALIGNMENT`].
unsafe fn behind(header: Header, at: *mut u8) -> *mut c_void {
    // SAFETY: as the caller says.
    unsafe {
        at.cast::<Header>().write(header);
        at.add(ALIGNMENT).cast()
    }
}

unsafe extern "system" fn allocate(_: *mut OrtAllocator, size_bytes: usize) -> *mut c_void {
    let size = size_bytes.checked_add(ALIGNMENT);
    let Some(layout) = size.and_then(|size| Layout::from_size_align(size, ALIGNMENT).ok()) else {
        return ptr::null_mut();
    };
    // SAFETY: the layout has a size, with room for the header.
    unsafe {
        let at = alloc(layout);
        if at.is_null() { ptr::null_mut() } else { behind(Header { piece: None, size_bytes: layout.size() }, at) }
    }
}

unsafe extern "system" fn reserve(this: *const OrtAllocator, size_bytes: usize) -> *mut c_void {
    // SAFETY: ONNX Runtime gives the pointer that was registered, which is one to the whole.
    let reserved = &unsafe { &*this.cast::<WeightAllocator>() }.reserved;
    match size_bytes.checked_add(ALIGNMENT).and_then(|size| reserved.take(size)) {
        // SAFETY: it was taken with room for the header.
        Some((at, piece)) => unsafe { behind(Header { piece: Some(piece), size_bytes: 0 }, at.as_ptr()) },
        None => ptr::null_mut(),
    }
}

unsafe extern "system" fn free(_: *mut OrtAllocator, address: *mut c_void) {
    if address.is_null() {
        return;
    }
    // SAFETY: the address was given out behind its header, and nobody uses it any more.
    unsafe {
        let at = address.cast::<u8>().sub(ALIGNMENT);
        let Header { piece, size_bytes } = at.cast::<Header>().read();
        if piece.is_none() {
            dealloc(at, Layout::from_size_align_unchecked(size_bytes, ALIGNMENT));
        }
    }
}

unsafe extern "system" fn info_of(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: as in `reserve`.
    unsafe { &*this.cast::<WeightAllocator>() }.info.ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_share_a_piece_until_it_is_full_and_give_it_back_with_the_last() {
        let pages = HugePages::new();
        let taken = [1, 100, 0, PIECE_BYTES, 7].map(|size_bytes| {
            let (at, piece) = pages.take(size_bytes).unwrap();
            assert_eq!(at.as_ptr().align_offset(ALIGNMENT), 0);
            // SAFETY: nobody else has these bytes.
            unsafe { at.as_ptr().write_bytes(size_bytes as u8, size_bytes) };
            (at, piece)
        });
        let [first, second, none, large, last] = &taken;
        assert_eq!(second.0.as_ptr() as usize - first.0.as_ptr() as usize, ALIGNMENT);
        assert!(Arc::ptr_eq(&first.1, &none.1) && !Arc::ptr_eq(&first.1, &large.1) && !Arc::ptr_eq(&large.1, &last.1));
        // SAFETY: written above.
        assert_eq!(unsafe { [*second.0.as_ptr().add(99), *last.0.as_ptr().add(6)] }, [100, 7]);
        let piece = Arc::downgrade(&last.1);
        drop(taken);
        assert_eq!(piece.strong_count(), 0);
    }

    #[test]
    fn what_the_system_cannot_have_is_refused() {
        assert!(HugePages::new().take(usize::MAX).is_none());
        assert!(HugePages::new().take(usize::MAX / 2).is_none());
    }
}
