//! Who waits for requests, of the event loops on `/dev/fuse`; the others sleep.
//!
//! - A lone client is served by one loop, which looks out for its next request a moment before it
//!   sleeps: to wake a thread takes longer than to answer most requests.
//! - Clients that take turns are served by two, which look out for nothing: the time is theirs.
//! - More are called when requests wait again and again, or behind a READ or WRITE that took long,
//!   which loops see themselves, or while all are busy, which a guard sees.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::wire::abi::Opcode;
use super::wire::{Device, Header};

/// How long a loop looks out for a request before it sleeps, if that has paid lately.
const PATIENCE: Duration = Duration::from_micros(50);
/// A lone loop that finds the next request waiting so many times in a row calls another.
const BEHIND: u32 = 32;
/// A loop sleeps after so many requests in a row that others were there for, too.
const SURPLUS: u32 = 32;
/// One of so many loops, and two at least, wait for requests of several clients.
const SHARE_FOR_SEVERAL: usize = 4;
/// How much it says that a request is not of the thread of which the one before was, where one that
/// is says 1 to the contrary; and what makes several clients of it.
const CHANGE: u32 = 8;
const CHANGES_OF_SEVERAL: u32 = 32;
/// While there are several, each loop looks at one of so many requests only.
const SAMPLE: u32 = 16;
/// How often the guard looks; twice as long a request waits at most while a loop sleeps.
const TICK: Duration = Duration::from_millis(2);
/// The guard sleeps when so many ticks have brought no request.
const IDLE_TICKS: u32 = 20;

/// The event loops of a mount, as far as they wait.
pub(super) struct Watch {
    /// What loops sleep on: each call wakes one.
    calls: EventFd,
    loops: usize,
    /// How many sleep and were not called.
    asleep: AtomicUsize,
    /// How many wait for a request.
    watching: AtomicUsize,
    /// The thread that asked last, and how much the threads have changed lately.
    client: AtomicU32,
    changes: AtomicU32,
    has_several: AtomicBool,
    /// Whether requests came since the guard looked.
    is_active: AtomicBool,
    is_guard_asleep: AtomicBool,
    has_ended: AtomicBool,
    guard: OnceLock<Thread>,
}

/// One event loop's own view.
pub(super) struct Pace {
    patience: Duration,
    /// How many requests it got in a row that others were there for, too.
    surplus: u32,
    /// How many it got in all.
    requests: u32,
    /// What the last one was.
    opcode: u32,
    /// How many times in a row the next one was there already, while this loop was alone.
    behind: u32,
    processors: usize,
    /// When the wait for a request began, and when one came.
    begun: Instant,
    received: Instant,
}

