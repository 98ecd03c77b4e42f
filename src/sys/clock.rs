//! Clocks.

use std::time::Duration;

/// Seconds and nanoseconds since 1970 by the clock that the kernel takes the times of files from
/// (`CLOCK_REALTIME_COARSE` of clock_gettime(2), a few milliseconds coarse). With a finer one, what
/// this process stamps could look newer than what the kernel stamps later.
pub fn file_time() -> (i64, u32) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives until the call returns.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    debug_assert_eq!(done, 0, "the clock and the pointer are good");
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Time since boot, suspended time included (`CLOCK_BOOTTIME` of clock_gettime(2)).
pub fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives until the call returns.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    debug_assert_eq!(done, 0, "the clock and the pointer are good");
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is the time, and does not run ahead of the fine clock.
    #[test]
    fn is_now_and_not_later() {
        let before = std::time::SystemTime::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let (seconds, nanoseconds) = file_time();
        let at = std::time::UNIX_EPOCH + std::time::Duration::new(seconds as u64, nanoseconds);
        assert!(at >= before && at <= std::time::SystemTime::now());
    }
}
