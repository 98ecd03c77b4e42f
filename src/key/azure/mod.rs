//! `azure:https://NAME.vault.azure.net/keys/KEY[/VERSION]`: an RSA key in Azure Key Vault, an RSA
//! or AES key in a Managed HSM, or a key of anything that speaks their protocol.
//!
//! RSA keys wrap with RSA-OAEP-256, AES keys with A256KW. Wrapped keys name the version that
//! wrapped, and are unwrapped by it. Both happen in the vault, so that its log shows them.
//!
//! A first request without token or body has the vault say which token it wants; see `challenge`
//! for which it may get, and `identity` for who asks. Mounting takes that request, one for a token,
//! and one to unwrap.

mod certificate;
mod challenge;
mod error;
mod identity;
mod secret;
mod token;
mod uri;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::Deserialize;
use zeroize::Zeroizing;

use self::challenge::Challenge;
use self::error::Operation;
use self::identity::{Identity, Variables};
pub use self::secret::{SecretError, SecretValue, get_secret};
use self::token::Token;
use self::uri::ObjectId;
use super::http::{Client, Deadline, HttpError, Reply, Request, Url};
use super::{Binding, Health, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped};
use crate::crypto::{Secret, random};
use crate::format::config::{Algorithm, KekReference};

/// The protocol's version.
const API_VERSION: &str = "7.4";
/// Longest secret that is wrapped or unwrapped, in bytes: what RSA-2048 takes (RFC 8017, section
/// 7.1.1).
const SECRET_BYTES_MAX: usize = 190;

/// The provider of one key.
struct AzureProvider {
    uri: String,
    key: ObjectId,
    /// What the vault has to call itself, if that is not seen from its name.
    resource: Option<Url>,
    client: Arc<Client>,
    identity: Identity,
    token: Mutex<Option<Token>>,
}

/// Makes the provider for an `azure:` URI; [`super::Registry`] calls it.
///
/// # Errors
/// `Configuration` if the URI or this host's settings for it cannot be used. Nobody is asked yet.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    let process = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Ok(Arc::new(AzureProvider::new(uri, options, Arc::new(process))?))
}

/// `{"kid": "…", "value": "…"}`
#[derive(Deserialize)]
struct OperationReply<'a> {
    kid: &'a str,
    /// A plaintext key, when it was unwrapped: borrowed, so that there is no copy.
    value: &'a str,
}

#[derive(Deserialize)]
struct Bundle {
    key: JsonWebKey,
    attributes: Attributes,
}

#[derive(Deserialize)]
struct JsonWebKey {
    kid: String,
    kty: String,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Attributes {
    enabled: Option<bool>,
    nbf: Option<u64>,
    exp: Option<u64>,
    #[serde(rename = "recoveryLevel")]
    recovery_level: Option<String>,
}

impl AzureProvider {
    fn new(uri: &str, options: &ProviderOptions, variables: Variables) -> Result<Self, KekError> {
        let refuse = |problem| KekError::new(KekErrorKind::Configuration { problem }, uri, "");
        let text = uri.strip_prefix("azure:").unwrap_or(uri);
        let key = ObjectId::key(text)
            .map_err(|problem| refuse(format!("this is not the URI of a key: {problem}")))?;
        Self::of_object(uri, key, options, variables)
    }

    /// For any object; whether it may be asked was seen before.
    fn of_object(
        uri: &str,
        key: ObjectId,
        options: &ProviderOptions,
        variables: Variables,
    ) -> Result<Self, KekError> {
        let settings = options.settings(uri)?;
        let failed = |error: HttpError| error.into_kek(uri, "");
        let client = Arc::new(Client::new(settings.http.clone()).map_err(failed)?);
        let identity = Identity::new(&settings, &key.vault, client.clone(), variables);
        Ok(Self {
            uri: uri.to_owned(),
            resource: settings.azure.resource,
            identity: identity.map_err(failed)?,
            key,
            client,
            token: Mutex::new(None),
        })
    }

    fn error(&self, kind: KekErrorKind, version: &str) -> KekError {
        let key = match version {
            "" => self.key.unversioned(),
            version => format!("{}/{version}", self.key.unversioned()),
        };
        KekError::new(kind, &self.uri, &key)
    }

    fn is_hsm(&self) -> bool {
        self.key.vault.host().contains(".managedhsm.")
    }

