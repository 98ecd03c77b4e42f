//! Crashes, tampering, concurrency and limits of the store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::record::BLOCK_BYTES;
use super::*;
use crate::crypto::random;

const VAULT: VolumeId = VolumeId([7; 16]);

/// A master key that can be had again and again.
struct Master([u8; 32]);

impl Master {
    fn draw() -> Self {
        let mut bytes = [0; 32];
        random::fill(&mut bytes);
        Self(bytes)
    }

    fn secret(&self) -> Secret {
        Secret::from_fn(32, |bytes| bytes.copy_from_slice(&self.0))
    }
}

type State = BTreeMap<String, Vec<u8>>;

fn state(store: &Store) -> State {
    let keys = store.keys("", None, usize::MAX);
    let value = |key: &String| store.get(key).expect("it opens").expect("it is there").to_vec();
    keys.iter().map(|key| (key.clone(), value(key))).collect()
}

fn put(store: &Store, key: &str, value: &[u8]) {
    let done = store.change::<_, StoreError>(|change| {
        change.put(key, Zeroizing::new(value.to_vec()));
        Ok(())
    });
    done.expect("the disk works");
}

/// A store with a history: a snapshot, then changes, of several entries and of several blocks.
/// Returns its file, and after which length of it there is which state.
fn history(master: &Master) -> (tempfile::TempDir, Vec<(u64, State)>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::create(directory.path(), master.secret(), VAULT).expect("writable");
    let length = || std::fs::metadata(directory.path().join("state")).expect("it is there").len();
    for number in 0..20 {
        put(&store, &format!("old/{number}"), &[number; 300]);
    }
    store.compact().expect("the disk works");
    let mut states = vec![(length(), state(&store))];
    for number in 0..5u8 {
        let done = store.change::<_, StoreError>(|change| {
            change.put(&format!("new/{number}"), Zeroizing::new(vec![number; 700]));
            change.put("latest", Zeroizing::new(vec![number]));
            change.remove(&format!("old/{number}"));
            Ok(())
        });
        done.expect("the disk works");
        states.push((length(), state(&store)));
    }
    (directory, states)
}

fn open(directory: &Path, master: &Master) -> Result<Store, StoreError> {
    Store::open(directory, master.secret(), VAULT)
}

/// Opens a copy of a directory whose `state` is `bytes`.
fn open_bytes(bytes: &[u8], master: &Master) -> Result<State, StoreError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("state"), bytes).expect("writable");
    let opened = open(directory.path(), master)?;
    let found = state(&opened);
    // What was opened goes on: a change is there after the next opening.
    put(&opened, "after", b"the crash");
    drop(opened);
    let again = state(&open(directory.path(), master)?);
    assert_eq!(again.get("after").map(Vec::as_slice), Some(&b"the crash"[..]));
    assert_eq!(again.len(), found.len() + 1);
    Ok(found)
}

/// The file cut at every byte after the snapshot is the state of the last whole record; cut in the
/// snapshot it is refused.
#[test]
fn cut_anywhere() {
    let master = Master::draw();
    let (directory, states) = history(&master);
    let bytes = std::fs::read(directory.path().join("state")).expect("readable");
    let snapshot = states[0].0 as usize;
    for length in (0..snapshot).step_by(97).chain([snapshot - 1]) {
        let opened = open_bytes(&bytes[..length], &master);
        assert!(matches!(opened, Err(StoreError::Tampered { .. })), "cut to {length}");
    }
    let mut count = 0;
    for length in snapshot..=bytes.len() {
        // All cuts at the ends of records and blocks, and a share of those in between.
        if length % BLOCK_BYTES > 1 && length % 41 != 0 {
            continue;
        }
        let expected = states.iter().rev().find(|(end, _)| *end <= length as u64);
        let expected = &expected.expect("at least the snapshot").1;
        let found = open_bytes(&bytes[..length], &master);
        assert_eq!(&found.expect("a crash leaves this"), expected, "cut to {length}");
        count += 1;
    }
    assert!(count > 40, "{count} cuts");
}

