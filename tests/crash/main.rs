//! Power loss at every storage operation: whatever subset of what was not synced reaches the disk,
//! opening finds everything that was acknowledged, and exactly what once was.

#[path = "../common/mod.rs"]
mod common;

mod applications;
mod bite;
mod bounded;
mod check;
mod failing;
mod harness;
mod matrix;
mod script;
mod scripts;
mod seam;
mod space;
mod state;
mod steps;
mod toy;
