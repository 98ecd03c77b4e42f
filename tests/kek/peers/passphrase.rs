//! `passphrase:`, from files.

use std::path::{Path, PathBuf};

use atrest::key::ProviderOptions;
use atrest::key::passphrase::Cost;

use super::write_private;
use crate::alone::Prepared;
use crate::peer::{Act, Peer, Row};

pub const ROW: Row = Row {
    name: "passphrase",
    offers: &[],
    not_offered: "a passphrase is known or not; it has no versions and no keeper",
    binds: false,
    at_once: 8,
    mounts: 4,
    daemons_at_once: 4,
    quirks: &[],
    authenticates: true,
};
const PASSPHRASE: &str = "correct horse battery staple";

pub struct Passphrase {
    file: PathBuf,
}

pub fn prepare(scratch: &Path) -> Prepared {
    write_private(&scratch.join("passphrase"), PASSPHRASE);
    Prepared { secrets: vec![PASSPHRASE.into()], ..Prepared::default() }
}

pub fn peer(scratch: &Path) -> Passphrase {
    Passphrase { file: scratch.join("passphrase") }
}

impl Peer for Passphrase {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn uri(&self) -> String {
        "passphrase:".to_owned()
    }

    /// The same words: the salt makes another key of them each time.
    fn other_uri(&self) -> String {
        "passphrase:other".to_owned()
    }

    fn options(&self) -> ProviderOptions {
        ProviderOptions {
            passphrase_file: Some(self.file.clone()),
            passphrase_cost: Cost { memory_kib: 8 * 1024, passes: 1, lanes: 1 },
            ..ProviderOptions::default()
        }
    }

    fn act(&self, _: Act) {
        unreachable!("the row does not offer it")
    }
}
