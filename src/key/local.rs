//! `local:[NAME]`: keys in a directory of this host, one file a key, with versions.
//!
//! Good for what a vault is too much for, and for tests: revocation here is `disable`, and whoever
//! can read the directory can read the volume. The directory is `$ATREST_KEYSTORE`, else
//! `/var/lib/atrest/keys` for root and `$XDG_DATA_HOME/atrest/keys` for others. It and its files
//! must be their owner's alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::file::{self, FileError};
use super::{Binding, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped, file_error};
use crate::crypto::{Secret, random, wrap};
use crate::format::config::{Algorithm, KekReference};

/// Name of the key that `local:` means.
pub const DEFAULT_NAME: &str = "default";
/// Largest key file that is read or written, in bytes: about 1500 versions.
const FILE_BYTES_MAX: usize = 256 * 1024;
/// Longest name of a key, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The directory of local keys.
#[derive(Clone, Debug)]
pub struct KeyStore {
    directory: PathBuf,
}

/// A key of the store, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name.
    pub name: String,
    /// Its random identity: a key that is deleted and made again is another key.
    pub key_id: String,
    /// Its versions, ascending.
    pub versions: Vec<VersionInfo>,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its number, from 1.
    pub version: u32,
    /// Whether it may be used.
    pub enabled: bool,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

