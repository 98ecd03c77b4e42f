//! Servers of `scripts/peers`, which end with the test.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use atrest::key::{Authorization, ProviderOptions, Providers};

use super::write_private;
use crate::alone::Prepared;

/// Running servers.
struct Servers(Child);

impl Drop for Servers {
    /// They end when their standard input does.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Starts `name`; what it says of itself becomes the environment of the case. `secrets` are the
/// variables that must not be shown.
pub fn prepare(scratch: &Path, name: &str, secrets: &[&str]) -> Prepared {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peers");
    let mut child = Command::new(&script)
        .args([Path::new("serve"), scratch, Path::new(name)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the script runs");
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let servers = Servers(child);
    let mut variables = BTreeMap::new();
    for line in output.lines() {
        let line = line.expect("text");
        if line == "ready" {
            let secret = |name: &&str| variables.get(*name).filter(|text: &&String| text.len() > 7);
            let secrets: Vec<&String> = secrets.iter().filter_map(secret).collect();
            return Prepared {
                secrets: secrets.into_iter().map(|text| text.clone().into_bytes()).collect(),
                environment: variables.into_iter().map(|(k, v)| (k, v.into())).collect(),
                kept: Some(Box::new(servers)),
            };
        }
        if let Some((name, value)) = line.split_once('=') {
            variables.insert(name.to_owned(), value.to_owned());
        }
    }
    panic!("{name} did not start, see above: a peer that is missing is no reason to skip");
}

/// What the server said of itself.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// `host:port` of an origin.
pub fn host_and_port(origin: &str) -> String {
    origin.strip_prefix("https://").expect("https").trim_end_matches('/').to_owned()
}

/// A `providers.toml` that allows `pattern`, reached as the lines say.
pub fn providers_file(scratch: &Path, pattern: &str, lines: &str) -> PathBuf {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let text = format!("[[provider]]\nuri = \"{pattern}\"\nproxy = \"none\"\n{lines}\n");
    write_private(&scratch.join(format!("providers-{number}.toml")), &text)
}

/// Options that allow `pattern`, reached as the lines of `providers.toml` say.
pub fn options(scratch: &Path, pattern: &str, lines: &str) -> ProviderOptions {
    ProviderOptions {
        authorization: Authorization::default().allow(pattern),
        providers: Providers::from_file(providers_file(scratch, pattern, lines)),
        ..ProviderOptions::default()
    }
}

/// Short time-outs, so that a test of one does not take long.
pub const IMPATIENT: &str = "connect_timeout_s = 3\nrequest_timeout_s = 3\ntotal_timeout_s = 8\n";

/// Long ones, for a hundred daemons that start at once on a machine with two processors.
pub const PATIENT: &str = "connect_timeout_s = 60\nrequest_timeout_s = 60\ntotal_timeout_s = 120\n";

/// The line for an authority.
pub fn ca_line(file: &Path) -> String {
    format!("ca_file = \"{}\"\n", file.display())
}

/// Where the programs of PyPI are.
pub fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/peers/bin/python3")
}
