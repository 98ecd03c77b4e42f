//! Each test states one assumption about the medium and looks whether the simulation takes all the
//! liberties that it leaves.

use super::*;
use crate::storage::OsStorage;
use std::fmt::Debug;

const FILE: FileId = FileId::Segment(3);

/// A disk with `FILE` durable and full of ones.
fn disk(bytes: usize) -> SimDisk {
    let disk = SimDisk::new();
    disk.create(FILE).unwrap();
    disk.sync_directory().unwrap();
    disk.write_at(FILE, 0, &vec![1; bytes]).unwrap();
    disk.sync(FILE).unwrap();
    disk
}

fn content(disk: &SimDisk, file: FileId) -> Option<Vec<u8>> {
    let mut bytes = vec![0; disk.length(file).unwrap()? as usize];
    disk.read_at(file, 0, &mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn what_was_synced_survives_every_crash() {
    let disk = disk(10_000);
    assert!(disk.pending().is_empty());
    assert_eq!(content(&disk.after_crash([]), FILE), Some(vec![1; 10_000]));
}

#[test]
fn unsynced_write_is_kept_lost_or_torn_and_reads_back_before_the_crash() {
    let disk = disk(8192);
    disk.write_at(FILE, 100, &[2; 2000]).unwrap();
    assert_eq!(disk.pending().len(), 1);
    let written = content(&disk, FILE).unwrap();
    assert_eq!(content(&disk.after_crash([Fate::Kept]), FILE).unwrap(), written);
    assert_eq!(content(&disk.after_crash([Fate::Lost]), FILE).unwrap(), vec![1; 8192]);
    let mut inside_sector = false;
    let mut images = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let torn = content(&disk.after_crash([Fate::Torn(seed)]), FILE).unwrap();
        assert_eq!(torn, content(&disk.after_crash([Fate::Torn(seed)]), FILE).unwrap());
        assert!(torn[..100].iter().chain(&torn[2100..]).all(|byte| *byte == 1));
        inside_sector |= torn[512..1024].windows(2).any(|pair| pair[0] != pair[1]);
        images.insert(torn);
    }
    assert!(inside_sector, "sectors are not atomic");
    assert!(images.len() > 32);
}

#[test]
fn later_write_can_survive_without_the_earlier_one() {
    let disk = disk(4096);
    disk.write_at(FILE, 0, &[2; 512]).unwrap();
    disk.write_at(FILE, 1024, &[3; 512]).unwrap();
    let after = content(&disk.after_crash([Fate::Lost, Fate::Kept]), FILE).unwrap();
    assert_eq!((after[0], after[1024]), (1, 3));
}

#[test]
fn length_can_survive_without_the_data_and_reads_as_zeros() {
    let disk = disk(512);
    disk.write_at(FILE, 512, &[2; 512]).unwrap();
    let mut lengths = std::collections::BTreeSet::new();
    let mut zeros = false;
    for seed in 0..64 {
        let torn = content(&disk.after_crash([Fate::Torn(seed)]), FILE).unwrap();
        zeros |= torn.len() == 1024 && torn[512..].iter().all(|byte| *byte == 0);
        lengths.insert(torn.len());
    }
    assert!(zeros);
    assert!(lengths.contains(&512) && lengths.contains(&1024));
}

#[test]
fn file_needs_a_sync_of_the_directory_and_a_deletion_does() {
    let disk = disk(100);
    let new = FileId::Log;
    disk.create(new).unwrap();
    disk.write_at(new, 0, b"data").unwrap();
    disk.sync(new).unwrap();
    assert_eq!(content(&disk.after_crash([Fate::Lost]), new), None);
    assert_eq!(content(&disk.after_crash([Fate::Kept]), new), Some(b"data".to_vec()));
    disk.sync_directory().unwrap();
    assert_eq!(content(&disk.after_crash([]), new), Some(b"data".to_vec()));

    disk.delete(FILE).unwrap();
    assert_eq!(disk.length(FILE).unwrap(), None);
    assert_eq!(content(&disk.after_crash([Fate::Lost]), FILE), Some(vec![1; 100]));
    assert_eq!(content(&disk.after_crash([Fate::Kept]), FILE), None);
    // Made anew, it is another file: of the old one nothing shines through.
    disk.create(FILE).unwrap();
    let fates = [Fate::Kept, Fate::Kept];
    assert_eq!(content(&disk.after_crash(fates), FILE), Some(Vec::new()));
    assert_eq!(content(&disk.after_crash([Fate::Lost, Fate::Lost]), FILE), Some(vec![1; 100]));
    disk.sync_directory().unwrap();
    assert_eq!(content(&disk.after_crash([]), FILE), Some(Vec::new()));
}

#[test]
fn config_is_old_or_new_and_durable_at_once() {
    let disk = SimDisk::new();
    disk.replace_config(b"one").unwrap();
    assert_eq!(disk.after_crash([]).read_config().unwrap(), b"one");
    disk.replace_config(b"two").unwrap();
    assert_eq!(disk.after_crash([]).read_config().unwrap(), b"two");
}

#[test]
fn failed_sync_loses_what_a_later_one_says_it_wrote() {
    let disk = disk(4096);
    disk.fail_sync(FILE, 1, Fate::Lost);
    disk.sync(FILE).unwrap();
    disk.write_at(FILE, 0, &[2; 512]).unwrap();
    assert_eq!(disk.sync(FILE).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(content(&disk, FILE).unwrap()[0], 2, "the cache still has it");
    disk.write_at(FILE, 512, &[3; 512]).unwrap();
    disk.sync(FILE).unwrap();
    let after = content(&disk.after_crash([]), FILE).unwrap();
    assert_eq!((after[0], after[512]), (1, 3));
    disk.drop_clean_cache();
    assert_eq!(content(&disk, FILE).unwrap(), after);
}

#[test]
fn blown_fuse_stops_everything_and_the_replay_ends_there() {
    let disk = disk(512);
    let operations = disk.operations();
    disk.set_fuse(operations + 1);
    disk.write_at(FILE, 0, b"done").unwrap();
    let crashed = disk.sync(FILE).unwrap_err();
    assert!(crashed.get_ref().is_some_and(|inner| inner.is::<Crashed>()));
    assert!(disk.read_at(FILE, 0, &mut [0]).is_err());
    let mut replay = disk.replay();
    while replay.step().is_some() {}
    assert_eq!(replay.position() as u64, operations + 1);
    assert_eq!(replay.pending().len(), 1);
}

#[test]
fn replay_gives_the_images_that_the_disk_would_have_given() {
    let disk = disk(512);
    disk.mark(7);
    disk.write_at(FILE, 0, &[2; 512]).unwrap();
    let fates = [Fate::Torn(5)];
    let expected = content(&disk.after_crash(fates), FILE);
    disk.sync(FILE).unwrap();
    disk.mark(8);
    let mut replay = disk.replay();
    while replay.pending().is_empty() || replay.marks().is_empty() {
        replay.step().unwrap();
    }
    assert_eq!(replay.marks(), [7]);
    assert_eq!(content(&replay.after_crash(fates), FILE), expected);
}

#[test]
fn forks_share_nothing_that_is_written_to_later() {
    let one = disk(8192);
    let two = one.fork();
    two.write_at(FILE, 0, &[9; 100]).unwrap();
    one.write_at(FILE, 4096, &[8; 100]).unwrap();
    assert_eq!(content(&one, FILE).unwrap()[0], 1);
    assert_eq!(content(&two, FILE).unwrap()[4096], 1);
}

#[test]
fn full_disk_takes_overwrites_and_nothing_else() {
    let disk = disk(0);
    disk.set_capacity(3 * 4096);
    disk.allocate(FILE, 0, 8192).unwrap();
    assert_eq!(disk.allocated_bytes(), 8192);
    disk.write_at(FILE, 0, &[2; 8192]).unwrap();
    assert_eq!(disk.allocated_bytes(), 8192);
    disk.write_at(FILE, 1 << 30, b"far away").unwrap();
    assert_eq!(disk.capacity().unwrap().free_bytes, 0);
    let full = disk.write_at(FILE, 8192, b"x").unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    disk.write_at(FILE, 100, &[3; 5000]).unwrap();
    disk.punch(FILE, 0, 4096).unwrap();
    assert_eq!(disk.allocated_bytes(), 8192);
    disk.write_at(FILE, 8192, b"x").unwrap();
    disk.set_length(FILE, 0).unwrap();
    assert_eq!(disk.allocated_bytes(), 0);
}

#[test]
fn cut_off_and_punched_bytes_read_as_zeros() {
    let disk = disk(10_000);
    disk.set_length(FILE, 5000).unwrap();
    disk.set_length(FILE, 10_000).unwrap();
    disk.punch(FILE, 100, 4500).unwrap();
    let mut expected = vec![0; 10_000];
    expected[..100].fill(1);
    expected[4600..5000].fill(1);
    assert_eq!(content(&disk, FILE).unwrap(), expected);
}

#[test]
fn bad_sectors_and_flipped_bits_are_where_they_were_put() {
    let disk = disk(4096);
    disk.fail_reads(FILE, 512..1024);
    disk.read_at(FILE, 0, &mut [0; 512]).unwrap();
    disk.read_at(FILE, 1024, &mut [0; 512]).unwrap();
    let bad = disk.read_at(FILE, 1023, &mut [0; 2]).unwrap_err();
    assert_eq!(bad.raw_os_error(), Some(libc::EIO));
    disk.clear_faults();
    disk.flip_bit(FILE, 700, 3);
    assert_eq!(content(&disk, FILE).unwrap()[700], 1 ^ 8);
    assert_eq!(content(&disk.after_crash([]), FILE).unwrap()[700], 1 ^ 8);
}

/// One random operation; what it returned, as text.
fn step(storage: &dyn Storage, random: &mut Random) -> String {
    fn outcome<T: Debug>(result: io::Result<T>) -> String {
        format!("{:?}", result.map_err(|error| error.kind()))
    }
    let file = [FileId::Log, FileId::Segment(0), FileId::Segment(1)][random.below(3) as usize];
    let (offset, bytes) = (random.below(20_000), 1 + random.below(9_000));
    let fill = random.next() as u8;
    match random.below(12) {
        0 | 1 => outcome(storage.create(file)),
        2 if fill < 100 => outcome(storage.delete(file)),
        3 => outcome(storage.set_length(file, offset)),
        4 => outcome(storage.allocate(file, offset, bytes)),
        5 => outcome(storage.punch(file, offset, bytes)),
        6 => outcome(storage.sync(file)),
        7 => outcome(storage.segments()),
        8 => outcome(storage.length(file)),
        9 => {
            let mut buffer = vec![0; bytes as usize];
            outcome(storage.read_at(file, offset, &mut buffer).map(|()| buffer))
        }
        _ => outcome(storage.write_at(file, offset, &vec![fill; bytes as usize])),
    }
}

/// The simulation and a real directory give the same answers to the same random operations.
#[test]
fn simulation_behaves_as_a_real_directory() {
    let directory = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let real = OsStorage::create(&directory.path().join(seed.to_string())).unwrap();
        let simulated = SimDisk::new();
        let (one, two) = (&mut Random::new(seed), &mut Random::new(seed));
        for number in 0..300 {
            let (expected, found) = (step(&real, one), step(&simulated, two));
            assert!(expected == found, "seed {seed}, operation {number}");
        }
    }
}
