//! Randomness and nonces.
//!
//! The generator is aws-lc's: a CTR_DRBG per thread, seeded by the operating system, that notices
//! `fork` and the resumption of a virtual machine's snapshot (where the kernel reports it). So a
//! key costs less than half a microsecond, and a clone does not repeat it. It ends the process
//! rather than return without entropy.

use parking_lot::Mutex;

use super::page::Nonce;
use super::secret::Secret;

/// Fills `bytes` with random ones.
pub fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("aws-lc ends the process when there is no entropy");
}

/// A fresh random secret of `length` bytes.
pub fn secret(length: usize) -> Secret {
    Secret::from_fn(length, fill)
}

/// Where nonces come from: 80 random bits, then a 16-bit little-endian counter.
///
/// The random part is drawn anew when the sequence is made (at mount), by [`NonceSequence::renew`]
/// (at every epoch) and when the counter wraps. So neither a crash nor a clone of the volume needs
/// to be remembered for nonces never to repeat under one key: after 2^32 draws, two are equal with
/// a probability of 2^-17, and only then if both were used under the same key, which lives for a
/// chunk's 64 pages and their overwrites. Safe to share between threads.
pub struct NonceSequence(Mutex<State>);

struct State {
    random: [u8; 10],
    /// Next counter value, up to 2^16, where the sequence is exhausted.
    next: u32,
}

/// Values of a nonce's counter.
const COUNTERS: u32 = 1 << 16;

impl NonceSequence {
    /// Starts at a random place.
    pub fn new() -> Self {
        Self(Mutex::new(State::draw()))
    }

    /// Moves to another random place.
    pub fn renew(&self) {
        *self.0.lock() = State::draw();
    }

    /// Reserves `count` nonces, at most 2^16, and returns the first; the others are
    /// [`Nonce::offset`] 1 to `count - 1` from it.
    ///
    /// # Panics
    /// If `count` is more than 2^16, which a run of pages never is.
    pub fn next_run(&self, count: u32) -> Nonce {
        assert!(count <= COUNTERS, "a run of nonces has one random part");
        let mut state = self.0.lock();
        if COUNTERS - state.next < count.max(1) {
            *state = State::draw();
        }
        let first = state.next;
        state.next += count.max(1);
        let mut nonce = [0; 12];
        nonce[..10].copy_from_slice(&state.random);
        nonce[10..].copy_from_slice(&(first as u16).to_le_bytes());
        Nonce(nonce)
    }
}

impl Default for NonceSequence {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn draw() -> Self {
        let mut random = [0; 10];
        fill(&mut random);
        Self { random, next: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Runs of all sizes from several threads, past many wraps: no nonce is given twice, and no
    /// run crosses a wrap.
    #[test]
    fn runs_never_overlap() {
        let sequence = NonceSequence::new();
        let runs = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let (sequence, runs) = (&sequence, &runs);
                scope.spawn(move || {
                    for step in 0..400u32 {
                        let count = 1 + (step * 37 + thread * 11) % 257;
                        let first = sequence.next_run(count);
                        let counter = u32::from(u16::from_le_bytes([first.0[10], first.0[11]]));
                        assert!(counter + count <= COUNTERS);
                        let mut runs = runs.lock();
                        for n in 0..count {
                            assert!(runs.insert(first.offset(n as u16).0));
                        }
                    }
                });
            }
        });
    }

    /// A whole run of 2^16 fits, and what follows has another random part; so has a renewed one.
    #[test]
    fn redrawn_when_exhausted_or_asked() {
        let sequence = NonceSequence::new();
        let one = sequence.next_run(1);
        let all = sequence.next_run(COUNTERS);
        let next = sequence.next_run(1);
        sequence.renew();
        let renewed = sequence.next_run(1);
        let parts: HashSet<_> =
            [one, all, next, renewed].iter().map(|n| n.0[..10].to_vec()).collect();
        assert_eq!(parts.len(), 4);
        assert_eq!(all.0[10..], [0, 0]);
        assert_eq!(all.offset(0xffff).0[10..], [0xff, 0xff]);
    }

    /// An empty run does not hand out the nonce that the next caller gets.
    #[test]
    fn empty_runs_are_distinct() {
        let sequence = NonceSequence::new();
        assert_ne!(sequence.next_run(0), sequence.next_run(0));
    }

    /// Two secrets differ, and every length is filled to its last byte.
    #[test]
    fn secrets_are_random() {
        assert_ne!(secret(32).expose(), secret(32).expose());
        let mut last = HashSet::new();
        for _ in 0..200 {
            last.insert(secret(64).expose()[63]);
        }
        assert!(last.len() > 32);
    }
}
