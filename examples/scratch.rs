//! scratch
use atrest::crypto::{Cipher, Secret, random, wrap};
use atrest::format::VolumeId;
use atrest::fs::volume::VolumeTree;
use atrest::storage::{OsStorage, Storage};
use atrest::volume::{OpenOptions, Volume};
use std::sync::Arc;
#[path = "../tests/common/mod.rs"]
mod common;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (dir, mnt) = (std::path::Path::new(&a[1]), std::path::Path::new(&a[2]));
    let cipher =
        if a.get(3).is_some_and(|x| x == "xts") { Cipher::Aes256Xts } else { Cipher::Aes256Gcm };
    std::fs::create_dir_all(dir).unwrap();
    let v = common::Volumes::new(cipher);
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::create(dir).unwrap());
    v.create(&storage);
    let (volume, _) = Volume::open(
        storage.clone(),
        v.keys.clone(),
        v.id,
        v.cipher,
        &v.config,
        &OpenOptions::default(),
    )
    .unwrap();
    volume.start();
    let tree = Arc::new(VolumeTree::new(volume.clone()));
    let mut o = atrest::fuse::Options::new(dir.into());
    if let Some(t) = a.get(4) {
        o.threads = t.parse().unwrap();
    }
    let s = atrest::fuse::Session::mount(tree, mnt, &o).unwrap();
    s.run().unwrap();
    volume.close().unwrap();
}
