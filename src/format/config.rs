//! `atrest.json`: the public configuration of a volume.
//!
//! Strict, canonical JSON (RFC 8259): one encoding per value, unknown fields refused, everything
//! bounded. What is read is an [`UnverifiedConfig`], and may only *name* a KEK; it becomes a
//! [`Config`] when one MAC per live epoch of the volume key verifies over its exact bytes.
//!
//! ```json
//! {
//!   "format": 1,
//!   "volume_id": "000102030405060708090a0b0c0d0e0f",
//!   "cipher": "aes-256-gcm",
//!   "generation": 1,
//!   "epochs": [
//!     { "epoch": 1, "metadata_key": "<base64: the metadata key, wrapped, 40 bytes>" }
//!   ],
//!   "slots": [
//!     {
//!       "id": 1,
//!       "provider": "local:default",
//!       "key_id": "...", "key_version": "1", "algorithm": "A256KW",
//!       "wrapped": [ { "epoch": 1, "key": "<base64: the volume key, wrapped>" } ]
//!     }
//!   ],
//!   "audit": { "seq": 17, "record": "<hexadecimal, 32 bytes>" },
//!   "macs": [ { "epoch": 1, "mac": "<hexadecimal, 32 bytes>" } ]
//! }
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{FORMAT_VERSION, VolumeId};

/// Largest configuration that is read, in bytes. 32 slots of 16 epochs under RSA-4096 need 400 KiB;
/// with the two epochs that a rotation has, they need 60.
pub const CONFIG_BYTES_MAX: usize = 256 * 1024;
/// Most live epochs: one, and one more for each unfinished rotation.
pub const EPOCHS_MAX: usize = 16;
/// Most key slots. LUKS2 has as many.
pub const SLOTS_MAX: usize = 32;
/// Longest provider URI and key identifier, in bytes. A Key Vault key URI has at most 200.
pub const URI_BYTES_MAX: usize = 512;
/// Longest wrapped volume key, in bytes: RSA-8192.
const WRAPPED_BYTES_MAX: usize = 1024;
/// A metadata key under AES-256-KW.
const METADATA_KEY_BYTES: usize = 40;

/// How a KEK wraps the volume key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// AES-256 key wrap (RFC 3394).
    #[serde(rename = "A256KW")]
    A256Kw,
    /// RSAES-OAEP with SHA-256 and MGF1-SHA-256 (RFC 8017). Wrapping takes the public key only, so
    /// it says nothing about who wrapped.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// RSAES-OAEP with SHA-1 and MGF1-SHA-1, for tokens that have no other.
    #[serde(rename = "RSA-OAEP")]
    RsaOaep,
    /// AES-256-GCM inside the provider, in a form of the provider's own that says which version
    /// wrapped; bound to the volume by associated data.
    #[serde(rename = "A256GCM")]
    A256Gcm,
    /// Sealed by a TPM 2.0 to a policy (TPM 2.0 Library, part 1, "Protected storage hierarchy").
    #[serde(rename = "TPM2-SEAL")]
    Tpm2Seal,
    /// Whatever a plugin does.
    #[serde(rename = "PLUGIN")]
    Plugin,
}

/// Cost and salt of Argon2id (RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Parameters {
    /// Memory in KiB: 8 MiB to 1 GiB, so that a configuration from elsewhere can neither weaken
    /// the derivation to nothing nor take the host's memory.
    pub memory_kib: u32,
    /// Passes over the memory: 1 to 16.
    pub passes: u32,
    /// Lanes: 1 to 16.
    pub lanes: u32,
    /// Random, one per slot and wrap.
    pub salt: [u8; 16],
}

impl Argon2Parameters {
    /// Whether the costs are within bounds.
    pub fn is_allowed(&self) -> bool {
        (8 * 1024..=1024 * 1024).contains(&self.memory_kib)
            && (1..=16).contains(&self.passes)
            && (1..=16).contains(&self.lanes)
    }
}

/// Which KEK wrapped the keys of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekReference {
    /// The provider's name for the key.
    pub key_id: String,
    /// The version that wrapped, and that unwraps.
    pub key_version: String,
    /// How.
    pub algorithm: Algorithm,
    /// For a passphrase: how the KEK is derived.
    pub parameters: Option<Argon2Parameters>,
}

/// The volume key, wrapped by one KEK: all live epochs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Number of the slot, unique and ascending.
    pub id: u32,
    /// URI of the provider.
    pub provider: String,
    /// The key there.
    pub kek: KekReference,
    /// Epoch and wrapped volume key, in order of epoch.
    pub wrapped: Vec<(u32, Vec<u8>)>,
}