impl KeyStore {
    /// The store in `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The store of this user on this host.
    ///
    /// # Errors
    /// `Configuration` if neither `XDG_DATA_HOME` nor `HOME` says where it is.
    pub fn of_this_user() -> Result<Self, KekError> {
        let absolute = |variable| {
            let path = std::env::var_os(variable).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        if let Some(directory) = std::env::var_os("ATREST_KEYSTORE") {
            return Ok(Self::new(directory.into()));
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(Self::new("/var/lib/atrest/keys".into()));
        }
        let home = || absolute("HOME").map(|home| home.join(".local/share"));
        match absolute("XDG_DATA_HOME").or_else(home) {
            Some(data) => Ok(Self::new(data.join("atrest/keys"))),
            None => {
                let problem = "no key store: set ATREST_KEYSTORE or HOME".to_owned();
                Err(KekError::new(KekErrorKind::Configuration { problem }, "local:", ""))
            }
        }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the key `name` with one version.
    ///
    /// # Errors
    /// `Configuration` if it exists, the name is not allowed, or the store cannot be written.
    pub fn create(&self, name: &str) -> Result<KeyInfo, KekError> {
        let path = self.path(name)?;
        file::create_directory(&self.directory).map_err(|error| problem(name, error))?;
        let _lock = file::lock(&self.directory).map_err(|error| problem(name, error))?;
        if self.load(name)?.is_some() {
            return Err(configuration(name, format!("{} exists", path.display())));
        }
        let mut id = [0; 16];
        random::fill(&mut id);
        let key_id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = Key { key_id, versions: vec![Version::draw(1)] };
        self.store(name, &key)?;
        Ok(key.info(name))
    }

    /// Makes a new version of the key `name`, which later wraps use; returns its number.
    ///
    /// # Errors
    /// `Gone` if there is no such key; `Configuration` if the store cannot be written.
    pub fn rotate(&self, name: &str) -> Result<u32, KekError> {
        self.change(name, |key| {
            let version = key.newest().version + 1;
            key.versions.push(Version::draw(version));
            Ok(version)
        })
    }

    /// Switches a version on or off. Off, it neither wraps nor unwraps: mounted volumes that use it
    /// lock at their next check.
    ///
    /// # Errors
    /// `Gone` if there is no such key or version; `Configuration` if the store cannot be written.
    pub fn set_enabled(&self, name: &str, version: u32, enabled: bool) -> Result<(), KekError> {
        self.change(name, |key| {
            let found = key.versions.iter_mut().find(|entry| entry.version == version);
            found.ok_or_else(|| gone(name, version))?.enabled = enabled;
            Ok(())
        })
    }

    /// All keys, in order of name.
    ///
    /// # Errors
    /// `Configuration` if the store or a key in it cannot be read.
    pub fn list(&self) -> Result<Vec<KeyInfo>, KekError> {
        if !file::check_directory(&self.directory).map_err(|error| problem("", error))? {
            return Ok(Vec::new());
        }
        let read = |error| configuration("", format!("{}: {error}", self.directory.display()));
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(read)? {
            let file_name = entry.map_err(read)?.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(".json"));
            if let Some(name) = name.filter(|name| is_name(name)) {
                keys.extend(self.load(name)?.map(|key| key.info(name)));
            }
        }
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(keys)
    }

    fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Key) -> Result<T, KekError>,
    ) -> Result<T, KekError> {
        self.find(name)?;
        let _lock = file::lock(&self.directory).map_err(|error| problem(name, error))?;
        let mut key = self.find(name)?;
        let result = change(&mut key)?;
        self.store(name, &key)?;
        Ok(result)
    }

    fn find(&self, name: &str) -> Result<Key, KekError> {
        self.load(name)?.ok_or_else(|| {
            KekError::new(KekErrorKind::Gone { recoverable: false }, &uri(name), name)
        })
    }

    fn path(&self, name: &str) -> Result<PathBuf, KekError> {
        if !is_name(name) {
            let problem = "names of keys have 1 to 64 of a-z, 0-9, `-`, `_`, and `.` inside";
            return Err(configuration(name, problem.to_owned()));
        }
        Ok(self.directory.join(format!("{name}.json")))
    }

    fn load(&self, name: &str) -> Result<Option<Key>, KekError> {
        let path = self.path(name)?;
        if !file::check_directory(&self.directory).map_err(|error| problem(name, error))? {
            return Ok(None);
        }
        let bytes = file::read(&path, FILE_BYTES_MAX).map_err(|error| problem(name, error))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let damaged = || configuration(name, format!("{} is damaged", path.display()));
        let document: Document = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        document.check(name).map(Some).ok_or_else(damaged)
    }

    fn store(&self, name: &str, key: &Key) -> Result<(), KekError> {
        let path = self.path(name)?;
        let encoded: Vec<_> = key
            .versions
            .iter()
            .map(|version| Zeroizing::new(STANDARD.encode(version.key.expose())))
            .collect();
        let versions = key.versions.iter().zip(&encoded).map(|(version, key)| VersionEntry {
            version: version.version,
            enabled: version.enabled,
            created: version.created,
            key,
        });
        let document =
            Document { format: 1, name, key_id: &key.key_id, versions: versions.collect() };
        // Room for everything, because a buffer that moves leaves copies of keys.
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX));
        serde_json::to_writer_pretty(&mut *bytes, &document).expect("writing to memory succeeds");
        bytes.push(b'\n');
        if bytes.len() > FILE_BYTES_MAX {
            return Err(configuration(name, "the key has too many versions".to_owned()));
        }
        file::replace(&path, &bytes).map_err(|error| problem(name, error))
    }
}

/// A key file's content.
struct Key {
    key_id: String,
    versions: Vec<Version>,
}

struct Version {
    version: u32,
    enabled: bool,
    created: u64,
    key: Secret,
}

impl Version {
    fn draw(version: u32) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let created = now.map_or(0, |since| since.as_secs());
        Self { version, enabled: true, created, key: random::secret(32) }
    }
}

impl Key {
    fn newest(&self) -> &Version {
        self.versions.last().expect("a key has a version, which decoding checks")
    }

    fn info(&self, name: &str) -> KeyInfo {
        let versions = self.versions.iter().map(|version| VersionInfo {
            version: version.version,
            enabled: version.enabled,
            created: version.created,
        });
        KeyInfo { name: name.into(), key_id: self.key_id.clone(), versions: versions.collect() }
    }
}

/// Borrows from the file's bytes, which are wiped; owned strings would not be.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    format: u16,
    name: &'a str,
    key_id: &'a str,
    #[serde(borrow)]
    versions: Vec<VersionEntry<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionEntry<'a> {
    version: u32,
    enabled: bool,
    created: u64,
    key: &'a str,
}

