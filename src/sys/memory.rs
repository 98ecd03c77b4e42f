//! Memory for secrets: locked, left out of core dumps, and wiped when given back.
//!
//! Secrets are many and short-lived (a wrapped key costs two), so they come from a small arena of
//! mapped chunks rather than from a system call each. Chunks are never unmapped; freed slots are
//! zero until they are used again.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroize;

/// Size of an arena chunk: small, because an unprivileged process may lock as little as 64 KiB.
const CHUNK_BYTES: usize = 32 * 1024;
/// Sizes of slots: a key of up to 512 bits, and an AES-GCM context with its key schedule.
const SLOT_BYTES: [usize; 2] = [64, 640];
/// Granularity of large mappings; rounding up to more than the page size does no harm.
const PAGE_BYTES: usize = 4096;

/// Addresses of free, zeroed slots, for each slot size.
static FREE: [Mutex<Vec<usize>>; 2] = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
/// Live mappings: address to length. Lock order: `FREE`, then `MAPPINGS`.
static MAPPINGS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
static UNLOCKED_BYTES: AtomicU64 = AtomicU64::new(0);
static WARNED: AtomicBool = AtomicBool::new(false);

/// A fixed number of bytes in the arena, zero at first and wiped when dropped.
///
/// Their address does not change while they live, which foreign contexts depend on. The start is
/// aligned to 64 bytes.
pub struct LockedBytes {
    start: NonNull<u8>,
    length: usize,
    /// Index into [`SLOT_BYTES`], or `None` for a mapping of its own.
    class: Option<usize>,
}

// SAFETY: the bytes are owned by this value alone and belong to no thread.
unsafe impl Send for LockedBytes {}
// SAFETY: shared access is read-only, through `Deref`.
unsafe impl Sync for LockedBytes {}

impl LockedBytes {
    /// Takes `length` zero bytes.
    ///
    /// # Panics
    /// If the system has no memory left, as allocation does.
    pub fn new(length: usize) -> Self {
        let class = SLOT_BYTES.iter().position(|slot| length <= *slot);
        let address = match class {
            Some(class) => take_slot(class),
            None => map(length.next_multiple_of(PAGE_BYTES)),
        };
        let start = NonNull::new(address as *mut u8).expect("mappings are not at address zero");
        Self { start, length, class }
    }

    /// Address of the first byte, for a foreign function that keeps its context here.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Deref for LockedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to at least `length` mapped, initialised bytes owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for LockedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        self.zeroize();
        let address = self.start.as_ptr() as usize;
        match self.class {
            Some(class) => FREE[class].lock().push(address),
            None => unmap(address),
        }
    }
}

/// Bytes of secrets that could not be locked (`RLIMIT_MEMLOCK`) and may reach swap.
pub fn unlocked_bytes() -> u64 {
    UNLOCKED_BYTES.load(Ordering::Relaxed)
}

/// Gives memory that was freed back to the operating system: `malloc_trim(3)` where the C library
/// has it.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn take_slot(class: usize) -> usize {
    let mut free = FREE[class].lock();
    if let Some(address) = free.pop() {
        return address;
    }
    let slot_bytes = SLOT_BYTES[class];
    let chunk = map(CHUNK_BYTES);
    let last = (CHUNK_BYTES / slot_bytes - 1) * slot_bytes;
    // Room for every slot that exists, so that giving one back does not allocate.
    let capacity = free.capacity() + CHUNK_BYTES / slot_bytes;
    free.reserve_exact(capacity);
    free.extend((0..last).step_by(slot_bytes).map(|offset| chunk + offset));
    chunk + last
}

/// Maps `length` zero bytes, locked if possible and left out of core dumps.
fn map(length: usize) -> usize {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        let layout = std::alloc::Layout::from_size_align(length, 1).expect("rounded sizes fit");
        std::alloc::handle_alloc_error(layout);
    }
    // SAFETY: the range was mapped above. A kernel without the flag leaves it in dumps, which
    // PR_SET_DUMPABLE prevents as well, so the result does not matter.
    unsafe { libc::madvise(start, length, libc::MADV_DONTDUMP) };
    lock(start as usize, length);
    MAPPINGS.lock().insert(start as usize, length);
    start as usize
}

