//! A volume over the simulated disk: what is written is read back, now and after reopening; space
//! comes back; damage is confined.

mod ahead;
mod allocate;
mod allocations;
#[path = "../common/mod.rs"]
mod common;
mod defragment;
mod evacuate;
mod every;
mod fsync;
mod full;
mod lost;

use atrest::crypto::Cipher;
use atrest::format::record::{Inode, Timestamp};
use atrest::storage::sim::SimDisk;
use atrest::storage::{FileId, Storage};
use atrest::volume::Volume;
use common::Volumes;
use std::sync::Arc;

fn file() -> Inode {
    let zero = Timestamp::default();
    Inode {
        mode: libc::S_IFREG | 0o644,
        links: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        paged: false,
        has_xattrs: false,
        size: 0,
        pages: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        btime: zero,
        parent: 0,
    }
}

fn new_file(volume: &Volume) -> u64 {
    let ino = volume.new_ino();
    let mut change = volume.change(false).expect("change");
    change.put_inode(ino, &file());
    change.count_inodes(1);
    ino
}

fn setup(cipher: Cipher) -> (Volumes, Arc<SimDisk>, Arc<dyn Storage>) {
    let disk = Arc::new(SimDisk::new());
    let storage: Arc<dyn Storage> = disk.clone();
    let volumes = Volumes::new(cipher);
    volumes.create(&storage);
    (volumes, disk, storage)
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn read_all(volume: &Volume, ino: u64) -> Vec<u8> {
    let size = volume.inode(ino).expect("inode").expect("exists").size;
    let mut buffer = Vec::new();
    volume.read(ino, 0, size as usize + 10, &mut buffer).expect("read");
    buffer
}

/// Every slot that the bitmaps say is used is used by something, and the other way round.
fn check_space(volume: &Volume) {
    let problems = volume.check_space();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn contents_survive_reopening() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let (volumes, _, storage) = setup(cipher);
        let volume = volumes.open(&storage).expect("open");
        let sizes = [0, 1, 1279, 1280, 1281, 4095, 4096, 4097, 131_072, 262_145, 3_000_000];
        let inos: Vec<u64> = sizes
            .iter()
            .map(|&size| {
                let ino = new_file(&volume);
                volume.write(ino, 0, &pattern(size as u64, size), &|_| {}).expect("write");
                ino
            })
            .collect();
        for round in 0..3 {
            let volume = if round == 2 {
                volume.close().expect("close");
                volumes.open(&storage).expect("reopen")
            } else {
                volume.sync().expect("sync");
                volume.clone()
            };
            for (&size, &ino) in sizes.iter().zip(&inos) {
                assert_eq!(read_all(&volume, ino), pattern(size as u64, size), "{size}, {round}");
            }
            check_space(&volume);
        }
    }
}

#[test]
fn partial_writes_holes_and_cuts_match_a_plain_buffer() {
    let seed = std::env::var("ATREST_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    println!("replay with ATREST_SEED={seed}");
    let (volumes, _, storage) = setup(Cipher::Aes256Gcm);
    let mut volume = volumes.open(&storage).expect("open");
    let ino = new_file(&volume);
    let mut model: Vec<u8> = Vec::new();
    let mut random = atrest::storage::sim::Random::new(seed);
    for step in 0..3000u64 {
        let at = random.below(600_000);
        let most = if random.coin() { 9_000 } else { 200_000 };
        let length = 1 + random.below(most);
        match random.below(12) {
            0 => {
                volume.truncate(ino, at, &|_| {}).expect("truncate");
                model.resize(at as usize, 0);
            }
            1 | 2 => {
                volume.punch(ino, at, length, &|_| {}).expect("punch");
                let end = ((at + length) as usize).min(model.len());
                if (at as usize) < end {
                    model[at as usize..end].fill(0);
                }
            }
            3 => volume.sync().expect("sync"),
            4 if step % 5 == 0 => {
                volume.close().expect("close");
                volume = volumes.open(&storage).expect("open");
            }
            _ => {
                let (at, length) = match random.below(3) {
                    0 => (at / 4096 * 4096, length.next_multiple_of(4096)),
                    _ => (at, length),
                };
                let data = pattern(step, length as usize);
                volume.write(ino, at, &data, &|_| {}).expect("write");
                model.resize(model.len().max((at + length) as usize), 0);
                model[at as usize..(at + length) as usize].copy_from_slice(&data);
            }
        }
        if step % 10 == 0 {
            assert_eq!(read_all(&volume, ino), model, "step {step}");
        }
    }
    volume.sync().expect("sync");
    assert_eq!(read_all(&volume, ino), model);
    check_space(&volume);
}

#[test]
fn space_comes_back() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let (used_before, _) = volume.epochs().space.usage();
    let inos: Vec<u64> = (0..8).map(|_| new_file(&volume)).collect();
    for &ino in &inos {
        for block in 0..8 {
            let data = pattern(ino + block, 1 << 20);
            volume.write(ino, block << 20, &data, &|_| {}).expect("write");
        }
    }
    volume.sync().expect("sync");
    let full = disk.allocated_bytes();
    for ino in inos {
        volume.discard(ino).expect("discard");
    }
    for _ in 0..6 {
        volume.epochs().commit(&Default::default()).expect("commit");
    }
    let (used_after, _) = volume.epochs().space.usage();
    assert!(used_after < used_before + 64, "{used_before} slots before, {used_after} after");
    let left = disk.allocated_bytes();
    assert!(left + (40 << 20) < full, "{full} bytes on disk before, {left} after");
    check_space(&volume);
}

