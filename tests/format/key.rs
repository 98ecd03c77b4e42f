//! Volume keys and key slots through their public interface, with a key store in a temporary
//! directory, and a provider that behaves as a vault with an RSA key does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use atrest::crypto::{Cipher, Secret, Tampered, kdf, random};
use atrest::format::VolumeId;
use atrest::format::config::{Algorithm, Config, ConfigData, ConfigError, KekReference};
use atrest::key::local::KeyStore;
use atrest::key::passphrase::Cost;
use atrest::key::{
    Binding, KekError, KekErrorKind, KekProvider, KeyError, Opened, ProviderOptions, SlotCheck,
    VolumeKeys, Wrapped, provider_from_uri,
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

/// Slots come and go, each change counts the generation up, and the last slot stays.
#[test]
fn slots() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (config, keys) = create(&options);
    assert!(matches!(keys.remove_slot(&config, 1), Err(KeyError::LastSlot(1))));
    let (config, id) =
        keys.add_slot(&config, &*provider("local:second", &options)).expect("there is room");
    assert_eq!((id, config.data().generation), (2, 2));
    assert!(matches!(keys.remove_slot(&config, 3), Err(KeyError::NoSuchSlot(3))));
    let only_second = ProviderOptions { slot: Some(2), ..options.clone() };
    assert_eq!(open(&config, &only_second).slot, 2);
    let config = keys.remove_slot(&config, 1).expect("another slot is left");
    let opened = open(&config, &options);
    assert_eq!((opened.slot, opened.config.data().generation), (2, 3));
    assert!(matches!(
        VolumeKeys::open(config.bytes(), &ProviderOptions { slot: Some(1), ..options }),
        Err(KeyError::NoSuchSlot(1))
    ));
}

/// As many slots as the format allows, and not one more.
#[test]
fn slots_are_bounded() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (mut config, keys) = create(&options);
    let local = provider("local:", &options);
    for expected in 2..=32 {
        let (next, id) = keys.add_slot(&config, &*local).expect("there is room");
        assert_eq!(id, expected);
        config = next;
    }
    assert!(matches!(keys.add_slot(&config, &*local), Err(KeyError::SlotsFull)));
    assert_eq!(open(&config, &options).slot, 1);
}

/// A slot that fails is named with its reason, and slots are checked one by one.
#[test]
fn every_failure_is_reported() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let store = KeyStore::new(directory.path().join("keys"));
    let (config, keys) = create(&options);
    let second = provider("local:second", &options);
    let (config, _) = keys.add_slot(&config, &*second).expect("there is room");
    store.set_enabled("default", 1, false).expect("it exists");
    // Switched off: the other slot does not stand in, unless it is asked for.
    let error = refused(&config, &options);
    let KeyError::Denied { failures, untried } = error else { panic!("{error}") };
    assert!(matches!(failures[0].error.kind(), KekErrorKind::Disabled));
    assert_eq!((failures.len(), failures[0].slot, untried), (1, 1, vec![2]));
    let second_only = ProviderOptions { slot: Some(2), ..options.clone() };
    assert_eq!(open(&config, &second_only).slot, 2);
    std::fs::remove_file(store.directory().join("second.json")).expect("it exists");
    let error = refused(&config, &second_only);
    assert!(matches!(only_failure(&error), KekErrorKind::Gone { recoverable: false }), "{error}");
    let good = |only| {
        let checks = keys.check_slots(&config, &options, only).expect("the slots are there");
        checks.iter().map(SlotCheck::is_good).collect::<Vec<_>>()
    };
    assert_eq!(good(None), [false, false]);
    store.set_enabled("default", 1, true).expect("it exists");
    assert_eq!(open(&config, &options).slot, 1);
    assert_eq!(good(None), [true, false]);
    assert_eq!(good(Some(2)), [false]);
    assert!(matches!(keys.check_slots(&config, &options, Some(3)), Err(KeyError::NoSuchSlot(3))));
}

