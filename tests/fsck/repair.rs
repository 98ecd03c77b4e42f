//! Repairs: whatever was done to a volume, a check finds nothing afterwards, everything that was
//! not damaged is as it was, and everything else is named.

use crate::world::{Change, World, pattern, show};
use atrest::crypto::Cipher;
use atrest::format::Slot;
use atrest::format::record::{Entry, Inode, Table, key};
use atrest::fs::volume::{VolumeTree, recover};
use atrest::fs::{Attr, Caller, Kind as FileKind, Tree};
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
                    tree.read(attr.ino, 0, attr.size as usize, false, &mut content).expect("read");
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
        if !except.iter().any(excepted) {
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

/// Every path of `before` is as it was, or an action names it, a directory above it, or its inode.
pub fn rest_is_named(
    world: &World,
    before: &BTreeMap<String, Seen>,
    report: &RepairReport,
) -> usize {
    let after = world.seen();
    let named = |path: &str, ino: u64| {
        report.actions.iter().any(|action| {
            let of = action.path.as_deref().map(String::from_utf8_lossy);
            action.ino == Some(ino)
                || of.is_some_and(|of| {
                    path.strip_prefix(&*of).is_some_and(|p| p.is_empty() || p.starts_with('/'))
                })
        })
    };
    let changed = before.iter().filter(|(path, seen)| after.get(*path) != Some(*seen));
    let by_ino: BTreeMap<u64, &Seen> = after.values().map(|seen| (seen.ino, seen)).collect();
    let mut count = 0;
    for (path, seen) in changed {
        count += 1;
        let same = by_ino.get(&seen.ino).is_some_and(|now| now.content == seen.content);
        // What moved to lost+found is named there, or a directory above it is.
        let moved = after.iter().find(|(_, now)| now.ino == seen.ino);
        let told = named(path, seen.ino) || moved.is_some_and(|(path, _)| named(path, seen.ino));
        assert!(told, "{path} (same content: {same}) is not named: {}", show_actions(report));
        if let Some(now) = by_ino.get(&seen.ino).filter(|now| now.content != seen.content) {
            lost_ranges_are_named(path, seen, now, report);
        }
    }
    count
}

/// Each page that is not as it was is in a range that was said to be lost.
fn lost_ranges_are_named(path: &str, seen: &Seen, now: &Seen, report: &RepairReport) {
    let of_it = |action: &&Action| action.ino == Some(seen.ino);
    let rebuilt = |action: &Action| action.kind == ActionKind::Rebuilt;
    if report.actions.iter().filter(of_it).any(rebuilt) {
        // Of a file whose record is lost it is not known how long it was.
        return;
    }
    assert_eq!(now.content.len(), seen.content.len(), "{path}");
    let pages = now.content.chunks(4096).zip(seen.content.chunks(4096));
    for (at, _) in (0u64..).zip(pages).filter(|(_, (now, seen))| now != seen) {
        let offset = at * 4096;
        let covers = |action: &Action| {
            let range = (action.offset.unwrap_or(0), action.length.unwrap_or(0));
            action.kind == ActionKind::ContentLost && (range.0..range.0 + range.1).contains(&offset)
        };
        let told = report.actions.iter().filter(of_it).any(covers);
        assert!(told, "{path} at {offset}: {}", show_actions(report));
    }
}

/// Destroys each node in turn, both copies: the repair leaves a sound volume, and names whatever
/// is not as it was.
#[test]
fn whatever_node_is_lost_the_rest_is_kept_and_what_is_not_is_named() {
    let world = World::new(Cipher::Aes256Gcm);
    let before = world.seen();
    let (mut changed, mut nodes) = (0, 0);
    for level in [0, 1] {
        for node in world.nodes(level) {
            let copy = world.fork();
            copy.destroy(&node);
            let report = repair_in(&copy, copy.storage.clone(), true).expect("repair");
            copy.is_sound();
            changed += rest_is_named(&copy, &before, &report);
            nodes += 1;
        }
    }
    assert!(changed > 100 && nodes > 40, "{changed} {nodes}");
}

/// The root is lost in the newest state: the one before it takes its place, and is said.
#[test]
fn without_a_root_the_state_before_is_taken() {
    let world = World::new(Cipher::Aes256Gcm);
    let before = world.seen();
    // The same records, in another state.
    let volume = world.volumes.open(&world.storage).expect("open");
    volume.truncate(world.ino("/other"), 8192, &|inode| inode.uid += 1).expect("truncate");
    volume.sync().expect("sync");
    drop(volume);
    let root = world.open().epochs().root().expect("a root").pointer;
    root.slots.into_iter().for_each(|slot| world.flip(slot));
    let report = world.repaired();
    let said = |action: &Action| action.detail.contains("has lost its root");
    assert!(report.actions.iter().any(said), "{}", show_actions(&report));
    others_stay(&world, &before, &[]);
}

#[test]
fn a_volume_of_which_nothing_can_be_read_is_left_alone() {
    let world = World::new(Cipher::Aes256Gcm);
    let lose_root = || {
        let root = world.open().epochs().root().expect("a root").pointer;
        root.slots.into_iter().for_each(|slot| world.flip(slot));
    };
    lose_root();
    // Both superblocks of a volume that was closed lead to the same leaves by another root.
    lose_root();
    let operations = world.disk.operations();
    let refused = repair_in(&world, world.storage.clone(), true);
    assert!(matches!(refused, Err(RepairError::Failed(_))), "{refused:?}");
    assert_eq!(world.disk.operations(), operations);
}

/// A directory that nothing names goes to `lost+found` as a whole.
#[test]
fn subtrees_are_reattached_with_their_names() {
    let world = World::new(Cipher::Aes256Gcm);
    let before = world.seen();
    let deep = world.ino("/deep");
    let value = world.record(&key(Table::Entry, ROOT, b"deep"));
    let cookie = Entry::decode(&value).expect("an entry").cookie;
    world.forge(&[
        (key(Table::Entry, ROOT, b"deep"), None),
        (key(Table::Cookie, ROOT, &cookie.to_be_bytes()), None),
    ]);
    let report = world.repaired();
    let path = format!("/lost+found/#{deep}");
    finds(&report, ActionKind::Reattached, &path);
    let after = world.seen();
    let big = format!("{path}/deeper/big");
    assert!(after[&big] == before["/deep/deeper/big"], "the same but for the path");
    assert_eq!(after["/lost+found"].permissions, 0o700);
    others_stay(&world, &before, &["/deep"]);
}

/// Files of which the inode is lost are made anew of what is there, under their names.
#[test]
fn lost_inodes_are_made_anew_under_their_names() {
    let world = World::new(Cipher::Aes256Gcm);
    let before = world.seen();
    let paths = ["/page", "/many/file 001", "/short", "/deep", "/pipe"];
    let lose = |path: &str| (key(Table::Inode, world.ino(path), &[]), None);
    let changes: Vec<Change> = paths.iter().map(|path| lose(path)).collect();
    world.forge(&changes);
    let report = world.repaired();
    let after = world.seen();
    for path in ["/page", "/many/file 001"] {
        finds(&report, ActionKind::Rebuilt, path);
        assert_eq!(after[path].permissions, 0o600);
        assert!(after[path].content == before[path].content, "{path}");
        assert!(after[path].links == before[path].links, "{path}");
    }
    assert_eq!(after["/page"].xattrs, before["/page"].xattrs);
    assert_eq!(after["/short"].content, before["/short"].content);
    assert!(after["/deep/deeper/big"] == before["/deep/deeper/big"]);
    finds(&report, ActionKind::Rebuilt, "/deep");
    finds(&report, ActionKind::Removed, "/pipe");
    assert!(!after.contains_key("/pipe"), "nothing of it was there");
    others_stay(&world, &before, &["/deep", "/page", "/many/file 001", "/short", "/pipe"]);
}

/// Of two that refer to one slot the one whose page lies there keeps it.
#[test]
fn a_slot_that_two_use_stays_with_whose_it_is() {
    for deep in [true, false] {
        let world = World::new(Cipher::Aes256Gcm);
        let before = world.seen();
        let map = |path: &str| {
            let key = key(Table::PageMap, world.ino(path), &0u64.to_be_bytes());
            let value = world.record(&key);
            (key, atrest::format::map::PageMap::decode(Cipher::Aes256Gcm, &value).expect("a map"))
        };
        // The wrong one is met first.
        let (_, other) = map("/other");
        let (key, mut page) = map("/page");
        page.pages[1] = other.pages[0];
        world.forge(&[(key, Some(page.encode(Cipher::Aes256Gcm)))]);
        let report = repair_in(&world, world.storage.clone(), deep).expect("repair");
        world.is_sound();
        let files = report.damaged_files();
        assert_eq!(files.len(), 1, "{}", show_actions(&report));
        assert_eq!((files[0].ino, &files[0].ranges[..]), (world.ino("/page"), &[(4096, 4096)][..]));
        others_stay(&world, &before, &["/page", "/deep/linked"]);
        assert!(world.seen()["/page"].content[..4096] == before["/page"].content[..4096]);
    }
}

/// A file's page and a node's copy in one slot: both are kept if the page is what lies there.
#[test]
fn a_page_that_lies_over_a_copy_of_a_node_stays_and_the_node_moves() {
    let world = World::new(Cipher::Aes256Gcm);
    let before = world.seen();
    let slot = world.nodes(0)[1].slots[1];
    let key = key(Table::PageMap, world.ino("/other"), &0u64.to_be_bytes());
    let value = world.record(&key);
    let mut map = atrest::format::map::PageMap::decode(Cipher::Aes256Gcm, &value).expect("a map");
    let page = map.pages[1].as_mut().expect("a page");
    let mut bytes = [0; 4096];
    let file = |slot: Slot| FileId::Segment(slot.segment());
    world.storage.read_at(file(page.slot), page.slot.offset(), &mut bytes).expect("read");
    page.slot = slot;
    world.forge(&[(key, Some(map.encode(Cipher::Aes256Gcm)))]);
    assert!(world.nodes(0).iter().any(|node| node.slots[1] == slot), "the node is still there");
    world.disk.overwrite(file(slot), slot.offset(), &bytes);
    world.repaired();
    others_stay(&world, &before, &[]);
    assert!(world.nodes(0).iter().all(|node| node.slots[1] != slot));
}

/// Nothing is changed if the repair is not approved, and the older superblock leads back if it is.
#[test]
fn the_state_before_stays() {
    let world = World::new(Cipher::Aes256Gcm);
    world.flip(world.slot("/page", 1));
    let leaf = world.leaf_of(&key(Table::Entry, world.ino("/many"), b"file 100"));
    world.destroy(&leaf);
    let found = show(&world.check(true).findings);
    let sequence = world.check(false).sequence;

    let options = OpenOptions { read_only: true, repair: true, ..OpenOptions::default() };
    let (keys, config) = (world.volumes.keys.clone(), &world.volumes.config);
    let (id, cipher) = (world.volumes.id, world.volumes.cipher);
    let opened = Volume::open(world.storage.clone(), keys, id, cipher, config, &options);
    let volume = opened.expect("open").0;
    let mut asked = 0;
    let report = volume.repair(RepairOptions { deep: true }, &|_| {}, &mut |report, repaired| {
        asked += 1;
        assert!(!report.committed && !report.actions.is_empty());
        let check = repaired.check(CheckOptions { deep: true }, &|_| {});
        assert!(check.is_clean(), "what is shown is what it would be");
        false
    });
    assert!(asked == 1 && !report.expect("repair").committed);
    assert_eq!(show(&world.check(true).findings), found);
    assert_eq!(world.check(false).sequence, sequence);

    let report = repair_in(&world, world.storage.clone(), true).expect("repair");
    assert!(report.committed);
    let newest = world.open().epochs().superblock().sequence;
    assert_eq!(newest, sequence + 1, "one superblock is written");
    let file = if newest % 2 == 0 { FileId::SuperA } else { FileId::SuperB };
    world.disk.flip_bit(file, 500, 1);
    let back = world.check(true);
    assert_eq!(back.sequence, sequence);
    let back: Vec<_> = back.findings.into_iter().filter(|f| f.kind != Kind::Superblock).collect();
    assert_eq!(show(&back), found);
    world.repaired();
}

/// Without tags only what is missing can be found; a repair does not hide it by making it anew.
#[test]
fn a_lost_segment_becomes_holes_without_tags_too() {
    let world = World::new(Cipher::Aes256Xts);
    let before = world.seen();
    let segment = FileId::Segment(world.slot("/page", 0).segment());
    world.storage.delete(segment).expect("delete");
    let report = world.repaired();
    let made = |action: &&Action| action.detail.contains("is missing and is made whole");
    assert_eq!(report.actions.iter().filter(made).count(), 1, "{}", show_actions(&report));
    let whole = |inode: &Inode| inode.size;
    let ino = world.ino("/deep/deeper/big");
    let inode = world.open().inode(ino).expect("readable").expect("exists");
    assert_eq!((whole(&inode), inode.pages), (3 << 20, 0));
    assert!(world.seen()["/page"].content.iter().all(|byte| *byte == 0));
    let paged: Vec<&str> = before
        .iter()
        .filter(|(_, seen)| seen.content.len() > 1280)
        .map(|(path, _)| path.as_str())
        .collect();
    others_stay(&world, &before, &paged);
}

/// On a full disk there is room for a small repair: the reserve. Without that, a repair says so and
/// changes nothing.
#[test]
fn on_a_full_disk_nothing_is_lost() {
    let world = World::new(Cipher::Aes256Gcm);
    let before = world.seen();
    world.flip(world.slot("/page", 1));
    let found = show(&world.check(true).findings);
    let fill = |world: &World| world.disk.set_capacity(world.disk.allocated_bytes());
    let small = world.fork();
    fill(&small);
    repair_in(&small, small.storage.clone(), true).expect("the reserve is enough");
    assert!(small.check(true).is_clean());

    let mut used = std::collections::BTreeSet::new();
    world.open().epochs().slots_in_use(&mut |slot| {
        used.insert(slot.0);
    });
    for slot in [0, 65_536].into_iter().flat_map(|first| first..first + 8192) {
        if !used.contains(&slot) {
            let (file, at) = (FileId::Segment(Slot(slot).segment()), Slot(slot).offset());
            world.storage.punch(file, at, 4096).expect("punch");
        }
    }
    fill(&world);
    let full = repair_in(&world, world.storage.clone(), true).expect_err("there is no room");
    assert!(full.is_no_space(), "{full:?}");
    let shadow: Arc<dyn Storage> = Arc::new(Shadow::new(world.storage.clone()));
    let dry = repair_in(&world, shadow, true).expect_err("a dry run finds that out, too");
    assert!(dry.is_no_space(), "{dry:?}");
    assert_eq!(show(&world.check(true).findings), found);
    world.disk.set_capacity(1 << 40);
    world.repaired();
    others_stay(&world, &before, &["/page", "/deep/linked"]);
}

/// What only the log has is a part of what is repaired.
#[test]
fn what_the_log_says_is_kept() {
    for damaged in [false, true] {
        let world = World::new(Cipher::Aes256Gcm);
        let many = world.ino("/many");
        let tree = VolumeTree::new(world.volumes.open(&world.storage).expect("open"));
        let caller = Caller { uid: 0, gid: 0, umask: 0 };
        let late = tree.create(caller, ROOT, b"late", 0o600).expect("create").0.ino;
        tree.sync().expect("an epoch, so that the log is in use");
        let content = pattern(77, 20_000);
        tree.write(late, 0, &content, false).expect("write");
        tree.link(late, ROOT, b"later").expect("link");
        tree.fsync(late, 0, false).expect("fsync");
        drop(tree);
        // The contents are in the log, and not in their slots.
        let mut world = world;
        world.disk = Arc::new(world.disk.after_crash([]));
        world.storage = world.disk.clone();
        let name = if damaged {
            world.destroy(&world.leaf_of(&key(Table::Entry, many, b"file 100")));
            // A dry run and a repair, each on what the crash left.
            world.repaired();
            "/later"
        } else {
            world.is_sound();
            "/late"
        };
        let seen = world.seen();
        assert_eq!((seen["/late"].ino, seen["/later"].ino), (late, late));
        assert!(seen[name].content == content && seen[name].links == 2);
    }
}