fn lock(address: usize, length: usize) {
    // SAFETY: mlock does not change the contents of memory; the range is one of `MAPPINGS`.
    if unsafe { libc::mlock(address as *const libc::c_void, length) } == 0 {
        return;
    }
    let source = io::Error::last_os_error();
    UNLOCKED_BYTES.fetch_add(length as u64, Ordering::Relaxed);
    if !WARNED.swap(true, Ordering::Relaxed) {
        log::warn!("keys may reach swap: cannot lock {length} bytes of memory: {source}");
    }
}

fn unmap(address: usize) {
    let length = MAPPINGS.lock().remove(&address).expect("the owner unmaps, once");
    // SAFETY: the range was mapped by `map`, and its only owner is being dropped.
    unsafe { libc::munmap(address as *mut libc::c_void, length) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes around the slot classes; each is writable, zero at first, aligned.
    #[test]
    fn sizes() {
        for length in [0, 1, 32, 64, 65, 584, 640, 641, 4096, 10_000] {
            let mut bytes = LockedBytes::new(length);
            assert_eq!(bytes.len(), length);
            assert_eq!(bytes.as_ptr() as usize % 64, 0);
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(0xa5);
        }
    }

    /// A slot that held a secret is zero while it is free: look at the memory after the drop.
    #[test]
    fn wiped_when_dropped() {
        let mut bytes = LockedBytes::new(600);
        bytes.fill(0xa5);
        let address = bytes.as_ptr();
        drop(bytes);
        let free = FREE[1].lock();
        // Another test may have taken the slot in between; then there is nothing to look at.
        if free.contains(&(address as usize)) {
            // SAFETY: chunks stay mapped, and the slot is free while the lock is held.
            let left = unsafe { std::slice::from_raw_parts(address, 600) };
            assert!(left.iter().all(|byte| *byte == 0));
        }
    }

    /// The list of free slots grows with what is taken, and no faster: doubling it with every chunk
    /// of the arena asked for gigabytes after a few thousand keys.
    #[test]
    fn many_slots_cost_what_they_hold() {
        let held: Vec<_> = (0..5_000).map(|_| LockedBytes::new(600)).collect();
        let capacity = FREE[1].lock().capacity();
        assert!(capacity < 3 * held.len(), "room for {capacity} slots");
    }

    /// Slots never overlap, also when threads take and return them at once.
    #[test]
    fn slots_are_disjoint() {
        std::thread::scope(|scope| {
            for thread in 1..=4u8 {
                scope.spawn(move || {
                    for _ in 0..200 {
                        let mut held: Vec<_> = (0..20).map(|_| LockedBytes::new(48)).collect();
                        held.iter_mut().for_each(|bytes| bytes.fill(thread));
                        assert!(held.iter().all(|bytes| bytes.iter().all(|b| *b == thread)));
                    }
                });
            }
        });
    }

    /// The kernel's own account: the arena is locked (`lo`) and not dumped (`dd`).
    #[test]
    fn locked_and_not_dumped() {
        let bytes = LockedBytes::new(32);
        let address = bytes.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("procfs is mounted");
        let mut inside = false;
        for line in maps.lines() {
            let first = line.split(' ').next().expect("split gives one item");
            if let Some((start, end)) = first.split_once('-') {
                let parse = |text| usize::from_str_radix(text, 16).unwrap_or(0);
                inside = (parse(start)..parse(end)).contains(&address);
            }
            if inside && line.starts_with("VmFlags:") {
                assert!(line.contains(" dd"), "{line}");
                assert!(line.contains(" lo") || unlocked_bytes() > 0, "{line}");
                return;
            }
        }
        panic!("no mapping holds the secret");
    }
}
