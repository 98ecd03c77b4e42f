//! A package with directories in it that can be written to: those lie in a volume, and everything
//! else is the package, which nobody can change.
//!
//! What a grafted directory holds is the volume's alone. It begins as a copy of what the package
//! has there ([`plant`]), so that nothing needs to be looked for in two places afterwards.

use super::package::PackageTree;
use super::volume::ROOT;
use super::{
    Allocate, Attr, Caller, DirEntry, Error, Ino, Kind, RenameFlags, Seek, SetAttr, SetXattr,
    StatFs, Tree,
};
use std::sync::Arc;

/// Set in the numbers of inodes that are the volume's.
const VOLUME: Ino = 1 << 62;
/// Position of the first grafted directory in the list of a directory that has no such entry in the
/// package: after everything that a package can have.
const APPENDED: u64 = 1 << 48;
/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Where grafted directories are in the volume.
const WRITABLE: &[u8] = b"writable";
/// Longest path that can be grafted, so that its name in the volume is none too long.
const PATH_BYTES_MAX: usize = 80;

/// A directory of a package that lies in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graft {
    /// The directory of the package that it is in.
    parent: Ino,
    name: Vec<u8>,
    /// Whether the package has a directory there, which it hides.
    hides: bool,
    /// Its number in the volume.
    root: Ino,
}

/// See the [module](self).
pub struct GraftTree {
    package: PackageTree,
    volume: Arc<dyn Tree>,
    grafts: Vec<Graft>,
}

/// Whose an inode is, with its number there.
enum Side {
    Package(Ino),
    Volume(Ino),
}

fn side(ino: Ino) -> Side {
    if ino & VOLUME == 0 { Side::Package(ino) } else { Side::Volume(ino & !VOLUME) }
}

/// The number in the volume of what is to be changed.
fn writable(ino: Ino) -> Result<Ino, Error> {
    match side(ino) {
        Side::Volume(inner) => Ok(inner),
        Side::Package(_) => Err(Error::ReadOnly),
    }
}

fn outside(attr: Attr) -> Attr {
    Attr { ino: attr.ino | VOLUME, ..attr }
}

impl GraftTree {
    /// Serves `package`, with `grafts` that [`plant`] has made in `volume`.
    pub fn new(package: PackageTree, volume: Arc<dyn Tree>, grafts: Vec<Graft>) -> Self {
        Self { package, volume, grafts }
    }

    fn grafts_in(&self, parent: Ino) -> impl Iterator<Item = &Graft> {
        self.grafts.iter().filter(move |graft| graft.parent == parent)
    }

    /// The entry of a grafted directory.
    fn show(
        &self,
        graft: &Graft,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> bool {
        let attr = with_attr.then(|| self.volume.getattr(graft.root).ok().map(outside)).flatten();
        let (ino, kind) = (graft.root | VOLUME, Kind::Directory);
        visit(&DirEntry { ino, kind, name: &graft.name, cookie, attr })
    }

    fn list_package(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        let mut goes_on = true;
        if cookie < APPENDED {
            self.package.readdir(ino, cookie, with_attr, &mut |entry| {
                let graft = self.grafts_in(ino).find(|graft| graft.name == entry.name);
                goes_on = match graft {
                    Some(graft) => self.show(graft, entry.cookie, with_attr, visit),
                    None => visit(entry),
                };
                goes_on
            })?;
        }
        let added = self.grafts_in(ino).filter(|graft| !graft.hides);
        for (cookie_here, graft) in (APPENDED..).zip(added) {
            if goes_on && cookie_here + 1 > cookie {
                goes_on = self.show(graft, cookie_here + 1, with_attr, visit);
            }
        }
        Ok(())
    }
}

impl Tree for GraftTree {
    fn admit(&self) -> Result<(), Error> {
        self.volume.admit()
    }

    fn is_read_only(&self, ino: Ino) -> bool {
        matches!(side(ino), Side::Package(_))
    }

    fn read_is_long(&self, ino: Ino, offset: u64) -> bool {
        match side(ino) {
            Side::Package(inner) => self.package.read_is_long(inner, offset),
            Side::Volume(inner) => self.volume.read_is_long(inner, offset),
        }
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        match side(parent) {
            Side::Volume(inner) => self.volume.lookup(inner, name).map(outside),
            Side::Package(inner) => match self.grafts_in(inner).find(|graft| graft.name == name) {
                Some(graft) => self.volume.getattr(graft.root).map(outside),
                None => self.getattr(self.package.lookup(inner, name)?.ino),
            },
        }
    }