impl Document<'_> {
    fn check(self, name: &str) -> Option<Key> {
        let numbers = self.versions.iter().map(|entry| entry.version);
        let is_id = self.key_id.len() == 32 && self.key_id.bytes().all(|b| b.is_ascii_hexdigit());
        let in_order = numbers.eq(1..=self.versions.len() as u32) && !self.versions.is_empty();
        if self.format != 1 || self.name != name || !is_id || !in_order {
            return None;
        }
        let versions = self.versions.iter().map(|entry| {
            let key = Secret::try_from_fn(32, |bytes| {
                // The decoder estimates its output in whole groups of three bytes.
                let mut decoded = Zeroizing::new([0; 48]);
                match STANDARD.decode_slice(entry.key, &mut *decoded) {
                    Ok(32) => bytes.copy_from_slice(&decoded[..32]),
                    _ => return Err(()),
                }
                Ok(())
            });
            let VersionEntry { version, enabled, created, .. } = *entry;
            Some(Version { version, enabled, created, key: key.ok()? })
        });
        Some(Key { key_id: self.key_id.to_owned(), versions: versions.collect::<Option<_>>()? })
    }
}

/// The provider of one local key.
struct LocalProvider {
    uri: String,
    name: String,
    store: KeyStore,
    create: bool,
}

/// Makes the provider for `local:` or `local:NAME`; [`super::Registry`] calls it.
///
/// # Errors
/// `Configuration` if the name is not allowed or the key store has no place.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    let name = match uri.split_once(':') {
        Some((_, name)) if !name.is_empty() => name,
        _ => DEFAULT_NAME,
    };
    let store = match &options.key_store {
        Some(directory) => KeyStore::new(directory.clone()),
        None => KeyStore::of_this_user()?,
    };
    store.path(name)?;
    let (name, create) = (name.to_owned(), options.create_local_key);
    Ok(Arc::new(LocalProvider { uri: self::uri(&name), name, store, create }))
}

impl LocalProvider {
    fn key(&self) -> Result<Key, KekError> {
        match self.store.find(&self.name) {
            Err(error) if self.create && matches!(error.kind(), KekErrorKind::Gone { .. }) => {
                // Another process may be first; then its key is the one that is found.
                let created = self.store.create(&self.name);
                self.store.find(&self.name).map_err(|_| created.err().unwrap_or(error))
            }
            result => result,
        }
    }

    fn about(&self, key: &Key, version: &str) -> String {
        format!("{}/{version}", key.key_id)
    }
}

impl KekProvider for LocalProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::A256Kw]
    }

    fn wrap(&self, _: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let key = self.key()?;
        let newest = key.newest();
        let key_version = newest.version.to_string();
        if !newest.enabled {
            let about = self.about(&key, &key_version);
            return Err(KekError::new(KekErrorKind::Disabled, &self.uri, &about));
        }
        let blobs = secrets.iter().map(|secret| wrap::wrap(&newest.key, secret)).collect();
        let (key_id, algorithm) = (key.key_id.clone(), Algorithm::A256Kw);
        Ok(Wrapped {
            kek: KekReference { key_id, key_version, algorithm, parameters: None },
            blobs,
        })
    }

    fn unwrap(&self, _: &Binding, kek: &KekReference, wrapped: &[u8]) -> Result<Secret, KekError> {
        let key = self.store.find(&self.name)?;
        let about = format!("{}/{}", kek.key_id, kek.key_version);
        let refuse = |kind| Err(KekError::new(kind, &self.uri, &about));
        let version =
            key.versions.iter().find(|version| version.version.to_string() == kek.key_version);
        match version.filter(|_| key.key_id == kek.key_id) {
            None => refuse(KekErrorKind::Gone { recoverable: false }),
            Some(version) if !version.enabled => refuse(KekErrorKind::Disabled),
            Some(version) => {
                wrap::unwrap(&version.key, wrapped).or_else(|_| refuse(KekErrorKind::Integrity))
            }
        }
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        Ok(Some(self.store.find(&self.name)?.newest().version.to_string()))
    }

    fn create_version(&self) -> Result<String, KekError> {
        self.store.rotate(&self.name).map(|version| version.to_string())
    }
}

