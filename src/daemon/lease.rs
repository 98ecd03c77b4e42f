//! Drives the [`Lease`] of a mount: asks for the key when it is time to, drains and locks, opens
//! again.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::control::{Lockable, VolumeControl};
use super::notify_service_manager;
use crate::audit::{Asker, Audit, Entry, Event};
use crate::fuse::Caches;
use crate::lease::{Action, Answer, Lease, Policy, Reason, State};
use crate::sys::clock;

/// How long the kernel may write back in large requests while callers are still served. A key that
/// is denied must not serve for longer than this and what dropping caches takes.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long all of what was acknowledged may take to be written. What is not by then is lost.
const DRAIN: Duration = Duration::from_secs(30);

/// The lease of one mount, and whoever waits for it.
pub(super) struct Driver {
    lease: Mutex<Lease>,
    /// The state has changed, or the driver has to stop.
    changed: Condvar,
    stopped: Mutex<bool>,
    /// Held by whoever drains or opens, so that one does at a time.
    acting: Mutex<()>,
    volume: Arc<dyn VolumeControl>,
    caches: Caches,
    audit: Arc<Audit>,
}

impl Driver {
    pub(super) fn new(
        policy: Policy,
        volume: Arc<dyn VolumeControl>,
        caches: Caches,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let lease = Mutex::new(Lease::new(policy, clock::since_boot(), jitter()));
        let (changed, stopped, acting) = (Condvar::new(), Mutex::new(false), Mutex::new(()));
        Arc::new(Self { lease, changed, stopped, acting, volume, caches, audit })
    }

    /// Checks until it is stopped.
    pub(super) fn run(&self) {
        let own = Asker::of_this_process();
        while self.wait_for_check() {
            let began = clock::since_boot();
            let before = self.lease.lock().state();
            let answer = self.volume.check();
            let (action, after) = {
                let mut lease = self.lease.lock();
                let action = lease.answered(began, jitter(), answer);
                (action, lease.state())
            };
            match action {
                Some(Action::Drain(reason)) => drop(self.drain(reason, &own)),
                Some(Action::Reopen) => drop(self.reopen(None, &own)),
                None if before != after => self.tell(after, &own),
                None => {}
            }
        }
    }

    /// Ends [`Driver::run`], after the check that is under way.
    pub(super) fn stop(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }

    /// False when it is to stop.
    fn wait_for_check(&self) -> bool {
        let mut stopped = self.stopped.lock();
        while !*stopped {
            // The clock that counts suspended time cannot be waited on, so it is looked at often.
            let wait = match self.lease.lock().next_check() {
                Some(next) => next.saturating_sub(clock::since_boot()),
                None => Duration::from_secs(1),
            };
            if wait.is_zero() {
                return true;
            }
            self.changed.wait_for(&mut stopped, wait.min(Duration::from_secs(1)));
        }
        false
    }

    /// # Order
    /// 1. The kernel writes back what is dirty, while it may still ask for what it needs.
    /// 2. Callers are refused.
    /// 3. Caches are dropped, as long as that makes the kernel write more.
    /// 4. Everything is made durable, and the keys are wiped.
    ///
    /// # Errors
    /// What was acknowledged and is lost, in words.
    fn drain(&self, reason: Reason, by: &Asker) -> Result<(), String> {
        let _acting = self.acting.lock();
        let deadline = Instant::now() + DRAIN;
        self.tell(State::Draining(reason), by);
        self.caches.write_back(Instant::now() + FAREWELL);
        self.volume.drain(reason == Reason::Revoked);
        loop {
            let before = self.volume.late_writes();
            self.caches.drop_all();
            if self.volume.late_writes() == before {
                break;
            }
            if Instant::now() >= deadline {
                log::error!(
                    "the kernel still writes after {} s: what comes now is lost",
                    DRAIN.as_secs()
                );
                break;
            }
        }
        let locked = self.volume.lock();
        if let Err(error) = &locked {
            log::error!("what was written last is lost: {error}");
            let lost = Entry::new(Event::LostWrites, "lock", by).failed("lost", error);
            _ = self.audit.record(&lost);
        }
        let state = {
            let mut lease = self.lease.lock();
            lease.drained(clock::since_boot());
            lease.state()
        };
        self.tell(state, by);
        locked
    }