/// Every subset of the blocks of the last record is lost: the record is there whole or not at all.
#[test]
fn lost_blocks() {
    let master = Master::draw();
    let (directory, states) = history(&master);
    let bytes = std::fs::read(directory.path().join("state")).expect("readable");
    let start = states[states.len() - 2].0 as usize;
    let blocks = (bytes.len() - start) / BLOCK_BYTES;
    assert!(blocks >= 2, "the record has several blocks");
    for subset in 0..1u32 << blocks {
        let mut image = bytes.clone();
        for block in (0..blocks).filter(|block| subset & 1 << block == 0) {
            image[start + block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0);
        }
        let whole = subset + 1 == 1 << blocks;
        let expected = &states[states.len() - if whole { 1 } else { 2 }].1;
        let found = open_bytes(&image, &master).expect("a crash leaves this");
        assert_eq!(&found, expected, "blocks {subset:b}");
    }
}

/// Every byte that is flipped is noticed when the file is opened.
#[test]
fn flipped_bytes() {
    let master = Master::draw();
    let (directory, _) = history(&master);
    let mut bytes = std::fs::read(directory.path().join("state")).expect("readable");
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("state");
    for at in 0..bytes.len() {
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).expect("writable");
        let opened = open(place.path(), &master);
        assert!(matches!(opened, Err(StoreError::Tampered { .. })), "byte {at}");
        bytes[at] ^= 1 << (at % 8);
    }
    std::fs::write(&path, &bytes).expect("writable");
    assert!(open(place.path(), &master).is_ok(), "the bytes as they were");
}

/// Records that are exchanged, left out, or put back from before the file was written anew are
/// refused; so is another vault's file, and another key.
#[test]
fn moved_records() {
    let master = Master::draw();
    let (directory, states) = history(&master);
    let bytes = std::fs::read(directory.path().join("state")).expect("readable");
    let record = |n: usize| bytes[states[n - 1].0 as usize..states[n].0 as usize].to_vec();
    let start = bytes[..states[0].0 as usize].to_vec();
    let whole = |parts: &[Vec<u8>]| [std::slice::from_ref(&start), parts].concat().concat();
    for parts in [
        vec![record(2), record(1)],
        vec![record(2)],
        vec![record(1), record(1)],
        vec![record(1), record(3)],
    ] {
        let opened = open_bytes(&whole(&parts), &master);
        assert!(matches!(opened, Err(StoreError::Tampered { .. })));
    }
    let store = open(directory.path(), &master).expect("it is as it was");
    store.compact().expect("the disk works");
    put(&store, "latest", b"anew");
    drop(store);
    let path = directory.path().join("state");
    let mut mixed = std::fs::read(&path).expect("readable");
    mixed.extend(record(5));
    let opened = open_bytes(&mixed, &master);
    assert!(matches!(opened, Err(StoreError::Tampered { .. })));
    let other = Store::open(directory.path(), Master::draw().secret(), VAULT);
    assert!(matches!(other, Err(StoreError::Tampered { offset: 0 })));
    let other = Store::open(directory.path(), master.secret(), VolumeId([8; 16]));
    assert!(matches!(other, Err(StoreError::Tampered { offset: 0 })));
}

/// What is changed under an open store is noticed when it is read.
#[test]
fn changed_while_open() {
    let master = Master::draw();
    let (directory, states) = history(&master);
    let store = open(directory.path(), &master).expect("it is as it was");
    let path = directory.path().join("state");
    let mut bytes = std::fs::read(&path).expect("readable");
    let at = states[0].0 as usize + 60;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).expect("writable");
    assert!(matches!(store.get("new/0"), Err(StoreError::Tampered { .. })));
    assert!(store.get("new/1").is_ok(), "another record");
}

