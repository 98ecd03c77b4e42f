//! Hard links, symlinks, special files.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use nix::sys::stat::Mode;

use crate::mounted::Mounted;

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
