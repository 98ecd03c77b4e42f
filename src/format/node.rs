//! Tree nodes: one page of sorted entries, searched in place.

use super::{NodePointer, PAGE_BYTES};
use std::cmp::Ordering;

/// The largest key, in bytes.
pub const KEY_BYTES_MAX: usize = 320;
/// The largest value in a leaf, in bytes, so that at least two records fit into a node.
pub const VALUE_BYTES_MAX: usize = 1_400;

/// Why bytes are not a node. In the order of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// A reserved byte is not zero.
    #[error("reserved bytes are not zero")]
    Reserved,
    /// A node has no entries, or more than fit.
    #[error("impossible number of entries")]
    Count,
    /// The common prefix is longer than a key may be, or than the page.
    #[error("impossible prefix length")]
    PrefixLength,
    /// An entry ends before it begins, or beyond the page.
    #[error("entry out of bounds")]
    Offset,
    /// An entry is too short, or its key or value too long.
    #[error("impossible entry length")]
    EntryLength,
    /// The first entry of an interior node has a key.
    #[error("first child has a separator")]
    FirstSeparator,
    /// Keys are not in strictly ascending order.
    #[error("keys are not in ascending order")]
    Order,
    /// The common prefix is not the longest one.
    #[error("prefix is not the longest common one")]
    Prefix,
    /// Bytes behind the last entry are not zero.
    #[error("unused bytes are not zero")]
    Unused,
}

/// One node of the tree in plaintext: a leaf (level 0) holds records, an interior node pointers.
///
/// ```text
/// offset  size field
///      0     1 level: 0 is a leaf
///      1     1 reserved, zero
///      2     2 entry count n, 1 or more
///      4     2 prefix length p
///      6     2 reserved, zero
///      8    2n end of each entry, from the start of the node; it begins where the one before ends
///   8+2n     p longest common prefix of all keys
/// 8+2n+p     . entries
///      .     . zeros up to 4096
///
/// leaf entry:      2 key suffix length s | s key suffix | value (0..=1400)
/// interior entry:  key suffix | 52 node pointer
/// ```
///
/// Keys have at most 320 bytes and ascend strictly. A child of an interior node holds the keys from
/// its separator (included) up to the next one (excluded). The separator of the first child is
/// minus infinity: it is stored as no bytes and does not count for the prefix, which is that of the
/// other separators and empty if there is none. A single key is all prefix. So a node has one
/// encoding.
pub struct Node {
    page: Box<[u8; PAGE_BYTES]>,
    level: u8,
    count: u16,
    prefix_bytes: u16,
}

const HEADER_BYTES: usize = 8;
const OFFSET_BYTES: usize = 2;
const SUFFIX_LENGTH_BYTES: usize = 2;

const _: () = assert!(PAGE_BYTES <= u16::MAX as usize, "offsets have 16 bits");
const _: () = assert!(
    HEADER_BYTES + 2 * (OFFSET_BYTES + SUFFIX_LENGTH_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX)
        <= PAGE_BYTES,
    "two of the largest records fit into a leaf"
);
const _: () = assert!(
    HEADER_BYTES + 10 * (OFFSET_BYTES + KEY_BYTES_MAX + NodePointer::LEN) <= PAGE_BYTES,
    "ten of the largest separators fit into an interior node"
);

impl Node {
    /// Decodes a page, and refuses whatever [`NodeBuilder`] would not have written.
    ///
    /// # Errors
    /// The first rule that the page breaks.
    pub fn decode(page: Box<[u8; PAGE_BYTES]>) -> Result<Self, NodeError> {
        let [level, reserved, n0, n1, p0, p1, r0, r1, ..] = *page;
        if [reserved, r0, r1] != [0; 3] {
            return Err(NodeError::Reserved);
        }
        let (count, prefix_bytes) = (u16::from_le_bytes([n0, n1]), u16::from_le_bytes([p0, p1]));
        let table_end = HEADER_BYTES + OFFSET_BYTES * usize::from(count);
        if count == 0 || table_end > PAGE_BYTES {
            return Err(NodeError::Count);
        }
        let prefix = usize::from(prefix_bytes);
        if prefix > KEY_BYTES_MAX || table_end + prefix > PAGE_BYTES {
            return Err(NodeError::PrefixLength);
        }
        let node = Self { page, level, count, prefix_bytes };
        node.check_entries()?;
        node.check_keys()?;
        if node.page[node.used_bytes()..].iter().any(|byte| *byte != 0) {
            return Err(NodeError::Unused);
        }
        Ok(node)
    }

