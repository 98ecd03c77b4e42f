//! The real directory.
pub struct OsStorage;
