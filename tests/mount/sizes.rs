//! Sizes and offsets at their limits.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::mounted::Mounted;

/// 8 EiB less a page.
const MAX: u64 = (1 << 63) - 4096;

fn open(path: &std::path::Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Every call at the very end of the largest file, before and after a remount; one byte more is
/// refused.
#[test]
fn the_largest_file_is_one_page_short_of_8_eib() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        // Not every filesystem has files of that size.
        return;
    }
    let path = mounted.join("largest");
    let file = open(&path);
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"last", MAX - 4).unwrap();
    file.write_all_at(b"middle", 1 << 62).unwrap();
    assert_eq!(file.set_len(MAX + 1).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    file.sync_all().unwrap();
    drop(file);
    for _ in 0..2 {
        let file = open(&path);
        let found = file.metadata().unwrap();
        assert_eq!((found.len(), found.blocks()), (MAX, 3 * 8));
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, MAX - 4).unwrap();
        assert_eq!(&bytes, b"last");
        assert_eq!(file.read_at(&mut bytes, MAX).unwrap(), 0, "the end");
        let seek = |at: u64, whence| lseek(&file, at as i64, whence).map(|at| at as u64);
        assert_eq!(seek(4096, Whence::SeekData), Ok(1 << 62));
        assert_eq!(seek((1 << 62) + 4096, Whence::SeekData), Ok(MAX - 4096));
        assert_eq!(seek(MAX - 4096, Whence::SeekHole), Ok(MAX));
        assert_eq!(seek(MAX, Whence::SeekData), Err(Errno::ENXIO));
        drop(file);
        mounted.remount();
    }
    let file = open(&path);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 1 << 20, (MAX - (1 << 20)) as i64).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 8);
    assert_eq!(lseek(&file, 4096, Whence::SeekData), Err(Errno::ENXIO));
    let none = FallocateFlags::empty();
    assert_eq!(fallocate(&file, none, 0, MAX as i64), Err(Errno::ENOSPC));
    assert_eq!(fallocate(&file, none, MAX as i64, 4096), Err(Errno::EFBIG));
    file.set_len(5).unwrap();
    file.set_len(MAX).unwrap();
    file.set_len(5).unwrap();
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"begin");
}

/// What is written past the limit is refused: at once past the cache, else when it is written back,
/// for the kernel asks nobody before it takes it into its cache.
#[test]
fn writing_past_the_limit_is_refused() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let path = mounted.join("file");
    let mut options = File::options();
    options.read(true).write(true).create(true);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(&path).unwrap();
    for at in [MAX, MAX - 1, MAX + 4_000] {
        let refused = direct.write_at(b"xy", at).unwrap_err().raw_os_error();
        assert_eq!(refused, Some(libc::EFBIG), "{at}");
    }
    assert_eq!(direct.set_len(MAX + 1).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    assert_eq!(direct.metadata().unwrap().len(), 0);
    let buffered = options.open(&path).unwrap();
    let written = buffered.write_all_at(b"x", MAX).and_then(|()| buffered.sync_all());
    written.expect_err("fsync says what was refused");
    drop((direct, buffered));
    mounted.remount();
    assert_eq!(fs::read(&path).unwrap(), b"");
}

/// The last pages of such a file can be mapped.
#[test]
fn the_end_of_the_largest_file_is_mapped() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let path = mounted.join("largest");
    open(&path).set_len(MAX).unwrap();
    let program = "import mmap, os, sys\n\
        file = os.open(sys.argv[1], os.O_RDWR)\n\
        mapped = mmap.mmap(file, 8192, offset=2**63 - 3 * 4096)\n\
        mapped[8191] = ord('e')\n\
        mapped.flush()\n";
    let status = std::process::Command::new("python3").args(["-c", program]).arg(&path).status();
    assert!(status.unwrap().success());
    mounted.remount();
    let mut byte = [0];
    open(&path).read_exact_at(&mut byte, MAX - 1).unwrap();
    assert_eq!(&byte, b"e");
}

/// What is allocated is counted at once, reads as zeros, is no data, and goes with the end.
#[test]
fn allocated_pages_are_counted_and_are_holes() {
    let mounted = Mounted::new();
    let file = open(&mounted.join("file"));
    fallocate(&file, FallocateFlags::empty(), 0, 4 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() >= 8192, "{}", file.metadata().unwrap().blocks());
    assert_eq!(lseek(&file, 0, Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(0));
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    assert_eq!(lseek(&file, 0, Whence::SeekData), Ok(1 << 20));
    file.sync_all().unwrap();
    let blocks = file.metadata().unwrap().blocks();
    assert!((8192..8400).contains(&blocks), "written pages are not counted twice: {blocks}");
    file.set_len(2 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() < 4200, "what is behind the end goes");
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE, 0, 2 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() < 64);
    fallocate(&file, keep, 0, 8 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 << 20);
    assert!(file.metadata().unwrap().blocks() >= 16_384);
    file.set_len(2 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() < 4200, "also if the size stays");
}