/// A change that is given up changes nothing, and what it read before is what it changes.
#[test]
fn given_up() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::create(directory.path(), Master::draw().secret(), VAULT).expect("writable");
    put(&store, "a", b"1");
    let sequence = store.sequence();
    let given_up = store.change(|change| {
        change.put("a", Zeroizing::new(b"2".to_vec()));
        assert_eq!(change.get("a").expect("readable").expect("put").as_slice(), b"2");
        assert!(change.has("a"));
        change.remove("a");
        assert!(!change.has("a"));
        Err::<(), _>(StoreError::Full)
    });
    assert!(matches!(given_up, Err(StoreError::Full)));
    assert_eq!(store.get("a").expect("readable").expect("there").as_slice(), b"1");
    assert_eq!(store.sequence(), sequence);
    let large = store.change::<_, StoreError>(|change| {
        change.put("b", Zeroizing::new(vec![0; record::RECORD_BYTES_MAX]));
        Ok(())
    });
    assert!(matches!(large, Err(StoreError::TooLarge)));
    assert_eq!(store.keys("", None, 9), ["a"]);
}

/// Threads that count together, beside readers and rewriting, miss nothing; and it is all there
/// after opening again.
#[test]
fn at_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let master = Master::draw();
    let store = Store::create(directory.path(), master.secret(), VAULT).expect("writable");
    let store = Arc::new(store);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..50u32 {
                    let done = store.change::<_, StoreError>(|change| {
                        let count: u32 = change.get_json("count")?.unwrap_or(0);
                        change.put_json("count", &(count + 1));
                        change.put_json(&format!("own/{thread}"), &round);
                        Ok(())
                    });
                    done.expect("the disk works");
                    if round % 20 == thread {
                        store.compact().expect("the disk works");
                    }
                }
            });
            scope.spawn(move || {
                let mut last = 0;
                for _ in 0..300 {
                    let count = store.get_json("count").expect("readable").unwrap_or(0);
                    assert!(count >= last, "a change that was seen is gone");
                    last = count;
                }
            });
        }
    });
    assert_eq!(store.get_json("count").expect("readable"), Some(200u32));
    let before = state(&store);
    drop(store);
    assert_eq!(state(&open(directory.path(), &master).expect("as it was")), before);
}

/// The file does not grow with changes, and what is removed is not in it after `compact`.
#[test]
fn bounded_on_disk() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::create(directory.path(), Master::draw().secret(), VAULT).expect("writable");
    let length = || std::fs::metadata(directory.path().join("state")).expect("there").len();
    for _ in 0..40 {
        put(&store, "large", &vec![1; 100_000]);
        assert!(length() < 2 * COMPACT_BYTES_MIN, "{} bytes", length());
    }
    let done = store.change::<_, StoreError>(|change| {
        change.remove("large");
        Ok(())
    });
    done.expect("the disk works");
    store.compact().expect("the disk works");
    assert_eq!(length(), BLOCK_BYTES as u64);
}

/// What a crash left while the file was written anew does not get in the way.
#[test]
fn left_over() {
    let master = Master::draw();
    let (directory, states) = history(&master);
    std::fs::write(directory.path().join("state.new"), b"half").expect("writable");
    let store = open(directory.path(), &master).expect("as it was");
    assert_eq!(state(&store), states.last().expect("some").1);
    store.compact().expect("the disk works");
    assert_eq!(state(&store), states.last().expect("some").1);
    assert!(!directory.path().join("state.new").exists());
}

/// Nothing that is stored can be read in the file.
#[test]
fn sealed_at_rest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::create(directory.path(), Master::draw().secret(), VAULT).expect("writable");
    put(&store, "secret/with-a-name", b"the value of the secret");
    let bytes = std::fs::read(directory.path().join("state")).expect("readable");
    for text in ["with-a-name", "the value"] {
        assert!(!bytes.windows(text.len()).any(|part| part == text.as_bytes()), "{text}");
    }
}

/// Pages of keys.
#[test]
fn listing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::create(directory.path(), Master::draw().secret(), VAULT).expect("writable");
    for key in ["a/1", "b/1", "b/2", "b/3", "c/1"] {
        put(&store, key, b"");
    }
    assert_eq!(store.keys("b/", None, 2), ["b/1", "b/2"]);
    assert_eq!(store.keys("b/", Some("b/2"), 2), ["b/3"]);
    assert_eq!(store.keys("b/", Some("b/3"), 2), [""; 0]);
    assert_eq!(store.keys("b/", Some("a/9"), 1), ["b/1"], "a stranger's token");
}
