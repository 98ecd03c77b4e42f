//! Page maps: where the pages of one run (32 pages, 128 KiB) are, and what they must be.

use super::record::RecordError;
use super::{RUN_PAGES, Slot};
use crate::crypto::{Cipher, Nonce, Tag};

/// Where one page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePointer {
    /// The slot that holds the sealed page.
    pub slot: Slot,
    /// The nonce (or XTS tweak) that it was sealed with.
    pub nonce: Nonce,
    /// Its tag; zero for XTS.
    pub tag: Tag,
}

/// The pages of a run; `None` is a hole.
///
/// A list of extents, ascending: pages whose slots and nonces both count up by one.
///
/// ```text
/// offset size field
///      0    1 first page within the run, 0..32
///      1    1 count, 1..=32
///      2    6 first slot
///      8   12 first nonce
///     20   16 tag of each page (absent for XTS)
/// ```
///
/// The encoding is canonical: neighbours that could be one extent are one extent, and a run without
/// pages has no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageMap {
    /// One per page of the run.
    pub pages: [Option<PagePointer>; RUN_PAGES as usize],
}

const EXTENT_BYTES: usize = 20;
const TAG_BYTES: usize = 16;
const SLOT_BITS: u32 = 48;

impl PageMap {
    /// A run of holes.
    pub fn empty() -> Self {
        Self { pages: [None; RUN_PAGES as usize] }
    }

    /// Whether every page is a hole.
    pub fn is_empty(&self) -> bool {
        self.pages.iter().all(Option::is_none)
    }

    /// Number of pages that are not holes.
    pub fn count(&self) -> u64 {
        self.pages.iter().flatten().count() as u64
    }

    /// Encodes as in the table above.
    pub fn encode(&self, cipher: Cipher) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(EXTENT_BYTES + TAG_BYTES * RUN_PAGES as usize);
        let mut page = 0;
        while page < self.pages.len() {
            let Some(first) = self.pages[page] else {
                page += 1;
                continue;
            };
            let count = self.extent(page, first);
            bytes.push(u8::try_from(page).expect("below 32"));
            bytes.push(u8::try_from(count).expect("at most 32"));
            bytes.extend_from_slice(&first.slot.0.to_le_bytes()[..6]);
            bytes.extend_from_slice(&first.nonce.0);
            if cipher == Cipher::Aes256Gcm {
                for pointer in self.pages[page..page + count].iter().flatten() {
                    bytes.extend_from_slice(&pointer.tag.0);
                }
            }
            page += count;
        }
        bytes
    }

    /// Number of pages from `page` on that continue `first`.
    fn extent(&self, page: usize, first: PagePointer) -> usize {
        let mut nonce = first.nonce;
        let rest = self.pages[page..].iter().enumerate().skip(1);
        for (count, pointer) in rest {
            let Some(next) = next_nonce(nonce) else { return count };
            nonce = next;
            let continues = pointer.is_some_and(|pointer| {
                pointer.slot.0 == first.slot.0 + count as u64 && pointer.nonce == nonce
            });
            if !continues {
                return count;
            }
        }
        self.pages.len() - page
    }

    /// Decodes.
    ///
    /// # Errors
    /// [`RecordError`] for anything that [`PageMap::encode`] would not have written.
    pub fn decode(cipher: Cipher, mut bytes: &[u8]) -> Result<Self, RecordError> {
        let malformed = RecordError("page map");
        let mut map = Self::empty();
        let mut end = 0;
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at_checked(EXTENT_BYTES).ok_or(malformed)?;
            let (page, count) = (usize::from(head[0]), usize::from(head[1]));
            if page < end || count == 0 || page + count > map.pages.len() {
                return Err(malformed);
            }
            end = page + count;
            let mut wide = [0; 8];
            wide[..6].copy_from_slice(&head[2..8]);
            let slot = u64::from_le_bytes(wide);
            if slot + count as u64 > 1 << SLOT_BITS {
                return Err(malformed);
            }
            let mut nonce = Nonce(head[8..20].try_into().expect("12 bytes"));
            let before = page.checked_sub(1).and_then(|before| map.pages[before]);
            if before.is_some_and(|before| {
                before.slot.0 + 1 == slot && next_nonce(before.nonce) == Some(nonce)
            }) {
                return Err(malformed);
            }
            let tags_bytes = if cipher == Cipher::Aes256Gcm { count * TAG_BYTES } else { 0 };
            let (tags, rest) = rest.split_at_checked(tags_bytes).ok_or(malformed)?;
            for index in 0..count {
                if index > 0 {
                    nonce = next_nonce(nonce).ok_or(malformed)?;
                }
                let tag = tags.get(index * TAG_BYTES..(index + 1) * TAG_BYTES);
                let tag = tag.map_or([0; 16], |tag| tag.try_into().expect("16 bytes"));
                map.pages[page + index] =
                    Some(PagePointer { slot: Slot(slot + index as u64), nonce, tag: Tag(tag) });
            }
            bytes = rest;
        }
        Ok(map)
    }
}