    /// Distance from the leaves: 0 is a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Number of entries, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a node is never empty")]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes of the page that are in use.
    pub fn used_bytes(&self) -> usize {
        self.end(self.len() - 1)
    }

    /// The whole page, as it is sealed.
    pub fn bytes(&self) -> &[u8; PAGE_BYTES] {
        &self.page
    }

    /// Gives the page up, for sealing in place.
    pub fn into_bytes(self) -> Box<[u8; PAGE_BYTES]> {
        self.page
    }

    /// What all keys have in common.
    pub fn prefix(&self) -> &[u8] {
        let start = HEADER_BYTES + OFFSET_BYTES * self.len();
        &self.page[start..start + usize::from(self.prefix_bytes)]
    }

    /// The rest of the key of entry `index`; empty for the first child of an interior node.
    ///
    /// # Panics
    /// If `index >= len()`, as all accessors of entries.
    pub fn suffix(&self, index: usize) -> &[u8] {
        self.entry(index).0
    }

    /// Appends the key of entry `index` to `key`; nothing for the first child of an interior node.
    pub fn append_key(&self, index: usize, key: &mut Vec<u8>) {
        if self.level == 0 || index > 0 {
            key.extend_from_slice(self.prefix());
            key.extend_from_slice(self.suffix(index));
        }
    }

    /// Compares the key of entry `index` with `key`. The first child's is less than every key.
    pub fn compare(&self, index: usize, key: &[u8]) -> Ordering {
        if self.level > 0 && index == 0 {
            return Ordering::Less;
        }
        let prefix = self.prefix();
        match prefix.cmp(&key[..prefix.len().min(key.len())]) {
            Ordering::Equal => self.suffix(index).cmp(&key[prefix.len()..]),
            unequal => unequal,
        }
    }

    /// Finds `key`: `Ok` is its entry, `Err` the first entry with a larger key.
    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let first = usize::from(self.level > 0);
        let prefix = self.prefix();
        let rest = match prefix.cmp(&key[..prefix.len().min(key.len())]) {
            Ordering::Less => return Err(self.len()),
            Ordering::Greater => return Err(first),
            Ordering::Equal => &key[prefix.len()..],
        };
        let (mut low, mut high) = (first, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.suffix(middle).cmp(rest) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// The child of an interior node under which `key` is, if anywhere.
    pub fn child_of(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|larger| larger.saturating_sub(1))
    }

    /// The value of entry `index`; for an interior node the encoded pointer.
    pub fn value(&self, index: usize) -> &[u8] {
        self.entry(index).1
    }

    /// The pointer of entry `index`; nothing in a leaf.
    pub fn pointer(&self, index: usize) -> Option<NodePointer> {
        if self.level == 0 {
            return None;
        }
        self.value(index).try_into().ok().map(NodePointer::decode)
    }

    /// Where entry `index` ends.
    fn end(&self, index: usize) -> usize {
        let at = HEADER_BYTES + OFFSET_BYTES * index;
        usize::from(u16::from_le_bytes([self.page[at], self.page[at + 1]]))
    }

    /// Where entry `index` begins.
    fn start(&self, index: usize) -> usize {
        match index {
            0 => HEADER_BYTES + OFFSET_BYTES * self.len() + usize::from(self.prefix_bytes),
            _ => self.end(index - 1),
        }
    }

    /// Key suffix and payload of entry `index`.
    fn entry(&self, index: usize) -> (&[u8], &[u8]) {
        assert!(index < self.len(), "entries are 0..len()");
        let entry = &self.page[self.start(index)..self.end(index)];
        if self.level > 0 {
            return entry.split_at(entry.len() - NodePointer::LEN);
        }
        let suffix_bytes = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
        entry[SUFFIX_LENGTH_BYTES..].split_at(suffix_bytes)
    }