/// Each single bit flip anywhere in a configuration is refused, and so is each cut.
#[test]
fn any_change_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (config, keys) = create(&options);
    let (config, _) =
        keys.add_slot(&config, &*provider("local:second", &options)).expect("there is room");
    for bit in 0..config.bytes().len() * 8 {
        let mut flipped = config.bytes().to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(VolumeKeys::open(&flipped, &options).is_err(), "bit {bit}");
    }
    for length in 0..config.bytes().len() {
        assert!(VolumeKeys::open(&config.bytes()[..length], &options).is_err(), "cut at {length}");
    }
}

/// A KEK like a vault's RSA key: wrapping takes what is public, and answers can be switched.
/// From 10 on it unwraps, and has expired, expires later, does not say, or cannot be asked.
struct PublicKek(Arc<AtomicU32>);

impl PublicKek {
    fn public_wrap(secret: &[u8]) -> Vec<u8> {
        secret.iter().map(|byte| byte ^ 0x5a).collect()
    }

    fn options(directory: &Path) -> (ProviderOptions, Arc<AtomicU32>) {
        let state = Arc::new(AtomicU32::new(0));
        let mut options = options(directory);
        let shared = state.clone();
        let constructor = move |_: &str, _: &ProviderOptions| {
            Ok(Arc::new(Self(shared.clone())) as Arc<dyn KekProvider>)
        };
        options.registry.register("vault", Arc::new(constructor));
        options.authorization = options.authorization.allow("vault:key");
        (options, state)
    }
}

impl KekProvider for PublicKek {
    fn uri(&self) -> &str {
        "vault:key"
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::RsaOaep256]
    }

    fn wrap(&self, _: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let kek = KekReference {
            key_id: "key".into(),
            key_version: "v1".into(),
            algorithm: Algorithm::RsaOaep256,
            parameters: None,
        };
        let blobs = secrets.iter().map(|secret| Self::public_wrap(secret.expose())).collect();
        Ok(Wrapped { kek, blobs })
    }

    fn unwrap(&self, _: &Binding, _: &KekReference, wrapped: &[u8]) -> Result<Secret, KekError> {
        let reason = "says the service".to_owned();
        let kind = match self.0.load(Ordering::Relaxed) {
            0 | 10..=13 => return Ok(Secret::new(Self::public_wrap(wrapped).into())),
            // Another key than the one that was wrapped.
            3 => return Ok(random::secret(32)),
            1 => KekErrorKind::Denied { reason: "ForbiddenByRbac".into() },
            4 => KekErrorKind::Disabled,
            5 => KekErrorKind::Gone { recoverable: true },
            6 => KekErrorKind::Throttled { retry_after: None },
            7 => KekErrorKind::AuthenticationFailed { reason },
            8 => KekErrorKind::BadRequest { reason },
            9 => KekErrorKind::Integrity,
            _ => KekErrorKind::Unreachable { reason: "time-out".into() },
        };
        Err(KekError::new(kind, self.uri(), "key/v1"))
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        Ok(Some("v1".into()))
    }

    fn expiry(&self) -> Result<Option<SystemTime>, KekError> {
        let kind = match self.0.load(Ordering::Relaxed) {
            10 => return Ok(Some(SystemTime::now() - Duration::from_secs(1))),
            11 => return Ok(Some(SystemTime::now() + Duration::from_secs(60))),
            12 => KekErrorKind::Denied { reason: "keys/get".into() },
            13 => KekErrorKind::Unreachable { reason: "time-out".into() },
            _ => return Ok(None),
        };
        Err(KekError::new(kind, self.uri(), "key/v1"))
    }
}

/// The MAC of epoch 1 as the configuration has it.
fn mac_of_epoch_1(config: &Config) -> [u8; 32] {
    let json: serde_json::Value = serde_json::from_slice(config.bytes()).expect("JSON");
    let hex = json["macs"][0]["mac"].as_str().expect("a string").to_owned();
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal");
    std::array::from_fn(byte)
}

