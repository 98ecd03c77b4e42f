//! `exec:`, the example of `scripts/kek-plugin`: systemd's key of the host.

use std::path::{Path, PathBuf};

use atrest::key::{Authorization, ProviderOptions};

use super::output;
use crate::alone::Prepared;
use crate::peer::{Act, Peer, Row};

pub const ROW: Row = Row {
    name: "exec",
    offers: &[Act::Delete, Act::Recover],
    not_offered: "the example's key is a file of the host: it is there or not",
    binds: true,
    at_once: 4,
    mounts: 4,
    daemons_at_once: 4,
    quirks: &[],
    authenticates: true,
};

pub struct Exec {
    scratch: PathBuf,
}

/// The plugin where nobody else can write, and secrets of its own.
pub fn prepare(scratch: &Path) -> Prepared {
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kek-plugin");
    let text = std::fs::read_to_string(plugin).expect("it is there");
    for name in ["one", "other"] {
        let place = scratch.join(name);
        let secret = scratch.join(format!("{name}.secret"));
        let default = "/var/lib/systemd/credential.secret";
        assert!(text.contains(default), "the plugin has another default");
        let own = text.replace(default, secret.to_str().expect("ASCII"));
        std::fs::write(&place, own).expect("writable");
        output("chmod", &["700", place.to_str().expect("ASCII")]);
    }
    let secrets = ["one", "other"].map(|name| {
        let secret = scratch.join(format!("{name}.secret"));
        let made = std::process::Command::new("systemd-creds")
            .arg("setup")
            .env("SYSTEMD_CREDENTIAL_SECRET", &secret)
            .output()
            .expect("systemd-creds is needed (package systemd)");
        assert!(made.status.success(), "{made:?}");
        let bytes = std::fs::read(&secret).expect("it was made");
        bytes[bytes.len() - 64..].to_vec()
    });
    Prepared { secrets: secrets.to_vec(), ..Prepared::default() }
}

pub fn peer(scratch: &Path) -> Exec {
    Exec { scratch: scratch.to_owned() }
}

impl Peer for Exec {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn uri(&self) -> String {
        format!("exec:{}", self.scratch.join("one").display())
    }

    fn other_uri(&self) -> String {
        format!("exec:{}", self.scratch.join("other").display())
    }

    fn options(&self) -> ProviderOptions {
        let authorization = Authorization::default().allow(&self.uri()).allow(&self.other_uri());
        ProviderOptions { authorization, ..ProviderOptions::default() }
    }

    fn act(&self, act: Act) {
        let (secret, aside) = (self.scratch.join("one.secret"), self.scratch.join("aside"));
        match act {
            Act::Delete => std::fs::rename(secret, aside).expect("it is there"),
            Act::Recover => std::fs::rename(aside, secret).expect("it is there"),
            _ => unreachable!("the row does not offer it"),
        }
    }
}
