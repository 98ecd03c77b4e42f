//! A case in a process of its own, with an environment of its own, whose every word is searched for
//! the secrets that it was given, and so is every word of the programs that it runs.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// In the process of the case: where its files are.
const SCRATCH: &str = "ATREST_TEST_SCRATCH";
/// Shorter ones would be found by chance.
const SECRET_BYTES_MIN: usize = 8;

/// What a peer needs, made before its case runs.
#[derive(Default)]
pub struct Prepared {
    /// Environment of the case.
    pub environment: Vec<(String, OsString)>,
    /// What must not be in any output: tokens, PINs, keys.
    pub secrets: Vec<Vec<u8>>,
    /// What lives as long as the case: servers.
    pub kept: Option<Box<dyn std::any::Any>>,
}

/// In the process of a case: where its files are.
pub fn scratch() -> PathBuf {
    std::env::var_os(SCRATCH).expect("this is the process of a case").into()
}

/// The directory for what programs say and log: all of it is searched.
pub fn logs(scratch: &Path) -> PathBuf {
    let directory = scratch.join("logs");
    std::fs::create_dir_all(&directory).expect("writable");
    directory
}

/// Runs `case` in a process of its own. `prepare` makes what it needs in a directory, before.
/// `name` is the test's, with its module.
pub fn run(
    name: &str,
    prepare: impl FnOnce(&Path) -> Prepared,
    case: impl FnOnce(&Path) -> Vec<Vec<u8>>,
) {
    if let Some(scratch) = std::env::var_os(SCRATCH) {
        log_to_stderr();
        let secrets = case(Path::new(&scratch));
        // What the case only learned on its way: the parent searches for it as well.
        let lines: String = secrets.iter().map(|secret| STANDARD.encode(secret) + "\n").collect();
        std::fs::write(Path::new(&scratch).join("secrets"), lines).expect("writable");
        return;
    }
    let scratch = tempfile::TempDir::with_prefix("atrest-kek-test.").expect("a directory");
    let Prepared { environment, mut secrets, kept } = prepare(scratch.path());
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(SCRATCH, scratch.path())
        .env("RUST_BACKTRACE", "1")
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .expect("this program runs");
    drop(kept);
    let text = [output.stdout, output.stderr].concat();
    let shown = String::from_utf8_lossy(&text);
    assert!(output.status.success() && shown.contains(" 1 passed"), "{name} failed:\n{shown}");
    // How long each step took, for who asks with --nocapture.
    shown.lines().filter(|line| line.ends_with(" ms")).for_each(|line| println!("{line}"));
    let learned = std::fs::read_to_string(scratch.path().join("secrets")).expect("it was written");
    secrets.extend(learned.lines().map(|line| STANDARD.decode(line).expect("Base64")));
    assert!(!secrets.is_empty(), "{name} has no secret to search for");
    assert!(shown.contains("refused: "), "{name} has shown no error to search in:\n{shown}");
    let mut texts = vec![(name.to_owned(), text)];
    collect(&logs(scratch.path()), &mut texts);
    for (source, text) in &texts {
        let shown = String::from_utf8_lossy(text);
        // The beginning of every JSON Web Token.
        let token = ["eyJhbGci", "eyJ0eXAi"].iter().find(|begin| shown.contains(**begin));
        assert!(token.is_none(), "{source} shows a token:\n{shown}");
        for secret in &secrets {
            let found = find_secret(text, secret);
            assert!(found.is_none(), "{source} shows a secret, as {found:?}:\n{shown}");
        }
    }
}

/// All files below a directory, with their names.
fn collect(directory: &Path, texts: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => collect(&path, texts),
            false => {
                let text = std::fs::read(&path).expect("readable");
                texts.push((path.display().to_string(), text));
            }
        }
    }
}

/// Whether `text` has `secret`, as it is or encoded: the encoding. Of a dump, two bytes a group and
/// sixteen a line, a line that is all secret is found.
pub fn find_secret(text: &[u8], secret: &[u8]) -> Option<String> {
    let encoded = [STANDARD_NO_PAD.encode(secret), URL_SAFE_NO_PAD.encode(secret)];
    let dumped = encoded.iter().map(String::as_bytes).chain([secret]);
    for bytes in dumped {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let packed = String::from_utf8_lossy(text).replace(' ', "");
        let line = (0..hex.len().saturating_sub(15)).map(|at| &hex[at..at + 16]);
        if let Some(found) = line.step_by(2).find(|line| packed.contains(line)) {
            return Some(format!("dump with {found}"));
        }
    }
    find_encoded(text, secret)
}

fn find_encoded(text: &[u8], secret: &[u8]) -> Option<String> {
    assert!(secret.len() >= SECRET_BYTES_MIN, "a secret that short is found by chance");
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed: Vec<String> = secret.iter().map(u8::to_string).collect();
    let forms: BTreeSet<Vec<u8>> = [
        secret.to_vec(),
        // Padding and what follows in the same text change the last characters.
        STANDARD_NO_PAD.encode(&secret[..secret.len() / 3 * 3]).into_bytes(),
        URL_SAFE_NO_PAD.encode(&secret[..secret.len() / 3 * 3]).into_bytes(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        listed.join(", ").into_bytes(),
    ]
    .into();
    let form = forms.iter().find(|form| text.windows(form.len()).any(|window| window == &form[..]));
    form.map(|form| String::from_utf8_lossy(form).into_owned())
}

/// Everything that a daemon would log at the level trace goes to standard error.
fn log_to_stderr() {
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, metadata: &log::Metadata) -> bool {
            atrest::daemon::logging::is_shown(metadata)
        }
        fn log(&self, record: &log::Record) {
            if !self.enabled(record.metadata()) {
                return;
            }
            eprintln!("log: {} {}: {}", record.level(), record.target(), record.args());
        }
        fn flush(&self) {}
    }
    log::set_logger(&Stderr).expect("there is none yet");
    log::set_max_level(log::LevelFilter::Trace);
}

/// Each form of a secret is found.
#[test]
fn secrets_are_found() {
    let secret = b"hunter2-and-more";
    for text in [
        "x hunter2-and-more y",
        "aHVudGVyMi1hbmQtbW9yZQ==",
        "68756e746572322d616e642d6d6f7265",
        "68756E746572322D616E642D6D6F7265",
        "log: 3a22 6148 5675 6447 5679 4d69 3168 626d  :.aHVudGVyMi1hbm",
        "[104, 117, 110, 116, 101, 114, 50, 45, 97, 110, 100, 45, 109, 111, 114, 101]",
    ] {
        assert!(find_secret(text.as_bytes(), secret).is_some(), "{text}");
    }
    assert!(find_secret(b"hunter2-and-les", secret).is_none());
}
