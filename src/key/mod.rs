//! Envelope encryption: key-encryption keys (KEK) in providers wrap and unwrap the volume key.
//!
//! This module knows providers, key slots and the keys that hang below the volume key. It does not
//! know files, pages or trees, and nothing in a volume decides which provider is asked: a volume
//! *names* a KEK, and an [`Authorization`] on this host says which ones may be asked.
//!
//! A new kind of provider is a type that implements [`KekProvider`] and a line in
//! [`Registry::default`].

pub mod authorize;
pub mod aws;
pub mod azure;
mod envelope;
pub mod exec;
mod file;
pub mod http;
pub mod local;
pub mod passphrase;
pub mod pin;
pub mod pkcs11;
mod redact;
#[cfg(test)]
pub(crate) mod test_server;
#[cfg(feature = "tpm2")]
pub mod tpm2;
pub mod transit;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use authorize::{Authorization, EndpointSettings, Providers, read_host_file};
pub use envelope::slots::{Rotation, SlotCheck, try_wrap};
pub use envelope::{KeyError, Opened, SlotFailure, VolumeKeys};

use crate::crypto::Secret;
use crate::format::VolumeId;
use crate::format::config::{Algorithm, KekReference};

/// Where a KEK lives. The KEK itself never leaves it; the volume key goes in and comes out.
pub trait KekProvider: Send + Sync {
    /// The URI that names this provider and its key, as it is written into a slot.
    fn uri(&self) -> &str;

    /// The algorithms of this kind of provider; slots that say another are refused.
    fn algorithms(&self) -> &[Algorithm];

    /// Wraps all of `secrets` under the same, newest version of the KEK, in order. Where the
    /// algorithm takes associated data, `binding` is it.
    ///
    /// # Errors
    /// A [`KekError`] of any kind.
    fn wrap(&self, binding: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError>;

    /// Unwraps `wrapped` with the version that `kek` names, as it was wrapped for `binding`.
    ///
    /// # Errors
    /// A [`KekError`]: `Integrity` if the KEK answered but is not the one that wrapped.
    fn unwrap(
        &self,
        binding: &Binding,
        kek: &KekReference,
        wrapped: &[u8],
    ) -> Result<Secret, KekError>;

    /// The version that [`KekProvider::wrap`] would use now, or `None` if keys have no versions
    /// there (a passphrase).
    ///
    /// # Errors
    /// A [`KekError`] of any kind.
    fn latest_version(&self) -> Result<Option<String>, KekError>;

    /// What the provider knows of the key's condition: for warnings before it fails. One request
    /// at most; not asked for when a volume is mounted.
    ///
    /// # Errors
    /// A [`KekError`] of any kind; `Denied` if reading the key is not granted, which wrapping and
    /// unwrapping do not need.
    fn health(&self) -> Result<Health, KekError> {
        Ok(Health::default())
    }

    /// Until when the key may be used, if it says: for those who have a key past its expiry locked
    /// although its service still unwraps ([`ProviderOptions::expiry_denies`]). One request at
    /// most, and none where a key has no expiry, or the service itself refuses after it.
    ///
    /// # Errors
    /// As of [`KekProvider::health`].
    fn expiry(&self) -> Result<Option<SystemTime>, KekError> {
        Ok(None)
    }

    /// Makes a new version of the KEK, and returns its name.
    ///
    /// # Errors
    /// `Configuration` where versions are made elsewhere, as in a vault; else any kind.
    fn create_version(&self) -> Result<String, KekError> {
        let problem = "make the new version where the key lives; this provider cannot".into();
        Err(KekError::new(KekErrorKind::Configuration { problem }, self.uri(), ""))
    }
}

/// What a wrapped key is for. Providers that authenticate associated data refuse it for anything
/// else; for the others the configuration's MAC says the same (`format::config`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The volume whose key it is.
    pub volume_id: VolumeId,
}

impl Binding {
    /// The associated data: ASCII, the same on every host and for ever.
    pub fn associated_data(&self) -> String {
        format!("atrest volume key of {}", self.volume_id)
    }
}

/// The condition of a key, as its provider tells it. `None`: it does not say, or there is no such
/// thing there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The version that the rest is about: the one of the URI, or the newest.
    pub version: Option<String>,
    /// Whether it is switched on.
    pub enabled: Option<bool>,
    /// From when on it wraps.
    pub not_before: Option<SystemTime>,
    /// Until when it wraps; unwrapping goes on in most services.
    pub expires: Option<SystemTime>,
    /// Whether a deleted key can be brought back for some time.
    pub recoverable: Option<bool>,
    /// Whether nobody can destroy a deleted key before that time is over.
    pub purge_protected: Option<bool>,
    /// Operations that the volume needs and the key does not allow, by the service's names.
    pub operations_missing: Vec<String>,
}

