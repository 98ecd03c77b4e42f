//! Key slots, and the keys below them.
//!
//! ```text
//! KEK          in a provider
//!  └─ VK       per epoch, wrapped by the KEK of each slot
//!      ├─ MK   per epoch, wrapped under
//!      │       KDF(VK, "atrest mk wrap v1", volume || epoch)
//!      └─ DEK  per chunk, wrapped under
//!              KDF(VK, "atrest dek wrap v1", volume || epoch || ino || chunk)
//! ```
//!
//! What a key is for is in the derivation of the key that wraps it, so a wrapped key that is moved
//! elsewhere does not unwrap there. Integers in derivations are big-endian.
//!
//! Every change returns a new [`Config`]; it counts once the caller has made its bytes durable.

pub(super) mod slots;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Binding, KekError, KekErrorKind, KekProvider, ProviderOptions, provider_from_uri};
use crate::crypto::{ChainKey, Cipher, Secret, Tampered, kdf, random, wrap};
use crate::format::VolumeId;
use crate::format::config::{
    AuditAnchor, Config, ConfigData, ConfigError, KekReference, KeySlot, SLOTS_MAX,
    UnverifiedConfig,
};

const CONFIG_MAC: &str = "atrest config mac v1";
const MK_WRAP: &str = "atrest mk wrap v1";
const DEK_WRAP: &str = "atrest dek wrap v1";
const PIN: &str = "atrest pin v1";
const AUDIT: &str = "atrest audit v1";
/// Length of volume keys and metadata keys, in bytes.
const KEY_BYTES: usize = 32;

/// Why keys could not be had or changed.
#[derive(Debug)]
pub enum KeyError {
    /// The configuration is refused.
    Config(ConfigError),
    /// The volume's cipher is none that this program knows.
    UnknownCipher(String),
    /// No slot opened the volume: each, with the reason, in the order they were tried.
    NoSlot(Vec<SlotFailure>),
    /// The key of a slot was denied, disabled or deleted, which ends the attempt: whoever decided
    /// that did not mean a weaker slot to open the volume instead.
    Denied {
        /// The slots that were tried, the last of which was denied.
        failures: Vec<SlotFailure>,
        /// Numbers of the slots behind it, which were not tried.
        untried: Vec<u32>,
    },
    /// There is no slot of that number.
    NoSuchSlot(u32),
    /// The last slot is not removed: nothing could open the volume again.
    LastSlot(u32),
    /// There are as many slots as can be.
    SlotsFull,
    /// A provider wrapped, and did not unwrap what it had wrapped: a slot like that opens nothing.
    CannotUnwrap(KekError),
    /// A provider failed.
    Kek(KekError),
}

/// A slot that did not open the volume, and why.
#[derive(Debug)]
pub struct SlotFailure {
    /// Number of the slot.
    pub slot: u32,
    /// Why.
    pub error: KekError,
}

/// What [`VolumeKeys::open`] returns.
pub struct Opened {
    /// The configuration, verified.
    pub config: Config,
    /// The keys.
    pub keys: VolumeKeys,
    /// Number of the slot that opened the volume.
    pub slot: u32,
    /// Its provider, for re-checks.
    pub provider: Arc<dyn KekProvider>,
    /// Slots before it that did not, for the log and the audit.
    pub failures: Vec<SlotFailure>,
}

/// The keys of an open volume: every live epoch of the volume key, with its metadata key.
///
/// Wiped when dropped. Neither `Clone` nor `Debug`.
pub struct VolumeKeys {
    volume_id: VolumeId,
    cipher: Cipher,
    /// Ascending by number; the last is the current one. Shared with the keys of the next
    /// configuration while a rotation makes it.
    epochs: Vec<Arc<EpochKeys>>,
}

struct EpochKeys {
    epoch: u32,
    volume_key: Secret,
    metadata_key: Secret,
}

impl EpochKeys {
    fn draw(epoch: u32) -> Arc<Self> {
        let [volume_key, metadata_key] = [(); 2].map(|()| random::secret(KEY_BYTES));
        Arc::new(Self { epoch, volume_key, metadata_key })
    }
}

impl VolumeKeys {
    /// Draws the keys of a new volume, with one slot that `provider` wraps.
    ///
    /// # Errors
    /// [`KeyError::Kek`] of the provider; [`KeyError::Config`] if what it says is out of bounds.
    pub fn create(
        volume_id: VolumeId,
        cipher: Cipher,
        provider: &dyn KekProvider,
    ) -> Result<(Config, Self), KeyError> {
        Self::create_with_slots(volume_id, cipher, &[provider])
    }

