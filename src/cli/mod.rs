//! Command line: what was typed, what it means, what is printed, exit codes.

use std::process::ExitCode;

/// Parses the command line, runs the command and returns its exit code.
pub fn run() -> ExitCode {
    ExitCode::FAILURE
}
