//! Contents that are read in sequence are fetched from the disk before they are asked for, so that
//! the disk works while pages are opened and answers copied.
//!
//! What is fetched stays sealed. It is used only where the page map still says the same of a page
//! when it is asked for: a nonce is used once, so that these are its bytes whatever happened
//! meanwhile. Nothing has to be told of writes.

use super::Volume;
use super::read::together;
use crate::format::PAGE_BYTES;
use crate::format::map::PagePointer;
use crate::storage::{AlignedBuffer, FileId};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Reads of fewer pages (128 KiB) say nothing about an order.
const SEQUENCE_PAGES: u64 = 32;
/// Reads that are fetched ahead of a reader.
const DEPTH: u64 = 2;
/// Pages that are fetched in one go: 256 KiB. The first are opened while the others are on their
/// way, and what lies apart is read from many places at once.
const WINDOW_PAGES: u64 = 64;
/// All windows of a reader at once: on a disk that takes a millisecond, waiting is all there is.
const THREADS: usize = 8;
/// Readers that are followed at a time.
const STREAMS_MAX: usize = 4;
/// Buffers that wait to be used again.
const SPARE_MAX: usize = 16;
/// Who has not read for so long reads no more: what was fetched is given up, and the buffers.
const IDLE: Duration = Duration::from_secs(1);

/// Who reads in sequence, and what is fetched for them.
pub(super) struct Ahead {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    is_running: bool,
    /// The one that read last is the last.
    streams: VecDeque<Stream>,
    queue: VecDeque<Arc<Window>>,
    spare: Vec<AlignedBuffer>,
    fetched_bytes: u64,
    last_read: Option<Instant>,
}

/// A reader that would go on at page `next`.
struct Stream {
    ino: u64,
    next: u64,
    /// Everything before this page was asked for.
    end: u64,
    windows: VecDeque<Arc<Window>>,
}

/// Pages that are fetched in one go.
pub(super) struct Window {
    ino: u64,
    first: u64,
    count: u64,
    state: Mutex<Fetch>,
    ended: Condvar,
}

enum Fetch {
    Queued,
    Running,
    /// Nothing, if it failed: the reader tries it again and is told.
    Ended(Option<Sealed>),
    /// The reader was there first, or is gone.
    Cancelled,
}

/// Sealed pages and where they were, ascending.
#[derive(Default)]
pub(super) struct Sealed {
    pages: Vec<(u64, PagePointer)>,
    bytes: AlignedBuffer,
}

impl Sealed {
    /// The bytes of these pages, if all are here and still what they were.
    pub(super) fn of(&self, pages: &[(u64, PagePointer)]) -> Option<&[u8]> {
        let (first, _) = pages.first()?;
        let at = self.pages.binary_search_by_key(first, |(page, _)| *page).ok()?;
        (self.pages.get(at..at + pages.len())? == pages)
            .then(|| &self.bytes.bytes()[at * PAGE_BYTES..(at + pages.len()) * PAGE_BYTES])
    }
}

impl Window {
    /// The page behind its last.
    pub(super) fn end(&self) -> u64 {
        self.first + self.count
    }

    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        let is_wanted = matches!(*state, Fetch::Queued);
        if is_wanted {
            *state = Fetch::Running;
        }
        is_wanted
    }

    /// What was fetched. Waits for what is on its way; what is not yet, the reader fetches.
    pub(super) fn take(&self) -> Option<Sealed> {
        let mut state = self.state.lock();
        while matches!(*state, Fetch::Running) {
            self.ended.wait(&mut state);
        }
        match std::mem::replace(&mut *state, Fetch::Cancelled) {
            Fetch::Ended(fetched) => fetched,
            _ => None,
        }
    }
}

/// A window that is being fetched, and what came of it. Whatever ends the fetch, the reader does
/// not wait any longer.
struct Running<'a>(&'a Window, Option<Sealed>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.state.lock() = Fetch::Ended(self.1.take());
        self.0.ended.notify_all();
    }
}

impl State {
    /// The windows of this read, if it goes on where another ended; what comes after it is asked
    /// for.
    fn follow(&mut self, ino: u64, first: u64, count: u64) -> Vec<Arc<Window>> {
        let known = self.streams.iter().position(|s| s.ino == ino && s.next == first);
        let known = known.and_then(|at| self.streams.remove(at));
        let is_known = known.is_some();
        let new = || Stream { ino, next: first, end: first, windows: VecDeque::new() };
        let mut stream = known.unwrap_or_else(new);
        stream.next = first + count;
        let own = stream.windows.iter().take_while(|window| window.first < stream.next).count();
        let found = stream.windows.drain(..own).collect();
        stream.end = stream.end.max(stream.next);
        while is_known && stream.end < stream.next + DEPTH * count {
            let within = (stream.end - first) % count;
            let window = Arc::new(Window {
                ino,
                first: stream.end,
                count: WINDOW_PAGES.min(count - within),
                state: Mutex::new(Fetch::Queued),
                ended: Condvar::new(),
            });
            stream.end += window.count;
            self.queue.push_back(window.clone());
            stream.windows.push_back(window);
        }
        self.streams.push_back(stream);
        if self.streams.len() > STREAMS_MAX {
            let gone = self.streams.pop_front().map_or_else(VecDeque::new, |gone| gone.windows);
            self.queue.retain(|window| !gone.iter().any(|of| Arc::ptr_eq(of, window)));
        }
        found
    }