/// The configuration that someone makes who has the public key and a volume key of their own.
fn forge(config: &Config, change: impl FnOnce(&mut ConfigData, &[u8]), epochs: &[u32]) -> Config {
    let own = Secret::new(Box::new([9; 32]));
    let mut data = config.data().clone();
    change(&mut data, own.expose());
    for (epoch, wrapped) in data.epochs.iter_mut().filter(|(epoch, _)| epochs.contains(epoch)) {
        let context = [&VOLUME.0[..], &epoch.to_be_bytes()].concat();
        let wrapping_key = kdf::derive(&own, "atrest mk wrap v1", &context, 32);
        *wrapped = atrest::crypto::wrap::wrap(&wrapping_key, &Secret::new(Box::new([8; 32])));
    }
    let mac_key = kdf::derive(&own, "atrest config mac v1", &VOLUME.0, 32);
    Config::new(data, |epoch, covered| match epochs.contains(&epoch) {
        true => kdf::mac(&mac_key, covered),
        false => mac_of_epoch_1(config),
    })
    .expect("the forgery is well formed")
}

/// With a public KEK anyone can wrap a volume key of their own. An epoch that is added so is
/// refused, because the true epoch's MAC covers the configuration too; and when everything is
/// replaced, the host's pin tells.
#[test]
fn forged_epochs_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (options, _) = PublicKek::options(directory.path());
    let vault = provider("vault:key", &options);
    let (config, keys) =
        VolumeKeys::create(VOLUME, Cipher::Aes256Gcm, &*vault).expect("the vault is there");
    let add = |data: &mut ConfigData, own: &[u8]| {
        data.epochs.push((2, vec![0; 40]));
        data.slots[0].wrapped.push((2, PublicKek::public_wrap(own)));
    };
    let forged = forge(&config, add, &[2]);
    let error = refused(&forged, &options);
    assert!(matches!(error, KeyError::Config(ConfigError::MacMismatch(1))), "{error:?}");

    let replace = |data: &mut ConfigData, own: &[u8]| {
        data.slots[0].wrapped[0].1 = PublicKek::public_wrap(own);
    };
    let replaced = open(&forge(&config, replace, &[1]), &options).keys;
    assert_ne!(replaced.pin(), keys.pin());
}

/// A daemon takes over only a configuration that was made with its own keys: not one with an epoch
/// more or less, not one of another volume, not one that was changed.
#[test]
fn a_configuration_is_verified_with_keys_at_hand() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (config, keys) = create(&options);
    assert_eq!(keys.verify_config(config.bytes()).expect("its own").bytes(), config.bytes());
    let local = provider("local:other", &options);
    let (next, _) = keys.add_slot(&config, &*local).expect("a second slot");
    assert_eq!(keys.verify_config(next.bytes()).expect("made with its keys").data().slots.len(), 2);

    let epoch_of = |keys: &VolumeKeys, bytes: &[u8]| match keys.verify_config(bytes) {
        Err(KeyError::Config(ConfigError::MacMismatch(epoch))) => epoch,
        other => panic!("{:?}", other.map(|config| config.data().generation)),
    };
    let forged = forge(&config, |data, _| data.generation += 1, &[1]);
    assert_eq!(epoch_of(&keys, forged.bytes()), 1);
    let forged = forge(&config, |data, _| data.generation += 1, &[]);
    assert_eq!(epoch_of(&keys, forged.bytes()), 1, "a MAC of other bytes");
    let (two_epochs, newer) = keys.add_epoch(&config, &options).expect("rotation");
    assert_eq!(epoch_of(&keys, two_epochs.bytes()), 2, "an epoch that is not known here");
    assert_eq!(epoch_of(&newer, config.bytes()), 2, "an epoch of ours is missing");
    let other = VolumeId([9; 16]);
    let (stranger, _) =
        VolumeKeys::create(other, Cipher::Aes256Gcm, &*provider("local:default", &options))
            .expect("another volume");
    assert_eq!(epoch_of(&keys, stranger.bytes()), 1);
}

