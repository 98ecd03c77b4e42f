//! What a name, a link target and the name of an extended attribute may be.

use super::Error;

/// Longest name of an entry in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without its NUL).
pub const TARGET_BYTES_MAX: usize = 4095;

/// Checks a name that is looked up, created or removed.
///
/// # Errors
/// [`Error::NameTooLong`] above 255 bytes; [`Error::Invalid`] for an empty name, `.`, `..`, and
/// names with `/` or NUL.
pub fn check(name: &[u8]) -> Result<(), Error> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." {
        return Err(Error::Invalid("not a name of an entry"));
    }
    if name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(Error::Invalid("a name holds neither '/' nor NUL"));
    }
    Ok(())
}

/// Checks the target of a symbolic link.
///
/// # Errors
/// [`Error::NameTooLong`] above 4095 bytes; [`Error::NotFound`] when empty, as `symlink(2)`;
/// [`Error::Invalid`] with a NUL.
pub fn check_target(target: &[u8]) -> Result<(), Error> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(Error::NameTooLong);
    }
    if target.is_empty() {
        return Err(Error::NotFound);
    }
    if target.contains(&0) {
        return Err(Error::Invalid("a link target holds no NUL"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_their_limits() {
        assert!(check(b"a").is_ok());
        assert!(check(b"...").is_ok());
        assert!(check(&[0xff; 255]).is_ok());
        assert!(matches!(check(&[b'x'; 256]), Err(Error::NameTooLong)));
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert!(matches!(check(name), Err(Error::Invalid(_))), "{name:?}");
        }
    }

    #[test]
    fn targets_are_checked_at_their_limits() {
        assert!(check_target(b"/a/../b").is_ok());
        assert!(check_target(&[b'x'; 4095]).is_ok());
        assert!(matches!(check_target(&[b'x'; 4096]), Err(Error::NameTooLong)));
        assert!(matches!(check_target(b""), Err(Error::NotFound)));
        assert!(matches!(check_target(b"a\0"), Err(Error::Invalid(_))));
    }
}
