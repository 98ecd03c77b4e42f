//! Primitives with our parameters fixed, and secrets. No I/O, no policy, no byte layouts.
//!
//! Two backends seal pages: `aws` (aws-lc, the default: the fastest, and in constant time also
//! where the processor has no AES instructions) and `portable` (RustCrypto), the tests' oracle.

pub mod chain;
pub mod kdf;
pub mod page;
pub mod random;
pub mod secret;
#[cfg(feature = "insecure-unsealed")]
mod unsealed;
pub mod wrap;

pub use chain::ChainKey;
pub use page::{Cipher, Nonce, PageKey, Tag, Tampered};
pub use random::NonceSequence;
pub use secret::Secret;