    /// Asks for `operation` of `version` (or the newest, if it is empty), with a token, and again
    /// with a new one if the vault does not take that.
    fn ask(
        &self,
        operation: Operation,
        version: &str,
        body: &[u8],
        binding: Option<&Binding>,
        deadline: Deadline,
    ) -> Result<Reply, KekError> {
        let failed = |kind| self.error(kind, version);
        let url = self.url(&self.key.path(version, operation.path())).map_err(failed)?;
        let agent = match binding {
            Some(binding) => {
                format!("atrest/{} ({})", env!("CARGO_PKG_VERSION"), binding.volume_id)
            }
            None => format!("atrest/{}", env!("CARGO_PKG_VERSION")),
        };
        let mut cached = self.token.lock();
        let mut challenge = None;
        for is_last in [false, true] {
            let token = match cached.take().filter(|token| !token.is_stale()) {
                Some(token) => token,
                None => {
                    let wanted = match challenge.take() {
                        Some(wanted) => wanted,
                        None => self.challenge(operation, version, deadline).map_err(failed)?,
                    };
                    self.identity.token(&wanted, deadline).map_err(failed)?
                }
            };
            let id = request_id();
            let request = match operation {
                Operation::Get | Operation::GetSecret => Request::get(&url),
                Operation::Wrap | Operation::Unwrap => Request::post_json(&url, body),
            };
            let request = request
                .header("Authorization", token.header())
                .header("User-Agent", &agent)
                .header("x-ms-client-request-id", &id);
            let reply = self.client.send(&request, deadline);
            let reply =
                reply.map_err(|error| error.into_kek(&self.uri, &self.key.unversioned()))?;
            log::debug!(
                "{}: {} {version}: status {}, request {id}, {}",
                self.uri,
                operation.name(),
                reply.status(),
                reply.request_id().unwrap_or_default()
            );
            match reply.status() {
                200 => {
                    *cached = Some(token);
                    return Ok(reply);
                }
                401 if !is_last => challenge = Some(self.read_challenge(&reply).map_err(failed)?),
                status => {
                    if status != 401 {
                        *cached = Some(token);
                    }
                    drop(cached);
                    let mut kind = error::kind(&reply, operation, self.is_hsm());
                    if matches!(kind, KekErrorKind::Gone { recoverable: false }) {
                        kind = KekErrorKind::Gone { recoverable: self.is_deleted(deadline) };
                    }
                    return Err(self.error(kind, version));
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    fn url(&self, path: &str) -> Result<Url, KekErrorKind> {
        let url = self.key.vault.with_path(path);
        let url =
            url.map_err(|error| KekErrorKind::Configuration { problem: error.to_string() })?;
        Ok(url.with_query(&[("api-version", API_VERSION)]))
    }

    /// Which token the vault wants: it says so to a request that has none, and nothing else either.
    fn challenge(
        &self,
        operation: Operation,
        version: &str,
        deadline: Deadline,
    ) -> Result<Challenge, KekErrorKind> {
        let url = self.url(&self.key.path(version, ""))?;
        let sent = self.client.send(&Request::get(&url), deadline);
        let reply = sent.map_err(|error| match error {
            HttpError::Configuration { problem } => KekErrorKind::Configuration { problem },
            HttpError::NameUnknown { .. } => KekErrorKind::Unreachable {
                reason: format!("{error}; a vault that was deleted has no name, either"),
            },
            error => KekErrorKind::Unreachable { reason: error.to_string() },
        })?;
        match reply.status() {
            401 => self.read_challenge(&reply),
            200..=299 => Err(KekErrorKind::Unreachable {
                reason: "it answers without asking for a token; is it a key vault?".to_owned(),
            }),
            404 => Err(KekErrorKind::Unreachable {
                reason: "it answers 404 without asking for a token; is it a key vault?".to_owned(),
            }),
            _ => Err(error::kind(&reply, operation, self.is_hsm())),
        }
    }

    /// The challenge of a 401 reply, which must be for this vault.
    fn read_challenge(&self, reply: &Reply) -> Result<Challenge, KekErrorKind> {
        let header = reply.header("www-authenticate").unwrap_or_default();
        let challenge = Challenge::parse(header).map_err(|problem| KekErrorKind::Unreachable {
            reason: format!(
                "status 401 without a challenge that is understood ({problem}); is it a key vault?"
            ),
        })?;
        if !challenge.is_for(&self.key.vault, self.resource.as_ref()) {
            let wanted = match &self.resource {
                Some(resource) => format!("{resource} is allowed"),
                None => "the vault is not in that domain".to_owned(),
            };
            return Err(KekErrorKind::Configuration {
                problem: format!(
                    "the vault asks for a token for {}, but {wanted}; no token is sent. If it is \
                     your own vault, say so with resource = {:?} in /etc/atrest/providers.toml",
                    challenge.resource,
                    challenge.resource.to_string()
                ),
            });
        }
        Ok(challenge)
    }

    /// Whether the object is among those that can be recovered, as far as this identity may know.
    fn is_deleted(&self, deadline: Deadline) -> bool {
        let path = format!("/deleted{}/{}", self.key.collection, self.key.name);
        let Ok(url) = self.url(&path) else { return false };
        let token = self.token.lock();
        let Some(token) = token.as_ref() else { return false };
        let request = Request::get(&url).header("Authorization", token.header());
        if deadline.remaining().is_zero() {
            return false;
        }
        self.client.send_once(&request).is_ok_and(|reply| reply.status() == 200)
    }

    /// The version that a reply is about, which must be of this key.
    fn version_of(&self, kid: &str, expected: &str) -> Result<String, KekError> {
        let id = ObjectId::key(kid).ok().filter(|id| id.is_same_object(&self.key));
        let version = id.and_then(|id| id.version);
        version.filter(|version| expected.is_empty() || version == expected).ok_or_else(|| {
            let reason = "the vault answers for another key or version than was asked".to_owned();
            self.error(KekErrorKind::Unreachable { reason }, expected)
        })
    }

    /// The key's attributes, those of the version of the URI or of the newest; and which that is.
    fn bundle(&self, deadline: Deadline) -> Result<(Bundle, String), KekError> {
        let pinned = self.key.version.as_deref().unwrap_or_default();
        let reply = self.ask(Operation::Get, pinned, &[], None, deadline)?;
        let bundle: Bundle =
            reply.json().map_err(|error| error.into_kek(&self.uri, &self.key.unversioned()))?;
        let version = self.version_of(&bundle.key.kid, pinned)?;
        Ok((bundle, version))
    }

    fn algorithm(&self, bundle: &Bundle) -> Result<Algorithm, KekError> {
        match bundle.key.kty.as_str() {
            "RSA" | "RSA-HSM" => Ok(Algorithm::RsaOaep256),
            "oct" | "oct-HSM" => Ok(Algorithm::A256Kw),
            _ => {
                let problem =
                    "keys of this type do not wrap; make an RSA key, or in a Managed HSM \
                               an AES key of 256 bits"
                        .to_owned();
                Err(self.error(KekErrorKind::Configuration { problem }, ""))
            }
        }
    }

    /// Sends `value` through `operation`, and hands on the value that comes back.
    fn transform<T>(
        &self,
        operation: Operation,
        binding: &Binding,
        (version, algorithm): (&str, Algorithm),
        value: &[u8],
        read: impl FnOnce(&str) -> Option<T>,
        deadline: Deadline,
    ) -> Result<T, KekError> {
        let body = request_body(algorithm, value);
        let reply = self.ask(operation, version, body.as_bytes(), Some(binding), deadline)?;
        let parsed: OperationReply =
            reply.json().map_err(|error| error.into_kek(&self.uri, &self.key.unversioned()))?;
        self.version_of(parsed.kid, version)?;
        read(parsed.value).ok_or_else(|| {
            let reason = "the vault's reply has a value that cannot be one".to_owned();
            self.error(KekErrorKind::Unreachable { reason }, version)
        })
    }
}

impl KekProvider for AzureProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::RsaOaep256, Algorithm::A256Kw]
    }

    fn wrap(&self, binding: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let deadline = self.client.deadline();
        let (bundle, version) = self.bundle(deadline)?;
        // The service would wrap with a disabled version, and then not unwrap.
        if bundle.attributes.enabled == Some(false) {
            return Err(self.error(KekErrorKind::Disabled, &version));
        }
        let algorithm = self.algorithm(&bundle)?;
        let blobs = secrets.iter().map(|secret| {
            let read = |value: &str| {
                let blob = URL_SAFE_NO_PAD.decode(value).ok()?;
                is_wrapped_length(algorithm, blob.len()).then_some(blob)
            };
            let key = (version.as_str(), algorithm);
            self.transform(Operation::Wrap, binding, key, secret.expose(), read, deadline)
        });
        let blobs = blobs.collect::<Result<_, _>>()?;
        let kek = KekReference {
            key_id: self.key.unversioned(),
            key_version: version,
            algorithm,
            parameters: None,
        };
        Ok(Wrapped { kek, blobs })
    }

    fn unwrap(
        &self,
        binding: &Binding,
        kek: &KekReference,
        wrapped: &[u8],
    ) -> Result<Secret, KekError> {
        let id = ObjectId::key(&format!("{}/{}", kek.key_id, kek.key_version)).ok();
        let id = id.filter(|id| id.is_same_object(&self.key));
        let version = id
            .and_then(|id| id.version)
            .filter(|version| self.key.version.as_ref().is_none_or(|pinned| pinned == version));
        let Some(version) = version else {
            let problem = "the key slot names a key of another vault than its URI".to_owned();
            return Err(self.error(KekErrorKind::Configuration { problem }, ""));
        };
        if !is_wrapped_length(kek.algorithm, wrapped.len()) {
            return Err(self.error(KekErrorKind::Integrity, &version));
        }
        let key = (version.as_str(), kek.algorithm);
        let deadline = self.client.deadline();
        self.transform(Operation::Unwrap, binding, key, wrapped, decode_secret, deadline)
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        match &self.key.version {
            Some(pinned) => Ok(Some(pinned.clone())),
            None => Ok(Some(self.bundle(self.client.deadline())?.1)),
        }
    }

    fn expiry(&self) -> Result<Option<SystemTime>, KekError> {
        Ok(self.health()?.expires)
    }

    fn health(&self) -> Result<Health, KekError> {
        let (bundle, version) = self.bundle(self.client.deadline())?;
        self.algorithm(&bundle)?;
        let time = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let Attributes { enabled, nbf, exp, recovery_level } = bundle.attributes;
        let recoverable = recovery_level.as_ref().map(|level| level.contains("Recoverable"));
        let purgeable = recovery_level.map(|level| level.contains("Purgeable"));
        let missing = |operation: &&str| {
            let allowed = bundle.key.key_ops.as_ref();
            allowed.is_some_and(|allowed| !allowed.iter().any(|name| name == operation))
        };
        let needed = [Operation::Wrap, Operation::Unwrap].map(Operation::name);
        Ok(Health {
            version: Some(version),
            enabled,
            not_before: nbf.and_then(time),
            expires: exp.and_then(time),
            recoverable,
            purge_protected: purgeable.map(|purgeable| !purgeable && recoverable == Some(true)),
            operations_missing: needed
                .iter()
                .filter(|name| missing(name))
                .map(|name| (*name).into())
                .collect(),
        })
    }
}

/// Lengths of what the algorithms make: a block of RSA 2048, 3072 or 4096; whole 64-bit blocks and
/// one more (RFC 3394).
fn is_wrapped_length(algorithm: Algorithm, length: usize) -> bool {
    match algorithm {
        Algorithm::RsaOaep256 => [256, 384, 512].contains(&length),
        _ => length % 8 == 0 && (24..=SECRET_BYTES_MAX).contains(&length),
    }
}

/// `{"alg":…,"value":…}`, in one buffer that is wiped: the value may be a secret.
fn request_body(algorithm: Algorithm, value: &[u8]) -> Zeroizing<String> {
    let name = match algorithm {
        Algorithm::A256Kw => "A256KW",
        _ => "RSA-OAEP-256",
    };
    let mut body = Zeroizing::new(String::with_capacity(64 + value.len() * 4 / 3));
    body.push_str("{\"alg\":\"");
    body.push_str(name);
    body.push_str("\",\"value\":\"");
    URL_SAFE_NO_PAD.encode_string(value, &mut body);
    body.push_str("\"}");
    body
}

/// Decodes base64url straight into locked memory.
fn decode_secret(value: &str) -> Option<Secret> {
    if value.len() % 4 == 1 {
        return None;
    }
    let length = value.len() * 3 / 4;
    if !(1..=SECRET_BYTES_MAX).contains(&length) {
        return None;
    }
    let decode = |bytes: &mut [u8]| {
        let written = URL_SAFE_NO_PAD.decode_slice(value, bytes).map_err(|_| ())?;
        if written == length { Ok(()) } else { Err(()) }
    };
    Secret::try_from_fn(length, decode).ok()
}

/// A random UUID, by which the vault's log and ours name the same request.
fn request_id() -> String {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests;
