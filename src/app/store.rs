//! The packages that a host has, in a volume: each verified before it is served, the newest kept.
//!
//! | File | What it is |
//! | --- | --- |
//! | `packages.json` | what there is, newest first; the only list: what is not in it is nothing |
//! | `DIGEST.zip` | a package, by its SHA-256 |
//! | `DIGEST.seek` | where reading can begin inside of its members |
//! | `download`, `download.json` | a package that is on its way, and where from |
//!
//! A package is admitted in this order: all of it is synced, its digest and every member are
//! verified, it gets its name, the list gets it. So a crash leaves the list as it was, or the list
//! with a package that was verified.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::download::{Sink, Validator};
use super::fetch::OnProgress;
use super::files::{File, Files};
use super::seeks;
use crate::fs::{self, Tree};
use crate::package::Package;

/// How many packages are kept unless told otherwise: the current one and two before it.
pub const KEPT: usize = 3;

const CATALOG: &str = "packages.json";
const DOWNLOAD: &str = "download";
const DOWNLOAD_ABOUT: &str = "download.json";

/// A package that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// SHA-256 of the whole, in hex.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// How many files and directories are in it.
    pub members: u64,
    /// What the setting says, without a URL's query: a URL, a path, or a reference.
    pub setting: String,
    /// Where it came from, without a URL's query.
    pub source: String,
    /// How its source calls it: an `ETag`, or size and time of a file.
    pub validator: Option<String>,
    /// When it came (RFC 3339).
    pub fetched: String,
    /// Whether somebody went back to one before it.
    #[serde(default)]
    pub rolled_back: bool,
    /// Whether a signed manifest named it when it came, or was asked for again.
    #[serde(default)]
    pub vouched: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalog {
    packages: Vec<Stored>,
}

/// What the part of a package that is there belongs to.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct About {
    source: String,
    etag: Option<String>,
}

