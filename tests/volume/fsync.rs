//! What `fsync(2)` says when the disk fails: an error, each time, for everyone, and no write is
//! believed afterwards; what was synced before is still there.

use crate::{pattern, setup};
use atrest::crypto::Cipher;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Caller, Error, Tree};
use atrest::storage::FileId;
use atrest::storage::sim::Fate;

const ROOT: u64 = 1;
const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

/// Every kind of file that an epoch is made durable with: both copies of nodes, contents, both
/// superblocks; and the log, with which `fsync` does it.
const FILES: [FileId; 6] = [
    FileId::Segment(0),
    FileId::Segment(1),
    FileId::Segment(2),
    FileId::SuperA,
    FileId::SuperB,
    FileId::Log,
];

/// Syncs in the way that needs the file.
fn sync(tree: &VolumeTree, file: FileId, ino: u64, handle: u64) -> Result<(), Error> {
    if file == FileId::Log { tree.fsync(ino, handle, false) } else { tree.sync() }
}

#[test]
fn a_failed_sync_is_reported_and_never_taken_back() {
    for file in FILES {
        for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
            let (volumes, disk, storage) = setup(cipher);
            let tree =
                volumes.open(&storage).map(atrest::fs::volume::VolumeTree::new).expect("open");
            let make = |name: &[u8]| tree.create(CALLER, ROOT, name, 0o644).expect("create");
            let ((a, handle_a), (b, handle_b)) = (make(b"a"), make(b"b"));
            let (before, after) = (pattern(1, 10_000), pattern(2, 10_000));
            tree.write(a.ino, 0, &before, false).expect("write");
            tree.fsync(a.ino, handle_a, false).expect("the disk is well");

            disk.fail_sync(file, 0, Fate::Lost);
            tree.write(a.ino, 0, &after, false).expect("writing does not wait for the disk");
            tree.write(b.ino, 0, &after, false).expect("writing does not wait for the disk");
            let eio = |result: Result<(), atrest::fs::Error>| {
                let error = result.expect_err("it is not durable");
                assert_eq!(error.errno(), libc::EIO, "{file:?}: {error}");
            };
            // Superblocks are written in turn: one sync may still be good.
            let first = sync(&tree, file, a.ino, handle_a);
            if first.is_ok() {
                tree.write(a.ino, 0, &after, false).expect("write");
                eio(sync(&tree, file, a.ino, handle_a));
            }
            // The disk recovers; what it lost is lost all the same.
            disk.clear_faults();
            eio(tree.fsync(a.ino, handle_a, false));
            eio(tree.fsync(b.ino, handle_b, true));
            eio(tree.sync());
            eio(tree.write(b.ino, 0, &after, false));
            drop(tree);
            // As opening does: what was not written is still in the page cache, and looks written.
            disk.drop_clean_cache();

            let tree = volumes
                .open(&storage)
                .map(atrest::fs::volume::VolumeTree::new)
                .expect("it opens again");
            let found = tree.lookup(ROOT, b"a").expect("it was synced");
            let mut read = Vec::new();
            tree.read(found.ino, 0, 20_000, &mut read).expect("it is whole");
            // What no sync acknowledged may still be in the log.
            let whole = read == after || (first.is_err() && read == before);
            assert!(whole, "{file:?}: not what the last good fsync made durable");
            tree.write(found.ino, 0, b"again", false).expect("writing works again");
            tree.sync().expect("and syncing");
        }
    }
}
