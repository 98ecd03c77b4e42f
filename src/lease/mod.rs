//! The lease on a volume's key: for how long a mount may go on serving after the key service last
//! said yes. A state machine without a clock, threads or I/O; the daemon drives it.
//!
//! ```text
//! Unlocked ─(denied, twice ≥ 5 s apart)─▶ Draining ─▶ Locked(revoked) ─(unwrap works)─▶ Unlocked
//!    ├─(no answer)─▶ Degraded, serving ─(grace over)─▶ Draining ─▶ Locked(outage) ─(…)─▶ Unlocked
//!    └─(by hand)────────────────────────────────────▶ Draining ─▶ Locked(manual) ─(by hand)─▶ …
//! ```
//!
//! *Denied* is an answer about the key: no permission, disabled, deleted, expired. It has to be
//! given twice, because permissions that were just changed flap between the replicas of a service.
//! Everything else that is no unwrapped key is an *outage*: nobody has decided anything.
//!
//! Times are since boot, suspended time included (`CLOCK_BOOTTIME`, clock_gettime(2)): a wall clock
//! that is set neither locks a volume nor keeps it open.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// Shortest time between the two denials that lock, before the first try after an outage, and for
/// an answer.
const CONFIRM: Duration = Duration::from_secs(5);
/// A volume that is locked again within this time after it was unlocked by itself stays locked
/// longer each time, so that a provider that flaps does not drain and reopen it all day.
const FLAP_WINDOW: Duration = Duration::from_secs(600);
/// The longest that flapping keeps a volume locked although its key could be had.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// What a mount does when nobody answers for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// Lock when the grace is over.
    Lock,
    /// Serve for as long as nobody denies the key.
    Serve,
}

/// How a mount is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Time between two checks, which is varied by a fifth.
    pub check: Duration,
    /// How long a mount may be served without an answer.
    pub grace: Duration,
    /// What happens then.
    pub on_outage: OnOutage,
}

impl Default for Policy {
    fn default() -> Self {
        let (check, grace) = (Duration::from_secs(60), Duration::from_secs(3600));
        Self { check, grace, on_outage: OnOutage::Lock }
    }
}

/// What came of a check: of an unwrap of the volume key, or, while locked, of an attempt to open
/// the volume again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The key was unwrapped.
    Granted,
    /// The key may not be used any more; in the provider's words.
    Denied(String),
    /// Nobody decided anything; what happened instead.
    Outage(String),
}

/// Why a volume is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The key was denied.
    Revoked,
    /// The grace of an outage is over.
    Outage,
    /// By hand.
    Manual,
}

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The last check was granted.
    Unlocked,
    /// The last check was not, and the mount is served all the same.
    Degraded,
    /// What was acknowledged is being written; nobody is served.
    Draining(Reason),
    /// There are no keys in memory.
    Locked(Reason),
}

/// What the daemon has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve nobody, write what was acknowledged, wipe the keys; then call [`Lease::drained`].
    Drain(Reason),
    /// The volume may be opened again; then call [`Lease::unlocked`], or else
    /// [`Lease::answered`] with what kept it.
    Reopen,
}

/// The lease of one mount.
#[derive(Clone, Debug)]
pub struct Lease {
    policy: Policy,
    state: State,
    /// When the state began.
    since: Duration,
    /// The last check that was granted.
    last_good: Duration,
    next_check: Duration,
    /// The first of the denials that nothing interrupted.
    denied_since: Option<Duration>,
    /// Checks in a row that were not granted.
    failures: u32,
    /// What the last check that was not granted said.
    problem: Option<String>,
    /// When it last unlocked by itself, and how often it was locked soon after such.
    reopened: Option<Duration>,
    flaps: u32,
}

