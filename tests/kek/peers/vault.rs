//! `azure:` on `atrest vault`.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atrest::key::ProviderOptions;

use super::server::{
    IMPATIENT, PATIENT, ca_line, host_and_port, options, providers_file, variable,
};
use super::write_private;
use crate::alone::{Prepared, logs};
use crate::certificates::Authority;
use crate::peer::{ACTS, Act, NetworkPeer, Peer, Row};

pub const ROW: Row = Row {
    name: "vault",
    offers: &ACTS,
    not_offered: "",
    binds: false,
    at_once: 100,
    mounts: 100,
    daemons_at_once: 100,
    quirks: &[],
    authenticates: true,
};
/// What the vault calls itself, whatever it is called.
const RESOURCE: &str = "https://vault.azure.net";

/// A vault that is served.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Vault {
    scratch: PathBuf,
    origin: String,
    tenant: String,
    client: String,
}

/// Runs an operator's command: `vault NOUN VERB DIR ARGUMENT...`.
fn operator(scratch: &Path, noun: &str, verb: &str, arguments: &[&str]) -> String {
    let output = command(scratch)
        .args(["vault", noun, verb])
        .arg(scratch.join("vault"))
        .args(arguments)
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "vault {noun} {verb} {arguments:?}: {output:?}");
    text
}

fn command(scratch: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atrest"));
    command.env("ATREST_STATE", scratch.join("state"));
    command.env("ATREST_KEYSTORE", scratch.join("master")).stdin(Stdio::null());
    command
}

fn field(json: &str, name: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    json[name].as_str().unwrap_or_else(|| panic!("{name} is not in {json}")).to_owned()
}

/// Makes a vault with two keys and an application that may use them, and serves it.
pub fn prepare(scratch: &Path) -> Prepared {
    let authority = Authority::new(scratch);
    let (certificate, key) = authority.server_files();
    let pem = scratch.join("vault.pem");
    std::fs::File::create(&pem).and_then(|mut f| f.write_all(certificate.as_bytes())).expect("ok");
    let key = write_private(&scratch.join("vault.key"), &key);
    let directory = scratch.join("vault");
    let made = command(scratch).args(["vault", "init"]).arg(&directory).output().expect("it runs");
    assert!(made.status.success(), "{made:?}");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = format!("127.0.0.1:{}", port.expect("a free port").port());
    let child = command(scratch)
        .args(["vault", "serve"])
        .arg(&directory)
        .args(["--listen", &address, "--tls-cert"])
        .arg(&pem)
        .arg("--tls-key")
        .arg(&key)
        .arg("--log")
        .arg(logs(scratch).join("vault.log"))
        .args(["--log-level", "trace", "--audit"])
        .arg(logs(scratch).join("audit"))
        .spawn()
        .expect("the program runs");
    let mut served = Served(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !directory.join("admin.sock").exists() {
        assert!(served.0.try_wait().expect("a child").is_none(), "the vault has ended");
        assert!(Instant::now() < deadline, "the vault is not served");
        std::thread::sleep(Duration::from_millis(20));
    }
    for name in ["one", "other"] {
        operator(scratch, "key", "create", &[name, "--size", "2048"]);
    }
    let client = field(&operator(scratch, "identity", "create", &["web"]), "client_id");
    let secret_file = scratch.join("secret");
    let secret_path = secret_file.to_str().expect("ASCII");
    operator(scratch, "identity", "secret", &["web", "--secret-file", secret_path]);
    let role = "Key Vault Crypto Service Encryption User";
    operator(scratch, "policy", "assign", &["web", role]);
    let tenant = field(&operator(scratch, "settings", "show", &[]), "tenant");
    let (_, port) = address.rsplit_once(':').expect("it has a port");
    let variables =
        [("ORIGIN", format!("https://localhost:{port}")), ("TENANT", tenant), ("CLIENT", client)];
    let secret = std::fs::read_to_string(&secret_file).expect("it was made");
    Prepared {
        environment: variables.map(|(k, v)| (format!("TEST_VAULT_{k}"), v.into())).to_vec(),
        secrets: vec![secret.trim().into()],
        kept: Some(Box::new(served)),
    }
}

pub fn peer(scratch: &Path) -> Vault {
    Vault {
        scratch: scratch.to_owned(),
        origin: variable("TEST_VAULT_ORIGIN"),
        tenant: variable("TEST_VAULT_TENANT"),
        client: variable("TEST_VAULT_CLIENT"),
    }
}

impl Vault {
    /// The lines of `providers.toml` for the vault at `origin`.
    pub fn lines(&self, origin: &str) -> String {
        let Self { tenant, client, scratch, .. } = self;
        format!(
            "identity = \"client-secret\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client}\"\n\
             client_secret_file = \"{}\"\nauthority_host = \"{origin}\"\n\
             resource = \"{RESOURCE}\"\n",
            scratch.join("secret").display()
        )
    }

    fn options_with(&self, origin: &str, lines: &str) -> ProviderOptions {
        let lines = self.lines(origin) + lines;
        options(&self.scratch, &format!("azure:{origin}/"), &lines)
    }
}

impl Peer for Vault {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn uri(&self) -> String {
        self.uri_at(&self.origin)
    }

    fn other_uri(&self) -> String {
        format!("azure:{}/keys/other", self.origin)
    }

    fn options(&self) -> ProviderOptions {
        self.options_with(&self.origin, &ca_line(&self.ca_file()))
    }

    fn providers_file(&self) -> Option<PathBuf> {
        let lines = self.lines(&self.origin) + &ca_line(&self.ca_file()) + PATIENT;
        let pattern = format!("azure:{}/", self.origin);
        Some(providers_file(&self.scratch, &pattern, &lines))
    }

    fn act(&self, act: Act) {
        let (noun, verb, name) = match act {
            Act::Rotate => ("key", "rotate", "one"),
            Act::Disable => ("key", "disable", "one"),
            Act::Enable => ("key", "enable", "one"),
            Act::Delete => ("key", "delete", "one"),
            Act::Recover => ("key", "recover", "one"),
            Act::Revoke => ("identity", "disable", "web"),
            Act::Restore => ("identity", "enable", "web"),
        };
        operator(&self.scratch, noun, verb, &[name]);
    }

    fn network(&self) -> Option<&dyn NetworkPeer> {
        Some(self)
    }
}

impl NetworkPeer for Vault {
    fn address(&self) -> String {
        host_and_port(&self.origin)
    }

    fn ca_file(&self) -> PathBuf {
        self.scratch.join("proxy-ca.pem")
    }

    fn uri_at(&self, origin: &str) -> String {
        format!("azure:{origin}/keys/one")
    }

    fn options_at(&self, origin: &str, ca_file: &Path) -> ProviderOptions {
        self.options_with(origin, &(ca_line(ca_file) + IMPATIENT))
    }

    fn lies(&self) -> Vec<(String, String)> {
        vec![
            ("/keys/one/".to_owned(), "/keys/other/".to_owned()),
            ("https://localhost:".to_owned(), "https://elsewhere.example:".to_owned()),
        ]
    }
}
