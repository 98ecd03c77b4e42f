//! POSIX.1e access control lists: the bytes of `system.posix_acl_*` and how they and the mode of an
//! inode follow each other. Knows no volume; checking access is the kernel's.
//!
//! The rules are those of `acl(5)` and of the kernel's `fs/posix_acl.c`.

use super::Error;

/// Extended attribute that holds the access ACL.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Extended attribute that holds the default ACL of a directory.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Version in the header (`POSIX_ACL_XATTR_VERSION`).
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// Id of entries that name nobody (`ACL_UNDEFINED_ID`).
const UNDEFINED_ID: u32 = u32::MAX;

/// Whom an entry is about, in the order in which entries stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    UserObject,
    User,
    GroupObject,
    Group,
    Mask,
    Other,
}

impl Tag {
    const ALL: [(Self, u16); 6] = [
        (Self::UserObject, 0x01),
        (Self::User, 0x02),
        (Self::GroupObject, 0x04),
        (Self::Group, 0x08),
        (Self::Mask, 0x10),
        (Self::Other, 0x20),
    ];

    fn decode(number: u16) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == number).map(|(tag, _)| *tag)
    }

    fn encode(self) -> u16 {
        1 << (self as u16)
    }

    /// Whether several entries may carry it, each with an id.
    fn is_named(self) -> bool {
        matches!(self, Self::User | Self::Group)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    /// Read 4, write 2, execute 1.
    permissions: u16,
    id: u32,
}

