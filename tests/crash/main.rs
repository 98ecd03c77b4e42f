//! Power loss at every storage operation: whatever subset of what was not synced reaches the disk,
//! opening finds everything that was acknowledged.

#[path = "../common/mod.rs"]
mod common;
mod harness;
mod toy;
mod volume;
