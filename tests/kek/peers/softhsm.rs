//! `pkcs11:` on SoftHSM: an AES key and an RSA key.

use std::path::{Path, PathBuf};

use atrest::key::{Authorization, ProviderOptions};

use super::{configure_softhsm, output};
use crate::alone::Prepared;
use crate::peer::{Act, Peer, Row};

pub const AES: Row = Row {
    name: "softhsm-aes",
    offers: &[Act::Delete],
    not_offered: "a token has no switch for a key, what is destroyed is gone, a login lasts as \
                  long as the process, and no tool makes a key with the date that tells versions \
                  apart (`tests/hsm` does)",
    binds: true,
    at_once: 100,
    quirks: &[],
    authenticates: true,
};
pub const RSA: Row = Row { name: "softhsm-rsa", binds: false, ..AES };

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "271828-secret";
const SO_PIN: &str = "31415926-officer";

pub struct SoftHsm {
    row: &'static Row,
    scratch: PathBuf,
}

/// Makes a token with both keys.
pub fn prepare(scratch: &Path) -> Prepared {
    let configuration = configure_softhsm(scratch, PIN);
    let made = std::process::Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "kek", "--so-pin", SO_PIN, "--pin", PIN])
        .env("SOFTHSM2_CONF", &configuration)
        .output()
        .expect("the package softhsm2 is needed");
    assert!(made.status.success(), "{made:?}");
    Prepared {
        environment: vec![("SOFTHSM2_CONF".to_owned(), configuration)],
        secrets: vec![PIN.into(), SO_PIN.into()],
        kept: None,
    }
}

pub fn peer(scratch: &Path, row: &'static Row) -> SoftHsm {
    let peer = SoftHsm { row, scratch: scratch.to_owned() };
    peer.make("one", "01");
    peer.make("other", "02");
    peer
}

impl SoftHsm {
    fn make(&self, label: &str, id: &str) {
        let what: &[&str] = match self.row.name {
            "softhsm-aes" => &["--keygen", "--key-type", "AES:32"],
            _ => &["--keypairgen", "--key-type", "rsa:2048"],
        };
        self.tool(&[what, &["--label", label, "--id", id]].concat());
    }

    fn tool(&self, arguments: &[&str]) {
        let login = ["--module", MODULE, "--token-label", "kek", "--login", "--pin", PIN];
        output("pkcs11-tool", &[&login, arguments].concat());
    }

    fn uri_of(&self, label: &str) -> String {
        let pin = self.scratch.join("pin");
        let path = format!("pkcs11:token=kek;object={label}");
        format!("{path}?module-path={MODULE}&pin-source={}", pin.display())
    }

    fn destroy(&self, label: &str) {
        let kinds: &[&str] = match self.row.name {
            "softhsm-aes" => &["secrkey"],
            _ => &["privkey", "pubkey"],
        };
        for kind in kinds {
            self.tool(&["--delete-object", "--type", kind, "--label", label]);
        }
    }
}

impl Peer for SoftHsm {
    fn row(&self) -> &'static Row {
        self.row
    }

    fn uri(&self) -> String {
        self.uri_of("one")
    }

    fn other_uri(&self) -> String {
        self.uri_of("other")
    }

    fn options(&self) -> ProviderOptions {
        let authorization = Authorization::default().allow(&self.uri()).allow(&self.other_uri());
        ProviderOptions { authorization, ..ProviderOptions::default() }
    }

    fn act(&self, act: Act) {
        match act {
            Act::Delete => self.destroy("one"),
            _ => unreachable!("the row does not offer it"),
        }
    }
}
