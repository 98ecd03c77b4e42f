//! The end of an archive: where its central directory is (APPNOTE.TXT 6.3.10, sections 4.3.14 to
//! 4.3.16).

use super::error::Refusal;
use super::limits::Limits;
use super::record::{u16_at, u32_at, u64_at};
use super::source::Source;

const END_SIGNATURE: u32 = 0x0605_4b50;
const END_BYTES: usize = 22;
const COMMENT_BYTES_MAX: usize = 0xffff;
const LOCATOR_SIGNATURE: u32 = 0x0706_4b50;
const LOCATOR_BYTES: usize = 20;
const END64_SIGNATURE: u32 = 0x0606_4b50;
const END64_BYTES: usize = 56;

/// First bytes, where they are, and whose they are.
const OTHER_FORMATS: &[(usize, &[u8], &str)] = &[
    (0, b"\x1f\x8b", "a GZIP file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an XZ file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"hsqs", "a SquashFS image"),
    (257, b"ustar", "a TAR archive"),
];

/// Where the central directory is, and how many entries it says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

/// Finds the central directory.
pub(super) fn find(source: &dyn Source, limits: &Limits) -> Result<Directory, Refusal> {
    let tail_bytes =
        (END_BYTES + COMMENT_BYTES_MAX).min(usize::try_from(source.len()).unwrap_or(usize::MAX));
    let tail_start = source.len() - tail_bytes as u64;
    let mut tail = vec![0; tail_bytes];
    source.read_exact_at(&mut tail, tail_start).map_err(Refusal::Read)?;
    let mut found = None;
    let mut refused = None;
    // The comment is the last thing of an archive, so the end record is where its length says; a
    // comment that looks like one is told apart by what it points to.
    for place in (0..=tail.len().saturating_sub(END_BYTES)).rev() {
        let Some(record) = tail.get(place..).filter(|record| is_end(record)) else { continue };
        match directory(source, record, tail_start + place as u64) {
            Ok(_) if found.is_some() => return Err(Refusal::TwoEnds),
            Ok(directory) => found = Some(directory),
            Err(refusal @ Refusal::Read(_)) => return Err(refusal),
            // What is furthest from the end is least likely to be a comment.
            Err(refusal) => refused = Some(refusal),
        }
    }
    let Some(directory) = found else {
        return Err(match refused {
            Some(refusal) => refusal,
            None => other_format(source)?,
        });
    };
    if directory.entries > limits.entries_max {
        return Err(Refusal::Entries { found: directory.entries, limit: limits.entries_max });
    }
    if directory.bytes > limits.directory_bytes_max {
        let (found, limit) = (directory.bytes, limits.directory_bytes_max);
        return Err(Refusal::DirectoryBytes { found, limit });
    }
    Ok(directory)
}

/// Whether an end record begins here whose comment ends where the archive does.
fn is_end(record: &[u8]) -> bool {
    record.len() >= END_BYTES
        && u32_at(record, 0) == END_SIGNATURE
        && usize::from(u16_at(record, 20)) == record.len() - END_BYTES
}

/// What is there instead of a ZIP.
fn other_format(source: &dyn Source) -> Result<Refusal, Refusal> {
    let mut head = [0; 262];
    let length = head.len().min(usize::try_from(source.len()).unwrap_or(usize::MAX));
    source.read_exact_at(&mut head[..length], 0).map_err(Refusal::Read)?;
    let known = OTHER_FORMATS.iter().find(|(at, magic, _)| head[*at..].starts_with(magic));
    Ok(known.map_or(Refusal::NoEnd, |(_, _, name)| Refusal::OtherFormat(name)))
}

/// What the end record at `place` says, with that of ZIP64 if there is one.
fn directory(source: &dyn Source, record: &[u8], place: u64) -> Result<Directory, Refusal> {
    let (disk, directory_disk) = (u16_at(record, 4), u16_at(record, 6));
    let (entries_here, entries) = (u16_at(record, 8), u16_at(record, 10));
    let (bytes, offset) = (u32_at(record, 12), u32_at(record, 16));
    let short = Directory { offset: offset.into(), bytes: bytes.into(), entries: entries.into() };
    let Some((long, place)) = zip64(source, place)? else {
        if disk != 0 || directory_disk != 0 || entries_here != entries {
            return Err(Refusal::Split);
        }
        return ends_at(short, place);
    };
    let same = |short: u64, mask: u64, long: u64| short == mask || short == long;
    let agree = same(short.entries, 0xffff, long.entries)
        && same(short.bytes, 0xffff_ffff, long.bytes)
        && same(short.offset, 0xffff_ffff, long.offset);
    if !agree {
        return Err(Refusal::End("the one of ZIP64 says something else"));
    }
    ends_at(long, place)
}

/// The directory must end where the records after it begin.
fn ends_at(directory: Directory, place: u64) -> Result<Directory, Refusal> {
    let end = directory.offset.checked_add(directory.bytes);
    match end {
        Some(end) if end == place => Ok(directory),
        Some(end) if end < place => Err(Refusal::Prefix(place - end)),
        _ => Err(Refusal::End("the central directory does not fit before it")),
    }
}

/// The end record of ZIP64, if the one at `place` has one before it, and where it begins.
fn zip64(source: &dyn Source, place: u64) -> Result<Option<(Directory, u64)>, Refusal> {
    let Some(locator_place) = place.checked_sub(LOCATOR_BYTES as u64) else { return Ok(None) };
    let mut locator = [0; LOCATOR_BYTES];
    source.read_exact_at(&mut locator, locator_place).map_err(Refusal::Read)?;
    if u32_at(&locator, 0) != LOCATOR_SIGNATURE {
        return Ok(None);
    }
    if u32_at(&locator, 4) != 0 || u32_at(&locator, 16) > 1 {
        return Err(Refusal::Split);
    }
    let outside = Refusal::End("the one of ZIP64 is not where it should be");
    let end_place = u64_at(&locator, 8);
    let mut record = [0; END64_BYTES];
    let room = locator_place.checked_sub(END64_BYTES as u64);
    if room.is_none_or(|room| end_place > room) {
        // Its place does not count what stands before the archive.
        return Err(outside);
    }
    source.read_exact_at(&mut record, end_place).map_err(Refusal::Read)?;
    let length = u64_at(&record, 4).checked_add(12);
    let end = length.and_then(|length| end_place.checked_add(length));
    if u32_at(&record, 0) != END64_SIGNATURE || end != Some(locator_place) {
        return Err(outside);
    }
    let (entries_here, entries) = (u64_at(&record, 24), u64_at(&record, 32));
    if u32_at(&record, 16) != 0 || u32_at(&record, 20) != 0 || entries_here != entries {
        return Err(Refusal::Split);
    }
    let directory = Directory { offset: u64_at(&record, 48), bytes: u64_at(&record, 40), entries };
    Ok(Some((directory, end_place)))
}
