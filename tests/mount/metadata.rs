//! Modes, times, extended attributes, and the space that statfs reports.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use crate::mounted::Mounted;

#[test]
fn times_keep_their_nanoseconds_before_and_after_1970() {
    let mounted = Mounted::new();
    let moments = [
        ("past", UNIX_EPOCH - Duration::new(14_182_939, 123_456_789)),
        ("now", UNIX_EPOCH + Duration::new(1_700_000_000, 999_999_999)),
        ("future", UNIX_EPOCH + Duration::new(4_294_967_297, 1)),
    ];
    for (name, moment) in moments {
        let file = File::create(mounted.join(name)).unwrap();
        file.set_times(FileTimes::new().set_modified(moment).set_accessed(moment)).unwrap();
    }
    mounted.remount();
    for (name, moment) in moments {
        assert_eq!(fs::metadata(mounted.join(name)).unwrap().modified().unwrap(), moment, "{name}");
    }
}

#[test]
fn writing_changes_mtime_and_reading_does_not() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, "1").unwrap();
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    mounted.remount();
    fs::read(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), long_ago);
    fs::write(&path, "2").unwrap();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > long_ago);
    mounted.remount();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > long_ago);
}

#[test]
fn modes_survive_a_remount() {
    let mounted = Mounted::new();
    let modes = [0o000, 0o600, 0o755, 0o1777, 0o4711, 0o2755, 0o6777];
    for mode in modes {
        let path = mounted.join(format!("{mode:o}"));
        File::create(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    mounted.remount();
    for mode in modes {
        let found = fs::metadata(mounted.join(format!("{mode:o}"))).unwrap().mode() & 0o7777;
        assert_eq!(found, mode, "{found:o} instead of {mode:o}");
    }
}

#[test]
fn extended_attributes_survive_a_remount() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    File::create(&path).unwrap();
    let set = |name: &str, value: &str| {
        let done = Command::new("setfattr").args(["-n", name, "-v", value]).arg(&path).status();
        assert!(done.expect("setfattr (package attr) is installed").success(), "{name}");
    };
    let get = |name: &str| {
        let done = Command::new("getfattr").args(["--only-values", "-n", name]).arg(&path).output();
        String::from_utf8(done.unwrap().stdout).unwrap()
    };
    let long = "v".repeat(3_000);
    set("user.short", "value");
    set("user.long", &long);
    set("user.gone", "value");
    assert!(
        Command::new("setfattr").args(["-x", "user.gone"]).arg(&path).status().unwrap().success()
    );
    mounted.remount();
    assert_eq!(get("user.short"), "value");
    assert_eq!(get("user.long"), long);
    assert_eq!(get("user.gone"), "");
}

#[test]
fn statfs_reports_space_and_names_of_255_bytes() {
    let mounted = Mounted::new();
    let info = nix::sys::statvfs::statvfs(mounted.path()).unwrap();
    assert_eq!(info.name_max(), 255);
    assert!(info.blocks() > 0 && info.blocks_available() <= info.blocks());
}

#[test]
fn space_that_files_take_is_reported() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let of = || nix::sys::statvfs::statvfs(mounted.path()).unwrap();
    let before = of();
    fs::write(mounted.join("file"), vec![1; 20_000_000]).unwrap();
    File::open(mounted.join("file")).unwrap().sync_all().unwrap();
    let after = of();
    assert_eq!(after.files() - after.files_free(), before.files() - before.files_free() + 1);
    let blocks = 20_000_000_u64.div_ceil(4_096);
    assert_eq!(fs::metadata(mounted.join("file")).unwrap().blocks(), blocks * 8);
    // Used is what this volume uses, whatever others do on the disk below.
    let used = |info: &nix::sys::statvfs::Statvfs| info.blocks() - info.blocks_free();
    let more = used(&after) - used(&before);
    assert!((blocks..blocks + 200).contains(&more), "{more} blocks for {blocks}");
}

/// The oldest and the latest time that a `struct timespec` holds, as `touch` may be told.
#[test]
fn times_far_away_come_back() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        // Not every filesystem has 64 bits for the seconds.
        return;
    }
    use rustix::fs::{AtFlags, Timespec, Timestamps, utimensat};
    let path = mounted.join("file");
    File::create(&path).unwrap();
    for seconds in [i64::MIN, -2_208_988_800, -1, 0, 1 << 40, i64::MAX] {
        let time = Timespec { tv_sec: seconds, tv_nsec: 999_999_999 };
        let both = Timestamps { last_access: time, last_modification: time };
        utimensat(rustix::fs::CWD, &path, &both, AtFlags::empty()).unwrap();
        mounted.remount();
        let found = fs::metadata(&path).unwrap();
        // The kernel cuts nanoseconds off at either end (`timestamp_truncate`, fs/inode.c).
        let at_end = seconds == i64::MIN || seconds == i64::MAX;
        let nanoseconds = if at_end { 0 } else { 999_999_999 };
        assert_eq!((found.mtime(), found.mtime_nsec()), (seconds, nanoseconds));
        assert_eq!((found.atime(), found.atime_nsec()), (seconds, nanoseconds));
    }
}

/// Owners change what they may; who may not is refused, and set-user-ID goes with the owner.
#[test]
fn changing_the_owner_clears_set_user_id() {
    let mounted = Mounted::new();
    if !crate::mounted::is_root() {
        eprintln!("skipped: only root changes owners");
        return;
    }
    let path = mounted.join("file");
    File::create(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
    mounted.remount();
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1234, 4321, 0o755));
}