/// An event loop that waits for a request.
pub(super) struct Watching<'a>(&'a Watch);

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.watching.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch {
    /// For one event loop.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            calls: EventFd::from_value_and_flags(0, flags)?,
            loops: 1,
            asleep: AtomicUsize::new(0),
            watching: AtomicUsize::new(0),
            client: AtomicU32::new(0),
            changes: AtomicU32::new(0),
            has_several: AtomicBool::new(false),
            is_active: AtomicBool::new(true),
            is_guard_asleep: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            guard: OnceLock::new(),
        })
    }

    /// For so many event loops, none of which sleeps yet.
    pub(super) fn of(self, loops: usize) -> Self {
        Self { loops, ..self }
    }

    /// How many event loops there are.
    pub(super) fn loops(&self) -> usize {
        self.loops
    }

    /// To be called by an event loop when it has nothing to do: returns when it is to wait for a
    /// request. Calls `before` before it sleeps, and again after a signal.
    ///
    /// # Errors
    /// Those of read(2).
    pub(super) fn join(
        &self,
        device: &Device,
        pace: &mut Pace,
        mut before: impl FnMut(),
    ) -> io::Result<Watching<'_>> {
        while pace.surplus >= SURPLUS
            && self.is_watched_enough()
            && !self.has_ended.load(Ordering::SeqCst)
            && !device.is_awaited()
        {
            self.asleep.fetch_add(1, Ordering::Relaxed);
            loop {
                before();
                match self.calls.read() {
                    Ok(_) => break,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            pace.surplus = 0;
        }
        self.watching.fetch_add(1, Ordering::Relaxed);
        Ok(Watching(self))
    }

    /// A request came.
    fn is_alive(&self) {
        // Sequentially consistent, as in the guard: one of both sees what the other has set.
        if !self.is_active.load(Ordering::Relaxed) {
            self.is_active.store(true, Ordering::SeqCst);
            if self.is_guard_asleep.load(Ordering::SeqCst) {
                self.wake_guard();
            }
        }
    }

    /// An event loop has ended: the mount is gone, or broke. Nobody sleeps any more, not even who
    /// is about to.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.wake(self.loops);
        self.wake_guard();
    }

    /// Calls event loops while requests wait and all that are awake are busy; until the end.
    pub(super) fn guard(&self, device: &Device) {
        self.guard.get_or_init(std::thread::current);
        let mut idle = 0;
        while !self.has_ended.load(Ordering::SeqCst) {
            idle = if self.is_active.swap(false, Ordering::SeqCst) { 0 } else { idle + 1 };
            let is_watched = self.is_watched();
            if idle > 0 && !is_watched && device.is_awaited() {
                self.call();
            }
            if idle < IDLE_TICKS || !is_watched {
                std::thread::park_timeout(TICK);
                continue;
            }
            self.is_guard_asleep.store(true, Ordering::SeqCst);
            if !self.is_active.load(Ordering::SeqCst) && !self.has_ended.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.is_guard_asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Several loops may come here at once: what they count is an estimate.
    fn count_client(&self, client: u32) {
        let changes = self.changes.load(Ordering::Relaxed);
        if self.client.load(Ordering::Relaxed) == client {
            if changes > 0 {
                self.changes.store(changes - 1, Ordering::Relaxed);
            } else if self.has_several() {
                self.has_several.store(false, Ordering::Relaxed);
            }
            return;
        }
        self.client.store(client, Ordering::Relaxed);
        self.changes.store((changes + CHANGE).min(2 * CHANGES_OF_SEVERAL), Ordering::Relaxed);
        if changes >= CHANGES_OF_SEVERAL && !self.has_several.swap(true, Ordering::Relaxed) {
            self.call();
        }
    }

    fn has_several(&self) -> bool {
        self.has_several.load(Ordering::Relaxed)
    }

    fn is_watched(&self) -> bool {
        self.watching.load(Ordering::Relaxed) > 0
    }

    fn is_watched_enough(&self) -> bool {
        let for_several = (self.loops / SHARE_FOR_SEVERAL).max(2);
        let wanted = if self.has_several() { for_several } else { 1 };
        self.watching.load(Ordering::Relaxed) >= wanted
    }

    /// How many event loops do not sleep.
    fn awake(&self) -> usize {
        self.loops.saturating_sub(self.asleep.load(Ordering::Relaxed))
    }

    #[cfg(test)]
    pub(super) fn any_sleeps(&self) -> bool {
        self.awake() < self.loops
    }

    /// Whether all other event loops sleep, and there is one client.
    fn is_alone(&self) -> bool {
        !self.has_several() && self.awake() <= 1
    }

    /// Wakes an event loop that sleeps, if one does.
    fn call(&self) {
        let fewer = |asleep: usize| asleep.checked_sub(1);
        if self.asleep.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
            self.wake(1);
        }
    }

    fn wake(&self, count: usize) {
        if let Err(error) = self.calls.write(count as u64) {
            log::warn!("{count} event loops sleep on: {error}");
        }
    }

    fn wake_guard(&self) {
        if let Some(guard) = self.guard.get() {
            guard.unpark();
        }
    }
}

