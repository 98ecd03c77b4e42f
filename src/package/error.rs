//! Why an archive is refused, and why a read fails.

use std::io;

/// Why an archive is not served. `Display` says what is wrong with it, naming the member; the cause
/// is in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The source failed.
    #[error("the package cannot be read")]
    Read(#[source] io::Error),
    /// Something else than a ZIP, by its first bytes.
    #[error("it is {0}, not a ZIP archive")]
    OtherFormat(&'static str),
    /// No end record, or one that does not end where the file does.
    #[error("it has no end of central directory: it is incomplete, or not a ZIP archive")]
    NoEnd,
    /// Two end records fit.
    #[error("it can be read as two different archives: its comment holds an end record")]
    TwoEnds,
    /// A part of an archive of several files.
    #[error("it is a part of an archive of several files")]
    Split,
    /// The end record or the one of ZIP64 is not what it should be.
    #[error("its end record is damaged: {0}")]
    End(&'static str),
    /// Something stands before the archive, and offsets do not count it.
    #[error("{0} bytes stand before it that its offsets do not count")]
    Prefix(u64),
    /// More members than allowed.
    #[error("it has {found} entries; {limit} are allowed")]
    Entries {
        /// What it says.
        found: u64,
        /// [`Limits::entries_max`](super::Limits::entries_max)
        limit: u64,
    },
    /// A larger central directory than allowed.
    #[error("its central directory has {found} bytes; {limit} are allowed")]
    DirectoryBytes {
        /// What it says.
        found: u64,
        /// [`Limits::directory_bytes_max`](super::Limits::directory_bytes_max)
        limit: u64,
    },
    /// Larger than allowed when decompressed.
    #[error("its members have {found} bytes together; {limit} are allowed")]
    TotalBytes {
        /// The sum of what it says, or as much of it as was looked at.
        found: u64,
        /// [`Limits::total_bytes_max`](super::Limits::total_bytes_max)
        limit: u64,
    },
    /// The central directory is damaged.
    #[error("entry {number} of its central directory {problem}")]
    Record {
        /// From 0.
        number: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A member has a name that is refused.
    #[error("the name {name:?} {problem}")]
    Name {
        /// As it is written, as far as it is text.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Two members have one name, or names that differ in case only, or one is a directory to the
    /// other.
    #[error("{first:?} and {second:?} {problem}")]
    Collision {
        /// A member.
        first: String,
        /// Another one.
        second: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A member is compressed in a way that is not served.
    #[error("{name:?} is compressed by {method}; stored and deflated members are served")]
    Method {
        /// Which.
        name: String,
        /// How: the method's name, or its number.
        method: String,
    },
    /// A member is refused.
    #[error("{name:?} {problem}")]
    Member {
        /// Which.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A member is larger than its compressed size allows.
    #[error("{name:?} has {ratio} times its compressed size; {limit} times is allowed")]
    Ratio {
        /// Which.
        name: String,
        /// What it says.
        ratio: u64,
        /// [`Limits::ratio_max`](super::Limits::ratio_max)
        limit: u64,
    },
    /// A symbolic link is refused.
    #[error("the link {name:?} to {target:?} {problem}")]
    Link {
        /// Which.
        name: String,
        /// Where it leads.
        target: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The target of a symbolic link cannot be read.
    #[error("the target of the link {name:?} cannot be read")]
    LinkTarget {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: ReadError,
    },
}

/// Why a member cannot be read. `Display` says what is wrong; the cause is in `source()`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error("the package cannot be read")]
    Source(#[source] std::sync::Arc<io::Error>),
    /// The local header contradicts the central directory.
    #[error("its local header {0}")]
    LocalHeader(&'static str),
    /// It is not deflate.
    #[error("it is damaged: {0}")]
    Corrupt(#[from] crate::sys::inflate::Corrupt),
    /// It ends too early, or goes on.
    #[error("it has not the length that it says")]
    Length,
    /// It is not what its CRC-32 was made of.
    #[error("its CRC-32 is {found:08x}, not {expected:08x}")]
    Crc {
        /// Of what it is.
        found: u32,
        /// Of what it should be.
        expected: u32,
    },
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Source(std::sync::Arc::new(error))
    }
}
