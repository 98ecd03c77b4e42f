//! Drives the [`Lease`] of a mount: asks for the key when it is time to, drains and locks, opens
//! again.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::control::{Lockable, Lost, Opening, VolumeControl};
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
/// Longest time between two looks at what may have happened meanwhile. The clock that counts
/// suspended time cannot be waited on.
const LOOK: Duration = Duration::from_secs(1);
const STILL_DRAINING: &str = "it is still being locked: its disk is slow";
const UNMOUNTING: &str = "it is being unmounted";
/// Files that are told by path when they are lost.
const LOST_TOLD_MAX: usize = 100;

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
    pub(super) fn run(self: &Arc<Self>) {
        while self.wait_for_check() {
            let began = clock::since_boot();
            let answer = self.ask();
            loop {
                let due = self.lease.lock().answer_due(began);
                let left = due.map(|due| due.saturating_sub(clock::since_boot()));
                let wait = left.map_or(LOOK, |left| left.min(LOOK));
                match answer.recv_timeout(wait) {
                    Ok(answer) => break self.take(began, answer),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        let defect = Answer::Outage("a defect ended the check".to_owned());
                        break self.take(clock::since_boot(), defect);
                    }
                }
                let now = clock::since_boot();
                if due.is_some_and(|due| now >= due) {
                    let waited = now.saturating_sub(began).as_secs();
                    let silence = format!("no answer for {waited} s, and the grace is over");
                    self.take(now, Answer::Outage(silence));
                }
            }
        }
    }

    /// Asks for the key on a thread of its own: whoever is asked may take long.
    fn ask(&self) -> Receiver<Answer> {
        let (sender, receiver) = mpsc::channel();
        let volume = self.volume.clone();
        let check = move || drop(sender.send(volume.check()));
        // Without a thread the channel is closed: an outage.
        let thread = std::thread::Builder::new().name("atrest-check".to_owned()).spawn(check);
        drop(thread.inspect_err(|error| log::error!("cannot start a thread: {error}")));
        receiver
    }

    /// Does what follows from an answer to the check that began at `began`.
    fn take(self: &Arc<Self>, began: Duration, answer: Answer) {
        let own = Asker::of_this_process();
        let (before, action, after) = {
            let mut lease = self.lease.lock();
            let before = lease.state();
            (before, lease.answered(began, jitter(), answer), lease.state())
        };
        match action {
            Some(Action::Drain(reason)) => drop(self.drain(reason, &own)),
            Some(Action::Reopen) => drop(self.reopen(&Opening::default(), &own)),
            None if before != after => self.tell(after, &own),
            None => {}
        }
    }

    /// Ends [`Driver::run`], after the check that is under way. Returns when nobody locks or opens
    /// the volume, which nobody does from then on: it may be closed.
    pub(super) fn stop(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
        drop(self.acting.try_lock_for(DRAIN));
    }

    /// False when it is to stop.
    fn wait_for_check(&self) -> bool {
        let mut stopped = self.stopped.lock();
        while !*stopped {
            let wait = match self.lease.lock().next_check() {
                Some(next) => next.saturating_sub(clock::since_boot()),
                None => LOOK,
            };
            if wait.is_zero() {
                return true;
            }
            self.changed.wait_for(&mut stopped, wait.min(LOOK));
        }
        false
    }

    /// Drains on a thread of its own, and waits for that as long as draining may take: a disk that
    /// does not answer holds nobody else. Callers are refused all the same.
    ///
    /// # Errors
    /// What was acknowledged and is lost, in words.
    fn drain(self: &Arc<Self>, reason: Reason, by: &Asker) -> Result<(), String> {
        let (sender, receiver) = mpsc::channel();
        let (driver, asker) = (self.clone(), by.clone());
        let drain = move || drop(sender.send(driver.drain_now(reason, &asker)));
        let thread = std::thread::Builder::new().name("atrest-drain".to_owned()).spawn(drain);
        if thread.is_err() {
            return self.drain_now(reason, by);
        }
        match receiver.recv_timeout(DRAIN + LOOK) {
            Ok(done) => done,
            Err(RecvTimeoutError::Disconnected) => Err("a defect ended the draining".to_owned()),
            Err(RecvTimeoutError::Timeout) => {
                let silent = format!(
                    "the disk takes longer than {} s for what was written last: nobody is served, \
                     but keys stay in memory until it answers or the daemon is killed",
                    DRAIN.as_secs()
                );
                log::error!("{silent}");
                let lost = Entry::new(Event::LostWrites, "lock", by).failed("silent", &*silent);
                _ = self.audit.record(&lost);
                Err(silent)
            }
        }
    }

    /// # Order
    /// 1. The kernel writes back what is dirty, while it may still ask for what it needs.
    /// 2. Callers are refused. The record of it may take its time: nobody waits for it.
    /// 3. Caches are dropped, as long as that makes the kernel write more.
    /// 4. Everything is made durable, and the keys are wiped.
    /// 5. What requests have brought is wiped: from now on they are refused before it is kept.
    ///
    /// # Errors
    /// What was acknowledged and is lost, in words.
    fn drain_now(&self, reason: Reason, by: &Asker) -> Result<(), String> {
        let _acting = self.acting.lock();
        if *self.stopped.lock() {
            return Err(UNMOUNTING.to_owned());
        }
        let deadline = Instant::now() + DRAIN;
        let late = std::thread::scope(|scope| {
            scope.spawn(|| self.tell(State::Draining(reason), by));
            let mut late = self.caches.write_back(Instant::now() + FAREWELL);
            self.volume.drain(reason == Reason::Revoked);
            if !self.drop_caches(deadline) {
                // Files that are open for writing may have more in the kernel's cache.
                late.extend(self.caches.writers());
            }
            late
        });
        let lost = self.volume.lock(&late, deadline);
        if !self.caches.wipe_requests(FAREWELL) {
            log::warn!(
                "a request takes long: what it brought stays in memory until it is answered"
            );
        }
        let result = self.tell_lost(lost, by);
        let state = {
            let mut lease = self.lease.lock();
            lease.drained(clock::since_boot());
            lease.state()
        };
        self.tell(state, by);
        result
    }

    /// Whether the kernel has written all that it had before the deadline.
    fn drop_caches(&self, deadline: Instant) -> bool {
        loop {
            let before = self.volume.late_writes();
            self.caches.drop_all();
            if self.volume.late_writes() == before {
                return true;
            }
            if Instant::now() >= deadline {
                let seconds = DRAIN.as_secs();
                log::error!("the kernel still writes after {seconds} s: what comes now is lost");
                return false;
            }
        }
    }

    /// Puts on record what could not be written: why, and each file.
    fn tell_lost(&self, lost: Result<(), Lost>, by: &Asker) -> Result<(), String> {
        let Err(Lost { error, files }) = lost else { return Ok(()) };
        log::error!("what was written last is lost: {error}");
        let entry = || Entry::new(Event::LostWrites, "lock", by);
        _ = self.audit.record(&entry().failed("lost", &*error));
        for file in files.iter().take(LOST_TOLD_MAX) {
            log::error!("what was written last may be lost: {file}");
            _ = self.audit.record(&entry().failed("lost", file.as_str()));
        }
        let more = files.len().saturating_sub(LOST_TOLD_MAX);
        if more > 0 {
            log::error!("and {more} files more");
            _ = self.audit.record(&entry().failed("lost", format!("and {more} files more")));
        }
        match files.len() {
            0 => Err(error),
            count => Err(format!("{error}; what was written last to {count} files may be lost")),
        }
    }

    fn reopen(&self, how: &Opening, by: &Asker) -> Answer {
        let Some(_acting) = self.acting.try_lock_for(DRAIN) else {
            return Answer::Outage(STILL_DRAINING.to_owned());
        };
        // Somebody else may have been faster.
        if !matches!(self.lease.lock().state(), State::Locked(_)) {
            return Answer::Granted;
        }
        if *self.stopped.lock() {
            return Answer::Outage(UNMOUNTING.to_owned());
        }
        let answer = self.volume.reopen(how, by);
        let now = clock::since_boot();
        match &answer {
            Answer::Granted => {
                self.lease.lock().unlocked(now, jitter());
                self.tell(State::Unlocked, by);
            }
            Answer::Denied(problem) | Answer::Outage(problem) => {
                log::error!("cannot unlock: {problem}");
                // What somebody else's key or a mistyped passphrase says is nothing of the lease's.
                if *how == Opening::default() {
                    self.lease.lock().answered(now, jitter(), answer.clone());
                }
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
    fn lock(self: Arc<Self>, by: &Asker) -> Result<(), String> {
        let action = self.lease.lock().lock(clock::since_boot());
        if action.is_some() {
            return self.drain(Reason::Manual, by);
        }
        // Whoever else was draining has ended when this can be had.
        match self.acting.try_lock_for(DRAIN) {
            Some(_acting) => Ok(()),
            None => Err(STILL_DRAINING.to_owned()),
        }
    }

    /// Unlocks by hand, or says why there is no key.
    fn unlock(self: Arc<Self>, how: &Opening, by: &Asker) -> Result<(), String> {
        // What is being locked is unlocked when it is.
        if matches!(self.lease.lock().state(), State::Draining(_)) {
            drop(self.acting.try_lock_for(DRAIN));
        }
        let (action, state) = {
            let mut lease = self.lease.lock();
            (lease.unlock(), lease.state())
        };
        match (action, state) {
            (Some(_), _) => {}
            (None, State::Draining(_)) => {
                return Err(STILL_DRAINING.to_owned());
            }
            (None, _) => return Ok(()),
        }
        match self.reopen(how, by) {
            Answer::Granted => Ok(()),
            Answer::Denied(problem) | Answer::Outage(problem) => Err(problem),
        }
    }
}
