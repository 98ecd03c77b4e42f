//! What a filesystem should do, in the simplest form: contents are vectors, directories are maps,
//! and nothing is stored anywhere. Written from the man pages, not from the code under test.

use std::collections::{BTreeMap, BTreeSet};

use atrest::fs::{Ino, Kind, RenameFlags, Time};

pub const ROOT: Ino = 1;

/// Result of an operation: an errno if it fails.
pub type Outcome<T = ()> = Result<T, i32>;

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub rdev: u32,
    /// Content of a file, target of a symbolic link.
    pub content: Vec<u8>,
    pub names: BTreeMap<Vec<u8>, Ino>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub parent: Ino,
    pub mtime: Time,
    pub ctime: Time,
    /// Open handles.
    pub opens: u32,
}

impl Node {
    pub fn new(kind: Kind, permissions: u16) -> Self {
        Self {
            kind,
            permissions,
            uid: 0,
            gid: 0,
            links: if kind == Kind::Directory { 2 } else { 1 },
            rdev: 0,
            content: Vec::new(),
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            parent: 0,
            mtime: Time::default(),
            ctime: Time::default(),
            opens: 0,
        }
    }

    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    fn kill_suid(&mut self) {
        self.permissions &= !0o4000;
        if self.permissions & 0o010 != 0 {
            self.permissions &= !0o2000;
        }
    }
}

/// The whole filesystem.
#[derive(Default)]
pub struct Reference {
    pub nodes: BTreeMap<Ino, Node>,
    /// Inodes that are gone; their numbers must not come back.
    pub dead: BTreeSet<Ino>,
    /// What the last operation gave the current time: inode -> whether its mtime too.
    pub touched: BTreeMap<Ino, bool>,
}

impl Reference {
    pub fn node(&self, ino: Ino) -> Outcome<&Node> {
        self.nodes.get(&ino).ok_or(libc::ESTALE)
    }

