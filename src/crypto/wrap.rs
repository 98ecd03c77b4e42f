//! AES-256 key wrap (RFC 3394, NIST SP 800-38F "KW").

use super::page::Tampered;
use super::secret::Secret;

/// `KW-AE(wrapping_key, secret)`: `secret` (a multiple of 8 bytes) plus 8 bytes.
pub fn wrap(wrapping_key: &Secret, secret: &Secret) -> Vec<u8> {
    let _ = (wrapping_key, secret);
    todo!()
}

/// `KW-AD(wrapping_key, wrapped)`.
///
/// # Errors
/// [`Tampered`] if the integrity check fails or the length is impossible.
pub fn unwrap(wrapping_key: &Secret, wrapped: &[u8]) -> Result<Secret, Tampered> {
    let _ = (wrapping_key, wrapped);
    todo!()
}
