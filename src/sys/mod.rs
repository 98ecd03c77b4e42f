//! The only `unsafe`: system calls and foreign functions, each behind a safe function.

pub mod file_handle;
pub mod mount;
pub mod process;
