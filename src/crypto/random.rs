//! Randomness and nonces.

use super::secret::Secret;

/// Fills `bytes` from the operating system's generator.
pub fn fill(bytes: &mut [u8]) {
    let _ = bytes;
    todo!()
}

/// A fresh random secret of `length` bytes.
pub fn secret(length: usize) -> Secret {
    let _ = length;
    todo!()
}
