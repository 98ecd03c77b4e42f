//! Seek points that outlive a mount: a table of where reading can begin inside of members, and what
//! was decompressed before each place.
//!
//! | Bytes | What |
//! | --- | --- |
//! | 16 | [`MAGIC`] |
//! | 32 | which archive: [`super::archive::identity`] |
//! | 8 | length of the table |
//! | | the table |
//! | | the windows: what was decompressed before each point |
//!
//! The table has for each member the offset of its local header (8 bytes) and how many points it
//! has (4), then for each point the bytes before it, decompressed (8), the bits before it,
//! compressed (8), where its window is in the file (8), and how long that is (4). Numbers are
//! little-endian.
//!
//! Whoever keeps the bytes vouches for them: in a volume they are sealed. They are looked at all
//! the same, so that what is damaged makes reading slow and not wrong.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::cursor::{Point, Points, Window};
use super::index::Data;
use super::record::{u32_at, u64_at};
use super::source::Source;
use super::verify::Digest;
use crate::sys::inflate::WINDOW_BYTES;

const MAGIC: &[u8; 16] = b"atrest seeks  1\n";
const HEAD_BYTES: usize = 16 + 32 + 8;
const MEMBER_BYTES: usize = 8 + 4;
const POINT_BYTES: usize = 8 + 8 + 8 + 4;
/// Longest table that is read: points of 2 TiB.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// Seek points that were kept; their windows are read when they are needed.
pub(super) struct Kept {
    source: Arc<dyn Source>,
    /// By the offset of the member's local header.
    members: HashMap<u64, Points>,
}

impl Kept {
    /// Reads the table.
    ///
    /// # Errors
    /// The source failed; what is there is no table, or of another archive.
    pub(super) fn read(source: Arc<dyn Source>, identity: Digest) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        source.read_exact_at(&mut head, 0)?;
        if head[..16] != *MAGIC {
            return Err(damaged("it is something else"));
        }
        if head[16..48] != identity.0 {
            return Err(damaged("it belongs to another package"));
        }
        let length = u64_at(&head, 48);
        if length > TABLE_BYTES_MAX || length > source.len() {
            return Err(damaged("its table is too long"));
        }
        let mut table = vec![0; length as usize];
        source.read_exact_at(&mut table, HEAD_BYTES as u64)?;
        let mut members = HashMap::new();
        let mut rest = table.as_slice();
        while !rest.is_empty() {
            let (header, points, after) = member(rest, source.len())?;
            members.insert(header, points);
            rest = after;
        }
        Ok(Self { source, members })
    }

    /// The points of a member.
    pub(super) fn of(&self, data: &Data) -> &[Arc<Point>] {
        let points = self.members.get(&data.header).map_or(&[][..], Vec::as_slice);
        let fits =
            |point: &Arc<Point>| point.output < data.size && point.input_bits / 8 < data.compressed;
        if points.last().is_some_and(fits) { points } else { &[] }
    }

    /// What was decompressed before a point of these.
    ///
    /// # Errors
    /// The source failed.
    pub(super) fn window(&self, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut window = vec![0; bytes];
        self.source.read_exact_at(&mut window, at)?;
        Ok(window)
    }

    /// All members that have points.
    pub(super) fn members(&self) -> impl Iterator<Item = (u64, &[Arc<Point>])> {
        self.members.iter().map(|(header, points)| (*header, points.as_slice()))
    }
}

/// The first member of a table, its points, and what follows it.
fn member(table: &[u8], file_bytes: u64) -> io::Result<(u64, Points, &[u8])> {
    let cut = || damaged("its table is cut off");
    let (head, rest) = table.split_first_chunk::<MEMBER_BYTES>().ok_or_else(cut)?;
    let (header, count) = (u64_at(head, 0), u32_at(head, 8) as usize);
    let bytes = count.checked_mul(POINT_BYTES).ok_or_else(cut)?;
    let (records, rest) = rest.split_at_checked(bytes).ok_or_else(cut)?;
    let mut points = Points::with_capacity(count);
    for record in records.chunks_exact(POINT_BYTES) {
        let (output, input_bits) = (u64_at(record, 0), u64_at(record, 8));
        let (at, bytes) = (u64_at(record, 16), u32_at(record, 24) as usize);
        let is_after =
            points.last().is_none_or(|last| last.output < output && last.input_bits < input_bits);
        let is_there = at.checked_add(bytes as u64).is_some_and(|end| end <= file_bytes);
        // As much as there is before it, up to the longest window.
        let is_whole = bytes as u64 == output.min(WINDOW_BYTES as u64);
        if !(is_after && is_there && is_whole) {
            return Err(damaged("its table contradicts itself"));
        }
        let window = Window::Kept { at, bytes };
        points.push(Arc::new(Point { output, input_bits, window }));
    }
    Ok((header, points, rest))
}

fn damaged(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// Writes the points of members, by the offsets of their local headers; windows that are not in
/// memory are those of `kept`.
///
/// # Errors
/// Nothing can be written; windows that were kept cannot be read.
pub(super) fn write(
    members: &[(u64, Points)],
    kept: Option<&Kept>,
    identity: Digest,
    output: &mut dyn Write,
) -> io::Result<()> {
    let count: usize = members.iter().map(|(_, points)| points.len()).sum();
    let length = members.len() * MEMBER_BYTES + count * POINT_BYTES;
    output.write_all(MAGIC)?;
    output.write_all(&identity.0)?;
    output.write_all(&(length as u64).to_le_bytes())?;
    let mut at = (HEAD_BYTES + length) as u64;
    for (header, points) in members {
        output.write_all(&header.to_le_bytes())?;
        output.write_all(&(points.len() as u32).to_le_bytes())?;
        for point in points {
            let bytes = point.window.len();
            for value in [point.output, point.input_bits, at] {
                output.write_all(&value.to_le_bytes())?;
            }
            output.write_all(&(bytes as u32).to_le_bytes())?;
            at += bytes as u64;
        }
    }
    for point in members.iter().flat_map(|(_, points)| points) {
        match (&point.window, kept) {
            (Window::Memory(window), _) => output.write_all(window)?,
            (Window::Kept { at, bytes }, Some(kept)) => {
                output.write_all(&kept.window(*at, *bytes)?)?;
            }
            (Window::Kept { .. }, None) => return Err(damaged("what was kept is gone")),
        }
    }
    output.flush()
}
