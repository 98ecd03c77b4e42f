//! Superblocks: the sealed root of everything.

use super::log::{BLOCK_BYTES, LogStart};
use super::{FORMAT_VERSION, NodePointer, PAGE_BYTES, VolumeId};

/// What a superblock says, once it has been authenticated.
///
/// The body is sealed with AES-256-GCM under `KDF(metadata key, salt)` with nonce zero; the header
/// before it is the associated data. Reserved bytes are zero and refused otherwise.
///
/// ```text
/// header                                  body (offset in the body)
/// offset size field                       offset size field
///      0    8 magic "ATRESTSB"                 0    8 sequence
///      8    2 format version                   8    1 root present, 0 or 1
///     10    6 reserved                         9    1 root level
///     16   16 volume id                       10    1 delta present, 0 or 1
///     32    4 key epoch                       11    1 clean: unmounted in order
///     36   16 salt                            12   52 root pointer
///     52    4 reserved                        64   52 pointer to the space delta
///     56   16 tag of the body                116   32 digest of the configuration
///     72    8 reserved                       148   32 digest of the next configuration, or zeros
///     80 4016 sealed body                    180    8 log: position of the first record
///                                            188    8 log: length of the file, 0 if there is none
///                                            196   16 log: salt
///                                            212    4 log: key epoch
///                                            216    4 reserved
///                                            220    8 commit time, seconds since 1970
///                                            228  256 freshness anchors (zeros in version 1)
///                                            484 3532 reserved
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number of the epoch that it makes durable.
    pub sequence: u64,
    /// Root of the tree and its level.
    pub root: Option<(NodePointer, u8)>,
    /// First node of the space delta.
    pub delta: Option<NodePointer>,
    /// Whether the volume was unmounted in order.
    pub clean: bool,
    /// SHA-256 of `atrest.json`.
    pub config_digest: [u8; 32],
    /// SHA-256 of the `atrest.json` that is about to replace it.
    pub config_digest_next: Option<[u8; 32]>,
    /// Where the log of what comes after it begins.
    pub log: Option<LogStart>,
    /// When it was committed, in seconds since 1970.
    pub committed: u64,
}

/// The public part of a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose superblock it is.
    pub volume_id: VolumeId,
    /// VK epoch whose metadata key seals the body.
    pub key_epoch: u32,
    /// Salt of the sealing key.
    pub salt: [u8; 16],
    /// GCM tag of the body.
    pub tag: [u8; 16],
}

/// Why a superblock is refused before or after its seal is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Not a superblock.
    #[error("it has no atrest superblock magic")]
    Magic,
    /// Written by another version of the format.
    #[error("it has format version {0}, this program reads version {FORMAT_VERSION}")]
    Version(u16),
    /// Reserved bytes are not zero, or a flag is neither 0 nor 1.
    #[error("its reserved bytes are not zero")]
    Reserved,
}

const MAGIC: [u8; 8] = *b"ATRESTSB";
/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 80;
/// Length of the body in bytes.
pub const BODY_BYTES: usize = PAGE_BYTES - HEADER_BYTES;
const TAG_AT: usize = 56;

impl Header {
    /// The header's bytes up to the tag: the associated data of the body.
    pub fn associated_data(&self) -> [u8; TAG_AT] {
        let mut bytes = [0; TAG_AT];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.volume_id.0);
        bytes[32..36].copy_from_slice(&self.key_epoch.to_le_bytes());
        bytes[36..52].copy_from_slice(&self.salt);
        bytes
    }

    /// Encodes as in the table of [`Superblock`].
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..TAG_AT].copy_from_slice(&self.associated_data());
        bytes[TAG_AT..TAG_AT + 16].copy_from_slice(&self.tag);
        bytes
    }

    /// Decodes the public part.
    ///
    /// # Errors
    /// One [`SuperblockError`] per refusal, in file order.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, SuperblockError> {
        if bytes[0..8] != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(SuperblockError::Version(version));
        }
        let reserved = bytes[10..16].iter().chain(&bytes[52..56]).chain(&bytes[72..80]);
        if reserved.into_iter().any(|&byte| byte != 0) {
            return Err(SuperblockError::Reserved);
        }
        Ok(Self {
            volume_id: VolumeId(bytes[16..32].try_into().expect("16 bytes")),
            key_epoch: u32::from_le_bytes(bytes[32..36].try_into().expect("4 bytes")),
            salt: bytes[36..52].try_into().expect("16 bytes"),
            tag: bytes[56..72].try_into().expect("16 bytes"),
        })
    }
}

