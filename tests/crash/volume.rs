//! Power cuts while a volume is used: whatever of the unsynced writes reaches the disk, opening
//! finds exactly the state of the last durable epoch, or of the one that was being made durable.
//!
//! Each script works on the real filesystem over the simulated disk. Before every sync it records
//! what the whole tree looks like; a mark says that the sync returned.

use crate::common::Volumes;
use crate::harness::{Settings, enumerate};
use atrest::crypto::Cipher;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Allocate, Caller, Ino, RenameFlags, SetAttr, Tree};
use atrest::storage::sim::SimDisk;
use atrest::storage::{FileId, Storage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const ROOT: Ino = 1;
const CALLER: Caller = Caller { uid: 1000, gid: 1000, umask: 0 };

/// Everything that can be seen of a tree, by path.
type Seen = BTreeMap<String, String>;

fn look(tree: &VolumeTree) -> Result<Seen, String> {
    let mut seen = Seen::new();
    look_below(tree, ROOT, "", &mut seen)?;
    Ok(seen)
}

fn look_below(tree: &VolumeTree, dir: Ino, path: &str, seen: &mut Seen) -> Result<(), String> {
    let mut entries = Vec::new();
    let listed = tree.readdir(dir, 0, false, &mut |entry| {
        if entry.name != b"." && entry.name != b".." {
            entries.push((entry.ino, String::from_utf8_lossy(entry.name).into_owned()));
        }
        true
    });
    listed.map_err(|error| format!("readdir of {path}/: {error}"))?;
    for (ino, name) in entries {
        let path = format!("{path}/{name}");
        let failed = |error| format!("{path}: {error}");
        let found = tree.lookup(dir, name.as_bytes()).map_err(failed)?;
        if found.ino != ino {
            return Err(format!("{path}: by name inode {}, by cookie {ino}", found.ino));
        }
        let mut content = Vec::new();
        match found.kind {
            atrest::fs::Kind::File => {
                tree.read(ino, 0, found.size as usize, &mut content).map_err(failed)?;
            }
            atrest::fs::Kind::Symlink => content = tree.readlink(ino).map_err(failed)?,
            _ => {}
        }
        let xattrs = tree.listxattr(ino).map_err(failed)?;
        let digest = atrest::crypto::kdf::digest(&content);
        let line = format!(
            "{:?} {:o} {} {} {} {:?} {:?} xattrs {} content {:02x?}",
            found.kind,
            found.permissions,
            found.links,
            found.uid,
            found.size,
            found.mtime,
            found.ctime,
            String::from_utf8_lossy(&xattrs),
            &digest[..6]
        );
        seen.insert(path.clone(), line);
        if found.kind == atrest::fs::Kind::Directory {
            look_below(tree, ino, &path, seen)?;
        }
    }
    Ok(())
}

fn open_tree(volumes: &Volumes, storage: &Arc<dyn Storage>) -> Result<VolumeTree, String> {
    let volume = volumes.open(storage).map_err(|error| format!("does not open: {error}"))?;
    Ok(VolumeTree::new(volume))
}

/// What a script works with.
struct Script<'a> {
    tree: &'a VolumeTree,
    disk: &'a SimDisk,
    states: &'a Mutex<Vec<Seen>>,
}

impl Script<'_> {
    fn file(&self, parent: Ino, name: &str) -> Ino {
        let (attr, handle) =
            self.tree.create(CALLER, parent, name.as_bytes(), 0o644).expect("create");
        self.tree.release(attr.ino, handle);
        attr.ino
    }

    fn write(&self, ino: Ino, offset: u64, length: usize, byte: u8) {
        self.tree.write(ino, offset, &vec![byte; length], false).expect("write");
    }

    /// Records the state, syncs, and marks that the sync returned.
    fn sync(&self) {
        let number = {
            let mut states = self.states.lock().unwrap();
            states.push(look(self.tree).expect("the live tree is whole"));
            states.len() as u64 - 1
        };
        self.tree.sync().expect("sync");
        self.disk.mark(number);
    }
}

/// Runs a script on a new volume and checks every crash image; returns how many there were.
fn cut(name: &'static str, samples: usize, script: impl Fn(&Script)) -> usize {
    let volumes = Volumes::new(Cipher::Aes256Gcm);
    let states = Mutex::new(Vec::new());
    let prepared = Mutex::new(None::<usize>);
    let settings = Settings { samples, ..Settings::new(name) };
    let explored = enumerate(
        &settings,
        |disk| {
            let storage: Arc<dyn Storage> = disk.clone();
            disk.stop_recording();
            volumes.create(&storage);
            let tree = VolumeTree::new(volumes.open(&storage).expect("open"));
            states.lock().unwrap().push(look(&tree).expect("empty"));
            disk.start_recording();
            disk.mark(0);
            script(&Script { tree: &tree, disk, states: &states });
            *prepared.lock().unwrap() = Some(states.lock().unwrap().len());
        },
        |crash, image| {
            let storage: Arc<dyn Storage> = image.clone();
            let last = *crash.marks.last().unwrap_or(&0) as usize;
            let tree = open_tree(&volumes, &storage)?;
            let seen = look(&tree)?;
            let states = states.lock().unwrap();
            let candidates = &states[last..states.len().min(last + 2)];
            if !candidates.contains(&seen) {
                return Err(format!(
                    "after sync {last}: found\n{seen:#?}\nexpected one of\n{candidates:#?}"
                ));
            }
            let problems = volumes.open(&storage).map_err(|e| e.to_string())?.check_space();
            if !problems.is_empty() {
                return Err(problems.join("\n"));
            }
            // The older superblock is a way back, to the state before.
            let opened = volumes.open_reported(&storage).map_err(|error| error.to_string())?;
            let (volume, report) = opened;
            if !report.refused.is_empty() {
                return Ok(());
            }
            let newest = volume.epochs().superblock().sequence;
            let file = if newest % 2 == 0 { FileId::SuperA } else { FileId::SuperB };
            image.flip_bit(file, 2000, 1);
            let tree = open_tree(&volumes, &storage).map_err(|e| format!("no way back: {e}"))?;
            let seen = look(&tree).map_err(|error| format!("the way back: {error}"))?;
            let earlier = &states[last.saturating_sub(1)..states.len().min(last + 2)];
            if earlier.contains(&seen) { Ok(()) } else { Err(format!("the way back:\n{seen:#?}")) }
        },
    );
    println!("{name}: {} images at {} points", explored.images, explored.points);
    explored.images
}

