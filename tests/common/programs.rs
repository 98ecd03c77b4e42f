//! What tests need to set a program up: to run it, secrets in files, a token.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program, which must succeed, and returns what it printed. One that is not there fails the
/// test: what nobody tries is not known to work.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}\n{errors}");
    text
}

/// Writes a file that only the owner can read, as a secret's has to be.
pub fn write_private(path: &Path, text: &str) -> PathBuf {
    let _ = std::fs::remove_file(path);
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).expect("writable");
    path.to_owned()
}

/// Configures SoftHSM to keep its tokens in `scratch`, where the file `pin` has the PIN. Returns
/// the value of `SOFTHSM2_CONF`.
pub fn configure_softhsm(scratch: &Path, pin: &str) -> OsString {
    let tokens = scratch.join("tokens");
    std::fs::create_dir(&tokens).expect("a directory");
    let configuration = scratch.join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&configuration, text).expect("writable");
    write_private(&scratch.join("pin"), pin);
    configuration.into_os_string()
}