#[test]
fn a_flipped_bit_in_a_page_is_an_error_there_and_only_there() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let (a, b) = (new_file(&volume), new_file(&volume));
    volume.write(a, 0, &pattern(1, 8192), &|_| {}).expect("write");
    volume.write(b, 0, &pattern(2, 8192), &|_| {}).expect("write");
    volume.close().expect("close");
    let volume = volumes.open(&storage).expect("open");
    let slot = volume.slot_of(a, 1).expect("map").expect("a page");
    disk.flip_bit(FileId::Segment(slot.segment()), slot.offset() + 100, 3);
    let mut buffer = Vec::new();
    let error = volume.read(a, 0, 8192, &mut buffer).expect_err("the second page is damaged");
    assert!(matches!(error, atrest::volume::Error::Damaged { ino, .. } if ino == a), "{error}");
    volume.read(a, 0, 4096, &mut buffer).expect("the first page is whole");
    assert_eq!(buffer, pattern(1, 8192)[..4096]);
    assert_eq!(read_all(&volume, b), pattern(2, 8192));
    volume.write(a, 4096, &pattern(3, 4096), &|_| {}).expect("a damaged page can be overwritten");
    volume.read(a, 4096, 4096, &mut buffer).expect("and read again");
}

#[test]
fn every_node_is_healed_from_its_second_copy() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let inos: Vec<u64> = (0..500).map(|_| new_file(&volume)).collect();
    for &ino in &inos {
        volume.write(ino, 0, &pattern(ino, 500), &|_| {}).expect("write");
    }
    volume.close().expect("close");
    // All first copies of nodes are in segment 0.
    let length = 1 << 20;
    disk.overwrite(FileId::Segment(0), 0, &vec![0xaa; length]);
    let volume = volumes.open(&storage).expect("open from the second copies");
    for &ino in &inos {
        assert_eq!(read_all(&volume, ino), pattern(ino, 500));
    }
    let healed = volume.epochs().damage().nodes_healed.load(std::sync::atomic::Ordering::Relaxed);
    assert!(healed > 10, "{healed} nodes healed");
    volume.close().expect("close");
    disk.overwrite(FileId::Segment(1), 0, &vec![0x55; length]);
    let volume = volumes.open(&storage).expect("open from the healed first copies");
    for &ino in &inos {
        assert_eq!(read_all(&volume, ino), pattern(ino, 500));
    }
}

/// A large truncation only marks what it cuts off; many separate writes into what was cut off keep
/// their content, and so does everything else when the background job gets there.
#[test]
fn writes_into_a_cut_are_kept() {
    let (volumes, _, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let ino = new_file(&volume);
    let run = 128 << 10;
    for index in 0..1500 {
        volume.write(ino, index * run, &pattern(index, 4096), &|_| {}).expect("write");
    }
    volume.sync().expect("sync");
    volume.truncate(ino, 0, &|_| {}).expect("truncate");
    for index in 0..200 {
        let at = index * 7 * run;
        volume.write(ino, at, &pattern(index + 9, 4096), &|_| {}).expect("write");
    }
    volume.sync().expect("sync");
    let volume = volumes.open(&storage).expect("reopen");
    volume.start();
    volume.sync().expect("sync");
    let mut buffer = Vec::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while volume.inode(ino).expect("inode").expect("exists").pages != 200 {
        assert!(std::time::Instant::now() < deadline, "the cut is never worked off");
        volume.write(ino, 0, &pattern(9, 4096), &|_| {}).expect("write");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for index in 0..1500 {
        volume.read(ino, index * run, 4096, &mut buffer).expect("read");
        let written = (index % 7 == 0 && index / 7 < 200).then(|| pattern(index / 7 + 9, 4096));
        let expected = written.unwrap_or(vec![0; 4096]);
        let end = buffer.len();
        assert_eq!(buffer, expected[..end], "run {index}");
    }
    volume.close().expect("close");
    let volume = volumes.open(&storage).expect("reopen");
    check_space(&volume);
}

/// If the newest tree lost both copies of its root, the state before opens, and the log still says
/// what came after it.
#[test]
fn a_lost_root_leads_to_the_older_superblock() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let ino = new_file(&volume);
    volume.write(ino, 0, &pattern(1, 3000), &|_| {}).expect("write");
    volume.sync().expect("sync");
    volume.write(ino, 0, &pattern(2, 3000), &|_| {}).expect("write");
    volume.sync().expect("sync");
    let root = volume.epochs().root().expect("a root").pointer;
    drop(volume);
    for slot in root.slots {
        disk.flip_bit(FileId::Segment(slot.segment()), slot.offset() + 7, 1);
    }
    let (volume, report) = volumes.open_reported(&storage).expect("the older state opens");
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert!(read_all(&volume, ino) == pattern(2, 3000), "what the log has is not lost");
    volume.write(ino, 0, &pattern(3, 3000), &|_| {}).expect("write");
    volume.close().expect("close");
    let volume = volumes.open(&storage).expect("reopen");
    assert_eq!(read_all(&volume, ino), pattern(3, 3000));
    check_space(&volume);
}
