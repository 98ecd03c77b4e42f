//! Entries of a central directory and local headers (APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12
//! and 4.5).

const CENTRAL_SIGNATURE: u32 = 0x0201_4b50;
const CENTRAL_BYTES: usize = 46;
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
/// Length of a local header without name and extra fields.
pub(super) const LOCAL_BYTES: usize = 30;

/// General purpose bits (section 4.4.4).
pub(super) mod flag {
    pub(crate) const ENCRYPTED: u16 = 1 << 0;
    pub(crate) const DESCRIPTOR: u16 = 1 << 3;
    pub(crate) const PATCHED: u16 = 1 << 5;
    pub(crate) const STRONG: u16 = 1 << 6;
    pub(crate) const UTF8: u16 = 1 << 11;
    pub(crate) const MASKED: u16 = 1 << 13;
}

/// Tags of extra fields.
pub(super) mod extra {
    pub(crate) const ZIP64: u16 = 0x0001;
    pub(crate) const NTFS: u16 = 0x000a;
    pub(crate) const TIMES: u16 = 0x5455;
    pub(crate) const UNICODE_PATH: u16 = 0x7075;
}

/// An entry of the central directory, as it is written but with the sizes of ZIP64.
#[derive(Clone, Copy, Debug)]
pub(super) struct Central<'a> {
    /// The system that made it: 0 DOS, 3 Unix, 10 Windows, 19 macOS.
    pub(super) host: u8,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) dos_time: u16,
    pub(super) dos_date: u16,
    pub(super) crc: u32,
    pub(super) compressed: u64,
    pub(super) size: u64,
    pub(super) attributes: u32,
    pub(super) header: u64,
    pub(super) name: &'a [u8],
    pub(super) extra: &'a [u8],
}

/// A local header. Sizes are those of ZIP64 if it has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local<'a> {
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) crc: u32,
    pub(super) compressed: u64,
    pub(super) size: u64,
    pub(super) name: &'a [u8],
}

/// Reads the entry at the beginning of `bytes`, and says how long it is.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(super) fn central(bytes: &[u8]) -> Result<(Central<'_>, usize), &'static str> {
    const CUT: &str = "is cut off";
    let fixed = bytes.get(..CENTRAL_BYTES).ok_or(CUT)?;
    if u32_at(fixed, 0) != CENTRAL_SIGNATURE {
        return Err("is not an entry");
    }
    let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
    let length = CENTRAL_BYTES + name + extra + comment;
    let rest = bytes.get(CENTRAL_BYTES..length).ok_or(CUT)?;
    let (name, rest) = rest.split_at(name);
    let extra = &rest[..extra];
    if !extra_is_sound(extra) {
        return Err("has extra fields that are cut off");
    }
    let disk = u16_at(fixed, 34);
    if disk != 0 && disk != 0xffff {
        return Err("is in another file");
    }
    let mut wide = Zip64::of(extra);
    let size = wide.value(u32_at(fixed, 24))?;
    let compressed = wide.value(u32_at(fixed, 20))?;
    let header = wide.value(u32_at(fixed, 42))?;
    let entry = Central {
        host: fixed[5],
        flags: u16_at(fixed, 8),
        method: u16_at(fixed, 10),
        dos_time: u16_at(fixed, 12),
        dos_date: u16_at(fixed, 14),
        crc: u32_at(fixed, 16),
        compressed,
        size,
        attributes: u32_at(fixed, 38),
        header,
        name,
        extra,
    };
    Ok((entry, length))
}

/// How long a local header is with its name and extra fields, from its fixed part.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(super) fn local_length(fixed: &[u8; LOCAL_BYTES]) -> Result<usize, &'static str> {
    if u32_at(fixed, 0) != LOCAL_SIGNATURE {
        return Err("is not there");
    }
    Ok(LOCAL_BYTES + usize::from(u16_at(fixed, 26)) + usize::from(u16_at(fixed, 28)))
}

/// Reads a local header, which is all of `bytes`.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(super) fn local(bytes: &[u8]) -> Result<Local<'_>, &'static str> {
    let fixed = bytes.first_chunk().ok_or("is cut off")?;
    if local_length(fixed)? != bytes.len() {
        return Err("is cut off");
    }
    let (name, extra) = bytes[LOCAL_BYTES..].split_at(usize::from(u16_at(fixed, 26)));
    if !extra_is_sound(extra) {
        return Err("has extra fields that are cut off");
    }
    let mut wide = Zip64::of(extra);
    let size = wide.value(u32_at(fixed, 22))?;
    let compressed = wide.value(u32_at(fixed, 18))?;
    Ok(Local {
        flags: u16_at(fixed, 6),
        method: u16_at(fixed, 8),
        crc: u32_at(fixed, 14),
        compressed,
        size,
        name,
    })
}

/// The values of the ZIP64 field, which are there in order for those that do not fit (section
/// 4.5.3).
struct Zip64<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Zip64<'a> {
    fn of(extra: &'a [u8]) -> Self {
        Self { rest: field(extra, extra::ZIP64) }
    }

    /// A value that stands there if the short one does not hold it.
    fn value(&mut self, short: u32) -> Result<u64, &'static str> {
        let Some(rest) = self.rest.filter(|_| short == u32::MAX) else { return Ok(short.into()) };
        let (value, rest) = rest.split_first_chunk().ok_or("has a ZIP64 field that is cut off")?;
        self.rest = Some(rest);
        Ok(u64::from_le_bytes(*value))
    }
}

/// The first extra field with this tag.
pub(super) fn field(extra: &[u8], tag: u16) -> Option<&[u8]> {
    fields(extra).find(|(found, _)| *found == tag).map(|(_, value)| value)
}

fn fields(mut extra: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = extra.split_first_chunk::<4>()?;
        let value = rest.get(..usize::from(u16_at(head, 2)))?;
        extra = &rest[value.len()..];
        Some((u16_at(head, 0), value))
    })
}

/// Whether extra fields fill their place. Up to three zeros or so after them are what some programs
/// align members with, and say nothing.
fn extra_is_sound(extra: &[u8]) -> bool {
    let used: usize = fields(extra).map(|(_, value)| value.len() + 4).sum();
    extra[used..].len() < 4
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