/// A slot of another volume under the same KEK does not open this one.
#[test]
fn slots_do_not_move_between_volumes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (config, keys) = create(&options);
    let (other, _) = create(&options);
    let mut data = config.data().clone();
    data.slots = other.data().slots.clone();
    let moved = Config::new(data, |_, _| mac_of_epoch_1(&config)).expect("well formed");
    let error = refused(&moved, &options);
    assert!(matches!(error, KeyError::Config(ConfigError::MacMismatch(1))), "{error:?}");
    let check = &keys.check_slots(&moved, &options, None).expect("a slot is there")[0];
    assert!(matches!(&check.unwraps, Err(e) if matches!(e.kind(), KekErrorKind::Integrity)));
    assert!(matches!(check.wraps, Some(Ok(()))) && !check.is_good());
}

/// A volume names a KEK that this host does not authorise, or of a kind that does not exist.
#[test]
fn a_volume_authorises_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (allowing, _) = PublicKek::options(directory.path());
    let vault = provider("vault:key", &allowing);
    let (config, _) =
        VolumeKeys::create(VOLUME, Cipher::Aes256Gcm, &*vault).expect("the vault is there");
    let strict =
        ProviderOptions { registry: allowing.registry.clone(), ..options(directory.path()) };
    for (options, words) in
        [(&strict, "authorise"), (&options(directory.path()), "local:, passphrase:")]
    {
        let error = refused(&config, options);
        assert!(matches!(only_failure(&error), KekErrorKind::Configuration { .. }));
        assert!(error.to_string().contains(words), "{error}");
    }
    for (pattern, uri, permitted) in [
        ("vault:key", "vault:key", true),
        ("vault:key", "vault:key2", false),
        ("vault:", "vault:anything", true),
        ("https://a.example/", "https://a.example/keys/k", true),
        ("https://a.example/", "https://a.example.evil/keys/k", false),
        ("https://a.example", "https://a.example.evil/keys/k", false),
    ] {
        let authorization = atrest::key::Authorization::default().allow(pattern);
        assert_eq!(authorization.permits(uri), permitted, "{pattern} {uri}");
    }
}

/// A configuration with a slot of [`PublicKek`], and behind it one of the local store.
fn vault_then_local(options: &ProviderOptions) -> Config {
    let providers = [provider("vault:key", options), provider("local:", options)];
    let borrowed: Vec<&dyn KekProvider> = providers.iter().map(|provider| &**provider).collect();
    VolumeKeys::create_with_slots(VOLUME, Cipher::Aes256Gcm, &borrowed).expect("both are there").0
}

/// Whoever denies, disables or deletes a key means that: the next slot does not open the volume
/// unless it is asked for. What is no decision about the key is passed over.
#[test]
fn a_denial_does_not_fall_through() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (options, state) = PublicKek::options(directory.path());
    let config = vault_then_local(&options);
    assert_eq!((config.data().generation, config.data().slots.len()), (1, 2));
    assert_eq!(open(&config, &options).slot, 1);
    for denial in [1, 4, 5] {
        state.store(denial, Ordering::Relaxed);
        let error = refused(&config, &options);
        let KeyError::Denied { failures, untried } = error else { panic!("{denial}: {error}") };
        assert!(failures.len() == 1 && failures[0].error.is_definitive());
        assert_eq!(untried, [2]);
        assert_eq!(open(&config, &ProviderOptions { slot: Some(2), ..options.clone() }).slot, 2);
        let only = refused(&config, &ProviderOptions { slot: Some(1), ..options.clone() });
        assert!(matches!(only, KeyError::NoSlot(_)), "{only}");
    }
    for trouble in [2, 6, 7, 8, 9] {
        state.store(trouble, Ordering::Relaxed);
        let opened = open(&config, &options);
        assert_eq!((opened.slot, opened.failures.len()), (2, 1), "{trouble}");
    }
    // This host does not know the kind, or does not authorise the key.
    let opened = open(&config, &self::options(directory.path()));
    assert_eq!((opened.slot, opened.failures[0].slot), (2, 1));
}

