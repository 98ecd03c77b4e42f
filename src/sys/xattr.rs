//! Extended attributes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Sets an extended attribute of `path` itself, should it be a link: lsetxattr(2).
///
/// # Errors
/// Those of the system call; `InvalidInput` for a path with a NUL.
pub fn set(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end with a NUL and live through the call, and `value` is valid for its
    // length.
    let result = unsafe {
        libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether SELinux is on here, as far as can be seen: then a label that is not there is one that
/// has its default (`/proc/filesystems`, proc(5)).
pub fn has_selinux() -> bool {
    let list = std::fs::read_to_string("/proc/filesystems");
    list.map_or(true, |list| list.contains("selinuxfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Either it is set, or the filesystem says that it has none; a bad namespace never passes.
    #[test]
    fn errors_are_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let error = set(directory.path(), c"nonsense.a", b"b").unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)), "{error}");
        let error = set(&directory.path().join("missing"), c"user.a", b"b").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
