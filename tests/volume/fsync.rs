//! What `fsync(2)` says when the disk fails: an error, each time, for everyone, and no write is
//! believed afterwards; what was synced before is still there.

use crate::{check_space, new_file, pattern, read_all, setup};
use atrest::crypto::Cipher;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Caller, Error, Tree};
use atrest::storage::sim::{Fate, Operation, SimDisk};
use atrest::storage::{Capacity, FileId, Storage};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
            tree.read(found.ino, 0, 20_000, false, &mut read).expect("it is whole");
            // What no sync acknowledged may still be in the log.
            let whole = read == after || (first.is_err() && read == before);
            assert!(whole, "{file:?}: not what the last good fsync made durable");
            tree.write(found.ino, 0, b"again", false).expect("writing works again");
            tree.sync().expect("and syncing");
        }
    }
}

/// What a synced overwrite costs: one flush, of the log, and no other.
#[test]
fn an_fsync_is_one_flush() {
    let (volumes, disk, storage) = setup(Cipher::Aes256Gcm);
    let volume = volumes.open(&storage).expect("open");
    let ino = new_file(&volume);
    volume.write(ino, 0, &pattern(1, 1 << 20), &|_| {}).expect("write");
    volume.sync_file(ino).expect("fsync");
    disk.start_recording();
    for page in 0..20 {
        volume.write(ino, page * 4096, &pattern(page, 4096), &|_| {}).expect("write");
        volume.sync_file(ino).expect("fsync");
        volume.sync_file(ino).expect("there is nothing to sync");
    }
    let (mut syncs, mut replay) = (Vec::new(), disk.replay());
    while let Some(operation) = replay.step() {
        if let Operation::Sync(_) | Operation::SyncDirectory = operation {
            syncs.push(format!("{operation:?}"));
        }
    }
    assert_eq!(syncs, vec!["Sync(Log)"; 20]);
}

/// A disk that counts syncs of the log, takes a while for them, and does something when it is asked
/// for contents.
struct Watched {
    disk: Arc<SimDisk>,
    syncs: AtomicU64,
    sync_takes: Duration,
    on_read: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Watched {
    fn new(disk: Arc<SimDisk>, sync_takes: Duration) -> Arc<Self> {
        Arc::new(Self { disk, syncs: AtomicU64::new(0), sync_takes, on_read: Mutex::default() })
    }
}

impl Storage for Watched {
    fn sync(&self, file: FileId) -> io::Result<()> {
        if file == FileId::Log {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.sync_takes);
        }
        self.disk.sync(file)
    }

    fn create(&self, file: FileId) -> io::Result<()> {
        self.disk.create(file)
    }

    fn delete(&self, file: FileId) -> io::Result<()> {
        self.disk.delete(file)
    }

    fn length(&self, file: FileId) -> io::Result<Option<u64>> {
        self.disk.length(file)
    }

    fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()> {
        self.disk.set_length(file, bytes)
    }

    fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let hook = self.on_read.lock().expect("no panic").take();
        if let Some(hook) = hook {
            hook();
        }
        self.disk.read_at(file, offset, buffer)
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Of a block that is written in part, the filesystem below may have to read the rest.
        assert!(file != FileId::Log || (offset + bytes.len() as u64) % 4096 == 0);
        self.disk.write_at(file, offset, bytes)
    }

    fn start_writeback(&self, _: FileId, _: u64, _: u64) {}

    fn sync_directory(&self) -> io::Result<()> {
        self.disk.sync_directory()
    }

    fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk.allocate(file, offset, bytes)
    }

    fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk.punch(file, offset, bytes)
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        self.disk.segments()
    }

    fn read_config(&self) -> io::Result<Vec<u8>> {
        self.disk.read_config()
    }

    fn replace_config(&self, bytes: &[u8]) -> io::Result<()> {
        self.disk.replace_config(bytes)
    }

    fn capacity(&self) -> io::Result<Capacity> {
        self.disk.capacity()
    }
}

