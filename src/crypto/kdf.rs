//! Key derivation: HKDF-Expand (RFC 5869 section 2.3) with SHA-256, one label per purpose.

use aws_lc_rs::{digest as sha, hmac};

use super::secret::Secret;

/// `HKDF-Expand(key, label || 0x00 || context, length)`. `key` is uniformly random, so the extract
/// step is left out (RFC 5869 section 3.3). `length` is at most 255 * 32 bytes.
pub fn derive(key: &Secret, label: &str, context: &[u8], length: usize) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
    Secret::from_fn(length, |output| expand(&key, &[label.as_bytes(), &[0], context], output))
}

/// HMAC-SHA256 (RFC 2104) of `message`.
pub fn mac(key: &Secret, message: &[u8]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
    hmac::sign(&key, message).as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
}

/// Whether `tag` is the MAC of `message`, compared in constant time.
pub fn mac_verify(key: &Secret, message: &[u8], tag: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
    hmac::verify(&key, message, tag).is_ok()
}

/// SHA-256 of `message`.
pub fn digest(message: &[u8]) -> [u8; 32] {
    sha::digest(&sha::SHA256, message).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// `T(n) = HMAC(key, T(n-1) || info || n)`, concatenated. Written out over the HMAC because the
/// library's own keeps its key in memory that is not wiped.
fn expand(key: &hmac::Key, info: &[&[u8]], output: &mut [u8]) {
    assert!(output.len() <= 255 * 32, "HKDF-SHA256 gives at most 255 blocks");
    let mut done = 0;
    for counter in 1..=output.len().div_ceil(32) {
        let mut context = hmac::Context::with_key(key);
        context.update(&output[done - done.min(32)..done]);
        info.iter().for_each(|part| context.update(part));
        context.update(&[counter as u8]);
        let block = zeroize::Zeroizing::new(
            <[u8; 32]>::try_from(context.sign().as_ref()).expect("HMAC-SHA256 has 32 bytes"),
        );
        let count = (output.len() - done).min(32);
        output[done..done + count].copy_from_slice(&block[..count]);
        done += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random;

    /// The portable implementation is the oracle, for output lengths around the block size.
    #[test]
    fn agrees_with_portable() {
        let context = [7; 40];
        for length in [0, 1, 31, 32, 33, 64, 65, 255 * 32] {
            let key = random::secret(32);
            let oracle = hkdf::Hkdf::<sha2::Sha256>::from_prk(key.expose()).expect("32 bytes");
            let mut expected = vec![0; length];
            oracle.expand_multi_info(&[b"label", &[0], &context], &mut expected).expect("short");
            assert_eq!(derive(&key, "label", &context, length).expose(), expected);
        }
    }

    /// Keys for different purposes, contexts or parents are different keys; the separator keeps a
    /// label from running into its context.
    #[test]
    fn separates() {
        let (key, other) = (random::secret(32), random::secret(32));
        let base = derive(&key, "label", b"context", 32);
        for different in [
            derive(&other, "label", b"context", 32),
            derive(&key, "labe", b"lcontext", 32),
            derive(&key, "label", b"context2", 32),
        ] {
            assert_ne!(base.expose(), different.expose());
        }
    }

    /// A MAC verifies, and no longer does after a change of message, tag or key, or a cut.
    #[test]
    fn mac_refuses() {
        let key = random::secret(32);
        let tag = mac(&key, b"message");
        assert!(mac_verify(&key, b"message", &tag));
        assert!(!mac_verify(&key, b"massage", &tag));
        assert!(!mac_verify(&random::secret(32), b"message", &tag));
        assert!(!mac_verify(&key, b"message", &tag[..31]));
        assert!(!mac_verify(&key, b"message", &[]));
    }
}
