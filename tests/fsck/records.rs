//! Records that authenticate and contradict each other: each contradiction is found, named, and the
//! only one that is found.

use crate::world::{Change, World, long, show};
use atrest::crypto::Cipher;
use atrest::format::Slot;
use atrest::format::map::PageMap;
use atrest::format::record::{Counters, Entry, Inode, Key, Table, key};
use atrest::volume::check::{Finding, Kind, Severity};

const ROOT: u64 = 1;

fn world() -> World {
    World::new(Cipher::Aes256Gcm)
}

/// Changes the record of an inode.
fn edit(world: &World, path: &str, edit: impl FnOnce(&mut Inode)) -> Change {
    let key = key(Table::Inode, world.ino(path), &[]);
    let mut inode = Inode::decode(&world.record(&key)).expect("an inode");
    edit(&mut inode);
    (key, Some(inode.encode().to_vec()))
}

fn entry(world: &World, parent: u64, name: &str) -> Entry {
    Entry::decode(&world.record(&key(Table::Entry, parent, name.as_bytes()))).expect("an entry")
}

/// Both records of an entry.
fn name(parent: u64, name: &str, entry: &Entry) -> [Change; 2] {
    let mut listed = entry.ino.to_le_bytes().to_vec();
    listed.push(entry.kind);
    listed.extend_from_slice(name.as_bytes());
    [
        (key(Table::Entry, parent, name.as_bytes()), Some(entry.encode().to_vec())),
        (key(Table::Cookie, parent, &entry.cookie.to_be_bytes()), Some(listed)),
    ]
}

fn map_key(ino: u64, run: u64) -> Key {
    key(Table::PageMap, ino, &run.to_be_bytes())
}

fn map(world: &World, path: &str) -> PageMap {
    let value = world.record(&map_key(world.ino(path), 0));
    PageMap::decode(Cipher::Aes256Gcm, &value).expect("a page map")
}

fn encoded(map: &PageMap) -> Option<Vec<u8>> {
    Some(map.encode(Cipher::Aes256Gcm))
}

/// Forges and expects exactly these findings.
fn finds(world: &World, changes: &[Change], expected: &[(Kind, &str)]) -> Vec<Finding> {
    world.forge(changes);
    let found = world.expect(true, expected);
    for finding in &found {
        assert_eq!(finding.severity, finding.kind.severity());
        assert!(!finding.detail.is_empty());
    }
    found
}

#[test]
fn link_counts() {
    let world = world();
    let changes = [
        edit(&world, "/other", |inode| inode.links = 2),
        edit(&world, "/many", |inode| inode.links = 3),
    ];
    finds(&world, &changes, &[(Kind::Links, "/other"), (Kind::Links, "/many")]);
    world.others_are_whole(&[]);
}

#[test]
fn sizes_of_directories_and_parents() {
    let world = world();
    let changes = [
        edit(&world, "/many", |inode| inode.size += 1),
        edit(&world, "/deep/deeper", |inode| inode.parent = ROOT),
    ];
    let expected = [(Kind::DirectorySize, "/many"), (Kind::Parent, "/deep/deeper")];
    finds(&world, &changes, &expected);
    world.others_are_whole(&[]);
}

#[test]
fn entries_that_lead_nowhere_or_say_another_type() {
    let world = world();
    let other = entry(&world, ROOT, "other");
    let pipe = entry(&world, ROOT, "pipe");
    let mut changes = name(ROOT, "other", &Entry { ino: 999_999, ..other }).to_vec();
    changes.extend(name(ROOT, "pipe", &Entry { kind: 8, ..pipe }));
    let expected = [
        (Kind::EntryDangling, "/other"),
        (Kind::EntryKind, "/pipe"),
        // Nothing leads to the file that had the name, so it has no path.
        (Kind::Unreachable, ""),
    ];
    let found = finds(&world, &changes, &expected);
    assert!(found.iter().any(|f| f.kind == Kind::Unreachable && f.ino == Some(other.ino)));
    world.others_are_whole(&["/other"]);
}

