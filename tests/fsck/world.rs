//! A volume with one of everything, ways to damage it, and ways to look at it afterwards.

use crate::common::Volumes;
use atrest::crypto::{Cipher, kdf};
use atrest::epoch::{Epochs, OpenOptions};
use atrest::format::Slot;
use atrest::format::node::Node;
use atrest::format::record::Key;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Allocate, Caller, RenameFlags, SetXattr, Tree};
use atrest::storage::sim::{Random, SimDisk};
use atrest::storage::{FileId, Storage};
use atrest::tree::{Place, Visitor};
use atrest::volume::Volume;
use atrest::volume::check::{CheckOptions, CheckReport, Finding, Kind};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
const ROOT: u64 = 1;

/// A volume that is closed between looks.
pub struct World {
    pub volumes: Volumes,
    pub disk: Arc<SimDisk>,
    pub storage: Arc<dyn Storage>,
    /// What each file holds.
    pub contents: BTreeMap<String, Vec<u8>>,
}

/// A record that is to be stored or deleted.
pub type Change = (Key, Option<Vec<u8>>);

/// Eight bytes, little-endian.
pub fn long(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// Findings, a line each.
pub fn show(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n{finding}")).collect()
}

/// Bytes that differ everywhere.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed + 1);
    let words = (0..length.div_ceil(8)).map(|_| random.below(u64::MAX).to_le_bytes());
    words.flatten().take(length).collect()
}

impl World {
    pub fn new(cipher: Cipher) -> Self {
        let disk = Arc::new(SimDisk::new());
        disk.stop_recording();
        let storage: Arc<dyn Storage> = disk.clone();
        let volumes = Volumes::new(cipher);
        volumes.create(&storage);
        let mut world = Self { volumes, disk, storage, contents: BTreeMap::new() };
        world.fill();
        world
    }

    /// One of everything, and enough of it for several leaves in each table.
    fn fill(&mut self) {
        let volume = self.volumes.open(&self.storage).expect("open");
        let tree = VolumeTree::new(volume.clone());
        let many = tree.mkdir(CALLER, ROOT, b"many", 0o755).expect("mkdir").ino;
        let deep = tree.mkdir(CALLER, ROOT, b"deep", 0o755).expect("mkdir").ino;
        let deeper = tree.mkdir(CALLER, deep, b"deeper", 0o755).expect("mkdir").ino;
        for number in 0..700 {
            let name = format!("file {number:03}");
            let path = format!("/many/{name}");
            self.write(&tree, many, &path, &name, 100 + number * 3, number as u64);
        }
        self.write(&tree, deeper, "/deep/deeper/big", "big", 3 << 20, 1001);
        self.write(&tree, deep, "/deep/odd", "odd", 300_001, 1002);
        self.write(&tree, ROOT, "/page", "page", 8192, 1003);
        self.write(&tree, ROOT, "/other", "other", 8192, 1004);
        let big = self.contents["/deep/odd"].clone();
        let holes = tree.mknod(CALLER, ROOT, b"holes", libc::S_IFREG | 0o644, 0).expect("mknod");
        tree.write(holes.ino, 1 << 20, &big, false).expect("write");
        tree.fallocate(holes.ino, (1 << 20) + 50_000, 100_000, Allocate::Punch).expect("punch");
        tree.symlink(CALLER, ROOT, b"short", b"many/file 001").expect("symlink");
        tree.symlink(CALLER, ROOT, b"long", &[b'x'; 4000]).expect("symlink");
        tree.mknod(CALLER, ROOT, b"pipe", libc::S_IFIFO | 0o644, 0).expect("mknod");
        let page = tree.lookup(ROOT, b"page").expect("lookup").ino;
        tree.link(page, deep, b"linked").expect("link");
        tree.setxattr(page, b"user.long", &pattern(7, 9000), SetXattr::default())
            .expect("setxattr");
        tree.setxattr(page, b"user.empty", b"", SetXattr::default()).expect("setxattr");
        drop(tree);
        volume.close().expect("close");
    }

    fn write(
        &mut self,
        tree: &dyn Tree,
        parent: u64,
        path: &str,
        name: &str,
        bytes: usize,
        seed: u64,
    ) {
        let mode = libc::S_IFREG | 0o644;
        let ino = tree.mknod(CALLER, parent, name.as_bytes(), mode, 0).expect("mknod").ino;
        let content = pattern(seed, bytes);
        tree.write(ino, 0, &content, false).expect("write");
        self.contents.insert(path.to_owned(), content);
    }

