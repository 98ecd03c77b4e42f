//! Reading names: lookup, listing, link targets.

use super::edit::kind;
use super::{Ino, VolumeTree};
use crate::format::record::{Entry, Inode};
use crate::fs::{Attr, DirEntry, Error, Kind, name};

/// Cookie of `.`; entries have theirs from the volume, above 16.
const COOKIE_SELF: u64 = 1;
/// Cookie of `..`
const COOKIE_PARENT: u64 = 2;

impl VolumeTree {
    pub(super) fn find(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        if name == b"." || name == b".." {
            let directory = self.directory(parent)?;
            let ino = if name == b"." { parent } else { directory.parent };
            return self.attr(ino, &self.inode(ino)?);
        }
        name::check(name)?;
        let mut last = None;
        loop {
            let Some(entry) = self.entry(parent, name)? else {
                self.directory(parent)?;
                return Err(Error::NotFound);
            };
            match self.inode(entry.ino) {
                // Between the two reads the entry may have gone, and its inode with it.
                Err(Error::Stale) if last != Some(entry) => last = Some(entry),
                Err(Error::Stale) => return Err(dangling(parent, &entry)),
                found => return self.attr(entry.ino, &found?),
            }
        }
    }

    pub(super) fn list(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        let directory = self.directory(ino)?;
        // An entry whose attributes cannot be read is still listed: the rest of the directory is
        // not to suffer, and looking it up says what is wrong.
        let attr_of = |ino| {
            if with_attr { self.inode(ino).and_then(|i| self.attr(ino, &i)).ok() } else { None }
        };
        let dots = [(COOKIE_SELF, ino, &b"."[..]), (COOKIE_PARENT, directory.parent, b"..")];
        for (dot, ino, name) in dots.into_iter().filter(|(dot, ..)| *dot > cookie) {
            let kind = Kind::Directory;
            if !visit(&DirEntry { ino, kind, name, cookie: dot, attr: attr_of(ino) }) {
                return Ok(());
            }
        }
        let mut unknown = None;
        self.volume
            .entries(ino, cookie.max(COOKIE_PARENT), &mut |cookie, ino, kind, name| {
                let Some(kind) = Kind::from_type(kind) else {
                    unknown = Some((ino, kind));
                    return false;
                };
                visit(&DirEntry { ino, kind, name, cookie, attr: attr_of(ino) })
            })
            .map_err(self.failed("listing the entries", ino))?;
        match unknown {
            None => Ok(()),
            Some((child, kind)) => Err(Error::Io {
                what: format!("directory {ino}: inode {child} is of the unknown type {kind}"),
                source: None,
            }),
        }
    }

    pub(super) fn target(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        if kind(&self.inode(ino)?) != Some(Kind::Symlink) {
            return Err(Error::Invalid("not a symbolic link"));
        }
        self.volume.inline(ino).map_err(self.failed("reading the link target", ino))
    }

    /// The record of a directory.
    pub(super) fn directory(&self, ino: Ino) -> Result<Inode, Error> {
        let inode = self.inode(ino)?;
        if kind(&inode) == Some(Kind::Directory) { Ok(inode) } else { Err(Error::NotDirectory) }
    }

    pub(super) fn entry(&self, parent: Ino, name: &[u8]) -> Result<Option<Entry>, Error> {
        self.volume.entry(parent, name).map_err(self.failed("looking up an entry", parent))
    }
}

/// An entry whose inode is missing.
fn dangling(parent: Ino, entry: &Entry) -> Error {
    Error::Io {
        what: format!("directory {parent}: an entry names inode {}, which is missing", entry.ino),
        source: None,
    }
}
