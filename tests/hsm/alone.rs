//! One case in a process of its own, with an environment of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// In the process of the case: where its files are.
const SCRATCH: &str = "ATREST_TEST_SCRATCH";

/// Runs `case` in a process of its own. `prepare` makes what it needs in a directory, before, and
/// says the environment of the case. `name` is the test's, with its module.
pub fn run<T>(
    name: &str,
    prepare: impl FnOnce(&Path) -> (Vec<(&'static str, OsString)>, T),
    case: impl FnOnce(&Path),
) {
    if let Some(scratch) = std::env::var_os(SCRATCH) {
        return case(Path::new(&scratch));
    }
    let scratch = tempfile::TempDir::with_prefix("atrest-hsm-test.").expect("a directory");
    let (environment, kept) = prepare(scratch.path());
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(SCRATCH, scratch.path())
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .expect("this program runs");
    drop(kept);
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains(" 1 passed"), "{name} failed:\n{text}");
}

/// Runs a program, which must succeed, and returns what it printed.
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
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    _ = std::fs::remove_file(path);
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).expect("writable");
    path.to_owned()
}