/// Why the store does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The volume failed.
    #[error("the package store failed: {0}")]
    Volume(#[from] fs::Error),
    /// The list of packages is not what this program writes.
    #[error("the list of packages in the store is damaged: {0}")]
    Catalog(String),
    /// There is nothing to go back to.
    #[error("{0}")]
    Rollback(&'static str),
}

/// See the [module](self).
pub struct Store {
    files: Files,
    catalog: Mutex<Catalog>,
    kept: usize,
}

impl Store {
    /// The store in the volume `tree`, of which `kept` packages are kept, at least 1.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(tree: Arc<dyn Tree>, kept: usize) -> Result<Self, StoreError> {
        let files = Files::new(tree);
        let catalog = match files.read(CATALOG)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| StoreError::Catalog(error.to_string()))?,
            None => Catalog::default(),
        };
        Ok(Self { files, catalog: Mutex::new(catalog), kept: kept.max(1) })
    }

    /// All packages, newest first.
    pub fn packages(&self) -> Vec<Stored> {
        self.catalog.lock().packages.clone()
    }

    /// The newest package that the setting `setting` led to and nobody went back from.
    pub fn newest_for_setting(&self, setting: &str) -> Option<Stored> {
        self.find(|stored| stored.setting == setting && !stored.rolled_back)
    }

    /// The newest package of `source`.
    pub fn newest_of_source(&self, source: &str) -> Option<Stored> {
        self.find(|stored| stored.source == source)
    }

    fn find(&self, wanted: impl Fn(&Stored) -> bool) -> Option<Stored> {
        self.catalog.lock().packages.iter().find(|stored| wanted(stored)).cloned()
    }

    /// The package to serve when the newest is `stored`: that one, or if somebody went back from it
    /// the newest before it that nobody went back from.
    pub fn to_serve(&self, stored: &Stored) -> Stored {
        let catalog = self.catalog.lock();
        let position =
            catalog.packages.iter().position(|other| other.sha256 == stored.sha256).unwrap_or(0);
        let mut behind = catalog.packages.iter().skip(position);
        behind.find(|other| !other.rolled_back).unwrap_or(stored).clone()
    }

    /// Goes back from `current` to the package before it, which is returned.
    ///
    /// # Errors
    /// [`StoreError::Rollback`] if there is none.
    pub fn roll_back(&self, current: &str) -> Result<Stored, StoreError> {
        let mut catalog = self.catalog.lock();
        let mut changed = catalog.clone();
        let position = changed.packages.iter().position(|stored| stored.sha256 == current);
        let position = position.ok_or(StoreError::Rollback("no package is in use"))?;
        let before = changed.packages.iter().skip(position + 1).find(|stored| !stored.rolled_back);
        let before = before
            .cloned()
            .ok_or(StoreError::Rollback("there is no package before this one to go back to"))?;
        changed.packages[position].rolled_back = true;
        self.write(&changed)?;
        *catalog = changed;
        Ok(before)
    }

    /// The same from the package that would be served next.
    ///
    /// # Errors
    /// [`StoreError::Rollback`] if there is none.
    pub fn roll_back_newest(&self) -> Result<Stored, StoreError> {
        let current = self.find(|stored| !stored.rolled_back);
        let current = current.ok_or(StoreError::Rollback("there is no package to go back from"))?;
        self.roll_back(&current.sha256)
    }

    /// Takes back that somebody went back, from every package.
    ///
    /// # Errors
    /// [`StoreError::Rollback`] if nobody did.
    pub fn undo_rollback(&self) -> Result<Stored, StoreError> {
        let mut catalog = self.catalog.lock();
        let mut changed = catalog.clone();
        let newest = changed.packages.iter().find(|stored| stored.rolled_back).cloned();
        let newest = newest.ok_or(StoreError::Rollback("nobody went back from a package"))?;
        changed.packages.iter_mut().for_each(|stored| stored.rolled_back = false);
        self.write(&changed)?;
        *catalog = changed;
        Ok(Stored { rolled_back: false, ..newest })
    }

    /// Where a package of `source` is received.
    ///
    /// # Errors
    /// [`StoreError::Volume`].
    pub fn receive<'a>(
        &'a self,
        source: &str,
        progress: &'a mut OnProgress<'_>,
    ) -> Result<Incoming<'a>, StoreError> {
        let file = self.files.open_or_create(DOWNLOAD)?;
        Ok(Incoming { store: self, file, source: source.to_owned(), progress })
    }

    /// The package that was received.
    ///
    /// # Errors
    /// [`StoreError::Volume`].
    pub fn received(&self) -> Result<Arc<File>, StoreError> {
        let file = self.files.open_or_create(DOWNLOAD)?;
        file.sync()?;
        Ok(Arc::new(file))
    }

    /// Throws away what was received.
    ///
    /// # Errors
    /// [`StoreError::Volume`].
    pub fn discard(&self) -> Result<(), StoreError> {
        self.files.remove(DOWNLOAD_ABOUT)?;
        Ok(self.files.remove(DOWNLOAD)?)
    }

    /// Keeps what was received, which was verified and is `stored`, as the newest package; throws
    /// away those that are too many, but for `in_use`.
    ///
    /// # Errors
    /// [`StoreError::Volume`]; the package is not in the list then.
    pub fn admit(&self, stored: &Stored, in_use: Option<&str>) -> Result<Stored, StoreError> {
        let mut catalog = self.catalog.lock();
        let mut changed = catalog.clone();
        let known = changed.packages.iter().position(|other| other.sha256 == stored.sha256);
        let known = known.map(|position| changed.packages.remove(position));
        // What somebody went back from does not come back by being downloaded again.
        let rolled_back = known.is_some_and(|known| known.rolled_back);
        let stored = Stored { rolled_back, ..stored.clone() };
        changed.packages.insert(0, stored.clone());
        let mut count = 0;
        changed.packages.retain(|other| {
            count += 1;
            count <= self.kept || in_use == Some(&other.sha256)
        });
        self.files.rename(DOWNLOAD, &package_name(&stored.sha256))?;
        self.files.remove(DOWNLOAD_ABOUT)?;
        self.write(&changed)?;
        *catalog = changed;
        drop(catalog);
        if let Err(error) = self.tidy() {
            log::warn!("packages that are no longer kept are still there: {error}");
        }
        Ok(stored)
    }

    /// Notes that `stored` came anew, as it was: from another source, or of another name there.
    ///
    /// # Errors
    /// [`StoreError::Volume`].
    pub fn renew(&self, stored: &Stored) -> Result<(), StoreError> {
        let mut catalog = self.catalog.lock();
        let mut changed = catalog.clone();
        changed.packages.retain(|other| other.sha256 != stored.sha256);
        changed.packages.insert(0, stored.clone());
        self.write(&changed)?;
        *catalog = changed;
        Ok(())
    }

    /// The bytes of a package.
    ///
    /// # Errors
    /// [`StoreError::Volume`].
    pub fn open_package(&self, sha256: &str) -> Result<Arc<File>, StoreError> {
        let file = self.files.open(&package_name(sha256))?;
        Ok(Arc::new(file.ok_or(fs::Error::NotFound)?))
    }

    /// Has a package use the seek points that were kept of it.
    pub fn use_seek_points(&self, sha256: &str, package: &Package) {
        seeks::use_seek_points(&self.files, &seek_name(sha256), package);
    }

    /// Keeps what makes reading of a package faster next time.
    pub fn keep_seek_points(&self, sha256: &str, package: &Package) {
        if self.packages().iter().any(|stored| stored.sha256 == sha256) {
            seeks::keep_seek_points(&self.files, &seek_name(sha256), package);
        }
    }

    fn write(&self, catalog: &Catalog) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(catalog)
            .map_err(|error| StoreError::Catalog(error.to_string()))?;
        Ok(self.files.replace(CATALOG, &bytes)?)
    }

    /// Removes files that belong to no package.
    fn tidy(&self) -> Result<(), StoreError> {
        let catalog = self.catalog.lock();
        let mut wanted = vec![CATALOG.to_owned(), DOWNLOAD.to_owned(), DOWNLOAD_ABOUT.to_owned()];
        for stored in &catalog.packages {
            wanted.extend([package_name(&stored.sha256), seek_name(&stored.sha256)]);
        }
        for name in self.files.names()? {
            if !wanted.contains(&name) {
                self.files.remove(&name)?;
            }
        }
        Ok(())
    }
}

