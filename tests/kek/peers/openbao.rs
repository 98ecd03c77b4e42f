//! `transit:` on OpenBao.

use std::path::{Path, PathBuf};

use atrest::key::ProviderOptions;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::server::{
    IMPATIENT, PATIENT, ca_line, host_and_port, options, providers_file, variable,
};
use super::{output, server, write_private};
use crate::alone::Prepared;
use crate::peer::{ACTS, Act, NetworkPeer, Peer, Row};

pub const ROW: Row = Row {
    name: "openbao",
    offers: &ACTS,
    not_offered: "",
    binds: true,
    at_once: 100,
    mounts: 20,
    daemons_at_once: 100,
    quirks: &[],
    authenticates: true,
};

pub struct OpenBao {
    scratch: PathBuf,
    origin: String,
    ca_file: PathBuf,
    tokens: Mutex<Vec<String>>,
}

pub fn prepare(scratch: &Path) -> Prepared {
    server::prepare(scratch, "openbao", &["OPENBAO_SECRET_ID"])
}

/// Makes the two keys, and a token for what a mount needs.
pub fn peer(scratch: &Path) -> OpenBao {
    let peer = OpenBao {
        scratch: scratch.to_owned(),
        origin: variable("OPENBAO_ADDR"),
        ca_file: variable("OPENBAO_CACERT").into(),
        tokens: Mutex::new(Vec::new()),
    };
    for key in ["one", "other"] {
        peer.post(&format!("transit/keys/{key}"), &json!({ "type": "aes256-gcm96" }));
    }
    peer.act(Act::Restore);
    peer
}

impl OpenBao {
    fn post(&self, path: &str, body: &Value) -> Value {
        self.ask(&["--request", "POST", "--data", &body.to_string()], path)
    }

    fn ask(&self, arguments: &[&str], path: &str) -> Value {
        let url = format!("{}/v1/{path}", self.origin);
        let ca_file = self.ca_file.to_str().expect("ASCII");
        let token = format!("X-Vault-Token: {}", variable("OPENBAO_TOKEN"));
        let always = ["--silent", "--show-error", "--fail-with-body", "--cacert", ca_file];
        let text = output("curl", &[&always[..], &["--header", &token, &url], arguments].concat());
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    fn token_file(&self) -> PathBuf {
        self.scratch.join("token")
    }

    /// The lines of `providers.toml`.
    fn lines(&self, more: &str) -> String {
        let token = self.token_file();
        format!("auth = \"token\"\ntoken_file = \"{}\"\n{more}", token.display())
    }

    fn options_with(&self, origin: &str, lines: &str) -> ProviderOptions {
        options(&self.scratch, &format!("transit:{origin}/"), &self.lines(lines))
    }
}

impl Peer for OpenBao {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn uri(&self) -> String {
        self.uri_at(&self.origin)
    }

    fn other_uri(&self) -> String {
        format!("transit:{}/v1/transit/keys/other", self.origin)
    }

    fn options(&self) -> ProviderOptions {
        self.options_with(&self.origin, &ca_line(&self.ca_file))
    }

    fn providers_file(&self) -> Option<PathBuf> {
        let pattern = format!("transit:{}/", self.origin);
        let lines = self.lines(&(ca_line(&self.ca_file) + PATIENT));
        Some(providers_file(&self.scratch, &pattern, &lines))
    }

    fn act(&self, act: Act) {
        let config = |version: u64| {
            let body = json!({ "min_decryption_version": version });
            self.post("transit/keys/one/config", &body);
        };
        match act {
            Act::Rotate => drop(self.post("transit/keys/one/rotate", &json!({}))),
            // Of a version: only those below the newest can be.
            Act::Disable => {
                let key = self.post("transit/keys/one/rotate", &json!({}));
                let newest = key["data"]["latest_version"].as_u64();
                let newest = newest.unwrap_or_else(|| {
                    let key = self.ask(&[], "transit/keys/one");
                    key["data"]["latest_version"].as_u64().expect("a number")
                });
                config(newest);
            }
            Act::Enable => config(1),
            Act::Delete => {
                self.ask(&["--request", "DELETE"], "transit/keys/one/soft-delete");
            }
            Act::Recover => drop(self.post("transit/keys/one/soft-delete-restore", &json!({}))),
            Act::Revoke => {
                let token = self.tokens.lock().last().expect("there is one").clone();
                self.post("auth/token/revoke", &json!({ "token": token }));
            }
            Act::Restore => {
                let made = self.post("auth/token/create", &json!({ "policies": ["atrest-mount"] }));
                let token = made["auth"]["client_token"].as_str().expect("a token").to_owned();
                write_private(&self.token_file(), &token);
                self.tokens.lock().push(token);
            }
        }
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        self.tokens.lock().iter().map(|token| token.clone().into_bytes()).collect()
    }

    fn network(&self) -> Option<&dyn NetworkPeer> {
        Some(self)
    }
}

impl NetworkPeer for OpenBao {
    fn address(&self) -> String {
        host_and_port(&self.origin)
    }

    fn ca_file(&self) -> PathBuf {
        self.ca_file.clone()
    }

    fn uri_at(&self, origin: &str) -> String {
        format!("transit:{origin}/v1/transit/keys/one")
    }

    fn options_at(&self, origin: &str, ca_file: &Path) -> ProviderOptions {
        self.options_with(origin, &(ca_line(ca_file) + IMPATIENT))
    }
}