/// Writers that sync at the same time share flushes.
#[test]
fn concurrent_fsyncs_share_flushes() {
    const WRITERS: u64 = 16;
    const WRITES: u64 = 20;
    let (volumes, disk, _) = setup(Cipher::Aes256Gcm);
    let slow = Watched::new(disk, Duration::from_millis(5));
    let storage: Arc<dyn Storage> = slow.clone();
    let volume = volumes.open(&storage).expect("open");
    let inos: Vec<u64> = (0..WRITERS).map(|_| new_file(&volume)).collect();
    volume.sync().expect("sync");
    let before = slow.syncs.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for &ino in &inos {
            let volume = &volume;
            scope.spawn(move || {
                for page in 0..WRITES {
                    volume.write(ino, page * 4096, &pattern(page, 4096), &|_| {}).expect("write");
                    volume.sync_file(ino).expect("fsync");
                }
            });
        }
    });
    let syncs = slow.syncs.load(Ordering::Relaxed) - before;
    assert!(syncs * 6 <= WRITERS * WRITES, "{syncs} flushes for {} fsyncs", WRITERS * WRITES);
}

/// What is acknowledged by the log alone is there after a power cut, and what is not synced is not
/// half there.
#[test]
fn the_log_survives_a_power_cut() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let (volumes, disk, storage) = setup(cipher);
        let volume = volumes.open(&storage).expect("open");
        let (small, large) = (new_file(&volume), new_file(&volume));
        volume.sync().expect("sync");
        let (short, long) = (pattern(1, 10_000), pattern(2, 300_000));
        volume.write(small, 0, &short, &|_| {}).expect("write");
        volume.sync_file(small).expect("pages in the log");
        volume.write(large, 0, &long, &|_| {}).expect("write");
        volume.sync_file(large).expect("a synced segment");
        volume.write(small, 0, &pattern(3, 10_000), &|_| {}).expect("not synced");
        drop(volume);
        // Everything that was not synced is lost.
        let after: Arc<dyn Storage> = Arc::new(disk.after_crash([]));
        let (volume, report) = volumes.open_reported(&after).expect("open");
        assert!(report.replayed > 0 && !report.log_damaged, "{report:?}");
        assert!(read_all(&volume, small) == short && read_all(&volume, large) == long);
        volume.write(small, 0, &pattern(4, 10_000), &|_| {}).expect("it goes on");
        volume.close().expect("close");
        let volume = volumes.open(&after).expect("open");
        assert!(read_all(&volume, small) == pattern(4, 10_000));
        check_space(&volume);
    }
}

/// What is written while a flush is under way is not what that flush made durable: its own fsync
/// flushes again. (It once did not, and a power cut lost what it had acknowledged.)
#[test]
fn a_flush_does_not_answer_for_what_came_after_it_began() {
    let (volumes, disk, _) = setup(Cipher::Aes256Gcm);
    let watched = Watched::new(disk.clone(), Duration::ZERO);
    let storage: Arc<dyn Storage> = watched.clone();
    let volume = volumes.open(&storage).expect("open");
    let (first, second) = (new_file(&volume), new_file(&volume));
    volume.sync().expect("sync");
    volume.write(first, 0, &pattern(1, 9_000), &|_| {}).expect("write");
    let beside = volume.clone();
    *watched.on_read.lock().expect("no panic") = Some(Box::new(move || {
        beside.write(second, 0, &pattern(2, 9_000), &|_| {}).expect("write");
        assert!(beside.try_sync_file(second).is_none(), "a flush is under way");
    }));
    volume.sync_file(first).expect("fsync");
    assert!(watched.on_read.lock().expect("no panic").is_none(), "the flush read the contents");
    volume.sync_file(second).expect("fsync");
    let after: Arc<dyn Storage> = Arc::new(disk.after_crash([]));
    let volume = volumes.open(&after).expect("open");
    assert!(read_all(&volume, first) == pattern(1, 9_000));
    assert!(read_all(&volume, second) == pattern(2, 9_000), "acknowledged and lost");
}
