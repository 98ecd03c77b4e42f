//! Power loss at every storage operation: whatever subset of what was not synced reaches the disk,
//! opening finds everything that was acknowledged.

mod harness;
mod toy;
