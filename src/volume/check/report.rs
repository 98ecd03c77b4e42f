//! What a check found: findings, how bad each is, and how they are put into words.

use serde::{Serialize, Serializer};
use std::fmt;

/// Findings that are kept; what is more is only counted, so that a ruined volume needs no more
/// memory than a whole one.
pub const FINDINGS_MAX: usize = 100_000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Notice,
    /// A copy is damaged and its other copy is whole: restored when the volume is mounted and the
    /// place is read.
    Healable,
    /// Records contradict each other; nothing that was stored is lost by that.
    Inconsistent,
    /// Something that was stored cannot be read any more.
    Lost,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $severity:ident,)*) => {
        /// What is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)*
                }
            }
        }
    };
}

kinds! {
    /// Contents carry no tags, so that reading them proves nothing (`aes-256-xts`).
    ContentUnauthenticated Notice,
    /// Some checks could not be made because of other damage.
    NotChecked Notice,
    /// One of the two superblocks cannot be used.
    Superblock Healable,
    /// The superblocks are not consecutive: one was put back from an older copy.
    SuperblockReplayed Healable,
    /// One copy of a tree node does not authenticate.
    NodeCopy Healable,
    /// The newest state cannot be opened; the one before it was checked.
    NewestLost Lost,
    /// A segment that holds something is missing.
    SegmentMissing Lost,
    /// A segment that holds something is too short.
    SegmentShort Lost,
    /// Neither copy of a tree node authenticates.
    NodeLost Lost,
    /// It is not known which slots are in use: the volume opens only for reading.
    SpaceLost Lost,
    /// The record of an inode is in a lost node: it cannot be opened.
    InodeLost Lost,
    /// An entry is in a lost node: the name cannot be looked up.
    EntryLost Lost,
    /// Part of a directory's listing is in a lost node.
    ListingLost Lost,
    /// Inline content or page maps are in a lost node.
    ContentLost Lost,
    /// Extended attributes are in a lost node.
    AttributesLost Lost,
    /// The data key of a chunk is missing or cannot be unwrapped.
    KeyLost Lost,
    /// Pages do not authenticate or cannot be read.
    PageLost Lost,
    /// There is no root directory.
    RootMissing Lost,
    /// A record that authenticates breaks the format.
    RecordMalformed Inconsistent,
    /// Records of an inode that does not exist.
    RecordStray Inconsistent,
    /// An entry names an inode that does not exist.
    EntryDangling Inconsistent,
    /// An entry gives another type than its inode has.
    EntryKind Inconsistent,
    /// An entry's name is one that no name may be.
    EntryName Inconsistent,
    /// An entry that the directory's listing lacks, or has differently.
    CookieMissing Inconsistent,
    /// A listing shows a name that cannot be looked up.
    CookieStray Inconsistent,
    /// The link count is not the number of names (or of subdirectories, and two).
    Links Inconsistent,
    /// A directory's size is not the number of its entries.
    DirectorySize Inconsistent,
    /// A directory does not say rightly where it is.
    Parent Inconsistent,
    /// No name leads to an inode.
    Unreachable Inconsistent,
    /// Directories contain each other.
    Loop Inconsistent,
    /// An inode with a name is marked as having none: it would be discarded at the next mount.
    OrphanNamed Inconsistent,
    /// The mode has no type, or a record is there that this type does not have.
    InodeMode Inconsistent,
    /// Inline content of a file whose content is in pages, or more than its size.
    Inline Inconsistent,
    /// The number of allocated pages is not the number that the page maps hold.
    PageCount Inconsistent,
    /// Pages behind the end of the file.
    PageBeyondSize Inconsistent,
    /// The parts of an extended attribute are not one after the other.
    AttributeParts Inconsistent,
    /// Extended attributes of an inode that says that it has none.
    AttributeFlag Inconsistent,
    /// A mark of cut-off pages is malformed.
    Cut Inconsistent,
    /// A counter is not above everything it has given out.
    Counters Inconsistent,
    /// Two records refer to one slot.
    SlotShared Inconsistent,
    /// A slot is in use and counted as free: it would be written over.
    SlotFree Inconsistent,
    /// Slots are counted as used and nothing refers to them.
    SlotLeaked Inconsistent,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A unit variant serializes as its name.
        self.serialize(f)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// Path within the volume, if one leads there.
    #[serde(serialize_with = "serialize_path")]
    pub path: Option<Vec<u8>>,
    /// The inode that is affected.
    pub ino: Option<u64>,
    /// First byte of the file that is affected.
    pub offset: Option<u64>,
    /// Bytes that are affected; `None` with an offset: to the end.
    pub length: Option<u64>,
    /// What was found, and what was expected instead.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.ino) {
            (Some(path), _) => write!(f, "{}: ", printable(path))?,
            (None, Some(ino)) => write!(f, "inode {ino}: ")?,
            (None, None) => {}
        }
        match (self.offset, self.length) {
            (Some(offset), Some(length)) if length > 0 => {
                write!(f, "bytes {offset} to {}: ", offset + length - 1)?;
            }
            (Some(offset), _) => write!(f, "from byte {offset}: ")?,
            _ => {}
        }
        write!(f, "{} ({})", self.detail, self.kind)
    }
}