fn package_name(sha256: &str) -> String {
    format!("{sha256}.zip")
}

fn seek_name(sha256: &str) -> String {
    format!("{sha256}.seek")
}

/// A package on its way into the store.
pub struct Incoming<'a> {
    store: &'a Store,
    file: File,
    source: String,
    progress: &'a mut OnProgress<'a>,
}

impl Sink for Incoming<'_> {
    fn resume(&mut self) -> Result<(u64, Validator), fs::Error> {
        let about = self.store.files.read(DOWNLOAD_ABOUT)?;
        let about = about.and_then(|bytes| serde_json::from_slice::<About>(&bytes).ok());
        match about.filter(|about| about.source == self.source) {
            Some(About { etag, .. }) => Ok((self.file.len()?, Validator { etag })),
            None => Ok((0, Validator::default())),
        }
    }

    fn begin(&mut self, validator: &Validator) -> Result<(), fs::Error> {
        self.store.files.remove(DOWNLOAD_ABOUT)?;
        self.file.set_len(0)?;
        let about = About { source: self.source.clone(), etag: validator.etag.clone() };
        let bytes = serde_json::to_vec(&about).unwrap_or_default();
        self.store.files.replace(DOWNLOAD_ABOUT, &bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), fs::Error> {
        self.file.write_at(offset, bytes)
    }

    fn progress(&mut self, done: u64, total: Option<u64>) -> bool {
        (self.progress)(done, total)
    }
}
