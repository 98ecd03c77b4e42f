//! Everything that can be observed of a tree, and what may be seen between the steps of the few
//! operations that take several.

use atrest::format::PAGE_BYTES;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Attr, Ino, Kind, Seek, Tree};
use atrest::volume::Volume;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The root directory.
pub const ROOT: Ino = 1;
/// What is behind a size that is this large is not read.
const READ_BYTES_MAX: u64 = 8 << 20;

/// What one name shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// All of `stat(2)`, the inode number included.
    pub attr: Attr,
    /// The position in the directory.
    pub cookie: u64,
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of a file, target of a symbolic link.
    pub content: Vec<u8>,
    /// Ranges of a file that `SEEK_DATA` and `SEEK_HOLE` call data.
    pub data: Vec<(u64, u64)>,
}

/// Everything that can be seen, by path; the root's is empty.
pub type State = BTreeMap<String, Node>;

/// Looks at everything.
///
/// # Errors
/// If anything cannot be read, or contradicts something else that was read.
pub fn look(tree: &VolumeTree, volume: &Volume) -> Result<State, String> {
    let mut state = State::new();
    state.insert(String::new(), look_at(tree, ROOT, 0, "/")?);
    look_below(tree, ROOT, "", &mut state)?;
    // Space that fallocate(2) promised counts as blocks while the volume is open, and no longer.
    for node in state.values_mut().filter(|node| node.attr.kind == Kind::File) {
        node.attr.blocks -= volume.promised_pages(node.attr.ino) * (PAGE_BYTES as u64 / 512);
    }
    Ok(state)
}

fn look_below(tree: &VolumeTree, dir: Ino, path: &str, state: &mut State) -> Result<(), String> {
    let mut entries = Vec::new();
    let listed = tree.readdir(dir, 0, false, &mut |entry| {
        if entry.name != b"." && entry.name != b".." {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            entries.push((entry.ino, entry.cookie, name));
        }
        true
    });
    listed.map_err(|error| format!("readdir of {path}/: {error}"))?;
    for (ino, cookie, name) in entries {
        let path = format!("{path}/{name}");
        let found =
            tree.lookup(dir, name.as_bytes()).map_err(|error| format!("{path}: {error}"))?;
        if found.ino != ino {
            return Err(format!("{path}: by name inode {}, by cookie {ino}", found.ino));
        }
        let node = look_at(tree, ino, cookie, &path)?;
        let is_directory = node.attr.kind == Kind::Directory;
        state.insert(path.clone(), node);
        if is_directory {
            look_below(tree, ino, &path, state)?;
        }
    }
    Ok(())
}

fn look_at(tree: &VolumeTree, ino: Ino, cookie: u64, path: &str) -> Result<Node, String> {
    let failed = |error| format!("{path}: {error}");
    let attr = tree.getattr(ino).map_err(failed)?;
    let mut content = Vec::new();
    let mut data = Vec::new();
    match attr.kind {
        Kind::File => {
            let bytes = attr.size.min(READ_BYTES_MAX) as usize;
            tree.read(ino, 0, bytes, false, &mut content).map_err(failed)?;
            data = data_of(tree, ino, attr.size).map_err(failed)?;
        }
        Kind::Symlink => content = tree.readlink(ino).map_err(failed)?,
        _ => {}
    }
    let mut xattrs = Vec::new();
    let names = tree.listxattr(ino).map_err(failed)?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        xattrs.push((name.to_vec(), tree.getxattr(ino, name).map_err(failed)?));
    }
    Ok(Node { attr, cookie, xattrs, content, data })
}

fn data_of(tree: &VolumeTree, ino: Ino, size: u64) -> Result<Vec<(u64, u64)>, atrest::fs::Error> {
    let mut data = Vec::new();
    let mut at = 0;
    while at < size {
        let from = match tree.seek(ino, at, Seek::Data) {
            Err(atrest::fs::Error::NoSuchOffset) => break,
            found => found?,
        };
        at = tree.seek(ino, from, Seek::Hole)?;
        data.push((from, at));
    }
    Ok(data)
}

/// A state that a crash may leave.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What is to be seen.
    pub state: State,
    /// The change time of this inode was taken inside an operation and is not known: any between
    /// these two will do.
    pub ctime: Option<(Ino, [atrest::fs::Time; 2])>,
}

impl Candidate {
    /// Exactly this.
    pub fn exactly(state: &State) -> Self {
        Self { state: state.clone(), ctime: None }
    }

    /// Whether it is what was found.
    pub fn is(&self, found: &State) -> bool {
        let Some((ino, [from, to])) = self.ctime else { return self.state == *found };
        let mut state = self.state.clone();
        for (path, node) in state.iter_mut().filter(|(_, node)| node.attr.ino == ino) {
            let Some(other) = found.get(path) else { return false };
            if !(from..=to).contains(&other.attr.ctime) {
                return false;
            }
            node.attr.ctime = other.attr.ctime;
        }
        state == *found
    }
}

/// Changes what all names of an inode show.
pub fn edited(state: &State, ino: Ino, edit: impl Fn(&mut Node)) -> State {
    let mut state = state.clone();
    state.values_mut().filter(|node| node.attr.ino == ino).for_each(edit);
    state
}

/// What differs, in a few lines.
pub fn difference(expected: &State, found: &State) -> String {
    let mut text = String::new();
    let paths: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    for path in paths {
        match (expected.get(path), found.get(path)) {
            (Some(one), Some(other)) if one == other => {}
            (Some(one), Some(other)) => {
                let _ = writeln!(text, "  {path}/: {}", brief(one));
                let _ = writeln!(text, "    found: {}", brief(other));
            }
            (Some(one), None) => drop(writeln!(text, "  {path}/ is missing: {}", brief(one))),
            (None, Some(other)) => drop(writeln!(text, "  {path}/ is too much: {}", brief(other))),
            (None, None) => {}
        }
    }
    text
}

fn brief(node: &Node) -> String {
    let Node { attr, cookie, xattrs, content, data } = node;
    let xattrs: Vec<String> = xattrs
        .iter()
        .map(|(name, value)| format!("{}={} bytes", String::from_utf8_lossy(name), value.len()))
        .collect();
    let mut runs: Vec<(u8, usize)> = Vec::new();
    for byte in content {
        match runs.last_mut() {
            Some((last, count)) if last == byte => *count += 1,
            _ => runs.push((*byte, 1)),
        }
    }
    runs.truncate(12);
    format!(
        "{:?} {} mode {:o} links {} owner {}:{} rdev {} size {} blocks {} times {} {} {} {} \
         cookie {cookie} xattrs {xattrs:?} data {data:?} content (byte, count) {runs:?}",
        attr.kind,
        attr.ino,
        attr.permissions,
        attr.links,
        attr.uid,
        attr.gid,
        attr.rdev,
        attr.size,
        attr.blocks,
        time(attr.atime),
        time(attr.mtime),
        time(attr.ctime),
        time(attr.btime)
    )
}

fn time(time: atrest::fs::Time) -> String {
    format!("{}.{:09}", time.seconds % 1000, time.nanoseconds)
}
