//! Volume keys and key slots through their public interface, with a key store in a temporary
//! directory, and a provider that behaves as a vault with an RSA key does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use atrest::crypto::{Cipher, Secret, Tampered, kdf, random};
use atrest::format::VolumeId;
use atrest::format::config::{Algorithm, Config, ConfigData, ConfigError, KekReference};
use atrest::key::local::KeyStore;
use atrest::key::passphrase::Cost;
use atrest::key::{
    KekError, KekErrorKind, KekProvider, KeyError, Opened, ProviderOptions, Recheck, VolumeKeys,
    Wrapped, provider_from_uri,
};

const VOLUME: VolumeId = VolumeId([7; 16]);

/// Options that use the store in `directory`, and cheap passphrases.
fn options(directory: &Path) -> ProviderOptions {
    ProviderOptions {
        key_store: Some(directory.join("keys")),
        create_local_key: true,
        passphrase_cost: Cost { memory_kib: 8 * 1024, passes: 1, lanes: 1 },
        ..ProviderOptions::default()
    }
}

fn provider(uri: &str, options: &ProviderOptions) -> Arc<dyn KekProvider> {
    provider_from_uri(uri, options).expect("the provider is allowed")
}

fn create(options: &ProviderOptions) -> (Config, VolumeKeys) {
    let provider = provider("local:", options);
    VolumeKeys::create(VOLUME, Cipher::Aes256Gcm, &*provider).expect("the store is writable")
}

fn open(config: &Config, options: &ProviderOptions) -> Opened {
    VolumeKeys::open(config.bytes(), options).expect("the configuration is good")
}

fn refused(config: &Config, options: &ProviderOptions) -> KeyError {
    match VolumeKeys::open(config.bytes(), options) {
        Ok(_) => panic!("the volume opened"),
        Err(error) => error,
    }
}

/// The kind of the only failure.
fn only_failure(error: &KeyError) -> &KekErrorKind {
    match error {
        KeyError::NoSlot(failures) if failures.len() == 1 => failures[0].error.kind(),
        other => panic!("expected one failed slot, not {other:?}"),
    }
}

/// What is created opens again, with the same keys.
#[test]
fn create_and_open() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (config, keys) = create(&options);
    let opened = open(&config, &options);
    assert_eq!((opened.slot, opened.failures.len(), opened.config.data().generation), (1, 0, 1));
    assert_eq!(opened.config.bytes(), config.bytes());
    assert_eq!(opened.keys.current_epoch(), 1);
    assert_eq!((opened.keys.volume_id(), opened.keys.cipher()), (VOLUME, Cipher::Aes256Gcm));
    assert_eq!(opened.keys.pin(), keys.pin());
    let [one, other] = [&keys, &opened.keys].map(|keys| keys.metadata_key(1).expect("epoch 1"));
    assert!(one.is_same(other));
    assert!(keys.metadata_key(2).is_none());
}

/// A wrapped DEK unwraps for its own chunk and nowhere else.
#[test]
fn deks_are_bound_to_their_chunk() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (_, keys) = create(&options);
    let (_, stranger) = create(&options);
    let dek = random::secret(32);
    let (epoch, wrapped) = keys.wrap_dek(5, 6, &dek);
    assert_eq!((epoch, wrapped.len()), (1, 40));
    assert!(keys.unwrap_dek(1, 5, 6, &wrapped).expect("just wrapped").is_same(&dek));
    for (keys, epoch, ino, chunk) in
        [(&keys, 2, 5, 6), (&keys, 1, 6, 5), (&keys, 1, 5, 7), (&stranger, 1, 5, 6)]
    {
        assert!(matches!(keys.unwrap_dek(epoch, ino, chunk, &wrapped), Err(Tampered)));
    }
    // A key of the wrong length for the cipher is not one, even if it was wrapped here.
    let (_, long) = keys.wrap_dek(5, 6, &random::secret(64));
    assert!(matches!(keys.unwrap_dek(1, 5, 6, &long), Err(Tampered)));
}
