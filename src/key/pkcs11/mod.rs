//! `pkcs11:` (RFC 7512): the KEK is an AES or RSA key on a token that speaks PKCS #11: a hardware
//! security module, a smart card, or software that behaves like one.
//!
//! A key slot's URI selects the token and the key, and nothing else. Which library is loaded, and
//! where the PIN is, the operator says: in the query of a URI of the command line or of
//! `/etc/atrest`, or in the environment. A library that a volume names is never loaded.
//!
//! - AES-256 keys wrap with AES-GCM, bound to the volume, where key and token can; else with AES
//!   key wrap. The wrapped key is then `1 || nonce (12) || ciphertext || tag (16)`.
//! - RSA keys of 2048 bits and more wrap with RSAES-OAEP and SHA-256 where the token can, else with
//!   SHA-1; which, the slot says.
//! - A key's version is its CKA_ID, in hexadecimal. Where several keys have the label of the URI,
//!   the newest by CKA_START_DATE wraps. See `object`.

mod cipher;
mod error;
mod module;
mod object;
mod token;
mod uri;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use self::error::Failure;
use self::module::Module;
use self::object::Key;
use self::token::{Connection, PinSource};
use self::uri::Uri;
use super::{
    Authorization, Binding, Health, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped,
};
use crate::crypto::Secret;
use crate::format::config::{Algorithm, KekReference};

/// The provider of one key.
struct Pkcs11Provider {
    /// The canonical URI, without a query.
    uri: String,
    parsed: Uri,
    /// The library to load, or what the operator has to do to say which.
    module: Result<PathBuf, String>,
    pin: PinSource,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// A PIN that was typed.
    typed: Option<Secret>,
}

/// The path of a `pkcs11:` URI in canonical form, without its query, for comparing what is allowed
/// with what a key slot says; `None` if it is not such a URI.
pub(super) fn canonical(uri: &str) -> Option<String> {
    Uri::parse(uri).ok().map(|uri| uri.canonical())
}

/// Makes the provider for a `pkcs11:` URI; [`super::Registry`] calls it.
///
/// # Errors
/// `Configuration` if the URI is malformed, selects no key, or has a query and does not come from
/// the operator. No library is loaded yet.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    let refuse = |problem: String| {
        // Without the query: it may contain a PIN.
        let shown = uri.split_once('?').map_or(uri, |(path, _)| path);
        Err(KekError::new(KekErrorKind::Configuration { problem }, shown, ""))
    };
    let mut parsed = match Uri::parse(uri) {
        Ok(parsed) => parsed,
        Err(problem) => return refuse(format!("this is not a PKCS #11 URI: {problem}")),
    };
    if parsed.bytes("object").is_none() && parsed.bytes("id").is_none() {
        return refuse("the URI selects no key; add object=LABEL or id=%..".to_owned());
    }
    if parsed.query.is_some() && !options.authorization.entries().any(|entry| entry == uri) {
        return refuse(
            "a volume says which module to load or where the PIN is; that is for this host to say"
                .to_owned(),
        );
    }
    let mut query = operators_query(&parsed, &options.authorization);
    parsed.query = None;
    let settings = options.settings(&parsed.canonical())?.pkcs11;
    if query.module_path.is_none() && query.module_name.is_none() {
        query.module_path = settings.module;
    }
    query.pin_source = query.pin_source.or(settings.pin_file);
    Ok(Arc::new(Pkcs11Provider {
        uri: parsed.canonical(),
        parsed,
        module: module::locate(&query),
        pin: PinSource::find(query.pin_source, options.interactive),
        state: Mutex::default(),
    }))
}

/// What the command line says of how to reach `wanted`: with the same path, else with none.
fn operators_query(wanted: &Uri, authorization: &Authorization) -> uri::Query {
    let entries: Vec<Uri> =
        authorization.entries().filter_map(|entry| Uri::parse(entry).ok()).collect();
    let about = |is_about: &dyn Fn(&Uri) -> bool| {
        entries.iter().filter(|entry| is_about(entry)).find_map(|entry| entry.query.clone())
    };
    let own = about(&|entry| entry.is_same_key(wanted)).unwrap_or_default();
    let general = about(&Uri::is_general).unwrap_or_default();
    let names_module = own.module_path.is_some() || own.module_name.is_some();
    let module = if names_module { own.clone() } else { general.clone() };
    uri::Query {
        module_path: module.module_path,
        module_name: module.module_name,
        pin_source: own.pin_source.or(general.pin_source),
    }
}

