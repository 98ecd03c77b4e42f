//! The CRC-32 of a member whose parts come in any order.

use std::collections::BTreeMap;

use super::error::ReadError;
use super::index::Data;
use crate::sys::inflate::{crc32, crc32_combine};

/// Parts that wait for those before them. More are forgotten: then the member is not checked.
const WAITING_MAX: usize = 64;

/// What is known of a member's CRC-32.
#[derive(Debug, Default)]
pub(super) struct Checksum {
    /// Of the bytes before `next`.
    crc: u32,
    next: u64,
    /// Parts after that: offset, to CRC-32 and length.
    waiting: BTreeMap<u64, (u32, u64)>,
}

impl Checksum {
    /// Takes the bytes at `offset` into account.
    ///
    /// # Errors
    /// All of the member was, and it is wrong.
    pub(super) fn add(&mut self, data: &Data, offset: u64, bytes: &[u8]) -> Result<(), ReadError> {
        if offset == self.next {
            self.crc = crc32(self.crc, bytes);
            self.next += bytes.len() as u64;
            while let Some((crc, length)) = self.waiting.remove(&self.next) {
                self.crc = crc32_combine(self.crc, crc, length);
                self.next += length;
            }
        } else if offset > self.next && self.waiting.len() < WAITING_MAX {
            self.waiting.insert(offset, (crc32(0, bytes), bytes.len() as u64));
        }
        if self.next < data.size || self.crc == data.crc {
            return Ok(());
        }
        Err(ReadError::Crc { found: self.crc, expected: data.crc })
    }

    /// Where bytes are of use to it.
    pub(super) fn wants(&self, offset: u64) -> bool {
        offset >= self.next
    }
}
