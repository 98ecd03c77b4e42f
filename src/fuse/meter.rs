//! How often each operation was asked for, how long it took and how it ended; and bytes. Nothing is
//! counted before somebody wants to know: looking at the clock is most of what it costs.
//!
//! Each thread counts in a shard of its own, so that event loops do not meet in one cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Threads that count apart; more share.
const SHARDS: usize = 16;
/// Bounds of buckets: 1 µs times a power of 4, up to 4 s.
const BUCKETS: usize = 12;

macro_rules! operations {
    ($($variant:ident $name:literal,)+) => {
        /// What the kernel asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Operation { $($variant,)+ }

        impl Operation {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As in `fuse_lowlevel_ops`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

operations! {
    Lookup "lookup",
    Forget "forget",
    Getattr "getattr",
    Setattr "setattr",
    Readlink "readlink",
    Mknod "mknod",
    Mkdir "mkdir",
    Unlink "unlink",
    Rmdir "rmdir",
    Symlink "symlink",
    Rename "rename",
    Link "link",
    Open "open",
    Read "read",
    Write "write",
    Release "release",
    Fsync "fsync",
    Readdir "readdir",
    Readdirplus "readdirplus",
    Fsyncdir "fsyncdir",
    Statfs "statfs",
    Setxattr "setxattr",
    Getxattr "getxattr",
    Listxattr "listxattr",
    Removexattr "removexattr",
    Create "create",
    Tmpfile "tmpfile",
    Fallocate "fallocate",
    Lseek "lseek",
    CopyFileRange "copy_file_range",
}

const OPERATIONS: usize = Operation::ALL.len();

/// What was counted of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Those that took at most 1 µs, at most 4 µs, and so on, and longer than all bounds.
    pub buckets: [u64; BUCKETS + 1],
    /// Time of all of them.
    pub time: Duration,
    /// Those that failed, ordinary answers such as ENOENT among them.
    pub failed: u64,
}

/// What was counted.
#[derive(Clone, Debug)]
pub struct Counts {
    /// In the order of [`Operation::ALL`].
    pub operations: Vec<Count>,
    /// Bytes that READ gave.
    pub bytes_read: u64,
    /// Bytes that WRITE took.
    pub bytes_written: u64,
}

#[derive(Default)]
struct Cells {
    buckets: [AtomicU64; BUCKETS + 1],
    nanoseconds: AtomicU64,
    failed: AtomicU64,
}

/// A cache line of its own at each end.
#[repr(align(128))]
#[derive(Default)]
struct Shard {
    operations: [Cells; OPERATIONS],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// Counts for all threads.
#[derive(Default)]
pub struct Meter {
    shards: [Shard; SHARDS],
}

static METER: OnceLock<Arc<Meter>> = OnceLock::new();

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Begins to count, for the life of the process.
pub fn meter() -> Arc<Meter> {
    METER.get_or_init(Arc::default).clone()
}

/// Calls `work`, and counts it if somebody wants to know.
#[inline]
pub(super) fn timed<R, E>(
    operation: Operation,
    work: impl FnOnce() -> Result<R, E>,
) -> Result<R, E> {
    let begun = begin();
    let result = work();
    end(begun, operation, result.is_err());
    result
}

/// When an operation begins, if somebody wants to know.
pub(super) fn begin() -> Option<Instant> {
    METER.get().map(|_| Instant::now())
}

/// Counts an operation that ends.
pub(super) fn end(begun: Option<Instant>, operation: Operation, failed: bool) {
    if let (Some(begun), Some(meter)) = (begun, METER.get()) {
        meter.count(operation, begun.elapsed(), failed);
    }
}

/// Counts what READ gave.
pub(super) fn read(bytes: usize) {
    if let Some(meter) = METER.get() {
        add(&meter.shard().bytes_read, bytes as u64);
    }
}

/// Counts what WRITE took.
pub(super) fn written(bytes: usize) {
    if let Some(meter) = METER.get() {
        add(&meter.shard().bytes_written, bytes as u64);
    }
}

impl Meter {
    /// Upper bounds of the buckets but the last, in seconds.
    pub fn bounds() -> impl Iterator<Item = f64> {
        (0..BUCKETS as u32).map(|exponent| 4u64.pow(exponent) as f64 / 1e6)
    }

    /// Counts an operation that took so long.
    #[inline]
    pub fn count(&self, operation: Operation, took: Duration, failed: bool) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let cells = &self.shard().operations[operation as usize];
        add(&cells.buckets[bucket(nanoseconds)], 1);
        add(&cells.nanoseconds, nanoseconds);
        if failed {
            add(&cells.failed, 1);
        }
    }

    /// What was counted until now; what is counted meanwhile may be in it or not.
    pub fn counts(&self) -> Counts {
        let sum = |of: &dyn Fn(&Shard) -> &AtomicU64| {
            self.shards.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum()
        };
        let count = |index: usize| {
            let mut buckets = [0; BUCKETS + 1];
            for (at, bucket) in buckets.iter_mut().enumerate() {
                *bucket = sum(&|shard| &shard.operations[index].buckets[at]);
            }
            Count {
                buckets,
                time: Duration::from_nanos(sum(&|shard| &shard.operations[index].nanoseconds)),
                failed: sum(&|shard| &shard.operations[index].failed),
            }
        };
        Counts {
            operations: (0..OPERATIONS).map(count).collect(),
            bytes_read: sum(&|shard| &shard.bytes_read),
            bytes_written: sum(&|shard| &shard.bytes_written),
        }
    }

    fn shard(&self) -> &Shard {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let index = SHARD.with(|own| {
            if own.get() == usize::MAX {
                own.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
            }
            own.get()
        });
        &self.shards[index]
    }
}

#[inline]
fn add(cell: &AtomicU64, n: u64) {
    cell.fetch_add(n, Ordering::Relaxed);
}

/// The first bucket that is wide enough: `ceil(log4(microseconds))`.
fn bucket(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds.div_ceil(1000);
    let bits = u64::BITS - microseconds.saturating_sub(1).leading_zeros();
    (bits.div_ceil(2) as usize).min(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every time is in the first bucket whose bound it does not exceed.
    #[test]
    fn buckets() {
        let bounds: Vec<f64> = Meter::bounds().collect();
        for nanoseconds in
            (0..40).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, 1000 << bit, (1000 << bit) + 1])
        {
            let seconds = nanoseconds as f64 / 1e9;
            let expected = bounds.iter().position(|bound| seconds <= *bound * (1.0 + 1e-12));
            assert_eq!(bucket(nanoseconds), expected.unwrap_or(BUCKETS), "{nanoseconds} ns");
        }
    }

    /// What several threads count is all there.
    #[test]
    fn adds_up() {
        let meter = Meter::default();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| {
                    for n in 0..1000 {
                        meter.count(Operation::Write, Duration::from_micros(n), n % 10 == 0);
                    }
                });
            }
        });
        let counts = meter.counts();
        let write = counts.operations[Operation::Write as usize];
        let threads = SHARDS as u64 + 3;
        assert_eq!(write.buckets.iter().sum::<u64>(), 1000 * threads);
        assert_eq!((write.failed, write.buckets[0]), (100 * threads, 2 * threads));
        assert_eq!(write.time, Duration::from_micros(499_500 * threads));
        assert_eq!(counts.operations[Operation::Read as usize], Count::default());
    }

    /// What counting costs is far from what an operation does; `--nocapture` shows it.
    #[test]
    fn cost() {
        const ROUNDS: u32 = 1_000_000;
        let meter = Meter::default();
        let begun = Instant::now();
        for n in 0..ROUNDS {
            meter.count(Operation::Read, Duration::from_nanos(u64::from(n % 65_536)), false);
        }
        let counting = begun.elapsed();
        let begun = Instant::now();
        for _ in 0..ROUNDS {
            std::hint::black_box(Instant::now().elapsed());
        }
        println!("counting {:?}, the clock {:?}", counting / ROUNDS, begun.elapsed() / ROUNDS);
        assert!(counting / ROUNDS < Duration::from_micros(2));
    }
}