/// What [`KekProvider::wrap`] returns.
#[derive(Debug)]
pub struct Wrapped {
    /// The KEK, and the version of it, that wrapped.
    pub kek: KekReference,
    /// The wrapped secrets, in the order given.
    pub blobs: Vec<Vec<u8>>,
}

/// What went wrong with a KEK, as far as the lease has to know.
#[derive(Debug)]
pub enum KekErrorKind {
    /// The provider knows who asks, and refuses.
    Denied {
        /// Its words.
        reason: String,
    },
    /// The key, or this version of it, is switched off.
    Disabled,
    /// The key, or this version of it, is not there.
    Gone {
        /// Whether it can be brought back (soft deletion).
        recoverable: bool,
    },
    /// Too many requests.
    Throttled {
        /// How long to wait, if the provider says.
        retry_after: Option<Duration>,
    },
    /// No answer, or none from the service itself: network, firewall, time-out, 5xx.
    Unreachable {
        /// What happened.
        reason: String,
    },
    /// The provider does not know who asks, or the credential could not be had.
    AuthenticationFailed {
        /// What happened.
        reason: String,
    },
    /// The provider calls the request malformed.
    BadRequest {
        /// Its words.
        reason: String,
    },
    /// The KEK is not the one that wrapped, or the wrapped key was changed: a wrong passphrase.
    Integrity,
    /// The user has to do something else: give a passphrase, authorise the provider, fix
    /// permissions.
    Configuration {
        /// What, and how.
        problem: String,
    },
}

/// An error of a provider: what, and about which key of which provider.
#[derive(Debug)]
pub struct KekError {
    kind: KekErrorKind,
    provider: String,
    key: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl KekErrorKind {
    /// A word for scripts: of the audit log and of metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "denied",
            Self::Disabled => "disabled",
            Self::Gone { .. } => "gone",
            Self::Throttled { .. } => "throttled",
            Self::Unreachable { .. } => "unreachable",
            Self::AuthenticationFailed { .. } => "unauthenticated",
            Self::BadRequest { .. } => "refused",
            Self::Integrity => "integrity",
            Self::Configuration { .. } => "configuration",
        }
    }
}

impl KekError {
    /// An error of `provider` (a URI) about `key` (identifier and version, or empty).
    pub fn new(kind: KekErrorKind, provider: &str, key: &str) -> Self {
        Self { kind, provider: provider.to_owned(), key: key.to_owned(), source: None }
    }

    /// The same, with its cause.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &KekErrorKind {
        &self.kind
    }

    /// URI of the provider.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Identifier and version of the key; empty when no key was reached.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this says that the right to use the key was taken away. Such an answer, given
    /// twice, locks the volume; any other failure is an outage, which the grace period covers:
    /// a missing credential or a firewall is not a decision about the key.
    pub fn is_definitive(&self) -> bool {
        match self.kind {
            KekErrorKind::Denied { .. } | KekErrorKind::Disabled | KekErrorKind::Gone { .. } => {
                true
            }
            KekErrorKind::Throttled { .. }
            | KekErrorKind::Unreachable { .. }
            | KekErrorKind::AuthenticationFailed { .. }
            | KekErrorKind::BadRequest { .. }
            | KekErrorKind::Integrity
            | KekErrorKind::Configuration { .. } => false,
        }
    }
}

impl fmt::Display for KekErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied { reason } => write!(f, "access to the key is denied: {reason}"),
            Self::Disabled => f.write_str("the key version is disabled"),
            Self::Gone { recoverable: true } => {
                f.write_str("the key is deleted; it can be restored")
            }
            Self::Gone { recoverable: false } => f.write_str("the key does not exist"),
            Self::Throttled { retry_after: Some(wait) } => {
                write!(f, "too many requests; try again in {} s", wait.as_secs())
            }
            Self::Throttled { retry_after: None } => f.write_str("too many requests"),
            Self::Unreachable { reason } => write!(f, "no answer: {reason}"),
            Self::AuthenticationFailed { reason } => write!(f, "authentication failed: {reason}"),
            Self::BadRequest { reason } => write!(f, "the request was refused: {reason}"),
            Self::Integrity => f.write_str("this key or passphrase did not wrap the volume key"),
            Self::Configuration { problem } => f.write_str(problem),
        }
    }
}

impl fmt::Display for KekError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.provider, self.kind),
            key => write!(f, "{} (key {key}): {}", self.provider, self.kind),
        }
    }
}

