//! The heap of the program: memory is zero before it is given back, so that no copy of a secret or
//! of contents outlives its owner, whoever made it: HTTP, TLS, JSON, the tree, the overlay.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, which wipes.
pub struct WipingHeap;

// SAFETY: every call is handed on to the system's allocator with the arguments that it was made
// with; what is added only writes to memory that the caller owns and gives up.
unsafe impl GlobalAlloc for WipingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: `start` points to `layout.size()` bytes that were allocated here, and that nobody
        // uses any more. A plain write before free(3) would be optimised away.
        unsafe {
            libc::explicit_bzero(start.cast(), layout.size());
            System.dealloc(start, layout);
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        // realloc(3) would leave the old bytes where they were when it moves them.
        // SAFETY: the caller promises that `new_bytes` is not zero and no overflow when rounded up.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_bytes, layout.align()) };
        // SAFETY: as in `alloc`.
        let new = unsafe { System.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both are allocated, apart, and have as many bytes at least.
            unsafe {
                start.copy_to_nonoverlapping(new, layout.size().min(new_bytes));
                self.dealloc(start, layout);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written is not found where it was after it was given back or moved. The allocator
    /// keeps its own links in the first bytes of what is free.
    #[test]
    fn wiped_when_given_back_or_moved() {
        let layout = Layout::from_size_align(2000, 8).expect("valid");
        let is_wiped = |start: *const u8| {
            // SAFETY: glibc does not unmap so little; volatile, because the memory is not ours.
            (64..2000).all(|at| unsafe { start.add(at).read_volatile() } != 0xa5)
        };
        // SAFETY: a size that is not zero, and each is given back once, with its layout.
        unsafe {
            let kept = WipingHeap.alloc(layout);
            let first = WipingHeap.alloc(layout);
            first.write_bytes(0xa5, 2000);
            let moved = WipingHeap.realloc(first, layout, 300_000);
            assert!(is_wiped(first), "moved");
            assert!((0..2000).all(|at| *moved.add(at) == 0xa5), "the bytes came along");
            WipingHeap.dealloc(moved, Layout::from_size_align(300_000, 8).expect("valid"));
            let second = WipingHeap.alloc(layout);
            second.write_bytes(0xa5, 2000);
            WipingHeap.dealloc(second, layout);
            assert!(is_wiped(second), "given back");
            WipingHeap.dealloc(kept, layout);
        }
    }
}
