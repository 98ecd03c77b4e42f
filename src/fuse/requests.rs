//! Buffers that requests are read into: one for each event loop on `/dev/fuse`. What was written
//! last stays in them; each loop wipes its own when nobody is to be served any more, because only
//! it knows when the kernel does not write there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::wire::device::Buffer;
use crate::sys::process::Interruptible;

/// How often a loop is called that has not wiped its buffer: a call that comes just before it waits
/// again is lost.
const CALL_EVERY: Duration = Duration::from_micros(200);

/// The event loops of a mount.
#[derive(Default)]
pub(super) struct Requests {
    /// How many times wiping was asked for.
    asked: AtomicU64,
    loops: Mutex<Vec<Arc<Loop>>>,
}

struct Loop {
    thread: Interruptible,
    /// What it has done of [`Requests::asked`].
    wiped: AtomicU64,
}

/// The place of an event loop among them, for as long as it goes on.
pub(super) struct Place<'a> {
    all: &'a Requests,
    own: Arc<Loop>,
}

impl Requests {
    /// Takes this thread among them; its buffer is new.
    ///
    /// # Errors
    /// The thread could not be called.
    pub(super) fn join(&self) -> io::Result<Place<'_>> {
        let wiped = AtomicU64::new(self.asked.load(Ordering::Acquire));
        let own = Arc::new(Loop { thread: Interruptible::here()?, wiped });
        self.loops.lock().push(own.clone());
        Ok(Place { all: self, own })
    }

    /// Has every loop wipe its buffer, once it has answered what is in it. False if one has not
    /// after `patience`.
    pub(super) fn wipe(&self, patience: Duration) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let deadline = Instant::now() + patience;
        loop {
            let mut is_done = true;
            for late in self.loops.lock().iter() {
                if late.wiped.load(Ordering::Acquire) < asked {
                    is_done = false;
                    late.thread.interrupt();
                }
            }
            if is_done || Instant::now() >= deadline {
                return is_done;
            }
            std::thread::sleep(CALL_EVERY);
        }
    }
}

impl Place<'_> {
    /// To be called before each wait for a request.
    pub(super) fn wipe_if_asked(&self, buffer: &mut Buffer) {
        let asked = self.all.asked.load(Ordering::Acquire);
        if self.own.wiped.load(Ordering::Relaxed) < asked {
            buffer.wipe();
            self.own.wiped.store(asked, Ordering::Release);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.all.loops.lock().retain(|other| !Arc::ptr_eq(other, &self.own));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    /// A loop that waits is called, one that is busy is waited for, one that has ended is not.
    #[test]
    fn each_loop_wipes() {
        let requests = Requests::default();
        assert!(requests.wipe(Duration::ZERO), "nobody is there");
        let (mut here, there) = UnixStream::pair().unwrap();
        let (joined, is_there) = mpsc::channel();
        std::thread::scope(|scope| {
            let requests = &requests;
            scope.spawn(move || {
                let place = requests.join().unwrap();
                let mut buffer = Buffer::new(0);
                joined.send(()).unwrap();
                loop {
                    place.wipe_if_asked(&mut buffer);
                    match here.read(&mut [0]) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        ended => break assert_eq!(ended.unwrap(), 0),
                    }
                }
            });
            is_there.recv().unwrap();
            assert!(requests.wipe(Duration::from_secs(60)));
            let place = requests.join().unwrap();
            assert!(!requests.wipe(Duration::from_millis(10)), "this thread is busy");
            place.wipe_if_asked(&mut Buffer::new(0));
            drop(place);
            drop(there);
        });
        assert!(requests.wipe(Duration::ZERO), "both have ended");
    }
}
