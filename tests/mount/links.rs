//! Hard links, symlinks, special files.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::mounted::{Mounted, is_root};

#[test]
fn hard_links_are_one_file() {
    let mounted = Mounted::new();
    fs::create_dir(mounted.join("d")).unwrap();
    fs::write(mounted.join("one"), "contents").unwrap();
    fs::hard_link(mounted.join("one"), mounted.join("d/two")).unwrap();
    let inode = |name: &str| {
        let attributes = fs::metadata(mounted.join(name)).unwrap();
        (attributes.ino(), attributes.nlink())
    };
    assert_eq!(inode("one"), inode("d/two"));
    assert_eq!(inode("one").1, 2);
    fs::write(mounted.join("d/two"), "changed").unwrap();
    mounted.remount();
    assert_eq!(fs::read(mounted.join("one")).unwrap(), b"changed");
    assert_eq!(inode("one"), inode("d/two"));
    fs::remove_file(mounted.join("one")).unwrap();
    assert_eq!(inode("d/two").1, 1);
    mounted.remount();
    assert_eq!(fs::read(mounted.join("d/two")).unwrap(), b"changed");
}

#[test]
fn symlinks_keep_targets_of_every_length() {
    let mounted = Mounted::new();
    let lengths = [1, 59, 60, 61, 1_299, 1_301, 4_095];
    for length in lengths {
        symlink("t".repeat(length), mounted.join(format!("link-{length}"))).unwrap();
    }
    mounted.remount();
    for length in lengths {
        let path = mounted.join(format!("link-{length}"));
        assert_eq!(fs::read_link(&path).unwrap().to_str().unwrap(), "t".repeat(length));
        assert_eq!(fs::symlink_metadata(&path).unwrap().len(), length as u64);
    }
}

#[test]
fn fifos_and_sockets_keep_their_type() {
    let mounted = Mounted::new();
    nix::unistd::mkfifo(&mounted.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(mounted.join("socket")).unwrap();
    drop(socket);
    mounted.remount();
    let kind = |name: &str| fs::symlink_metadata(mounted.join(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo());
    assert!(kind("socket").is_socket());
}

#[test]
fn devices_keep_their_numbers() {
    let mounted = Mounted::new();
    if !is_root() {
        eprintln!("skipped: only root makes devices");
        return;
    }
    let numbers = [("null", SFlag::S_IFCHR, 1, 3), ("big", SFlag::S_IFBLK, 4_095, 1_048_575)];
    for (name, kind, major, minor) in numbers {
        let mode = Mode::from_bits_truncate(0o640);
        mknod(&mounted.join(name), kind, mode, makedev(major, minor)).unwrap();
    }
    mounted.remount();
    for (name, _, major, minor) in numbers {
        let device = fs::symlink_metadata(mounted.join(name)).unwrap().rdev();
        assert_eq!(device, makedev(major, minor), "{name}");
    }
}

#[test]
fn a_target_of_4096_bytes_and_a_link_to_a_directory_are_refused() {
    let mounted = Mounted::new();
    let error = symlink("t".repeat(4_096), mounted.join("link")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    fs::create_dir(mounted.join("d")).unwrap();
    let error = fs::hard_link(mounted.join("d"), mounted.join("e")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn a_thousand_links_are_one_file_until_the_last() {
    let mounted = Mounted::new();
    fs::write(mounted.join("0"), "contents").unwrap();
    for index in 1..1_000 {
        fs::hard_link(mounted.join("0"), mounted.join(index.to_string())).unwrap();
    }
    mounted.remount();
    assert_eq!(fs::metadata(mounted.join("500")).unwrap().nlink(), 1_000);
    for index in 0..999 {
        fs::remove_file(mounted.join(index.to_string())).unwrap();
    }
    mounted.remount();
    assert_eq!(fs::read(mounted.join("999")).unwrap(), b"contents");
    assert_eq!(fs::metadata(mounted.join("999")).unwrap().nlink(), 1);
}