    /// What is queued is not fetched any more; readers do not wait for it.
    fn give_up(&mut self) {
        self.queue.clear();
        self.streams.clear();
        self.spare = Vec::new();
        self.last_read = None;
    }
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self { shared: Arc::default(), threads: Mutex::default() }
    }

    /// Starts the threads that fetch; nothing is, before.
    pub(super) fn start(volume: &Arc<Volume>) {
        let shared = &volume.ahead.shared;
        shared.state.lock().is_running = true;
        for _ in 0..THREADS {
            let (serving, weak) = (shared.clone(), Arc::downgrade(volume));
            let thread = std::thread::Builder::new().name("atrest-ahead".into());
            match thread.spawn(move || serving.serve(&weak)) {
                Ok(thread) => volume.ahead.threads.lock().push(thread),
                Err(error) => {
                    // What nobody fetches, readers do.
                    log::warn!("reading ahead with fewer threads: {error}");
                    shared.state.lock().is_running = !volume.ahead.threads.lock().is_empty();
                    break;
                }
            }
        }
    }

    /// Ends the threads and waits for them.
    pub(super) fn stop(&self) {
        self.shared.stop();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                log::error!("a thread that reads ahead had panicked");
            }
        }
    }

    /// Tells of a read, and returns what was, or will be, fetched for it, in order.
    pub(super) fn follow(&self, ino: u64, first: u64, count: u64) -> Vec<Arc<Window>> {
        if count < SEQUENCE_PAGES {
            return Vec::new();
        }
        let mut state = self.shared.state.lock();
        if !state.is_running {
            return Vec::new();
        }
        state.last_read = Some(Instant::now());
        let before = state.queue.len();
        let windows = state.follow(ino, first, count);
        for _ in before..state.queue.len() {
            self.shared.work.notify_one();
        }
        windows
    }

    /// Takes back what was read.
    pub(super) fn recycle(&self, sealed: Sealed) {
        self.shared.recycle(sealed.bytes);
    }
}

impl Drop for Ahead {
    /// The volume may be let go by the thread itself, which cannot wait for its own end.
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Shared {
    fn serve(&self, volume: &Weak<Volume>) {
        while let Some((window, bytes)) = self.next() {
            let Some(volume) = volume.upgrade() else { return };
            if window.begin() {
                let mut running = Running(&window, None);
                running.1 = volume.fetch(&window, bytes);
            } else {
                self.recycle(bytes);
            }
        }
    }

    /// What to fetch next, and a buffer; `None` at the end. Gives up the memory while nobody reads.
    fn next(&self) -> Option<(Arc<Window>, AlignedBuffer)> {
        let mut state = self.state.lock();
        loop {
            if !state.is_running {
                return None;
            }
            if let Some(window) = state.queue.pop_front() {
                return Some((window, state.spare.pop().unwrap_or_default()));
            }
            match state.last_read {
                None => self.work.wait(&mut state),
                Some(last) if last.elapsed() >= IDLE => state.give_up(),
                Some(last) => drop(self.work.wait_until(&mut state, last + IDLE)),
            }
        }
    }

    fn recycle(&self, bytes: AlignedBuffer) {
        let mut state = self.state.lock();
        if !bytes.bytes().is_empty() && state.spare.len() < SPARE_MAX {
            state.spare.push(bytes);
        }
    }

    fn stop(&self) {
        let mut state = self.state.lock();
        state.is_running = false;
        state.give_up();
        self.work.notify_all();
    }
}

impl Volume {
    /// Bytes that were fetched before somebody asked for them, so far.
    pub fn read_ahead_bytes(&self) -> u64 {
        self.ahead.shared.state.lock().fetched_bytes
    }

    /// Reads the pages of a window as they are.
    fn fetch(&self, window: &Window, mut bytes: AlignedBuffer) -> Option<Sealed> {
        let _pin = self.epochs.pin();
        let pages = self.pointers(window.ino, window.first, window.count).ok()?;
        let length = pages.len() * PAGE_BYTES;
        let mut rest = bytes.first_mut(length);
        for group in together(&pages) {
            let (part, after) = rest.split_at_mut(group.len() * PAGE_BYTES);
            let slot = group[0].1.slot;
            let file = FileId::Segment(slot.segment());
            self.storage.read_directly_at(file, slot.offset(), part).ok()?;
            rest = after;
        }
        self.ahead.shared.state.lock().fetched_bytes += length as u64;
        Some(Sealed { pages: pages.into_vec(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once nobody reads any more, nothing is kept of what was fetched, and no buffer.
    #[test]
    fn memory_is_given_up() {
        let ahead = Ahead::new();
        ahead.shared.state.lock().is_running = true;
        ahead.follow(2, 0, SEQUENCE_PAGES);
        ahead.follow(2, SEQUENCE_PAGES, SEQUENCE_PAGES);
        let mut buffer = AlignedBuffer::default();
        buffer.first_mut(PAGE_BYTES);
        ahead.shared.recycle(buffer);
        let kept = || {
            let state = ahead.shared.state.lock();
            let windows: usize = state.streams.iter().map(|stream| stream.windows.len()).sum();
            (windows, state.queue.len(), state.spare.len())
        };
        assert_eq!(kept(), (DEPTH as usize, DEPTH as usize, 1), "somebody reads");
        for _ in 0..DEPTH {
            let (_, buffer) = ahead.shared.next().expect("it is queued");
            ahead.shared.recycle(buffer);
        }
        assert_eq!(kept(), (DEPTH as usize, 0, 1), "somebody reads");
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(ahead.shared.next().is_none(), "nothing is queued any more"));
            let given_up = (0..500).any(|_| {
                std::thread::sleep(IDLE / 100);
                kept() == (0, 0, 0)
            });
            ahead.shared.stop();
            assert!(given_up, "within 5 s");
        });
    }
}
