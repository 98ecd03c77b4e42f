//! From a central directory to an [`Index`]: every rule that needs no more than the directory.

use aws_lc_rs::digest as sha;

use super::end::{self, Directory};
use super::error::Refusal;
use super::index::{Builder, Content, Data, Entry, Index, Time};
use super::limits::Limits;
use super::name;
use super::record::{self, Central, LOCAL_BYTES, extra, field, flag, u32_at, u64_at};
use super::source::Source;
use super::verify::Digest;
use crate::sys::inflate::crc32;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const UNIX: u8 = 3;
const MACOS: u8 = 19;

/// Methods of section 4.4.5 that have a name.
const METHODS: &[(u16, &str)] = &[
    (1, "shrink"),
    (2, "reduce"),
    (3, "reduce"),
    (4, "reduce"),
    (5, "reduce"),
    (6, "implode"),
    (9, "deflate64"),
    (10, "PKWARE DCL implode"),
    (12, "bzip2"),
    (14, "lzma"),
    (16, "IBM CMPSC"),
    (18, "IBM TERSE"),
    (19, "IBM LZ77"),
    (20, "zstd, by its old number"),
    (93, "zstd"),
    (94, "mp3"),
    (95, "xz"),
    (96, "jpeg"),
    (97, "WavPack"),
    (98, "PPMd"),
    (99, "AES encryption"),
];

/// Reads the central directory of `source`.
///
/// # Errors
/// Why the archive is refused.
pub(super) fn read(source: &dyn Source, limits: &Limits) -> Result<(Index, Directory), Refusal> {
    let directory = end::find(source, limits)?;
    let length = usize::try_from(directory.bytes)
        .map_err(|_| Refusal::End("the central directory does not fit into memory"))?;
    let mut bytes = vec![0; length];
    source.read_exact_at(&mut bytes, directory.offset).map_err(Refusal::Read)?;
    let mut builder = parse(&bytes, directory, limits)?;
    forbid_overlaps(&mut builder, directory.offset)?;
    Ok((builder.build(limits)?, directory))
}