    /// Opens the volume read-only, as a check does.
    pub fn open(&self) -> Arc<Volume> {
        let options =
            OpenOptions { read_only: true, node_cache_bytes: 1 << 20, ..OpenOptions::default() };
        let Volumes { keys, config, cipher, id } = self.volumes.clone();
        let opened = Volume::open(self.storage.clone(), keys, id, cipher, &config, &options);
        opened.expect("a damaged volume opens").0
    }

    pub fn check(&self, deep: bool) -> CheckReport {
        self.open().check(CheckOptions { deep }, &|_| {})
    }

    /// The same volume on a disk of its own.
    pub fn fork(&self) -> Self {
        let disk = Arc::new(self.disk.fork());
        let storage: Arc<dyn Storage> = disk.clone();
        Self { volumes: self.volumes.clone(), disk, storage, contents: self.contents.clone() }
    }

    /// Findings of a kind by a deep check. A copy is repaired, too.
    pub fn finds(&self, kind: Kind) -> Vec<Finding> {
        let report = self.check(true);
        assert!(!report.is_clean(), "the damage is not found");
        let found: Vec<_> = report.findings.iter().filter(|f| f.kind == kind).cloned().collect();
        assert!(!found.is_empty(), "no {kind} among {}", show(&report.findings));
        self.fork().repaired();
        found
    }

    /// Checks that these are all findings, whatever their order: kind and path of each. A copy is
    /// repaired, too.
    pub fn expect(&self, deep: bool, expected: &[(Kind, &str)]) -> Vec<Finding> {
        let report = self.check(deep);
        let path = |f: &Finding| String::from_utf8(f.path.clone().unwrap_or_default());
        let mut found: Vec<_> =
            report.findings.iter().map(|f| (f.kind, path(f).expect("UTF-8"))).collect();
        let mut expected: Vec<_> =
            expected.iter().map(|(kind, path)| (*kind, (*path).to_owned())).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{}", show(&report.findings));
        if !report.is_clean() {
            self.fork().repaired();
        }
        report.findings
    }

    pub fn ino(&self, path: &str) -> u64 {
        let volume = self.open();
        path.split('/').filter(|name| !name.is_empty()).fold(ROOT, |parent, name| {
            volume.entry(parent, name.as_bytes()).expect("entry").expect("exists").ino
        })
    }

    /// Where a page of a file is.
    pub fn slot(&self, path: &str, page: u64) -> Slot {
        self.open().slot_of(self.ino(path), page).expect("map").expect("a page")
    }

    /// Inverts a bit in the middle of a slot.
    pub fn flip(&self, slot: Slot) {
        self.disk.flip_bit(FileId::Segment(slot.segment()), slot.offset() + 1000, 5);
    }

    /// Changes records behind everybody's back: no slots are accounted for.
    pub fn forge(&self, changes: &[Change]) {
        let digest = kdf::digest(&self.volumes.config);
        let Volumes { keys, id, .. } = self.volumes.clone();
        let (epochs, _) = Epochs::open(
            self.storage.clone(),
            keys,
            id,
            digest,
            &OpenOptions::default(),
            Box::new(|_, _, _| Ok(())),
        )
        .expect("open");
        let mut change = epochs.change(true).expect("change");
        for (key, value) in changes {
            change.put(&**key, value.as_deref().map(Arc::from));
        }
        drop(change);
        epochs.sync_epoch().expect("commit");
    }

    /// The stored value of a record.
    pub fn record(&self, key: &[u8]) -> Vec<u8> {
        self.open().epochs().get(key).expect("readable").expect("a record").to_vec()
    }

    /// Places and first records of all nodes of a level: both slots, first key, keys.
    pub fn nodes(&self, level: u8) -> Vec<Found> {
        struct Collect(u8, Vec<Found>);
        impl Visitor for Collect {
            fn node(&mut self, place: Place<'_>, node: &Node) {
                if place.level == self.0 {
                    let mut keys = vec![Vec::new(); node.len()];
                    (0..node.len()).for_each(|at| node.append_key(at, &mut keys[at]));
                    self.1.push(Found { slots: place.pointer.slots, keys });
                }
            }

            fn damaged(&mut self, _: Place<'_>, error: &atrest::tree::Error) {
                panic!("{error}");
            }
        }
        let volume = self.open();
        let mut collect = Collect(level, Vec::new());
        let root = volume.epochs().root();
        atrest::tree::walk(volume.epochs().source(), root.as_ref(), &mut collect);
        collect.1
    }

