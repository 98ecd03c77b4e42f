//! Damage of the medium: bits, slots, nodes, segments, superblocks.

use crate::world::World;
use atrest::crypto::Cipher;
use atrest::format::PAGE_BYTES;
use atrest::format::record::{Table, key};
use atrest::storage::{FileId, Storage};
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
    let found = world.finds(Kind::PageLost);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].offset, found[0].length), (Some(5 * 4096), Some(4096)));
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
