//! Not a transcript yet.