fn is_name(name: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && !name.ends_with('.')
}

fn uri(name: &str) -> String {
    format!("local:{name}")
}

fn gone(name: &str, version: u32) -> KekError {
    let kind = KekErrorKind::Gone { recoverable: false };
    KekError::new(kind, &uri(name), &format!("{name}/{version}"))
}

fn configuration(name: &str, problem: String) -> KekError {
    KekError::new(KekErrorKind::Configuration { problem }, &uri(name), "")
}

fn problem(name: &str, error: FileError) -> KekError {
    file_error(error, &uri(name), "")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    const BINDING: Binding = Binding { volume_id: crate::format::VolumeId([7; 16]) };

    use super::*;

    fn store() -> (tempfile::TempDir, KeyStore) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = KeyStore::new(directory.path().join("deep/keys"));
        (directory, store)
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it exists").permissions().mode() & 0o7777
    }

    /// What is made is the owner's alone, and is listed; nothing else is.
    #[test]
    fn create_and_list() {
        let (_directory, store) = store();
        assert_eq!(store.list().expect("no store, no keys"), []);
        let made = store.create("default").expect("writable");
        store.create("a.b-c_1").expect("writable");
        assert_eq!(store.rotate("default").expect("it exists"), 2);
        store.set_enabled("default", 1, false).expect("it exists");
        std::fs::write(store.directory().join("NOT A KEY.json"), "x").expect("writable");
        let list = store.list().expect("readable");
        let names: Vec<_> = list.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["a.b-c_1", "default"]);
        assert_eq!(list[1].key_id, made.key_id);
        let versions = list[1].versions.iter().map(|v| (v.version, v.enabled));
        assert_eq!(versions.collect::<Vec<_>>(), [(1, false), (2, true)]);
        assert_eq!(mode(store.directory()), 0o700);
        assert_eq!(mode(&store.directory().join("default.json")), 0o600);
    }

    /// A second key of the same name would make the first one's volumes unreadable.
    #[test]
    fn create_refuses_to_replace() {
        let (_directory, store) = store();
        let made = store.create("default").expect("writable");
        let error = store.create("default").expect_err("it exists");
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
        assert_eq!(store.list().expect("readable")[0].key_id, made.key_id);
    }

    /// Names that would leave the directory, hide or collide are refused.
    #[test]
    fn names() {
        let (_directory, store) = store();
        let long = "x".repeat(65);
        for name in ["", "..", ".hidden", "a/b", "../a", "A", "a b", "a.", "é", "a\0", &long] {
            let error = store.create(name).expect_err(name);
            assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{name}");
        }
        store.create(&long[..64]).expect("64 bytes are a name");
    }

    /// A directory or file that others can get at is refused with what to do; so is a link.
    #[test]
    fn permissions() {
        let (_directory, store) = store();
        store.create("default").expect("writable");
        let file = store.directory().join("default.json");
        for (path, loose, tight) in
            [(store.directory(), 0o750, 0o700), (&file, 0o640, 0o600), (&file, 0o604, 0o600)]
        {
            set_mode(path, loose);
            let error = store.rotate("default").expect_err("others can read it");
            assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
            assert!(error.to_string().contains("chmod go= "), "{error}");
            set_mode(path, tight);
            store.rotate("default").expect("nobody else can read it");
        }
        std::fs::rename(&file, store.directory().join("elsewhere")).expect("writable");
        std::os::unix::fs::symlink("elsewhere", &file).expect("writable");
        let error = store.list().expect_err("a link is not a key");
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    }

    /// A missing key, store or version is gone, and a key that was made again is another key.
    #[test]
    fn gone() {
        let (directory, store) = store();
        let options = ProviderOptions {
            key_store: Some(store.directory().to_owned()),
            ..ProviderOptions::default()
        };
        let provider = from_uri("local:", &options).expect("the name is allowed");
        assert_eq!(provider.uri(), "local:default");
        let secret = random::secret(32);
        let is_gone = |error: &KekError| {
            assert!(matches!(error.kind(), KekErrorKind::Gone { recoverable: false }), "{error}");
        };
        is_gone(&provider.wrap(&BINDING, &[&secret]).expect_err("no store, and not to be made"));
        assert!(!directory.path().join("deep").exists());
        is_gone(&store.rotate("default").expect_err("no store"));
        store.create("default").expect("writable");
        is_gone(&store.set_enabled("default", 2, true).expect_err("no version 2"));
        let Wrapped { mut kek, blobs } = provider.wrap(&BINDING, &[&secret]).expect("it exists");
        assert!(provider.unwrap(&BINDING, &kek, &blobs[0]).expect("just wrapped").is_same(&secret));
        kek.key_version = "2".into();
        is_gone(&provider.unwrap(&BINDING, &kek, &blobs[0]).err().expect("no version 2"));
        kek.key_version = "01".into();
        is_gone(
            &provider.unwrap(&BINDING, &kek, &blobs[0]).err().expect("versions have one spelling"),
        );
        kek.key_version = "1".into();
        std::fs::remove_file(store.directory().join("default.json")).expect("it exists");
        is_gone(&provider.unwrap(&BINDING, &kek, &blobs[0]).err().expect("deleted"));
        store.create("default").expect("writable");
        is_gone(&provider.unwrap(&BINDING, &kek, &blobs[0]).err().expect("another key"));
    }

    /// A disabled version neither wraps nor unwraps; a changed blob is `Integrity`.
    #[test]
    fn disabled_and_changed() {
        let (_directory, store) = store();
        let options = ProviderOptions {
            key_store: Some(store.directory().to_owned()),
            create_local_key: true,
            ..ProviderOptions::default()
        };
        let provider = from_uri("local:web", &options).expect("the name is allowed");
        let secret = random::secret(32);
        let Wrapped { kek, mut blobs } = provider.wrap(&BINDING, &[&secret]).expect("it is made");
        store.set_enabled("web", 1, false).expect("it exists");
        let errors = [
            provider.wrap(&BINDING, &[&secret]).err(),
            provider.unwrap(&BINDING, &kek, &blobs[0]).err(),
        ];
        for error in errors {
            let error = error.expect("the version is disabled");
            assert!(matches!(error.kind(), KekErrorKind::Disabled) && error.is_definitive());
        }
        store.set_enabled("web", 1, true).expect("it exists");
        assert!(provider.unwrap(&BINDING, &kek, &blobs[0]).is_ok());
        blobs[0][3] ^= 1;
        let error = provider.unwrap(&BINDING, &kek, &blobs[0]).err().expect("one bit was changed");
        assert!(matches!(error.kind(), KekErrorKind::Integrity) && !error.is_definitive());
    }

    /// Rotations at once lose no version, and whoever reads meanwhile sees a whole file. Each
    /// thread has its own store, as each process would.
    #[test]
    fn concurrent_use() {
        let (_directory, store) = store();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let store = KeyStore::new(store.directory().to_owned());
                    // One of the threads makes the key, the others find it.
                    _ = store.create("default");
                    for _ in 0..10 {
                        store.rotate("default").expect("it exists");
                        assert_eq!(store.list().expect("readable").len(), 1);
                    }
                });
            }
        });
        assert_eq!(store.list().expect("readable")[0].versions.len(), 81);
    }

    /// A key file that is not exactly what this program writes is refused, whatever is wrong.
    #[test]
    fn damaged() {
        let (_directory, store) = store();
        store.create("default").expect("writable");
        let path = store.directory().join("default.json");
        let good = std::fs::read_to_string(&path).expect("text");
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("\"name\": \"default\"", "\"name\": \"other\""),
            ("\"version\": 1", "\"version\": 2"),
            ("\"version\": 1", "\"version\": 1, \"more\": 1"),
            ("\"key\": \"", "\"key\": \"AAAA"),
            ("\"key_id\": \"", "\"key_id\": \"0"),
            ("}", ""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            std::fs::write(&path, bad).expect("writable");
            let error = store.rotate("default").expect_err(to);
            assert!(error.to_string().contains("damaged"), "{error}");
        }
    }
}
