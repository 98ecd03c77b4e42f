//! The filesystem under test and the reference side by side.

use std::collections::{BTreeMap, BTreeSet};

use atrest::crypto::Cipher;
use atrest::fs::attr::TimeOrNow;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{
    Allocate, Attr, Caller, Error, Ino, Kind, RenameFlags, Seek, SetAttr, SetXattr, Time, Tree,
};

use crate::backing::{Backing, Mounted};
use crate::operations::Operation;
use crate::random::Random;
use crate::reference::{Node, Outcome, ROOT, Reference, check_name, put};

const CALLER: Caller = Caller { uid: 1000, gid: 100, umask: 0 };

pub struct World {
    backing: Backing,
    /// `None` only while reopening.
    mounted: Option<Mounted>,
    pub reference: Reference,
    pub handles: Vec<(Ino, u64)>,
    /// How many operations succeeded, by name: a test that does nothing passes nothing.
    succeeded: BTreeMap<&'static str, usize>,
}

impl World {
    pub fn new(cipher: Cipher) -> Self {
        let backing = Backing::new(cipher);
        let mounted = Some(backing.open(false));
        let mut reference = Reference::default();
        let mut root = Node::new(Kind::Directory, 0o755);
        root.parent = ROOT;
        reference.insert(ROOT, root);
        let (handles, succeeded) = (Vec::new(), BTreeMap::new());
        let mut world = Self { backing, mounted, reference, handles, succeeded };
        world.check_touched(Time::default());
        world
    }

    fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("it is mounted but while reopening")
    }

    pub fn tree(&self) -> &VolumeTree {
        &self.mounted().tree
    }

    fn now(&self) -> Time {
        let now = self.mounted().volume.now();
        Time { seconds: now.seconds, nanoseconds: now.nanoseconds }
    }

    /// Does it on both sides and compares the outcomes.
    pub fn apply(&mut self, operation: &Operation, random: &mut Random) {
        let before = self.now();
        match operation {
            Operation::Make { .. }
            | Operation::Create { .. }
            | Operation::Tmpfile { .. }
            | Operation::Link { .. }
            | Operation::Remove { .. }
            | Operation::Rename { .. } => self.apply_to_names(operation, random),
            Operation::Write { .. }
            | Operation::Truncate { .. }
            | Operation::Allocate { .. }
            | Operation::Copy { .. }
            | Operation::Read { .. }
            | Operation::Seek { .. } => self.apply_to_content(operation, random),
            Operation::Chmod { .. }
            | Operation::Chown { .. }
            | Operation::Utimes { .. }
            | Operation::SetXattr { .. }
            | Operation::RemoveXattr { .. } => self.apply_to_attributes(operation, random),
            Operation::Lookup { parent, name } => {
                let want = check_name(name).and_then(|()| self.reference.lookup(*parent, name));
                let got = self.tree().lookup(*parent, name);
                if let Some(attr) = self.agree("lookup", got, want.map(|_| ())) {
                    assert_eq!(Ok(attr.ino), want);
                    self.check_attr(&attr);
                }
            }
            Operation::Getattr { ino } => {
                let got = self.tree().getattr(*ino);
                let want = self.reference.node(*ino).map(|_| ());
                if let Some(attr) = self.agree("getattr", got, want) {
                    self.check_attr(&attr);
                }
            }
            Operation::Open { ino, truncate } => self.open(*ino, *truncate),
            Operation::Close { which } => self.close(*which),
            Operation::List { ino, first, create, remove } => {
                self.list_while_it_changes(*ino, *first, create, *remove);
            }
            Operation::Fsync { ino } => self.tree().fsync(*ino, 0, false).expect("fsync"),
            Operation::Reopen { close } => self.reopen(*close),
            Operation::Verify => self.verify(),
        }
        self.check_touched(before);
    }

    /// Both succeed or fail with the same errno; gives the value on success.
    fn agree<T>(&mut self, what: &'static str, got: Result<T, Error>, want: Outcome) -> Option<T> {
        match (got, want) {
            (Ok(value), Ok(())) => {
                *self.succeeded.entry(what).or_default() += 1;
                Some(value)
            }
            (Err(error), Err(errno)) => {
                assert_eq!(error.errno(), errno, "{what} fails with {error}");
                None
            }
            (Ok(_), Err(errno)) => panic!("{what} should fail with errno {errno}"),
            (Err(error), Ok(())) => panic!("{what} fails with {error:?}"),
        }
    }

    /// What the operation gave the current time has it, and it is remembered.
    fn check_touched(&mut self, before: Time) {
        let after = self.now();
        for (ino, mtime) in std::mem::take(&mut self.reference.touched) {
            let attr = self.tree().getattr(ino).expect("it exists");
            let span = before..=after;
            assert!(span.contains(&attr.ctime), "ctime of inode {ino}: {attr:?}, {span:?}");
            let node = self.reference.of(ino);
            node.ctime = attr.ctime;
            if mtime {
                assert!(span.contains(&attr.mtime), "mtime of inode {ino}: {attr:?}, {span:?}");
                node.mtime = attr.mtime;
            }
            self.check_attr(&attr);
        }
    }

    fn check_attr(&self, attr: &Attr) {
        let node = self.reference.node(attr.ino).expect("it exists");
        let ino = attr.ino;
        assert_eq!(attr.kind, node.kind, "type of inode {ino}");
        assert_eq!(attr.permissions, node.permissions, "permissions of inode {ino}");
        assert_eq!(attr.links, node.links, "links of inode {ino}");
        assert_eq!((attr.uid, attr.gid), (node.uid, node.gid), "owner of inode {ino}");
        assert_eq!(attr.rdev, node.rdev, "device number of inode {ino}");
        let size = if node.is_directory() { node.names.len() } else { node.content.len() };
        assert_eq!(attr.size, size as u64, "size of inode {ino}");
        if !self.reference.touched.contains_key(&ino) {
            assert_eq!(attr.mtime, node.mtime, "mtime of inode {ino}");
            assert_eq!(attr.ctime, node.ctime, "ctime of inode {ino}");
        }
    }

    fn apply_to_names(&mut self, operation: &Operation, random: &mut Random) {
        match operation {
            Operation::Make { parent, name, kind, mode, umask } => {
                self.make(*parent, name, *kind, *mode, *umask, random);
            }
            Operation::Create { parent, name, mode } => {
                let want = self.reference.may_create(*parent, name);
                let got = self.tree().create(CALLER, *parent, name, u32::from(*mode));
                if let Some((attr, handle)) = self.agree("create", got, want) {
                    let mut node = self.born(*parent, Kind::File, *mode);
                    node.opens = 1;
                    self.reference.create(attr.ino, *parent, name, node);
                    self.handles.push((attr.ino, handle));
                    self.check_attr(&attr);
                }
            }
            Operation::Tmpfile { parent } => {
                let got = self.tree().tmpfile(CALLER, *parent, 0o600);
                if let Some((attr, handle)) = self.agree("tmpfile", got, Ok(())) {
                    let node = self.born(*parent, Kind::File, 0o600);
                    self.reference.insert(attr.ino, Node { links: 0, opens: 1, ..node });
                    self.handles.push((attr.ino, handle));
                    self.check_attr(&attr);
                }
            }
            Operation::Link { ino, parent, name } => {
                let got = self.tree().link(*ino, *parent, name);
                let want = self.reference.link(*ino, *parent, name);
                self.agree("link", got, want);
            }
            Operation::Remove { parent, name, directory } => {
                let tree = self.tree();
                let got = match directory {
                    true => tree.rmdir(*parent, name),
                    false => tree.unlink(*parent, name),
                };
                let want = self.reference.remove(*parent, name, *directory);
                self.agree(if *directory { "rmdir" } else { "unlink" }, got, want);
            }
            Operation::Rename { from, to, flags } => {
                self.rename((from.0, &from.1), (to.0, &to.1), *flags);
            }
            _ => unreachable!("apply() sorted them"),
        }
    }

    /// What a new inode is, in a directory with or without set-group-ID.
    fn born(&self, parent: Ino, kind: Kind, permissions: u16) -> Node {
        let parent = self.reference.node(parent).expect("it took the entry");
        let mut node = Node::new(kind, permissions);
        (node.uid, node.gid) = (CALLER.uid, CALLER.gid);
        if parent.permissions & 0o2000 != 0 {
            node.gid = parent.gid;
            node.permissions |= if kind == Kind::Directory { 0o2000 } else { 0 };
        }
        node
    }

    fn make(
        &mut self,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u16,
        umask: u32,
        random: &mut Random,
    ) {
        let want = self.reference.may_create(parent, name);
        let caller = Caller { umask, ..CALLER };
        let length = 1 + random.below(4095);
        let target = random.bytes(length);
        let tree = self.tree();
        let kind_bits = u32::from(kind.as_type()) << 12;
        let got = match kind {
            Kind::Directory => tree.mkdir(caller, parent, name, u32::from(mode)),
            Kind::Symlink => tree.symlink(caller, parent, name, &target),
            _ => tree.mknod(caller, parent, name, kind_bits | u32::from(mode), 0x0103),
        };
        let Some(attr) = self.agree("make", got, want) else { return };
        let mut node = self.born(parent, kind, mode & !(umask as u16));
        match kind {
            Kind::Symlink => {
                node.permissions = 0o777;
                node.content = target;
            }
            Kind::CharDevice | Kind::BlockDevice => node.rdev = 0x0103,
            _ => {}
        }
        self.reference.create(attr.ino, parent, name, node);
        self.check_attr(&attr);
    }

    fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: RenameFlags) {
        let want = self.reference.may_rename(from, to, flags);
        let got = self.tree().rename(from.0, from.1, to.0, to.1, flags);
        let what = if flags.exchange { "exchange" } else { "rename" };
        if self.agree(what, got, want).is_none() {
            return;
        }
        let same = self.reference.lookup(from.0, from.1) == self.reference.lookup(to.0, to.1);
        self.reference.rename(from, to, flags);
        if flags.whiteout && !same {
            let left = self.tree().lookup(from.0, from.1).expect("a whiteout is left");
            self.reference.create(left.ino, from.0, from.1, Node::new(Kind::CharDevice, 0));
        }
    }

    fn open(&mut self, ino: Ino, truncate: bool) {
        let want = self.reference.file(ino).map(|_| ());
        let got = self.tree().open(ino, truncate, true);
        let Some(handle) = self.agree("open", got, want) else { return };
        self.handles.push((ino, handle));
        self.reference.of(ino).opens += 1;
        if truncate {
            self.reference.change(ino, true, Vec::clear);
        }
    }

    fn close(&mut self, which: usize) {
        if which < self.handles.len() {
            let (ino, handle) = self.handles.swap_remove(which);
            self.tree().release(ino, handle);
            self.reference.close(ino);
        }
    }

    fn apply_to_content(&mut self, operation: &Operation, random: &mut Random) {
        match *operation {
            Operation::Write { ino, offset, length, suid } => {
                let data = random.bytes(length);
                let got = self.tree().write(ino, offset as u64, &data, suid);
                let want = self.reference.file(ino).map(|_| ());
                if self.agree("write", got, want).is_some() {
                    self.reference.change(ino, suid, |content| put(content, offset, &data));
                }
            }
            Operation::Truncate { ino, size } => {
                let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                let got = self.tree().setattr(ino, &set);
                let want = self.reference.file(ino).map(|_| ());
                if let Some(attr) = self.agree("truncate", got, want) {
                    self.reference.change(ino, false, |content| content.resize(size, 0));
                    self.check_attr(&attr);
                }
            }
            Operation::Allocate { ino, offset, length, what } => {
                let got = self.tree().fallocate(ino, offset as u64, length as u64, what);
                let want = self.reference.file(ino).map(|_| ());
                if self.agree("fallocate", got, want).is_some() {
                    self.allocated(ino, offset, offset + length, what);
                }
            }
            Operation::Copy { from, offset, to, to_offset, length } => {
                self.copy((from, offset), (to, to_offset), length);
            }
            Operation::Read { ino, offset, length } => {
                let mut buffer = vec![1; 7];
                let got = self.tree().read(ino, offset as u64, length, false, &mut buffer);
                let want = self.reference.file(ino).map(|_| ());
                if self.agree("read", got, want).is_some() {
                    let content = &self.reference.nodes[&ino].content;
                    let end = content.len().min(offset + length);
                    assert_same(ino, &buffer, content.get(offset..end).unwrap_or_default());
                }
            }
            Operation::Seek { ino, offset, what } => self.seek(ino, offset, what),
            _ => unreachable!("apply() sorted them"),
        }
    }

    fn allocated(&mut self, ino: Ino, offset: usize, end: usize, what: Allocate) {
        let grow = |content: &mut Vec<u8>, keep: bool| {
            if !keep && content.len() < end {
                content.resize(end, 0);
            }
        };
        let clear = |content: &mut Vec<u8>| {
            let end = end.min(content.len());
            content.get_mut(offset..end).unwrap_or_default().fill(0);
        };
        let size = self.reference.of(ino).content.len();
        match what {
            Allocate::Reserve { keep_size } if keep_size || end <= size => {
                self.reference.change(ino, true, |_| ());
                self.reference.touched.insert(ino, false);
            }
            Allocate::Reserve { .. } => self.reference.change(ino, true, |c| grow(c, false)),
            Allocate::Punch => self.reference.change(ino, true, clear),
            Allocate::Zero { keep_size } => self.reference.change(ino, true, |content| {
                clear(content);
                grow(content, keep_size);
            }),
        }
    }

    fn copy(&mut self, from: (Ino, usize), to: (Ino, usize), length: usize) {
        let want = self.reference.file(from.0).and(self.reference.file(to.0)).map(|_| ());
        let source = self.reference.file(from.0).map_or(Vec::new(), |node| {
            let end = node.content.len().min(from.1 + length);
            node.content.get(from.1..end).unwrap_or_default().to_vec()
        });
        let overlap = from.0 == to.0 && from.1.abs_diff(to.1) < source.len();
        let want = if want.is_ok() && overlap { Err(libc::EINVAL) } else { want };
        let length = length as u64;
        let got = self.tree().copy_range(from.0, from.1 as u64, to.0, to.1 as u64, length);
        if let Some(copied) = self.agree("copy_range", got, want) {
            assert_eq!(copied, source.len() as u64, "bytes copied");
            if copied > 0 {
                self.reference.change(to.0, true, |content| put(content, to.1, &source));
            }
        }
    }

    /// Which zeros are holes is the filesystem's choice, but what it skips must be zeros.
    fn seek(&mut self, ino: Ino, offset: usize, what: Seek) {
        let got = self.tree().seek(ino, offset as u64, what);
        let content = match self.reference.file(ino) {
            Ok(node) => node.content.clone(),
            Err(errno) => {
                self.agree("seek", got, Err(errno));
                return;
            }
        };
        let is_zero = |from: usize, to: usize| content[from..to].iter().all(|byte| *byte == 0);
        match (got, what) {
            (Ok(found), Seek::Data) => {
                let found = found as usize;
                assert!((offset..content.len()).contains(&found), "data at {found}");
                assert!(is_zero(offset, found), "data of inode {ino} between {offset} and {found}");
            }
            (Ok(found), Seek::Hole) => {
                let found = found as usize;
                assert!((offset..=content.len()).contains(&found), "hole at {found}");
                let end = content.len().min((found / 4096 + 1) * 4096);
                assert!(is_zero(found.min(end), end), "inode {ino} has data at {found}");
            }
            (Err(error), _) => {
                assert_eq!(error.errno(), libc::ENXIO);
                assert!(offset >= content.len() || what == Seek::Data);
                assert!(offset >= content.len() || is_zero(offset, content.len()));
            }
        }
    }

    fn apply_to_attributes(&mut self, operation: &Operation, random: &mut Random) {
        match operation {
            Operation::Chmod { ino, permissions } => {
                let set = SetAttr { permissions: Some(*permissions), ..SetAttr::default() };
                self.set(*ino, &set, |node| node.permissions = *permissions);
            }
            Operation::Chown { ino, uid, gid } => {
                let set = SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() };
                self.set(*ino, &set, |node| (node.uid, node.gid) = (*uid, *gid));
            }
            Operation::Utimes { ino, seconds } => {
                let time = Time { seconds: *seconds, nanoseconds: 999_999_999 };
                let set = SetAttr { mtime: Some(TimeOrNow::At(time)), ..SetAttr::default() };
                self.set(*ino, &set, |node| node.mtime = time);
            }
            Operation::SetXattr { ino, name, length, create, replace } => {
                let value = random.bytes(*length);
                let how = SetXattr { create: *create, replace: *replace, kill_sgid: false };
                let got = self.tree().setxattr(*ino, name, &value, how);
                let has = self.reference.node(*ino).map(|node| node.xattrs.contains_key(name));
                let want = match has {
                    Ok(true) if *create => Err(libc::EEXIST),
                    Ok(false) if *replace => Err(libc::ENODATA),
                    other => other.map(|_| ()),
                };
                if self.agree("setxattr", got, want).is_some() {
                    self.reference.change_attributes(*ino, |node| {
                        node.xattrs.insert(name.clone(), value);
                    });
                }
            }
            Operation::RemoveXattr { ino, name } => {
                let got = self.tree().removexattr(*ino, name);
                let node = self.reference.node(*ino);
                let want =
                    node.and_then(|node| node.xattrs.get(name).map(|_| ()).ok_or(libc::ENODATA));
                if self.agree("removexattr", got, want).is_some() {
                    self.reference.change_attributes(*ino, |node| {
                        node.xattrs.remove(name);
                    });
                }
            }
            _ => unreachable!("apply() sorted them"),
        }
    }

    fn set(&mut self, ino: Ino, set: &SetAttr, edit: impl FnOnce(&mut Node)) {
        let got = self.tree().setattr(ino, set);
        let want = self.reference.node(ino).map(|_| ());
        if let Some(attr) = self.agree("setattr", got, want) {
            self.reference.change_attributes(ino, edit);
            self.check_attr(&attr);
        }
    }

    /// Reads some entries, changes the directory, and goes on: what was there all the time is
    /// reported once, and nothing that never was.
    fn list_while_it_changes(&mut self, ino: Ino, first: usize, create: &[u8], remove: usize) {
        let Ok(node) = self.reference.directory(ino) else { return };
        let before: BTreeSet<Vec<u8>> = node.names.keys().cloned().collect();
        let (mut seen, cookie) = self.list(ino, 0, first);
        if let Some(name) = before.iter().nth(remove) {
            let got = self.tree().unlink(ino, name);
            let want = self.reference.remove(ino, name, false);
            self.agree("unlink", got, want);
        }
        let want = self.reference.may_create(ino, create);
        let got = self.tree().mknod(CALLER, ino, create, 0o600, 0);
        if let Some(attr) = self.agree("make", got, want) {
            let node = self.born(ino, Kind::File, 0o600);
            self.reference.create(attr.ino, ino, create, node);
        }
        let after: BTreeSet<Vec<u8>> = self.reference.nodes[&ino].names.keys().cloned().collect();
        if first > 0 || cookie == 0 {
            seen.extend(self.list(ino, cookie, usize::MAX).0);
        }
        let unique: BTreeSet<Vec<u8>> = seen.iter().cloned().collect();
        let removed_and_made = !before.contains(create) || !after.contains(create);
        assert!(unique.len() == seen.len() || !removed_and_made, "an entry is reported twice");
        for name in before.intersection(&after) {
            assert!(unique.contains(name), "{name:?} was there and is not reported");
        }
        for name in &unique {
            assert!(before.contains(name) || after.contains(name), "{name:?} is not there");
        }
    }

    /// Names of up to `count` entries after `cookie`, and the cookie of the last.
    fn list(&self, ino: Ino, cookie: u64, count: usize) -> (Vec<Vec<u8>>, u64) {
        let (mut names, mut last) = (Vec::new(), cookie);
        let mut dots = 0;
        let visited = self.tree().readdir(ino, cookie, true, &mut |entry| {
            if names.len() >= count {
                return false;
            }
            assert!(entry.cookie > last, "cookies ascend");
            last = entry.cookie;
            if entry.name == b"." || entry.name == b".." {
                dots += 1;
                return true;
            }
            let attr = entry.attr.expect("attributes were asked for");
            assert_eq!((attr.ino, attr.kind), (entry.ino, entry.kind));
            assert_eq!(self.reference.lookup(ino, entry.name), Ok(entry.ino));
            names.push(entry.name.to_vec());
            true
        });
        visited.expect("a directory can be listed");
        assert_eq!(dots, if cookie == 0 && count > 0 { 2 } else { 0 });
        (names, last)
    }

    /// Unmounts and mounts again. Without `close`, as if the daemon had been killed after a sync:
    /// what has no name is found and discarded when the volume is opened.
    pub fn reopen(&mut self, close: bool) {
        for (ino, handle) in std::mem::take(&mut self.handles) {
            if close {
                self.tree().release(ino, handle);
            }
            self.reference.close(ino);
        }
        let mounted = self.mounted.take().expect("it is mounted but while reopening");
        if close {
            mounted.close();
        } else {
            mounted.tree.sync().expect("sync");
            drop(mounted);
        }
        self.mounted = Some(self.backing.open(false));
    }

    /// Compares everything.
    pub fn verify(&self) {
        let mut buffer = Vec::new();
        for (ino, node) in &self.reference.nodes {
            self.check_attr(&self.tree().getattr(*ino).expect("it exists"));
            match node.kind {
                Kind::File => {
                    let length = node.content.len() + 100;
                    self.tree().read(*ino, 0, length, false, &mut buffer).expect("it can be read");
                    assert_same(*ino, &buffer, &node.content);
                }
                Kind::Symlink => {
                    let target = self.tree().readlink(*ino).expect("it can be read");
                    assert_same(*ino, &target, &node.content);
                }
                Kind::Directory => {
                    let mut names = self.list(*ino, 0, usize::MAX).0;
                    names.sort();
                    assert!(names.iter().eq(node.names.keys()), "entries of inode {ino}");
                    let parent = self.tree().lookup(*ino, b"..").expect("it has a parent");
                    assert_eq!(parent.ino, node.parent, "parent of inode {ino}");
                }
                _ => {}
            }
            self.verify_xattrs(*ino, node);
        }
        for ino in &self.reference.dead {
            let attr = self.tree().getattr(*ino).map_err(|error| error.errno());
            assert_eq!(attr, Err(libc::ESTALE), "inode {ino} is gone");
        }
        let stat = self.tree().statfs().expect("statfs");
        let count = self.reference.nodes.len() as u64;
        assert_eq!(stat.files - stat.files_free, count, "inodes in use");
    }

    fn verify_xattrs(&self, ino: Ino, node: &Node) {
        let list = self.tree().listxattr(ino).expect("attributes can be listed");
        let mut names: Vec<&[u8]> =
            list.split_inclusive(|byte| *byte == 0).map(|name| &name[..name.len() - 1]).collect();
        names.sort();
        assert!(names.iter().eq(node.xattrs.keys()), "extended attributes of inode {ino}");
        for (name, value) in &node.xattrs {
            assert_same(ino, &self.tree().getxattr(ino, name).expect("it is listed"), value);
        }
    }

    /// Every operation succeeded now and then.
    pub fn assert_was_exercised(&self, operations: usize) {
        let all = [
            "lookup",
            "getattr",
            "create",
            "make",
            "tmpfile",
            "link",
            "unlink",
            "rmdir",
            "rename",
            "exchange",
            "open",
            "write",
            "truncate",
            "fallocate",
            "copy_range",
            "read",
            "setattr",
            "setxattr",
            "removexattr",
        ];
        for what in all.into_iter().filter(|_| operations >= 10_000) {
            let count = self.succeeded.get(what).copied().unwrap_or(0);
            assert!(count > operations / 2000, "{what} succeeded {count} times only");
        }
    }
}

/// Says where contents differ, not what they are.
fn assert_same(ino: Ino, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "length of what inode {ino} holds");
    if let Some(at) = got.iter().zip(want).position(|(got, want)| got != want) {
        panic!("inode {ino} differs at byte {at}: {} instead of {}", got[at], want[at]);
    }
}
