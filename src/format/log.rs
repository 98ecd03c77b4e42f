//! Records of the log: what happened since the last durable epoch.

use super::{PAGE_BYTES, Slot, VolumeId};

/// Where the log of an epoch begins; a part of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// Position of the first record, in bytes; a multiple of [`BLOCK_BYTES`]. Positions only grow;
    /// the byte of the file is the remainder by `capacity`.
    pub position: u64,
    /// Length of the file `log` in bytes, a multiple of [`BLOCK_BYTES`].
    pub capacity: u64,
    /// VK epoch whose metadata key the records are sealed under.
    pub key_epoch: u32,
    /// Salt of the sealing key; also the first record's link to what is before it.
    pub salt: [u8; 16],
}

/// What a flush made durable is never written again: after it, records go on in the next block.
pub const BLOCK_BYTES: u64 = 4096;
/// Length of a record's header in bytes.
pub const HEADER_BYTES: usize = 32;
/// Records start at multiples of this many bytes.
const GRAIN_BYTES: u64 = 16;

/// The public part of a record; the sealed items follow it.
///
/// ```text
/// offset size field
///      0    4 length of the items in bytes
///      4    4 reserved, zero
///      8    8 sequence: counts the records under one salt, from 0
///     16   16 tag
///     32    . sealed items; then zeros up to the next multiple of 16
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of sealed items.
    pub length: u32,
    /// Number of the record under its salt.
    pub sequence: u64,
    /// GCM tag of the items.
    pub tag: [u8; 16],
}

impl Header {
    /// Encodes as in the table above.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.tag);
        bytes
    }

    /// Decodes; `None` if the reserved bytes are not zero.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let [l0, l1, l2, l3, 0, 0, 0, 0, s0, s1, s2, s3, s4, s5, s6, s7, tag @ ..] = *bytes else {
            return None;
        };
        Some(Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            sequence: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            tag,
        })
    }

    /// Bytes that the record takes in the log.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.length as usize)
    }

    /// Associated data of the items: what they are, where they are, and what was before them.
    ///
    /// ```text
    /// offset size field
    ///      0   16 "atrest log v1", zeros
    ///     16   16 volume id
    ///     32    4 length
    ///     36    8 sequence
    ///     44    8 position
    ///     52   16 tag of the record before, or the salt
    /// ```
    pub fn associated_data(&self, volume: VolumeId, position: u64, before: &[u8; 16]) -> [u8; 68] {
        let mut data = [0; 68];
        data[..13].copy_from_slice(b"atrest log v1");
        data[16..32].copy_from_slice(&volume.0);
        data[32..36].copy_from_slice(&self.length.to_le_bytes());
        data[36..44].copy_from_slice(&self.sequence.to_le_bytes());
        data[44..52].copy_from_slice(&position.to_le_bytes());
        data[52..68].copy_from_slice(before);
        data
    }
}

/// Bytes of the log that a record with so many bytes of items takes.
pub fn record_bytes(items: usize) -> u64 {
    ((HEADER_BYTES + items) as u64).next_multiple_of(GRAIN_BYTES)
}

/// One item of a record.
///
/// ```text
/// type  fields after it
///    1  u16 key length, u16 value length, key, value: the record is stored in the tree
///    2  u16 key length, key: the record is deleted
///    3  u48 first slot, u16 count, a u64 for each: the record refers to these freshly written
///       slots, whose sealed bytes have these XXH3 sums
///    4  u48 slot, 4096 bytes: what the slot holds
///    5  u64 position: everything that the records before it refer to is durable, in its slot or as
///       item 4; the next record starts in the next block
///    6  u32 key epoch, 16 bytes salt: the epoch ends here; the next record, in the next block, is
///       sealed under that
///    7  u16 length, bytes: a note of the layer above
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A record of the tree was stored.
    Put {
        /// Its key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// A record of the tree was deleted.
    Delete {
        /// Its key.
        key: &'a [u8],
    },
    /// Slots were written, to which the records refer.
    Pages {
        /// The first slot.
        first: Slot,
        /// For each slot the little-endian [`page_sum`] of its bytes.
        sums: &'a [u8],
    },
    /// What a slot holds.
    Image {
        /// Which.
        slot: Slot,
        /// [`PAGE_BYTES`] bytes.
        bytes: &'a [u8],
    },
    /// What is before this position is durable, with all that it refers to.
    Flushed {
        /// The position in the log.
        through: u64,
    },
    /// The epoch ends; what follows belongs to the next.
    Sealed {
        /// VK epoch of what follows.
        key_epoch: u32,
        /// Salt of what follows.
        salt: [u8; 16],
    },
    /// What the layer above wants to remember with a change.
    Note(&'a [u8]),
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const PAGES: u8 = 3;
const IMAGE: u8 = 4;
const FLUSHED: u8 = 5;
const SEALED: u8 = 6;
const NOTE: u8 = 7;

/// Sum of a slot's sealed bytes: XXH3 with 64 bits. It tells a page that reached the disk from one
/// that did not; who forges pages is met by their tags.
pub fn page_sum(sealed: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(sealed)
}

fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).expect("keys, values and notes have a few KiB").to_le_bytes()
}

