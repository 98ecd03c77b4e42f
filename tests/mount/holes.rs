//! Sparse files: SEEK_DATA and SEEK_HOLE, punching, allocation, copies.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::mounted::Mounted;

fn open(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// `cp` asks where the data is; the kernel may still hold it when it asks.
#[test]
fn cp_copies_what_was_just_written() {
    let mounted = Mounted::new();
    let path = mounted.join("source");
    let mut writer = File::create(&path).unwrap();
    writer.write_all(&[b'x'; 100_000]).unwrap();
    let copy = mounted.join("copy");
    // The writer is still open: nothing has made the kernel write back.
    assert!(Command::new("cp").arg(&path).arg(&copy).status().unwrap().success());
    assert!(fs::read(&copy).unwrap() == vec![b'x'; 100_000]);
    let data = lseek(File::open(&path).unwrap(), 0, Whence::SeekData).unwrap();
    assert_eq!(data, 0);
}

#[test]
fn holes_are_zero_and_what_is_reported_as_hole_holds_nothing() {
    let mounted = Mounted::new();
    let path = mounted.join("sparse");
    let file = open(&path);
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", 50_000_000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mounted.remount();
    let read = fs::read(&path).unwrap();
    assert_eq!((&read[..5], &read[50_000_000..]), (&b"begin"[..], &b"end"[..]));
    assert!(read[5..50_000_000].iter().all(|&byte| byte == 0));
    let file = open(&path);
    let hole = lseek(&file, 0, Whence::SeekHole).unwrap();
    let data = lseek(&file, hole, Whence::SeekData).unwrap_or(50_000_003);
    assert!(hole >= 5 && data <= 50_000_000, "hole at {hole}, data at {data}");
}

#[test]
fn punched_ranges_are_zero_and_their_neighbours_stay() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    let file = open(&path);
    file.write_all_at(&vec![7; 1_000_000], 0).unwrap();
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, flags, 5_001, 700_003).unwrap();
    drop(file);
    for moment in ["before", "after"] {
        let read = fs::read(&path).unwrap();
        assert_eq!(read.len(), 1_000_000);
        let wrong = read
            .iter()
            .enumerate()
            .find(|&(index, &byte)| byte != if (5_001..705_004).contains(&index) { 0 } else { 7 });
        assert_eq!(wrong, None, "{moment} the remount");
        mounted.remount();
    }
}

#[test]
fn allocation_extends_unless_told_to_keep_the_size() {
    let mounted = Mounted::new();
    let file = open(&mounted.join("file"));
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1_000_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    fallocate(&file, FallocateFlags::empty(), 0, 1_000_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1_000_000);
    drop(file);
    mounted.remount();
    assert!(fs::read(mounted.join("file")).unwrap() == vec![0; 1_000_000]);
}
