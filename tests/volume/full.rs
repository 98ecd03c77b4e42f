//! A full disk is an answer, never a fault: new work is refused, everything else goes on.

use super::{check_space, file, new_file, pattern, read_all, setup};
use crate::common::Volumes;
use atrest::crypto::Cipher;
use atrest::space::{Class, Purpose};
use atrest::storage::Storage;
use atrest::storage::sim::SimDisk;
use atrest::volume::{CommitOptions, Error, Volume};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 256 << 10;

/// Writes blocks until the volume is full; says how many fitted.
fn fill(volume: &Volume, ino: u64) -> u64 {
    for block in 0u64.. {
        let data = pattern(block, BLOCK);
        match volume.write(ino, block * BLOCK as u64, &data, &|_| {}) {
            Ok(()) if block % 16 == 15 => match volume.sync() {
                Ok(()) => {}
                Err(error) => panic!("a full disk fails a sync: {error}"),
            },
            Ok(()) => {}
            Err(Error::NoSpace) => return block,
            Err(error) => panic!("a full disk is {error}"),
        }
    }
    unreachable!("there is an end to the disk")
}

/// Small disks are usable: most of them holds contents, and a full one takes everything that it
/// must: overwriting, deleting, syncing, closing, opening.
#[test]
fn small_disks_fill_up_and_go_on() {
    for disk_mib in [16, 32, 64, 256] {
        let disk = Arc::new(SimDisk::new());
        disk.set_capacity(disk_mib * MIB);
        let storage: Arc<dyn Storage> = disk.clone();
        let volumes = Volumes::new(Cipher::Aes256Gcm);
        volumes.create(&storage);
        let mut volume = volumes.open(&storage).expect("open");
        let (kept, large) = (new_file(&volume), new_file(&volume));
        volume.write(kept, 0, &pattern(1, 2 << 20), &|_| {}).expect("write");
        volume.sync().expect("sync");
        let blocks = fill(&volume, large);
        let filled = blocks * BLOCK as u64;
        assert!(filled > disk_mib * MIB * 2 / 3, "{filled} bytes on a disk of {disk_mib} MiB");
        volume.sync().expect("a full volume syncs");
        // More than the reserve, so that epochs must end in between.
        for round in 2..12 {
            volume.write(kept, 0, &pattern(round, 2 << 20), &|_| {}).expect("overwrite in place");
        }
        volume.sync().expect("sync");
        assert_eq!(read_all(&volume, kept), pattern(11, 2 << 20));
        volume.close().expect("a full volume closes");
        volume = volumes.open(&storage).expect("a full volume opens");
        assert_eq!(read_all(&volume, kept), pattern(11, 2 << 20));
        volume.write(kept, 0, &pattern(12, 2 << 20), &|_| {}).expect("overwrite after opening");
        volume.discard(large).expect("delete");
        // At once: what was deleted is needed now.
        let again = new_file(&volume);
        for block in 0..blocks / 2 {
            let data = pattern(block, BLOCK);
            let written = volume.write(again, block * BLOCK as u64, &data, &|_| {});
            written.unwrap_or_else(|error| {
                let usage = volume.epochs().space.usage();
                let disk = disk.allocated_bytes() / 4096;
                panic!(
                    "{disk_mib} MiB, block {block} of {blocks}: {error}; slots {usage:?}, {disk}"
                )
            });
        }
        volume.sync().expect("sync");
        check_space(&volume);
    }
}

/// An epoch that cannot be written stays in memory and is written when there is space again.
#[test]
fn an_epoch_waits_for_space() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let ino = new_file(&volume);
    volume.write(ino, 0, &pattern(1, 100), &|_| {}).expect("write");
    volume.close().expect("close");
    let volume = volumes.open(&storage).expect("open");
    // Not even room for the nodes of one epoch.
    disk.set_capacity(1);
    for class in [Class::NodeA, Class::NodeB] {
        while volume.epochs().space.allocate_backed(class, 1, Purpose::Overwrite).is_ok() {}
    }
    for byte in [2, 3] {
        let mut change = volume.change(true).expect("what only replaces is let through");
        let mut inode = file();
        inode.uid = byte;
        change.put_inode(ino, &inode);
        drop(change);
        let error = volume.sync().expect_err("there is no space for a node");
        assert!(matches!(error, Error::NoSpace), "{error}");
        assert_eq!(volume.inode(ino).expect("get").expect("there").uid, byte);
    }
    disk.set_capacity(u64::MAX);
    volume.sync().expect("there is space again");
    let reopened = volumes.open(&storage).expect("open");
    assert_eq!(reopened.inode(ino).expect("get").expect("there").uid, 3);
}

/// What others delete on the disk below is noticed, although nothing is freed in the volume.
#[test]
fn space_that_comes_from_elsewhere_is_noticed() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let ino = new_file(&volume);
    volume.sync().expect("sync");
    // Not even the reserve of contents is there.
    disk.set_capacity(1);
    while volume.epochs().space.allocate_backed(Class::Data, 1, Purpose::Overwrite).is_ok() {}
    volume.epochs().commit(&CommitOptions { force: true, ..Default::default() }).expect("commit");
    volume.change(false).map(drop).expect_err("the volume is full");
    disk.set_capacity(1 << 40);
    // It is asked once a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    volume.write(ino, 0, &pattern(1, BLOCK), &|_| {}).expect("write");
    volume.close().expect("close");
}
