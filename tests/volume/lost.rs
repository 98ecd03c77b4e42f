//! Damaged nodes and segments: what is lost is said, and nothing else is.

use super::{check_space, file, new_file, pattern, read_all, setup};
use atrest::crypto::Cipher;
use atrest::format::node::Node;
use atrest::format::record::{self, Table};
use atrest::format::{NodePointer, PAGE_BYTES};
use atrest::storage::FileId;
use atrest::tree::{self, Place, Visitor};
use atrest::volume::Volume;
use std::sync::atomic::Ordering;

/// Finds the leaf that a key belongs to.
struct LeafOf<'a>(&'a [u8], Option<NodePointer>);

impl Visitor for LeafOf<'_> {
    fn enter(&mut self, place: Place<'_>) -> bool {
        let here = place.from <= self.0 && place.to.is_none_or(|to| self.0 < to);
        if here && place.level == 0 {
            self.1 = Some(*place.pointer);
        }
        here
    }

    fn node(&mut self, _: Place<'_>, _: &Node) {}

    fn damaged(&mut self, _: Place<'_>, error: &tree::Error) {
        panic!("{error}");
    }
}

fn leaf_of(volume: &Volume, ino: u64) -> NodePointer {
    let key = record::key(Table::Inode, ino, &[]);
    let mut search = LeafOf(&key, None);
    tree::walk(volume.epochs().source(), volume.epochs().root().as_ref(), &mut search);
    search.1.expect("every key belongs to a leaf")
}

/// Both copies of a leaf are gone. Changes that belong there fail, and do not take others along.
#[test]
fn changes_below_a_damaged_node_are_lost_alone() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let inos: Vec<u64> = (0..1000).map(|_| new_file(&volume)).collect();
    volume.close().expect("close");
    let leaf = leaf_of(&volume, inos[500]);
    let inside: Vec<u64> =
        inos.iter().copied().filter(|&ino| leaf_of(&volume, ino) == leaf).collect();
    assert!(inside.len() > 5 && inside.len() < 500, "{} inodes in the leaf", inside.len());
    for slot in leaf.slots {
        disk.overwrite(FileId::Segment(slot.segment()), slot.offset(), &[0xaa; PAGE_BYTES]);
    }
    let volume = volumes.open(&storage).expect("one leaf is not the volume");
    let mut change = volume.change(false).expect("change");
    for &ino in &inos {
        let mut inode = file();
        inode.uid = 77;
        change.put_inode(ino, &inode);
    }
    drop(change);
    volume.sync().expect_err("not everything is durable");
    let lost = volume.epochs().damage().changes_lost.load(Ordering::Relaxed);
    assert_eq!(lost, inside.len() as u64);
    volume.sync().expect("the next epoch has nothing to do with it");
    volume.sync_file(inside[0]).expect_err("but who asks for the inode is told");
    volume.sync_file(inos[0]).expect("and others are not");
    let data = pattern(1, 300_000);
    let new = new_file(&volume);
    volume.write(new, 0, &data, &|_| {}).expect("the volume is still writable");
    volume.close().expect("close");
    let volume = volumes.open(&storage).expect("open");
    for ino in inos {
        match volume.inode(ino) {
            Ok(inode) => assert_eq!(inode.expect("it was made").uid, 77, "inode {ino}"),
            Err(error) => assert!(inside.contains(&ino), "inode {ino}: {error}"),
        }
    }
    assert_eq!(read_all(&volume, new), data);
}

/// A segment is missing. Its contents are lost, and its place can be written to again.
#[test]
fn a_missing_segment_is_made_anew() {
    let (volumes, _, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let ino = new_file(&volume);
    volume.write(ino, 0, &pattern(1, 300_000), &|_| {}).expect("write");
    volume.close().expect("close");
    let slot = volume.slot_of(ino, 0).expect("map").expect("a page");
    drop(volume);
    for segment in [0, 1, slot.segment()] {
        storage.delete(FileId::Segment(segment)).expect("delete");
        let volume = volumes.open(&storage).expect("open without a segment");
        let mut buffer = Vec::new();
        let read = volume.read(ino, 0, 300_000, &mut buffer);
        assert_eq!(read.is_ok(), segment < 2, "segment {segment}: nodes have another copy");
        volume.truncate(ino, 0, &|_| {}).expect("truncate");
        volume.write(ino, 0, &pattern(2, 300_000), &|_| {}).expect("write again");
        assert_eq!(read_all(&volume, ino), pattern(2, 300_000));
        volume.close().expect("close");
        check_space(&volume);
    }
}