#[test]
fn entries_and_listings_that_differ() {
    let world = world();
    let many = world.ino("/many");
    let first = entry(&world, many, "file 001");
    let second = entry(&world, many, "file 002");
    let third = entry(&world, many, "file 003");
    let cookie = |entry: &Entry| key(Table::Cookie, many, &entry.cookie.to_be_bytes());
    let [_, (_, renamed)] = name(many, "file 00X", &third);
    let changes = [
        (cookie(&first), None),
        (key(Table::Entry, many, b"file 002"), None),
        (cookie(&third), renamed),
        edit(&world, "/many", |inode| inode.size -= 1),
    ];
    let found = finds(
        &world,
        &changes,
        &[
            (Kind::CookieMissing, "/many/file 001"),
            (Kind::CookieStray, "/many/file 002"),
            (Kind::CookieMissing, "/many/file 003"),
            (Kind::CookieStray, "/many/file 00X"),
            (Kind::Unreachable, ""),
        ],
    );
    let unreachable = found.iter().find(|f| f.kind == Kind::Unreachable).expect("expected above");
    assert_eq!(unreachable.ino, Some(second.ino));
    world.others_are_whole(&["/many/file 002"]);
}

#[test]
fn names_that_none_may_have() {
    let world = world();
    let other = entry(&world, ROOT, "other");
    let mut changes = name(ROOT, "..", &other).to_vec();
    changes.push((key(Table::Entry, ROOT, b"other"), None));
    finds(&world, &changes, &[(Kind::EntryName, "/..")]);
}

#[test]
fn directories_that_contain_each_other() {
    let world = world();
    let deep = entry(&world, ROOT, "deep");
    let (deep_ino, deeper_ino) = (deep.ino, world.ino("/deep/deeper"));
    let mut changes = name(deeper_ino, "deep", &deep).to_vec();
    changes.push((key(Table::Entry, ROOT, b"deep"), None));
    changes.push((key(Table::Cookie, ROOT, &deep.cookie.to_be_bytes()), None));
    changes.push(edit(&world, "/deep", |inode| inode.parent = deeper_ino));
    changes.push(edit(&world, "/deep/deeper", |inode| (inode.size, inode.links) = (2, 3)));
    changes.push(edit(&world, "/", |inode| (inode.size, inode.links) = (inode.size - 1, 3)));
    let found = finds(&world, &changes, &[(Kind::Loop, "")]);
    assert!([deep_ino, deeper_ino].map(Some).contains(&found[0].ino));
}

#[test]
fn orphan_marks() {
    let world = world();
    let mark = key(Table::Orphan, world.ino("/other"), &[]);
    let expected = [(Kind::OrphanNamed, "/other")];
    finds(&world, &[(mark, Some(Vec::new()))], &expected);
    world.others_are_whole(&[]);
}

#[test]
fn counters() {
    let world = world();
    let key = key(Table::Counters, 0, &[]);
    let counters = Counters::decode(&world.record(&key)).expect("counters");
    let wrong = Counters { next_ino: 5, next_cookie: 20, inodes: counters.inodes + 1 };
    let changes = [(key, Some(wrong.encode().to_vec()))];
    finds(&world, &changes, &[(Kind::Counters, ""); 3]);
}

#[test]
fn missing_and_foreign_data_keys() {
    let world = world();
    let big = world.ino("/deep/deeper/big");
    let dek = |chunk: u64| key(Table::Dek, big, &chunk.to_be_bytes());
    // A key that was wrapped for another chunk does not unwrap.
    let foreign = world.record(&dek(5));
    let changes = [(dek(3), None), (dek(11), Some(foreign))];
    let path = "/deep/deeper/big";
    let found = finds(&world, &changes, &[(Kind::KeyLost, path), (Kind::KeyLost, path)]);
    let ranges: Vec<_> = found.iter().map(|f| (f.offset, f.length)).collect();
    let chunk = 256 << 10;
    assert_eq!(ranges, [(Some(3 * chunk), Some(chunk)), (Some(11 * chunk), Some(chunk))]);
    assert!(found.iter().all(|f| f.severity == Severity::Lost));
    world.others_are_whole(&[path]);
}

#[test]
fn inline_contents_that_should_not_be() {
    let world = world();
    let inline = |path: &str| key(Table::Inline, world.ino(path), &0u16.to_be_bytes());
    let changes = [
        (inline("/page"), Some(vec![1; 10])),
        (inline("/many/file 000"), Some(vec![1; 101])),
        (inline("/short"), None),
        edit(&world, "/long", |inode| inode.size = 3999),
    ];
    let report = {
        world.forge(&changes);
        world.check(false)
    };
    let inline = report.findings.iter().filter(|f| f.kind == Kind::Inline).count();
    assert_eq!((inline, report.findings.len()), (4, 4), "{}", show(&report.findings));
    world.repaired();
}

