//! Damage of the medium: bits, slots, nodes, segments, superblocks.

use crate::world::{World, show};
use atrest::crypto::Cipher;
use atrest::format::PAGE_BYTES;
use atrest::format::record::{Table, key};
use atrest::storage::FileId;
use atrest::volume::check::{Kind, Severity};

#[test]
fn flipped_bits_in_pages_are_named_by_path_and_range() {
    let world = World::new(Cipher::Aes256Gcm);
    for page in [1, 2, 3, 100] {
        world.flip(world.slot("/deep/deeper/big", page));
    }
    // The last page of a file that does not fill it: the range ends with the file.
    world.flip(world.slot("/deep/odd", 73));
    assert!(world.check(false).is_clean(), "only a deep check reads contents");
    let big = "/deep/deeper/big";
    let expected = [(Kind::PageLost, big), (Kind::PageLost, big), (Kind::PageLost, "/deep/odd")];
    let mut ranges: Vec<_> = world
        .expect(true, &expected)
        .iter()
        .map(|f| (f.offset.expect("an offset"), f.length.expect("a length")))
        .collect();
    ranges.sort_unstable();
    assert_eq!(ranges, [(4096, 12_288), (299_008, 993), (409_600, 4096)]);
    world.others_are_whole(&[big, "/deep/odd"]);
}

#[test]
fn swapped_pages_are_both_lost() {
    let world = World::new(Cipher::Aes256Gcm);
    let (a, b) = (world.slot("/page", 1), world.slot("/other", 0));
    let [mut a_bytes, mut b_bytes] = [[0; PAGE_BYTES]; 2];
    let (a_file, b_file) = (FileId::Segment(a.segment()), FileId::Segment(b.segment()));
    world.storage.read_at(a_file, a.offset(), &mut a_bytes).expect("read");
    world.storage.read_at(b_file, b.offset(), &mut b_bytes).expect("read");
    world.disk.overwrite(a_file, a.offset(), &b_bytes);
    world.disk.overwrite(b_file, b.offset(), &a_bytes);
    // The file has two names; either is its path.
    let found = world.finds(Kind::PageLost);
    let ranges: Vec<_> = found.iter().map(|f| (f.offset, f.length)).collect();
    assert_eq!(ranges, [(Some(4096), Some(4096)), (Some(0), Some(4096))], "{found:#?}");
    world.others_are_whole(&["/page", "/other"]);
}

#[test]
fn an_unreadable_sector_condemns_its_page_only() {
    let world = World::new(Cipher::Aes256Xts);
    let slot = world.slot("/deep/deeper/big", 5);
    let range = slot.offset() + 512..slot.offset() + 1024;
    world.disk.fail_reads(FileId::Segment(slot.segment()), range);
    let found = world.check(true).findings;
    let found: Vec<_> = found.iter().filter(|f| f.kind == Kind::PageLost).collect();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].offset, found[0].length), (Some(5 * 4096), Some(4096)));
    let report = world.repaired();
    assert_eq!(report.damaged_files()[0].ranges, [(5 * 4096, 4096)]);
}

#[test]
fn one_damaged_copy_of_a_node_is_healable() {
    let world = World::new(Cipher::Aes256Gcm);
    let leaves = world.nodes(0);
    world.flip(leaves[2].slots[0]);
    world.flip(leaves[5].slots[1]);
    world.flip(world.nodes(1)[0].slots[0]);
    let found = world.expect(false, &[(Kind::NodeCopy, ""); 3]);
    assert!(found.iter().all(|f| f.severity == Severity::Healable));
    world.others_are_whole(&[]);
}

/// Destroys each node of the tree in turn, both copies: the volume still opens, and every file that
/// cannot be found or read any more is named.
#[test]
fn whatever_node_is_lost_all_that_it_held_is_named() {
    let world = World::new(Cipher::Aes256Gcm);
    assert!(world.nodes(1).len() > 1, "interior nodes below the root");
    let mut affected_at_all = 0;
    for level in [0, 1, 2] {
        for node in world.nodes(level) {
            world.destroy(&node);
            let report = world.check(false);
            let lost = report.findings.iter().filter(|f| f.severity == Severity::Lost);
            assert!(lost.count() >= 1, "{}", show(&report.findings));
            let affected = world.unreadable();
            affected_at_all += affected.len();
            for path in affected {
                let is_named = report.findings.iter().any(|finding| {
                    let named = finding.path.as_deref().map(String::from_utf8_lossy);
                    named.is_some_and(|named| {
                        path == named
                            || path.strip_prefix(&*named).is_some_and(|p| p.starts_with('/'))
                            || named == "/"
                    })
                });
                let first = node.keys.first().and_then(|key| key.first());
                assert!(is_named, "{path} {level} {first:x?} {}", show(&report.findings));
            }
            // A second flip of the same bit is the first undone.
            world.destroy(&node);
        }
    }
    assert!(affected_at_all > 300, "{affected_at_all}");
    assert!(world.check(true).is_clean());
}

