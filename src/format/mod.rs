//! Byte layouts: encode and decode, nothing else. No I/O, no keys, no clock.
//!
//! The normative text is [`crate::manual::format`]; each type here carries the table of its own
//! layout. Integers are little-endian, except inside tree keys, where they are big-endian so that
//! byte order is numeric order.

pub mod config;
pub mod log;
pub mod map;
pub mod node;
pub mod record;
pub mod superblock;

/// The format version written into every configuration and superblock.
pub const FORMAT_VERSION: u16 = 1;
/// Plaintext and sealed size of a page, of a tree node and of a slot.
pub const PAGE_BYTES: usize = 4096;
/// Slots of one segment.
pub const SEGMENT_SLOTS: u64 = 65_536;
/// Size of a segment file: 256 MiB.
pub const SEGMENT_BYTES: u64 = SEGMENT_SLOTS * PAGE_BYTES as u64;
/// Plaintext covered by one DEK: 256 KiB.
pub const CHUNK_BYTES: u64 = 256 * 1024;
/// Pages of one page-map record.
pub const RUN_PAGES: u64 = 32;

/// Random identity of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A 4 KiB slot of the volume: `segment * SEGMENT_SLOTS + index`. 48 bits are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u64);

impl Slot {
    /// The segment file that holds the slot.
    pub fn segment(self) -> u32 {
        u32::try_from(self.0 / SEGMENT_SLOTS).expect("slots have 48 bits, segments 32")
    }

    /// Offset of the slot in its segment file, in bytes.
    pub fn offset(self) -> u64 {
        self.0 % SEGMENT_SLOTS * PAGE_BYTES as u64
    }

    /// Whether `next` is the slot behind this one in the same segment file: one read has both.
    pub fn is_before(self, next: Self) -> bool {
        self.0 + 1 == next.0 && self.segment() == next.segment()
    }
}

/// Where a tree node is and what it must be. This is what authenticates the tree from the
/// superblock down.
///
/// ```text
/// offset size field
///      0    6 slot of copy a
///      6    6 slot of copy b (in another segment)
///     12    4 key epoch: which metadata key
///     16   16 salt: the node is sealed under KDF(metadata key, salt)
///     32    4 counter: the nonce under that key
///     36   16 tag
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePointer {
    /// Both copies.
    pub slots: [Slot; 2],
    /// The VK epoch whose metadata key seals the node.
    pub key_epoch: u32,
    /// Salt of the sealing key.
    pub salt: [u8; 16],
    /// Nonce under that key.
    pub counter: u32,
    /// GCM tag of the node.
    pub tag: [u8; 16],
}

impl NodePointer {
    /// Encoded length in bytes.
    pub const LEN: usize = 52;

    /// Encodes as in the table above.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..6].copy_from_slice(&self.slots[0].0.to_le_bytes()[..6]);
        bytes[6..12].copy_from_slice(&self.slots[1].0.to_le_bytes()[..6]);
        bytes[12..16].copy_from_slice(&self.key_epoch.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.salt);
        bytes[32..36].copy_from_slice(&self.counter.to_le_bytes());
        bytes[36..52].copy_from_slice(&self.tag);
        bytes
    }

    /// Decodes; every bit pattern is a pointer, and authentication is what makes it a good one.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let slot = |at: usize| {
            let mut wide = [0; 8];
            wide[..6].copy_from_slice(&bytes[at..at + 6]);
            Slot(u64::from_le_bytes(wide))
        };
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Self {
            slots: [slot(0), slot(6)],
            key_epoch: word(12),
            salt: bytes[16..32].try_into().expect("16 bytes"),
            counter: word(32),
            tag: bytes[36..52].try_into().expect("16 bytes"),
        }
    }
}
