//! AES-256 key wrap (RFC 3394, NIST SP 800-38F "KW").

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};

use super::page::Tampered;
use super::secret::Secret;

/// What wrapping adds to the length, in bytes.
pub const OVERHEAD_BYTES: usize = 8;

/// `KW-AE(wrapping_key, secret)`: `secret` (a multiple of 8 bytes, at least 16) plus 8 bytes.
pub fn wrap(wrapping_key: &Secret, secret: &Secret) -> Vec<u8> {
    let kek = AesKek::new(&AES_256, wrapping_key.expose()).expect("wrapping keys have 256 bits");
    let mut wrapped = vec![0; secret.len() + OVERHEAD_BYTES];
    kek.wrap(secret.expose(), &mut wrapped).expect("secrets are multiples of 8 bytes");
    wrapped
}

/// `KW-AD(wrapping_key, wrapped)`.
///
/// # Errors
/// [`Tampered`] if the integrity check fails or the length is impossible.
pub fn unwrap(wrapping_key: &Secret, wrapped: &[u8]) -> Result<Secret, Tampered> {
    if wrapped.len() < 16 + OVERHEAD_BYTES || wrapped.len() % 8 != 0 {
        return Err(Tampered);
    }
    let kek = AesKek::new(&AES_256, wrapping_key.expose()).expect("wrapping keys have 256 bits");
    Secret::try_from_fn(wrapped.len() - OVERHEAD_BYTES, |output| {
        let written = kek.unwrap(wrapped, output).map_err(|_| Tampered)?.len();
        if written == wrapped.len() - OVERHEAD_BYTES { Ok(()) } else { Err(Tampered) }
    })
}

#[cfg(test)]
mod tests {
    use aes_kw::{KeyInit, KwAes256};

    use super::*;
    use crate::crypto::random;

    /// The portable implementation wraps to the same bytes, and each opens the other's.
    #[test]
    fn agrees_with_portable() {
        for length in [16, 24, 32, 64] {
            let (key, secret) = (random::secret(32), random::secret(length));
            let portable = KwAes256::new_from_slice(key.expose()).expect("32 bytes");
            let mut expected = vec![0; length + 8];
            portable.wrap_key(secret.expose(), &mut expected).expect("sizes fit");
            let wrapped = wrap(&key, &secret);
            assert_eq!(wrapped, expected);
            let unwrapped = unwrap(&key, &wrapped).expect("just wrapped");
            assert_eq!(unwrapped.expose(), secret.expose());
        }
    }

    /// Each single bit flip, each cut and another key are refused.
    #[test]
    fn refuses() {
        let (key, secret) = (random::secret(32), random::secret(32));
        let wrapped = wrap(&key, &secret);
        for bit in 0..wrapped.len() * 8 {
            let mut flipped = wrapped.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(unwrap(&key, &flipped), Err(Tampered)), "bit {bit}");
        }
        for length in 0..wrapped.len() {
            assert!(matches!(unwrap(&key, &wrapped[..length]), Err(Tampered)), "length {length}");
        }
        assert!(matches!(unwrap(&random::secret(32), &wrapped), Err(Tampered)));
    }
}
