//! Contents that were written at random and are read in sequence: they are brought together, and
//! stay what they were.

use super::{check_space, new_file, pattern, read_all, setup};
use atrest::crypto::Cipher;
use atrest::volume::Volume;

const PAGE: u64 = 4096;
const PAGES: u64 = 2048;

/// In how many places the pages of a file are.
fn places(volume: &Volume, ino: u64) -> usize {
    let slot = |page| volume.slot_of(ino, page).expect("a map").expect("a page").0;
    let slots: Vec<u64> = (0..PAGES).map(slot).collect();
    slots.chunk_by(|a, b| a + 1 == *b).count()
}

/// Writes a file, and over every third page of it, in another order. Returns what it holds then.
fn scatter(volume: &Volume, ino: u64) -> Vec<u8> {
    let mut data = pattern(ino, (PAGES * PAGE) as usize);
    volume.write(ino, 0, &data, &|_| {}).expect("write");
    volume.sync().expect("sync");
    for step in 0..PAGES {
        let page = step * 1021 % PAGES;
        if page % 3 == 0 {
            let new = pattern(1000 + page, PAGE as usize);
            volume.write(ino, page * PAGE, &new, &|_| {}).expect("write");
            data[(page * PAGE) as usize..][..PAGE as usize].copy_from_slice(&new);
        }
    }
    volume.sync().expect("sync");
    data
}

fn read_in_pieces(volume: &Volume, ino: u64, bytes: u64) {
    let mut buffer = Vec::new();
    for offset in (0..PAGES * PAGE).step_by(bytes as usize) {
        volume.read(ino, offset, bytes as usize, &mut buffer).expect("read");
    }
}

#[test]
fn what_is_read_in_sequence_is_brought_together() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let (volumes, _, storage) = setup(cipher);
        let (volume, _) = volumes.open_laying_out(&storage, false).expect("open");
        let ino = new_file(&volume);
        let data = scatter(&volume, ino);
        let before = places(&volume, ino);
        assert!(before > 1000, "{before} places");
        read_in_pieces(&volume, ino, PAGE);
        assert_eq!(volume.defragment(u64::MAX), 0, "pages one by one say nothing of an order");
        read_in_pieces(&volume, ino, 1 << 20);
        assert_eq!(volume.defragment(1), 256, "a piece at a time");
        assert_eq!(volume.defragment(u64::MAX), PAGES - 256);
        let after = places(&volume, ino);
        assert!(after <= PAGES as usize / 256, "{after} places");
        assert!(read_all(&volume, ino) == data, "{cipher:?}");
        read_in_pieces(&volume, ino, 1 << 20);
        assert_eq!(volume.defragment(u64::MAX), 0, "once is enough");
        volume.close().expect("close");
        drop(volume);
        let volume = volumes.open(&storage).expect("reopen");
        assert!(read_all(&volume, ino) == data, "{cipher:?}, after opening again");
        check_space(&volume);
    }
}

/// Writers, truncations and deletions beside it win.
#[test]
fn beside_writers_nothing_is_lost() {
    let (volumes, _, storage) = setup(Cipher::Aes256Gcm);
    let (volume, _) = volumes.open_laying_out(&storage, false).expect("open");
    let inos: Vec<u64> = (0..3).map(|_| new_file(&volume)).collect();
    let mut contents: Vec<Vec<u8>> = inos.iter().map(|&ino| scatter(&volume, ino)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let moved = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moved = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                inos.iter().for_each(|&ino| read_in_pieces(&volume, ino, 1 << 18));
                moved += volume.defragment(u64::MAX);
            }
            moved
        });
        let writers = inos.iter().zip(&mut contents).map(|(&ino, content)| {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..400u64 {
                    let page = round * 389 % (PAGES - 3);
                    let data = pattern(ino * 1000 + round, 3 * PAGE as usize);
                    volume.write(ino, page * PAGE, &data, &|_| {}).expect("write");
                    content[(page * PAGE) as usize..][..data.len()].copy_from_slice(&data);
                    if round % 100 == 99 {
                        let bytes = (PAGES - round) * PAGE;
                        volume.truncate(ino, bytes, &|_| {}).expect("truncate");
                        volume.truncate(ino, PAGES * PAGE, &|_| {}).expect("truncate");
                        content[bytes as usize..].fill(0);
                    }
                }
            })
        });
        writers.collect::<Vec<_>>().into_iter().for_each(|writer| writer.join().expect("no panic"));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        mover.join().expect("no panic")
    });
    assert!(moved > 0, "something was moved beside them");
    for (&ino, content) in inos.iter().zip(&contents) {
        assert!(read_all(&volume, ino) == *content, "inode {ino}");
    }
    volume.close().expect("close");
    drop(volume);
    let volume = volumes.open(&storage).expect("reopen");
    for (&ino, content) in inos.iter().zip(&contents) {
        assert!(read_all(&volume, ino) == *content, "inode {ino}, after opening again");
    }
    check_space(&volume);
}