impl Lease {
    /// The lease of a volume whose key was unwrapped at `now`. `jitter` as in
    /// [`Lease::answered`].
    pub fn new(policy: Policy, now: Duration, jitter: f64) -> Self {
        let mut lease = Self {
            policy,
            state: State::Unlocked,
            since: now,
            last_good: now,
            next_check: now,
            denied_since: None,
            failures: 0,
            problem: None,
            reopened: None,
            flaps: 0,
        };
        lease.next_check = now + lease.varied(policy.check, jitter);
        lease
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// When the state began.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// When the key was last known to be granted.
    pub fn last_good(&self) -> Duration {
        self.last_good
    }

    /// What the last check said, unless it was granted.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// When serving ends if nobody answers until then.
    pub fn grace_ends(&self) -> Option<Duration> {
        let locks = self.policy.on_outage == OnOutage::Lock;
        (self.state == State::Degraded && locks).then(|| self.last_good + self.policy.grace)
    }

    /// When to ask next; `None` while nobody is to be asked: while draining, and while locked by
    /// hand. The grace of an outage ends with a check, too.
    pub fn next_check(&self) -> Option<Duration> {
        match self.state {
            State::Draining(_) | State::Locked(Reason::Manual) => None,
            State::Degraded => {
                Some(self.grace_ends().map_or(self.next_check, |end| self.next_check.min(end)))
            }
            State::Unlocked | State::Locked(_) => Some(self.next_check),
        }
    }

    /// Until when to wait for the answer to a check that began at `began`. None that came by then
    /// is an outage whose grace is over. `None`: for as long as it takes.
    pub fn answer_due(&self, began: Duration) -> Option<Duration> {
        let locks = self.policy.on_outage == OnOutage::Lock;
        match self.state {
            State::Unlocked | State::Degraded if locks => {
                Some((self.last_good + self.policy.grace).max(began + CONFIRM))
            }
            _ => None,
        }
    }

    /// A check that began at `now` ended with `answer`. `jitter`, from 0 to 1, is drawn anew for
    /// each call.
    pub fn answered(&mut self, now: Duration, jitter: f64, answer: Answer) -> Option<Action> {
        match self.state {
            State::Draining(_) | State::Locked(Reason::Manual) => None,
            State::Locked(_) => self.answered_locked(now, jitter, answer),
            State::Unlocked | State::Degraded => self.answered_serving(now, jitter, answer),
        }
    }

    fn answered_serving(&mut self, now: Duration, jitter: f64, answer: Answer) -> Option<Action> {
        let (problem, denied) = match answer {
            Answer::Granted => {
                self.granted(now, jitter);
                self.enter(State::Unlocked, now);
                return None;
            }
            Answer::Denied(problem) => (problem, true),
            Answer::Outage(problem) => (problem, false),
        };
        self.failed(problem);
        if denied {
            let first = *self.denied_since.get_or_insert(now);
            if now.saturating_sub(first) >= CONFIRM {
                return Some(self.drain(Reason::Revoked, now));
            }
            self.next_check = first + CONFIRM;
        } else {
            self.denied_since = None;
            self.next_check = now + self.backoff(jitter);
        }
        self.enter(State::Degraded, now);
        let over = self.grace_ends().is_some_and(|end| now >= end);
        (!denied && over).then(|| self.drain(Reason::Outage, now))
    }

    fn answered_locked(&mut self, now: Duration, jitter: f64, answer: Answer) -> Option<Action> {
        match answer {
            Answer::Granted if now >= self.held_until() => return Some(Action::Reopen),
            Answer::Granted => self.next_check = self.held_until(),
            Answer::Denied(problem) => {
                self.enter(State::Locked(Reason::Revoked), now);
                self.failed(problem);
                self.next_check = now + self.varied(self.policy.check, jitter);
            }
            Answer::Outage(problem) => {
                self.failed(problem);
                self.next_check = now + self.backoff(jitter);
            }
        }
        None
    }

    /// Somebody locks by hand. `None` if it is locked, or about to be; a volume whose key was
    /// revoked then waits for somebody to unlock it, too.
    pub fn lock(&mut self, now: Duration) -> Option<Action> {
        match self.state {
            State::Unlocked | State::Degraded => Some(self.drain(Reason::Manual, now)),
            State::Draining(_) => {
                self.state = State::Draining(Reason::Manual);
                None
            }
            State::Locked(_) => {
                self.enter(State::Locked(Reason::Manual), now);
                None
            }
        }
    }

    /// Somebody unlocks by hand: whether there is anything to reopen.
    pub fn unlock(&mut self) -> Option<Action> {
        matches!(self.state, State::Locked(_)).then_some(Action::Reopen)
    }

    /// The keys are wiped.
    pub fn drained(&mut self, now: Duration) {
        if let State::Draining(reason) = self.state {
            self.enter(State::Locked(reason), now);
            self.next_check = (now + CONFIRM).max(self.held_until());
        }
    }

    /// The volume is open again.
    pub fn unlocked(&mut self, now: Duration, jitter: f64) {
        if let State::Locked(reason) = self.state {
            self.reopened = (reason != Reason::Manual).then_some(now);
            self.granted(now, jitter);
            self.enter(State::Unlocked, now);
        }
    }

    fn granted(&mut self, now: Duration, jitter: f64) {
        self.last_good = now;
        self.denied_since = None;
        self.failures = 0;
        self.problem = None;
        self.next_check = now + self.varied(self.policy.check, jitter);
    }

    fn failed(&mut self, problem: String) {
        self.failures = self.failures.saturating_add(1);
        self.problem = Some(problem);
    }

    fn drain(&mut self, reason: Reason, now: Duration) -> Action {
        let soon = self.reopened.is_some_and(|then| now.saturating_sub(then) < FLAP_WINDOW);
        self.flaps = if soon { self.flaps.saturating_add(1) } else { 0 };
        self.enter(State::Draining(reason), now);
        Action::Drain(reason)
    }

    fn enter(&mut self, state: State, now: Duration) {
        if self.state != state {
            (self.state, self.since) = (state, now);
        }
    }

    /// Until when a locked volume stays locked although its key could be had.
    fn held_until(&self) -> Duration {
        let hold = match self.flaps {
            0 => Duration::ZERO,
            flaps => CONFIRM.saturating_mul(1 << flaps.min(10)).min(HOLD_MAX),
        };
        self.since + hold
    }

    /// Exponential, from the time of confirmation to that of a check.
    fn backoff(&self, jitter: f64) -> Duration {
        let exponent = self.failures.saturating_sub(1).min(10);
        let wait = CONFIRM.saturating_mul(1 << exponent).min(self.policy.check.max(CONFIRM));
        self.varied(wait, jitter)
    }

    /// Within a fifth of `time`, so that many hosts do not ask at the same moment.
    fn varied(&self, time: Duration, jitter: f64) -> Duration {
        time.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
    }
}
