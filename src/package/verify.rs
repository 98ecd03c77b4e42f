//! Reading everything once: members against the central directory, and the digest of the whole.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use aws_lc_rs::digest as sha;
use parking_lot::Mutex;

use super::cursor::{Cursor, Place};
use super::error::ReadError;
use super::index::{Data, Index, NodeId};
use super::local;
use super::source::Source;
use crate::sys::inflate::crc32;

/// Bytes that are read, or decompressed, at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Failures that are listed.
const FAILED_MAX: usize = 100;
/// Members that a thread takes at a time: those of one stretch of the archive.
const BATCH: usize = 64;

/// SHA-256 of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a SHA-256 has 64 hexadecimal digits";
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(wrong);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks(2)) {
            let mut value = 0;
            for digit in pair {
                value = value * 16 + char::from(*digit).to_digit(16).ok_or(wrong)?;
            }
            *byte = value as u8;
        }
        Ok(Self(digest))
    }
}

/// A member that is not what it should be. `Display` names it; the cause is in `source()`.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
pub struct Failed {
    /// Which member.
    pub path: String,
    /// What is wrong with it.
    #[source]
    pub error: ReadError,
}

/// How far a verification is, for who shows it, and a way to end it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that were decompressed or hashed so far.
    pub bytes: AtomicU64,
    /// Set to end early; what was not looked at is then not verified.
    pub stop: AtomicBool,
}

/// SHA-256 of all of `source`.
///
/// # Errors
/// Those of reading it; `Interrupted` if it is told to stop.
pub fn digest(source: &dyn Source, progress: &Progress) -> std::io::Result<Digest> {
    let mut context = sha::Context::new(&sha::SHA256);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < source.len() {
        if progress.stop.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let length = (source.len() - offset).min(CHUNK_BYTES as u64) as usize;
        source.read_exact_at(&mut buffer[..length], offset)?;
        context.update(&buffer[..length]);
        offset += length as u64;
        progress.bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
    Ok(Digest(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")))
}

/// Calls `check` with every member, on several threads, in the order of the archive.
fn each(
    index: &Index,
    threads: usize,
    stop: &AtomicBool,
    check: impl Fn(&mut Cursor, &Data) -> Result<(), ReadError> + Sync,
) -> Vec<Failed> {
    let members: Vec<(NodeId, Data)> = index.members();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        let mut cursor = Cursor::new();
        loop {
            let first = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = members.get(first..) else { return };
            for (id, data) in &batch[..batch.len().min(BATCH)] {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Err(error) = check(&mut cursor, data) else { continue };
                let mut failed = failed.lock();
                if failed.len() < FAILED_MAX {
                    failed.push(Failed { path: index.path(*id), error });
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    failed.into_inner()
}

/// As [`super::Package::verify`].
pub(super) fn members(
    index: &Index,
    source: &Arc<dyn Source>,
    threads: usize,
    progress: &Progress,
) -> Result<(), Vec<Failed>> {
    let failed = each(index, threads, &progress.stop, |cursor, data| {
        let start = local::data_start(&**source, data)?;
        let place = Place { source: &**source, start, bytes: data.compressed };
        member(cursor, data, place, progress)
    });
    if failed.is_empty() { Ok(()) } else { Err(failed) }
}

fn member(
    cursor: &mut Cursor,
    data: &Data,
    place: Place,
    progress: &Progress,
) -> Result<(), ReadError> {
    let mut buffer = vec![0; usize::try_from(data.size).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
    let (mut done, mut crc) = (0, 0);
    if data.deflated {
        cursor.rewind();
    }
    while done < data.size {
        if progress.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let length = (data.size - done).min(CHUNK_BYTES as u64) as usize;
        let chunk = &mut buffer[..length];
        if data.deflated {
            cursor.fill(place, chunk, false)?;
        } else {
            place.source.read_exact_at(chunk, place.start + done)?;
        }
        crc = crc32(crc, chunk);
        done += length as u64;
        progress.bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
    if data.deflated {
        cursor.finish(place)?;
    }
    if crc == data.crc { Ok(()) } else { Err(ReadError::Crc { found: crc, expected: data.crc }) }
}

/// As [`super::Package::check_headers`].
pub(super) fn headers(
    index: &Index,
    source: &Arc<dyn Source>,
    threads: usize,
) -> Result<(), Failed> {
    let stop = AtomicBool::new(false);
    let failed = each(index, threads, &stop, |_, data| {
        let checked = local::data_start(&**source, data).map(drop);
        if checked.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        checked
    });
    failed.into_iter().next().map_or(Ok(()), Err)
}