#[test]
fn a_lost_leaf_of_names_hides_nothing_that_is_listed() {
    let world = World::new(Cipher::Aes256Gcm);
    let many = world.ino("/many");
    let leaf = world.leaf_of(&key(Table::Entry, many, b"file 100"));
    world.destroy(&leaf);
    let found = world.finds(Kind::EntryLost);
    let hundred = found.iter().find(|f| f.path.as_deref() == Some(b"/many/file 100"));
    assert!(hundred.is_some(), "{found:#?}");
    // Looking it up fails, so the files are not readable by name; but nothing is unreachable, and
    // no other contradiction is made up.
    let kinds: Vec<_> = world.check(true).findings.iter().map(|f| f.kind).collect();
    let expected = [Kind::EntryLost, Kind::NodeLost, Kind::NotChecked];
    assert!(kinds.iter().all(|kind| expected.contains(kind)), "{kinds:?}");
    let (names, whole) = world.open().names_in(many);
    assert!(whole && names.len() == 700, "listing and entries together are whole");
}

#[test]
fn lost_page_maps_and_data_keys_are_named_by_range() {
    let world = World::new(Cipher::Aes256Gcm);
    let path = "/deep/deeper/big";
    let ino = world.ino(path);
    let leaf = world.leaf_of(&key(Table::PageMap, ino, &12u64.to_be_bytes()));
    world.destroy(&leaf);
    let found = world.finds(Kind::ContentLost);
    let big = found.iter().find(|f| f.path.as_deref() == Some(path.as_bytes())).expect("named");
    let (offset, length) = (big.offset.expect("offset"), big.length.expect("length"));
    assert!(offset <= 12 * 131_072 && offset + length > 12 * 131_072, "{big:?}");
    let runs = leaf.keys.iter().filter(|k| k[0] == 0x16 && k[1..9] == ino.to_be_bytes()).count();
    assert!(length >= runs as u64 * 131_072 && offset + length <= 3 << 20, "{big:?}");
    world.destroy(&leaf);
    let leaf = world.leaf_of(&key(Table::Dek, ino, &4u64.to_be_bytes()));
    world.destroy(&leaf);
    let found = world.finds(Kind::KeyLost);
    let covers = |at: u64| {
        found.iter().any(|f| {
            let offset = f.offset.expect("offset");
            f.ino == Some(ino) && (offset..offset + f.length.expect("length")).contains(&at)
        })
    };
    assert!(covers(4 << 18) && covers((5 << 18) - 1), "{found:#?}");
}

#[test]
fn a_missing_and_a_short_segment() {
    let world = World::new(Cipher::Aes256Gcm);
    let segment = FileId::Segment(world.slot("/page", 0).segment());
    let (page, big) = (world.slot("/page", 1), world.slot("/deep/deeper/big", 0));
    assert!(big.offset() < page.offset(), "the test cuts between them");
    let length = page.offset() + 100;
    world.storage.set_length(segment, length).expect("set_length");
    let report = world.check(false);
    let kinds: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&Kind::SegmentShort), "{kinds:?}");
    let page = report.findings.iter().find(|f| f.ino == Some(world.ino("/page"))).expect("named");
    assert_eq!((page.kind, page.offset, page.length), (Kind::PageLost, Some(4096), Some(4096)));
    world.others_are_whole(&["/page", "/other", "/holes"]);
    world.storage.delete(segment).expect("delete");
    let report = world.check(true);
    let lost: Vec<_> = report.findings.iter().filter(|f| f.kind == Kind::PageLost).collect();
    let big = lost.iter().find(|f| f.path.as_deref() == Some(b"/deep/deeper/big")).expect("named");
    assert_eq!((big.offset, big.length), (Some(0), Some(3 << 20)), "joined: {lost:#?}");
    assert!(report.findings.iter().any(|f| f.kind == Kind::SegmentMissing));
    world.others_are_whole(&report_paths(&lost));
}

fn report_paths<'a>(findings: &[&'a atrest::volume::check::Finding]) -> Vec<&'a str> {
    let paths = findings.iter().filter_map(|f| f.path.as_deref());
    paths.map(|path| std::str::from_utf8(path).expect("UTF-8")).collect()
}

#[test]
fn a_damaged_superblock_is_healable() {
    for file in [FileId::SuperA, FileId::SuperB] {
        let world = World::new(Cipher::Aes256Gcm);
        world.disk.flip_bit(file, 500, 1);
        let found = world.expect(true, &[(Kind::Superblock, "")]);
        assert_eq!(found[0].severity, Severity::Healable);
        let name = if file == FileId::SuperA { "super.a" } else { "super.b" };
        assert!(found[0].detail.starts_with(name), "{found:?}");
        world.others_are_whole(&[]);
    }
}

#[test]
fn without_the_space_delta_the_older_state_is_checked_and_then_what_is_left() {
    let world = World::new(Cipher::Aes256Gcm);
    let lose_delta = || {
        let delta = world.open().epochs().delta_slots();
        assert!(!delta.is_empty());
        delta.iter().flatten().for_each(|slot| world.flip(*slot));
    };
    lose_delta();
    world.expect(true, &[(Kind::NewestLost, "")]);
    world.others_are_whole(&[]);
    lose_delta();
    world.expect(true, &[(Kind::SpaceLost, "")]);
    world.others_are_whole(&[]);
    assert!(world.volumes.open(&world.storage).is_err(), "writing would overwrite what is there");
}