/// The result of a check.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// Sequence number of the state that was checked.
    pub sequence: u64,
    /// The volume was unmounted in order.
    pub unmounted_in_order: bool,
    /// Every page was read, too.
    pub deep: bool,
    /// Tree nodes that were checked, both copies of each.
    pub nodes: u64,
    /// Inodes.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Pages of contents to which records refer.
    pub pages: u64,
    /// Pages that were read.
    pub pages_read: u64,
    /// What is wrong, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Findings that were not kept, see [`FINDINGS_MAX`].
    pub findings_omitted: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.worst().is_none_or(|worst| worst == Severity::Notice) && self.findings_omitted == 0
    }

    /// The worst severity found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// A path as text for people: what is not UTF-8 or does not print is escaped.
pub fn printable(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() || letter == '\\' {
                text.extend(letter.escape_default());
            } else {
                text.push(letter);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

fn serialize_path<S: Serializer>(path: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(printable).serialize(to)
}

/// What a finding is about, until its path is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::volume) enum Subject {
    /// The volume.
    Volume,
    /// An inode.
    Inode(u64),
    /// A name in a directory, and the inode that it stands for.
    Name { parent: u64, name: Vec<u8>, ino: u64 },
}

/// A finding whose path is not known yet.
pub(super) struct Draft {
    pub kind: Kind,
    pub subject: Subject,
    /// Offset and length in the file.
    pub range: Option<(u64, u64)>,
    pub detail: String,
}

/// Collects findings.
#[derive(Default)]
pub(super) struct Drafts {
    pub list: Vec<Draft>,
    pub omitted: u64,
}

impl Drafts {
    pub fn add(&mut self, kind: Kind, subject: Subject, detail: impl Into<String>) {
        self.push(Draft { kind, subject, range: None, detail: detail.into() });
    }

    /// Adds damage to a range of a file; adjacent ranges with the same text are joined.
    pub fn add_range(&mut self, kind: Kind, ino: u64, range: (u64, u64), detail: &str) {
        let subject = Subject::Inode(ino);
        if let Some(last) = self.list.last_mut() {
            let joins = last.kind == kind && last.subject == subject && last.detail == detail;
            if let Some((offset, length)) = last.range.filter(|_| joins) {
                if offset + length == range.0 {
                    last.range = Some((offset, length + range.1));
                    return;
                }
            }
        }
        self.push(Draft { kind, subject, range: Some(range), detail: detail.into() });
    }

    fn push(&mut self, draft: Draft) {
        if self.list.len() < FINDINGS_MAX {
            self.list.push(draft);
        } else {
            self.omitted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_print_as_they_serialize() {
        for kind in [Kind::SlotFree, Kind::Loop, Kind::PageBeyondSize] {
            let json = serde_json::to_string(&kind).expect("a unit variant");
            assert_eq!(json, format!("\"{kind}\""));
        }
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(printable("/é\n\u{1b}x".as_bytes()), "/é\\n\\u{1b}x");
        assert_eq!(printable(b"/a\xffb"), "/a\\xffb");
    }

    #[test]
    fn adjacent_ranges_are_joined() {
        let mut drafts = Drafts::default();
        drafts.add_range(Kind::PageLost, 5, (0, 4096), "x");
        drafts.add_range(Kind::PageLost, 5, (4096, 4096), "x");
        drafts.add_range(Kind::PageLost, 5, (12_288, 4096), "x");
        drafts.add_range(Kind::PageLost, 6, (16_384, 4096), "x");
        let ranges: Vec<_> = drafts.list.iter().map(|draft| draft.range).collect();
        let expected = [(0, 8192), (12_288, 4096), (16_384, 4096)];
        assert_eq!(ranges, expected.map(Some));
    }
}
