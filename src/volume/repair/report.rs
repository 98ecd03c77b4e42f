//! What a repair does, action by action, by path.

use crate::volume::check::{CheckReport, Subject, printable};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// What kind of change an action is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionKind {
    /// Superblocks, tree nodes, segments, free space: nothing of a file changes.
    Metadata,
    /// A record that contradicts others is made to agree.
    Corrected,
    /// What no name leads to gets one.
    Reattached,
    /// The record of an inode is made anew, because its contents or names are there.
    Rebuilt,
    /// Something that cannot be kept goes: a name, an attribute, a record.
    Removed,
    /// Contents that cannot be read: they become zeros.
    ContentLost,
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A unit variant serializes as its name.
        self.serialize(f)
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// What kind of change.
    pub kind: ActionKind,
    /// Path within the repaired volume; of what is removed, where it was.
    #[serde(serialize_with = "serialize_path")]
    pub path: Option<Vec<u8>>,
    /// The inode.
    pub ino: Option<u64>,
    /// First byte of the file that is affected.
    pub offset: Option<u64>,
    /// Bytes that are affected.
    pub length: Option<u64>,
    /// Why, and what is done.
    pub detail: String,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.ino) {
            (Some(path), _) => write!(f, "{}: ", printable(path))?,
            (None, Some(ino)) => write!(f, "inode {ino}: ")?,
            (None, None) => {}
        }
        if let (Some(offset), Some(length)) = (self.offset, self.length.filter(|&n| n > 0)) {
            write!(f, "bytes {offset} to {}: ", offset + length - 1)?;
        }
        write!(f, "{} ({})", self.detail, self.kind)
    }
}

/// What a repair does, or did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RepairReport {
    /// Sequence number of the state that is repaired.
    pub sequence: u64,
    /// Every page is read, too.
    pub deep: bool,
    /// Every change.
    pub actions: Vec<Action>,
    /// The repaired state is the newest one. Not in a dry run.
    pub committed: bool,
    /// A check of the repaired state; `None` if nothing is to be repaired.
    #[serde(skip)]
    pub check: Option<CheckReport>,
}

/// A file of which contents are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// The inode.
    pub ino: u64,
    /// A path of it in the repaired volume.
    pub path: Option<Vec<u8>>,
    /// Ranges that are lost: offset and length in bytes.
    pub ranges: Vec<(u64, u64)>,
}

impl RepairReport {
    /// Files of which contents are lost, by inode.
    pub fn damaged_files(&self) -> Vec<DamagedFile> {
        let mut files: BTreeMap<u64, DamagedFile> = BTreeMap::new();
        for action in self.actions.iter().filter(|action| action.kind == ActionKind::ContentLost) {
            let (Some(ino), Some(offset), Some(length)) =
                (action.ino, action.offset, action.length)
            else {
                continue;
            };
            let path = action.path.clone();
            let new = || DamagedFile { ino, path, ranges: Vec::new() };
            files.entry(ino).or_insert_with(new).ranges.push((offset, length));
        }
        files.values_mut().for_each(|file| file.ranges.sort_unstable());
        files.into_values().collect()
    }
}

fn serialize_path<S: Serializer>(path: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(printable).serialize(to)
}

/// An action whose path is not known yet.
pub(super) struct Draft {
    pub kind: ActionKind,
    pub subject: Subject,
    pub range: Option<(u64, u64)>,
    pub detail: String,
}

/// Collects actions. All of them are kept: nothing goes without being named.
#[derive(Default)]
pub(super) struct Drafts(pub Vec<Draft>);

impl Drafts {
    pub fn add(&mut self, kind: ActionKind, subject: Subject, detail: impl Into<String>) {
        self.0.push(Draft { kind, subject, range: None, detail: detail.into() });
    }

    /// Adds a range of a file; adjacent ranges with the same text are joined.
    pub fn add_range(&mut self, kind: ActionKind, ino: u64, range: (u64, u64), detail: &str) {
        let subject = Subject::Inode(ino);
        if let Some(last) = self.0.last_mut() {
            let joins = last.kind == kind && last.subject == subject && last.detail == detail;
            if let Some((offset, length)) = last.range.filter(|_| joins) {
                if offset + length == range.0 {
                    last.range = Some((offset, length + range.1));
                    return;
                }
            }
        }
        self.0.push(Draft { kind, subject, range: Some(range), detail: detail.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_print_path_range_and_kind() {
        let action = Action {
            kind: ActionKind::ContentLost,
            path: Some(b"/a\nb".to_vec()),
            ino: Some(5),
            offset: Some(4096),
            length: Some(8192),
            detail: "it does not authenticate".into(),
        };
        let text = action.to_string();
        assert_eq!(text, "/a\\nb: bytes 4096 to 12287: it does not authenticate (content-lost)");
        let nameless = Action { path: None, offset: None, ..action };
        assert_eq!(nameless.to_string(), "inode 5: it does not authenticate (content-lost)");
    }

    #[test]
    fn ranges_of_a_file_are_joined_and_gathered() {
        let mut drafts = Drafts::default();
        for range in [(8192, 4096), (12_288, 100), (0, 4096)] {
            drafts.add_range(ActionKind::ContentLost, 7, range, "x");
        }
        let actions: Vec<Action> = drafts
            .0
            .into_iter()
            .map(|draft| Action {
                kind: draft.kind,
                path: None,
                ino: Some(7),
                offset: draft.range.map(|(offset, _)| offset),
                length: draft.range.map(|(_, length)| length),
                detail: draft.detail,
            })
            .collect();
        let report = RepairReport { actions, ..RepairReport::default() };
        let files = report.damaged_files();
        let ranges = vec![(0, 4096), (8192, 4196)];
        assert_eq!(files, [DamagedFile { ino: 7, path: None, ranges }]);
    }
}