/// A key that has expired is denied where that is asked for, and only there; one whose expiry
/// nobody may know is not.
#[test]
fn expired_keys_are_denied() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (options, state) = PublicKek::options(directory.path());
    let config = vault_then_local(&options);
    let strict = ProviderOptions { expiry_denies: true, ..options.clone() };
    state.store(10, Ordering::Relaxed);
    assert_eq!(open(&config, &options).slot, 1);
    let error = refused(&config, &strict);
    let KeyError::Denied { failures, untried } = error else { panic!("{error}") };
    let words = failures[0].error.to_string();
    assert!(
        words.contains("it expired 1 s ago") && words.contains("--kek-expiry serve"),
        "{words}"
    );
    assert_eq!(untried, [2]);
    for (answer, slot) in [(0, 1), (11, 1), (12, 1), (13, 2)] {
        state.store(answer, Ordering::Relaxed);
        assert_eq!(open(&config, &strict).slot, slot, "{answer}");
    }
}

/// A key that wraps and does not unwrap gets no slot, neither a new one nor an old one.
#[test]
fn a_key_that_cannot_unwrap_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (options, state) = PublicKek::options(directory.path());
    let (config, keys) = create(&options);
    let vault = provider("vault:key", &options);
    // Denied, another key, disabled.
    for trouble in [1, 3, 4] {
        state.store(trouble, Ordering::Relaxed);
        let created = VolumeKeys::create(VOLUME, Cipher::Aes256Gcm, &*vault);
        assert!(matches!(created.err(), Some(KeyError::CannotUnwrap(_))), "{trouble}");
        assert!(matches!(keys.add_slot(&config, &*vault), Err(KeyError::CannotUnwrap(_))));
        let rotated = keys.rotate_slot(&config, 1, &*vault, false);
        assert!(matches!(rotated, Err(KeyError::CannotUnwrap(_))));
    }
    state.store(0, Ordering::Relaxed);
    let rotated = keys.rotate_slot(&config, 1, &*vault, false).expect("the vault is there");
    let slot = &rotated.data().slots[0];
    assert_eq!(
        (slot.id, slot.provider.as_str(), slot.kek.key_id.as_str()),
        (1, "vault:key", "key")
    );
    assert_eq!(open(&rotated, &options).keys.pin(), keys.pin());
}

/// A slot that says another algorithm than its provider has is not even asked for.
#[test]
fn algorithms_are_fixed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (config, _) = create(&options);
    let mut data = config.data().clone();
    data.slots[0].kek.algorithm = Algorithm::RsaOaep256;
    let changed = Config::new(data, |_, _| mac_of_epoch_1(&config)).expect("well formed");
    let error = refused(&changed, &options);
    assert!(matches!(only_failure(&error), KekErrorKind::BadRequest { .. }), "{error}");
}

/// Rotation wraps outdated slots again, after which the old version may be switched off.
#[test]
fn rotation_follows_the_kek() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let store = KeyStore::new(directory.path().join("keys"));
    let (config, keys) = create(&options);
    let (none, reports) = keys.rotate_slots(&config, &options, false).expect("nothing to do");
    assert!(none.is_none() && reports[0].result.is_ok());
    assert_eq!(store.rotate("default").expect("it exists"), 2);
    let (rotated, _) = keys.rotate_slots(&config, &options, false).expect("version 2 is there");
    let rotated = rotated.expect("the slot was outdated");
    assert_eq!(rotated.data().slots[0].kek.key_version, "2");
    assert_eq!(rotated.data().generation, 2);
    store.set_enabled("default", 1, false).expect("it exists");
    assert!(matches!(only_failure(&refused(&config, &options)), KekErrorKind::Disabled));
    let opened = open(&rotated, &options);
    assert_eq!(opened.keys.pin(), keys.pin());
    let again = keys.rotate_slot(&rotated, 1, &*opened.provider, true).expect("writable");
    assert_eq!(again.data().slots[0].kek.key_version, "3");
    assert!(matches!(
        keys.rotate_slot(&rotated, 9, &*opened.provider, false),
        Err(KeyError::NoSuchSlot(9))
    ));
}