impl std::error::Error for KekError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Makes a provider from its URI.
pub type Constructor =
    Arc<dyn Fn(&str, &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> + Send + Sync>;

/// The kinds of providers, by the part of the URI before the colon.
#[derive(Clone)]
pub struct Registry(BTreeMap<String, Constructor>);

impl Default for Registry {
    fn default() -> Self {
        let mut registry = Self(BTreeMap::new());
        registry.register("aws", Arc::new(aws::from_uri));
        registry.register("azure", Arc::new(azure::from_uri));
        registry.register("exec", Arc::new(exec::from_uri));
        registry.register("local", Arc::new(local::from_uri));
        registry.register("passphrase", Arc::new(passphrase::from_uri));
        registry.register("pkcs11", Arc::new(pkcs11::from_uri));
        #[cfg(feature = "tpm2")]
        registry.register("tpm2", Arc::new(tpm2::from_uri));
        #[cfg(not(feature = "tpm2"))]
        registry.register("tpm2", Arc::new(|uri, _| Err(without_tpm2(uri))));
        registry.register("transit", Arc::new(transit::from_uri));
        registry
    }
}

impl Registry {
    /// Adds a kind, or replaces it.
    pub fn register(&mut self, kind: &str, constructor: Constructor) {
        self.0.insert(kind.to_owned(), constructor);
    }

    /// The kinds, in order of name.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Where providers find what they need, and which may be asked.
#[derive(Clone, Default)]
pub struct ProviderOptions {
    /// Which KEKs may be asked, by the command line.
    pub authorization: Authorization,
    /// Which KEKs may be asked, and how each is reached, by `/etc/atrest/providers.toml`.
    pub providers: Providers,
    /// Which kinds there are.
    pub registry: Registry,
    /// `--passphrase-file`: where a passphrase is read from instead of the terminal.
    pub passphrase_file: Option<PathBuf>,
    /// `--new-passphrase-file`: the same for wrapping, when a passphrase is changed.
    pub new_passphrase_file: Option<PathBuf>,
    /// Opens with this slot only.
    pub slot: Option<u32>,
    /// Whether a passphrase may be asked for on the terminal.
    pub interactive: bool,
    /// Cost of new passphrase slots.
    pub passphrase_cost: passphrase::Cost,
    /// The directory of the local key store, instead of the default one.
    pub key_store: Option<PathBuf>,
    /// Whether a local key that is missing is made: `init` and `key add` only.
    pub create_local_key: bool,
    /// Whether a key past its expiry counts as denied where its service would still unwrap:
    /// `mount`, for as long as it lasts.
    pub expiry_denies: bool,
}

impl ProviderOptions {
    /// How `uri` is reached on this host; a provider's constructor asks for it.
    ///
    /// # Errors
    /// `Configuration` if `/etc/atrest/providers.toml` cannot be read.
    pub fn settings(&self, uri: &str) -> Result<EndpointSettings, KekError> {
        self.providers.settings(uri)
    }
}

/// The provider that `uri` (`kind:rest`) names.
///
/// # Errors
/// `Configuration` if the kind is unknown, or `options` do not authorise the URI; else what the
/// provider says about the URI. No provider is asked for anything yet.
pub fn provider_from_uri(
    uri: &str,
    options: &ProviderOptions,
) -> Result<Arc<dyn KekProvider>, KekError> {
    let refuse = |problem| KekError::new(KekErrorKind::Configuration { problem }, uri, "");
    let constructor = uri.split_once(':').and_then(|(kind, _)| options.registry.0.get(kind));
    let Some(constructor) = constructor else {
        let kinds: Vec<_> = options.registry.kinds().map(|kind| format!("{kind}:")).collect();
        let kinds = kinds.join(", ");
        return Err(refuse(format!("unknown kind of key provider; there are {kinds}")));
    };
    if !options.authorization.permits(uri) && !options.providers.permits(uri)? {
        return Err(refuse(
            "this host does not authorise the key; if it should, allow it with --allow-kek URI, or \
             in /etc/atrest/providers.toml"
                .into(),
        ));
    }
    constructor(uri, options)
}

#[cfg(not(feature = "tpm2"))]
fn without_tpm2(uri: &str) -> KekError {
    let problem = "this program was built without TPMs; build it with: cargo build --release \
                   --features tpm2"
        .to_owned();
    KekError::new(KekErrorKind::Configuration { problem }, uri, "")
}

/// The error for a system call on a file of this host.
fn file_error(error: file::FileError, provider: &str, key: &str) -> KekError {
    KekError::new(KekErrorKind::Configuration { problem: error.to_string() }, provider, key)
        .caused_by(error)
}