impl Pkcs11Provider {
    /// Runs `work` with a session, opening one if there is none that works. What is done with a
    /// session that turns out to be stale is done once more with a new one.
    fn with<T>(
        &self,
        key: &str,
        work: impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, KekError> {
        let mut state = self.state.lock();
        let result = self.with_locked(&mut state, work);
        if result.is_err() {
            // The next call begins anew, with the token as it is then.
            state.connection = None;
        }
        result.map_err(|failure| failure.about(&self.uri, key))
    }

    fn with_locked<T>(
        &self,
        state: &mut State,
        work: impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if state.connection.as_ref().is_some_and(|c| c.process != std::process::id()) {
            // The session is the parent's, to be closed by it alone.
            std::mem::forget(state.connection.take());
        }
        if let Some(connection) = &state.connection {
            match work(connection) {
                Err(failure) if failure.is_stale() => {
                    log::info!("{}: a new session is needed", self.uri);
                    state.connection = None;
                }
                result => return result,
            }
        }
        let module: &Module = token::module_for(&self.module)?;
        let State { connection, typed } = state;
        let connected = token::connect(module, &self.parsed, &self.pin, typed)?;
        work(connection.insert(connected))
    }

    /// What the slot calls the key.
    fn key_id(&self) -> String {
        match self.parsed.text("object") {
            Some(label) if !label.is_empty() && label.bytes().all(|b| b.is_ascii_graphic()) => {
                label.to_owned()
            }
            _ => self.uri.clone(),
        }
    }
}

impl KekProvider for Pkcs11Provider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::A256Gcm, Algorithm::A256Kw, Algorithm::RsaOaep256, Algorithm::RsaOaep]
    }

    fn wrap(&self, binding: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        self.with("", |connection| {
            let key = object::newest(connection, &self.parsed)?;
            refuse_expired(&key)?;
            let (algorithm, blobs) = cipher::wrap(connection, &key, binding, secrets)?;
            let (key_id, key_version) = (self.key_id(), key.version.name());
            let kek = KekReference { key_id, key_version, algorithm, parameters: None };
            Ok(Wrapped { kek, blobs })
        })
    }

    fn unwrap(
        &self,
        binding: &Binding,
        kek: &KekReference,
        wrapped: &[u8],
    ) -> Result<Secret, KekError> {
        let about = format!("{}/{}", kek.key_id, kek.key_version);
        let id = object::unhex(&kek.key_version).filter(|id| !id.is_empty());
        let Some(id) = id.filter(|_| kek.key_id == self.key_id()) else {
            let kind = KekErrorKind::Gone { recoverable: false };
            return Err(KekError::new(kind, &self.uri, &about));
        };
        self.with(&about, |connection| {
            let key = object::version(connection, &self.parsed, &id)?;
            cipher::unwrap(connection, &key, kek.algorithm, binding, wrapped)
        })
    }

    fn expiry(&self) -> Result<Option<SystemTime>, KekError> {
        Ok(self.health()?.expires)
    }

    fn health(&self) -> Result<Health, KekError> {
        self.with("", |connection| {
            let key = object::newest(connection, &self.parsed)?;
            Ok(Health {
                version: Some(key.version.name()),
                not_before: key.version.start.and_then(|date| object::midnight(date, 0)),
                expires: key.end.and_then(|date| object::midnight(date, 1)),
                operations_missing: cipher::missing(connection, &key),
                ..Health::default()
            })
        })
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        self.with("", |connection| {
            Ok(Some(object::newest(connection, &self.parsed)?.version.name()))
        })
    }
}

/// Nothing new is wrapped under a key whose time is over; what it wrapped before, it unwraps.
fn refuse_expired(key: &Key) -> Result<(), Failure> {
    match key.end {
        Some(end) if end < object::today() => {
            let date = String::from_utf8_lossy(&end).into_owned();
            let reason = format!("the key's CKA_END_DATE ({date}) is over; use a newer one");
            Err(KekErrorKind::Denied { reason }.into())
        }
        _ => Ok(()),
    }
}