impl Item<'_> {
    /// Appends the item to a record's.
    pub fn encode(&self, items: &mut Vec<u8>) {
        match self {
            Self::Put { key, value } => {
                items.push(PUT);
                items.extend_from_slice(&length(key));
                items.extend_from_slice(&length(value));
                items.extend_from_slice(key);
                items.extend_from_slice(value);
            }
            Self::Delete { key } => {
                items.push(DELETE);
                items.extend_from_slice(&length(key));
                items.extend_from_slice(key);
            }
            Self::Pages { first, sums } => {
                items.push(PAGES);
                items.extend_from_slice(&first.0.to_le_bytes()[..6]);
                let count = u16::try_from(sums.len() / 8).expect("a write has at most 256 pages");
                items.extend_from_slice(&count.to_le_bytes());
                items.extend_from_slice(sums);
            }
            Self::Image { slot, bytes } => {
                items.push(IMAGE);
                items.extend_from_slice(&slot.0.to_le_bytes()[..6]);
                items.extend_from_slice(bytes);
            }
            Self::Flushed { through } => {
                items.push(FLUSHED);
                items.extend_from_slice(&through.to_le_bytes());
            }
            Self::Sealed { key_epoch, salt } => {
                items.push(SEALED);
                items.extend_from_slice(&key_epoch.to_le_bytes());
                items.extend_from_slice(salt);
            }
            Self::Note(bytes) => {
                items.push(NOTE);
                items.extend_from_slice(&length(bytes));
                items.extend_from_slice(bytes);
            }
        }
    }
}

/// The items of a record, once it has been authenticated. Yields `Err` once, where they are
/// malformed, which is a defect of the program that wrote them.
pub struct Items<'a>(&'a [u8]);

/// A record of the log breaks the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record of the log")]
pub struct Malformed;

impl<'a> Items<'a> {
    /// The items in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn short(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(self.take(2)?.try_into().ok()?)))
    }

    fn slot(&mut self) -> Option<Slot> {
        let mut wide = [0; 8];
        wide[..6].copy_from_slice(self.take(6)?);
        Some(Slot(u64::from_le_bytes(wide)))
    }

    fn item(&mut self) -> Option<Item<'a>> {
        Some(match self.take(1)?[0] {
            PUT => {
                let (key, value) = (self.short()?, self.short()?);
                Item::Put { key: self.take(key)?, value: self.take(value)? }
            }
            DELETE => {
                let key = self.short()?;
                Item::Delete { key: self.take(key)? }
            }
            PAGES => {
                let (first, count) = (self.slot()?, self.short()?);
                Item::Pages { first, sums: self.take(count * 8)? }
            }
            IMAGE => Item::Image { slot: self.slot()?, bytes: self.take(PAGE_BYTES)? },
            FLUSHED => {
                Item::Flushed { through: u64::from_le_bytes(self.take(8)?.try_into().ok()?) }
            }
            SEALED => Item::Sealed {
                key_epoch: u32::from_le_bytes(self.take(4)?.try_into().ok()?),
                salt: self.take(16)?.try_into().ok()?,
            },
            NOTE => {
                let length = self.short()?;
                Item::Note(self.take(length)?)
            }
            _ => return None,
        })
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = self.item();
        if item.is_none() {
            self.0 = &[];
        }
        Some(item.ok_or(Malformed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back() {
        let page = [7; PAGE_BYTES];
        let items = [
            Item::Put { key: b"key", value: b"" },
            Item::Delete { key: b"gone" },
            Item::Pages { first: Slot(1 << 40), sums: &[1; 16] },
            Item::Image { slot: Slot(5), bytes: &page },
            Item::Flushed { through: 9 },
            Item::Sealed { key_epoch: 3, salt: [4; 16] },
            Item::Note(b"note"),
        ];
        let mut bytes = Vec::new();
        items.iter().for_each(|item| item.encode(&mut bytes));
        assert_eq!(Items::new(&bytes).collect::<Result<Vec<_>, _>>(), Ok(items.to_vec()));
        let ends: Vec<usize> = (1..items.len())
            .map(|count| {
                let mut bytes = Vec::new();
                items[..count].iter().for_each(|item| item.encode(&mut bytes));
                bytes.len()
            })
            .collect();
        for cut in (1..bytes.len()).filter(|cut| !ends.contains(cut)) {
            let last = Items::new(&bytes[..cut]).last();
            assert_eq!(last, Some(Err(Malformed)), "cut at {cut}");
        }
    }

    #[test]
    fn header_has_golden_bytes() {
        let header = Header { length: 0x0102, sequence: 7, tag: [9; 16] };
        let bytes = header.encode();
        assert_eq!(bytes[..16], [2, 1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Header::decode(&bytes), Some(header));
        assert_eq!(header.record_bytes(), 304);
        let mut reserved = bytes;
        reserved[5] = 1;
        assert_eq!(Header::decode(&reserved), None);
    }
}
