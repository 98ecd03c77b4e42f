//! Sealing and opening 4 KiB pages.

use super::secret::Secret;

/// How page contents are sealed. Metadata is always `aes-256-gcm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM (NIST SP 800-38D): confidentiality and authenticity.
    Aes256Gcm,
    /// AES-256-XTS (IEEE 1619, 512-bit key): confidentiality only.
    Aes256Xts,
}

/// 96 bits, never repeated under one key. For XTS the first 16 bytes of the tweak are this nonce,
/// zero-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub [u8; 12]);

/// The GCM tag of a page; all zeros for XTS, which has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub [u8; 16]);

/// Authentication failed: the bytes are not what was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Tampered;

impl Cipher {
    /// Length of the data encryption key: 32 bytes (GCM) or 64 (XTS).
    pub fn key_bytes(self) -> usize {
        match self {
            Self::Aes256Gcm => 32,
            Self::Aes256Xts => 64,
        }
    }

    /// The name in configuration files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Aes256Xts => "aes-256-xts",
        }
    }

    /// The cipher of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Aes256Gcm, Self::Aes256Xts].into_iter().find(|cipher| cipher.name() == name)
    }
}

/// A key set up for sealing and opening pages (or tree nodes). Safe to share between threads.
pub struct PageKey;

impl PageKey {
    /// Sets up `key` (of [`Cipher::key_bytes`] bytes) on the default backend.
    pub fn new(cipher: Cipher, key: &Secret) -> Self {
        let _ = (cipher, key);
        todo!()
    }

    /// `seal[key, nonce](aad, plaintext) -> sealed, tag`. `plaintext` and `sealed` have the same
    /// length, a multiple of 16 bytes up to 64 KiB. XTS ignores `aad` and returns a zero tag.
    pub fn seal(&self, nonce: Nonce, aad: &[u8], plaintext: &[u8], sealed: &mut [u8]) -> Tag {
        let _ = (nonce, aad, plaintext, sealed);
        todo!()
    }

    /// `open[key, nonce](aad, sealed, tag) -> plaintext`.
    ///
    /// # Errors
    /// [`Tampered`]; `plaintext` then holds zeros, never unauthenticated bytes.
    pub fn open(
        &self,
        nonce: Nonce,
        aad: &[u8],
        tag: Tag,
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), Tampered> {
        let _ = (nonce, aad, tag, sealed, plaintext);
        todo!()
    }
}
