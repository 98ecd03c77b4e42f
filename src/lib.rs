//! **atrest**: encryption at rest for Linux directories.
//!
//! A FUSE daemon mounts a *volume*, a directory that holds nothing but ciphertext. Every 256 KiB
//! chunk of a file has its own data encryption key (DEK), all metadata is encrypted, and the volume
//! key (VK) above them is unwrapped at mount by a key-encryption key (KEK) that the customer
//! controls.
//!
//! Dependencies point down, and `tests/tidy` enforces it:
//!
//! ```text
//! main -> cli -> daemon -> fuse -> fs -> { volume, package }
//!     -> { epoch, tree, space, key } -> { format, crypto, storage } -> sys
//! { cli, daemon, vault } -> audit -> { key, format, crypto }
//! cli -> app -> { daemon, audit, fs, package, key, sys }
//! cli -> vault -> { key, format, crypto, storage, sys }
//! ```
//!
//! Start with [`manual::architecture`]; the bytes on disk are in [`manual::format`].

pub mod app;
pub mod audit;
pub mod cli;
pub mod crypto;
pub mod daemon;
pub mod defect;
pub mod epoch;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod key;
pub mod lease;
pub mod manual;
pub mod package;
pub mod space;
pub mod storage;
pub mod sys;
pub mod tree;
pub mod vault;
pub mod volume;