/// The nonce that follows within one random part; `None` at the end of its 16-bit counter.
pub fn next_nonce(nonce: Nonce) -> Option<Nonce> {
    let [.., low, high] = nonce.0;
    let counter = u16::from_le_bytes([low, high]).checked_add(1)?;
    let mut next = nonce;
    next.0[10..12].copy_from_slice(&counter.to_le_bytes());
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(slot: u64, counter: u16, tag: u8) -> PagePointer {
        let mut nonce = [7; 12];
        nonce[10..12].copy_from_slice(&counter.to_le_bytes());
        PagePointer { slot: Slot(slot), nonce: Nonce(nonce), tag: Tag([tag; 16]) }
    }

    #[test]
    fn contiguous_pages_share_one_extent() {
        let mut map = PageMap::empty();
        for page in 0..32 {
            map.pages[page] = Some(pointer(100 + page as u64, page as u16, page as u8));
        }
        let bytes = map.encode(Cipher::Aes256Gcm);
        assert_eq!(bytes.len(), 20 + 32 * 16);
        assert_eq!(PageMap::decode(Cipher::Aes256Gcm, &bytes), Ok(map));
    }

    #[test]
    fn scattered_pages_round_trip_within_the_value_limit() {
        let mut map = PageMap::empty();
        for page in 0..32 {
            map.pages[page] = Some(pointer(1000 - page as u64 * 3, u16::MAX, page as u8));
        }
        let bytes = map.encode(Cipher::Aes256Gcm);
        assert!(bytes.len() <= crate::tree::VALUE_BYTES_MAX, "{} bytes", bytes.len());
        assert_eq!(PageMap::decode(Cipher::Aes256Gcm, &bytes), Ok(map));
    }

    /// Whatever decodes is what encoding gives: maps that were changed at a byte, all of them.
    #[test]
    fn what_decodes_is_canonical() {
        let mut map = PageMap::empty();
        for (page, slot, counter) in [(0, 8, 5), (1, 9, 6), (2, 10, 8), (4, 12, 9), (5, 13, 10)] {
            map.pages[page] = Some(pointer(slot, counter, page as u8));
        }
        let mut decoded = 0;
        for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
            let bytes = map.encode(cipher);
            for (at, value) in (0..bytes.len()).flat_map(|at| (0..=255).map(move |v| (at, v))) {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(map) = PageMap::decode(cipher, &changed) {
                    assert_eq!(map.encode(cipher), changed, "byte {at} is {value}");
                    decoded += 1;
                }
            }
        }
        assert!(decoded > 1000, "{decoded}");
    }

    #[test]
    fn what_encode_would_not_write_is_refused() {
        let mut map = PageMap::empty();
        map.pages[3] = Some(pointer(9, 1, 1));
        map.pages[4] = Some(pointer(10, 2, 2));
        let bytes = map.encode(Cipher::Aes256Gcm);
        for cut in 1..bytes.len() {
            assert!(PageMap::decode(Cipher::Aes256Gcm, &bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut split = PageMap::empty();
        split.pages[3] = map.pages[3];
        let mut bytes = split.encode(Cipher::Aes256Gcm);
        split.pages[3] = None;
        split.pages[4] = map.pages[4];
        bytes.extend(split.encode(Cipher::Aes256Gcm));
        assert!(PageMap::decode(Cipher::Aes256Gcm, &bytes).is_err(), "two extents that are one");
    }
}
