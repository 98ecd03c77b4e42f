//! Which method of the adapter answers which request.

use std::sync::Arc;

use super::Adapter;
use super::files::Read;
use super::wire::abi::Opcode;
use super::wire::request::{Malformed, fixed_bytes};
use super::wire::{Body, Device, Header, Origin, Reply, Request};
use crate::sys::uring::Arrived;

impl Adapter {
    /// Answers what was read from a device.
    pub(super) fn answer(&self, bytes: &[u8], device: &Arc<Device>) {
        let origin = Origin::Device(device.clone());
        match Request::decode(bytes, self.dialect) {
            Ok(request) => self.take(&request, origin),
            Err(malformed) => match Header::decode(bytes) {
                Ok(header) => refuse_malformed(&header, malformed, origin),
                Err(_) => log::error!("{} bytes of the kernel are no request", bytes.len()),
            },
        }
    }

    /// Answers what is in a slot of a ring.
    pub(super) fn answer_slot(&self, arrived: Arrived<'_>, origin: Origin) {
        let Ok(header) = Header::decode(arrived.header) else { return };
        match self.decode_slot(header, arrived) {
            Ok(request) => self.take(&request, origin),
            Err(malformed) => refuse_malformed(&header, malformed, origin),
        }
    }

    /// The READ in a slot, and its name, if it is one.
    pub(super) fn read_in_slot(&self, arrived: Arrived<'_>) -> Option<(u64, Read)> {
        let header = Header::decode(arrived.header).ok()?;
        if header.opcode != Opcode::Read as u32 {
            return None;
        }
        match self.decode_slot(header, arrived).ok()?.body {
            Body::Read { offset, size, flags } => {
                Some((header.unique, Read { ino: header.node, offset, size, flags }))
            }
            _ => None,
        }
    }

    fn decode_slot<'a>(
        &self,
        header: Header,
        arrived: Arrived<'a>,
    ) -> Result<Request<'a>, Malformed> {
        let fixed = arrived.fixed.get(..fixed_bytes(header.opcode, self.dialect));
        let fixed = fixed.ok_or(Malformed::Short)?;
        Request::assemble(header, fixed, arrived.payload, self.dialect)
    }

    fn take(&self, request: &Request<'_>, origin: Origin) {
        let unique = request.header.unique;
        if !self.forget(request) {
            self.dispatch(request, Reply::new(unique, origin));
        } else if let Origin::Ring(..) = origin {
            // A slot is given back by answering.
            Reply::new(unique, origin).ok();
        }
    }

    /// Takes what gets no answer; whether it was that.
    fn forget(&self, request: &Request<'_>) -> bool {
        match &request.body {
            Body::Forget { count } => self.forget_n(request.header.node, *count),
            Body::BatchForget { list } => {
                list.iter().for_each(|(ino, count)| self.forget_n(ino, count));
            }
            _ => return false,
        }
        true
    }

    fn dispatch(&self, request: &Request<'_>, reply: Reply) {
        let Request { header, body } = request;
        let ino = header.node;
        match body {
            Body::Lookup { name } => self.lookup(ino, name, reply),
            Body::Getattr => self.getattr(ino, reply),
            Body::Setattr(change) => self.setattr(header, change, reply),
            Body::Readlink => self.readlink(ino, reply),
            Body::Symlink { name, target } => self.symlink(header, name, target, reply),
            Body::Mknod { .. } => self.mknod(header, body, reply),
            Body::Mkdir { name, mode, umask } => self.mkdir(header, name, (*mode, *umask), reply),
            Body::Unlink { name } => self.unlink(ino, name, reply),
            Body::Rmdir { name } => self.rmdir(ino, name, reply),
            Body::Rename { .. } => self.rename(ino, body, reply),
            Body::Link { ino: linked, name } => self.link(*linked, ino, name, reply),
            Body::Open { flags, kill_suid } => self.open(header, *flags, *kill_suid, reply),
            Body::Read { offset, size, flags } => self.read(ino, *offset, *size, *flags, reply),
            Body::Write { offset, data, flags } => self.write(ino, *offset, data, *flags, reply),
            Body::Statfs => self.statfs(ino, reply),
            Body::Release { handle, flags } => self.release(ino, *handle, *flags, reply),
            Body::Fsync { .. } | Body::Fsyncdir { .. } => self.sync(ino, body, reply),
            Body::Setxattr { .. } => self.setxattr(ino, body, reply),
            Body::Getxattr { name, size } => self.getxattr(ino, name, *size, reply),
            Body::Listxattr { size } => self.listxattr(header, *size, reply),
            Body::Removexattr { name } => self.removexattr(ino, name, reply),
            Body::Readdir { offset, size } => self.readdir(ino, *offset, *size, reply),
            Body::Readdirplus { offset, size } => self.readdirplus(ino, *offset, *size, reply),
            Body::Create(create) => self.create(header, create, reply),
            Body::Tmpfile(create) => self.tmpfile(header, create, reply),
            Body::Fallocate { .. } => self.fallocate(ino, body, reply),
            Body::Lseek { offset, whence } => self.lseek(ino, *offset, *whence, reply),
            Body::CopyFileRange(_) | Body::CopyFileRange64(_) => self.copy(ino, body, reply),
            Body::Destroy => reply.ok(),
            Body::Other(opcode) => reply.error(refusal(*opcode)),
            Body::Interrupt | Body::Unknown => reply.error(libc::ENOSYS),
            Body::Forget { .. } | Body::BatchForget { .. } => {}
        }
    }
}

/// What requests are refused with that are not served. After ENOSYS the kernel does not ask again
/// and does what is written here.
fn refusal(opcode: Opcode) -> i32 {
    match opcode {
        // No ioctl of ours, and flags of `chattr(1)` are not kept.
        Opcode::Ioctl => libc::ENOTTY,
        // FLUSH would cost a round trip per `close`. The kernel still writes dirty pages back when
        // a file is closed and reports what WRITE said; losses found later are reported by
        // `fsync`, as on other filesystems.
        Opcode::Flush => libc::ENOSYS,
        // OPENDIR: every directory is opened and cached without asking.
        Opcode::Opendir | Opcode::Releasedir => libc::ENOSYS,
        // ACCESS is never asked: `default_permissions` makes the kernel check. POLL: files are
        // always ready, as on any disk. BMAP: there is no block device below. Locks are the
        // kernel's. STATX: GETATTR is asked instead.
        _ => libc::ENOSYS,
    }
}

fn refuse_malformed(header: &Header, malformed: Malformed, origin: Origin) {
    let Header { opcode, unique, .. } = *header;
    log::error!("request {unique} of the kernel ({opcode}) is malformed: {malformed}");
    let is_answered = !matches!(
        Opcode::from_number(opcode),
        Some(Opcode::Forget | Opcode::BatchForget | Opcode::NotifyReply)
    );
    if is_answered || matches!(origin, Origin::Ring(..)) {
        Reply::new(unique, origin).error(libc::EIO);
    }
}
