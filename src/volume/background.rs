//! The thread that commits every few seconds and frees what was cut off.

use super::Volume;
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between epochs while anything is dirty.
const EPOCH_INTERVAL: Duration = Duration::from_secs(5);

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
        crate::sys::memory::trim_heap();
        deadline = Instant::now() + EPOCH_INTERVAL;
        if volume.cuts.first().is_some() {
            deadline = Instant::now();
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
