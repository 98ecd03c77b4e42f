//! Replies to requests that came by io_uring. They gather here, wherever they are made, until the
//! thread that has the ring hands them to the kernel: only it may.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread::ThreadId;

use parking_lot::Mutex;

use super::reply;
use crate::sys::uring::{Ring, Waker};

thread_local! {
    /// What this thread answered to requests of its own ring.
    static ANSWERED: RefCell<Vec<Answer>> = const { RefCell::new(Vec::new()) };
}

/// The thread of a ring, to which replies return.
pub struct Home {
    thread: ThreadId,
    waker: Arc<Waker>,
    /// What other threads answered.
    elsewhere: Mutex<Vec<Answer>>,
}

/// A reply that waits to be handed over.
struct Answer {
    slot: usize,
    unique: u64,
    error: i32,
    payload: Vec<u8>,
}

impl Home {
    /// For the ring of this thread.
    pub fn here(waker: Arc<Waker>) -> Self {
        let thread = std::thread::current().id();
        Self { thread, waker, elsewhere: Mutex::default() }
    }

    /// Takes the reply to the request in a slot.
    pub(super) fn send(&self, slot: usize, unique: u64, error: i32, payload: &[u8]) {
        let answer = Answer { slot, unique, error, payload: payload.to_vec() };
        if std::thread::current().id() == self.thread {
            return ANSWERED.with_borrow_mut(|answered| answered.push(answer));
        }
        self.elsewhere.lock().push(answer);
        self.waker.wake();
    }

    /// Puts what was answered here into the ring; returns how many replies that were.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn commit_own(&self, ring: &mut Ring) -> io::Result<usize> {
        ANSWERED.with_borrow_mut(|answered| {
            let count = answered.len();
            answered.drain(..).try_for_each(|answer| answer.commit(ring)).map(|()| count)
        })
    }

    /// Puts what other threads answered into the ring; returns how many replies that were.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn commit_others(&self, ring: &mut Ring) -> io::Result<usize> {
        let answered = std::mem::take(&mut *self.elsewhere.lock());
        let count = answered.len();
        answered.into_iter().try_for_each(|answer| answer.commit(ring)).map(|()| count)
    }
}

impl Answer {
    fn commit(self, ring: &mut Ring) -> io::Result<()> {
        let Self { slot, unique, mut error, payload } = self;
        let mut length = payload.len();
        match ring.payload(slot).and_then(|bytes| bytes.get_mut(..length)) {
            Some(bytes) => bytes.copy_from_slice(&payload),
            None => {
                log::error!("reply {unique} of {length} bytes is longer than the kernel takes");
                (error, length) = (-libc::EIO, 0);
            }
        }
        let header = reply::header(unique, error, length);
        ring.commit(slot, &header, u32::try_from(length).unwrap_or(0))
    }
}
