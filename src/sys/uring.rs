//! FUSE requests by io_uring: `IORING_OP_URING_CMD` on `/dev/fuse`
//! (Documentation/filesystems/fuse/fuse-io-uring.rst, Linux 6.14).
//!
//! A slot is memory in which the kernel puts a request and we put the answer. At any time it is
//! with the kernel or with us, and only who has it may look at it.
#![expect(unsafe_code, reason = "memory that is shared with the kernel has no safe form")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// `FUSE_IO_URING_CMD_REGISTER` and `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Bytes of the two header areas of `struct fuse_uring_req_header`.
const AREA_BYTES: usize = 128;
/// Where in that struct, after both areas, the commit id is and the length of the payload.
const COMMIT_ID_OFFSET: usize = 2 * AREA_BYTES + 8;
const PAYLOAD_SIZE_OFFSET: usize = 2 * AREA_BYTES + 16;
/// Bytes of that struct.
const HEADER_BYTES: usize = 2 * AREA_BYTES + 32;
/// Where the two parts of a slot are listed (`struct iovec`), behind the header.
const PARTS_OFFSET: usize = 512;
/// Where the payload begins.
const PAYLOAD_OFFSET: usize = 4096;
/// Where the field `len` is in a submission entry (include/uapi/linux/io_uring.h).
const SQE_LEN_OFFSET: usize = 24;
/// Marks the completion that tells of a [`Waker`].
const WAKE: u64 = u64::MAX;

/// A ring with the slots of some of a mount's queues. One thread uses it, from the first
/// [`Ring::register`] on: the kernel delivers requests to the thread that gave it the slot.
pub struct Ring {
    // Dropped first: the kernel then has no more business with the slots.
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: OwnedFd,
    slots: Vec<Slot>,
    wake: Arc<Waker>,
}

/// What [`Ring::wait`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request is in this slot, which is ours until it is committed.
    Request(usize),
    /// The kernel gave this slot back for good, and why (an errno).
    Gone(usize, i32),
    /// Somebody called [`Waker::wake`].
    Woken,
}

/// A request in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// What every request begins with.
    pub header: &'a [u8],
    /// Fields of its kind, and bytes that mean nothing behind them.
    pub fixed: &'a [u8],
    /// Names and data.
    pub payload: &'a [u8],
}

/// Ends a [`Ring::wait`] from another thread.
pub struct Waker(File);

impl Waker {
    /// Ends the current wait, or the next.
    pub fn wake(&self) {
        // It fails only if nobody has looked for 2^64 - 1 times.
        let _ = (&self.0).write_all(&1_u64.to_ne_bytes());
    }
}

/// One mapping: the header, then the payload.
struct Slot {
    memory: NonNull<u8>,
    payload_bytes: usize,
    queue: u16,
    /// Whether the kernel may read and write it.
    is_lent: bool,
}

impl Ring {
    /// A ring in which so many commands can be handed over at once.
    ///
    /// # Errors
    /// Those of io_uring_setup(2): ENOSYS, EPERM if it is forbidden (`kernel.io_uring_disabled`).
    pub fn new(device: impl AsFd, commands: u32) -> io::Result<Self> {
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            .dontfork()
            .setup_cqsize(commands * 2)
            .build(commands)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = OwnedFd::from(EventFd::from_value_and_flags(0, flags)?);
        let wake = Arc::new(Waker(File::from(wake)));
        Ok(Self { ring, device: device.as_fd().try_clone_to_owned()?, slots: Vec::new(), wake })
    }

    /// What ends a wait.
    pub fn waker(&self) -> Arc<Waker> {
        self.wake.clone()
    }

    /// Begins to listen to the [`Waker`]. Also after each [`Event::Woken`].
    ///
    /// # Errors
    /// The ring is broken.
    pub fn listen(&mut self) -> io::Result<()> {
        let descriptor = types::Fd(self.wake.0.as_raw_fd());
        let poll = opcode::PollAdd::new(descriptor, libc::POLLIN as u32).build().user_data(WAKE);
        self.push(poll.into())
    }

