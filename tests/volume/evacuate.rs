//! Nearly empty segments: what is in them moves elsewhere, and their space comes back.

use super::{check_space, new_file, pattern, read_all, setup};
use atrest::crypto::Cipher;
use atrest::storage::FileId;

const PAGE: u64 = 4096;

/// One page of every sixteen stays, so that no megabyte of the segment is free.
#[test]
fn a_sparse_segment_is_emptied() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let (volumes, disk, storage) = setup(cipher);
        let volume = volumes.open(&storage).expect("open");
        let ino = new_file(&volume);
        let mut data = pattern(1, 24 << 20);
        volume.write(ino, 0, &data, &|_| {}).expect("write");
        volume.sync().expect("sync");
        let segment = volume.slot_of(ino, 0).expect("map").expect("a page").segment();
        for page in (0..data.len() as u64 / PAGE).filter(|page| page % 16 != 3) {
            volume.punch(ino, page * PAGE, PAGE, &|_| {}).expect("punch");
            data[(page * PAGE) as usize..][..PAGE as usize].fill(0);
        }
        for _ in 0..3 {
            volume.epochs().commit(&force()).expect("commit");
        }
        let before = disk.allocated_bytes();
        let moved = volume.evacuate(segment).expect("evacuate");
        assert_eq!(moved, data.len() as u64 / PAGE / 16);
        assert!(read_all(&volume, ino) == data, "nothing else has changed");
        let used = volume.epochs().space.segments().into_iter().find(|(n, _)| *n == segment);
        assert_eq!(used, Some((segment, 0)), "nothing is left there");
        volume.epochs().space.punch_everywhere();
        assert!(disk.allocated_bytes() <= before, "moving takes no space for good");
        volume.close().expect("close");
        let volume = volumes.open(&storage).expect("reopen");
        assert!(read_all(&volume, ino) == data, "{cipher:?}");
        check_space(&volume);
        drop(volume);
        storage.delete(FileId::Segment(segment)).expect("delete");
        let volume = volumes.open(&storage).expect("open without the segment");
        assert!(read_all(&volume, ino) == data, "nothing refers to the segment");
    }
}

/// Writers and truncations beside the evacuation win.
#[test]
fn evacuation_beside_writers_loses_nothing() {
    let (volumes, _, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let inos: Vec<u64> = (0..4).map(|_| new_file(&volume)).collect();
    for &ino in &inos {
        volume.write(ino, 0, &pattern(ino, 4 << 20), &|_| {}).expect("write");
    }
    volume.sync().expect("sync");
    let segment = volume.slot_of(inos[0], 0).expect("map").expect("a page").segment();
    std::thread::scope(|scope| {
        let evacuate = scope.spawn(|| (0..6).try_for_each(|_| volume.evacuate(segment).map(drop)));
        for &ino in &inos {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..60u64 {
                    let page = (round * 37) % 1000;
                    let data = pattern(ino * 1000 + round, 3 * PAGE as usize);
                    volume.write(ino, page * PAGE, &data, &|_| {}).expect("write");
                    if round % 20 == 19 {
                        volume.truncate(ino, (1024 - round) * PAGE, &|_| {}).expect("truncate");
                    }
                }
            });
        }
        evacuate.join().expect("no panic").expect("evacuate");
    });
    for &ino in &inos {
        let mut expected = pattern(ino, 4 << 20);
        for round in 0..60u64 {
            let at = ((round * 37) % 1000 * PAGE) as usize;
            let data = pattern(ino * 1000 + round, 3 * PAGE as usize);
            expected.resize(expected.len().max(at + data.len()), 0);
            expected[at..at + data.len()].copy_from_slice(&data);
            if round % 20 == 19 {
                expected.resize(((1024 - round) * PAGE) as usize, 0);
            }
        }
        assert!(read_all(&volume, ino) == expected, "inode {ino}");
    }
    volume.close().expect("close");
    check_space(&volumes.open(&storage).expect("reopen"));
}

fn force() -> atrest::volume::CommitOptions {
    atrest::volume::CommitOptions { force: true, ..Default::default() }
}
