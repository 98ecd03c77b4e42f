//! The only `unsafe`: system calls and foreign functions, each behind a safe function.

#![expect(unsafe_code, reason = "system calls and foreign functions live here and nowhere else")]

pub mod child;
pub mod clock;
pub mod file_handle;
pub mod files;
pub mod fuse;
pub mod gcm;
pub mod heap;
pub mod inflate;
pub mod memory;
pub mod mount;
pub mod process;
pub mod uring;
pub mod xattr;
pub mod xts;