    /// Makes a slot for requests of one queue (of one processor) and lends it to the kernel.
    /// `payload_bytes` is the longest that the kernel sends or takes.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn register(&mut self, queue: u16, payload_bytes: usize) -> io::Result<usize> {
        let slot = Slot::new(queue, payload_bytes)?;
        let parts = slot.parts();
        let index = self.slots.len();
        self.slots.push(slot);
        self.command(index, REGISTER, 0, Some(parts))?;
        Ok(index)
    }

    /// How many slots of a queue wait for requests.
    pub fn waiting(&self, queue: u16) -> usize {
        self.slots.iter().filter(|slot| slot.queue == queue && slot.is_lent).count()
    }

    /// The queue of a slot.
    pub fn queue(&self, index: usize) -> Option<u16> {
        self.slots.get(index).map(|slot| slot.queue)
    }

    /// The request in a slot, if it is ours.
    pub fn request(&self, index: usize) -> Option<Arrived<'_>> {
        let slot = self.slots.get(index).filter(|slot| !slot.is_lent)?;
        let header = slot.bytes(0, HEADER_BYTES);
        let length = u32_at(header, PAYLOAD_SIZE_OFFSET) as usize;
        Some(Arrived {
            header: &header[..AREA_BYTES],
            fixed: &header[AREA_BYTES..2 * AREA_BYTES],
            payload: slot.bytes(PAYLOAD_OFFSET, length.min(slot.payload_bytes)),
        })
    }

    /// Where the payload of the answer goes, if the slot is ours. The request in it is lost.
    pub fn payload(&mut self, index: usize) -> Option<&mut [u8]> {
        let slot = self.slots.get_mut(index).filter(|slot| !slot.is_lent)?;
        // SAFETY: these bytes are in the mapping, which the slot owns; the kernel does not touch
        // them while it is not lent, and `&mut self` keeps other references away.
        Some(unsafe {
            std::slice::from_raw_parts_mut(
                slot.memory.as_ptr().add(PAYLOAD_OFFSET),
                slot.payload_bytes,
            )
        })
    }

    /// Answers the request in a slot with a header and the first bytes of its payload, and lends
    /// it to the kernel again. Nothing happens if it is not ours.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn commit(&mut self, index: usize, header: &[u8], payload_bytes: u32) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| !slot.is_lent) else {
            return Ok(());
        };
        let area = slot.header_mut();
        let commit_id = u64_at(area, COMMIT_ID_OFFSET);
        let length = header.len().min(AREA_BYTES);
        area[..length].copy_from_slice(&header[..length]);
        area[PAYLOAD_SIZE_OFFSET..PAYLOAD_SIZE_OFFSET + 4]
            .copy_from_slice(&payload_bytes.to_ne_bytes());
        self.command(index, COMMIT_AND_FETCH, commit_id, None)
    }

    /// Hands over what was registered and committed, and waits until something happens.
    ///
    /// # Errors
    /// Those of io_uring_enter(2).
    pub fn wait(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            // EBUSY: completions have to be taken before more is done.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            Err(error) => return Err(error),
        }
        let slots = &mut self.slots;
        for completion in self.ring.completion() {
            let (index, result) = (completion.user_data(), completion.result());
            if index == WAKE {
                let mut count = [0; 8];
                // Not there if it was read before.
                let _ = (&self.wake.0).read(&mut count);
                events.push(Event::Woken);
                continue;
            }
            let index = index as usize;
            let Some(slot) = slots.get_mut(index) else { continue };
            slot.is_lent = false;
            events.push(match result {
                0.. => Event::Request(index),
                _ => Event::Gone(index, -result),
            });
        }
        Ok(())
    }

    /// Lends a slot to the kernel again after it was given back for a moment (EINTR, EAGAIN).
    ///
    /// # Errors
    /// The ring is broken.
    pub fn register_again(&mut self, index: usize) -> io::Result<()> {
        let Some(parts) = self.slots.get(index).filter(|slot| !slot.is_lent).map(Slot::parts)
        else {
            return Ok(());
        };
        self.command(index, REGISTER, 0, Some(parts))
    }

    /// `struct fuse_uring_cmd_req`: flags, commit id, queue, six bytes of nothing.
    fn command(
        &mut self,
        index: usize,
        command: u32,
        commit_id: u64,
        parts: Option<u64>,
    ) -> io::Result<()> {
        let slot = &mut self.slots[index];
        let mut body = [0; 80];
        body[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        body[16..18].copy_from_slice(&slot.queue.to_ne_bytes());
        let device = types::Fd(self.device.as_raw_fd());
        let mut entry = opcode::UringCmd80::new(device, command)
            .cmd(body)
            .addr(parts)
            .build()
            .user_data(index as u64);
        if parts.is_some() {
            set_length(&mut entry, 2);
        }
        slot.is_lent = true;
        self.push(entry)
    }

    fn push(&mut self, entry: squeue::Entry128) -> io::Result<()> {
        for _ in 0..2 {
            // SAFETY: the descriptors and the slot that the entry names live as long as the ring:
            // both are dropped after it, and a slot that is lent is never unmapped.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
        Err(io::Error::other("the kernel takes no more commands"))
    }
}

impl Slot {
    fn new(queue: u16, payload_bytes: usize) -> io::Result<Self> {
        let length = PAYLOAD_OFFSET + payload_bytes;
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let slot = Self { memory, payload_bytes, queue, is_lent: false };
        let parts = [
            libc::iovec { iov_base: memory.as_ptr().cast(), iov_len: HEADER_BYTES },
            libc::iovec {
                // SAFETY: the payload begins inside the mapping.
                iov_base: unsafe { memory.as_ptr().add(PAYLOAD_OFFSET) }.cast(),
                iov_len: payload_bytes,
            },
        ];
        // SAFETY: there is room between the header and the payload, aligned for it, and nobody
        // else knows of this memory yet.
        unsafe { memory.as_ptr().add(PARTS_OFFSET).cast::<[libc::iovec; 2]>().write(parts) };
        Ok(slot)
    }

    /// The address of the list of its two parts.
    fn parts(&self) -> u64 {
        self.memory.as_ptr() as u64 + PARTS_OFFSET as u64
    }

    /// Bytes of a slot that is not lent.
    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        debug_assert!(!self.is_lent && offset + length <= PAYLOAD_OFFSET + self.payload_bytes);
        // SAFETY: callers pass ranges inside the mapping, which the slot owns, and only of slots
        // that the kernel does not touch now; `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(offset), length) }
    }

    /// The header of a slot that is not lent.
    fn header_mut(&mut self) -> &mut [u8] {
        debug_assert!(!self.is_lent);
        // SAFETY: as in `bytes`, and `&mut self` keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), HEADER_BYTES) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // What the kernel has not given back it may still write to: it stays, once for a mount that
        // ended in disorder.
        if !self.is_lent {
            // SAFETY: this is the mapping, whole, and nothing refers to it any more.
            unsafe {
                libc::munmap(self.memory.as_ptr().cast(), PAYLOAD_OFFSET + self.payload_bytes)
            };
        }
    }
}