    /// The same with a slot for each of `providers`, of which there is one at least.
    ///
    /// # Errors
    /// As of [`VolumeKeys::create`], of the first that fails; [`KeyError::SlotsFull`].
    pub fn create_with_slots(
        volume_id: VolumeId,
        cipher: Cipher,
        providers: &[&dyn KekProvider],
    ) -> Result<(Config, Self), KeyError> {
        if providers.len() > SLOTS_MAX {
            return Err(KeyError::SlotsFull);
        }
        let keys = Self { volume_id, cipher, epochs: vec![EpochKeys::draw(1)] };
        let wrap = |(id, provider): (u32, &&dyn KekProvider)| keys.wrap_slot(id, *provider);
        let slots = (1..).zip(providers).map(wrap).collect::<Result<_, _>>()?;
        let epochs = keys.wrapped_metadata_keys();
        let cipher = cipher.name().to_owned();
        let (generation, audit) = (1, None);
        let data = ConfigData { volume_id, cipher, generation, epochs, slots, audit };
        let config = keys.seal(data)?;
        Ok((config, keys))
    }

    /// Opens a volume by the first slot that does, in order, or by `options.slot` only. A slot that
    /// cannot be asked (an outage, a credential or passphrase that is wrong or missing, a URI that
    /// is not authorised) is passed over; one whose key is denied, disabled or gone ends the
    /// attempt.
    ///
    /// # Errors
    /// [`KeyError::Config`] if the bytes are refused, or the MAC of any live epoch does not verify;
    /// [`KeyError::NoSlot`] with what each slot said; [`KeyError::Denied`].
    pub fn open(bytes: &[u8], options: &ProviderOptions) -> Result<Opened, KeyError> {
        let unverified = UnverifiedConfig::decode(bytes)?;
        let claims = unverified.claims();
        let cipher = Cipher::from_name(&claims.cipher)
            .ok_or_else(|| KeyError::UnknownCipher(claims.cipher.clone()))?;
        if let Some(id) = options.slot.filter(|id| claims.slots.iter().all(|s| s.id != *id)) {
            return Err(KeyError::NoSuchSlot(id));
        }
        let chosen = |slot: &&KeySlot| options.slot.is_none_or(|id| slot.id == id);
        let mut slots = claims.slots.iter().filter(chosen);
        let mut failures = Vec::new();
        let found = loop {
            let Some(slot) = slots.next() else { return Err(KeyError::NoSlot(failures)) };
            let provider = provider_from_uri(&slot.provider, options);
            let unwrapped = provider.and_then(|provider| {
                let volume_keys = unwrap_slot(claims.volume_id, slot, &*provider)?;
                if options.expiry_denies {
                    refuse_expired(&*provider, &slot.kek)?;
                }
                Ok((slot.id, provider, volume_keys))
            });
            match unwrapped {
                Ok(found) => break found,
                Err(error) => {
                    let definitive = error.is_definitive();
                    failures.push(SlotFailure { slot: slot.id, error });
                    let untried: Vec<u32> = slots.clone().map(|slot| slot.id).collect();
                    if definitive && !untried.is_empty() {
                        return Err(KeyError::Denied { failures, untried });
                    }
                }
            }
        };
        let (slot, provider, volume_keys) = found;
        let volume_id = claims.volume_id;
        let config = unverified.verify(|epoch, covered, mac| {
            let key = volume_keys.iter().find(|(number, _)| *number == epoch);
            key.is_some_and(|(_, key)| kdf::mac_verify(&mac_key(key, volume_id), covered, mac))
        })?;
        let keys = Self::unwrap_metadata_keys(&config, cipher, volume_keys)?;
        Ok(Opened { config, keys, slot, provider, failures })
    }

