//! Requests about open files and their contents.

use super::wire::abi::FOPEN_KEEP_CACHE;
use super::wire::request::{Copy, Create};
use super::wire::{Body, Header, Reply, reply};
use super::{
    Adapter, Errno, Operation, REQUEST_BYTES, Shared, TTL, attempt, caller, flags, guarded, meter,
    reply_empty,
};
use crate::fs::{Attr, Error, Ino};

/// What a READ asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub ino: Ino,
    pub offset: u64,
    pub size: u32,
    /// Those of open(2).
    pub flags: i32,
}

impl Adapter {
    /// Refused once for an image: the kernel then opens every file without asking, and caches it.
    pub(super) fn open(&self, header: &Header, flags: i32, kill_suid: bool, reply: Reply) {
        if self.shared.is_image {
            return reply.error(libc::ENOSYS);
        }
        let ino = header.node;
        // What is written goes to the page cache first, and could only be refused too late.
        if flags::writable(flags) && self.tree().is_read_only(ino) {
            return reply.error(libc::EROFS);
        }
        let truncate = flags & libc::O_TRUNC != 0;
        let kill_suid = truncate && self.truncation_kills_suid(header, kill_suid);
        match attempt(Operation::Open, ino, || self.tree().open(ino, truncate, kill_suid)) {
            Ok(handle) => {
                self.opened(ino, flags);
                if flags::writable(flags) {
                    self.shared.writers.add(ino);
                }
                reply.bytes(&reply::open(handle, FOPEN_KEEP_CACHE));
            }
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    /// Somebody opened an inode. What is cached is read without asking us, so that opening to read
    /// counts as reading; the kernel is told to ask for the access time again.
    fn opened(&self, ino: Ino, flags: i32) {
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        if !self.shared.access_times || !reads || flags & libc::O_NOATIME != 0 {
            return;
        }
        let is_changing = self.shared.writers.any(ino);
        let is_new = guarded(Operation::Open, ino, || self.tree().accessed(ino, is_changing));
        if let Ok(true) = is_new {
            self.shared.kernel.forget_attributes(ino);
        }
    }

    pub(super) fn create(&self, header: &Header, asked: &Create<'_>, reply: Reply) {
        let (who, parent) = (caller(header, asked.umask), header.node);
        let create = || self.tree().create(who, parent, asked.name, asked.mode);
        let made = attempt(Operation::Create, parent, create);
        self.reply_created(asked, made, reply);
    }

    pub(super) fn tmpfile(&self, header: &Header, asked: &Create<'_>, reply: Reply) {
        let (who, parent) = (caller(header, asked.umask), header.node);
        let create = || self.tree().tmpfile(who, parent, asked.mode);
        let made = attempt(Operation::Tmpfile, parent, create);
        self.reply_created(asked, made, reply);
    }

    fn reply_created(&self, asked: &Create<'_>, made: Result<(Attr, u64), Errno>, reply: Reply) {
        match made {
            Ok((attr, handle)) => {
                self.shared.lookups.add(attr.ino);
                if flags::writable(asked.flags) {
                    self.shared.writers.add(attr.ino);
                }
                let entry = self.entry(TTL, &attr);
                reply.bytes(&reply::created(&entry, handle, FOPEN_KEEP_CACHE));
            }
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    pub(super) fn read(&self, ino: Ino, offset: u64, size: u32, flags: i32, reply: Reply) {
        let is_access = self.sets_access_time(flags);
        if let Err(Errno(errno)) = guarded(Operation::Read, ino, || flags::off_t(offset)) {
            return reply.error(errno);
        }
        // The kernel asks for no more than was agreed on.
        let size = size.min(REQUEST_BYTES) as usize;
        if self.tree().read_is_long(ino, offset) {
            return self.read_on_worker(ino, offset, size, is_access, reply);
        }
        self.shared.replies.with_own(|buffer| {
            let read = || self.tree().read(ino, offset, size, is_access, buffer);
            match attempt(Operation::Read, ino, read) {
                Ok(()) => {
                    meter::read(buffer.len());
                    reply.bytes(buffer);
                }
                Err(Errno(errno)) => reply.error(errno),
            }
        });
    }

    /// A READ whose answer goes where its slot has room; `None` if it takes long, and others should
    /// be served meanwhile.
    pub(super) fn read_into(
        &self,
        asked: &Read,
        buffer: &mut [u8],
    ) -> Option<Result<usize, Errno>> {
        let Read { ino, offset, size, flags } = *asked;
        if self.tree().read_is_long(ino, offset) {
            return None;
        }
        let is_access = self.sets_access_time(flags);
        let length = buffer.len().min(size as usize);
        let read = || {
            flags::off_t(offset)?;
            self.tree().read_into(ino, offset, is_access, &mut buffer[..length])
        };
        let result = attempt(Operation::Read, ino, read);
        if let Ok(bytes) = result {
            meter::read(bytes);
        }
        Some(result)
    }

    /// Answers a READ that takes long.
    fn read_on_worker(&self, ino: Ino, offset: u64, size: usize, is_access: bool, reply: Reply) {
        let read = move |shared: &Shared| {
            let mut buffer = Vec::new();
            shared.tree.read(ino, offset, size, is_access, &mut buffer).map(|()| buffer)
        };
        self.on_worker(Operation::Read, ino, read, |result| match result {
            Ok(buffer) => reply.bytes(&buffer),
            Err(Errno(errno)) => reply.error(errno),
        });
    }

    pub(super) fn write(&self, ino: Ino, offset: u64, data: &[u8], flags: u32, reply: Reply) {
        let write = || {
            if !flags::writes_back(flags) {
                self.tree().admit()?;
            }
            flags::off_t(offset)?;
            self.tree().write(ino, offset, data, flags::write_kills_suid(flags))
        };
        match attempt(Operation::Write, ino, write) {
            Ok(()) => {
                meter::written(data.len());
                reply.bytes(&reply::size(u32::try_from(data.len()).unwrap_or(u32::MAX)));
            }
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    pub(super) fn release(&self, ino: Ino, handle: u64, flags: i32, reply: Reply) {
        if flags::writable(flags) {
            self.shared.writers.subtract(ino, 1);
        }
        let release = || {
            self.tree().release(ino, handle);
            Ok(())
        };
        reply_empty(reply, attempt(Operation::Release, ino, release));
    }

    /// Syncs and replies. One short flush at a time is waited for here, which saves a lone caller
    /// the way to another thread; whoever else asks meanwhile waits on a worker.
    pub(super) fn sync(&self, ino: Ino, asked: &Body<'_>, reply: Reply) {
        let (operation, handle, data_only) = match *asked {
            Body::Fsync { handle, data_only } => (Operation::Fsync, handle, data_only),
            Body::Fsyncdir { handle, data_only } => (Operation::Fsyncdir, handle, data_only),
            _ => return,
        };
        let now = || self.tree().try_fsync(ino, handle, data_only).transpose();
        let begun = meter::begin();
        if let Some(result) =
            self.may_wait.then(|| guarded(operation, ino, now).transpose()).flatten()
        {
            meter::end(begun, operation, result.is_err());
            return reply_empty(reply, result);
        }
        let sync = move |shared: &Shared| shared.tree.fsync(ino, handle, data_only);
        self.on_worker(operation, ino, sync, |result| reply_empty(reply, result));
    }

    pub(super) fn fallocate(&self, ino: Ino, asked: &Body<'_>, reply: Reply) {
        let Body::Fallocate { offset, length, mode } = *asked else { return };
        let allocate = move |shared: &Shared| {
            flags::off_t(offset)?;
            flags::off_t(length)?;
            shared.tree.fallocate(ino, offset, length, flags::allocate(mode)?)
        };
        self.on_worker(Operation::Fallocate, ino, allocate, |result| reply_empty(reply, result));
    }

    pub(super) fn lseek(&self, ino: Ino, offset: u64, whence: i32, reply: Reply) {
        let seek = move |shared: &Shared| shared.seek(ino, offset, whence);
        self.on_worker(Operation::Lseek, ino, seek, |result| match result {
            Ok(found) => reply.bytes(&reply::offset(found)),
            Err(Errno(errno)) => reply.error(errno),
        });
    }

    pub(super) fn copy(&self, ino: Ino, asked: &Body<'_>, reply: Reply) {
        let (asked, is_wide) = match *asked {
            Body::CopyFileRange(copy) => (copy, false),
            Body::CopyFileRange64(copy) => (copy, true),
            _ => return,
        };
        let Copy { from_offset, to, to_offset, length } = asked;
        // The narrow reply holds no more.
        let length = length.min(u64::from(u32::MAX));
        let copy = move |shared: &Shared| {
            flags::off_t(from_offset)?;
            flags::off_t(to_offset)?;
            shared.tree.copy_range(ino, from_offset, to, to_offset, length)
        };
        self.on_worker(Operation::CopyFileRange, ino, copy, move |result| match result {
            Ok(copied) if is_wide => reply.bytes(&reply::offset(copied)),
            Ok(copied) => reply.bytes(&reply::size(u32::try_from(copied).unwrap_or(u32::MAX))),
            Err(Errno(errno)) => reply.error(errno),
        });
    }
}

impl Shared {
    /// Answers SEEK_DATA and SEEK_HOLE. What is dirty in the page cache is a hole to us, so the
    /// kernel writes it back first; otherwise `cp` would make zeros of fresh data.
    fn seek(&self, ino: Ino, offset: u64, whence: i32) -> Result<u64, Error> {
        let what = flags::seek(whence)?;
        flags::off_t(offset).map_err(|_| Error::NoSuchOffset)?;
        if self.writers.any(ino) {
            self.kernel.write_back(ino, offset)?;
        }
        self.tree.seek(ino, offset, what)
    }
}
