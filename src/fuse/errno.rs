//! From errors of the tree to what the kernel is told and what the log says.

use std::error::Error as _;
use std::fmt::Write as _;

use crate::fs::{Error, Ino};

/// An error number, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub i32);

/// Turns `error` into the caller's errno and logs it once: what means that something is broken at
/// error level with its whole chain of causes, what callers provoke every day at trace level.
pub(super) fn report(operation: &str, ino: Ino, error: &Error) -> Errno {
    if is_expected(error) {
        log::trace!("{operation}: inode {ino}: {error}");
    } else {
        log::error!("{operation}: inode {ino}: {}", chain(error));
    }
    Errno(error.errno())
}

/// Whether an error is an ordinary answer, as opposed to a sign of damage or of failing storage.
fn is_expected(error: &Error) -> bool {
    !matches!(error, Error::Io { .. })
}

/// `error` and everything below it, joined by colons.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log line names every cause once, outermost first.
    #[test]
    fn chain_lists_causes_in_order() {
        let inner = std::io::Error::other("slot 7 does not authenticate");
        let error =
            Error::Io { what: "cannot read page 3".to_owned(), source: Some(Box::new(inner)) };
        assert_eq!(chain(&error), "cannot read page 3: slot 7 does not authenticate");
        assert_eq!(chain(&Error::NotFound), "no such file or directory");
    }

    /// The kernel gets the errno of the table in `fs::error`; only damage is unexpected.
    #[test]
    fn errno_of_each_kind() {
        let table = [
            (Error::NotFound, libc::ENOENT, true),
            (Error::Exists, libc::EEXIST, true),
            (Error::NoSpace, libc::ENOSPC, true),
            (Error::QuotaExceeded, libc::EDQUOT, true),
            (Error::NoAttribute, libc::ENODATA, true),
            (Error::OtherFilesystem, libc::EXDEV, true),
            (Error::NotSupported, libc::EOPNOTSUPP, true),
            (Error::Io { what: "x".to_owned(), source: None }, libc::EIO, false),
        ];
        for (error, errno, expected) in table {
            assert_eq!(is_expected(&error), expected, "{error}");
            assert_eq!(report("test", 1, &error), Errno(errno), "{error}");
        }
    }
}
