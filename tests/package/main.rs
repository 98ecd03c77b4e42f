//! Packages: what of a ZIP archive is served, what is refused, and that every byte that is read is
//! the right one. Archives are made here, byte by byte.

#[path = "zip.rs"]
mod zip;

mod attributes;
mod fuzz;
mod hostile;
mod kept;
mod reads;
