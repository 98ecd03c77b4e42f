//! Paths of inodes, and damage that is told by path while a volume is in use.

use crate::world::{CALLER, World};
use atrest::crypto::Cipher;
use atrest::format::record::{Table, key};
use atrest::fs::Tree;
use atrest::fs::volume::VolumeTree;
use log::{LevelFilter, Log, Metadata, Record};
use std::sync::Mutex;

/// Keeps everything that is logged by any test of this binary.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        self.0.lock().expect("no test panics in here").push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn every_inode_has_its_path() {
    let world = World::new(Cipher::Aes256Gcm);
    let volume = world.open();
    let path = |ino| volume.path_of(ino).map(|path| String::from_utf8(path).expect("UTF-8"));
    for known in ["/", "/deep", "/deep/deeper", "/deep/deeper/big", "/many/file 300", "/pipe"] {
        assert_eq!(path(world.ino(known)).as_deref(), Some(known));
    }
    let twice = path(world.ino("/page")).expect("a path");
    assert!(["/page", "/deep/linked"].contains(&twice.as_str()), "{twice}");
    assert_eq!(path(999_999), None);
}

#[test]
fn a_path_is_found_past_damage() {
    let world = World::new(Cipher::Aes256Gcm);
    let (many, ino) = (world.ino("/many"), world.ino("/many/file 100"));
    let cookie = world.record(&key(Table::Entry, many, b"file 100"))[8..16].to_vec();
    let cookie = u64::from_le_bytes(cookie.try_into().expect("8 bytes"));
    for lost in
        [key(Table::Cookie, many, &cookie.to_be_bytes()), key(Table::Entry, many, b"file 100")]
    {
        let leaf = world.leaf_of(&lost);
        world.destroy(&leaf);
        assert_eq!(world.open().path_of(ino).as_deref(), Some(&b"/many/file 100"[..]));
        world.destroy(&leaf);
    }
}

/// A damaged file that is read again and again is logged once, by path.
#[test]
fn reading_damage_is_logged_once_by_path() {
    log::set_logger(&LINES).expect("no other logger");
    log::set_max_level(LevelFilter::Info);
    let world = World::new(Cipher::Aes256Gcm);
    let volume = world.volumes.open(&world.storage).expect("open");
    let tree = VolumeTree::new(volume.clone());
    let made = tree.mknod(CALLER, 1, b"only in\nthis test", libc::S_IFREG | 0o600, 0);
    let ino = made.expect("mknod").ino;
    tree.write(ino, 0, &[5; 65_536], false).expect("write");
    volume.sync().expect("sync");
    for page in 3..9 {
        world.flip(volume.slot_of(ino, page).expect("map").expect("a page"));
    }
    let mut buffer = Vec::new();
    for page in (0..16).chain(0..16) {
        let read = tree.read(ino, page * 4096, 4096, false, &mut buffer);
        assert_eq!(read.is_err(), (3..9).contains(&page), "page {page}");
    }
    let lines = LINES.0.lock().expect("no test panics in there").clone();
    let ours: Vec<_> = lines.iter().filter(|line| line.contains("only in")).collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    let expected = format!("/only in\\nthis test (inode {ino}) is damaged: bytes 12288 to 16383");
    assert!(ours[0].starts_with(&expected), "{ours:?}");
}
