//! Memory of the weights of sessions, in huge pages.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys::{OrtAllocator, OrtMemoryInfo};

use crate::huge_pages::{CACHE_LINE_BYTES, HugePages, Piece};

/// Memory is taken from the system in pieces of at least this; of the last one, only the pages that are used take memory.
const PIECE_BYTES: usize = 32 << 20;
/// What ONNX Runtime's kernels expect of an address.
const ALIGNMENT: usize = CACHE_LINE_BYTES;

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
    piece: Option<Arc<Piece>>,
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
    let allocator = Box::leak(Box::new(WeightAllocator { functions, info, reserved: HugePages::new(PIECE_BYTES) }));
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
