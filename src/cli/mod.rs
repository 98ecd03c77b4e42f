//! Command line: what was typed, what it means, what is printed, exit codes.

mod app;
pub mod args;
mod audit;
mod control;
pub mod exit;
mod fsck;
pub mod hint;
mod init;
mod inspect;
mod kek;
mod keys;
mod lock;
mod mount;
mod open;
mod options;
mod package;
mod place;
mod salvage;
mod status;
mod umount;
mod vault;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use hint::Failure;

use crate::sys::process::forbid_dumps;

/// Parses the command line, runs the command and returns its exit code.
pub fn run() -> ExitCode {
    let Some(arguments) = args::from_helper(std::env::args_os().collect()) else {
        return ExitCode::SUCCESS;
    };
    // Before anything secret is read, whatever the command; a daemon that forks off inherits it.
    if let Err(error) = forbid_dumps() {
        eprintln!("warning: memory may end up in core dumps: {error}");
    }
    match execute(&Cli::parse_from(arguments).command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}

fn execute(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Mount(arguments) => return mount::run(arguments),
        Command::Init(arguments) => init::run(arguments)?,
        Command::Umount(arguments) => umount::run(arguments)?,
        Command::Lock(arguments) => lock::lock(arguments)?,
        Command::Unlock(arguments) => lock::unlock(arguments)?,
        Command::Status(arguments) => status::run(arguments)?,
        Command::Inspect(arguments) => inspect::run(arguments)?,
        Command::Fsck(arguments) => return fsck::run(arguments),
        Command::Key(command) => keys::run(command)?,
        Command::Kek(command) => kek::run(command)?,
        Command::Audit(command) => audit::run(command)?,
        Command::App(command) => return app::run(command),
        Command::Vault(command) => vault::run(command)?,
        Command::Package(command) => return package::run(command),
    }
    Ok(0)
}
