//! What is read in sequence is fetched before it is asked for, and is what was written last.

use super::{new_file, pattern, read_all, setup};
use atrest::crypto::Cipher;
use atrest::storage::FileId;
use atrest::storage::sim::Random;
use atrest::volume::Volume;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
const PIECE: u64 = 256 << 10;
const PIECES: u64 = 16;

fn written(volume: &Volume) -> (u64, Vec<u8>) {
    let ino = new_file(volume);
    let data = pattern(ino, (PIECES * PIECE) as usize);
    volume.write(ino, 0, &data, &|_| {}).expect("write");
    volume.sync().expect("sync");
    (ino, data)
}

/// The piece after two that were read is read from the disk before anybody asks for it: breaking it
/// there afterwards is not noticed.
#[test]
fn the_next_piece_is_there_already() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let (volumes, disk, storage) = setup(cipher);
        let volume = volumes.open(&storage).expect("open");
        let (ino, data) = written(&volume);
        volume.start();
        let mut buffer = Vec::new();
        let fetched = || volume.read_ahead_bytes();
        for piece in 0..2 {
            assert_eq!(fetched(), 0, "one read is no sequence");
            volume.read(ino, piece * PIECE, PIECE as usize, &mut buffer).expect("read");
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while fetched() < 2 * PIECE {
            assert!(Instant::now() < deadline, "nothing is fetched");
            std::thread::sleep(Duration::from_millis(1));
        }
        for page in 0..PIECES * PIECE / PAGE {
            let slot = volume.slot_of(ino, page).expect("a map").expect("a page");
            disk.flip_bit(FileId::Segment(slot.segment()), slot.offset(), 0);
        }
        let piece = &data[2 * PIECE as usize..][..PIECE as usize];
        volume.read(ino, 2 * PIECE, PIECE as usize, &mut buffer).expect("it was fetched");
        assert!(buffer == piece, "{cipher:?}");
        let again = volume.read(ino, 2 * PIECE, PIECE as usize, &mut buffer);
        assert!(again.is_err() || buffer != piece, "it was not read from the disk again");
    }
}

/// Whatever happens between fetching and asking, a reader sees what was written last.
#[test]
fn a_reader_sees_what_was_written_last() {
    for seed in 0..8 {
        let (volumes, _, storage) = setup(Cipher::Aes256Xts);
        let volume = volumes.open(&storage).expect("open");
        volume.start();
        let (ino, mut data) = written(&volume);
        let mut random = Random::new(seed);
        let mut buffer = Vec::new();
        for round in 0..400 {
            let at = (round % PIECES * PIECE) as usize;
            volume.read(ino, at as u64, PIECE as usize, &mut buffer).expect("read");
            assert!(
                buffer == data[at..data.len().min(at + PIECE as usize)],
                "seed {seed}, {round}"
            );
            change(&volume, ino, &mut data, round, &mut random);
        }
        assert!(read_all(&volume, ino) == data, "seed {seed}");
        volume.close().expect("close");
    }
}

/// Overwrites a bit of what comes next, cuts it off, moves it or makes it durable.
fn change(volume: &Volume, ino: u64, data: &mut [u8], round: u64, random: &mut Random) {
    let next = (round + 1 + random.below(3)) % PIECES * PIECE;
    match random.below(8) {
        0 => volume.sync().expect("sync"),
        1 => {
            volume.defragment(u64::MAX);
        }
        2 => {
            volume.truncate(ino, next, &|_| {}).expect("cut");
            volume.truncate(ino, data.len() as u64, &|_| {}).expect("grow");
            data[next as usize..].fill(0);
        }
        3 => std::thread::sleep(Duration::from_millis(1)),
        _ => {
            let at = next + random.below(PIECE);
            let new = pattern(round, 1 + random.below(3 * PAGE) as usize);
            let new = &new[..new.len().min(data.len() - at as usize)];
            volume.write(ino, at, new, &|_| {}).expect("write");
            data[at as usize..][..new.len()].copy_from_slice(new);
        }
    }
}