    fn reopen(&self, passphrase_file: Option<&Path>, by: &Asker) -> Answer {
        let _acting = self.acting.lock();
        // Somebody else may have been faster.
        if !matches!(self.lease.lock().state(), State::Locked(_)) {
            return Answer::Granted;
        }
        let answer = self.volume.reopen(passphrase_file, by);
        let now = clock::since_boot();
        match &answer {
            Answer::Granted => {
                self.lease.lock().unlocked(now, jitter());
                self.tell(State::Unlocked, by);
            }
            Answer::Denied(problem) | Answer::Outage(problem) => {
                log::error!("cannot unlock: {problem}");
                self.lease.lock().answered(now, jitter(), answer.clone());
            }
        }
        answer
    }

    /// Says where the lease stands, to the audit, the log and the service manager. What has
    /// happened cannot be refused any more.
    fn tell(&self, state: State, by: &Asker) {
        let words = words(state);
        _ = self.audit.record(&Entry::new(Event::State, name(state), by).with_detail(words));
        match (state, self.lease.lock().problem()) {
            (State::Unlocked, _) => log::info!("{words}"),
            (_, Some(problem)) => log::warn!("{words}: {problem}"),
            (_, None) => log::warn!("{words}"),
        }
        notify_service_manager(&format!("STATUS={words}"));
        self.changed.notify_all();
    }

    /// Where it stands by name, and how long ago that began and the key was last granted.
    pub(super) fn numbers(&self) -> (&'static str, Duration, Duration) {
        let (lease, now) = (self.lease.lock(), clock::since_boot());
        let ago = |then: Duration| now.saturating_sub(then);
        (name(lease.state()), ago(lease.since()), ago(lease.last_good()))
    }

    /// What `atrest status` shows of it. Times are in seconds.
    pub(super) fn status(&self) -> Value {
        let lease = self.lease.lock();
        let now = clock::since_boot();
        let ago = |then: Duration| now.saturating_sub(then).as_secs();
        let left = |then: Duration| then.saturating_sub(now).as_secs();
        json!({
            "state": name(lease.state()),
            "lease": {
                "since_s": ago(lease.since()),
                "last_good_s": ago(lease.last_good()),
                "next_check_in_s": lease.next_check().map(left),
                "grace_ends_in_s": lease.grace_ends().map(left),
                "problem": lease.problem(),
            },
        })
    }
}

/// Every state, for scripts.
pub(super) const STATES: [&str; 6] =
    ["unlocked", "degraded", "draining", "locked (revoked)", "locked (outage)", "locked (manual)"];

/// One of [`STATES`].
fn name(state: State) -> &'static str {
    match state {
        State::Unlocked => "unlocked",
        State::Degraded => "degraded",
        State::Draining(_) => "draining",
        State::Locked(Reason::Revoked) => "locked (revoked)",
        State::Locked(Reason::Outage) => "locked (outage)",
        State::Locked(Reason::Manual) => "locked (manual)",
    }
}

/// For people.
fn words(state: State) -> &'static str {
    match state {
        State::Unlocked => "unlocked",
        State::Degraded => "serving, although the key was not granted when last asked for",
        State::Draining(Reason::Revoked) => "locking, because the key was taken away",
        State::Draining(Reason::Outage) => "locking, because the key service does not answer",
        State::Draining(Reason::Manual) => "locking by hand",
        State::Locked(Reason::Revoked) => "locked, because the key was taken away",
        State::Locked(Reason::Outage) => "locked, because the key service does not answer",
        State::Locked(Reason::Manual) => "locked by hand",
    }
}

/// From 0 to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    crate::crypto::random::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

impl Lockable for Driver {
    /// Locks by hand; returns when no key is in memory. What was acknowledged and could not be
    /// written is an error.
    fn lock(&self, by: &Asker) -> Result<(), String> {
        let action = self.lease.lock().lock(clock::since_boot());
        if action.is_some() {
            return self.drain(Reason::Manual, by);
        }
        // Whoever else was draining has ended when this can be had.
        let _acting = self.acting.lock();
        Ok(())
    }

    /// Unlocks by hand, or says why there is no key.
    fn unlock(&self, passphrase_file: Option<&Path>, by: &Asker) -> Result<(), String> {
        if self.lease.lock().unlock().is_none() {
            return Ok(());
        }
        match self.reopen(passphrase_file, by) {
            Answer::Granted => Ok(()),
            Answer::Denied(problem) | Answer::Outage(problem) => Err(problem),
        }
    }
}
