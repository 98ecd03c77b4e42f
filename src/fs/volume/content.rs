//! Contents of regular files.

use super::attributes::kill_suid;
use super::edit::kind;
use super::{Ino, VolumeTree};
use crate::format::PAGE_BYTES;
use crate::format::record::Inode;
use crate::fs::{Allocate, Error, Kind, Seek};
use crate::volume;

/// Largest size of a file in bytes: 8 EiB less a page, the last multiple of a page that an `off_t`
/// holds.
pub const SIZE_BYTES_MAX: u64 = i64::MAX as u64 / PAGE_BYTES as u64 * PAGE_BYTES as u64;

const PAGE: u64 = PAGE_BYTES as u64;
/// Piece in which ranges are copied.
const COPY_PIECE_BYTES: usize = 1 << 20;
/// Data copied by one call at most, so that it ends in a fraction of a second; `copy_file_range(2)`
/// may copy less than asked for.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// A place in a file.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub ino: Ino,
    pub offset: u64,
}

impl VolumeTree {
    pub(super) fn open_file(
        &self,
        ino: Ino,
        truncate: bool,
        kill_suid: bool,
    ) -> Result<u64, Error> {
        // Counted before looking, so that whoever removes the last name from now on sees it open.
        let handle = self.handles.open(ino);
        match self.prepare_open(ino, truncate, kill_suid) {
            Ok(()) => Ok(handle),
            Err(error) => {
                if self.handles.close(ino) {
                    self.discard(ino);
                }
                Err(error)
            }
        }
    }

    fn prepare_open(&self, ino: Ino, truncate: bool, suid: bool) -> Result<(), Error> {
        let inode = self.file(ino)?;
        if inode.links == 0 && !self.handles.is_nameless(ino) {
            return Err(Error::Stale);
        }
        if truncate {
            if suid {
                self.drop_capability(ino)?;
            }
            let now = self.volume.now();
            self.resize(ino, 0, &|inode| {
                inode.mtime = now;
                inode.ctime = now;
                if suid {
                    kill_suid(inode);
                }
            })?;
        }
        Ok(())
    }

    pub(super) fn read_content(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        is_access: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let read = self.volume.read(ino, offset, length, buffer);
        self.was_read(ino, offset, is_access, read)
    }

    pub(super) fn read_content_into(
        &self,
        ino: Ino,
        offset: u64,
        is_access: bool,
        buffer: &mut [u8],
    ) -> Result<usize, Error> {
        let read = self.volume.read_into(ino, offset, buffer);
        let length = read.as_ref().map_or(0, |(length, _)| *length);
        let by = read.map(|(_, inode)| inode);
        self.was_read(ino, offset, is_access, by).map(|()| length)
    }

    /// What to say of a read, which returned the record by which it was done.
    fn was_read(
        &self,
        ino: Ino,
        offset: u64,
        is_access: bool,
        read: Result<Inode, volume::Error>,
    ) -> Result<(), Error> {
        let inode = match read {
            Ok(inode) => self.with_access(ino, inode),
            Err(error) => {
                // What is no file is refused as that.
                self.file(ino)?;
                return Err(self.failed_at("reading", ino, offset)(error));
            }
        };
        is_file(&inode)?;
        if is_access {
            // What was read is not refused because of that.
            if let Err(error) = self.note_access_of(ino, &inode, false) {
                log::warn!("the access time of inode {ino} is not kept: {error}");
            }
        }
        Ok(())
    }

    pub(super) fn write_content(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        suid: bool,
    ) -> Result<(), Error> {
        end(offset, data.len() as u64)?;
        self.file(ino)?;
        if data.is_empty() {
            return Ok(());
        }
        if suid {
            self.drop_capability(ino)?;
        }
        let now = self.volume.now();
        let _size = self.size_lock(ino).read();
        self.volume
            .write(ino, offset, data, &|inode| {
                inode.mtime = now;
                inode.ctime = now;
                if suid {
                    kill_suid(inode);
                }
            })
            .map_err(self.failed_at("writing", ino, offset))
    }