/// How far an audit log went when the configuration was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditAnchor {
    /// Number of its newest record then, from 1.
    pub seq: u64,
    /// SHA-256 of that record's line, without the line feed.
    pub record: [u8; 32],
}

/// What a configuration says, apart from its MACs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigData {
    /// Which volume.
    pub volume_id: VolumeId,
    /// Name of the cipher for file contents.
    pub cipher: String,
    /// Counts the changes, from 1.
    pub generation: u64,
    /// Live epochs, ascending, each with its metadata key wrapped under the epoch's volume key.
    pub epochs: Vec<(u32, Vec<u8>)>,
    /// Key slots, ascending by id.
    pub slots: Vec<KeySlot>,
    /// The end of the audit log, if there is one.
    pub audit: Option<AuditAnchor>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Larger than [`CONFIG_BYTES_MAX`].
    #[error("the configuration has {bytes} bytes, and at most {CONFIG_BYTES_MAX} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not JSON.
    #[error("the configuration is not JSON (line {line}, column {column})")]
    NotJson {
        /// Line of the first error, from 1.
        line: usize,
        /// Column of it.
        column: usize,
    },
    /// Made by another version.
    #[error("the volume has format {0}, and this program knows format {FORMAT_VERSION} only")]
    UnsupportedVersion(u64),
    /// A field that this version does not know.
    #[error("the configuration has a field that format {FORMAT_VERSION} does not: {0}")]
    UnknownField(String),
    /// A field is missing, or has the wrong type.
    #[error("the configuration does not have the fields of format {FORMAT_VERSION}: {0}")]
    Schema(String),
    /// A field has a value that it must not have.
    #[error("`{field}` in the configuration {problem}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not the bytes that this program writes for the same content.
    #[error("the configuration was edited by hand: it is not in canonical form")]
    NotCanonical,
    /// The MAC of an epoch does not verify.
    #[error("the configuration was changed by someone without the volume key (MAC of epoch {0})")]
    MacMismatch(u32),
}

/// MAC of each live epoch, in order of epoch.
type EpochMacs = Vec<(u32, [u8; 32])>;

/// A configuration that was read and parsed, by nobody vouched for.
#[derive(Debug)]
pub struct UnverifiedConfig {
    data: ConfigData,
    macs: EpochMacs,
    bytes: Vec<u8>,
}

impl UnverifiedConfig {
    /// Parses `bytes`.
    ///
    /// # Errors
    /// One variant of [`ConfigError`] for each way of being wrong; never `MacMismatch`.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { bytes: bytes.len() });
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(refuse)?;
        if probe.format != u64::from(FORMAT_VERSION) {
            return Err(ConfigError::UnsupportedVersion(probe.format));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(refuse)?;
        let (data, macs) = document.check()?;
        let canonical = encode(&data, &macs);
        if canonical != bytes {
            return Err(ConfigError::NotCanonical);
        }
        Ok(Self { data, macs, bytes: canonical })
    }

    /// What it claims. Nothing in it may be acted on, except to ask the KEK that it names, where
    /// the host's own settings allow that one.
    pub fn claims(&self) -> &ConfigData {
        &self.data
    }

    /// Becomes a [`Config`] if `check(epoch, covered bytes, mac)` holds for every live epoch. A
    /// public-key KEK lets anyone add an epoch of their own, but nobody make the others' MACs.
    ///
    /// # Errors
    /// [`ConfigError::MacMismatch`] with the first epoch whose MAC does not verify.
    pub fn verify(
        self,
        mut check: impl FnMut(u32, &[u8], &[u8; 32]) -> bool,
    ) -> Result<Config, ConfigError> {
        let covered = encode(&self.data, &[]);
        for (epoch, mac) in &self.macs {
            if !check(*epoch, &covered, mac) {
                return Err(ConfigError::MacMismatch(*epoch));
            }
        }
        Ok(Config { data: self.data, bytes: self.bytes })
    }
}

/// A configuration whose MACs verified, or which this process made.
#[derive(Debug)]
pub struct Config {
    data: ConfigData,
    bytes: Vec<u8>,
}

impl Config {
    /// Makes the configuration that says `data`, with `mac(epoch, covered bytes)` for every epoch.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] or [`ConfigError::TooLarge`] if it could not be read again.
    pub fn new(
        data: ConfigData,
        mut mac: impl FnMut(u32, &[u8]) -> [u8; 32],
    ) -> Result<Self, ConfigError> {
        let covered = encode(&data, &[]);
        let macs: Vec<_> = data.epochs.iter().map(|(e, _)| (*e, mac(*e, &covered))).collect();
        let bytes = encode(&data, &macs);
        let UnverifiedConfig { data, bytes, .. } = UnverifiedConfig::decode(&bytes)?;
        Ok(Self { data, bytes })
    }

