//! A ZIP archive as a read-only tree with random access inside its members.
//!
//! This module knows the format, what it refuses and why, and how to get at any byte without
//! keeping more than it is allowed to. It does not know FUSE, POSIX rules or volumes: the bytes of
//! the archive come from a [`Source`].

mod archive;
mod cache;
mod checksum;
mod cursor;
mod end;
mod error;
mod index;
mod limits;
mod links;
mod local;
mod name;
mod reader;
mod record;
mod seeks;
mod source;
mod verify;

use std::io;
use std::sync::Arc;

use reader::Reader;

pub use error::{ReadError, Refusal};
pub use index::{Content, Index, Node, NodeId};
pub use limits::Limits;
pub use reader::Statistics;
pub use source::{FileSource, Source};
pub use verify::{Digest, Failed, Progress, digest};

/// An archive that was understood, and whose members can be read by several threads at once.
pub struct Package {
    index: Index,
    reader: Reader,
    source: Arc<dyn Source>,
    directory: end::Directory,
}

impl Package {
    /// Reads the central directory and refuses what `limits` or the rules of the manual forbid.
    /// Contents are not looked at, but for the targets of symbolic links; see [`Package::verify`].
    ///
    /// # Errors
    /// Why the archive is refused.
    pub fn open(source: Arc<dyn Source>, limits: &Limits) -> Result<Self, Refusal> {
        let (mut index, directory) = archive::read(&*source, limits)?;
        let reader = Reader::new(source.clone(), limits.cache_bytes);
        links::read(&mut index, &reader)?;
        Ok(Self { index, reader, source, directory })
    }

    /// Names, attributes and places of all members.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Appends up to `length` bytes of a file from `offset` on to `buffer`; less only at its end.
    ///
    /// # Errors
    /// The source failed, or the member is not what the central directory says.
    pub fn read(
        &self,
        id: NodeId,
        offset: u64,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        self.reader.read(id, self.index.node(id), offset, length, buffer)
    }

    /// How many bytes have to be decompressed before the first of a read at `offset` is there;
    /// 0 if they are in memory.
    pub fn distance(&self, id: NodeId, offset: u64) -> u64 {
        self.reader.distance(id, self.index.node(id), offset)
    }

    /// Lets go of all contents in memory; what is read next is read from the source.
    pub fn forget_contents(&self) {
        self.reader.forget_contents();
    }

    /// Uses the seek points that an earlier mount has kept by [`Package::keep_seek_points`].
    ///
    /// # Errors
    /// They cannot be read, are damaged, or belong to another package; reading does without them.
    pub fn use_seek_points(&self, source: Arc<dyn Source>) -> io::Result<()> {
        self.reader.use_kept(seeks::Kept::read(source, self.identity()?)?);
        Ok(())
    }

    /// Writes the seek points that reading has made, and those that were kept before, to what
    /// `open` returns, if there are any that were not kept yet. Returns whether there were.
    ///
    /// # Errors
    /// Those of writing; the source failed.
    pub fn keep_seek_points(
        &self,
        open: impl FnOnce() -> io::Result<Box<dyn io::Write>>,
    ) -> io::Result<bool> {
        let Some(points) = self.reader.points() else { return Ok(false) };
        let identity = self.identity()?;
        seeks::write(&points, self.reader.kept(), identity, &mut *open()?)?;
        Ok(true)
    }

    /// SHA-256 of the length of the archive, and of the central directory with where it is.
    fn identity(&self) -> io::Result<Digest> {
        archive::identity(&*self.source, self.directory)
    }

    /// What readers have met so far.
    pub fn statistics(&self) -> Statistics {
        self.reader.statistics()
    }

    /// Reads every member once, on `threads` threads, and compares its length, its CRC-32 and its
    /// local header with the central directory.
    ///
    /// # Errors
    /// The members that are not as they should be, by path; 100 at most.
    pub fn verify(&self, threads: usize, progress: &Progress) -> Result<(), Vec<Failed>> {
        verify::members(&self.index, &self.source, threads, progress)
    }

    /// Looks at the local header of every member, which says all over again what the central
    /// directory says.
    ///
    /// # Errors
    /// The first that says something else.
    pub fn check_headers(&self, threads: usize) -> Result<(), Failed> {
        verify::headers(&self.index, &self.source, threads)
    }
}
