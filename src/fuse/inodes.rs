//! Requests about attributes, extended ones too, link targets and free space.

use super::wire::reply::Statfs;
use super::wire::request::Setattr;
use super::wire::{Body, Header, Reply, reply};
use super::{
    Adapter, BLOCK_BYTES, Errno, NAME_BYTES_MAX, Operation, TTL, attempt, attr, reply_empty,
};
use crate::fs::{Ino, SetXattr};

/// The extended attribute with what SELinux calls an inode.
const LABEL: &[u8] = b"security.selinux";

impl Adapter {
    pub(super) fn getattr(&self, ino: Ino, reply: Reply) {
        match attempt(Operation::Getattr, ino, || self.tree().getattr(ino)) {
            Ok(attr) => reply.bytes(&reply::attr(self.ttl(), &attr::attributes(&attr))),
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    pub(super) fn setattr(&self, header: &Header, asked: &Setattr, reply: Reply) {
        let ino = header.node;
        let owned = asked.uid.is_some() || asked.gid.is_some();
        let truncates = asked.size.is_some();
        let kill_suid = owned || (truncates && self.truncation_kills_suid(header, asked.kill_suid));
        let change = attr::change(asked, kill_suid);
        match attempt(Operation::Setattr, ino, || self.tree().setattr(ino, &change)) {
            Ok(attr) => reply.bytes(&reply::attr(TTL, &attr::attributes(&attr))),
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    pub(super) fn readlink(&self, ino: Ino, reply: Reply) {
        match attempt(Operation::Readlink, ino, || self.tree().readlink(ino)) {
            Ok(target) => {
                self.accessed(ino, 0);
                reply.bytes(&target);
            }
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    pub(super) fn statfs(&self, ino: Ino, reply: Reply) {
        match attempt(Operation::Statfs, ino, || self.tree().statfs()) {
            Ok(space) => reply.bytes(&reply::statfs(&Statfs {
                blocks: space.blocks,
                blocks_free: space.blocks_free,
                blocks_available: space.blocks_available,
                files: space.files,
                files_free: space.files_free,
                block_bytes: BLOCK_BYTES,
                name_bytes_max: NAME_BYTES_MAX,
            })),
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    pub(super) fn setxattr(&self, ino: Ino, asked: &Body<'_>, reply: Reply) {
        let Body::Setxattr { name, value, flags, kill_sgid } = *asked else { return };
        let create = flags & libc::XATTR_CREATE != 0;
        let replace = flags & libc::XATTR_REPLACE != 0;
        let how = SetXattr { create, replace, kill_sgid };
        let set = || self.tree().setxattr(ino, name, value, how);
        reply_empty(reply, attempt(Operation::Setxattr, ino, set));
    }

    /// Refused once for an image: the kernel then answers for it.
    pub(super) fn getxattr(&self, ino: Ino, name: &[u8], size: u32, reply: Reply) {
        if self.shared.is_image {
            return reply.error(libc::ENOSYS);
        }
        let mut value = attempt(Operation::Getxattr, ino, || self.tree().getxattr(ino, name));
        if name == LABEL && !self.shared.has_selinux {
            // `ls -l` asks for the label of each entry until it hears that there are none.
            value = value.map_err(|Errno(errno)| {
                Errno(if errno == libc::ENODATA { libc::EOPNOTSUPP } else { errno })
            });
        }
        reply_xattr(reply, size, value);
    }

    /// Names of `trusted.` attributes are for root to see (xattr(7)). Whether the caller has
    /// CAP_SYS_ADMIN, which is the kernel's question, a request does not say.
    pub(super) fn listxattr(&self, header: &Header, size: u32, reply: Reply) {
        if self.shared.is_image {
            return reply.error(libc::ENOSYS);
        }
        let ino = header.node;
        let mut names = attempt(Operation::Listxattr, ino, || self.tree().listxattr(ino));
        if let (Ok(names), true) = (&mut names, header.uid != 0) {
            *names = without_trusted(names);
        }
        reply_xattr(reply, size, names);
    }

    pub(super) fn removexattr(&self, ino: Ino, name: &[u8], reply: Reply) {
        let remove = || self.tree().removexattr(ino, name);
        reply_empty(reply, attempt(Operation::Removexattr, ino, remove));
    }
}

/// Answers a request for an extended attribute or for the list of names: `size` 0 asks how long the
/// answer is (`getxattr(2)`).
fn reply_xattr(reply: Reply, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => {
            reply.bytes(&reply::size(u32::try_from(value.len()).unwrap_or(u32::MAX)));
        }
        Ok(value) if value.len() > size as usize => reply.error(libc::ERANGE),
        Ok(value) => reply.bytes(&value),
        Err(Errno(errno)) => reply.error(errno),
    }
}

/// A list of names, each with its NUL, without those of the `trusted.` namespace.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let names = names.split_inclusive(|&byte| byte == 0);
    names.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}
