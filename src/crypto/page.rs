//! Sealing and opening 4 KiB pages.

use aes::Aes256;
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use xts_mode::Xts128;

use super::secret::Secret;
use crate::sys::gcm::GcmKey;
use crate::sys::xts::XtsKey;

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

impl Nonce {
    /// The nonce `count` after this one in a run of
    /// [`NonceSequence::next_run`](super::random::NonceSequence::next_run): the counter, the last
    /// two bytes (little-endian), moves on. It wraps, but a run never does.
    pub fn offset(self, count: u16) -> Self {
        let [.., low, high] = self.0;
        let counter = u16::from_le_bytes([low, high]).wrapping_add(count);
        let mut nonce = self.0;
        nonce[10..].copy_from_slice(&counter.to_le_bytes());
        Self(nonce)
    }

    /// The XTS tweak: the nonce, zero-extended.
    fn tweak(self) -> [u8; 16] {
        let mut tweak = [0; 16];
        tweak[..12].copy_from_slice(&self.0);
        tweak
    }
}

/// A key set up for sealing and opening pages (or tree nodes). Safe to share between threads.
///
/// Key schedules are wiped when it is dropped.
pub struct PageKey(Backend);

enum Backend {
    AwsGcm(GcmKey),
    AwsXts(XtsKey),
    PortableGcm(Box<Aes256Gcm>),
    PortableXts(Box<Xts128<Aes256>>),
}

impl PageKey {
    /// Sets up `key` (of [`Cipher::key_bytes`] bytes) on the default backend, aws-lc. It has
    /// code for processors without AES instructions too, in constant time.
    ///
    /// # Panics
    /// If the key has another length, or the halves of an XTS key are equal, which those of a
    /// random one are not (NIST SP 800-38E, FIPS 140-3 IG C.I).
    pub fn new(cipher: Cipher, key: &Secret) -> Self {
        Self(match cipher {
            Cipher::Aes256Gcm => Backend::AwsGcm(GcmKey::new(key_array(key))),
            Cipher::Aes256Xts => Backend::AwsXts(XtsKey::new(key_array(key))),
        })
    }

    /// As [`PageKey::new`], on the portable backend: the oracle of the tests.
    ///
    /// # Panics
    /// As [`PageKey::new`].
    pub fn new_portable(cipher: Cipher, key: &Secret) -> Self {
        let length = "the key has the cipher's length";
        Self(match cipher {
            Cipher::Aes256Gcm => {
                let key: &[u8; 32] = key_array(key);
                Backend::PortableGcm(Box::new(Aes256Gcm::new_from_slice(key).expect(length)))
            }
            Cipher::Aes256Xts => {
                let (data_key, tweak_key) = key_array::<64>(key).split_at(32);
                Backend::PortableXts(Box::new(Xts128::new(
                    Aes256::new_from_slice(data_key).expect(length),
                    Aes256::new_from_slice(tweak_key).expect(length),
                )))
            }
        })
    }

    /// `seal[key, nonce](aad, plaintext) -> sealed, tag`. `plaintext` and `sealed` have the same
    /// length, a multiple of 16 bytes up to 64 KiB. XTS ignores `aad` and returns a zero tag.
    pub fn seal(&self, nonce: Nonce, aad: &[u8], plaintext: &[u8], sealed: &mut [u8]) -> Tag {
        #[cfg(feature = "insecure-unsealed")]
        if let Some(tag) = super::unsealed::seal(aad, plaintext, sealed) {
            return tag;
        }
        match &self.0 {
            Backend::AwsGcm(key) => return Tag(key.seal(&nonce.0, aad, plaintext, sealed)),
            Backend::AwsXts(key) => key.seal(&nonce.tweak(), plaintext, sealed),
            Backend::PortableGcm(key) => {
                let buffer = InOutBuf::new(plaintext, sealed).expect("sealing keeps the length");
                let tag = key.encrypt_inout_detached(&nonce.0.into(), aad, buffer);
                return Tag(tag.expect("a page is far below 2^36 bytes").into());
            }
            Backend::PortableXts(key) => {
                sealed.copy_from_slice(plaintext);
                key.encrypt_sector(sealed, nonce.tweak().into());
            }
        }
        Tag([0; 16])
    }

    /// `open[key, nonce](aad, sealed, tag) -> plaintext`. XTS ignores `aad` and `tag`: it has no
    /// authenticity, and opening always succeeds.
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
        #[cfg(feature = "insecure-unsealed")]
        if let Some(opened) = super::unsealed::open(aad, sealed, plaintext) {
            return opened;
        }
        match &self.0 {
            Backend::AwsGcm(key) => {
                let authentic = key.open(&nonce.0, aad, &tag.0, sealed, plaintext);
                return if authentic { Ok(()) } else { Err(Tampered) };
            }
            Backend::AwsXts(key) => key.open(&nonce.tweak(), sealed, plaintext),
            Backend::PortableGcm(key) => {
                let buffer = InOutBuf::new(sealed, &mut *plaintext).expect("opening keeps length");
                let result =
                    key.decrypt_inout_detached(&nonce.0.into(), aad, buffer, &tag.0.into());
                return result.map_err(|_| {
                    plaintext.fill(0);
                    Tampered
                });
            }
            Backend::PortableXts(key) => {
                plaintext.copy_from_slice(sealed);
                key.decrypt_sector(plaintext, nonce.tweak().into());
            }
        }
        Ok(())
    }
}

/// The key as an array; an XTS key only if its halves differ.
fn key_array<const N: usize>(key: &Secret) -> &[u8; N] {
    let bytes: &[u8; N] = key.expose().try_into().expect("the key has the cipher's length");
    assert!(N != 64 || bytes[..N / 2] != bytes[N / 2..], "an XTS key has two different halves");
    bytes
}
