//! Slots that wait before they may be used again.
//!
//! What an epoch frees may be written again only when that epoch *and the next* are durable, so
//! that either superblock opens a whole tree, and when nobody who looked a slot up before it was
//! freed may still read it.

use super::{Class, SlotRun};
use crate::defect::{self, Defect};
use parking_lot::RwLock;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// Keeps every slot that could be looked up while it is held from being written again.
#[derive(Clone)]
pub struct Pin(#[allow(dead_code)] Arc<u64>);

struct Batch {
    /// May be reused once this epoch is durable.
    durable: u64,
    /// Pins of this number and below may still read the slots.
    pin: u64,
    runs: Vec<SlotRun>,
}

/// The queue of freed slots, and the pins.
pub struct Deferred {
    current: RwLock<Arc<u64>>,
    state: parking_lot::Mutex<State>,
}

#[derive(Default)]
struct State {
    older: VecDeque<(u64, Weak<u64>)>,
    batches: VecDeque<Batch>,
}

impl Deferred {
    /// `open` is the number of the open epoch.
    pub fn new(open: u64) -> Self {
        Self { current: RwLock::new(Arc::new(open)), state: Default::default() }
    }

    /// Take it before looking slots up, drop it after reading them.
    pub fn pin(&self) -> Pin {
        Pin(self.current.read().clone())
    }

    /// Pins taken from now on belong to epoch `open`.
    pub fn advance(&self, open: u64) {
        let old = std::mem::replace(&mut *self.current.write(), Arc::new(open));
        self.state.lock().older.push_back((*old, Arc::downgrade(&old)));
    }

    /// Queues slots freed by `epoch`, which a pin up to the current one may still read.
    pub fn push(&self, epoch: u64, runs: Vec<SlotRun>) {
        self.push_until(epoch + 1, runs);
    }

    /// Queues slots that no durable tree ever referred to: they wait for `durable` and for pins.
    pub fn push_until(&self, durable: u64, runs: Vec<SlotRun>) {
        if !runs.is_empty() {
            let pin = **self.current.read();
            self.state.lock().batches.push_back(Batch { durable, pin, runs });
        }
    }

    /// Takes out what may be used again now that epoch `durable` is.
    pub fn take_reusable(&self, durable: u64) -> Vec<SlotRun> {
        let current = **self.current.read();
        let mut state = self.state.lock();
        while state.older.front().is_some_and(|(_, pin)| pin.strong_count() == 0) {
            state.older.pop_front();
        }
        let oldest = state.older.front().map_or(current, |(pin, _)| *pin);
        let mut reusable = Vec::new();
        state.batches.retain_mut(|batch| {
            let ready = batch.durable <= durable && batch.pin < oldest
                || batch.durable <= durable + 1 && defect::active(Defect::ReuseAfterOneEpoch);
            if ready {
                reusable.append(&mut batch.runs);
            }
            !ready
        });
        reusable
    }

    /// Slots of a class that wait.
    pub fn waiting_of(&self, class: Class) -> u64 {
        let state = self.state.lock();
        let runs = state.batches.iter().flat_map(|batch| &batch.runs);
        let of_class = runs.filter(|run| Class::of(run.first.segment()) == class);
        of_class.map(|run| u64::from(run.count)).sum()
    }

    /// Slots that wait.
    pub fn waiting(&self) -> u64 {
        let state = self.state.lock();
        state.batches.iter().flat_map(|batch| &batch.runs).map(|run| u64::from(run.count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Slot;

    #[test]
    fn a_slot_waits_for_two_epochs_and_for_pins() {
        let deferred = Deferred::new(5);
        let pin = deferred.pin();
        deferred.advance(6);
        let run = SlotRun { first: Slot(7), count: 1 };
        deferred.push(5, vec![run]);
        assert!(deferred.take_reusable(5).is_empty(), "epoch 6 is not durable");
        deferred.advance(7);
        assert!(deferred.take_reusable(6).is_empty(), "the pin of epoch 5 is held");
        drop(pin);
        assert_eq!(deferred.take_reusable(6), vec![run]);
        assert_eq!(deferred.waiting(), 0);
    }
}
