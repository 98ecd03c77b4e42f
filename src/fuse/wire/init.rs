//! The first exchange: version, sizes and what both sides can do.

use super::abi::{self, init};
use super::request::{Dialect, Fields, Header, Malformed};

/// Bytes of the reply, `struct fuse_init_out`.
pub const INIT_BYTES: usize = 64;
/// Share of the background requests from which on the mount counts as congested, in quarters.
const CONGESTED_QUARTERS: u16 = 3;

/// What the kernel offers.
///
/// ```text
/// offset size field
///      0    4 major version
///      4    4 minor version
///      8    4 longest readahead
///     12    4 flags
///     16    4 more flags, from 7.36 on and if a flag says so
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Major and minor version.
    pub version: (u32, u32),
    /// Longest readahead in bytes.
    pub readahead_bytes: u32,
    /// All flags.
    pub flags: u64,
}

impl Offer {
    /// Takes the request apart, without its header.
    ///
    /// # Errors
    /// It is too short.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let version = (fields.u32()?, fields.u32()?);
        if version.0 != abi::MAJOR {
            return Ok(Self { version, readahead_bytes: 0, flags: 0 });
        }
        let (readahead_bytes, low) = (fields.u32()?, u64::from(fields.u32()?));
        let high = if low & init::EXT != 0 { u64::from(fields.u32()?) } else { 0 };
        Ok(Self { version, readahead_bytes, flags: low | high << 32 })
    }
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Flags; those that are not offered are not asked for.
    pub flags: u64,
    /// Longest WRITE and READ in bytes.
    pub request_bytes: u32,
    /// Longest readahead in bytes.
    pub readahead_bytes: u32,
    /// Requests that may be sent ahead of the answers.
    pub background_max: u16,
    /// Bytes of a page of this machine.
    pub page_bytes: u32,
}

/// What both sides do from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The minor version.
    pub minor: u32,
    /// Flags.
    pub flags: u64,
    /// Longest readahead in bytes.
    pub readahead_bytes: u32,
    wishes: Wishes,
}

/// What an INIT request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Both sides understand each other.
    Agreed(Agreement),
    /// The kernel speaks a newer protocol: it is told ours, and asks again.
    AskAgain,
    /// The kernel is too old.
    TooOld,
}

/// What comes of an offer.
pub fn answer(offer: &Offer, wishes: Wishes) -> Answer {
    let (major, minor) = offer.version;
    if major > abi::MAJOR {
        return Answer::AskAgain;
    }
    if major < abi::MAJOR || minor < abi::MINOR_MIN {
        return Answer::TooOld;
    }
    Answer::Agreed(Agreement {
        minor: minor.min(abi::MINOR),
        flags: offer.flags & (wishes.flags | init::EXT | init::MAX_PAGES),
        readahead_bytes: offer.readahead_bytes.min(wishes.readahead_bytes),
        wishes,
    })
}

impl Agreement {
    /// Whether a flag was agreed on.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// The longest that a request or a reply is, without headers.
    pub fn payload_bytes(&self) -> usize {
        let Wishes { request_bytes, page_bytes, .. } = self.wishes;
        request_bytes.next_multiple_of(page_bytes.max(1)) as usize
    }

    /// How requests look.
    pub fn dialect(&self) -> Dialect {
        Dialect {
            setxattr_ext: self.has(init::SETXATTR_EXT),
            kill_suidgid: self.has(init::HANDLE_KILLPRIV_V2),
        }
    }

    /// ```text
    /// offset size field
    ///      0    4 major version
    ///      4    4 minor version
    ///      8    4 longest readahead
    ///     12    4 flags
    ///     16    2 background requests at most
    ///     18    2 congested from so many on
    ///     20    4 longest WRITE
    ///     24    4 times are exact to so many nanoseconds
    ///     28    2 pages of a request at most
    ///     30    2 alignment of DAX mappings
    ///     32    4 more flags
    ///     36   28 unused
    /// ```
    pub fn encode(&self) -> [u8; INIT_BYTES] {
        let Wishes { request_bytes, background_max, page_bytes, .. } = self.wishes;
        let congested = background_max / 4 * CONGESTED_QUARTERS;
        let pages = request_bytes.div_ceil(page_bytes.max(1));
        let mut bytes = [0; INIT_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &abi::MAJOR.to_ne_bytes());
        put(4, &self.minor.to_ne_bytes());
        put(8, &self.readahead_bytes.to_ne_bytes());
        put(12, &(self.flags as u32).to_ne_bytes());
        put(16, &background_max.to_ne_bytes());
        put(18, &congested.to_ne_bytes());
        put(20, &request_bytes.to_ne_bytes());
        put(24, &1_u32.to_ne_bytes());
        put(28, &u16::try_from(pages).unwrap_or(u16::MAX).to_ne_bytes());
        put(32, &((self.flags >> 32) as u32).to_ne_bytes());
        bytes
    }
}

/// The reply of [`Answer::AskAgain`]: our version, and nothing else.
pub fn encode_version() -> [u8; INIT_BYTES] {
    let mut bytes = [0; INIT_BYTES];
    bytes[..4].copy_from_slice(&abi::MAJOR.to_ne_bytes());
    bytes[4..8].copy_from_slice(&abi::MINOR.to_ne_bytes());
    bytes
}

/// The header and the offer of an INIT request; `None` if it is another request.
///
/// # Errors
/// It is malformed.
pub fn decode(bytes: &[u8]) -> Result<(Header, Option<Offer>), Malformed> {
    let header = Header::decode(bytes)?;
    if header.opcode != abi::Opcode::Init as u32 {
        return Ok((header, None));
    }
    Offer::decode(&bytes[abi::IN_HEADER_BYTES..]).map(|offer| (header, Some(offer)))
}
