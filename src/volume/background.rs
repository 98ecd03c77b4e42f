//! The thread that commits every few seconds and frees what was cut off.

use super::evacuate::Evacuation;
use super::{Error, Volume};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between epochs while anything is dirty.
const EPOCH_INTERVAL: Duration = Duration::from_secs(5);
/// Pages that are moved out of nearly empty segments between two epochs, and pages that are brought
/// together: 16 MiB each.
const MOVED_PAGES: u64 = 4096;

#[derive(Default)]
struct Signal {
    pressed: bool,
    stopping: bool,
}

/// Handle of the thread.
pub(super) struct Background {
    signal: Arc<(Mutex<Signal>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Background {
    pub(super) fn new() -> Self {
        Self { signal: Arc::default(), thread: Mutex::new(None) }
    }

    pub(super) fn start(volume: &Arc<Volume>) {
        let signal = volume.background.signal.clone();
        let wake = signal.clone();
        volume.epochs.on_pressure(Box::new(move || {
            wake.0.lock().pressed = true;
            wake.1.notify_all();
        }));
        let weak = Arc::downgrade(volume);
        let thread = std::thread::Builder::new()
            .name("epochs".into())
            .spawn(move || run(&weak, &signal))
            .expect("a thread can be started while mounting");
        *volume.background.thread.lock() = Some(thread);
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(&self) {
        self.signal.0.lock().stopping = true;
        self.signal.1.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            if thread.join().is_err() {
                log::error!("the thread that ends epochs had panicked");
            }
        }
    }
}

fn run(volume: &Weak<Volume>, signal: &(Mutex<Signal>, Condvar)) {
    let mut sparse = Sparse::default();
    let mut deadline = Instant::now() + EPOCH_INTERVAL;
    // Not while mounting: giving much back takes its time.
    if let Some(volume) = volume.upgrade() {
        volume.epochs.space.punch_everywhere();
    }
    loop {
        {
            let mut state = signal.0.lock();
            while !state.pressed && !state.stopping {
                if signal.1.wait_until(&mut state, deadline).timed_out() {
                    break;
                }
            }
            if state.stopping {
                return;
            }
            state.pressed = false;
        }
        let Some(volume) = volume.upgrade() else { return };
        reap(&volume);
        volume.prepare_epoch(volume.epochs.wants_commit());
        // A failure is logged and remembered where it happens; whoever syncs next is told.
        let _ = volume.epochs.commit(&Default::default());
        if volume.promises.take_excess() {
            volume.epochs.space.punch_everywhere();
        }
        volume.epochs.has_space();
        sparse.step(&volume);
        volume.defragment(MOVED_PAGES);
        crate::sys::memory::trim_heap();
        deadline = Instant::now() + EPOCH_INTERVAL;
        if volume.cuts.first().is_some() {
            deadline = Instant::now();
        }
    }
}

/// Segments that are being emptied, one at a time.
#[derive(Default)]
struct Sparse {
    current: Option<Evacuation>,
    /// Segments of which something cannot be read.
    given_up: BTreeSet<u32>,
}

impl Sparse {
    /// Moves a bounded part of what is in a nearly empty segment.
    fn step(&mut self, volume: &Volume) {
        if volume.epochs.is_full() {
            return;
        }
        if self.current.is_none() {
            let sparse = volume.epochs.space.sparse_segment(&|n| self.given_up.contains(&n));
            self.current = sparse.map(|segment| Evacuation::new(volume, segment));
        }
        let Some(current) = &mut self.current else { return };
        match current.step(volume, MOVED_PAGES) {
            Ok(false) => return,
            Ok(true) => {}
            // Space may come back; what cannot be read will not.
            Err(Error::NoSpace) => {}
            Err(error) => {
                log::warn!("a nearly empty segment cannot be emptied: {error}");
                self.given_up.insert(current.segment());
            }
        }
        if let Some(current) = self.current.take() {
            current.end(volume);
        }
    }
}

/// Frees a bounded part of what was cut off.
fn reap(volume: &Volume) {
    for _ in 0..4 {
        match volume.reap_cut() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                log::error!("freeing a truncated range failed: {error}");
                return;
            }
        }
    }
}
