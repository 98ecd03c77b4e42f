//! Sparse files: SEEK_DATA and SEEK_HOLE, punching, allocation, copies.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
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

#[test]
fn zeroing_makes_zeros_within_and_beyond_the_end() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    let file = open(&path);
    file.write_all_at(&vec![7; 100_000], 0).unwrap();
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, zero | keep, 90_000, 50_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    fallocate(&file, zero, 20_000, 30_001).unwrap();
    fallocate(&file, zero, 99_000, 50_000).unwrap();
    drop(file);
    for moment in ["before", "after"] {
        let read = fs::read(&path).unwrap();
        assert_eq!(read.len(), 149_000, "{moment} the remount");
        let is_zero = |at| (20_000..50_001).contains(&at) || at >= 90_000;
        let wrong = (0..read.len()).find(|&at| read[at] != if is_zero(at) { 0 } else { 7 });
        assert_eq!(wrong, None, "{moment} the remount");
        mounted.remount();
    }
}

#[test]
fn allocation_that_cannot_be_is_refused() {
    let mounted = Mounted::new();
    let file = open(&mounted.join("file"));
    let refused = |flags, offset, length| fallocate(&file, flags, offset, length).unwrap_err();
    let none = FallocateFlags::empty();
    assert_eq!(refused(none, 0, 0), nix::errno::Errno::EINVAL);
    assert_eq!(refused(none, i64::MAX - 5, 10), nix::errno::Errno::EFBIG);
    // Elsewhere not tried: ext4 takes all the space of the disk before it refuses.
    if mounted.is_atrest() {
        let space = nix::sys::statvfs::statvfs(mounted.path()).unwrap();
        let all = space.blocks() as i64 * space.fragment_size() as i64;
        assert_eq!(refused(none, 0, all + (1 << 30)), nix::errno::Errno::ENOSPC);
        let collapse = FallocateFlags::FALLOC_FL_COLLAPSE_RANGE;
        assert_eq!(refused(collapse, 0, 4_096), nix::errno::Errno::EOPNOTSUPP);
    }
    assert_eq!(file.metadata().unwrap().len(), 0);
}

/// What `cp` makes of a sparse file has the same holes, and is as small.
#[test]
fn cp_keeps_and_makes_holes() {
    let mounted = Mounted::new();
    let source = mounted.join("source");
    let file = open(&source);
    file.write_all_at(&[1; 10_000], 3_000_000).unwrap();
    file.write_all_at(&[2; 10_000], 7_000_000).unwrap();
    file.set_len(9_000_000).unwrap();
    drop(file);
    let zeros = mounted.join("zeros");
    fs::write(&zeros, vec![0; 3_000_000]).unwrap();
    let copy = |from: &std::path::Path, how: &str, to: &str| {
        let status = Command::new("cp").arg(how).arg(from).arg(mounted.join(to)).status().unwrap();
        assert!(status.success(), "cp {how}");
    };
    copy(&source, "--sparse=auto", "auto");
    copy(&source, "--sparse=never", "never");
    copy(&source, "--reflink=auto", "reflink");
    copy(&zeros, "--sparse=always", "always");
    mounted.remount();
    let expected = fs::read(&source).unwrap();
    for name in ["auto", "never", "reflink"] {
        assert!(fs::read(mounted.join(name)).unwrap() == expected, "{name}");
    }
    assert!(fs::read(mounted.join("always")).unwrap() == vec![0; 3_000_000]);
    let bytes_on_disk = |name: &str| fs::metadata(mounted.join(name)).unwrap().blocks() * 512;
    assert!(bytes_on_disk("source") < 100_000, "{}", bytes_on_disk("source"));
    assert!(bytes_on_disk("auto") < 100_000, "{}", bytes_on_disk("auto"));
    assert!(bytes_on_disk("always") < 100_000, "{}", bytes_on_disk("always"));
    assert!(bytes_on_disk("never") >= 9_000_000, "{}", bytes_on_disk("never"));
}

#[test]
fn copied_ranges_are_the_source_wherever_they_start() {
    let mounted = Mounted::new();
    let from = open(&mounted.join("from"));
    let pattern: Vec<u8> = (0..200_000_u32).map(|at| (at * 7 % 253) as u8).collect();
    from.write_all_at(&pattern, 0).unwrap();
    // A hole in the source becomes one in the target, over what was there.
    from.write_all_at(&pattern, 1_000_000).unwrap();
    let to = open(&mounted.join("to"));
    to.write_all_at(&vec![9; 1_500_000], 0).unwrap();
    let mut expected = vec![9; 1_500_000];
    for (from_at, to_at, length) in
        [(0, 100_001, 50_000), (4_096, 8_192, 65_536), (199_000, 300_000, 802_000)]
    {
        let (mut source, mut target, mut left) = (from_at as u64, to_at as u64, length);
        while left > 0 {
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left);
            let copied = copied.unwrap();
            assert!(copied > 0, "nothing copied at {source}");
            left -= copied;
        }
        let mut piece = vec![0; length];
        from.read_exact_at(&mut piece, from_at as u64).unwrap();
        expected[to_at..to_at + length].copy_from_slice(&piece);
    }
    let overlapping =
        rustix::fs::copy_file_range(&from, Some(&mut 0), &from, Some(&mut 10), 100).unwrap_err();
    assert_eq!(overlapping, rustix::io::Errno::INVAL);
    let past_the_end = rustix::fs::copy_file_range(&from, Some(&mut 5_000_000), &to, None, 100);
    assert_eq!(past_the_end, Ok(0));
    assert!(fs::read(mounted.join("to")).unwrap() == expected, "before the remount");
    drop((from, to));
    mounted.remount();
    assert!(fs::read(mounted.join("to")).unwrap() == expected, "after the remount");
}

#[test]
fn seeking_finds_data_holes_and_the_end() {
    let mounted = Mounted::new();
    let file = open(&mounted.join("file"));
    file.write_all_at(&[1; 4_096], 1 << 20).unwrap();
    file.set_len(3 << 20).unwrap();
    let seek = |at, whence| lseek(&file, at, whence);
    assert_eq!(seek(0, Whence::SeekData), Ok(1 << 20));
    assert_eq!(seek(1 << 20, Whence::SeekHole), Ok((1 << 20) + 4_096));
    assert_eq!(seek(2 << 20, Whence::SeekHole), Ok(2 << 20));
    let nothing = Err(nix::errno::Errno::ENXIO);
    assert_eq!(seek(2 << 20, Whence::SeekData), nothing);
    assert_eq!(seek(3 << 20, Whence::SeekHole), nothing, "the end is past all holes");
}
