//! What a locked daemon still has in its memory.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;

use atrest::format::config::UnverifiedConfig;
use atrest::format::record::{Table, key};
use atrest::key::{Binding, ProviderOptions, VolumeKeys, provider_from_uri};
use atrest::storage::OsStorage;
use atrest::volume::{OpenOptions, Volume};

use crate::memory_of::{Needle, daemon_of, found};
use crate::mounted::{Mounted, is_root};

/// The volume key, the metadata key and the data key of the first chunk of `ino`, as anybody who
/// has the KEK can have them.
fn keys_of(mounted: &Mounted, ino: u64) -> Vec<Needle> {
    let bytes = fs::read(mounted.volume().join("atrest.json")).unwrap();
    let store = Some(mounted.volume().with_file_name("keys"));
    let options = ProviderOptions { key_store: store, ..ProviderOptions::default() };
    let unverified = UnverifiedConfig::decode(&bytes).unwrap();
    let claims = unverified.claims();
    let slot = &claims.slots[0];
    let provider = provider_from_uri(&slot.provider, &options).unwrap();
    let binding = Binding { volume_id: claims.volume_id };
    let (epoch, wrapped) = &slot.wrapped[0];
    let volume_key = provider.unwrap(&binding, &slot.kek, wrapped).unwrap();
    let keys = Arc::new(VolumeKeys::open(&bytes, &options).unwrap().keys);
    let metadata_key = keys.metadata_key(*epoch).unwrap().expose().to_vec();
    let storage = Arc::new(OsStorage::open(&mounted.volume(), true).unwrap());
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let (volume, _) =
        Volume::open(storage, keys.clone(), claims.volume_id, keys.cipher(), &bytes, &read_only)
            .unwrap();
    let record = volume.epochs().get(&key(Table::Dek, ino, &0_u64.to_be_bytes()));
    let record = record.unwrap().expect("the file has a chunk");
    let (dek_epoch, wrapped) = record.split_at(4);
    let dek_epoch = u32::from_le_bytes(dek_epoch.try_into().unwrap());
    let data_key = keys.unwrap_dek(dek_epoch, ino, 0, wrapped).unwrap();
    let needle = |name, bytes: &[u8]| Needle { name, bytes: bytes.to_vec() };
    vec![
        needle("the volume key", volume_key.expose()),
        needle("the metadata key", &metadata_key),
        needle("a data key", data_key.expose()),
    ]
}

fn random() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    File::open("/dev/urandom").unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The keys are in the daemon's memory while it serves, and not once it is locked; nor are
/// contents that were read or written. In use all the while, and locked and unlocked more than
/// once.
#[test]
fn no_key_in_memory_after_locking() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    if !is_root() {
        return eprintln!("skipped: only root may look into the memory of a daemon");
    }
    let path = mounted.join("file");
    let (content, written) = (random(), random());
    fs::write(&path, content.repeat(4096)).unwrap();
    mounted.remount();
    let ino = fs::metadata(&path).unwrap().ino();
    mounted.unmount();
    let mut needles = keys_of(&mounted, ino);
    mounted.mount_again();
    // Still where the kernel has put it, until other requests come.
    needles.push(Needle { name: "contents that were written", bytes: written[..32].to_vec() });
    needles.push(Needle { name: "contents that were read", bytes: content[..32].to_vec() });
    let daemon = daemon_of(&mounted.volume());
    let command = |name: &str| mounted.exit_code(&[name.as_ref(), mounted.path().as_os_str()]);
    for round in 0..3 {
        (0..20).for_each(|n| fs::write(mounted.join(format!("small-{n}")), "words").unwrap());
        assert_eq!(fs::read(&path).unwrap()[..64], content);
        // Not the pages that are looked for, but of their chunk.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&written.repeat(64), 4096).unwrap();
        file.sync_all().unwrap();
        let before = found(daemon, &needles);
        for needle in &needles[..4] {
            let is_there = before.iter().any(|found| found.starts_with(needle.name));
            assert!(is_there, "round {round}: {} is not found while in use", needle.name);
        }
        assert_eq!(command("lock"), 0);
        let after = found(daemon, &needles);
        assert!(after.is_empty(), "round {round}, locked: {after:#?}");
        assert_eq!(command("unlock"), 0);
    }
}