    /// Sets the size.
    pub(super) fn resize(
        &self,
        ino: Ino,
        size: u64,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<Inode, Error> {
        end(size, 0)?;
        self.file(ino)?;
        let _size = self.size_lock(ino).write();
        let old_size = self.file(ino)?.size;
        let inode = self.volume.truncate(ino, size, touch);
        let inode = inode.map_err(self.failed_at("truncating", ino, size))?;
        if size <= old_size {
            // As on ext4, also what was allocated behind the end.
            self.volume.forgo(ino, size.div_ceil(PAGE)..u64::MAX);
        }
        Ok(inode)
    }

    pub(super) fn allocate(
        &self,
        ino: Ino,
        offset: u64,
        length: u64,
        what: Allocate,
    ) -> Result<(), Error> {
        if length == 0 {
            return Err(Error::Invalid("a range of no bytes"));
        }
        let end = end(offset, length)?;
        self.file(ino)?;
        self.drop_capability(ino)?;
        let _size = self.size_lock(ino).write();
        let size = self.file(ino)?.size;
        let (keep_size, changes_bytes) = match what {
            Allocate::Reserve { keep_size } => (keep_size, false),
            Allocate::Punch => (true, true),
            Allocate::Zero { keep_size } => (keep_size, true),
        };
        let grows = !keep_size && end > size;
        let now = self.volume.now();
        let touch = |inode: &mut Inode| {
            kill_suid(inode);
            inode.ctime = now;
            if changes_bytes || grows {
                inode.mtime = now;
            }
        };
        match what {
            Allocate::Reserve { .. } => {
                let reserved = self.volume.reserve(ino, offset, length);
                reserved.map_err(self.failed_at("reserving space for", ino, offset))?;
                if grows {
                    let grown = self.volume.truncate(ino, end, &touch);
                    return grown.map(drop).map_err(self.failed_at("growing", ino, end));
                }
                self.touch(ino, &touch)
            }
            Allocate::Punch => {
                let punched = self.volume.punch(ino, offset, length, &touch);
                punched.map_err(self.failed_at("punching", ino, offset))?;
                self.volume.forgo(ino, offset.div_ceil(PAGE)..end / PAGE);
                Ok(())
            }
            Allocate::Zero { .. } => {
                let reserved = self.volume.reserve_zeroed(ino, offset, length);
                reserved.map_err(self.failed_at("reserving space for", ino, offset))?;
                let size = if grows { end } else { 0 };
                self.volume.zero(ino, offset, length, size, &touch).map_err(|error| {
                    // What still has content holds no promise.
                    self.volume.forgo(ino, offset.div_ceil(PAGE)..end / PAGE);
                    self.failed_at("zeroing", ino, offset)(error)
                })
            }
        }
    }

    /// Makes a hole of a range; `size` is that of the file and stays.
    fn clear(&self, at: Position, end: u64, size: u64) -> Result<(), Error> {
        let end = end.min(size.checked_next_multiple_of(PAGE).unwrap_or(size));
        if at.offset >= end {
            return Ok(());
        }
        self.volume
            .punch(at.ino, at.offset, end - at.offset, &|_| {})
            .map_err(self.failed_at("punching", at.ino, at.offset))
    }

    pub(super) fn seek_content(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error> {
        if offset >= self.file(ino)?.size {
            return Err(Error::NoSuchOffset);
        }
        self.next(Position { ino, offset }, what == Seek::Data)?.ok_or(Error::NoSuchOffset)
    }

    fn next(&self, at: Position, data: bool) -> Result<Option<u64>, Error> {
        let next = self.volume.seek(at.ino, at.offset, data);
        next.map_err(self.failed_at("seeking in", at.ino, at.offset))
    }

    /// Copies data in pieces and leaves out holes, which become holes of the target.
    pub(super) fn copy_content(
        &self,
        from: Position,
        to: Position,
        length: u64,
    ) -> Result<u64, Error> {
        let source_size = self.file(from.ino)?.size;
        self.file(to.ino)?;
        end(from.offset, length)?;
        end(to.offset, length)?;
        let length = length.min(source_size.saturating_sub(from.offset));
        if length == 0 {
            return Ok(0);
        }
        if from.ino == to.ino && from.offset.abs_diff(to.offset) < length {
            return Err(Error::Invalid("the ranges overlap"));
        }
        self.drop_capability(to.ino)?;
        let _size = self.size_lock(to.ino).write();
        let target_size = self.file(to.ino)?.size;
        let copied = self.copy_pieces(from, to, length, target_size)?;
        let now = self.volume.now();
        let touch = |inode: &mut Inode| {
            kill_suid(inode);
            inode.mtime = now;
            inode.ctime = now;
        };
        // The size is what was there, or the end of what was copied: a hole at the end does not
        // grow it.
        let size = target_size.max(to.offset + copied);
        self.volume
            .truncate(to.ino, size, &touch)
            .map_err(self.failed_at("growing", to.ino, size))?;
        Ok(copied)
    }

    fn copy_pieces(
        &self,
        from: Position,
        to: Position,
        length: u64,
        target_size: u64,
    ) -> Result<u64, Error> {
        let mut buffer = Vec::new();
        let (mut copied, mut data_bytes) = (0, 0);
        while copied < length && data_bytes < COPY_BYTES_MAX {
            let source = Position { offset: from.offset + copied, ..from };
            let target = Position { offset: to.offset + copied, ..to };
            let rest = length - copied;
            let data = self.next(source, true)?.unwrap_or(u64::MAX);
            if data > source.offset {
                let hole = rest.min(data - source.offset);
                self.clear(target, target.offset + hole, target_size)?;
                copied += hole;
                continue;
            }
            let hole = self.next(source, false)?.unwrap_or(u64::MAX);
            let piece = rest.min(hole.saturating_sub(source.offset)).min(COPY_PIECE_BYTES as u64);
            self.volume
                .read(source.ino, source.offset, piece as usize, &mut buffer)
                .map_err(self.failed_at("reading", source.ino, source.offset))?;
            if buffer.is_empty() {
                break;
            }
            let written = self.volume.write(target.ino, target.offset, &buffer, &|_| {});
            match written.map_err(self.failed_at("writing", target.ino, target.offset)) {
                // As write(2): what there is space for is copied, and said.
                Err(Error::NoSpace | Error::QuotaExceeded) if copied > 0 => break,
                written => written?,
            }
            copied += buffer.len() as u64;
            data_bytes += buffer.len() as u64;
        }
        Ok(copied)
    }

    /// The record of a regular file.
    pub(super) fn file(&self, ino: Ino) -> Result<Inode, Error> {
        let inode = self.inode(ino)?;
        is_file(&inode).map(|()| inode)
    }
}

fn is_file(inode: &Inode) -> Result<(), Error> {
    match kind(inode) {
        Some(Kind::File) => Ok(()),
        Some(Kind::Directory) => Err(Error::IsDirectory),
        _ => Err(Error::Invalid("not a regular file")),
    }
}

/// The end of a range.
///
/// # Errors
/// [`Error::TooLarge`] beyond [`SIZE_BYTES_MAX`].
fn end(offset: u64, length: u64) -> Result<u64, Error> {
    offset.checked_add(length).filter(|end| *end <= SIZE_BYTES_MAX).ok_or(Error::TooLarge)
}