    pub fn of(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).expect("the test names only what exists")
    }

    pub fn directory(&self, ino: Ino) -> Outcome<&Node> {
        let node = self.node(ino)?;
        if node.is_directory() { Ok(node) } else { Err(libc::ENOTDIR) }
    }

    pub fn file(&self, ino: Ino) -> Outcome<&Node> {
        let node = self.node(ino)?;
        match node.kind {
            Kind::File => Ok(node),
            Kind::Directory => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }

    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Ino> {
        self.directory(parent)?.names.get(name).copied().ok_or(libc::ENOENT)
    }

    fn touch(&mut self, ino: Ino, mtime: bool) {
        *self.touched.entry(ino).or_default() |= mtime;
    }

    pub fn may_create(&self, parent: Ino, name: &[u8]) -> Outcome {
        check_name(name)?;
        match self.lookup(parent, name) {
            Ok(_) => Err(libc::EEXIST),
            Err(libc::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Adds what was created; `may_create` said yes.
    pub fn create(&mut self, ino: Ino, parent: Ino, name: &[u8], mut node: Node) {
        let is_directory = node.is_directory();
        node.parent = if is_directory { parent } else { 0 };
        self.insert(ino, node);
        self.of(parent).names.insert(name.to_vec(), ino);
        self.of(parent).links += u32::from(is_directory);
        self.touch(parent, true);
    }

    pub fn insert(&mut self, ino: Ino, node: Node) {
        assert!(!self.dead.contains(&ino), "inode number {ino} came back");
        assert!(self.nodes.insert(ino, node).is_none(), "inode number {ino} was given out twice");
        self.touch(ino, true);
    }

    pub fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Outcome {
        check_name(name)?;
        if self.node(ino)?.is_directory() {
            return Err(libc::EPERM);
        }
        self.may_create(parent, name)?;
        self.of(ino).links += 1;
        self.of(parent).names.insert(name.to_vec(), ino);
        self.touch(ino, false);
        self.touch(parent, true);
        Ok(())
    }

    pub fn remove(&mut self, parent: Ino, name: &[u8], directory: bool) -> Outcome {
        check_name(name)?;
        let ino = self.lookup(parent, name)?;
        match (directory, self.node(ino)?.is_directory()) {
            (true, false) => return Err(libc::ENOTDIR),
            (false, true) => return Err(libc::EISDIR),
            (true, true) if !self.node(ino)?.names.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.of(parent).names.remove(name);
        self.touch(parent, true);
        self.lose_name(ino, parent);
        Ok(())
    }

    fn lose_name(&mut self, ino: Ino, parent: Ino) {
        self.touch(ino, false);
        if self.of(ino).is_directory() {
            self.of(ino).links = 0;
            self.of(parent).links -= 1;
        } else {
            self.of(ino).links -= 1;
        }
        self.bury_if_gone(ino);
    }

    fn bury_if_gone(&mut self, ino: Ino) {
        if self.of(ino).links == 0 && self.of(ino).opens == 0 {
            self.nodes.remove(&ino);
            self.touched.remove(&ino);
            self.dead.insert(ino);
        }
    }

    pub fn close(&mut self, ino: Ino) {
        self.of(ino).opens -= 1;
        self.bury_if_gone(ino);
    }

    fn is_below(&self, ino: Ino, ancestor: Ino) -> bool {
        let mut at = ino;
        while at != ancestor && at != ROOT {
            at = self.nodes[&at].parent;
        }
        at == ancestor
    }

    /// Whether a rename succeeds.
    pub fn may_rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: RenameFlags) -> Outcome {
        check_name(from.1)?;
        check_name(to.1)?;
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(libc::EINVAL);
        }
        let source = self.lookup(from.0, from.1)?;
        let moved = self.node(source)?;
        let target = self.lookup(to.0, to.1).ok();
        if target.is_some() && flags.no_replace {
            return Err(libc::EEXIST);
        }
        if target == Some(source) {
            return Ok(());
        }
        if let (Some(target), false) = (target, flags.exchange) {
            match (moved.is_directory(), self.node(target)?.is_directory()) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                _ => {}
            }
        }
        if flags.exchange && target.is_none() {
            return Err(libc::ENOENT);
        }
        if moved.is_directory() && self.is_below(to.0, source) {
            return Err(libc::EINVAL);
        }
        match target {
            Some(target) if flags.exchange => {
                let below = self.node(target)?.is_directory() && self.is_below(from.0, target);
                if below { Err(libc::EINVAL) } else { Ok(()) }
            }
            Some(target) if !self.node(target)?.names.is_empty() => Err(libc::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Renames; `may_rename` said yes.
    pub fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: RenameFlags) {
        let source = self.lookup(from.0, from.1).expect("it may be renamed");
        let target = self.lookup(to.0, to.1).ok();
        if target == Some(source) {
            return;
        }
        self.touch(from.0, true);
        self.touch(to.0, true);
        self.touch(source, false);
        self.of(from.0).names.remove(from.1);
        self.of(to.0).names.remove(to.1);
        self.place(source, from.0, to);
        match target {
            Some(target) if flags.exchange => {
                self.touch(target, false);
                self.place(target, to.0, from);
            }
            Some(target) => self.lose_name(target, to.0),
            None => {}
        }
    }

    fn place(&mut self, ino: Ino, old_parent: Ino, to: (Ino, &[u8])) {
        self.of(to.0).names.insert(to.1.to_vec(), ino);
        if self.of(ino).is_directory() {
            self.of(ino).parent = to.0;
            self.of(old_parent).links -= 1;
            self.of(to.0).links += 1;
        }
    }

    /// The content changes: `edit` says how.
    pub fn change(&mut self, ino: Ino, suid: bool, edit: impl FnOnce(&mut Vec<u8>)) {
        let node = self.of(ino);
        edit(&mut node.content);
        if suid {
            node.kill_suid();
        }
        self.touch(ino, true);
    }

    /// The attributes change, but not the content.
    pub fn change_attributes(&mut self, ino: Ino, edit: impl FnOnce(&mut Node)) {
        edit(self.of(ino));
        self.touch(ino, false);
    }
}

/// Makes `content` hold `data` at `offset`, with zeros before it if need be.
pub fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}

pub fn check_name(name: &[u8]) -> Outcome {
    if name.len() > 255 { Err(libc::ENAMETOOLONG) } else { Ok(()) }
}
