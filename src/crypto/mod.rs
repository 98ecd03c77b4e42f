//! Primitives with our parameters fixed, and secrets. No I/O, no policy, no byte layouts.
//!
//! Two backends seal pages: `aws` (aws-lc, the default where the processor has AES instructions)
//! and `portable` (RustCrypto), which is also the oracle that tests compare with.

pub mod kdf;
pub mod page;
pub mod random;
pub mod secret;
pub mod wrap;

pub use page::{Cipher, Nonce, PageKey, Tag, Tampered};
pub use secret::Secret;
