//! One case in a process of its own, with an environment of its own.

use std::ffi::OsString;
use std::path::Path;
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