impl Pace {
    /// Of a loop that sleeps at first, if another one waits.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let now = Instant::now();
        Self {
            patience: PATIENCE,
            surplus: SURPLUS,
            requests: 0,
            opcode: 0,
            behind: 0,
            processors,
            begun: now,
            received: now,
        }
    }

    /// Looks out for the next request, which is to be received then; calls another event loop if
    /// requests had to wait.
    pub(super) fn look_out(&mut self, watch: &Watch, device: &Device) {
        self.begun = Instant::now();
        let was_long = self.begun - self.received > PATIENCE;
        let had_contents = self.was(Opcode::Read) || self.was(Opcode::Write);
        if was_long && had_contents && device.is_awaited() {
            return self.call(watch);
        }
        if !watch.is_alone() {
            return;
        }
        if device.is_awaited() {
            self.behind += 1;
            if self.behind >= BEHIND {
                self.behind = 0;
                self.call(watch);
            }
            return;
        }
        self.behind = 0;
        // On a single processor the client could not run meanwhile.
        if self.processors == 1 {
            return;
        }
        while self.begun.elapsed() < self.patience && !device.is_awaited() {
            std::hint::spin_loop();
        }
    }

    /// Calls another event loop: for READs, which wait for the disk, as many as there are, for what
    /// takes a processor's time as many as there are processors.
    fn call(&self, watch: &Watch) {
        if self.was(Opcode::Read) || watch.awake() < self.processors.max(2) {
            watch.call();
        }
    }

    fn was(&self, opcode: Opcode) -> bool {
        self.opcode == opcode as u32
    }

    /// It was received.
    pub(super) fn received(&mut self, watch: &Watch, header: &Header) {
        self.received = Instant::now();
        self.opcode = header.opcode;
        self.requests = self.requests.wrapping_add(1);
        if header.pid != 0 && (self.requests % SAMPLE == 0 || !watch.has_several()) {
            watch.count_client(header.pid);
        }
        watch.is_alive();
        if self.received - self.begun > PATIENCE {
            self.patience /= 2;
        } else {
            self.patience = PATIENCE;
        }
        self.surplus = if watch.is_watched() { self.surplus.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::fuse::wire::device::Buffer;

    /// Whether it is so in the end.
    fn soon(is_so: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_so() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        is_so()
    }

    #[test]
    fn clients_that_take_turns_are_several() {
        let watch = Watch::new().unwrap().of(8);
        (0..1000).for_each(|_| watch.count_client(1));
        watch.count_client(2);
        assert!(!watch.has_several(), "another one came once");
        (0..200).for_each(|turn| watch.count_client(u32::from(turn % 5 == 0)));
        assert!(watch.has_several(), "one of five requests is another one's");
        (0..100).for_each(|_| watch.count_client(1));
        assert!(!watch.has_several(), "one is left");
    }

    /// While nothing comes the guard sleeps; when a request waits and no loop is there for it, a
    /// loop that sleeps is called; at the end nobody sleeps.
    #[test]
    fn somebody_is_called() {
        let (mut kernel, file) = UnixStream::pair().unwrap();
        let device = Device::new(file.into());
        let watch = Watch::new().unwrap().of(3);
        let sleep = || drop(watch.join(&device, &mut Pace::new(), || {}).unwrap());
        std::thread::scope(|scope| {
            let other = watch.join(&device, &mut Pace::new(), || {}).unwrap();
            let sleeper = scope.spawn(sleep);
            let sleeps = soon(|| watch.asleep.load(Ordering::Relaxed) == 1);
            let guard = scope.spawn(|| watch.guard(&device));
            let guard_sleeps = soon(|| watch.is_guard_asleep.load(Ordering::SeqCst));
            // The other loop gets a request and is busy with it; then comes a second one.
            drop(other);
            watch.is_alive();
            kernel.write_all(&[0]).unwrap();
            let is_called = soon(|| sleeper.is_finished());
            let _received = device.receive(&mut Buffer::new(0), |_| {}).unwrap();
            let _other = watch.join(&device, &mut Pace::new(), || {}).unwrap();
            let sleeper = scope.spawn(sleep);
            watch.end();
            let all_end = soon(|| sleeper.is_finished() && guard.is_finished());
            watch.call();
            assert_eq!((sleeps, guard_sleeps, is_called, all_end), (true, true, true, true));
        });
    }
}