    /// What it says.
    pub fn data(&self) -> &ConfigData {
        &self.data
    }

    /// The exact bytes of `atrest.json`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The slot of that number.
    pub fn slot(&self, id: u32) -> Option<&KeySlot> {
        self.data.slots.iter().find(|slot| slot.id == id)
    }
}

/// The one encoding: two-space indentation, fields in the order of the types below, a line feed
/// at the end. The MACs cover it with `macs` empty.
fn encode(data: &ConfigData, macs: &[(u32, [u8; 32])]) -> Vec<u8> {
    let document = Document::new(data, macs);
    let mut bytes = serde_json::to_vec_pretty(&document).expect("strings and numbers are JSON");
    bytes.push(b'\n');
    bytes
}

/// Read first, so that another version's file is called that, whatever its fields are.
#[derive(Deserialize)]
struct Probe {
    format: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u16,
    volume_id: String,
    cipher: String,
    generation: u64,
    epochs: Vec<EpochEntry>,
    slots: Vec<SlotEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<AuditEntry>,
    macs: Vec<MacEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EpochEntry {
    epoch: u32,
    metadata_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotEntry {
    id: u32,
    provider: String,
    key_id: String,
    key_version: String,
    algorithm: Algorithm,
    wrapped: Vec<WrappedEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<ParametersEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappedEntry {
    epoch: u32,
    key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParametersEntry {
    argon2id: Argon2Entry,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Argon2Entry {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditEntry {
    seq: u64,
    record: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MacEntry {
    epoch: u32,
    mac: String,
}

impl Document {
    fn new(data: &ConfigData, macs: &[(u32, [u8; 32])]) -> Self {
        let epochs = data
            .epochs
            .iter()
            .map(|(epoch, key)| EpochEntry { epoch: *epoch, metadata_key: STANDARD.encode(key) });
        let macs = macs.iter().map(|(epoch, mac)| MacEntry { epoch: *epoch, mac: hex(mac) });
        Self {
            format: FORMAT_VERSION,
            volume_id: data.volume_id.to_string(),
            cipher: data.cipher.clone(),
            generation: data.generation,
            epochs: epochs.collect(),
            slots: data.slots.iter().map(SlotEntry::new).collect(),
            audit: data
                .audit
                .map(|anchor| AuditEntry { seq: anchor.seq, record: hex(&anchor.record) }),
            macs: macs.collect(),
        }
    }

    fn check(self) -> Result<(ConfigData, EpochMacs), ConfigError> {
        let volume_id = VolumeId(unhex("volume_id", &self.volume_id)?);
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        require(
            (1..=32).contains(&self.cipher.len()) && self.cipher.bytes().all(is_name),
            "cipher",
            "is not the name of a cipher",
        )?;
        require(self.generation >= 1, "generation", "is zero")?;
        let counts = (1..=EPOCHS_MAX).contains(&self.epochs.len());
        require(counts, "epochs", "has no entries or too many")?;
        let numbers: Vec<u32> = self.epochs.iter().map(|entry| entry.epoch).collect();
        require(is_ascending_from_one(&numbers), "epochs", "is out of order")?;
        let epochs = self.epochs.into_iter().map(EpochEntry::check).collect::<Result<_, _>>()?;
        let counts = (1..=SLOTS_MAX).contains(&self.slots.len());
        require(counts, "slots", "has no entries or too many")?;
        let ids: Vec<u32> = self.slots.iter().map(|entry| entry.id).collect();
        require(is_ascending_from_one(&ids), "slots", "is out of order")?;
        let slots = self.slots.into_iter().map(|entry| entry.check(&numbers));
        let slots = slots.collect::<Result<_, _>>()?;
        let audit = self.audit.map(AuditEntry::check).transpose()?;
        let covered = self.macs.iter().map(|entry| entry.epoch).eq(numbers);
        require(covered, "macs", "has not exactly one entry for each live epoch")?;
        let macs = self.macs.iter().map(|entry| Ok((entry.epoch, unhex("mac", &entry.mac)?)));
        let macs = macs.collect::<Result<_, _>>()?;
        let (cipher, generation) = (self.cipher, self.generation);
        Ok((ConfigData { volume_id, cipher, generation, epochs, slots, audit }, macs))
    }
}

impl EpochEntry {
    fn check(self) -> Result<(u32, Vec<u8>), ConfigError> {
        let key = unbase64("metadata_key", &self.metadata_key, METADATA_KEY_BYTES)?;
        require(key.len() == METADATA_KEY_BYTES, "metadata_key", "has the wrong length")?;
        Ok((self.epoch, key))
    }
}

impl AuditEntry {
    fn check(self) -> Result<AuditAnchor, ConfigError> {
        require(self.seq >= 1, "audit", "has record zero")?;
        Ok(AuditAnchor { seq: self.seq, record: unhex("record", &self.record)? })
    }
}

impl SlotEntry {
    fn new(slot: &KeySlot) -> Self {
        let wrapped = slot
            .wrapped
            .iter()
            .map(|(epoch, key)| WrappedEntry { epoch: *epoch, key: STANDARD.encode(key) });
        let parameters = slot.kek.parameters.map(|argon2| ParametersEntry {
            argon2id: Argon2Entry {
                memory_kib: argon2.memory_kib,
                passes: argon2.passes,
                lanes: argon2.lanes,
                salt: STANDARD.encode(argon2.salt),
            },
        });
        Self {
            id: slot.id,
            provider: slot.provider.clone(),
            key_id: slot.kek.key_id.clone(),
            key_version: slot.kek.key_version.clone(),
            algorithm: slot.kek.algorithm,
            wrapped: wrapped.collect(),
            parameters,
        }
    }

    fn check(self, epochs: &[u32]) -> Result<KeySlot, ConfigError> {
        let is_text = |text: &str| {
            (1..=URI_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        let problem = "is empty, too long or not printable ASCII";
        require(is_text(&self.provider), "provider", problem)?;
        require(is_text(&self.key_id), "key_id", problem)?;
        require(is_text(&self.key_version), "key_version", problem)?;
        let complete = self.wrapped.iter().map(|entry| entry.epoch).eq(epochs.iter().copied());
        require(complete, "wrapped", "has not exactly one entry for each live epoch")?;
        let wrapped = self.wrapped.into_iter().map(|entry| {
            let key = unbase64("key", &entry.key, WRAPPED_BYTES_MAX)?;
            require(!key.is_empty(), "key", "is empty")?;
            Ok((entry.epoch, key))
        });
        let wrapped = wrapped.collect::<Result<_, _>>()?;
        let parameters = self.parameters.map(|entry| entry.argon2id.check()).transpose()?;
        let kek = KekReference {
            key_id: self.key_id,
            key_version: self.key_version,
            algorithm: self.algorithm,
            parameters,
        };
        Ok(KeySlot { id: self.id, provider: self.provider, kek, wrapped })
    }
}

impl Argon2Entry {
    fn check(self) -> Result<Argon2Parameters, ConfigError> {
        let salt = unbase64("salt", &self.salt, 16)?.try_into();
        let parameters = Argon2Parameters {
            memory_kib: self.memory_kib,
            passes: self.passes,
            lanes: self.lanes,
            salt: salt
                .map_err(|_| ConfigError::Invalid { field: "salt", problem: "has not 16 bytes" })?,
        };
        require(parameters.is_allowed(), "argon2id", "has a cost that is out of bounds")?;
        Ok(parameters)
    }
}

fn require(holds: bool, field: &'static str, problem: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Invalid { field, problem }) }
}

fn is_ascending_from_one(numbers: &[u32]) -> bool {
    numbers.first().is_some_and(|first| *first >= 1) && numbers.is_sorted_by(|a, b| a < b)
}

fn refuse(error: serde_json::Error) -> ConfigError {
    if !error.is_data() {
        return ConfigError::NotJson { line: error.line(), column: error.column() };
    }
    let text = error.to_string();
    // The message quotes the file, which may be hostile: no control characters, not at any length.
    let printable = |text: &str| text.escape_debug().take(200).collect::<String>();
    // serde has no kind for it; the vectors notice if the wording changes.
    match text.strip_prefix("unknown field ") {
        Some(field) => ConfigError::UnknownField(printable(field)),
        None => ConfigError::Schema(printable(&text)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower case only, so that there is one spelling.
fn unhex<const N: usize>(field: &'static str, text: &str) -> Result<[u8; N], ConfigError> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    let bytes = pairs.collect::<Option<Vec<u8>>>().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(ConfigError::Invalid {
        field,
        problem: "is not lower-case hexadecimal of the right length",
    })
}

/// Decodes at most `bytes_max` bytes. The decoder refuses missing padding and stray bits.
fn unbase64(field: &'static str, text: &str, bytes_max: usize) -> Result<Vec<u8>, ConfigError> {
    let bytes = STANDARD.decode(text).ok();
    let problem = "is not canonical base64, or too long";
    bytes.filter(|b| b.len() <= bytes_max).ok_or(ConfigError::Invalid { field, problem })
}
