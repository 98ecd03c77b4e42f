//! Requests about names: looking them up, making, removing and listing them.

use std::time::Duration;

use super::wire::reply::{Listing, Name};
use super::wire::{Body, Entry, Header, Reply, reply};
use super::{Adapter, Operation, REQUEST_BYTES, attempt, attr, caller, flags, reply_empty};
use crate::fs::{DirEntry, Error, Ino, Kind};

impl Adapter {
    /// How long the kernel may keep names of `parent`. Ask before looking them up: what is found
    /// after the answer has changed is then not kept.
    fn names_ttl(&self, parent: Ino) -> Duration {
        if self.tree().keeps_names(parent) { self.ttl() } else { Duration::ZERO }
    }

    pub(super) fn lookup(&self, parent: Ino, name: &[u8], reply: Reply) {
        let found = || match self.tree().lookup(parent, name) {
            Err(Error::NotFound) => Ok(None),
            result => result.map(Some),
        };
        let ttl = self.names_ttl(parent);
        match attempt(Operation::Lookup, parent, found).transpose() {
            Some(result) => self.reply_entry(reply, ttl, result),
            None => {
                let absent = Entry { ttl, attributes: attr::bare(0, Kind::File) };
                reply.bytes(&reply::entry(&absent));
            }
        }
    }

    pub(super) fn mknod(&self, header: &Header, asked: &Body<'_>, reply: Reply) {
        let Body::Mknod { name, mode, rdev, umask } = *asked else { return };
        let (who, parent) = (caller(header, umask), header.node);
        let made =
            attempt(Operation::Mknod, parent, || self.tree().mknod(who, parent, name, mode, rdev));
        self.reply_entry(reply, self.ttl(), made);
    }

    pub(super) fn mkdir(
        &self,
        header: &Header,
        name: &[u8],
        (mode, umask): (u32, u32),
        reply: Reply,
    ) {
        let (who, parent) = (caller(header, umask), header.node);
        let made = attempt(Operation::Mkdir, parent, || self.tree().mkdir(who, parent, name, mode));
        self.reply_entry(reply, self.ttl(), made);
    }

    pub(super) fn unlink(&self, parent: Ino, name: &[u8], reply: Reply) {
        let unlink = || self.tree().unlink(parent, name);
        reply_empty(reply, attempt(Operation::Unlink, parent, unlink));
    }

    pub(super) fn rmdir(&self, parent: Ino, name: &[u8], reply: Reply) {
        let rmdir = || self.tree().rmdir(parent, name);
        reply_empty(reply, attempt(Operation::Rmdir, parent, rmdir));
    }

    pub(super) fn symlink(&self, header: &Header, name: &[u8], target: &[u8], reply: Reply) {
        let (who, parent) = (caller(header, 0), header.node);
        let made =
            attempt(Operation::Symlink, parent, || self.tree().symlink(who, parent, name, target));
        self.reply_entry(reply, self.ttl(), made);
    }

    pub(super) fn rename(&self, parent: Ino, asked: &Body<'_>, reply: Reply) {
        let Body::Rename { name, new_parent, new_name, flags } = *asked else { return };
        let rename = || {
            let flags = flags::rename(flags)?;
            self.tree().rename(parent, name, new_parent, new_name, flags)
        };
        reply_empty(reply, attempt(Operation::Rename, parent, rename));
    }

    pub(super) fn link(&self, ino: Ino, parent: Ino, name: &[u8], reply: Reply) {
        let made = attempt(Operation::Link, ino, || self.tree().link(ino, parent, name));
        self.reply_entry(reply, self.ttl(), made);
    }

    pub(super) fn readdir(&self, ino: Ino, offset: u64, size: u32, reply: Reply) {
        self.accessed(ino, 0);
        self.shared.replies.with_own(|buffer| {
            let mut list = Listing::new(buffer, size.min(REQUEST_BYTES) as usize);
            let fill =
                || self.tree().readdir(ino, offset, false, &mut |entry| list.push(&name_of(entry)));
            let filled = attempt(Operation::Readdir, ino, fill);
            reply_list(reply, &list, filled);
        });
    }

    pub(super) fn readdirplus(&self, ino: Ino, offset: u64, size: u32, reply: Reply) {
        self.accessed(ino, 0);
        let mut left_over = None;
        let ttl = self.names_ttl(ino);
        self.shared.replies.with_own(|buffer| {
            let mut list = Listing::new(buffer, size.min(REQUEST_BYTES) as usize);
            let fill = || {
                self.tree().readdir(ino, offset, true, &mut |entry| {
                    let fits = self.add_plus(ttl, &mut list, entry);
                    left_over = (!fits && !is_dot(entry.name)).then_some(entry.ino);
                    fits
                })
            };
            let filled = attempt(Operation::Readdirplus, ino, fill);
            reply_list(reply, &list, filled);
        });
        if let Some(ino) = left_over {
            self.forget_n(ino, 1);
        }
    }

    /// Adds an entry to a READDIRPLUS reply; returns whether it fitted. The kernel holds a
    /// reference to what it gets this way, but for "." and ".." (`fuse_direntplus_link`). Those may
    /// come without attributes; any other entry without them is one that the kernel asks about.
    fn add_plus(&self, ttl: Duration, list: &mut Listing<'_>, entry: &DirEntry) -> bool {
        let found = match &entry.attr {
            Some(attr) => self.entry(ttl, attr),
            None => Entry { ttl: Duration::ZERO, attributes: attr::bare(entry.ino, entry.kind) },
        };
        if !is_dot(entry.name) {
            self.shared.lookups.add(entry.ino);
        }
        list.push_with(&found, &name_of(entry))
    }
}

fn name_of<'a>(entry: &DirEntry<'a>) -> Name<'a> {
    let DirEntry { ino, kind, name, cookie, .. } = *entry;
    Name { ino, cookie, kind: kind.as_type(), name }
}

/// What was listed before an error is a reply too: the error comes with the next request.
fn reply_list(reply: Reply, list: &Listing<'_>, filled: Result<(), super::Errno>) {
    match filled {
        Err(errno) if list.bytes().is_empty() => reply.error(errno.0),
        _ => reply.bytes(list.bytes()),
    }
}

fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}
