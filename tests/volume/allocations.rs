//! What is asked for most often allocates nothing.

use super::{new_file, pattern};
use crate::common::Volumes;
use atrest::crypto::Cipher;
use atrest::storage::{OsStorage, Storage};
use std::sync::Arc;

/// Small reads of what is cached, before and after the epoch ends that they were written in.
#[test]
fn reading_allocates_nothing() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let directory = tempfile::tempdir().expect("a directory");
        let storage = OsStorage::create(directory.path()).expect("storage");
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let volumes = Volumes::new(cipher);
        volumes.create(&storage);
        let volume = volumes.open(&storage).expect("open");
        let ino = new_file(&volume);
        volume.write(ino, 0, &pattern(1, 1 << 20), &|_| {}).expect("write");
        let mut buffer = Vec::new();
        for length in [4096, 4096, 16 << 10] {
            let mut read = || {
                for at in 0..16 {
                    volume.read(ino, at * 20 * 1024, length, &mut buffer).expect("read");
                }
            };
            read();
            let allocated = allocation_counter::measure(read).count_total;
            assert_eq!(allocated, 0, "16 times {length} bytes, {cipher:?}");
            volume.sync().expect("sync");
        }
    }
}