    /// Every entry is inside the page and has possible lengths: [`Self::entry`] cannot fail then.
    fn check_entries(&self) -> Result<(), NodeError> {
        let prefix = usize::from(self.prefix_bytes);
        let mut start = self.start(0);
        for index in 0..self.len() {
            let end = self.end(index);
            if end < start || end > PAGE_BYTES {
                return Err(NodeError::Offset);
            }
            let entry = &self.page[start..end];
            let (suffix_bytes, payload_bytes) = if self.level > 0 {
                (entry.len().checked_sub(NodePointer::LEN), NodePointer::LEN)
            } else if let [s0, s1, rest @ ..] = entry {
                let suffix = usize::from(u16::from_le_bytes([*s0, *s1]));
                (Some(suffix), rest.len().checked_sub(suffix).ok_or(NodeError::EntryLength)?)
            } else {
                (None, 0)
            };
            let suffix_bytes = suffix_bytes.ok_or(NodeError::EntryLength)?;
            if prefix + suffix_bytes > KEY_BYTES_MAX || payload_bytes > VALUE_BYTES_MAX {
                return Err(NodeError::EntryLength);
            }
            start = end;
        }
        Ok(())
    }

    /// Keys ascend strictly, and their prefix is the longest.
    fn check_keys(&self) -> Result<(), NodeError> {
        let first = usize::from(self.level > 0);
        if first == 1 && !self.suffix(0).is_empty() {
            return Err(NodeError::FirstSeparator);
        }
        for index in first + 1..self.len() {
            if self.suffix(index - 1) >= self.suffix(index) {
                return Err(NodeError::Order);
            }
        }
        if first == self.len() {
            return if self.prefix_bytes == 0 { Ok(()) } else { Err(NodeError::Prefix) };
        }
        if first == 1 && self.prefix_bytes == 0 && self.suffix(1).is_empty() {
            // A separator without bytes would leave nothing for the first child.
            return Err(NodeError::Order);
        }
        let last = self.len() - 1;
        let longer = match (self.suffix(first).first(), self.suffix(last).first()) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        };
        if longer { Err(NodeError::Prefix) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Node {
    /// Shape only: names and contents of files do not belong into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node {{ level: {}, len: {} }}", self.level, self.count)
    }
}

/// The encoded size of a node, as entries are added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    level: u8,
    count: usize,
    /// Stored keys with their prefixes, and payloads.
    entries_bytes: usize,
    prefix_bytes: usize,
}

impl Measure {
    pub(crate) fn new(level: u8) -> Self {
        Self { level, count: 0, entries_bytes: 0, prefix_bytes: 0 }
    }