/// What tells an archive from others: it names every member, with its place, length and CRC-32.
///
/// # Errors
/// Those of the source.
pub(super) fn identity(source: &dyn Source, directory: Directory) -> std::io::Result<Digest> {
    let mut bytes = vec![0; directory.bytes as usize];
    source.read_exact_at(&mut bytes, directory.offset)?;
    let mut context = sha::Context::new(&sha::SHA256);
    context.update(&source.len().to_le_bytes());
    context.update(&directory.offset.to_le_bytes());
    context.update(&bytes);
    Ok(Digest(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")))
}

fn parse(bytes: &[u8], directory: Directory, limits: &Limits) -> Result<Builder, Refusal> {
    let mut builder = Builder::new(bytes.len(), directory.entries);
    let mut rest = bytes;
    let mut total: u64 = 0;
    let mut number = 0;
    while !rest.is_empty() {
        if number == directory.entries {
            return Err(Refusal::End("the central directory has more entries than it says"));
        }
        let refused = |problem| Refusal::Record { number, problem };
        let (record, length) = record::central(rest).map_err(refused)?;
        let entry = entry(&record, &mut builder.paths, limits)?;
        if let Content::File(data) | Content::Symlink(data) = &entry.content {
            total = total.saturating_add(data.size);
            if total > limits.total_bytes_max {
                let (found, limit) = (total, limits.total_bytes_max);
                return Err(Refusal::TotalBytes { found, limit });
            }
        }
        // "./" says only that there is a root.
        if !entry.path.is_empty() {
            builder.entries.push(entry);
        }
        rest = &rest[length..];
        number += 1;
    }
    if number != directory.entries {
        return Err(Refusal::End("the central directory has fewer entries than it says"));
    }
    Ok(builder)
}

/// The entry of a record, whose path is appended to `paths`.
fn entry(record: &Central, paths: &mut Vec<u8>, limits: &Limits) -> Result<Entry, Refusal> {
    let shown = || String::from_utf8_lossy(record.name).into_owned();
    let refused = |problem| Refusal::Name { name: shown(), problem };
    let decoded = name::decode(record).map_err(refused)?;
    let start = paths.len();
    let is_directory = name::append(&decoded, paths).map_err(refused)?;
    let path = start..paths.len();

    let refused = |problem| Refusal::Member { name: decoded.clone().into_owned(), problem };
    if record.flags & (flag::ENCRYPTED | flag::STRONG | flag::MASKED) != 0 {
        return Err(refused("is encrypted; packages are not: what lies on disk is, by the volume"));
    }
    if record.flags & flag::PATCHED != 0 {
        return Err(refused("is a patch of another file"));
    }
    let deflated = match record.method {
        STORED => false,
        DEFLATED => true,
        other => {
            let known = METHODS.iter().find(|(number, _)| *number == other);
            let method = known.map_or(format!("method {other}"), |(_, name)| (*name).to_owned());
            return Err(Refusal::Method { name: decoded.into_owned(), method });
        }
    };
    let kind = kind(record, is_directory).map_err(refused)?;
    sizes(record, deflated, kind, limits, &decoded)?;
    let data = Data {
        header: record.header,
        compressed: record.compressed,
        size: record.size,
        crc: record.crc,
        name_crc: crc32(0, record.name),
        name_bytes: record.name.len() as u16,
        slack: 0,
        deflated,
        described: record.flags & flag::DESCRIPTOR != 0,
    };
    Ok(Entry {
        path,
        permissions: permissions(record, kind),
        mtime: mtime(record),
        content: match kind {
            libc::S_IFDIR => Content::Directory { first: 0, count: 0, directories: 0 },
            libc::S_IFLNK => Content::Symlink(data),
            _ => Content::File(data),
        },
        data,
    })
}

/// The type, as in a mode.
fn kind(record: &Central, is_directory: bool) -> Result<u32, &'static str> {
    let written = match record.host {
        UNIX | MACOS => (record.attributes >> 16) & libc::S_IFMT,
        _ => 0,
    };
    // All ones, which some jars have: not known.
    let written = if written == libc::S_IFMT { 0 } else { written };
    match (written, is_directory) {
        // Some makers of jars give directories the mode of a file; the slash decides, as for unzip.
        (0 | libc::S_IFDIR | libc::S_IFREG, true) => Ok(libc::S_IFDIR),
        (0 | libc::S_IFREG, false) => Ok(libc::S_IFREG),
        (libc::S_IFLNK, false) => Ok(libc::S_IFLNK),
        (libc::S_IFDIR, false) | (_, true) => {
            Err("is a directory by its name, or by its mode, and not by the other")
        }
        _ => Err("is a device, FIFO or socket"),
    }
}

/// Sizes that contradict each other, or a limit.
fn sizes(
    record: &Central,
    deflated: bool,
    kind: u32,
    limits: &Limits,
    name: &str,
) -> Result<(), Refusal> {
    let Central { compressed, size, .. } = *record;
    let refused = |problem| Err(Refusal::Member { name: name.to_owned(), problem });
    if kind == libc::S_IFDIR && size != 0 {
        return refused("is a directory with contents");
    }
    if kind == libc::S_IFLNK && size > Limits::TARGET_BYTES_MAX {
        return refused("is a link whose target is longer than 4095 bytes");
    }
    if !deflated && compressed != size {
        return refused("is stored, and its two sizes differ");
    }
    if kind != libc::S_IFDIR && size == 0 && record.crc != 0 {
        return refused("is empty, and has the CRC-32 of something else");
    }
    if i64::try_from(size).is_err() || i64::try_from(compressed).is_err() {
        return refused("is larger than a file can be");
    }
    // The end of a block takes bits that make nothing.
    if size > compressed.saturating_mul(Limits::RATIO_DEFLATE) {
        return refused("is larger than its compressed size can make it");
    }
    let ratio = size / compressed.max(1);
    if size > Limits::RATIO_FREE_BYTES && ratio > limits.ratio_max {
        return Err(Refusal::Ratio { name: name.to_owned(), ratio, limit: limits.ratio_max });
    }
    Ok(())
}

/// Permission bits. Those that give somebody else's rights are left out, as unzip does.
fn permissions(record: &Central, kind: u32) -> u16 {
    let mode = record.attributes >> 16;
    let is_other = mode & libc::S_IFMT != 0 && mode & libc::S_IFMT != kind;
    let is_unix = matches!(record.host, UNIX | MACOS) && mode != 0 && !is_other;
    match kind {
        libc::S_IFLNK => 0o777,
        _ if is_unix => (mode & 0o777) as u16,
        libc::S_IFDIR => 0o755,
        // The DOS attribute "read-only".
        _ if record.attributes & 1 != 0 => 0o444,
        _ => 0o644,
    }
}

/// When it was changed: to the second or better in UTC where it says so, else the time of day that
/// DOS programs write, taken as UTC.
fn mtime(record: &Central) -> Time {
    if let Some([flags, seconds @ ..]) = field(record.extra, extra::TIMES) {
        if let (1, Some(seconds)) = (flags & 1, seconds.first_chunk()) {
            return Time { seconds: i32::from_le_bytes(*seconds).into(), nanoseconds: 0 };
        }
    }
    // Reserved, tag 1, its length, and three times of 100 ns since 1601 (section 4.5.5).
    if let Some(value) = field(record.extra, extra::NTFS).filter(|value| value.len() >= 16) {
        if u32_at(value, 4) == 24 << 16 | 1 {
            let ticks = i128::from(u64_at(value, 8)) - 116_444_736_000_000_000;
            let seconds = ticks.div_euclid(10_000_000) as i64;
            let nanoseconds = ticks.rem_euclid(10_000_000) as u32 * 100;
            return Time { seconds, nanoseconds };
        }
    }
    dos_time(record.dos_date, record.dos_time)
}

fn dos_time(date: u16, time: u16) -> Time {
    let [year, month, day] = [1980 + (date >> 9), (date >> 5) & 15, date & 31];
    let [hour, minute, second] = [time >> 11, (time >> 5) & 63, (time & 31) * 2];
    let parts = [month, day, hour, minute, second].map(|part| part as i8);
    let [month, day, hour, minute, second] = parts;
    let seconds = jiff::civil::DateTime::new(year as i16, month, day, hour, minute, second, 0)
        .and_then(|time| jiff::tz::TimeZone::UTC.to_timestamp(time))
        .map_or(DOS_EPOCH, |time| time.as_second());
    Time { seconds, nanoseconds: 0 }
}

/// 1980-01-01, for dates that are none: some programs write zeros.
const DOS_EPOCH: i64 = 315_532_800;

/// Every member has bytes of its own, between the beginning and the central directory. How many of
/// them its local header may have is kept for [`super::local`].
fn forbid_overlaps(builder: &mut Builder, directory: u64) -> Result<(), Refusal> {
    let mut order: Vec<u32> = (0..builder.entries.len() as u32).collect();
    order.sort_unstable_by_key(|at| builder.entries[*at as usize].data.header);
    for (position, at) in order.iter().enumerate() {
        let next = order.get(position + 1);
        let end = next.map_or(directory, |next| builder.entries[*next as usize].data.header);
        let data = builder.entries[*at as usize].data;
        let least = LOCAL_BYTES as u64 + u64::from(data.name_bytes);
        let used = data.header.checked_add(least).and_then(|end| end.checked_add(data.compressed));
        let Some(slack) = used.and_then(|used| end.checked_sub(used)) else {
            let name = builder.path(*at);
            let Some(next) = next else {
                let problem = "does not end before the central directory";
                return Err(Refusal::Member { name, problem });
            };
            let (second, problem) = (builder.path(*next), "overlap");
            return Err(Refusal::Collision { first: name, second, problem });
        };
        builder.entries[*at as usize].set_slack(u32::try_from(slack).unwrap_or(u32::MAX));
    }
    Ok(())
}
