//! Key material that is wiped when dropped.

use zeroize::Zeroizing;

/// Key material of a fixed length, wiped when dropped.
///
/// Deliberately neither `Clone`, `Debug` nor `PartialEq`: a key has one owner, is never printed,
/// and is never compared with a short-circuiting `==`. Boxed, so that moves leave no copies.
pub struct Secret(Zeroizing<Box<[u8]>>);

impl Secret {
    /// Takes ownership of `bytes`; the caller must not keep another copy.
    pub fn new(bytes: Box<[u8]>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key's length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes themselves, for a primitive or a provider to work on.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}
