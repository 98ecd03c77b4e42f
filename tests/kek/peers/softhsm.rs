//! `pkcs11:` on SoftHSM: an AES key and an RSA key.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use atrest::key::{Authorization, ProviderOptions};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::types::Date;

use super::{configure_softhsm, output};
use crate::alone::Prepared;
use crate::peer::{Act, Peer, Row};
use crate::softhsm_keys::{MODULE, make_aes, with_session};

pub const AES: Row = Row {
    name: "softhsm-aes",
    offers: &[Act::Rotate, Act::Delete],
    not_offered: "a token has no switch for a key, what is destroyed is gone, and a login lasts as \
                  long as the process (`tests/hsm` tries PINs)",
    binds: true,
    at_once: 100,
    mounts: 8,
    // Of several processes that log in at once it tells some that there is no token.
    daemons_at_once: 1,
    quirks: &[],
    authenticates: true,
};
pub const RSA: Row = Row { name: "softhsm-rsa", binds: false, ..AES };

const PIN: &str = "271828-secret";
const SO_PIN: &str = "31415926-officer";

pub struct SoftHsm {
    row: &'static Row,
    scratch: PathBuf,
    /// Rotations so far.
    rotations: AtomicU8,
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
    let peer = SoftHsm { row, scratch: scratch.to_owned(), rotations: AtomicU8::new(0) };
    peer.make("one", "01");
    peer.make("other", "02");
    peer
}

impl SoftHsm {
    fn make(&self, label: &str, id: &str) {
        let what: &[&str] = match self.is_aes() {
            true => &["--keygen", "--key-type", "AES:32"],
            false => &["--keypairgen", "--key-type", "rsa:2048"],
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

    fn is_aes(&self) -> bool {
        self.row.name == AES.name
    }

    /// A new key of the same label, which begins on a day and so is the newer version.
    fn rotate(&self) {
        let id = 0x10 + self.rotations.fetch_add(1, Ordering::Relaxed);
        let start = Attribute::StartDate(Date::new(*b"2025", *b"02", *b"28"));
        if self.is_aes() {
            let uses = [Attribute::Encrypt(true), Attribute::Decrypt(true), start];
            return make_aes(PIN, "one", id, &uses);
        }
        let both = [
            Attribute::Token(true),
            // SoftHSM does not find the dates of private objects again.
            Attribute::Private(false),
            Attribute::Label(b"one".to_vec()),
            Attribute::Id(vec![id]),
            start,
        ];
        let exponent = Attribute::PublicExponent(vec![1, 0, 1]);
        let public = [Attribute::Encrypt(true), Attribute::ModulusBits(2048.into()), exponent];
        let private = [Attribute::Decrypt(true), Attribute::Sensitive(true)];
        let template = |own: &[Attribute]| [own, &both[..]].concat();
        with_session(PIN, |session| {
            let mechanism = Mechanism::RsaPkcsKeyPairGen;
            let made =
                session.generate_key_pair(&mechanism, &template(&public), &template(&private));
            made.expect("it is made");
        });
    }

    /// All versions.
    fn destroy(&self) {
        let kinds: &[&str] = if self.is_aes() { &["secrkey"] } else { &["privkey", "pubkey"] };
        let later = (0..self.rotations.load(Ordering::Relaxed)).map(|n| format!("{:x}", 0x10 + n));
        for id in std::iter::once("01".to_owned()).chain(later) {
            for kind in kinds {
                self.tool(&["--delete-object", "--type", kind, "--id", &id]);
            }
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
            Act::Rotate => self.rotate(),
            Act::Delete => self.destroy(),
            _ => unreachable!("the row does not offer it"),
        }
    }
}
