//! The operations that take several steps, and what a crash between two of them shows. The list is
//! in `src/manual/crash.md`; every operation that is not here is there as a whole or not at all.

use crate::script::Op;
use crate::state::{Candidate, Node, State, edited};
use atrest::fs::{Allocate, Ino};
use std::collections::BTreeSet;

const PAGE: u64 = 4096;
/// Contents up to this size may be kept inline.
const INLINE_BYTES_MAX: u64 = 1280;
const CAPABILITY: &[u8] = b"security.capability";

/// What a crash within an operation may show besides what was before it and what is after it.
pub fn between(op: &Op, before: &State, after: &State) -> Vec<Candidate> {
    let Some((path, kills)) = subject(op) else { return Vec::new() };
    let key = format!("/{path}");
    let (Some(old), Some(new)) = (before.get(&key), after.get(&key)) else { return Vec::new() };
    let ino = old.attr.ino;
    let mut steps = Steps { ino, new, now: Candidate::exactly(before), found: Vec::new() };
    if kills && old.xattrs.iter().any(|(name, _)| name == CAPABILITY) {
        steps.drop_capability(old);
    }
    steps.content(op, before);
    let Steps { mut found, .. } = steps;
    found.retain(|candidate| candidate.state != *before && candidate.state != *after);
    found
}

/// The file that an operation of several steps changes, and whether it takes capabilities away.
fn subject(op: &Op) -> Option<(&str, bool)> {
    Some(match op {
        Op::Write { path, .. } | Op::Append { path, .. } => (path, false),
        Op::WriteKilling { path, .. } | Op::Allocate { path, .. } => (path, true),
        Op::Copy { to, .. } => (to, true),
        Op::Chown(path, ..) => (path, true),
        Op::Truncate(path, _) | Op::SetAll(path, ..) => (path, false),
        _ => return None,
    })
}

struct Steps<'a> {
    ino: Ino,
    /// What the file is after the operation.
    new: &'a Node,
    /// What is to be seen after the steps so far.
    now: Candidate,
    found: Vec<Candidate>,
}

impl Steps<'_> {
    /// One more step.
    fn step(&mut self, edit: impl Fn(&mut Node)) {
        self.now.state = edited(&self.now.state, self.ino, edit);
        self.found.push(self.now.clone());
    }

    fn file(&self) -> File {
        let mut nodes = self.now.state.values().filter(|node| node.attr.ino == self.ino);
        File::of(nodes.next().expect("it is there before and after"))
    }

    fn drop_capability(&mut self, old: &Node) {
        self.now.ctime = Some((self.ino, [old.attr.ctime, self.new.attr.ctime]));
        self.step(|node| node.xattrs.retain(|(name, _)| name != CAPABILITY));
    }

    /// What was inline moves into a page.
    fn make_paged(&mut self) {
        let mut file = self.file();
        if file.pages.is_some() {
            return;
        }
        // Zeros may be stored, or be behind the end of what is stored: then there is no page.
        if file.content.iter().all(|byte| *byte == 0) {
            let hole = File { pages: Some(BTreeSet::new()), ..file.clone() };
            self.found.push(self.now.clone());
            let last = self.found.last_mut().expect("just pushed");
            last.state = edited(&last.state, self.ino, |node| hole.show(node));
        }
        file.pages = Some(BTreeSet::from([0]));
        self.step(|node| file.show(node));
    }

    fn content(&mut self, op: &Op, before: &State) {
        let size = self.file().content.len() as u64;
        match op {
            Op::Write { offset, length, .. } | Op::WriteKilling { offset, length, .. } => {
                self.before_write(*offset, offset + *length as u64);
            }
            Op::Append { length, .. } => self.before_write(size, size + *length as u64),
            Op::Truncate(_, to) if *to > INLINE_BYTES_MAX => self.make_paged(),
            Op::SetAll(_, to, _) => {
                if *to > INLINE_BYTES_MAX {
                    self.make_paged();
                }
                let mode = self.file_mode();
                let new = self.new.clone();
                self.step(|node| {
                    let cookie = node.cookie;
                    *node = new.clone();
                    (node.cookie, node.attr.permissions) = (cookie, mode);
                });
            }
            Op::Allocate { offset, length, what, .. } => self.allocate(offset + length, *what),
            Op::Copy { from, from_offset, to_offset, length, .. } => {
                let source = before.get(&format!("/{from}")).map(File::of);
                self.copy(source, *from_offset, *to_offset, *length);
            }
            _ => {}
        }
    }

    fn file_mode(&self) -> u16 {
        let mut nodes = self.now.state.values().filter(|node| node.attr.ino == self.ino);
        nodes.next().expect("it is there").attr.permissions
    }

    /// The step that a write begins with if the content moves into pages, unless all of it is
    /// overwritten.
    fn before_write(&mut self, offset: u64, end: u64) {
        let size = self.file().content.len() as u64;
        let overwrites = offset == 0 && end % PAGE == 0 && end >= size;
        if size.max(end) > INLINE_BYTES_MAX && !overwrites {
            self.make_paged();
        }
    }

    fn allocate(&mut self, end: u64, what: Allocate) {
        let size = self.file().content.len() as u64;
        let keep_size = match what {
            Allocate::Punch => true,
            Allocate::Reserve { keep_size } | Allocate::Zero { keep_size } => keep_size,
        };
        if !keep_size && end > size.max(INLINE_BYTES_MAX) {
            self.make_paged();
        }
    }

    /// Pieces of data and holes, one after the other; times and size come last.
    fn copy(&mut self, source: Option<File>, from: u64, to: u64, length: u64) {
        let Some(source) = source else { return };
        let end = source.content.len().min((from + length) as usize) as u64;
        let old_size = self.file().content.len() as u64;
        let mut at = from;
        while at < end {
            let is_data = source.is_data(at);
            let mut next = at + 1;
            while next < end && source.is_data(next) == is_data {
                next += 1;
            }
            let target = to + (at - from);
            let mut file = self.file();
            if is_data {
                self.before_write(target, target + (next - at));
                file = self.file();
                file.write(target, &source.content[at as usize..next as usize]);
            } else if target < old_size.next_multiple_of(PAGE) {
                let until = (target + next - at).min(old_size.next_multiple_of(PAGE));
                file.clear(target, until);
            }
            self.step(|node| file.show(node));
            at = next;
        }
        if to + (end - from) > old_size.max(INLINE_BYTES_MAX) {
            self.make_paged();
        }
    }
}

