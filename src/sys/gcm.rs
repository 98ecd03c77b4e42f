//! AES-256-GCM of aws-lc, with the key schedule in locked memory that is wiped.
//!
//! The safe wrapper crate moves contexts through the stack and frees them without wiping; a context
//! in place needs the foreign functions themselves.

use aws_lc_sys::{
    EVP_AEAD_CTX, EVP_AEAD_CTX_init, EVP_AEAD_CTX_open_gather, EVP_AEAD_CTX_seal_scatter,
    EVP_aead_aes_256_gcm,
};

use super::memory::LockedBytes;

/// An AES-256-GCM key, set up. Safe to share between threads: sealing and opening only read it.
pub struct GcmKey(LockedBytes);

impl GcmKey {
    /// Sets up `key`.
    pub fn new(key: &[u8; 32]) -> Self {
        let bytes = LockedBytes::new(size_of::<EVP_AEAD_CTX>());
        // SAFETY: the context is written to memory of its size and (64-byte) alignment that does
        // not move; the algorithm is a static; `key` is valid for its length.
        let result = unsafe {
            EVP_AEAD_CTX_init(
                bytes.as_ptr().cast(),
                EVP_aead_aes_256_gcm(),
                key.as_ptr(),
                key.len(),
                16,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(result, 1, "a 256-bit key and a 128-bit tag are valid for AES-256-GCM");
        // The context owns no memory besides itself, so wiping it in `LockedBytes` is all there is
        // to clean up (aead_aes_gcm_cleanup in aws-lc's e_aes.c is empty).
        Self(bytes)
    }

    /// Seals `plaintext` into `sealed`, of the same length, and returns the tag.
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], input: &[u8], sealed: &mut [u8]) -> [u8; 16] {
        assert_eq!(input.len(), sealed.len(), "sealing keeps the length");
        let mut tag = [0; 16];
        let mut tag_bytes = 0;
        // SAFETY: the context was initialised in `new`; every pointer comes with its own length;
        // `sealed` has room for `input`, and `tag` for the 16 bytes asked for; they do not alias.
        let result = unsafe {
            EVP_AEAD_CTX_seal_scatter(
                self.context(),
                sealed.as_mut_ptr(),
                tag.as_mut_ptr(),
                &mut tag_bytes,
                tag.len(),
                nonce.as_ptr(),
                nonce.len(),
                input.as_ptr(),
                input.len(),
                std::ptr::null(),
                0,
                aad.as_ptr(),
                aad.len(),
            )
        };
        assert!(result == 1 && tag_bytes == 16, "sealing fails only for more than 2^36 bytes");
        tag
    }

    /// Opens `sealed` into `plaintext`, of the same length. `false` if it does not authenticate;
    /// `plaintext` is then zero.
    #[must_use]
    pub fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        tag: &[u8; 16],
        sealed: &[u8],
        plaintext: &mut [u8],
    ) -> bool {
        assert_eq!(sealed.len(), plaintext.len(), "opening keeps the length");
        // SAFETY: as in `seal`; the output has room for the input.
        let result = unsafe {
            EVP_AEAD_CTX_open_gather(
                self.context(),
                plaintext.as_mut_ptr(),
                nonce.as_ptr(),
                nonce.len(),
                sealed.as_ptr(),
                sealed.len(),
                tag.as_ptr(),
                tag.len(),
                aad.as_ptr(),
                aad.len(),
            )
        };
        if result != 1 {
            plaintext.fill(0);
        }
        result == 1
    }

    fn context(&self) -> *const EVP_AEAD_CTX {
        self.0.as_ptr().cast_const().cast()
    }
}
