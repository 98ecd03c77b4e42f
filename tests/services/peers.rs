//! Services of others, started by `scripts/peers`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use atrest::format::VolumeId;
use atrest::key::{
    Binding, KekError, KekErrorKind, KekProvider, ProviderOptions, Providers, provider_from_uri,
};
use serde_json::Value;

/// The volume of these tests.
pub const BINDING: Binding = Binding { volume_id: VolumeId([7; 16]) };
/// Another volume.
pub const OTHER: Binding = Binding { volume_id: VolumeId([8; 16]) };

/// Peers that run, and what is to be known about them. They end with this.
pub struct Peers {
    script: Child,
    variables: BTreeMap<String, String>,
    directory: tempfile::TempDir,
}

impl Peers {
    /// Starts them. One that cannot be had fails the test: a provider that nobody tries is not
    /// known to work.
    pub fn start(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peers");
        let mut script = Command::new(script)
            .arg("serve")
            .arg(directory.path())
            .args(names)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/peers can be run");
        let lines = BufReader::new(script.stdout.take().expect("a pipe")).lines();
        let mut variables = BTreeMap::new();
        let mut ready = false;
        for line in lines.map(|line| line.expect("text")) {
            if line == "ready" {
                ready = true;
                break;
            }
            let (name, value) = line.split_once('=').expect("NAME=value");
            variables.insert(name.to_owned(), value.to_owned());
        }
        assert!(ready, "the peers {names:?} did not start");
        Self { script, variables, directory }
    }

    /// What the script said.
    pub fn variable(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_else(|| panic!("scripts/peers did not say {name}"))
    }

    /// A private file with this content.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        _ = std::fs::remove_file(&path);
        let opened =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        opened.expect("writable").write_all(text.as_bytes()).expect("writable");
        path
    }

    /// The same under a name that no other has.
    pub fn new_file(&self, text: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        self.file(&format!("file-{}", COUNT.fetch_add(1, Ordering::Relaxed)), text)
    }

    /// The provider of `uri`, with these lines of `providers.toml`.
    pub fn provider(&self, uri: &str, lines: &str) -> Arc<dyn KekProvider> {
        let text = format!("[[provider]]\nuri = \"{uri}\"\n{lines}\n");
        let providers = Providers::from_file(self.file("providers.toml", &text));
        let options = ProviderOptions { providers, ..ProviderOptions::default() };
        provider_from_uri(uri, &options)
            .map_err(|error| error.to_string())
            .expect("it is authorised and set up")
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        _ = self.script.wait();
    }
}

/// Asks a service as its administrator: status and JSON of the answer.
pub fn curl(arguments: &[&str]) -> (u16, Value) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--write-out", "\n%{http_code}"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("curl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), serde_json::from_str(body).unwrap_or(Value::Null))
}

/// The error must be of this kind (by its words), and definitive or not.
pub fn assert_error<T>(result: Result<T, KekError>, words: &str, definitive: bool) {
    let error = result.err().unwrap_or_else(|| panic!("it must fail: {words}"));
    assert!(error.kind().to_string().contains(words), "{words}: {error} {error:?}");
    assert_eq!(error.is_definitive(), definitive, "{error}");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("SECRET"), "{shown}");
}

/// The same for a wrapped key that is not what it was.
pub fn assert_integrity<T>(result: Result<T, KekError>) {
    let error = result.err().expect("it must fail");
    assert!(matches!(error.kind(), KekErrorKind::Integrity), "{error} {error:?}");
}
