//! What this host lets its providers do: which KEKs may be asked, and how each is reached.
//!
//! A volume is not trusted to decide that: a URI in it could send a credential to a stranger, or
//! load a stranger's library. `local:` and `passphrase:`, which reach nobody, are allowed;
//! everything else comes from the command line or from `/etc/atrest/providers.toml`:
//!
//! ```toml
//! # Allowed, with nothing more to say.
//! allow = ["azure:https://web.vault.azure.net/keys/volumes"]
//!
//! # Allowed, and how it is reached.
//! [[provider]]
//! uri = "azure:https://vault.example:8443/"
//! ca_file = "/etc/atrest/vault-ca.pem"
//! client_id = "11111111-2222-3333-4444-555555555555"
//! ```
//!
//! Which text allows which URI is [`permits`]' to say.

mod file;
mod settings;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub use file::read_text as read_host_file;
pub use settings::{
    AwsSettings, AzureIdentity, AzureSettings, EndpointSettings, ExecSettings, Pkcs11Settings,
    Tpm2Settings, TransitAuth, TransitSettings,
};

use super::http::Url;
use super::{KekError, KekErrorKind, pkcs11};

/// Where the administrator says it.
const PROVIDERS_FILE: &str = "/etc/atrest/providers.toml";
/// Kinds that would let a volume choose among the programs of this host.
const KINDS_NEVER_WHOLE: &[&str] = &["exec"];

/// Which KEKs may be asked on this host, by the word of the command line.
#[derive(Clone, Debug)]
pub struct Authorization(Vec<String>);

impl Default for Authorization {
    fn default() -> Self {
        Self(vec!["local:".to_owned(), "passphrase:".to_owned()])
    }
}

impl Authorization {
    /// Allows `pattern` as well, as [`permits`] reads it.
    #[must_use]
    pub fn allow(mut self, pattern: &str) -> Self {
        // A key slot has the canonical form, without what the operator adds about module and PIN.
        self.0.extend(pkcs11::canonical(pattern));
        #[cfg(feature = "tpm2")]
        self.0.extend(super::tpm2::canonical_uri(pattern));
        self.0.push(pattern.to_owned());
        self
    }

    /// What was allowed, as it was given: some kinds of URIs carry settings.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether `uri` may be asked.
    pub fn permits(&self, uri: &str) -> bool {
        self.entries().any(|pattern| permits(pattern, uri))
    }
}

/// Whether `pattern` allows `uri`:
///
/// - `KIND:` allows all of a kind, but no URI with a query, and never programs (`exec:`);
/// - a URL, `KIND:https://HOST[:PORT]/PATH`, allows itself, and if it ends in `/` all below it:
///   the same scheme, host and port, and path segments that begin with its own;
/// - any other text allows itself, and if it ends in `/` or `:` all that begin with it and have no
///   `..`, `.` or empty segment, query or percent encoding behind.
pub fn permits(pattern: &str, uri: &str) -> bool {
    let (Some((kind, wanted)), Some((uri_kind, rest))) =
        (pattern.split_once(':'), uri.split_once(':'))
    else {
        return false;
    };
    if kind != uri_kind || kind.is_empty() {
        return false;
    }
    // What an operator typed, with the module to load and the PIN's file, maybe file:///PATH.
    if kind == "pkcs11" && pattern == uri && rest.contains('?') {
        return true;
    }
    if wanted.is_empty() {
        let is_url = rest.contains("://");
        return !KINDS_NEVER_WHOLE.contains(&kind)
            && !rest.contains('?')
            && (!is_url || Url::parse(rest).is_ok());
    }
    if wanted.contains("://") || rest.contains("://") {
        return match (Url::parse(wanted), Url::parse(rest)) {
            (Ok(pattern), Ok(url)) => permits_url(&pattern, wanted.ends_with('/'), &url),
            _ => false,
        };
    }
    if !wanted.ends_with(['/', ':']) {
        return wanted == rest;
    }
    let below = rest.strip_prefix(wanted);
    below.is_some_and(|below| {
        !below.contains(['?', '%', '\\'])
            && below.split(['/', ':']).all(|segment| !matches!(segment, "" | "." | ".."))
    })
}

fn permits_url(pattern: &Url, with_below: bool, url: &Url) -> bool {
    let mut segments = url.segments();
    let begins = pattern.segments().all(|wanted| segments.next() == Some(wanted));
    pattern.is_same_origin(url) && begins && (with_below || segments.next().is_none())
}

/// What `/etc/atrest/providers.toml` says; read when it is first needed.
#[derive(Clone, Default)]
pub struct Providers(Option<Arc<Source>>);

struct Source {
    path: PathBuf,
    /// Whether it is no error if there is no such file.
    optional: bool,
    read: OnceLock<Result<file::Document, String>>,
}

impl Providers {
    /// The file `$ATREST_PROVIDERS`, which must then be there; else `/etc/atrest/providers.toml`.
    pub fn of_this_host() -> Self {
        match std::env::var_os("ATREST_PROVIDERS") {
            Some(path) => Self::from_file(path.into()),
            None => Self::new(PROVIDERS_FILE.into(), true),
        }
    }

    /// The file `path`, which must be there.
    pub fn from_file(path: PathBuf) -> Self {
        Self::new(path, false)
    }

    fn new(path: PathBuf, optional: bool) -> Self {
        Self(Some(Arc::new(Source { path, optional, read: OnceLock::new() })))
    }

    /// Whether it allows `uri`.
    ///
    /// # Errors
    /// `Configuration` if the file cannot be read, could have been written by others, or is not
    /// well formed.
    pub fn permits(&self, uri: &str) -> Result<bool, KekError> {
        Ok(self.document(uri)?.is_some_and(|document| document.permits(uri)))
    }

    /// How `uri` is reached: what the entry that allows it says, the longest if there are several;
    /// the defaults if there is none.
    ///
    /// # Errors
    /// Those of [`Providers::permits`].
    pub fn settings(&self, uri: &str) -> Result<EndpointSettings, KekError> {
        let found = self.document(uri)?.and_then(|document| document.settings(uri));
        Ok(found.cloned().unwrap_or_default())
    }

    fn document(&self, uri: &str) -> Result<Option<&file::Document>, KekError> {
        let Some(source) = &self.0 else { return Ok(None) };
        match source.read.get_or_init(|| file::read(&source.path, source.optional)) {
            Ok(document) => Ok(Some(document)),
            Err(problem) => {
                let problem = problem.clone();
                Err(KekError::new(KekErrorKind::Configuration { problem }, uri, ""))
            }
        }
    }
}

#[cfg(test)]
mod tests;