    /// Verifies a configuration of this volume with the keys that are here, for a daemon that is
    /// told to take it over: it must have exactly these epochs, and the MAC of each must verify.
    ///
    /// # Errors
    /// [`KeyError::Config`]: of the form, or [`ConfigError::MacMismatch`] with an epoch that is not
    /// this volume's, whose MAC does not verify, or that is missing.
    pub fn verify_config(&self, bytes: &[u8]) -> Result<Config, KeyError> {
        let unverified = UnverifiedConfig::decode(bytes)?;
        let claims = unverified.claims();
        if claims.volume_id != self.volume_id || claims.cipher != self.cipher.name() {
            return Err(ConfigError::MacMismatch(self.current_epoch()).into());
        }
        let has = |epoch: &u32| claims.epochs.iter().any(|(claimed, _)| claimed == epoch);
        if let Some(missing) = self.epochs().find(|epoch| !has(epoch)) {
            return Err(ConfigError::MacMismatch(missing).into());
        }
        let config = unverified.verify(|epoch, covered, mac| {
            self.epoch(epoch).is_some_and(|keys| {
                kdf::mac_verify(&mac_key(&keys.volume_key, self.volume_id), covered, mac)
            })
        })?;
        Ok(config)
    }

    /// The volume.
    pub fn volume_id(&self) -> VolumeId {
        self.volume_id
    }

    /// The cipher of file contents.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The newest epoch, which wraps and seals what is new.
    pub fn current_epoch(&self) -> u32 {
        self.current().epoch
    }

    /// Numbers of the live epochs, ascending.
    pub fn epochs(&self) -> impl Iterator<Item = u32> {
        self.epochs.iter().map(|keys| keys.epoch)
    }

    /// The metadata key of a live epoch.
    pub fn metadata_key(&self, epoch: u32) -> Option<&Secret> {
        self.epoch(epoch).map(|keys| &keys.metadata_key)
    }

    /// Wraps the DEK of a chunk under the current epoch, which is returned with it: 8 bytes more
    /// than the DEK has.
    pub fn wrap_dek(&self, ino: u64, chunk: u64, dek: &Secret) -> (u32, Vec<u8>) {
        let keys = self.current();
        (keys.epoch, wrap::wrap(&self.dek_wrapping_key(keys, ino, chunk), dek))
    }

    /// Unwraps what [`VolumeKeys::wrap_dek`] wrapped for the same chunk.
    ///
    /// # Errors
    /// [`Tampered`] if it was wrapped for another chunk, volume or epoch, or changed, or if the
    /// epoch is not live.
    pub fn unwrap_dek(
        &self,
        epoch: u32,
        ino: u64,
        chunk: u64,
        wrapped: &[u8],
    ) -> Result<Secret, Tampered> {
        let keys = self.epoch(epoch).ok_or(Tampered)?;
        let dek = wrap::unwrap(&self.dek_wrapping_key(keys, ino, chunk), wrapped)?;
        if dek.len() == self.cipher.key_bytes() { Ok(dek) } else { Err(Tampered) }
    }

    /// `KDF(VK, "atrest pin v1")` of the current epoch, for [`super::pin`].
    pub fn pin(&self) -> [u8; 32] {
        pin(self.current())
    }

    /// The pins of all live epochs: a host that saw the volume before a rotation knows an older.
    pub fn pins(&self) -> Vec<[u8; 32]> {
        self.epochs.iter().map(|keys| pin(keys)).collect()
    }

    /// The key that a session of the audit log begins with, by key epoch: one that was rotated away
    /// has none any more. It leads to no other key of the volume.
    pub fn audit_key(&self, epoch: u32, session: [u8; 8]) -> Option<ChainKey> {
        let mut context = [0; 24];
        context[..16].copy_from_slice(&self.volume_id.0);
        context[16..].copy_from_slice(&session);
        let keys = self.epoch(epoch)?;
        Some(ChainKey::new(kdf::derive(&keys.volume_key, AUDIT, &context, KEY_BYTES)))
    }

    /// The next configuration, which says how far the audit log went.
    ///
    /// # Errors
    /// [`KeyError::Config`] if it would be out of bounds.
    pub fn anchor_audit(&self, config: &Config, anchor: AuditAnchor) -> Result<Config, KeyError> {
        self.seal(ConfigData { audit: Some(anchor), ..self.next(config) })
    }