    /// The leaf that holds a key.
    pub fn leaf_of(&self, key: &[u8]) -> Found {
        let found = self.nodes(0).into_iter().find(|leaf| leaf.keys.iter().any(|k| k == key));
        found.expect("the key is stored")
    }

    /// Damages both copies.
    pub fn destroy(&self, node: &Found) {
        node.slots.into_iter().for_each(|slot| self.flip(slot));
    }

    /// Every file that is not in `except` reads as it was written.
    pub fn others_are_whole(&self, except: &[&str]) {
        let lost = self.unreadable();
        let others: Vec<_> = lost.iter().filter(|path| !except.contains(&path.as_str())).collect();
        assert!(others.is_empty(), "{others:?}");
    }

    /// Files that cannot be found, or not be read as they were written.
    pub fn unreadable(&self) -> Vec<String> {
        let tree = VolumeTree::new(self.open());
        let is_whole = |path: &str, content: &[u8]| {
            let mut ino = ROOT;
            for name in path.split('/').skip(1) {
                ino = tree.lookup(ino, name.as_bytes()).ok()?.ino;
            }
            let mut buffer = Vec::new();
            tree.read(ino, 0, content.len() + 1, false, &mut buffer).ok()?;
            (buffer == content).then_some(())
        };
        let lost = self.contents.iter().filter(|(path, content)| is_whole(path, content).is_none());
        lost.map(|(path, _)| path.clone()).collect()
    }

    /// Does what programs do, and checks after each commit.
    pub fn use_it(&self, seed: u64, steps: u64) {
        let volume = self.volumes.open(&self.storage).expect("open");
        let tree = VolumeTree::new(volume.clone());
        let many = tree.lookup(ROOT, b"many").expect("lookup").ino;
        let mut random = Random::new(seed);
        let mut open: Vec<(u64, u64)> = Vec::new();
        for step in 0..steps {
            let name = format!("file {:03}", random.below(40));
            let other = format!("file {:03}", random.below(40));
            let (name, other) = (name.as_bytes(), other.as_bytes());
            let ino = tree.lookup(many, name).map(|attr| attr.ino);
            match (random.below(14), ino) {
                (0, _) => drop(tree.unlink(many, name)),
                (1, _) => {
                    let flags = RenameFlags { exchange: random.coin(), ..RenameFlags::default() };
                    drop(tree.rename(many, name, many, other, flags));
                }
                (2, Ok(ino)) => drop(tree.link(ino, many, other)),
                (3, Ok(ino)) => {
                    if let Ok(handle) = tree.open(ino, random.coin(), false) {
                        open.push((ino, handle));
                    }
                }
                (4, _) if !open.is_empty() => {
                    let (ino, handle) = open.swap_remove(random.below(open.len() as u64) as usize);
                    tree.release(ino, handle);
                }
                (5, Ok(ino)) => {
                    let value = pattern(step, random.below(5000) as usize);
                    tree.setxattr(ino, b"user.a", &value, SetXattr::default()).expect("setxattr");
                }
                (6, Ok(ino)) => drop(tree.removexattr(ino, b"user.a")),
                (7, Ok(ino)) => {
                    let (at, length) = (random.below(600_000), 1 + random.below(300_000));
                    tree.fallocate(ino, at, length, Allocate::Punch).expect("punch");
                }
                (8, Ok(ino)) => {
                    let size = random.below(400_000);
                    volume.truncate(ino, size, &|_| {}).expect("truncate");
                }
                (9, _) if step % 3 == 0 => {
                    volume.sync().expect("sync");
                    let report = volume.check(CheckOptions { deep: true }, &|_| {});
                    assert!(
                        report.is_clean(),
                        "seed {seed} step {step} {}",
                        show(&report.findings)
                    );
                }
                (_, Ok(ino)) => {
                    let data = pattern(step, 1 + random.below(60_000) as usize);
                    tree.write(ino, random.below(500_000), &data, false).expect("write");
                }
                (_, Err(_)) => {
                    let made = tree.create(CALLER, many, name, libc::S_IFREG | 0o600);
                    open.push(made.map(|(attr, handle)| (attr.ino, handle)).expect("create"));
                }
            }
        }
        drop(tree);
        volume.close().expect("close");
        let report = self.check(true);
        assert!(report.is_clean(), "{}", show(&report.findings));
    }
}

/// A node that was found in the tree.
pub struct Found {
    pub slots: [Slot; 2],
    pub keys: Vec<Vec<u8>>,
}
