//! The `atrest` command: parse, run, exit code. No logic.

use std::process::ExitCode;

fn main() -> ExitCode {
    atrest::cli::run()
}