    /// The size with one more entry, which shares `shared` bytes of its key with the one before.
    pub(crate) fn with(self, key_bytes: usize, shared: usize, payload_bytes: usize) -> Self {
        let first_key = usize::from(self.level > 0);
        let (key_bytes, prefix_bytes) = match self.count {
            0 if first_key == 1 => (0, 0),
            count if count == first_key => (key_bytes, key_bytes),
            _ => (key_bytes, self.prefix_bytes.min(shared)),
        };
        let length_bytes = if self.level > 0 { 0 } else { SUFFIX_LENGTH_BYTES };
        Self {
            level: self.level,
            count: self.count + 1,
            entries_bytes: self.entries_bytes + length_bytes + key_bytes + payload_bytes,
            prefix_bytes,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Encoded bytes so far.
    pub(crate) fn bytes(&self) -> usize {
        let keys = self.count.saturating_sub(usize::from(self.level > 0));
        let entries_bytes = self.entries_bytes - keys * self.prefix_bytes;
        HEADER_BYTES + OFFSET_BYTES * self.count + self.prefix_bytes + entries_bytes
    }

    pub(crate) fn fits(&self) -> bool {
        self.bytes() <= PAGE_BYTES
    }
}

/// How many bytes `a` and `b` have in common at their start.
pub(crate) fn shared_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Collects entries in ascending order and encodes them as a node.
pub struct NodeBuilder<'a> {
    measure: Measure,
    entries: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> NodeBuilder<'a> {
    /// Starts a node of `level`.
    pub fn new(level: u8) -> Self {
        Self { measure: Measure::new(level), entries: Vec::new() }
    }

    /// Adds an entry, or says `false` and changes nothing: if the node would be larger than a page,
    /// the key is not larger than the last one, or one of them is longer than it may be.
    /// The payload is the value, or an encoded [`NodePointer`]; the first child's key is not
    /// stored.
    #[must_use]
    pub fn push(&mut self, key: &'a [u8], payload: &'a [u8]) -> bool {
        let level = self.measure.level;
        let payload_fits = match level {
            0 => payload.len() <= VALUE_BYTES_MAX,
            _ => payload.len() == NodePointer::LEN,
        };
        let last_key = self.entries.last().map(|(last, _)| *last);
        if !payload_fits || key.len() > KEY_BYTES_MAX || last_key.is_some_and(|last| last >= key) {
            return false;
        }
        let shared = last_key.map_or(0, |last| shared_bytes(last, key));
        let measure = self.measure.with(key.len(), shared, payload.len());
        if !measure.fits() {
            return false;
        }
        self.measure = measure;
        self.entries.push((key, payload));
        true
    }

    /// Encodes the node; nothing if it has no entry.
    pub fn finish(self) -> Option<Node> {
        let Measure { level, count, prefix_bytes, .. } = self.measure;
        if count == 0 {
            return None;
        }
        let narrow = |wide: usize| u16::try_from(wide).expect("a page has less than 64 KiB");
        let mut page = Box::new([0; PAGE_BYTES]);
        page[0] = level;
        page[2..4].copy_from_slice(&narrow(count).to_le_bytes());
        page[4..6].copy_from_slice(&narrow(prefix_bytes).to_le_bytes());
        let mut at = HEADER_BYTES + OFFSET_BYTES * count;
        let mut put = |page: &mut [u8; PAGE_BYTES], bytes: &[u8]| {
            page[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
            narrow(at).to_le_bytes()
        };
        let (last_key, _) = self.entries[count - 1];
        put(&mut page, &last_key[..prefix_bytes]);
        for (index, (key, payload)) in self.entries.iter().enumerate() {
            if level == 0 {
                let suffix = &key[prefix_bytes..];
                put(&mut page, &narrow(suffix.len()).to_le_bytes());
                put(&mut page, suffix);
            } else if index > 0 {
                put(&mut page, &key[prefix_bytes..]);
            }
            let end = put(&mut page, payload);
            let entry_at = HEADER_BYTES + OFFSET_BYTES * index;
            page[entry_at..entry_at + OFFSET_BYTES].copy_from_slice(&end);
        }
        Some(Node { page, level, count: narrow(count), prefix_bytes: narrow(prefix_bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(seed: u8) -> [u8; NodePointer::LEN] {
        [seed; NodePointer::LEN]
    }

    fn leaf(records: &[(&[u8], &[u8])]) -> Node {
        let mut builder = NodeBuilder::new(0);
        for (key, value) in records {
            assert!(builder.push(key, value), "records of the test fit and are in order");
        }
        builder.finish().expect("at least one record")
    }

    fn refusal(page: [u8; PAGE_BYTES]) -> Option<NodeError> {
        Node::decode(Box::new(page)).err()
    }

    #[test]
    fn leaf_bytes_are_as_specified() {
        // A change here is a change of the format: bump FORMAT_VERSION.
        let node = leaf(&[(b"kab", b"one"), (b"kb", b"")]);
        let expected: &[u8] =
            &[0, 0, 2, 0, 1, 0, 0, 0, 20, 0, 23, 0, b'k', 2, 0, b'a', b'b', b'o', b'n', b'e', 1];
        assert_eq!(&node.bytes()[..expected.len()], expected);
        assert_eq!(node.used_bytes(), 23);
        assert_eq!(node.bytes()[21..23], [0, b'b']);
    }

    #[test]
    fn interior_bytes_are_as_specified() {
        let (a, b, c) = (pointer(1), pointer(2), pointer(3));
        let mut builder = NodeBuilder::new(2);
        assert!(builder.push(b"", &a) && builder.push(b"pqx", &b) && builder.push(b"pqy", &c));
        let node = builder.finish().unwrap();
        assert_eq!(node.bytes()[..8], [2, 0, 3, 0, 2, 0, 0, 0]);
        assert_eq!(node.bytes()[8..14], [68, 0, 121, 0, 174, 0]);
        assert_eq!(&node.bytes()[14..16], b"pq");
        assert_eq!(node.pointer(1), Some(NodePointer::decode(&b)));
        let child = |key: &[u8]| node.child_of(key);
        assert_eq!([child(b""), child(b"pq"), child(b"pqx")], [0, 0, 1]);
        assert_eq!([child(b"pqx0"), child(b"pqy"), child(b"z")], [1, 2, 2]);
        assert!(Node::decode(node.into_bytes()).is_ok());
    }

    #[test]
    fn search_finds_every_key_and_every_gap() {
        let node = leaf(&[(b"ab", b"1"), (b"abc", b"2"), (b"abe", b"3")]);
        let keys: [&[u8]; 8] = [b"", b"a", b"ab", b"aba", b"abc", b"abd", b"abe", b"b"];
        let found = keys.map(|key| node.search(key));
        let expected = [Err(0), Err(0), Ok(0), Err(1), Ok(1), Err(2), Ok(2), Err(3)];
        assert_eq!(found, expected);
    }

    #[test]
    fn builder_refuses_what_does_not_fit() {
        let (key, value) = ([7; KEY_BYTES_MAX + 1], [7; VALUE_BYTES_MAX + 1]);
        let mut builder = NodeBuilder::new(0);
        assert!(!builder.push(&key, b"") && !builder.push(b"k", &value));
        assert!(builder.push(b"k", b"") && !builder.push(b"k", b"") && !builder.push(b"j", b""));
        assert!(!NodeBuilder::new(1).push(b"k", &[0; 51]));
        assert!(NodeBuilder::new(0).finish().is_none());
    }

    #[test]
    fn measure_is_the_encoded_size() {
        for level in [0, 1] {
            let keys: Vec<_> = (0..20_u32).map(|n| format!("prefix{}", 1000 + n * 37)).collect();
            let payload = pointer(9);
            let mut builder = NodeBuilder::new(level);
            let mut measure = Measure::new(level);
            let mut last: &[u8] = b"";
            for key in &keys {
                let key = key.as_bytes();
                assert!(builder.push(key, &payload));
                measure = measure.with(key.len(), shared_bytes(last, key), payload.len());
                last = key;
            }
            assert_eq!(builder.finish().unwrap().used_bytes(), measure.bytes());
        }
    }

    #[test]
    fn each_rule_is_enforced() {
        let good = *leaf(&[(b"kab", b"one"), (b"kb", b"")]).bytes();
        let with = |at: usize, byte: u8| {
            let mut page = good;
            page[at] = byte;
            refusal(page)
        };
        assert_eq!(refusal(good), None);
        assert_eq!(with(1, 1), Some(NodeError::Reserved));
        assert_eq!(with(7, 1), Some(NodeError::Reserved));
        assert_eq!(with(2, 0), Some(NodeError::Count));
        assert_eq!(with(3, 255), Some(NodeError::Count));
        assert_eq!(with(5, 2), Some(NodeError::PrefixLength));
        assert_eq!(with(8, 24), Some(NodeError::Offset));
        assert_eq!(with(11, 255), Some(NodeError::Offset));
        assert_eq!(with(8, 14), Some(NodeError::EntryLength));
        assert_eq!(with(13, 9), Some(NodeError::EntryLength));
        assert_eq!(with(22, b'a'), Some(NodeError::Order));
        assert_eq!(with(15, b'b'), Some(NodeError::Order));
        assert_eq!(with(4095, 1), Some(NodeError::Unused));
    }

    #[test]
    fn prefix_must_be_the_longest() {
        let mut page = [0; PAGE_BYTES];
        page[..18].copy_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 15, 0, 18, 0, 1, 0, b'k', 1, 0, b'l']);
        assert_eq!(refusal(page), None);
        page[14..18].copy_from_slice(&[b'k', 2, 0, b'k']);
        page[10] = 19;
        page[18] = b'l';
        assert_eq!(refusal(page), Some(NodeError::Prefix));
    }

    #[test]
    fn first_child_has_no_separator() {
        let mut page = [0; PAGE_BYTES];
        page[..3].copy_from_slice(&[1, 0, 1]);
        page[8] = 62;
        assert_eq!(refusal(page), None);
        page[8] = 63;
        assert_eq!(refusal(page), Some(NodeError::FirstSeparator));
        // One child, but a prefix.
        page[4] = 1;
        assert_eq!(refusal(page), Some(NodeError::Prefix));
        // A second child from the empty key on: nothing is left for the first.
        page[..12].copy_from_slice(&[1, 0, 2, 0, 0, 0, 0, 0, 64, 0, 116, 0]);
        assert_eq!(refusal(page), Some(NodeError::Order));
    }
}
