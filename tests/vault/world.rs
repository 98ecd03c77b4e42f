//! A vault in a temporary directory, and its operator.

use std::sync::Arc;

use atrest::key::pin::PinStore;
use atrest::key::{ProviderOptions, provider_from_uri};
use atrest::vault::access::Access;
use atrest::vault::{Request, Service, Settings, Vault, VaultError};
use serde_json::Value;

pub const DAY: i64 = 24 * 60 * 60;

/// A vault that is open, and the service over it.
pub struct World {
    pub place: tempfile::TempDir,
    pub vault: Option<Vault>,
    pub service: Arc<Service>,
}

/// Where the vault lies in a world's directory.
pub fn options(place: &std::path::Path) -> ProviderOptions {
    ProviderOptions {
        key_store: Some(place.join("keys")),
        create_local_key: true,
        ..ProviderOptions::default()
    }
}

pub fn open(place: &std::path::Path, allow_rollback: bool) -> Result<Vault, VaultError> {
    let pins = PinStore::new(place.join("pins"));
    Vault::open(&place.join("vault"), &options(place), pins, "test", allow_rollback)
}

impl World {
    pub fn new() -> Self {
        Self::with(&Settings::default())
    }

    pub fn with(settings: &Settings) -> Self {
        let place = tempfile::tempdir().expect("a temporary directory");
        let provider = provider_from_uri("local:test", &options(place.path())).expect("allowed");
        let pins = PinStore::new(place.path().join("pins"));
        let directory = place.path().join("vault");
        Vault::create(&directory, &*provider, settings, pins).expect("it can be made");
        let vault = open(place.path(), false).expect("it opens");
        let service = Arc::new(Service::new(vault.store.clone(), Access::closed()));
        Self { place, vault: Some(vault), service }
    }

    /// A vault that lets everything be purged after 7 days, or at once.
    pub fn purgeable() -> Self {
        Self::with(&Settings { retention_days: 7, purge_protection: false })
    }

    /// Asks; `body` may be null. Returns the status and the reply.
    pub fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let joint = if path.contains('?') { '&' } else { '?' };
        let target = format!("{path}{joint}api-version=7.4");
        let method = method.parse().expect("a method");
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::of_operator(method, &target, Some(text.as_bytes()));
        let reply = self.service.handle(&request);
        let value = match reply.body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&reply.body).expect("replies are JSON"),
        };
        (reply.status, value)
    }

    /// Asks for what must be done.
    pub fn done(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, value) = self.ask(method, path, body);
        assert!(status == 200 || status == 204, "{method} {path}: {status} {value}");
        value
    }

    /// Asks for what must be refused; returns status, code and inner code.
    pub fn refused(&self, method: &str, path: &str, body: Value) -> (u16, String, String) {
        let (status, value) = self.ask(method, path, body);
        let text = |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        assert!(!text("/error/message").is_empty() || status == 200, "words: {value}");
        (status, text("/error/code").to_owned(), text("/error/innererror/code").to_owned())
    }
}

/// What [`World::refused`] returns, from words.
pub fn error(status: u16, code: &str, inner: &str) -> (u16, String, String) {
    (status, code.to_owned(), inner.to_owned())
}

/// The version at the end of a key's identifier.
pub fn version_of(bundle: &Value) -> String {
    let id = bundle.pointer("/key/kid").or(bundle.get("id")).or(bundle.get("kid"));
    let id = id.and_then(Value::as_str).expect("an identifier");
    let version = id.rsplit('/').next().expect("it has segments").to_owned();
    assert!(version.len() == 32 && version.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    version
}
