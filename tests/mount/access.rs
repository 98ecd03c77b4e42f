//! Access times, by the rules of `relatime`.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::mounted::Mounted;

const HOUR: Duration = Duration::from_secs(3600);

fn atime(path: &Path) -> (i64, i64) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.atime(), found.atime_nsec())
}

fn mtime(path: &Path) -> (i64, i64) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.mtime(), found.mtime_nsec())
}

/// Sets both times; that changes the time of the last change too, so that the next reading counts.
fn set_times(path: &Path, accessed: SystemTime, modified: SystemTime) {
    let times = FileTimes::new().set_accessed(accessed).set_modified(modified);
    File::open(path).unwrap().set_times(times).unwrap();
}

/// Longer than the tick of the clock that files get their times from.
fn wait() {
    std::thread::sleep(Duration::from_millis(30));
}

#[test]
fn the_first_read_after_a_change_counts_and_the_next_does_not() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    let before = SystemTime::now() - HOUR;
    for cached in [true, false] {
        fs::write(&path, "contents").unwrap();
        set_times(&path, before, before);
        if !cached {
            mounted.remount();
        }
        let old = atime(&path);
        wait();
        // Asked while it is still open: closing makes the kernel ask anyway.
        let (mut reader, mut text) = (File::open(&path).unwrap(), String::new());
        reader.read_to_string(&mut text).unwrap();
        let first = atime(&path);
        drop(reader);
        assert_eq!(text, "contents");
        assert!(first > old, "cached {cached}: reading did not count: {first:?}");
        assert!(first > mtime(&path));
        wait();
        fs::read(&path).unwrap();
        assert_eq!(atime(&path), first, "cached {cached}: nothing was changed");
        wait();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"+").unwrap();
        assert_eq!(atime(&path), first, "writing is no reading");
        // The way that programs find new mail.
        assert!(mtime(&path) > atime(&path));
        wait();
        fs::read(&path).unwrap();
        assert!(atime(&path) > mtime(&path), "cached {cached}: reading after writing counts");
        let kept = atime(&path);
        mounted.remount();
        assert_eq!(atime(&path), kept, "cached {cached}: it is kept");
    }
}

/// While somebody writes, the times that count are those in the kernel.
#[test]
fn reading_what_another_is_writing_counts() {
    let mounted = Mounted::new();
    let path = mounted.join("log");
    let mut writer = File::create(&path).unwrap();
    for _ in 0..3 {
        wait();
        writer.write_all(b"line\n").unwrap();
        wait();
        fs::read(&path).unwrap();
        assert!(atime(&path) > mtime(&path), "{:?} {:?}", atime(&path), mtime(&path));
    }
}

#[test]
fn an_access_of_yesterday_is_renewed_and_one_of_tomorrow_is_not() {
    let mounted = Mounted::new();
    for (name, accessed, renewed) in [
        ("yesterday", SystemTime::now() - 25 * HOUR, true),
        ("tomorrow", SystemTime::now() + 25 * HOUR, false),
    ] {
        let path = mounted.join(name);
        fs::write(&path, "contents").unwrap();
        set_times(&path, accessed, SystemTime::now() - 50 * HOUR);
        mounted.remount();
        let old = atime(&path);
        fs::read(&path).unwrap();
        assert_eq!(atime(&path) != old, renewed, "{name}");
    }
}

#[test]
fn listing_a_directory_and_reading_a_link_count() {
    let mounted = Mounted::new();
    let (directory, link) = (mounted.join("d"), mounted.join("link"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "").unwrap();
    symlink("d", &link).unwrap();
    mounted.remount();
    let old = (atime(&directory), atime(&link));
    wait();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    fs::read_link(&link).unwrap();
    let new = (atime(&directory), atime(&link));
    assert!(new.0 > old.0 && new.1 > old.1, "{old:?} {new:?}");
    wait();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    assert_eq!(atime(&directory), new.0);
    wait();
    fs::write(directory.join("other"), "").unwrap();
    wait();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
    assert!(atime(&directory) > mtime(&directory));
    let kept = (atime(&directory), atime(&link));
    mounted.remount();
    assert_eq!((atime(&directory), atime(&link)), kept);
}

#[test]
fn what_does_not_read_does_not_count() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, "contents").unwrap();
    let old = atime(&path);
    wait();
    let mut quiet = OpenOptions::new();
    quiet.read(true).custom_flags(libc::O_NOATIME);
    let mut text = String::new();
    quiet.open(&path).unwrap().read_to_string(&mut text).unwrap();
    fs::metadata(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().write_all(b"C").unwrap();
    fs::rename(&path, mounted.join("renamed")).unwrap();
    assert_eq!(atime(&mounted.join("renamed")), old);
    mounted.remount();
    quiet.open(mounted.join("renamed")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(atime(&mounted.join("renamed")), old, "after the remount");
}

/// What `utimensat` sets stays, also if reading counted a moment before.
#[test]
fn what_is_set_stays() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, "contents").unwrap();
    wait();
    fs::read(&path).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    set_times(&path, long_ago, long_ago);
    assert_eq!(atime(&path), (1_000_000_000, 0));
    mounted.remount();
    assert_eq!(atime(&path), (1_000_000_000, 0));
}

#[test]
fn noatime_is_what_it_says() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let path = mounted.join("file");
    fs::write(&path, "contents").unwrap();
    let old = atime(&path);
    let options = || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(mounted.path().to_str().unwrap()));
        line.unwrap().split(' ').nth(3).unwrap().to_owned()
    };
    assert!(options().contains("relatime"), "{}", options());
    mounted.remount_with(&["-o", "noatime"]);
    assert!(options().contains("noatime"), "{}", options());
    wait();
    fs::read(&path).unwrap();
    fs::read_dir(mounted.path()).unwrap().count();
    assert_eq!(atime(&path), old);
    mounted.remount();
    assert_eq!(atime(&path), old);
}
