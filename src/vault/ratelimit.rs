//! How often the vault may be asked: token buckets for the vault and for each identity, and a
//! growing delay for who presents wrong credentials. Pure: the caller brings a monotonic clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Identities, or sources of failures, that are remembered at once; the one that was seen least
/// recently is forgotten first.
const REMEMBERED_MAX: usize = 10_000;
/// Failures that cost nothing: people mistype.
const FREE_FAILURES: u32 = 4;
/// The longest delay after failures.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// After so long without a failure, failures are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

/// Requests a second in the long run, and how many may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests a second; 0 forbids all once the burst is spent.
    pub per_second: f64,
    /// Requests at once.
    pub burst: f64,
}

impl Rate {
    /// Whether both numbers make sense: finite, not negative, a burst of at least one.
    pub fn is_valid(self) -> bool {
        let bounded = |value: f64| value.is_finite() && (0.0..=1e9).contains(&value);
        bounded(self.per_second) && bounded(self.burst) && self.burst >= 1.0
    }
}

/// Limits of a vault.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// All requests together, those without a token included.
    pub vault: Rate,
    /// Requests of one identity.
    pub identity: Rate,
}

impl Default for Limits {
    /// A vault of Key Vault allows 4,000 transactions in 10 s; one identity gets half of it.
    fn default() -> Self {
        Self {
            vault: Rate { per_second: 400.0, burst: 4000.0 },
            identity: Rate { per_second: 200.0, burst: 2000.0 },
        }
    }
}

/// Buckets that fill with time and empty with requests.
pub struct RateLimiter {
    limits: Limits,
    vault: Bucket,
    identities: Recent<String, Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    /// Takes a token, or says how long until there is one. A clock that goes back adds nothing.
    fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let seconds = (1.0 - self.tokens) / rate.per_second;
        Err(Duration::try_from_secs_f64(seconds).unwrap_or(DELAY_MAX).min(DELAY_MAX))
    }
}

impl RateLimiter {
    /// With full buckets.
    pub fn new(limits: Limits, now: Duration) -> Self {
        let vault = Bucket { tokens: limits.vault.burst, at: now };
        Self { limits, vault, identities: Recent::new() }
    }

    /// Other limits from now on; what was used stays used.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Counts a request against the vault.
    ///
    /// # Errors
    /// How long to wait, at most a minute: the request is to be refused.
    pub fn take_from_vault(&mut self, now: Duration) -> Result<(), Duration> {
        self.vault.take(self.limits.vault, now)
    }

    /// Counts a request against an identity.
    ///
    /// # Errors
    /// How long to wait, at most a minute: the request is to be refused.
    pub fn take_from_identity(&mut self, object_id: &str, now: Duration) -> Result<(), Duration> {
        let rate = self.limits.identity;
        let full = || Bucket { tokens: rate.burst, at: now };
        self.identities.entry(object_id, str::to_owned, full, now).take(rate, now)
    }
}

/// Delays who fails: after a few free tries the delay doubles from one second to a minute. It
/// counts by source address and by who it claims to be, so that nobody can lock another host out,
/// and a host with an old secret does not lock out its neighbours behind one address. Guessing
/// from many addresses is left to the length of the secrets, which are 256 random bits.
pub struct Damper(Recent<(IpAddr, String), Failures>);

#[derive(Clone, Copy, Default)]
struct Failures {
    count: u32,
    last: Duration,
    until: Duration,
}

impl Damper {
    /// Nobody has failed yet.
    pub fn new() -> Self {
        Self(Recent::new())
    }

    /// Whether `source` may try to be `claimed`.
    ///
    /// # Errors
    /// How long to wait: the try is not to be looked at.
    pub fn check(&self, source: IpAddr, claimed: &str, now: Duration) -> Result<(), Duration> {
        match self.0.get(&failing(source, claimed)) {
            Some(failures) if now < failures.until => Err(failures.until - now),
            _ => Ok(()),
        }
    }

    /// Remembers a failure.
    pub fn failed(&mut self, source: IpAddr, claimed: &str, now: Duration) {
        let failing = failing(source, claimed);
        let failures = self.0.entry(&failing, Clone::clone, Failures::default, now);
        if now.saturating_sub(failures.last) > FORGET_AFTER {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        if let Some(doublings) = failures.count.checked_sub(FREE_FAILURES + 1) {
            let delay = Duration::from_secs(1 << doublings.min(10)).min(DELAY_MAX);
            failures.until = now + delay;
        }
    }

    /// Forgets the failures of who has succeeded.
    pub fn succeeded(&mut self, source: IpAddr, claimed: &str) {
        self.0.remove(&failing(source, claimed));
    }
}

impl Default for Damper {
    fn default() -> Self {
        Self::new()
    }
}

/// Who failed. An IPv6 host has a whole /64 to ask from (RFC 4291, 2.5.1): that is one source.
/// Names are cut, as they are the caller's choice.
fn failing(source: IpAddr, claimed: &str) -> (IpAddr, String) {
    let network = match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    };
    (network, claimed.chars().take(64).flat_map(char::to_lowercase).collect())
}

/// A map that keeps what was used most recently. When it is full, the older half goes at once, so
/// that a flood of new names costs little for each.
struct Recent<K, V>(HashMap<K, (Duration, V)>);

