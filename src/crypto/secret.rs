//! Key material that is wiped when dropped.

use zeroize::Zeroize;

use crate::sys::memory::LockedBytes;

/// Key material of a fixed length: wiped when dropped, locked in memory where that is allowed, and
/// left out of core dumps.
///
/// Deliberately neither `Clone`, `Debug` nor `PartialEq`: a key has one owner, is never printed,
/// and is never compared with a short-circuiting `==`. Moves leave no copies, because only the
/// address moves.
///
/// ```
/// let key = atrest::crypto::random::secret(32);
/// assert_eq!(key.len(), 32);
/// ```
///
/// ```compile_fail,E0599
/// let key = atrest::crypto::random::secret(32);
/// let copy = key.clone();
/// ```
///
/// ```compile_fail,E0277
/// let key = atrest::crypto::random::secret(32);
/// println!("{key:?}");
/// ```
///
/// ```compile_fail,E0369
/// let key = atrest::crypto::random::secret(32);
/// let same = key == key;
/// ```
pub struct Secret(LockedBytes);

impl Secret {
    /// Takes ownership of `bytes`, which are wiped; the caller must not keep another copy.
    pub fn new(mut bytes: Box<[u8]>) -> Self {
        let secret = Self::from_fn(bytes.len(), |target| target.copy_from_slice(&bytes));
        bytes.zeroize();
        secret
    }

    /// Makes a secret of `length` bytes in place: `write` gets them as zeros.
    pub fn from_fn(length: usize, write: impl FnOnce(&mut [u8])) -> Self {
        let mut bytes = LockedBytes::new(length);
        write(&mut bytes);
        Self(bytes)
    }

    /// As [`Secret::from_fn`], when writing can fail.
    ///
    /// # Errors
    /// Those of `write`; what it had written is wiped.
    pub fn try_from_fn<E>(
        length: usize,
        write: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = LockedBytes::new(length);
        write(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The key's length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether both are the same key, compared in constant time.
    pub fn is_same(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// The bytes themselves, for a primitive or a provider to work on.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to make a secret gives the bytes that went in.
    #[test]
    fn constructors_agree() {
        let expected = b"thirty-two bytes of key material";
        let boxed = Secret::new(Box::from(&expected[..]));
        let written = Secret::from_fn(32, |bytes| bytes.copy_from_slice(expected));
        let tried = Secret::try_from_fn(32, |bytes| {
            bytes.copy_from_slice(expected);
            Ok::<(), ()>(())
        });
        assert_eq!(boxed.expose(), expected);
        assert_eq!(written.expose(), expected);
        assert_eq!(tried.map(|secret| secret.len()), Ok(32));
        assert!(boxed.is_same(&written));
        assert!(!boxed.is_same(&Secret::from_fn(32, |_| ())));
        assert!(!boxed.is_same(&Secret::from_fn(31, |_| ())));
        assert!(matches!(Secret::try_from_fn(32, |_| Err("no")), Err("no")));
    }
}