impl Superblock {
    /// Whether a configuration with that digest is one that it expects.
    pub fn knows(&self, digest: [u8; 32]) -> bool {
        self.config_digest == digest || self.config_digest_next == Some(digest)
    }

    /// Encodes the body, before sealing.
    pub fn encode(&self) -> Box<[u8; BODY_BYTES]> {
        let mut bytes = Box::new([0; BODY_BYTES]);
        bytes[0..8].copy_from_slice(&self.sequence.to_le_bytes());
        if let Some((pointer, level)) = &self.root {
            bytes[8] = 1;
            bytes[9] = *level;
            bytes[12..64].copy_from_slice(&pointer.encode());
        }
        if let Some(pointer) = &self.delta {
            bytes[10] = 1;
            bytes[64..116].copy_from_slice(&pointer.encode());
        }
        bytes[11] = u8::from(self.clean);
        bytes[116..148].copy_from_slice(&self.config_digest);
        if let Some(digest) = &self.config_digest_next {
            bytes[148..180].copy_from_slice(digest);
        }
        if let Some(log) = &self.log {
            bytes[180..188].copy_from_slice(&log.position.to_le_bytes());
            bytes[188..196].copy_from_slice(&log.capacity.to_le_bytes());
            bytes[196..212].copy_from_slice(&log.salt);
            bytes[212..216].copy_from_slice(&log.key_epoch.to_le_bytes());
        }
        bytes[220..228].copy_from_slice(&self.committed.to_le_bytes());
        bytes
    }

    /// Decodes an authenticated body.
    ///
    /// # Errors
    /// [`SuperblockError::Reserved`] for anything that [`Superblock::encode`] would not write.
    pub fn decode(bytes: &[u8; BODY_BYTES]) -> Result<Self, SuperblockError> {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let pointer =
            |at: usize| NodePointer::decode(bytes[at..at + 52].try_into().expect("52 bytes"));
        let log = LogStart {
            position: long(180),
            capacity: long(188),
            salt: bytes[196..212].try_into().expect("16 bytes"),
            key_epoch: u32::from_le_bytes(bytes[212..216].try_into().expect("4 bytes")),
        };
        let next: [u8; 32] = bytes[148..180].try_into().expect("32 bytes");
        let superblock = Self {
            sequence: long(0),
            root: (bytes[8] == 1).then(|| (pointer(12), bytes[9])),
            delta: (bytes[10] == 1).then(|| pointer(64)),
            clean: bytes[11] == 1,
            config_digest: bytes[116..148].try_into().expect("32 bytes"),
            config_digest_next: (next != [0; 32]).then_some(next),
            log: (log.capacity != 0).then_some(log),
            committed: long(220),
        };
        let blocks = [log.position, log.capacity].map(|bytes| bytes % BLOCK_BYTES);
        if *superblock.encode() != *bytes || blocks != [0; 2] {
            return Err(SuperblockError::Reserved);
        }
        Ok(superblock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Slot;

    fn example() -> Superblock {
        let pointer = NodePointer {
            slots: [Slot(3), Slot(65_539)],
            key_epoch: 1,
            salt: [9; 16],
            counter: 5,
            tag: [8; 16],
        };
        Superblock {
            sequence: 77,
            root: Some((pointer, 2)),
            delta: Some(pointer),
            clean: true,
            config_digest: [1; 32],
            config_digest_next: None,
            log: Some(LogStart { position: 8192, capacity: 65_536, key_epoch: 1, salt: [7; 16] }),
            committed: 1_800_000_000,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Superblock::decode(&example().encode()), Ok(example()));
        let header =
            Header { volume_id: VolumeId([4; 16]), key_epoch: 1, salt: [5; 16], tag: [6; 16] };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn reserved_bytes_are_refused() {
        let mut bytes = example().encode();
        bytes[4000] = 1;
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Reserved));
        let mut bytes = example().encode();
        bytes[8] = 2;
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Reserved));
    }
}
