//! The tree of an archive in memory: compact, because it is there for as long as the mount is.

use std::collections::HashMap;
use std::ops::Range;

use super::error::Refusal;
use super::limits::Limits;

/// Which node: the place in [`Index`]. The root is 0.
pub type NodeId = u32;

/// Seconds and nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Negative before 1970.
    pub seconds: i64,
    /// 0..1_000_000_000
    pub nanoseconds: u32,
}

/// Where a member's bytes are, and what they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// Offset of its local header.
    pub header: u64,
    /// Bytes as they lie in the archive.
    pub compressed: u64,
    /// Bytes decompressed.
    pub size: u64,
    /// CRC-32 of those.
    pub crc: u32,
    /// Of its name as it is written, to compare the local header with.
    pub(super) name_crc: u32,
    pub(super) name_bytes: u16,
    /// Bytes between it and what follows, in which the local header's extra fields must fit.
    pub(super) slack: u32,
    /// Deflated, or else stored.
    pub deflated: bool,
    /// Its sizes follow it, and may be missing from its local header.
    pub(super) described: bool,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory {
        /// Its first entry, in the list of all entries.
        first: u32,
        /// Its entries.
        count: u32,
        /// Those of them that are directories.
        directories: u32,
    },
    /// A regular file.
    File(Data),
    /// A symbolic link, with its target as contents.
    Symlink(Data),
}

/// A member, or a directory that is there because members are in it.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    name_start: u32,
    name_bytes: u8,
    /// The directory it is in; the root is in itself.
    pub parent: NodeId,
    /// 0..=0o777
    pub permissions: u16,
    /// When it was changed last.
    pub mtime: Time,
    /// What it is.
    pub content: Content,
}

/// All nodes, in the order of their paths.
pub struct Index {
    nodes: Vec<Node>,
    names: Vec<u8>,
    /// The entries of all directories, each directory's together and by name.
    entries: Vec<NodeId>,
    targets: HashMap<NodeId, Box<[u8]>>,
    bytes: u64,
}

impl Index {
    /// The root directory.
    pub const ROOT: NodeId = 0;

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none, which is never so.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A node.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// A node, if there is one of that number.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    /// The name of a node; the root has none.
    pub fn name(&self, id: NodeId) -> &[u8] {
        let node = self.node(id);
        &self.names[node.name_start as usize..][..usize::from(node.name_bytes)]
    }

    /// The entries of a directory, by name; of anything else none.
    pub fn entries(&self, id: NodeId) -> &[NodeId] {
        match self.node(id).content {
            Content::Directory { first, count, .. } => {
                &self.entries[first as usize..][..count as usize]
            }
            Content::File(_) | Content::Symlink(_) => &[],
        }
    }

