//! Byte layout of the file `state`: a head, then records, all in blocks of 512 bytes.
//!
//! ```text
//! head: 512 bytes
//! offset size field
//!      0   16 "atrest-vault-1", zeros
//!     16   16 vault id
//!     32   16 salt: the file's keys are KDF(master key, label, vault id || salt)
//!     48    8 sequence of the first record
//!     56    8 number of records that were written with the file (the snapshot)
//!     64  416 zero
//!    480   32 HMAC-SHA256(head key, what is before)
//!
//! record: a multiple of 512 bytes
//!      0    4 length of the record
//!      4    4 zero
//!      8    8 sequence
//!     16   12 nonce, random
//!     28    4 zero
//!     32   16 HMAC-SHA256(header key, chain || what is before), cut to 16 bytes
//!     48      AES-256-GCM(record key, nonce, chain || header, plaintext), without the tag
//!    -16   16 tag: the chain of the next record; that of the first is the start of the head's MAC
//!
//! plaintext: length of the entries (4), entries, zeros
//! entry: 1 = put, 2 = remove (1); length of the key (2); of the value (4); key; value
//! ```
//!
//! Integers are little-endian. The chain makes a record good at one place of one file only: none
//! can be left out, moved, or put back from an older copy.

use zeroize::Zeroizing;

use crate::crypto::{Secret, kdf, random};
use crate::format::VolumeId;
use crate::sys::gcm::GcmKey;

/// What everything is a multiple of: the smallest unit that disks write whole.
pub const BLOCK_BYTES: usize = 512;
/// Largest record: a restored key with some hundred versions.
pub const RECORD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Length of a record's header.
pub const HEADER_BYTES: usize = 48;
/// Longest key of an entry.
pub const KEY_BYTES_MAX: usize = 512;

const MAGIC: &[u8; 16] = b"atrest-vault-1\0\0";
const MAC_AT: usize = BLOCK_BYTES - 32;
const TAG_BYTES: usize = 16;
const OVERHEAD_BYTES: usize = HEADER_BYTES + 4 + TAG_BYTES;

/// What authenticates the place of a record: the tag of the one before.
pub type Chain = [u8; TAG_BYTES];

/// The keys of one file.
pub struct FileKeys {
    records: GcmKey,
    headers: Secret,
}

impl FileKeys {
    /// The keys of the file with `salt`.
    pub fn derive(master: &Secret, vault: VolumeId, salt: &[u8; 16]) -> Self {
        let context = [vault.0, *salt].concat();
        let records = kdf::derive(master, "atrest vault records v1", &context, 32);
        let headers = kdf::derive(master, "atrest vault headers v1", &context, 32);
        let records = records.expose().try_into().expect("derived with this length");
        Self { records: GcmKey::new(records), headers }
    }
}

/// The first block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Salt of the file's keys.
    pub salt: [u8; 16],
    /// Sequence of the first record.
    pub first: u64,
    /// Records that were durable before the file got its name: none of them can be torn.
    pub snapshot_records: u64,
}

impl Head {
    /// Encodes, and returns the chain of the first record.
    pub fn encode(&self, master: &Secret, vault: VolumeId) -> ([u8; BLOCK_BYTES], Chain) {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..32].copy_from_slice(&vault.0);
        bytes[32..48].copy_from_slice(&self.salt);
        bytes[48..56].copy_from_slice(&self.first.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.snapshot_records.to_le_bytes());
        let mac = kdf::mac(&head_key(master), &bytes[..MAC_AT]);
        bytes[MAC_AT..].copy_from_slice(&mac);
        (bytes, first_chain(&bytes))
    }

    /// Decodes what [`Head::encode`] made; `None` if anybody else made it.
    pub fn decode(
        bytes: &[u8; BLOCK_BYTES],
        master: &Secret,
        vault: VolumeId,
    ) -> Option<(Self, Chain)> {
        let good = kdf::mac_verify(&head_key(master), &bytes[..MAC_AT], &bytes[MAC_AT..])
            && bytes[..16] == *MAGIC
            && bytes[16..32] == vault.0;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let salt = bytes[32..48].try_into().expect("16 bytes");
        let head = Self { salt, first: word(48), snapshot_records: word(56) };
        good.then(|| (head, first_chain(bytes)))
    }
}

fn head_key(master: &Secret) -> Secret {
    kdf::derive(master, "atrest vault head v1", &[], 32)
}

fn first_chain(head: &[u8; BLOCK_BYTES]) -> Chain {
    head[MAC_AT..MAC_AT + TAG_BYTES].try_into().expect("16 bytes")
}

/// Whether entries of so many bytes fit a record.
pub fn fits(entry_bytes: usize) -> bool {
    (entry_bytes + OVERHEAD_BYTES).next_multiple_of(BLOCK_BYTES) <= RECORD_BYTES_MAX
}

