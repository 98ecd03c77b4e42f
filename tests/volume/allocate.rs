//! What `fallocate(2)` promises is kept on a full disk, and counted before it is used.

use super::{check_space, new_file, pattern, read_all};
use crate::common::Volumes;
use atrest::crypto::Cipher;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Allocate, Caller, SetAttr, Tree};
use atrest::storage::Storage;
use atrest::storage::sim::SimDisk;
use atrest::volume::{Error, Volume};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const KEEP: Allocate = Allocate::Reserve { keep_size: true };
const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// A volume on a disk of that size.
fn small(disk_mib: u64) -> (Volumes, Arc<SimDisk>, Arc<Volume>) {
    let disk = Arc::new(SimDisk::new());
    disk.stop_recording();
    disk.set_capacity(disk_mib * MIB);
    let storage: Arc<dyn Storage> = disk.clone();
    let volumes = Volumes::new(Cipher::Aes256Gcm);
    volumes.create(&storage);
    let volume = volumes.open(&storage).expect("open");
    (volumes, disk, volume)
}

/// Writes until nothing more is taken, in pieces of `bytes`.
fn fill(volume: &Volume, bytes: usize) -> u64 {
    let ino = new_file(volume);
    for piece in 0.. {
        match volume.write(ino, piece * bytes as u64, &pattern(piece, bytes), &|_| {}) {
            Ok(()) => {}
            Err(Error::NoSpace) => return ino,
            Err(error) => panic!("a full disk is {error}"),
        }
    }
    unreachable!("there is an end to the disk")
}

/// Others fill the disk; every page that was allocated can be written all the same, in any order
/// and size, and again after that, with syncs in between.
#[test]
fn an_allocated_range_takes_everything_on_a_full_disk() {
    for seed in 0..3 {
        let (volumes, disk, volume) = small(64);
        let ino = new_file(&volume);
        volume.write(ino, 0, &pattern(seed, 3 * 4096), &|_| {}).expect("write");
        volume.reserve(ino, 0, 8 * MIB).expect("there is space");
        assert_eq!(volume.promised_pages(ino), 2048 - 3);
        let _filler = fill(&volume, 65_536);
        fill(&volume, 4096);
        volume.sync().expect("a full volume syncs");
        // What others do on the disk below takes nothing away either.
        disk.set_capacity(disk.allocated_bytes());
        let mut expected = pattern(seed, 3 * 4096);
        expected.resize(8 << 20, 0);
        let mut order: Vec<u64> = (0..128).collect();
        order.sort_by_key(|block| (block * 7919 + seed * 31) % 128);
        for round in 0..2 {
            for (step, &block) in order.iter().enumerate() {
                let data = pattern(block + round * 1000, 65_536);
                let at = block * 65_536;
                volume.write(ino, at, &data, &|_| {}).unwrap_or_else(|error| {
                    panic!("seed {seed}, round {round}, step {step}: {error}")
                });
                expected[at as usize..at as usize + data.len()].copy_from_slice(&data);
                if step % 40 == 39 {
                    volume.sync().expect("sync");
                }
            }
        }
        assert_eq!(volume.promised_pages(ino), 0);
        assert!(read_all(&volume, ino) == expected);
        volume.close().expect("close");
        let storage: Arc<dyn Storage> = disk.clone();
        let volume = volumes.open(&storage).expect("open");
        assert!(read_all(&volume, ino) == expected);
        check_space(&volume);
    }
}

/// One request of the kernel may hold pages with and without space: those with are written.
#[test]
fn pages_with_space_do_not_suffer_for_their_neighbours() {
    let (_, _, volume) = small(64);
    let ino = new_file(&volume);
    volume.write(ino, 0, &pattern(1, 4096), &|_| {}).expect("write");
    volume.reserve(ino, 10 * 4096, 20 * 4096).expect("there is space");
    fill(&volume, 65_536);
    fill(&volume, 4096);
    let data = pattern(2, 40 * 4096);
    let refused = volume.write(ino, 0, &data, &|_| {}).expect_err("not all of it has space");
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    let mut read = Vec::new();
    volume.read(ino, 10 * 4096, 20 * 4096, &mut read).expect("read");
    assert!(read == data[10 * 4096..30 * 4096]);
}

