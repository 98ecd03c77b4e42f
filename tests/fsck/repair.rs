//! Repairs: whatever was done to a volume, a check finds nothing afterwards, everything that was
//! not damaged is as it was, and everything else is named.

use crate::world::{Change, World, show};
use atrest::crypto::Cipher;
use atrest::format::Slot;
use atrest::format::record::{Entry, Inode, Table, key};
use atrest::fs::volume::{VolumeTree, recover};
use atrest::fs::{Attr, Kind as FileKind, Tree};
use atrest::storage::{FileId, Shadow, Storage};
use atrest::volume::check::{CheckOptions, Kind};
use atrest::volume::repair::{Action, ActionKind, RepairError, RepairOptions, RepairReport};
use atrest::volume::{OpenOptions, Volume};
use std::collections::BTreeMap;
use std::sync::Arc;

const ROOT: u64 = 1;

/// A file as programs see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub ino: u64,
    pub permissions: u16,
    pub links: u32,
    pub content: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Actions, a line each.
pub fn show_actions(report: &RepairReport) -> String {
    report.actions.iter().map(|action| format!("\n{action}")).collect()
}

/// Opens a volume for repair and repairs it.
pub fn repair_in(
    world: &World,
    storage: Arc<dyn Storage>,
    deep: bool,
) -> Result<RepairReport, RepairError> {
    let options = OpenOptions { read_only: true, repair: true, ..OpenOptions::default() };
    let (keys, config) = (world.volumes.keys.clone(), &world.volumes.config);
    let (id, cipher) = (world.volumes.id, world.volumes.cipher);
    let opened = Volume::open(storage, keys, id, cipher, config, &options);
    let volume = opened.expect("a damaged volume opens for repair").0;
    volume.repair(RepairOptions { deep }, &|_| {}, &mut |_, _| true)
}

impl World {
    /// A dry run, which writes nothing, and then the repair, which does the same; everything is
    /// sound and can be read afterwards.
    pub fn repaired(&self) -> RepairReport {
        let operations = self.disk.operations();
        let shadow: Arc<dyn Storage> = Arc::new(Shadow::new(self.storage.clone()));
        let dry = repair_in(self, shadow, true).expect("the dry run works");
        assert_eq!(self.disk.operations(), operations, "a dry run writes nothing");
        let report = repair_in(self, self.storage.clone(), true).expect("the repair works");
        assert_eq!(show_actions(&dry), show_actions(&report), "both do the same");
        assert!(report.committed && !report.actions.is_empty());
        self.is_sound();
        report
    }

    /// A deep check finds nothing, both superblocks are good, and the volume is used for a while.
    pub fn is_sound(&self) {
        let check = self.check(true);
        assert!(check.is_clean(), "{}", show(&check.findings));
        let volume = self.volumes.open(&self.storage).expect("it opens for writing");
        assert!(volume.epochs().superblocks().iter().all(Result::is_ok));
        recover(&volume).expect("orphans");
        let tree = VolumeTree::new(volume.clone());
        see(&tree);
        let name = b"written after the repair";
        let caller = crate::world::CALLER;
        let made = tree.mknod(caller, ROOT, name, libc::S_IFREG | 0o600, 0).expect("mknod");
        tree.write(made.ino, 0, &[9; 20_000], false).expect("write");
        volume.sync().expect("sync");
        tree.unlink(ROOT, name).expect("unlink");
        volume.sync().expect("sync");
        drop(tree);
        volume.close().expect("close");
        let check = self.check(true);
        assert!(check.is_clean(), "after use: {}", show(&check.findings));
    }

    /// Everything in the volume, as programs see it.
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        see(&VolumeTree::new(self.open()))
    }
}

/// Everything that a path leads to, by path. It must all be readable.
fn see(tree: &VolumeTree) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    let mut stack = vec![(ROOT, String::new())];
    while let Some((ino, path)) = stack.pop() {
        let mut names = Vec::new();
        tree.readdir(ino, 0, false, &mut |entry| {
            names.push(entry.name.to_vec());
            true
        })
        .expect("readdir");
        for name in names.into_iter().filter(|name| name != b"." && name != b"..") {
            let attr = tree.lookup(ino, &name).expect("what is listed can be looked up");
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            let mut content = Vec::new();
            match attr.kind {
                FileKind::Directory => stack.push((attr.ino, path.clone())),
                FileKind::File => {
                    tree.read(attr.ino, 0, attr.size as usize, &mut content).expect("read");
                }
                FileKind::Symlink => content = tree.readlink(attr.ino).expect("readlink"),
                _ => {}
            }
            let names = tree.listxattr(attr.ino).expect("listxattr");
            let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            let value = |name: &[u8]| tree.getxattr(attr.ino, name).expect("getxattr");
            let xattrs = names.map(|name| (name.to_vec(), value(name))).collect();
            let Attr { ino, permissions, links, .. } = attr;
            let one = Seen { ino, permissions, links, content, xattrs };
            assert!(seen.insert(path, one).is_none());
        }
    }
    seen
}

/// What was not damaged is as it was: every path in `before`, but for these and what is below them.
fn others_stay(world: &World, before: &BTreeMap<String, Seen>, except: &[&str]) {
    let after = world.seen();
    for (path, seen) in before {
        let excepted = |e: &&str| {
            path.strip_prefix(*e).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if !except.iter().any(|e| excepted(&e)) {
            assert!(after.get(path) == Some(seen), "{path}: {:?}", after.get(path).map(|s| s.ino));
        }
    }
}

fn finds<'a>(report: &'a RepairReport, kind: ActionKind, path: &str) -> Vec<&'a Action> {
    let is_it =
        |action: &&Action| action.kind == kind && action.path.as_deref() == Some(path.as_bytes());
    let found: Vec<_> = report.actions.iter().filter(is_it).collect();
    assert!(!found.is_empty(), "no {kind} of {path} among {}", show_actions(report));
    found
}

#[test]
fn bad_pages_become_holes_and_are_named() {
    let world = World::new(Cipher::Aes256Gcm);
    let before = world.seen();
    for page in [1, 2, 100] {
        world.flip(world.slot("/deep/deeper/big", page));
    }
    world.flip(world.slot("/deep/odd", 73));
    let report = world.repaired();
    let found = finds(&report, ActionKind::ContentLost, "/deep/deeper/big");
    let ranges: Vec<_> = found.iter().map(|a| (a.offset.unwrap(), a.length.unwrap())).collect();
    assert_eq!(ranges, [(4096, 8192), (409_600, 4096)]);
    let found = finds(&report, ActionKind::ContentLost, "/deep/odd");
    assert_eq!((found[0].offset, found[0].length), (Some(299_008), Some(993)));
    others_stay(&world, &before, &["/deep/deeper/big", "/deep/odd"]);
    let mut expected = world.contents["/deep/deeper/big"].clone();
    expected[4096..12_288].fill(0);
    expected[409_600..413_696].fill(0);
    assert!(world.seen()["/deep/deeper/big"].content == expected);
    let files = report.damaged_files();
    assert_eq!(files.len(), 2);
}