impl<K: Hash + Eq, V> Recent<K, V> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key).map(|(_, value)| value)
    }

    fn remove(&mut self, key: &K) {
        self.0.remove(key);
    }

    fn entry<Q>(
        &mut self,
        key: &Q,
        own: impl FnOnce(&Q) -> K,
        value: impl FnOnce() -> V,
        now: Duration,
    ) -> &mut V
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(key) {
            let mut times: Vec<_> = self.0.values().map(|(at, _)| *at).collect();
            let middle = times.len() / 2;
            let median = *times.select_nth_unstable(middle).1;
            let mut left = times.len() / 2;
            self.0.retain(|_, (at, _)| {
                let keep = *at >= median && left > 0;
                left -= usize::from(keep);
                keep
            });
        }
        let (at, value) = self.0.entry(own(key)).or_insert_with(|| (now, value()));
        *at = now;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(per_second: f64, burst: f64) -> Limits {
        let rate = Rate { per_second, burst };
        Limits { vault: rate, identity: rate }
    }

    /// A burst passes, then as many as the rate says, and the wait that is named is enough.
    #[test]
    fn bucket() {
        let mut now = 100 * SECOND;
        let mut limiter = RateLimiter::new(limits(2.0, 3.0), now);
        for _ in 0..3 {
            assert_eq!(limiter.take_from_vault(now), Ok(()));
        }
        let wait = limiter.take_from_vault(now).expect_err("the burst is spent");
        assert_eq!(wait, SECOND / 2);
        now += wait;
        assert_eq!(limiter.take_from_vault(now), Ok(()));
        assert!(limiter.take_from_vault(now).is_err());
        now += 1000 * SECOND;
        let passed = (0..10).filter(|_| limiter.take_from_vault(now).is_ok()).count();
        assert_eq!(passed, 3, "it does not save up more than the burst");
        assert!(limiter.take_from_vault(now - 50 * SECOND).is_err(), "a clock that goes back");
        now += SECOND;
        let passed = (0..10).filter(|_| limiter.take_from_vault(now).is_ok()).count();
        assert_eq!(passed, 2, "going back was not counted as time");
    }

    /// Each identity has its own bucket; a rate of nothing waits a minute, not for ever.
    #[test]
    fn identities() {
        let mut limiter = RateLimiter::new(limits(0.0, 1.0), SECOND);
        assert_eq!(limiter.take_from_identity("a", SECOND), Ok(()));
        assert_eq!(limiter.take_from_identity("a", SECOND), Err(DELAY_MAX));
        assert_eq!(limiter.take_from_identity("b", SECOND), Ok(()));
        limiter.set_limits(limits(10.0, 10.0));
        assert_eq!(limiter.take_from_identity("a", 2 * SECOND), Ok(()));
        assert!(Rate { per_second: 0.5, burst: 1.0 }.is_valid());
        for (per_second, burst) in [(-1.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0), (1.0, f64::INFINITY)]
        {
            assert!(!Rate { per_second, burst }.is_valid());
        }
    }

    /// A few failures are free, then each costs twice as long up to a minute; other sources are
    /// not delayed, success and time forgive.
    #[test]
    fn damper() {
        let (guesser, other): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().expect("one"), "192.0.2.2".parse().expect("one"));
        let mut damper = Damper::new();
        let mut now = 1000 * SECOND;
        let mut delays = Vec::new();
        for _ in 0..14 {
            damper.failed(guesser, "a", now);
            let delay = damper.check(guesser, "a", now).err().unwrap_or_default();
            delays.push(delay.as_secs());
            now += delay;
            assert_eq!(damper.check(guesser, "A", now), Ok(()), "the wait that is named is enough");
        }
        assert_eq!(delays, [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        damper.failed(guesser, "a", now);
        assert!(damper.check("::ffff:192.0.2.1".parse().expect("one"), "A", now).is_err());
        assert_eq!(damper.check(other, "a", now), Ok(()));
        assert_eq!(damper.check(guesser, "b", now), Ok(()));
        damper.succeeded(guesser, "a");
        assert_eq!(damper.check(guesser, "a", now), Ok(()));
        for _ in 0..=FREE_FAILURES {
            now += FORGET_AFTER + SECOND;
            damper.failed(guesser, "a", now);
            assert_eq!(damper.check(guesser, "a", now), Ok(()));
        }
        let (one, next) =
            ("2001:db8::1".parse().expect("one"), "2001:db8::2".parse().expect("one"));
        (0..=FREE_FAILURES).for_each(|_| damper.failed(one, "a", now));
        assert!(damper.check(next, "a", now).is_err(), "a whole /64 is one source");
    }

    /// However many names come, memory is bounded, and who is active keeps what was counted.
    #[test]
    fn memory_is_bounded() {
        let mut limiter = RateLimiter::new(limits(0.0, 1.0), Duration::ZERO);
        for n in 0..3 * REMEMBERED_MAX as u32 {
            let now = Duration::from_millis(n.into());
            assert_eq!(limiter.take_from_identity(&n.to_string(), now), Ok(()));
            _ = limiter.take_from_identity("active", now);
            assert!(limiter.identities.0.len() <= REMEMBERED_MAX);
        }
        assert!(limiter.take_from_identity("active", 90 * SECOND).is_err());
        let mut recent = Recent::new();
        for n in 0..2 * REMEMBERED_MAX {
            recent.entry(&n, |n| *n, || (), SECOND);
        }
        assert!(recent.0.len() <= REMEMBERED_MAX, "also when all are of the same time");
    }
}
