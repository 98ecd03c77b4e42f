//! Reading, writing, truncation, unlinked files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::mounted::Mounted;

fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

#[test]
fn contents_of_every_size_survive_a_remount() {
    let mounted = Mounted::new();
    let sizes = [0, 1, 1299, 1300, 1301, 4095, 4096, 4097, 131_072, 262_143, 262_145, 3_000_001];
    for (index, &size) in sizes.iter().enumerate() {
        fs::write(mounted.join(size.to_string()), random_bytes(index as u64, size)).unwrap();
    }
    mounted.remount();
    for (index, &size) in sizes.iter().enumerate() {
        let read = fs::read(mounted.join(size.to_string())).unwrap();
        assert!(read == random_bytes(index as u64, size), "{size} bytes read back wrong");
    }
}

#[test]
fn random_writes_match_a_copy_in_memory() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mounted = Mounted::new();
    let path = mounted.join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut expected: Vec<u8> = Vec::new();
    for _ in 0..500 {
        let offset = random.random_range(0..600_000);
        let length = random.random_range(1..20_000);
        match random.random_range(0..10) {
            0 => {
                file.set_len(offset as u64).unwrap();
                expected.resize(offset, 0);
            }
            1 => file.sync_data().unwrap(),
            _ => {
                let data = random_bytes(random.random(), length);
                file.write_all_at(&data, offset as u64).unwrap();
                expected.resize(expected.len().max(offset + length), 0);
                expected[offset..offset + length].copy_from_slice(&data);
            }
        }
    }
    assert!(fs::read(&path).unwrap() == expected, "differs before the remount");
    drop(file);
    mounted.remount();
    assert!(fs::read(&path).unwrap() == expected, "differs after the remount");
}

#[test]
fn bytes_behind_a_cut_are_zero_when_the_file_grows_again() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, vec![0xff; 10_000]).unwrap();
    mounted.remount();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4_100).unwrap();
    file.set_len(12_000).unwrap();
    drop(file);
    for moment in ["before", "after"] {
        let read = fs::read(&path).unwrap();
        assert_eq!(read.len(), 12_000);
        assert!(read[..4_100].iter().all(|&byte| byte == 0xff), "{moment} the remount");
        assert!(read[4_100..].iter().all(|&byte| byte == 0), "{moment} the remount");
        mounted.remount();
    }
}

#[test]
fn an_unlinked_file_stays_readable_while_open_and_vanishes_after() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(&random_bytes(1, 100_000)).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b"more").unwrap();
    let mut read = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut read).unwrap();
    assert!(read[..100_000] == random_bytes(1, 100_000) && &read[100_000..] == b"more");
    drop(file);
    mounted.remount();
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
}

#[test]
fn appending_writers_do_not_overwrite_each_other() {
    let mounted = Mounted::new();
    let path = mounted.join("log");
    std::thread::scope(|scope| {
        for letter in [b'a', b'b', b'c', b'd'] {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
                for _ in 0..200 {
                    file.write_all(&[letter; 97]).unwrap();
                }
            });
        }
    });
    mounted.remount();
    let read = fs::read(&path).unwrap();
    assert_eq!(read.len(), 4 * 200 * 97);
    assert!(read.chunks(97).all(|record| record.iter().all(|byte| *byte == record[0])));
}

#[test]
fn create_new_refuses_and_truncate_empties() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, "contents").unwrap();
    assert_eq!(File::create_new(&path).unwrap_err().raw_os_error(), Some(libc::EEXIST), "O_EXCL");
    drop(File::create(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 0, "O_TRUNC");
}

#[test]
fn direct_and_buffered_io_see_each_other() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, random_bytes(3, 65_536)).unwrap();
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    // Aligned by hand: O_DIRECT may ask for it.
    let mut buffer = vec![0_u8; 65_536 + 4_096];
    let start = buffer.as_ptr().align_offset(4_096);
    direct.read_exact_at(&mut buffer[start..start + 65_536], 0).unwrap();
    assert!(buffer[start..start + 65_536] == random_bytes(3, 65_536));
}