// SAFETY: a slot owns its memory as a box would; nothing of it is bound to a thread.
unsafe impl Send for Slot {}

/// Sets a field that the library has no word for.
fn set_length(entry: &mut squeue::Entry128, length: u32) {
    const { assert!(size_of::<squeue::Entry128>() == 128) };
    // SAFETY: an entry is `struct io_uring_sqe` and 64 bytes (`repr(C)`), in which this field is a
    // `u32` at a multiple of 4, and any value is valid.
    unsafe {
        std::ptr::from_mut(entry).cast::<u8>().add(SQE_LEN_OFFSET).cast::<u32>().write(length);
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..].first_chunk().map_or(0, |field| u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..].first_chunk().map_or(0, |field| u64::from_ne_bytes(*field))
}

/// Whether the kernel is willing to send FUSE requests this way; `None` if it does not know how.
pub fn is_enabled() -> Option<bool> {
    let text = std::fs::read_to_string("/sys/module/fuse/parameters/enable_uring").ok()?;
    Some(text.trim() == "Y")
}

/// How many processors there may be, which is how many queues a mount has.
///
/// # Errors
/// Whatever reading `/sys/devices/system/cpu/possible` meets.
pub fn processors() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count(text.trim()).ok_or_else(|| io::Error::other(format!("no list of processors: {text}")))
}

/// `0-3,8`: 5.
fn count(list: &str) -> Option<u16> {
    list.split(',').try_fold(0_u16, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Keeps this thread on one processor.
///
/// # Errors
/// EINVAL if it may not run there, or the processor is not there now.
pub fn stay_on(processor: u16) -> io::Result<()> {
    // SAFETY: a set of bits may be all zero; `CPU_SET` ignores numbers beyond it.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::from(processor), &mut set);
        set
    };
    // SAFETY: the set outlives the call, and its size is its own.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists of processors as the kernel prints them.
    #[test]
    fn lists_of_processors() {
        let table = [("0", Some(1)), ("0-1", Some(2)), ("0-3,8", Some(5)), ("0-3,8-9", Some(6))];
        for (list, expected) in table {
            assert_eq!(count(list), expected, "{list}");
        }
        for list in ["", "3-1", "x", "0-65535", "0-"] {
            assert_eq!(count(list), None, "{list}");
        }
        assert!(processors().unwrap() > 0);
    }

    /// What was lent and given back is as it was written; the waker ends a wait.
    #[test]
    fn woken() {
        let file = File::open("/proc/self/status").unwrap();
        let Ok(mut ring) = Ring::new(&file, 8) else {
            eprintln!("skipped: io_uring is forbidden here");
            return;
        };
        ring.listen().unwrap();
        let waker = ring.waker();
        std::thread::spawn(move || waker.wake());
        let mut events = Vec::new();
        ring.wait(&mut events).unwrap();
        assert_eq!(events, [Event::Woken]);
        // A file that knows no such command gives the slot back at once.
        let slot = ring.register(0, 8192).unwrap();
        assert!(ring.request(slot).is_none() && ring.payload(slot).is_none());
        ring.wait(&mut events).unwrap();
        assert!(matches!(events[..], [Event::Gone(index, _)] if index == slot));
        ring.payload(slot).unwrap().fill(7);
        assert_eq!(ring.request(slot).unwrap().payload, b"");
    }
}