    /// Draws a new volume key and metadata key, current from then on, and wraps all epochs for
    /// every slot, asking each provider. Returns the keys that go with the new configuration.
    ///
    /// # Errors
    /// Those of the first slot whose provider fails; nothing has changed then.
    pub fn add_epoch(
        &self,
        config: &Config,
        options: &ProviderOptions,
    ) -> Result<(Config, Self), KeyError> {
        let mut epochs = self.epochs.clone();
        epochs.push(EpochKeys::draw(self.current_epoch() + 1));
        let keys = Self { volume_id: self.volume_id, cipher: self.cipher, epochs };
        let mut data = keys.next(config);
        data.epochs = keys.wrapped_metadata_keys();
        for slot in &mut data.slots {
            *slot = keys.wrap_slot(slot.id, &*provider_from_uri(&slot.provider, options)?)?;
        }
        Ok((keys.seal(data)?, keys))
    }

    fn unwrap_metadata_keys(
        config: &Config,
        cipher: Cipher,
        volume_keys: Vec<(u32, Secret)>,
    ) -> Result<Self, KeyError> {
        let volume_id = config.data().volume_id;
        let mut epochs = Vec::new();
        for ((epoch, volume_key), (_, wrapped)) in
            volume_keys.into_iter().zip(&config.data().epochs)
        {
            let wrapping_key = mk_wrapping_key(&volume_key, volume_id, epoch);
            let metadata_key = wrap::unwrap(&wrapping_key, wrapped)
                .map_err(|Tampered| ConfigError::MacMismatch(epoch))?;
            epochs.push(Arc::new(EpochKeys { epoch, volume_key, metadata_key }));
        }
        Ok(Self { volume_id, cipher, epochs })
    }

    fn wrapped_metadata_keys(&self) -> Vec<(u32, Vec<u8>)> {
        let wrap = |keys: &Arc<EpochKeys>| {
            let wrapping_key = mk_wrapping_key(&keys.volume_key, self.volume_id, keys.epoch);
            (keys.epoch, wrap::wrap(&wrapping_key, &keys.metadata_key))
        };
        self.epochs.iter().map(wrap).collect()
    }

    /// Wraps all epochs, and unwraps them again: a slot that does not open is worse than none.
    fn wrap_slot(&self, id: u32, provider: &dyn KekProvider) -> Result<KeySlot, KeyError> {
        let volume_keys: Vec<_> = self.epochs.iter().map(|keys| &keys.volume_key).collect();
        let binding = Binding { volume_id: self.volume_id };
        let super::Wrapped { kek, blobs } = provider.wrap(&binding, &volume_keys)?;
        if blobs.len() != volume_keys.len() {
            return Err(KeyError::CannotUnwrap(integrity(provider, &kek)));
        }
        for (volume_key, blob) in volume_keys.iter().zip(&blobs) {
            let unwrapped =
                provider.unwrap(&binding, &kek, blob).map_err(KeyError::CannotUnwrap)?;
            if !unwrapped.is_same(volume_key) {
                return Err(KeyError::CannotUnwrap(integrity(provider, &kek)));
            }
        }
        let wrapped = self.epochs().zip(blobs).collect();
        Ok(KeySlot { id, provider: provider.uri().to_owned(), kek, wrapped })
    }

    /// A copy of what `config` says, to be changed into the next generation.
    fn next(&self, config: &Config) -> ConfigData {
        let mut data = config.data().clone();
        data.generation = data.generation.saturating_add(1);
        data
    }

    fn seal(&self, data: ConfigData) -> Result<Config, KeyError> {
        let config = Config::new(data, |epoch, covered| {
            let keys = self.epoch(epoch).expect("a configuration is made from its own keys");
            kdf::mac(&mac_key(&keys.volume_key, self.volume_id), covered)
        });
        Ok(config?)
    }

    fn dek_wrapping_key(&self, keys: &EpochKeys, ino: u64, chunk: u64) -> Secret {
        let mut context = [0; 36];
        context[..16].copy_from_slice(&self.volume_id.0);
        context[16..20].copy_from_slice(&keys.epoch.to_be_bytes());
        context[20..28].copy_from_slice(&ino.to_be_bytes());
        context[28..].copy_from_slice(&chunk.to_be_bytes());
        kdf::derive(&keys.volume_key, DEK_WRAP, &context, KEY_BYTES)
    }

    fn epoch(&self, epoch: u32) -> Option<&EpochKeys> {
        self.epochs.iter().rev().find(|keys| keys.epoch == epoch).map(|keys| &**keys)
    }