#[test]
fn create_write_fsync() {
    cut("create_write_fsync", 12, |s| {
        let a = s.file(ROOT, "small");
        s.write(a, 0, 100, 1);
        s.sync();
        let b = s.file(ROOT, "pages");
        s.write(b, 0, 20_000, 2);
        s.sync();
        s.write(b, 5_000, 3_000, 3);
        s.write(a, 50, 2_000, 4);
        s.sync();
    });
}

#[test]
fn overwrite_in_place_of_durable_pages() {
    cut("overwrite", 12, |s| {
        let a = s.file(ROOT, "a");
        s.write(a, 0, 40_960, 1);
        s.sync();
        for round in 2..6 {
            s.write(a, u64::from(round) * 4096, 8192, round);
            s.sync();
        }
    });
}

#[test]
fn rename_over_a_durable_target() {
    cut("rename_over", 12, |s| {
        let target = s.file(ROOT, "target");
        s.write(target, 0, 9_000, 1);
        s.sync();
        let new = s.file(ROOT, "target.tmp");
        s.write(new, 0, 12_000, 2);
        let plain = RenameFlags::default();
        s.tree.rename(ROOT, b"target.tmp", ROOT, b"target", plain).expect("rename");
        let other = s.file(ROOT, "other");
        s.write(other, 0, 10, 3);
        s.sync();
        let dir = s.tree.mkdir(CALLER, ROOT, b"dir", 0o755).expect("mkdir").ino;
        s.tree.rename(ROOT, b"target", dir, b"moved", plain).expect("move");
        s.sync();
        let exchange = RenameFlags { exchange: true, ..plain };
        s.tree.rename(ROOT, b"other", dir, b"moved", exchange).expect("exchange");
        s.sync();
    });
}

#[test]
fn truncate_punch_and_rewrite() {
    cut("truncate", 12, |s| {
        let a = s.file(ROOT, "a");
        s.write(a, 0, 300_000, 1);
        s.sync();
        let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
        s.tree.setattr(a, &size(100_001)).expect("shrink");
        s.tree.setattr(a, &size(200_000)).expect("grow");
        s.sync();
        s.tree.setattr(a, &size(0)).expect("empty");
        s.write(a, 0, 50_000, 2);
        s.sync();
        s.tree.fallocate(a, 10_000, 20_000, Allocate::Punch).expect("punch");
        s.sync();
    });
}

#[test]
fn unlink_and_reuse_of_space() {
    cut("unlink", 10, |s| {
        let dir = s.tree.mkdir(CALLER, ROOT, b"d", 0o755).expect("mkdir").ino;
        for round in 0..5u8 {
            let a = s.file(dir, "a");
            s.write(a, 0, 30_000, round);
            s.tree.link(a, ROOT, format!("l{round}").as_bytes()).expect("link");
            s.sync();
            s.tree.unlink(dir, b"a").expect("unlink");
            s.tree.unlink(ROOT, format!("l{round}").as_bytes()).expect("unlink");
            s.sync();
        }
        s.tree.rmdir(ROOT, b"d").expect("rmdir");
        s.sync();
    });
}

#[test]
fn metadata_after_content() {
    cut("metadata", 12, |s| {
        let a = s.file(ROOT, "a");
        s.write(a, 0, 5_000, 1);
        s.sync();
        s.write(a, 0, 5_000, 2);
        let change = SetAttr { permissions: Some(0o600), uid: Some(7), ..SetAttr::default() };
        s.tree.setattr(a, &change).expect("chmod and chown");
        s.tree.setxattr(a, b"user.key", &[9; 3_000], true, false).expect("setxattr");
        s.sync();
        s.tree.symlink(CALLER, ROOT, b"link", &[b'x'; 3_000]).expect("symlink");
        s.tree.removexattr(a, b"user.key").expect("removexattr");
        s.sync();
    });
}

/// A long run over many files, so that slots are reused and the tree has several levels.
#[test]
fn many_files_over_many_epochs() {
    cut("many_files", 2, |s| {
        let mut inos = Vec::new();
        for round in 0..8u8 {
            for index in 0..12 {
                let ino = s.file(ROOT, &format!("file-{round}-{index}"));
                s.write(ino, 0, 1 + usize::from(round) * 900 + index * 300, round);
                inos.push(ino);
            }
            for (index, &ino) in inos.iter().enumerate().filter(|(index, _)| index % 3 == 0) {
                s.write(ino, (index % 5) as u64 * 1000, 500, round | 0x80);
            }
            s.sync();
        }
    });
}
