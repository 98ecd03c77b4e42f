//! `local:`, a key store in a directory.

use std::path::{Path, PathBuf};

use atrest::key::ProviderOptions;
use atrest::key::local::KeyStore;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::alone::Prepared;
use crate::peer::{Act, Peer, Row};

pub const ROW: Row = Row {
    name: "local",
    offers: &[Act::Rotate, Act::Disable, Act::Enable, Act::Delete, Act::Recover],
    not_offered: "there is no credential but the file's mode",
    binds: false,
    at_once: 100,
    mounts: 20,
    daemons_at_once: 100,
    quirks: &[],
    authenticates: true,
};

pub struct Local {
    directory: PathBuf,
}

/// Makes the two keys.
pub fn prepare(scratch: &Path) -> Prepared {
    let directory = scratch.join("keys");
    let store = KeyStore::new(directory.clone());
    let keys = ["one", "other"].map(|name| {
        store.create(name).expect("the store is writable");
        let text = std::fs::read_to_string(directory.join(format!("{name}.json"))).expect("it is");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let key = json["versions"][0]["key"].as_str().expect("a key").to_owned();
        STANDARD.decode(key).expect("Base64")
    });
    Prepared { secrets: keys.to_vec(), ..Prepared::default() }
}

pub fn peer(scratch: &Path) -> Local {
    Local { directory: scratch.join("keys") }
}

impl Local {
    fn set_enabled(&self, enabled: bool) {
        let store = KeyStore::new(self.directory.clone());
        for key in store.list().expect("it is readable").iter().filter(|key| key.name == "one") {
            for version in &key.versions {
                store.set_enabled("one", version.version, enabled).expect("it is there");
            }
        }
    }
}

impl Peer for Local {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn uri(&self) -> String {
        "local:one".to_owned()
    }

    fn other_uri(&self) -> String {
        "local:other".to_owned()
    }

    fn options(&self) -> ProviderOptions {
        ProviderOptions { key_store: Some(self.directory.clone()), ..ProviderOptions::default() }
    }

    fn act(&self, act: Act) {
        let file = self.directory.join("one.json");
        let aside = self.directory.join("aside");
        match act {
            Act::Rotate => {
                let store = KeyStore::new(self.directory.clone());
                store.rotate("one").expect("it is writable");
            }
            Act::Disable => self.set_enabled(false),
            Act::Enable => self.set_enabled(true),
            Act::Delete => std::fs::rename(file, aside).expect("it is there"),
            Act::Recover => std::fs::rename(aside, file).expect("it is there"),
            Act::Revoke | Act::Restore => unreachable!("the row does not offer it"),
        }
    }
}