/// Seals `entries` as the record with `sequence` after `chain`; returns it and its own chain.
///
/// # Panics
/// If they do not [fit](fits).
pub fn seal(keys: &FileKeys, sequence: u64, chain: &Chain, entries: &[u8]) -> (Vec<u8>, Chain) {
    assert!(fits(entries.len()), "who calls has asked");
    let length = (entries.len() + OVERHEAD_BYTES).next_multiple_of(BLOCK_BYTES);
    let mut record = vec![0; length];
    record[..4].copy_from_slice(&(length as u32).to_le_bytes());
    record[8..16].copy_from_slice(&sequence.to_le_bytes());
    random::fill(&mut record[16..28]);
    let mac = header_mac(keys, chain, &record[..32]);
    record[32..HEADER_BYTES].copy_from_slice(&mac);
    let mut plaintext = Zeroizing::new(vec![0; length - HEADER_BYTES - TAG_BYTES]);
    plaintext[..4].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    plaintext[4..4 + entries.len()].copy_from_slice(entries);
    let aad = associated_data(chain, &record[..HEADER_BYTES]);
    let nonce = record[16..28].try_into().expect("12 bytes");
    let sealed = &mut record[HEADER_BYTES..length - TAG_BYTES];
    let tag = keys.records.seal(&nonce, &aad, &plaintext, sealed);
    record[length - TAG_BYTES..].copy_from_slice(&tag);
    (record, tag)
}

/// The length of the record whose header begins `block`, if it is the one with `sequence` after
/// `chain`.
pub fn open_header(keys: &FileKeys, sequence: u64, chain: &Chain, block: &[u8]) -> Option<usize> {
    let header = block.get(..HEADER_BYTES)?;
    let mac = header_mac(keys, chain, &header[..32]);
    let good = aws_lc_rs::constant_time::verify_slices_are_equal(&mac, &header[32..]).is_ok();
    let length = u32::from_le_bytes(header[..4].try_into().expect("4 bytes")) as usize;
    let found = u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"));
    let possible = (BLOCK_BYTES..=RECORD_BYTES_MAX).contains(&length) && length % BLOCK_BYTES == 0;
    (good && possible && found == sequence).then_some(length)
}

/// The entries of a whole record whose header [`open_header`] has accepted, and its chain.
pub fn open(keys: &FileKeys, chain: &Chain, record: &[u8]) -> Option<(Zeroizing<Vec<u8>>, Chain)> {
    let end = record.len().checked_sub(TAG_BYTES)?;
    let sealed = record.get(HEADER_BYTES..end)?;
    let tag: Chain = record[end..].try_into().expect("16 bytes");
    let nonce = record[16..28].try_into().expect("12 bytes");
    let aad = associated_data(chain, &record[..HEADER_BYTES]);
    let mut plaintext = Zeroizing::new(vec![0; sealed.len()]);
    if !keys.records.open(&nonce, &aad, &tag, sealed, &mut plaintext) {
        return None;
    }
    let length = u32::from_le_bytes(plaintext.get(..4)?.try_into().expect("4 bytes")) as usize;
    let entries = plaintext.get(4..4usize.checked_add(length)?)?;
    Some((Zeroizing::new(entries.to_vec()), tag))
}

fn header_mac(keys: &FileKeys, chain: &Chain, header: &[u8]) -> Chain {
    let mac = kdf::mac(&keys.headers, &[&chain[..], header].concat());
    mac[..TAG_BYTES].try_into().expect("16 of 32 bytes")
}

fn associated_data(chain: &Chain, header: &[u8]) -> Vec<u8> {
    [&chain[..], header].concat()
}

/// Appends an entry: `None` removes.
pub fn push_entry(entries: &mut Vec<u8>, key: &str, value: Option<&[u8]>) {
    let length = value.map_or(0, <[u8]>::len) as u32;
    entries.push(if value.is_some() { 1 } else { 2 });
    entries.extend_from_slice(&(key.len() as u16).to_le_bytes());
    entries.extend_from_slice(&length.to_le_bytes());
    entries.extend_from_slice(key.as_bytes());
    entries.extend_from_slice(value.unwrap_or(&[]));
}

/// Length of an entry.
pub fn entry_bytes(key: &str, value_bytes: usize) -> usize {
    7 + key.len() + value_bytes
}

/// Where the value of an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Where its value is in the entries; `None`: the key is removed.
    pub value: Option<std::ops::Range<usize>>,
}

/// All entries of a record, in order; `None` if they are malformed.
pub fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let header = bytes.get(at..at + 7)?;
        let key_bytes = usize::from(u16::from_le_bytes([header[1], header[2]]));
        let value_bytes = u32::from_le_bytes(header[3..7].try_into().expect("4 bytes")) as usize;
        let value_at = at + 7 + key_bytes;
        let key = std::str::from_utf8(bytes.get(at + 7..value_at)?).ok()?.to_owned();
        let value = value_at..value_at.checked_add(value_bytes)?;
        bytes.get(value.clone())?;
        at = value.end;
        let value = match header[0] {
            1 => Some(value),
            2 if value.is_empty() => None,
            _ => return None,
        };
        entries.push(Entry { key, value });
    }
    Some(entries)
}
