//! Formats and primitives against vectors: what each file under `vectors/` says must happen, does.
//!
//! One scenario a file, named after what it is about. `expect:` is `ok` or the refusal, by variant;
//! the other fields are hexadecimal unless a runner says otherwise. A runner checks how many
//! vectors it saw, so that none disappears unnoticed.

mod config;
mod crypto;
mod key;
mod vector;
