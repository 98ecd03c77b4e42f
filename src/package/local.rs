//! From an entry of the central directory to its data: the local header is in between, and must say
//! the same.

use super::error::ReadError;
use super::index::Data;
use super::record::{self, LOCAL_BYTES, flag};
use super::source::Source;
use crate::sys::inflate::crc32;

/// Bytes that are read at once: most local headers fit.
const GUESS_BYTES: usize = 256;
/// Method numbers, as in [`super::archive`].
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Reads and checks the local header of a member, and returns the offset of its data.
///
/// # Errors
/// The source failed, or the header says something else than the central directory.
pub(super) fn data_start(source: &dyn Source, data: &Data) -> Result<u64, ReadError> {
    let mut buffer = [0; GUESS_BYTES];
    let there = source.len().saturating_sub(data.header);
    let length = usize::try_from(there).unwrap_or(GUESS_BYTES).min(GUESS_BYTES);
    source.read_exact_at(&mut buffer[..length], data.header)?;
    let fixed: &[u8; LOCAL_BYTES] =
        buffer[..length].first_chunk().ok_or(ReadError::LocalHeader("is cut off"))?;
    let needed = record::local_length(fixed).map_err(ReadError::LocalHeader)?;
    let mut longer;
    let header = match buffer[..length].get(..needed) {
        Some(header) => header,
        None => {
            longer = vec![0; needed];
            source.read_exact_at(&mut longer, data.header)?;
            &longer
        }
    };
    check(header, data).map_err(ReadError::LocalHeader)?;
    Ok(data.header + needed as u64)
}

fn check(header: &[u8], data: &Data) -> Result<(), &'static str> {
    let local = record::local(header)?;
    if local.name.len() != usize::from(data.name_bytes) || crc32(0, local.name) != data.name_crc {
        return Err("has another name than the central directory");
    }
    if local.method != if data.deflated { DEFLATED } else { STORED } {
        return Err("has another method than the central directory");
    }
    if local.flags & (flag::ENCRYPTED | flag::STRONG | flag::MASKED | flag::PATCHED) != 0 {
        return Err("says that the member is encrypted, which the central directory does not");
    }
    let says = (local.crc, local.compressed, local.size);
    let is_same = says == (data.crc, data.compressed, data.size);
    // Who writes to a pipe does not know them yet, and leaves them out or writes what it guesses.
    let is_described = data.described && local.flags & flag::DESCRIPTOR != 0;
    let is_open = |value: u64| value == 0 || value == u64::from(u32::MAX);
    let is_left_out = local.crc == 0 && is_open(local.compressed) && is_open(local.size);
    if !(is_same || (is_described && is_left_out)) {
        return Err("has other sizes, or another CRC-32, than the central directory");
    }
    let extra = header.len() - LOCAL_BYTES - local.name.len();
    if extra as u64 > u64::from(data.slack) {
        return Err("does not end before what follows the member");
    }
    Ok(())
}