/// A new epoch wraps what is new; what the old one wrapped still unwraps; every slot has both.
#[test]
fn new_epoch() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let (config, keys) = create(&options);
    let dek = random::secret(32);
    let (old_epoch, old) = keys.wrap_dek(1, 2, &dek);
    let (config, keys) = keys.add_epoch(&config, &options).expect("the store is writable");
    let (new_epoch, new) = keys.wrap_dek(1, 2, &dek);
    assert_eq!((old_epoch, new_epoch), (1, 2));
    let opened = open(&config, &options).keys;
    assert_eq!((opened.current_epoch(), opened.epochs().collect::<Vec<_>>()), (2, vec![1, 2]));
    assert!(opened.unwrap_dek(1, 1, 2, &old).expect("epoch 1 is live").is_same(&dek));
    assert!(opened.unwrap_dek(2, 1, 2, &new).expect("epoch 2 is live").is_same(&dek));
    assert!(matches!(opened.unwrap_dek(2, 1, 2, &old), Err(Tampered)));
    assert_eq!(opened.pins().len(), 2);
    assert_eq!(opened.pins()[1], keys.pin());
}

fn passphrase_file(directory: &Path, name: &str, text: &str, mode: u32) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a temporary directory is writable");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    path
}

/// A passphrase opens, without its trailing line feed; a wrong one is `Integrity`; none, an empty
/// one and a file that everybody can read are the user's to fix; and it can be changed.
#[test]
fn passphrases() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    let with =
        |file: std::path::PathBuf| ProviderOptions { passphrase_file: Some(file), ..options(path) };
    let good = with(passphrase_file(path, "good", "correct horse\n", 0o600));
    let (config, keys) =
        VolumeKeys::create(VOLUME, Cipher::Aes256Xts, &*provider("passphrase:", &good))
            .expect("the passphrase is readable");
    assert_eq!(open(&config, &good).keys.pin(), keys.pin());
    let bare = with(passphrase_file(path, "bare", "correct horse", 0o640));
    assert_eq!(open(&config, &bare).keys.cipher(), Cipher::Aes256Xts);
    let wrong = with(passphrase_file(path, "wrong", "correct horse\n\n", 0o600));
    assert!(matches!(only_failure(&refused(&config, &wrong)), KekErrorKind::Integrity));
    for (bad, words) in [
        (with(passphrase_file(path, "empty", "\n", 0o600)), "is empty"),
        (with(passphrase_file(path, "open", "correct horse", 0o644)), "everybody can read"),
        (with(path.join("missing")), "cannot read the passphrase"),
        (with(passphrase_file(path, "long", &"x".repeat(4097), 0o600)), "too large"),
        (options(path), "--passphrase-file"),
    ] {
        let error = refused(&config, &bad);
        assert!(matches!(only_failure(&error), KekErrorKind::Configuration { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("horse"), "{error}");
    }
    let new = passphrase_file(path, "new", "battery staple", 0o600);
    let change = ProviderOptions { new_passphrase_file: Some(new.clone()), ..good.clone() };
    let changed = keys
        .rotate_slot(&config, 1, &*provider("passphrase:", &change), false)
        .expect("both passphrases are readable");
    assert!(matches!(only_failure(&refused(&changed, &good)), KekErrorKind::Integrity));
    assert_eq!(open(&changed, &with(new)).keys.pin(), keys.pin());
}

/// Nothing of a key is in what is printed for debugging.
#[test]
fn debug_output_has_no_secrets() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = options(directory.path());
    let store = KeyStore::new(directory.path().join("keys"));
    create(&options);
    let file = std::fs::read_to_string(store.directory().join("default.json")).expect("text");
    let json: serde_json::Value = serde_json::from_str(&file).expect("JSON");
    let key = json["versions"][0]["key"].as_str().expect("a string");
    assert_eq!(key.len(), 44);
    let list = store.list().expect("readable");
    assert_eq!(list.len(), 1);
    assert!(!format!("{list:?}").contains(&key[..8]));
    std::fs::write(store.directory().join("default.json"), file.replace("true", "maybe"))
        .expect("writable");
    let error = store.list().expect_err("the file is damaged");
    assert!(!format!("{error:?} {error}").contains(&key[..8]), "{error:?}");
}