/// It is counted at once, and comes back with what it was promised to: unlinked, truncated,
/// punched, and as far as it is written.
#[test]
fn what_is_promised_is_counted_and_comes_back() {
    let (_, _, volume) = small(128);
    let tree = VolumeTree::new(volume.clone());
    let free = || tree.statfs().expect("statfs").blocks_free;
    let (file, handle) = tree.create(CALLER, 1, b"file", 0o644).expect("create");
    let blocks = || tree.getattr(file.ino).expect("getattr").blocks / 8;
    let before = free();
    let total = tree.statfs().expect("statfs").blocks;
    tree.fallocate(file.ino, 0, 16 * MIB, KEEP).expect("allocate");
    let allocated = free();
    assert!((4096..4096 + 300).contains(&(before - allocated)), "{before} {allocated}");
    assert!(total.abs_diff(tree.statfs().expect("statfs").blocks) < 300, "used counts it");
    assert_eq!(blocks(), 4096);
    tree.fallocate(file.ino, 0, 16 * MIB, KEEP).expect("again");
    assert_eq!((free(), blocks()), (allocated, 4096), "allocating again takes nothing");
    tree.write(file.ino, 0, &pattern(1, 1 << 20), false).expect("write");
    tree.sync().expect("sync");
    assert!(free().abs_diff(allocated) < 300, "what is written is not counted twice");
    assert_eq!(blocks(), 4096);
    tree.fallocate(file.ino, 8 * MIB - 5, MIB, Allocate::Punch).expect("punch");
    assert_eq!(blocks(), 4096 - 255, "the pages at the ends stay");
    tree.fallocate(file.ino, 8 * MIB, MIB, Allocate::Zero { keep_size: true }).expect("zero");
    assert_eq!(blocks(), 4096 - 255 + 255, "zeroing allocates");
    let size = Some(2 * MIB);
    tree.setattr(file.ino, &SetAttr { size, ..SetAttr::default() }).expect("grow");
    assert_eq!(blocks(), 4096, "growing leaves what is behind");
    let size = Some(1 << 20);
    tree.setattr(file.ino, &SetAttr { size, ..SetAttr::default() }).expect("shrink");
    assert_eq!(blocks(), 256, "shrinking does not");
    tree.fallocate(file.ino, 0, 16 * MIB, KEEP).expect("allocate");
    tree.unlink(1, b"file").expect("unlink");
    tree.release(file.ino, handle);
    for _ in 0..3 {
        tree.sync().expect("sync");
        tree.create(CALLER, 1, b"x", 0o644).expect("create");
        tree.unlink(1, b"x").expect("unlink");
    }
    assert!(free().abs_diff(before) < 300, "{} {before}", free());
}

/// More than there is is refused and takes nothing.
#[test]
fn an_allocation_that_cannot_be_takes_nothing() {
    let (_, disk, volume) = small(64);
    let tree = VolumeTree::new(volume);
    let (file, _) = tree.create(CALLER, 1, b"file", 0o644).expect("create");
    let free = tree.statfs().expect("statfs").blocks_free;
    for what in [KEEP, Allocate::Reserve { keep_size: false }, Allocate::Zero { keep_size: false }]
    {
        for length in [65 * MIB, free * 4096, 1 << 50, (1 << 63) - 4096] {
            let error = tree.fallocate(file.ino, 0, length, what).expect_err("too much");
            assert_eq!(error.errno(), libc::ENOSPC, "{what:?} {length}: {error}");
        }
        let attr = tree.getattr(file.ino).expect("getattr");
        assert_eq!((attr.size, attr.blocks), (0, 0), "{what:?}");
    }
    assert!(tree.statfs().expect("statfs").blocks_free.abs_diff(free) < 300);
    assert!(disk.allocated_bytes() < 40 * MIB, "{} bytes", disk.allocated_bytes());
}