/// A file's content as far as it shows: bytes, and which pages are there.
#[derive(Clone)]
struct File {
    content: Vec<u8>,
    /// `None`: it is inline.
    pages: Option<BTreeSet<u64>>,
}

impl File {
    fn of(node: &Node) -> Self {
        let size = node.attr.size;
        let inline = size <= INLINE_BYTES_MAX
            && node.attr.blocks == size.div_ceil(512)
            && (size == 0 || !node.data.is_empty());
        let ranges = node.data.iter().map(|(from, to)| from / PAGE..to.div_ceil(PAGE));
        let pages = (!inline).then(|| ranges.flatten().collect());
        Self { content: node.content.clone(), pages }
    }

    fn is_data(&self, at: u64) -> bool {
        self.pages.as_ref().is_none_or(|pages| pages.contains(&(at / PAGE)))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if self.pages.is_none() && end.max(self.content.len() as u64) > INLINE_BYTES_MAX {
            self.pages = Some(BTreeSet::new());
        }
        if let Some(pages) = &mut self.pages {
            pages.extend(offset / PAGE..end.div_ceil(PAGE));
        }
        self.content.resize(self.content.len().max(end as usize), 0);
        self.content[offset as usize..end as usize].copy_from_slice(bytes);
    }

    fn clear(&mut self, offset: u64, end: u64) {
        let size = self.content.len() as u64;
        let end = end.min(size.next_multiple_of(PAGE));
        let bytes = (offset.min(size) as usize)..(end.min(size) as usize);
        self.content[bytes].fill(0);
        if let Some(pages) = &mut self.pages {
            pages.retain(|page| {
                !(offset.next_multiple_of(PAGE)..end).contains(&(page * PAGE))
                    || (page + 1) * PAGE > end
            });
        }
    }

    /// Makes a node show this.
    fn show(&self, node: &mut Node) {
        let size = self.content.len() as u64;
        node.content.clone_from(&self.content);
        node.attr.size = size;
        node.data.clear();
        let Some(pages) = &self.pages else {
            node.attr.blocks = size.div_ceil(512);
            node.data.extend((size > 0).then_some((0, size)));
            return;
        };
        node.attr.blocks = pages.len() as u64 * (PAGE / 512);
        for page in pages {
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(size));
            match node.data.last_mut() {
                Some((_, end)) if *end == from => *end = to,
                _ => node.data.push((from, to)),
            }
        }
    }
}