#[test]
fn page_counts_and_pages_behind_the_end() {
    let world = world();
    let changes = [
        edit(&world, "/other", |inode| inode.pages = 7),
        edit(&world, "/holes", |inode| inode.size = (1 << 20) + 4096),
    ];
    let found = finds(
        &world,
        &changes,
        &[
            (Kind::PageCount, "/other"),
            (Kind::PageBeyondSize, "/holes"),
            (Kind::PageBeyondSize, "/holes"),
        ],
    );
    let first = found.iter().find(|f| f.kind == Kind::PageBeyondSize).expect("expected above");
    assert_eq!(first.offset, Some((1 << 20) + 4096));
}

#[test]
fn parts_and_flags_of_attributes() {
    let world = world();
    let page = world.ino("/page");
    let part = |name: &str, part: u16| {
        key(Table::Xattr, page, &[name.as_bytes(), &[0], &part.to_be_bytes()].concat())
    };
    let other = key(Table::Xattr, world.ino("/other"), b"user.x\0\0\0");
    let changes = [(part("user.long", 2), None), (other, Some(b"value".to_vec()))];
    let report = {
        world.forge(&changes);
        world.check(false)
    };
    let kinds: Vec<_> = report.findings.iter().map(|f| (f.kind, f.ino)).collect();
    let other = world.ino("/other");
    let expected = [(Kind::AttributeParts, Some(page)), (Kind::AttributeFlag, Some(other))];
    assert_eq!(kinds, expected, "{}", show(&report.findings));
    world.repaired();
}

#[test]
fn records_of_nobody_and_malformed_ones() {
    let world = world();
    let none = 888_888u64;
    let changes = [
        (key(Table::Inline, none, &[0, 0]), Some(vec![1])),
        (key(Table::Dek, none, &long(0)), Some(vec![1])),
        (key(Table::Cut, none, &[]), Some(vec![0; 16])),
        (key(Table::Orphan, none + 1, &[]), Some(Vec::new())),
        (map_key(world.ino("/other"), 9), Some(vec![7; 33])),
        (key(Table::Entry, ROOT, b"short entry"), Some(vec![7; 3])),
        (key(Table::Cut, world.ino("/page"), &[]), Some([long(5), long(4)].concat())),
    ];
    world.forge(&changes);
    let report = world.check(false);
    let count = |kind| report.findings.iter().filter(|f| f.kind == kind).count();
    let counts = [Kind::RecordStray, Kind::RecordMalformed, Kind::Cut].map(count);
    assert_eq!(counts, [4, 2, 1], "{}", show(&report.findings));
    assert_eq!(report.findings.len(), 7);
    world.others_are_whole(&[]);
    world.repaired();
}

#[test]
fn slots_that_two_use_and_slots_that_nobody_does() {
    let world = world();
    let (page, other) = (map(&world, "/page"), map(&world, "/other"));
    let mut both = other.clone();
    both.pages[1] = page.pages[0];
    let key = map_key(world.ino("/other"), 0);
    world.forge(&[(key, encoded(&both))]);
    let report = world.check(false);
    let shared: Vec<_> =
        report.findings.iter().filter(|f| f.kind == Kind::SlotShared).map(|f| f.offset).collect();
    assert_eq!(shared, [Some(0), Some(4096)], "{}", show(&report.findings));
    assert_eq!(report.findings.iter().filter(|f| f.kind == Kind::SlotLeaked).count(), 1);
    assert_eq!(report.findings.len(), 3);
    world.others_are_whole(&["/other"]);
    world.repaired();
}

#[test]
fn slots_in_use_that_are_counted_as_free() {
    let world = world();
    let mut other = map(&world, "/other");
    let far = other.pages[1].as_mut().expect("a page");
    far.slot = Slot(far.slot.0 + 20_000);
    world.forge(&[(map_key(world.ino("/other"), 0), encoded(&other))]);
    let report = world.check(false);
    let kinds: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::SlotFree, Kind::SlotLeaked], "{}", show(&report.findings));
    assert_eq!(report.findings[0].path.as_deref(), Some(&b"/other"[..]));
    world.repaired();
}