    fn forget(&self, ino: Ino) {
        if let Side::Volume(inner) = side(ino) {
            self.volume.forget(inner);
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        match side(ino) {
            Side::Volume(inner) => self.volume.getattr(inner).map(outside),
            Side::Package(inner) => {
                let attr = self.package.getattr(inner)?;
                let added = self.grafts_in(inner).filter(|graft| !graft.hides).count();
                Ok(Attr { links: attr.links + added as u32, ..attr })
            }
        }
    }

    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, Error> {
        self.volume.setattr(writable(ino)?, change).map(outside)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match side(ino) {
            Side::Package(inner) => self.package.readlink(inner),
            Side::Volume(inner) => self.volume.readlink(inner),
        }
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, Error> {
        self.volume.mknod(caller, writable(parent)?, name, mode, rdev).map(outside)
    }

    fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, Error> {
        self.volume.mkdir(caller, writable(parent)?, name, mode).map(outside)
    }

    fn symlink(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Error> {
        self.volume.symlink(caller, writable(parent)?, name, target).map(outside)
    }

    /// A file of the package cannot have a name in the volume: cp(1) and mv(1) copy then, as they
    /// do between two filesystems.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        let parent = writable(parent)?;
        match side(ino) {
            Side::Volume(inner) => self.volume.link(inner, parent, name).map(outside),
            Side::Package(_) => Err(Error::OtherFilesystem),
        }
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.volume.unlink(writable(parent)?, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.volume.rmdir(writable(parent)?, name)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Error> {
        self.volume.rename(writable(parent)?, name, writable(new_parent)?, new_name, flags)
    }

    fn open(&self, ino: Ino, truncate: bool, kill_suid: bool) -> Result<u64, Error> {
        match side(ino) {
            Side::Package(inner) => self.package.open(inner, truncate, kill_suid),
            Side::Volume(inner) => self.volume.open(inner, truncate, kill_suid),
        }
    }

    fn accessed(&self, ino: Ino, is_changing: bool) -> Result<bool, Error> {
        match side(ino) {
            Side::Package(_) => Ok(false),
            Side::Volume(inner) => self.volume.accessed(inner, is_changing),
        }
    }

    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, u64), Error> {
        let (attr, handle) = self.volume.create(caller, writable(parent)?, name, mode)?;
        Ok((outside(attr), handle))
    }

    fn tmpfile(&self, caller: Caller, parent: Ino, mode: u32) -> Result<(Attr, u64), Error> {
        let (attr, handle) = self.volume.tmpfile(caller, writable(parent)?, mode)?;
        Ok((outside(attr), handle))
    }

    fn release(&self, ino: Ino, handle: u64) {
        if let Side::Volume(inner) = side(ino) {
            self.volume.release(inner, handle);
        }
    }

    fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        is_access: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match side(ino) {
            Side::Package(inner) => self.package.read(inner, offset, length, is_access, buffer),
            Side::Volume(inner) => self.volume.read(inner, offset, length, is_access, buffer),
        }
    }

    fn read_into(
        &self,
        ino: Ino,
        offset: u64,
        is_access: bool,
        buffer: &mut [u8],
    ) -> Result<usize, Error> {
        match side(ino) {
            Side::Package(inner) => self.package.read_into(inner, offset, is_access, buffer),
            Side::Volume(inner) => self.volume.read_into(inner, offset, is_access, buffer),
        }
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<(), Error> {
        self.volume.write(writable(ino)?, offset, data, kill_suid)
    }

    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64, Error> {
        let to = writable(to)?;
        match side(from) {
            Side::Volume(from) => self.volume.copy_range(from, from_offset, to, to_offset, length),
            Side::Package(_) => Err(Error::OtherFilesystem),
        }
    }

    fn flush(&self, ino: Ino, handle: u64) -> Result<(), Error> {
        match side(ino) {
            Side::Package(_) => Ok(()),
            Side::Volume(inner) => self.volume.flush(inner, handle),
        }
    }

    fn fsync(&self, ino: Ino, handle: u64, data_only: bool) -> Result<(), Error> {
        match side(ino) {
            Side::Package(_) => Ok(()),
            Side::Volume(inner) => self.volume.fsync(inner, handle, data_only),
        }
    }

    fn try_fsync(&self, ino: Ino, handle: u64, data_only: bool) -> Option<Result<(), Error>> {
        match side(ino) {
            Side::Package(_) => Some(Ok(())),
            Side::Volume(inner) => self.volume.try_fsync(inner, handle, data_only),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        self.volume.sync()
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        let inner = match side(ino) {
            Side::Package(inner) => return self.list_package(inner, cookie, with_attr, visit),
            Side::Volume(inner) => inner,
        };
        let graft = self.grafts.iter().find(|graft| graft.root == inner);
        self.volume.readdir(inner, cookie, with_attr, &mut |entry| {
            let entry =
                DirEntry { ino: entry.ino | VOLUME, attr: entry.attr.map(outside), ..*entry };
            match graft.filter(|_| entry.name == b"..") {
                Some(graft) => {
                    let attr = with_attr.then(|| self.getattr(graft.parent).ok()).flatten();
                    visit(&DirEntry { ino: graft.parent, attr, ..entry })
                }
                None => visit(&entry),
            }
        })
    }

    fn fallocate(&self, ino: Ino, offset: u64, length: u64, what: Allocate) -> Result<(), Error> {
        self.volume.fallocate(writable(ino)?, offset, length, what)
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error> {
        match side(ino) {
            Side::Package(inner) => self.package.seek(inner, offset, what),
            Side::Volume(inner) => self.volume.seek(inner, offset, what),
        }
    }

    /// That of what can be written.
    fn statfs(&self) -> Result<StatFs, Error> {
        self.volume.statfs()
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        match side(ino) {
            Side::Package(inner) => self.package.getxattr(inner, name),
            Side::Volume(inner) => self.volume.getxattr(inner, name),
        }
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<(), Error> {
        self.volume.setxattr(writable(ino)?, name, value, how)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match side(ino) {
            Side::Package(inner) => self.package.listxattr(inner),
            Side::Volume(inner) => self.volume.listxattr(inner),
        }
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), Error> {
        self.volume.removexattr(writable(ino)?, name)
    }
}

/// Why a path of a package cannot be made writable.
#[derive(Debug, thiserror::Error)]
pub enum PlantError {
    /// It cannot be in this package.
    #[error("{path:?} {problem}")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nothing could be copied.
    #[error("{path:?} cannot be copied to where it can be written")]
    Copy {
        /// As it was given.
        path: String,
        /// Why not.
        #[source]
        source: Error,
    },
}

/// Makes the directories `paths` of `package` writable: each is in `volume` afterwards, and begins
/// as what the package has there. One that is in the volume already stays as it is.
///
/// # Errors
/// [`PlantError`], of the first that fails.
pub fn plant(
    package: &PackageTree,
    volume: &dyn Tree,
    caller: Caller,
    paths: &[String],
) -> Result<Vec<Graft>, PlantError> {
    let mut grafts: Vec<Graft> = Vec::new();
    let mut cleaned: Vec<String> = Vec::new();
    for path in paths {
        let (clean, parent, hidden) = find(package, path)?;
        let inside = |outer: &str, inner: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if cleaned.iter().any(|other| inside(other, &clean) || inside(&clean, other)) {
            let problem = "is named twice, or is inside of another that is named";
            return Err(PlantError::Path { path: path.clone(), problem });
        }
        let planter = Planter { package, volume, caller };
        let root = planter.plant(&clean, hidden.as_ref());
        let root = root.map_err(|source| PlantError::Copy { path: path.clone(), source })?;
        let name = clean.rsplit('/').next().unwrap_or_default().as_bytes().to_vec();
        grafts.push(Graft { parent, name, hides: hidden.is_some(), root });
        cleaned.push(clean);
    }
    Ok(grafts)
}

/// A path without what it can do without, the directory that it is in, and what the package has
/// there.
fn find(package: &PackageTree, path: &str) -> Result<(String, Ino, Option<Attr>), PlantError> {
    let wrong = |problem| PlantError::Path { path: path.to_owned(), problem };
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let clean = parts.join("/");
    if path.starts_with('/') || parts.contains(&"..") {
        return Err(wrong("is not a path inside of the package"));
    }
    if clean.is_empty() {
        return Err(wrong("is all of the package; name a directory in it"));
    }
    if clean.len() > PATH_BYTES_MAX {
        return Err(wrong("is too long; 80 bytes are allowed"));
    }
    let mut parent = ROOT;
    for (number, part) in (1..).zip(&parts) {
        match package.lookup(parent, part.as_bytes()) {
            Ok(attr) if attr.kind == Kind::Directory && number == parts.len() => {
                return Ok((clean, parent, Some(attr)));
            }
            Ok(attr) if attr.kind == Kind::Directory => parent = attr.ino,
            Ok(_) => return Err(wrong("leads to something that is no directory")),
            Err(_) if number == parts.len() => break,
            Err(_) => return Err(wrong("is in a directory that the package has not")),
        }
    }
    Ok((clean, parent, None))
}

/// Copies directories of a package into a volume.
struct Planter<'a> {
    package: &'a PackageTree,
    volume: &'a dyn Tree,
    caller: Caller,
}

impl Planter<'_> {
    /// The directory in the volume that stands for this path. It gets its name when it is whole.
    fn plant(&self, path: &str, original: Option<&Attr>) -> Result<Ino, Error> {
        let all = self.directory(ROOT, WRITABLE)?;
        let name = path.replace('%', "%25").replace('/', "%2F");
        match self.volume.lookup(all, name.as_bytes()) {
            Ok(attr) if attr.kind == Kind::Directory => return Ok(attr.ino),
            Ok(_) => return Err(Error::NotDirectory),
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        // A "%" that no hexadecimal digit follows is in no other name.
        let fresh = format!("%new {name}");
        self.clear(all, fresh.as_bytes())?;
        let made = self.volume.mkdir(self.caller, all, fresh.as_bytes(), libc::S_IFDIR | 0o755)?;
        if let Some(original) = original {
            self.copy(original.ino, made.ino)?;
            self.finish(made.ino, original)?;
        }
        self.volume.sync()?;
        let flags = RenameFlags::default();
        self.volume.rename(all, fresh.as_bytes(), all, name.as_bytes(), flags)?;
        self.volume.fsync(all, 0, false)?;
        Ok(made.ino)
    }

    fn directory(&self, parent: Ino, name: &[u8]) -> Result<Ino, Error> {
        match self.volume.lookup(parent, name) {
            Ok(attr) => Ok(attr.ino),
            Err(Error::NotFound) => {
                let made = self.volume.mkdir(self.caller, parent, name, libc::S_IFDIR | 0o700);
                made.map(|attr| attr.ino)
            }
            Err(error) => Err(error),
        }
    }

    /// Copies what is in a directory of the package.
    fn copy(&self, from: Ino, to: Ino) -> Result<(), Error> {
        let mut waiting = vec![(from, to)];
        while let Some((from, to)) = waiting.pop() {
            for (name, attr) in entries(self.package, from)? {
                match attr.kind {
                    Kind::Directory => {
                        let mode = libc::S_IFDIR | 0o755;
                        let made = self.volume.mkdir(self.caller, to, &name, mode)?;
                        self.finish(made.ino, &attr)?;
                        waiting.push((attr.ino, made.ino));
                    }
                    Kind::Symlink => {
                        let target = self.package.readlink(attr.ino)?;
                        self.volume.symlink(self.caller, to, &name, &target)?;
                    }
                    _ => self.copy_file(&attr, to, &name)?,
                }
            }
        }
        Ok(())
    }

    fn copy_file(&self, attr: &Attr, to: Ino, name: &[u8]) -> Result<(), Error> {
        let mode = libc::S_IFREG | 0o644;
        let (made, handle) = self.volume.create(self.caller, to, name, mode)?;
        let copied = self.copy_contents(attr, made.ino);
        self.volume.release(made.ino, handle);
        copied?;
        self.finish(made.ino, attr)
    }

    fn copy_contents(&self, attr: &Attr, to: Ino) -> Result<(), Error> {
        let (mut offset, mut chunk) = (0, Vec::new());
        while offset < attr.size {
            self.package.read(attr.ino, offset, CHUNK_BYTES, false, &mut chunk)?;
            if chunk.is_empty() {
                break;
            }
            self.volume.write(to, offset, &chunk, false)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    /// Gives a copy the mode of what it is of. The time is that of the copy.
    fn finish(&self, ino: Ino, original: &Attr) -> Result<(), Error> {
        let permissions = Some(original.permissions);
        self.volume.setattr(ino, &SetAttr { permissions, ..SetAttr::default() }).map(drop)
    }

    /// Removes what a copy that did not end has left.
    fn clear(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        let attr = match self.volume.lookup(parent, name) {
            Err(Error::NotFound) => return Ok(()),
            found => found?,
        };
        if attr.kind == Kind::Directory {
            for (name, _) in entries(self.volume, attr.ino)? {
                self.clear(attr.ino, &name)?;
            }
            self.volume.rmdir(parent, name)?;
        } else {
            self.volume.unlink(parent, name)?;
        }
        self.volume.forget(attr.ino);
        Ok(())
    }
}

/// What is in a directory, but for `.` and `..`.
fn entries(tree: &dyn Tree, directory: Ino) -> Result<Vec<(Vec<u8>, Attr)>, Error> {
    let mut found = Vec::new();
    tree.readdir(directory, 0, true, &mut |entry| {
        found.push((entry.name.to_owned(), entry.ino));
        true
    })?;
    found.retain(|(name, _)| !matches!(name.as_slice(), b"." | b".."));
    let with_attr = |(name, ino)| Ok((name, tree.getattr(ino)?));
    found.into_iter().map(with_attr).collect()
}