    /// The entry `name` of a directory.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let entries = self.entries(directory);
        let found = entries.binary_search_by(|id| self.name(*id).cmp(name)).ok()?;
        Some(entries[found])
    }

    /// The node at a path whose parts are divided by slashes; "" is the root.
    pub fn find(&self, path: &[u8]) -> Option<NodeId> {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        parts.into_iter().try_fold(Self::ROOT, |id, part| self.lookup(id, part))
    }

    /// The path of a node from the root, without a slash in front.
    pub fn path(&self, id: NodeId) -> String {
        let mut parts = Vec::new();
        let mut at = id;
        while at != Self::ROOT {
            parts.push(String::from_utf8_lossy(self.name(at)));
            at = self.node(at).parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// All files and symbolic links, in the order in which they lie in the archive.
    pub fn members(&self) -> Vec<(NodeId, Data)> {
        let nodes = (0..).zip(&self.nodes);
        let mut members: Vec<_> = nodes
            .filter_map(|(id, node)| match node.content {
                Content::File(data) | Content::Symlink(data) => Some((id, data)),
                Content::Directory { .. } => None,
            })
            .collect();
        members.sort_unstable_by_key(|(_, data)| data.header);
        members
    }

    /// The target of a symbolic link.
    pub fn target(&self, id: NodeId) -> Option<&[u8]> {
        self.targets.get(&id).map(|target| &**target)
    }

    pub(super) fn set_target(&mut self, id: NodeId, target: Vec<u8>) {
        self.targets.insert(id, target.into());
    }

    /// The newest change of all members.
    pub fn newest(&self) -> Time {
        self.node(Self::ROOT).mtime
    }
}

/// An entry of the central directory that was understood.
pub(super) struct Entry {
    /// In [`Builder::paths`].
    pub(super) path: Range<usize>,
    pub(super) permissions: u16,
    pub(super) mtime: Time,
    pub(super) content: Content,
    /// That of `content`, for directories as well.
    pub(super) data: Data,
}

impl Entry {
    pub(super) fn set_slack(&mut self, slack: u32) {
        if let Content::File(data) | Content::Symlink(data) = &mut self.content {
            data.slack = slack;
        }
    }
}

/// What an [`Index`] is made of.
pub(super) struct Builder {
    pub(super) entries: Vec<Entry>,
    pub(super) paths: Vec<u8>,
}

impl Builder {
    /// For a central directory of so many bytes that says it has so many entries.
    pub(super) fn new(bytes: usize, entries: u64) -> Self {
        // The number is bounded, but need not be true.
        let entries = usize::try_from(entries).unwrap_or(0).min(bytes / 46);
        Self { entries: Vec::with_capacity(entries), paths: Vec::with_capacity(bytes / 2) }
    }

    /// The path of an entry, for people.
    pub(super) fn path(&self, at: u32) -> String {
        String::from_utf8_lossy(&self.paths[self.entries[at as usize].path.clone()]).into_owned()
    }

    /// Makes the tree.
    ///
    /// # Errors
    /// [`Refusal::Collision`].
    pub(super) fn build(mut self, limits: &Limits) -> Result<Index, Refusal> {
        let paths = std::mem::take(&mut self.paths);
        self.entries
            .sort_unstable_by(|a, b| compare(&paths[a.path.clone()], &paths[b.path.clone()]));
        let mut tree = Tree::new(self.entries.len());
        let mut before: &[u8] = &[];
        let mut before_is_directory = true;
        for entry in &self.entries {
            let path = &paths[entry.path.clone()];
            let is_directory = matches!(entry.content, Content::Directory { .. });
            refuse_twins(before, before_is_directory, path, is_directory)?;
            tree.add(before, path, entry);
            // Directories that no entry speaks of could be many more than entries.
            let found = tree.nodes.len() as u64 - 1;
            if found > limits.entries_max {
                return Err(Refusal::Entries { found, limit: limits.entries_max });
            }
            (before, before_is_directory) = (path, is_directory);
        }
        let index = tree.finish();
        if !limits.allow_case_collisions {
            refuse_case_collisions(&index)?;
        }
        Ok(index)
    }
}

/// Orders paths so that what is in a directory follows it at once: a slash comes before anything
/// else.
fn compare(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// Refuses an entry that is another one again, or is in one that is not a directory.
fn refuse_twins(
    before: &[u8],
    before_is_directory: bool,
    path: &[u8],
    is_directory: bool,
) -> Result<(), Refusal> {
    let Some(rest) = path.strip_prefix(before).filter(|_| !before.is_empty()) else {
        return Ok(());
    };
    let problem = match rest.first() {
        None if is_directory == before_is_directory => "are there twice",
        None | Some(b'/') if !before_is_directory || rest.is_empty() => {
            "cannot both be: one is a file and the other a directory"
        }
        _ => return Ok(()),
    };
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    Err(Refusal::Collision { first: text(before), second: text(path), problem })
}

/// Nodes in the order of their paths, while they are added.
struct Tree {
    nodes: Vec<Node>,
    names: Vec<u8>,
    /// The directories that the last path is in, from the root, and the length of each one's path.
    open: Vec<(NodeId, usize)>,
    newest: Time,
    bytes: u64,
    /// Directories that no entry says anything of.
    implied: Vec<NodeId>,
}

impl Tree {
    fn new(entries: usize) -> Self {
        let root = Node {
            name_start: 0,
            name_bytes: 0,
            parent: Index::ROOT,
            permissions: 0o755,
            mtime: Time::default(),
            content: Content::Directory { first: 0, count: 0, directories: 0 },
        };
        let mut nodes = Vec::with_capacity(entries + 1);
        nodes.push(root);
        let (names, open) = (Vec::new(), vec![(Index::ROOT, 0)]);
        let implied = vec![Index::ROOT];
        Self { nodes, names, open, newest: Time::default(), bytes: 0, implied }
    }

    /// Adds an entry whose path comes after `before`.
    fn add(&mut self, before: &[u8], path: &[u8], entry: &Entry) {
        let common = before.iter().zip(path).take_while(|(a, b)| a == b).count();
        while let Some((_, length)) = self.open.last() {
            let holds = *length == 0 || (*length <= common && path.get(*length) == Some(&b'/'));
            if holds {
                break;
            }
            self.open.pop();
        }
        let (mut parent, mut length) = *self.open.last().expect("the root holds everything");
        loop {
            let start = if length == 0 { 0 } else { length + 1 };
            let slash = path[start..].iter().position(|byte| *byte == b'/');
            let Some(slash) = slash else {
                let id = self.push(parent, &path[start..], entry.permissions, entry.mtime);
                self.nodes[id as usize].content = entry.content;
                self.newest = self.newest.max(entry.mtime);
                match entry.content {
                    Content::Directory { .. } => self.open.push((id, path.len())),
                    Content::File(data) | Content::Symlink(data) => self.bytes += data.size,
                }
                return;
            };
            length = start + slash;
            parent = self.push(parent, &path[start..length], 0o755, Time::default());
            self.implied.push(parent);
            self.open.push((parent, length));
        }
    }

    fn push(&mut self, parent: NodeId, name: &[u8], permissions: u16, mtime: Time) -> NodeId {
        let id = self.nodes.len() as NodeId;
        let name_start = self.names.len() as u32;
        self.names.extend_from_slice(name);
        let content = Content::Directory { first: 0, count: 0, directories: 0 };
        let name_bytes = name.len() as u8;
        self.nodes.push(Node { name_start, name_bytes, parent, permissions, mtime, content });
        id
    }

    /// Lists the entries of each directory, which are in order already.
    fn finish(mut self) -> Index {
        for id in &self.implied {
            self.nodes[*id as usize].mtime = self.newest;
        }
        for id in 1..self.nodes.len() {
            let node = self.nodes[id];
            let is_directory = matches!(node.content, Content::Directory { .. });
            if let Content::Directory { count, directories, .. } =
                &mut self.nodes[node.parent as usize].content
            {
                *count += 1;
                *directories += u32::from(is_directory);
            }
        }
        let mut next = 0;
        let mut filled = vec![0; self.nodes.len()];
        for (node, filled) in self.nodes.iter_mut().zip(&mut filled) {
            if let Content::Directory { first, count, .. } = &mut node.content {
                *first = next;
                *filled = next;
                next += *count;
            }
        }
        let mut entries = vec![0; next as usize];
        for (id, node) in (0..).zip(&self.nodes).skip(1) {
            let place: &mut u32 = &mut filled[node.parent as usize];
            entries[*place as usize] = id;
            *place += 1;
        }
        let Self { mut nodes, mut names, bytes, .. } = self;
        nodes.shrink_to_fit();
        names.shrink_to_fit();
        Index { nodes, names, entries, targets: HashMap::new(), bytes }
    }
}

/// Refuses names in one directory that Windows would take for one.
fn refuse_case_collisions(index: &Index) -> Result<(), Refusal> {
    let mut folded: Vec<(String, NodeId)> = Vec::new();
    for directory in 0..index.len() as NodeId {
        let entries = index.entries(directory);
        folded.clear();
        folded.extend(
            entries.iter().map(|id| (String::from_utf8_lossy(index.name(*id)).to_lowercase(), *id)),
        );
        folded.sort_unstable();
        for pair in folded.windows(2) {
            if pair[0].0 == pair[1].0 {
                let problem = "differ in case only";
                let (first, second) = (index.path(pair[0].1), index.path(pair[1].1));
                return Err(Refusal::Collision { first, second, problem });
            }
        }
    }
    Ok(())
}
