//! AES-256-XTS of aws-lc, which its safe wrapper does not offer.

use std::ptr::NonNull;

use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_Cipher, EVP_CipherInit_ex,
    EVP_aes_256_xts,
};
use parking_lot::Mutex;

use super::memory::LockedBytes;

/// Contexts kept per direction. More threads than this set up the key again.
const IDLE_CONTEXTS_MAX: usize = 4;

/// An AES-256-XTS key, set up. Safe to share between threads.
///
/// A context of aws-lc holds the tweak as well as the key schedules, so threads cannot share one:
/// each takes an idle one, or makes one, and puts it back.
pub struct XtsKey {
    key: LockedBytes,
    sealing: Mutex<Vec<Context>>,
    opening: Mutex<Vec<Context>>,
}

impl XtsKey {
    /// Sets up `key`: the data key, then the tweak key, which must differ (NIST SP 800-38E).
    pub fn new(key: &[u8; 64]) -> Self {
        let mut bytes = LockedBytes::new(key.len());
        bytes.copy_from_slice(key);
        Self { key: bytes, sealing: Mutex::default(), opening: Mutex::default() }
    }

    /// Seals `plaintext` (16 bytes to 16 MiB) into `sealed`, of the same length.
    pub fn seal(&self, tweak: &[u8; 16], plaintext: &[u8], sealed: &mut [u8]) {
        self.run(&self.sealing, Direction::Seal, tweak, plaintext, sealed);
    }

    /// Opens `sealed` (16 bytes to 16 MiB) into `plaintext`, of the same length.
    pub fn open(&self, tweak: &[u8; 16], sealed: &[u8], plaintext: &mut [u8]) {
        self.run(&self.opening, Direction::Open, tweak, sealed, plaintext);
    }

    fn run(
        &self,
        idle: &Mutex<Vec<Context>>,
        direction: Direction,
        tweak: &[u8; 16],
        input: &[u8],
        output: &mut [u8],
    ) {
        let taken = idle.lock().pop();
        let mut context = taken.unwrap_or_else(|| Context::new(&self.key, direction));
        context.run(tweak, input, output);
        let mut idle = idle.lock();
        if idle.len() < IDLE_CONTEXTS_MAX {
            idle.push(context);
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Seal = 1,
    Open = 0,
}

/// An `EVP_CIPHER_CTX` with the key set; aws-lc wipes its memory when it is freed.
struct Context(NonNull<EVP_CIPHER_CTX>);

// SAFETY: a context belongs to no thread; aws-lc allows use by one at a time, as `&mut` ensures.
unsafe impl Send for Context {}

impl Context {
    fn new(key: &[u8], direction: Direction) -> Self {
        assert_eq!(key.len(), 64, "AES-256-XTS takes two 256-bit keys");
        // SAFETY: takes no arguments; returns an owned context, or null when out of memory.
        let raw = unsafe { EVP_CIPHER_CTX_new() };
        let context = Self(NonNull::new(raw).expect("out of memory"));
        // SAFETY: the context is live, the cipher is a static, and `key` has the 64 bytes that the
        // cipher reads; a null tweak means that it is set later.
        let result = unsafe {
            EVP_CipherInit_ex(
                context.0.as_ptr(),
                EVP_aes_256_xts(),
                std::ptr::null_mut(),
                key.as_ptr(),
                std::ptr::null(),
                direction as i32,
            )
        };
        assert_eq!(result, 1, "the halves of a random key differ");
        context
    }

    fn run(&mut self, tweak: &[u8; 16], input: &[u8], output: &mut [u8]) {
        assert_eq!(input.len(), output.len(), "XTS keeps the length");
        let context = self.0.as_ptr();
        let (cipher, engine, key) = (std::ptr::null(), std::ptr::null_mut(), std::ptr::null());
        // SAFETY: the context is live; null cipher and key keep the ones set in `new`, -1 the
        // direction; the tweak has the 16 bytes that are read.
        let set = unsafe { EVP_CipherInit_ex(context, cipher, engine, key, tweak.as_ptr(), -1) };
        // SAFETY: both buffers are valid for `input.len()` bytes and do not overlap.
        let done = unsafe { EVP_Cipher(context, output.as_mut_ptr(), input.as_ptr(), input.len()) };
        assert!(set == 1 && done == 1, "XTS fails only for less than 16 bytes or over 16 MiB");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `new` made the context, and nothing else frees it.
        unsafe { EVP_CIPHER_CTX_free(self.0.as_ptr()) };
    }
}