    fn current(&self) -> &EpochKeys {
        self.epochs.last().expect("a volume has an epoch, which decoding checks")
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(_) => f.write_str("the volume's configuration is refused"),
            Self::UnknownCipher(name) => write!(f, "the volume's cipher is unknown: {name}"),
            Self::NoSlot(failures) => {
                f.write_str("no key slot opens the volume")?;
                list(f, failures)
            }
            Self::Denied { failures, .. } => {
                f.write_str("the volume's key is denied, and no further slot was tried")?;
                list(f, failures)
            }
            Self::NoSuchSlot(slot) => write!(f, "the volume has no key slot {slot}"),
            Self::LastSlot(slot) => {
                write!(f, "key slot {slot} is the last; without it nothing opens the volume")
            }
            Self::SlotsFull => write!(f, "the volume has {SLOTS_MAX} key slots, and not one more"),
            Self::CannotUnwrap(_) => {
                f.write_str("the key-encryption key wraps, but does not unwrap")
            }
            Self::Kek(_) => f.write_str("the key-encryption key cannot be used"),
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Kek(error) | Self::CannotUnwrap(error) => Some(error),
            Self::UnknownCipher(_)
            | Self::NoSlot(_)
            | Self::Denied { .. }
            | Self::NoSuchSlot(_)
            | Self::LastSlot(_)
            | Self::SlotsFull => None,
        }
    }
}

impl From<ConfigError> for KeyError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<KekError> for KeyError {
    fn from(error: KekError) -> Self {
        Self::Kek(error)
    }
}

fn list(f: &mut fmt::Formatter<'_>, failures: &[SlotFailure]) -> fmt::Result {
    let mut lines = failures.iter();
    lines.try_for_each(|SlotFailure { slot, error }| write!(f, "\n  slot {slot}: {error}"))
}

/// Whoever may unwrap need not be allowed to read the key, and then nobody knows its expiry.
fn refuse_expired(provider: &dyn KekProvider, kek: &KekReference) -> Result<(), KekError> {
    let expiry = match provider.expiry() {
        Err(error) if matches!(error.kind(), KekErrorKind::Denied { .. }) => return Ok(()),
        expiry => expiry?,
    };
    let Some(end) = expiry.filter(|end| *end <= SystemTime::now()) else { return Ok(()) };
    let ago = SystemTime::now().duration_since(end).unwrap_or_default().as_secs();
    let reason = format!(
        "it expired {ago} s ago; set a later expiry, or make a new version and run atrest key \
         rotate; to use it as long as its service does, mount with --kek-expiry serve"
    );
    let key = format!("{}/{}", kek.key_id, kek.key_version);
    Err(KekError::new(KekErrorKind::Denied { reason }, provider.uri(), &key))
}

/// The volume key of each epoch, as `provider` unwraps it.
fn unwrap_slot(
    volume_id: VolumeId,
    slot: &KeySlot,
    provider: &dyn KekProvider,
) -> Result<Vec<(u32, Secret)>, KekError> {
    if !provider.algorithms().contains(&slot.kek.algorithm) {
        let reason = "the slot's algorithm is not that of its provider".to_owned();
        return Err(KekError::new(KekErrorKind::BadRequest { reason }, &slot.provider, ""));
    }
    let binding = Binding { volume_id };
    let mut keys = Vec::new();
    for (epoch, wrapped) in &slot.wrapped {
        let key = provider.unwrap(&binding, &slot.kek, wrapped)?;
        if key.len() != KEY_BYTES {
            return Err(integrity(provider, &slot.kek));
        }
        keys.push((*epoch, key));
    }
    Ok(keys)
}

fn mac_key(volume_key: &Secret, volume_id: VolumeId) -> Secret {
    kdf::derive(volume_key, CONFIG_MAC, &volume_id.0, KEY_BYTES)
}

fn mk_wrapping_key(volume_key: &Secret, volume_id: VolumeId, epoch: u32) -> Secret {
    let mut context = [0; 20];
    context[..16].copy_from_slice(&volume_id.0);
    context[16..].copy_from_slice(&epoch.to_be_bytes());
    kdf::derive(volume_key, MK_WRAP, &context, KEY_BYTES)
}

fn pin(keys: &EpochKeys) -> [u8; 32] {
    let pin = kdf::derive(&keys.volume_key, PIN, &[], 32);
    pin.expose().try_into().expect("32 bytes were asked for")
}

fn integrity(provider: &dyn KekProvider, kek: &KekReference) -> KekError {
    let key = format!("{}/{}", kek.key_id, kek.key_version);
    KekError::new(KekErrorKind::Integrity, provider.uri(), &key)
}
