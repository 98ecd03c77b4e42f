//! From inode numbers to paths, for all findings at once: one pass over the entries.

use super::report::{CheckReport, Finding, Subject};
use super::{Checker, Progress, ROOT, Stage};
use crate::format::record::{self, Entry, Table};
use crate::volume::path::DEPTH_MAX;
use crate::volume::records::decode_cookie;
use std::collections::HashMap;

/// Where inodes are: parent, and name once it is known.
pub(in crate::volume) type Places = HashMap<u64, (u64, Option<Vec<u8>>)>;

impl Checker<'_> {
    /// Puts paths to the findings.
    pub(super) fn into_report(self) -> CheckReport {
        let mut places = Places::new();
        for draft in &self.drafts.list {
            match draft.subject {
                Subject::Volume => {}
                Subject::Inode(ino) => self.need(ino, &mut places),
                Subject::Name { parent, .. } => self.need(parent, &mut places),
            }
        }
        if !places.is_empty() {
            (self.progress)(Progress { stage: Stage::Paths, done: 0, total: 0 });
            self.look_up(&mut places);
        }
        let mut report = self.report;
        report.findings_omitted = self.drafts.omitted;
        report.findings.reserve(self.drafts.list.len());
        for draft in self.drafts.list {
            let (path, ino) = match draft.subject {
                Subject::Volume => (None, None),
                Subject::Inode(ino) => (path(&places, ino), Some(ino)),
                Subject::Name { parent, name, ino } => {
                    let parent = path(&places, parent).map(|path| join(&path, &name));
                    (parent, Some(ino))
                }
            };
            report.findings.push(Finding {
                kind: draft.kind,
                severity: draft.kind.severity(),
                path,
                ino,
                offset: draft.range.map(|(offset, _)| offset),
                length: draft.range.map(|(_, length)| length),
                detail: draft.detail,
            });
        }
        report
    }

    /// Notes that the names of an inode and of all directories above it are needed.
    fn need(&self, mut ino: u64, places: &mut Places) {
        while ino != ROOT && ino != 0 && !places.contains_key(&ino) {
            let named_by = match self.inodes.get(ino) {
                Some(known) => known.named_by,
                // The record is lost: its name may be found all the same.
                None => 0,
            };
            places.insert(ino, (named_by, None));
            ino = named_by;
        }
    }

    /// Finds the names, in entries and, where those are lost, in listings.
    fn look_up(&self, places: &mut Places) {
        let mut note = |parent: u64, ino: u64, name: &[u8]| {
            if let Some((of, found)) = places.get_mut(&ino) {
                if found.is_none() && (*of == parent || *of == 0) {
                    *of = parent;
                    *found = Some(name.to_vec());
                }
            }
        };
        self.volume.scan(&[Table::Entry as u8], &[Table::Entry as u8 + 1], &mut |key, value| {
            if let (Some(name), Ok(entry)) = (key.get(9..), Entry::decode(value)) {
                note(record::owner(key), entry.ino, name);
            }
            true
        });
        if !self.lost.touches_table(Table::Entry) {
            return;
        }
        self.volume.scan(&[Table::Cookie as u8], &[Table::Cookie as u8 + 1], &mut |key, value| {
            if let Some((_, ino, _, name)) = decode_cookie(key, value) {
                note(record::owner(key), ino, name);
            }
            true
        });
    }
}

pub(in crate::volume) fn path(places: &Places, ino: u64) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    let mut at = ino;
    while at != ROOT {
        let (parent, name) = places.get(&at)?;
        names.push(name.as_deref()?);
        at = *parent;
        if names.len() > DEPTH_MAX {
            return None;
        }
    }
    if names.is_empty() {
        return Some(b"/".to_vec());
    }
    let mut path = Vec::new();
    for name in names.into_iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Some(path)
}

pub(in crate::volume) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.strip_suffix(b"/").unwrap_or(directory).to_vec();
    path.push(b'/');
    path.extend_from_slice(name);
    path
}
