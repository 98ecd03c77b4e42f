//! Filesystem semantics: what POSIX callers observe. No `fuser` types, no bytes on disk.
