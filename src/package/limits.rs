//! How much an archive may ask of who serves it. Every limit has a name and an option.

/// What is refused for its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Members, those that are directories included.
    pub entries_max: u64,
    /// Bytes of the central directory, which is in memory while it is read.
    pub directory_bytes_max: u64,
    /// Bytes of all members together, decompressed.
    pub total_bytes_max: u64,
    /// How many times its compressed size a member may have; only for members larger than
    /// [`Limits::RATIO_FREE_BYTES`].
    pub ratio_max: u64,
    /// Whether names may differ in case only. Where packages are made, on Windows, they cannot.
    pub allow_case_collisions: bool,
    /// Memory for decompressed contents and seek points, in bytes.
    pub cache_bytes: u64,
}

impl Limits {
    /// Members of up to this size may be compressed as well as deflate can.
    pub const RATIO_FREE_BYTES: u64 = 16 << 20;
    /// The most that deflate can make of a byte: 258 bytes for two bits (RFC 1951).
    pub const RATIO_DEFLATE: u64 = 1032;
    /// Least memory that makes sense: a few blocks for a few readers.
    pub const CACHE_BYTES_MIN: u64 = 8 << 20;
    /// Longest path of a member in bytes, as Linux takes paths (`PATH_MAX` without its NUL).
    pub const PATH_BYTES_MAX: usize = 4095;
    /// Longest part of a path in bytes (`NAME_MAX`).
    pub const NAME_BYTES_MAX: usize = 255;
    /// Longest target of a symbolic link in bytes.
    pub const TARGET_BYTES_MAX: u64 = 4095;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_max: 1_000_000,
            directory_bytes_max: 256 << 20,
            total_bytes_max: 256 << 30,
            ratio_max: 250,
            allow_case_collisions: false,
            cache_bytes: 256 << 20,
        }
    }
}
