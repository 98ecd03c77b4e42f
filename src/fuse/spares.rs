//! Event loops beyond the first ones, which sleep until all others are busy reading from the disk:
//! as many readers as wait for it, and no thread more that takes turns when there are few.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// How many there are. More wait for a disk at once than two processors can keep busy.
pub(super) const SPARES: usize = 6;

/// The spare event loops of a mount.
pub(super) struct Spares {
    /// What they sleep on: each call wakes one.
    calls: EventFd,
    /// How many sleep and were not called.
    asleep: AtomicUsize,
    /// Event loops, spare or not, that wait for a request.
    waiting: AtomicUsize,
}

/// An event loop that waits for a request.
pub(super) struct Waiting<'a>(&'a Spares);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Spares {
    /// None of them sleeps yet.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(super) fn new() -> io::Result<Self> {
        let calls =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { calls, asleep: AtomicUsize::new(0), waiting: AtomicUsize::new(0) })
    }

    /// This event loop is about to be busy for long: wakes a spare one, unless somebody waits for
    /// requests.
    pub(super) fn call(&self) {
        let fewer = |asleep: usize| asleep.checked_sub(1);
        if !self.somebody_waits()
            && self.asleep.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
        {
            self.wake(1);
        }
    }

    /// The mount is gone: nobody sleeps any more, not even who is about to.
    pub(super) fn end(&self) {
        self.wake(SPARES);
    }

    fn wake(&self, count: usize) {
        if let Err(error) = self.calls.write(count as u64) {
            log::warn!("{count} spare event loops sleep on: {error}");
        }
    }

    /// Waits until this spare event loop is called. Calls `before` first, and again after a signal.
    ///
    /// # Errors
    /// Those of read(2).
    pub(super) fn sleep(&self, mut before: impl FnMut()) -> io::Result<()> {
        self.asleep.fetch_add(1, Ordering::Relaxed);
        loop {
            before();
            match self.calls.read() {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// An event loop waits for a request from now on, until what this returns is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Whether an event loop waits for a request.
    pub(super) fn somebody_waits(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}
