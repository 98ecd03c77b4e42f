//! Threads for operations that wait for the disk, so that event loops do not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Most threads at a time. Concurrent fsyncs share one flush, so many of them waiting is what makes
/// each cheap; a thread that waits costs its stack only.
const THREADS_MAX: usize = 64;
/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// A pool that grows with the number of waiting jobs and shrinks when idle.
#[derive(Clone)]
pub(super) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl Workers {
    /// A pool without threads.
    pub(super) fn new() -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), work: Condvar::new() }) }
    }

    /// Runs `job` on a thread of the pool; on the caller's if no thread can be had.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            drop(state);
            self.shared.work.notify_one();
        } else if state.threads < THREADS_MAX {
            state.threads += 1;
            drop(state);
            self.grow();
        }
    }

    fn grow(&self) {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("atrest-worker".to_owned());
        if let Err(error) = thread.spawn(move || shared.serve()) {
            log::error!("cannot start a worker thread: {error}");
            let mut state = self.shared.state.lock();
            state.threads -= 1;
            let job = if state.threads == 0 { state.jobs.pop_front() } else { None };
            drop(state);
            if let Some(job) = job {
                job();
            }
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// Jobs that wait for each other all run at once: a job is never queued behind a blocked one.
    #[test]
    fn jobs_that_wait_for_each_other_finish() {
        let workers = Workers::new();
        for _ in 0..2 {
            let barrier = Arc::new(Barrier::new(17));
            for _ in 0..16 {
                let barrier = barrier.clone();
                workers.run(move || {
                    barrier.wait();
                });
            }
            barrier.wait();
        }
        assert!(workers.shared.state.lock().threads <= 32);
    }
}
