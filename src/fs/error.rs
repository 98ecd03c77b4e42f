//! Errors of filesystem operations, and the single errno table.

/// Why an operation failed. `Display` says what was attempted; the cause is in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such entry or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The inode is gone.
    #[error("the inode no longer exists")]
    Stale,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory will not do.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// An argument makes no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A name is longer than 255 bytes or a link target longer than 4095.
    #[error("the name is too long")]
    NameTooLong,
    /// A file would grow beyond the limit.
    #[error("the file would be too large")]
    TooLarge,
    /// An inode has as many links as it can.
    #[error("too many links")]
    TooManyLinks,
    /// No space is left.
    #[error("no space is left on the volume")]
    NoSpace,
    /// A quota on the disk below the volume is used up.
    #[error("a disk quota is used up below the volume")]
    QuotaExceeded,
    /// Not allowed on this mount or inode.
    #[error("operation not permitted")]
    NotPermitted,
    /// The mount is read-only.
    #[error("the volume is mounted read-only")]
    ReadOnly,
    /// What is asked for would have to be on one filesystem.
    #[error("the two are on different filesystems")]
    OtherFilesystem,
    /// This operation is refused, see `manual::semantics`.
    #[error("operation not supported")]
    NotSupported,
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// An extended attribute is too large.
    #[error("the extended attribute is too large")]
    AttributeTooLarge,
    /// SEEK_DATA or SEEK_HOLE past the end.
    #[error("no data or hole after the offset")]
    NoSuchOffset,
    /// The volume is locked: its key was taken away.
    #[error("the volume's key was revoked")]
    KeyRevoked,
    /// The volume is locked: there is no key for the time being.
    #[error("the volume is locked")]
    NoKey,
    /// What is stored does not authenticate, or the storage failed.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// The cause, if there is a deeper one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// The one place that decides what the caller's `errno` is.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Stale => libc::ESTALE,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::Invalid(_) => libc::EINVAL,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::TooLarge => libc::EFBIG,
            Self::TooManyLinks => libc::EMLINK,
            Self::NoSpace => libc::ENOSPC,
            Self::QuotaExceeded => libc::EDQUOT,
            Self::NotPermitted => libc::EPERM,
            Self::ReadOnly => libc::EROFS,
            Self::OtherFilesystem => libc::EXDEV,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::NoAttribute => libc::ENODATA,
            Self::AttributeTooLarge => libc::E2BIG,
            Self::NoSuchOffset => libc::ENXIO,
            Self::KeyRevoked => libc::EKEYREVOKED,
            Self::NoKey => libc::ENOKEY,
            Self::Io { .. } => libc::EIO,
        }
    }
}
