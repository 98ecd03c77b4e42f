//! The `atrest` command: parse, run, exit code. No logic.

use std::process::ExitCode;

use atrest::sys::heap::WipingHeap;

#[global_allocator]
static HEAP: WipingHeap = WipingHeap;

fn main() -> ExitCode {
    atrest::cli::run()
}
