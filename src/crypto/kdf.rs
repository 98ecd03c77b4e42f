//! Key derivation: HKDF-Expand (RFC 5869 section 2.3) with SHA-256, one label per purpose.

use super::secret::Secret;

/// `HKDF-Expand(key, label || 0x00 || context, length)`. `key` is uniformly random, so the extract
/// step is left out (RFC 5869 section 3.3). `length` is at most 255 * 32 bytes.
pub fn derive(key: &Secret, label: &str, context: &[u8], length: usize) -> Secret {
    let _ = (key, label, context, length);
    todo!()
}

/// HMAC-SHA256 (RFC 2104) of `message`.
pub fn mac(key: &Secret, message: &[u8]) -> [u8; 32] {
    let _ = (key, message);
    todo!()
}

/// Whether `tag` is the MAC of `message`, compared in constant time.
pub fn mac_verify(key: &Secret, message: &[u8], tag: &[u8]) -> bool {
    let _ = (key, message, tag);
    todo!()
}

/// SHA-256 of `message`.
pub fn digest(message: &[u8]) -> [u8; 32] {
    let _ = message;
    todo!()
}