/// A valid list: one entry each for the owner, the group and the others, entries in order, and a
/// mask if anybody is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Decodes the value of an extended attribute; `None` for a list without entries, which stands
    /// for "no ACL".
    ///
    /// ```text
    /// offset size field, little-endian
    ///      0    4 version: 2
    ///      4  8*n entries: tag u16, permissions u16, id u32
    /// ```
    ///
    /// # Errors
    /// [`Error::NotSupported`] for another version, as the kernel; [`Error::Invalid`] for anything
    /// else that is not a valid list.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Error> {
        const MALFORMED: Error = Error::Invalid("malformed ACL");
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(MALFORMED)?;
        if u32::from_le_bytes(*header) != VERSION {
            return Err(Error::NotSupported);
        }
        let chunks = body.chunks_exact(ENTRY_BYTES);
        if !chunks.remainder().is_empty() {
            return Err(MALFORMED);
        }
        let mut entries = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let [t0, t1, p0, p1, id @ ..]: [u8; ENTRY_BYTES] =
                chunk.try_into().expect("chunks are exact");
            let tag = Tag::decode(u16::from_le_bytes([t0, t1])).ok_or(MALFORMED)?;
            let permissions = u16::from_le_bytes([p0, p1]);
            let id = u32::from_le_bytes(id);
            if permissions > 7 || (tag.is_named() && id == UNDEFINED_ID) {
                return Err(MALFORMED);
            }
            entries.push(Entry {
                tag,
                permissions,
                id: if tag.is_named() { id } else { UNDEFINED_ID },
            });
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self(entries);
        if acl.is_valid() { Ok(Some(acl)) } else { Err(MALFORMED) }
    }

    /// Encodes as [`Acl::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.0.len() * ENTRY_BYTES);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.encode().to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// Whether it says no more than a mode does, so that it need not be kept.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The mode that goes with an access ACL: its nine permission bits replace those of `mode`. The
    /// group's bits are the mask, if there is one.
    pub fn mode(&self, mode: u32) -> u32 {
        let group = if self.has(Tag::Mask) { Tag::Mask } else { Tag::GroupObject };
        let bits = self.permissions(Tag::UserObject) << 6
            | self.permissions(group) << 3
            | self.permissions(Tag::Other);
        mode & !0o777 | bits
    }

    /// The access ACL after `chmod(2)` to `mode`.
    pub fn chmod(&mut self, mode: u32) {
        let group = if self.has(Tag::Mask) { Tag::Mask } else { Tag::GroupObject };
        self.set(Tag::UserObject, mode >> 6);
        self.set(group, mode >> 3);
        self.set(Tag::Other, mode);
    }

    /// What a new inode gets from the default ACL of its directory: the permissions of both must
    /// grant a right. Returns the access ACL and the mode; the umask has no say.
    pub fn inherit(&self, mode: u32) -> (Self, u32) {
        let mut access = self.clone();
        let mode = mode & (self.mode(0) | !0o777);
        access.chmod(mode);
        (access, mode)
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(Tag::User) + count(Tag::Group) > 0;
        self.0.is_sorted_by_key(|entry| entry.tag)
            && [Tag::UserObject, Tag::GroupObject, Tag::Other].iter().all(|tag| count(*tag) == 1)
            && (count(Tag::Mask) == 1 || (count(Tag::Mask) == 0 && !named))
    }

    fn has(&self, tag: Tag) -> bool {
        self.0.iter().any(|entry| entry.tag == tag)
    }

    fn permissions(&self, tag: Tag) -> u32 {
        self.0.iter().find(|entry| entry.tag == tag).map_or(0, |entry| entry.permissions.into())
    }

    fn set(&mut self, tag: Tag, bits: u32) {
        for entry in self.0.iter_mut().filter(|entry| entry.tag == tag) {
            entry.permissions = (bits & 7) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    const NOBODY: u32 = u32::MAX;

    /// user::rwx user:1000:rw- group::r-x mask::rwx other::r--
    fn full() -> Vec<u8> {
        bytes(&[(1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (0x10, 7, NOBODY), (0x20, 4, NOBODY)])
    }

    #[test]
    fn what_is_decoded_encodes_to_the_same_bytes() {
        let acl = Acl::decode(&full()).unwrap().unwrap();
        assert_eq!(acl.encode(), full());
        assert!(!acl.is_minimal());
        assert_eq!(Acl::decode(&bytes(&[])).unwrap(), None);
    }

    #[test]
    fn ids_of_entries_that_name_nobody_are_normalised() {
        let given = bytes(&[(1, 7, 3), (4, 5, 9), (0x20, 4, 0)]);
        let acl = Acl::decode(&given).unwrap().unwrap();
        assert!(acl.is_minimal());
        assert_eq!(acl.encode(), bytes(&[(1, 7, NOBODY), (4, 5, NOBODY), (0x20, 4, NOBODY)]));
    }

    #[test]
    fn malformed_lists_are_refused() {
        let (user, group, other) = ((1, 7, NOBODY), (4, 5, NOBODY), (0x20, 4, NOBODY));
        let mask = (0x10, 7, NOBODY);
        let refused: &[(&str, Vec<u8>)] = &[
            ("empty", vec![]),
            ("short header", vec![2, 0, 0]),
            ("half an entry", [full(), vec![0; 4]].concat()),
            ("no group", bytes(&[user, other])),
            ("no owner", bytes(&[group, other])),
            ("no others", bytes(&[user, group])),
            ("two owners", bytes(&[user, user, group, other])),
            ("order", bytes(&[group, user, other])),
            ("named without a mask", bytes(&[user, (2, 6, 1000), group, other])),
            ("two masks", bytes(&[user, group, mask, mask, other])),
            ("permission bits", bytes(&[(1, 8, NOBODY), group, other])),
            ("unknown tag", bytes(&[user, group, other, (0x40, 7, NOBODY)])),
            ("nobody named", bytes(&[user, (2, 6, NOBODY), group, mask, other])),
        ];
        for (defect, bytes) in refused {
            assert!(matches!(Acl::decode(bytes), Err(Error::Invalid(_))), "{defect}");
        }
        let mut version = full();
        version[0] = 3;
        assert!(matches!(Acl::decode(&version), Err(Error::NotSupported)));
    }

    #[test]
    fn the_group_bits_of_the_mode_are_the_mask() {
        let acl = Acl::decode(&full()).unwrap().unwrap();
        assert_eq!(acl.mode(0o102000), 0o102774);
        let mut changed = acl.clone();
        changed.chmod(0o610);
        assert_eq!(changed.mode(0), 0o610);
        assert_eq!(
            changed.permissions(Tag::GroupObject),
            5,
            "chmod changes the mask, not the group"
        );
        assert_eq!(changed.permissions(Tag::Mask), 1);
    }

    #[test]
    fn inheriting_grants_only_what_both_grant() {
        let acl = Acl::decode(&full()).unwrap().unwrap();
        let (access, mode) = acl.inherit(0o100646);
        assert_eq!(mode, 0o100644);
        assert_eq!(access.mode(0), 0o644);
        assert_eq!(access.permissions(Tag::User), 6);
        let minimal = Acl::decode(&bytes(&[(1, 6, NOBODY), (4, 4, NOBODY), (0x20, 0, NOBODY)]));
        let (access, mode) = minimal.unwrap().unwrap().inherit(0o777);
        assert!(access.is_minimal());
        assert_eq!(mode, 0o640);
    }
}
