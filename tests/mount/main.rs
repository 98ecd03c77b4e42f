//! What programs see through a mount, one file a family of system calls.
//!
//! Needs /dev/fuse. Every test mounts a volume of its own, and fails if that cannot be unmounted.
//! With `ATREST_TEST_DIRECTORY` set, the tests run in that directory instead and remounts are left
//! out: on a plain directory this tells a wrong test from a wrong filesystem.

#[path = "../common/memory.rs"]
mod memory_of;
mod mounted;

mod access;
mod acl;
mod backing;
mod data;
mod directory;
mod holes;
mod lease;
mod links;
mod locks;
mod lost;
mod memory;
mod metadata;
mod nameless;
mod names;
mod readonly;
mod rename;
mod service;
mod shared;
mod sizes;
mod xattr;
