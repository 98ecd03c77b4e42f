//! What a synced overwrite of 4 KiB costs: the engine without FUSE, beside a plain file on the same
//! disk.
//!
//! `cargo bench --bench fsync [-- DIRECTORY [WRITERS ...]]`. One thread, then sixteen (or as many as
//! is said), each with a file of its own of 1 MiB that was written before; the two sides take turns,
//! and medians of seven rounds are printed. DIRECTORY says which disk; the default is the temporary
//! directory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use atrest::fs::volume::{VolumeTree, make_root};
use atrest::fs::{Caller, Tree};
use atrest::storage::{OsStorage, Storage};
use atrest::volume::log_bytes_for;
use common::Volumes;

// The tests use more of it.
#[allow(dead_code)]
#[path = "../../tests/common/mod.rs"]
mod common;

const PAGE_BYTES: usize = 4096;
const PAGES: u64 = 256;
const ROUNDS: usize = 7;
const SYNCS: u64 = 300;
const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let base = arguments.first().map_or_else(std::env::temp_dir, Into::into);
    let directory = tempfile::tempdir_in(base).expect("a directory");
    let tree = open_volume(&directory.path().join("volume"));
    let writers: Vec<u64> =
        arguments.iter().skip(1).map(|n| n.parse().expect("a number of writers")).collect();
    for &threads in if writers.is_empty() { &[1, 16][..] } else { &writers } {
        let plain: Vec<File> = (0..threads).map(|n| plain_file(directory.path(), n)).collect();
        let sealed: Vec<u64> =
            (0..threads).map(|n| sealed_file(&tree, threads * 100 + n)).collect();
        let (mut of_plain, mut of_sealed) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_plain.push(rate(&plain, &|file, page, bytes| {
                file.write_all_at(bytes, page * PAGE_BYTES as u64).expect("write");
                file.sync_all().expect("fsync");
            }));
            of_sealed.push(rate(&sealed, &|ino, page, bytes| {
                tree.write(*ino, page * PAGE_BYTES as u64, bytes, false).expect("write");
                tree.fsync(*ino, 0, false).expect("fsync");
            }));
        }
        let (plain, sealed) = (median(of_plain), median(of_sealed));
        println!(
            "{threads:>2} writers: plain file {plain:>7.0}/s, engine {sealed:>7.0}/s, ratio {:.2}",
            sealed / plain
        );
    }
}

fn open_volume(path: &Path) -> VolumeTree {
    let volumes = Volumes::new(atrest::crypto::Cipher::Aes256Gcm);
    let storage = OsStorage::create(path).expect("a directory that can be written to");
    let log_bytes = log_bytes_for(storage.capacity().expect("capacity").total_bytes);
    volumes.create_with(&storage, log_bytes);
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let volume = volumes.open(&storage).expect("open");
    make_root(&volume, 0, 0, 0o755).expect("root directory");
    volume.start();
    VolumeTree::new(volume)
}

fn plain_file(directory: &Path, number: u64) -> File {
    let path = directory.join(format!("plain {number}"));
    let file = File::options().create(true).truncate(false).write(true).open(path).expect("open");
    file.write_all_at(&vec![7; PAGE_BYTES * PAGES as usize], 0).expect("write");
    file.sync_all().expect("fsync");
    file
}

fn sealed_file(tree: &VolumeTree, number: u64) -> u64 {
    let name = format!("sealed {number}");
    let (attr, _) = tree.create(CALLER, 1, name.as_bytes(), 0o600).expect("create");
    tree.write(attr.ino, 0, &vec![7; PAGE_BYTES * PAGES as usize], false).expect("write");
    tree.fsync(attr.ino, 0, false).expect("fsync");
    attr.ino
}

/// Synced writes per second, over one thread for each file.
fn rate<F: Sync>(files: &[F], write: &(dyn Fn(&F, u64, &[u8]) + Sync)) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for file in files {
            scope.spawn(move || {
                let bytes = [9; PAGE_BYTES];
                (0..SYNCS).for_each(|n| write(file, n * 37 % PAGES, &bytes));
            });
        }
    });
    files.len() as f64 * SYNCS as f64 / start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
