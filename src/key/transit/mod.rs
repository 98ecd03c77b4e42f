//! `transit:https://HOST[:PORT]/v1/MOUNT/keys/KEY`: the transit secrets engine of OpenBao and
//! HashiCorp Vault. MOUNT is where the engine is mounted, `transit` by default, perhaps below
//! namespaces.
//!
//! The key must be there, of type `aes256-gcm96` and not derived. It is looked up before anything
//! is wrapped: a token with the capability `create` would otherwise make a misspelt key. The volume
//! is the associated data, so `rewrap`, which takes none, is of no use: a rotation unwraps and
//! wraps.
//!
//! What a mount has to be granted: `update` on `MOUNT/decrypt/KEY`; to wrap, also `read` on
//! `MOUNT/keys/KEY` and `update` on `MOUNT/encrypt/KEY`. Never `create`.

mod answer;
mod auth;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::answer::{Operation, Refusal};
use self::auth::{Login, Session};
use super::authorize::EndpointSettings;
use super::http::{Client, Deadline, Reply, Request, Url, to_json};
use super::redact::decode_secret;
use super::{Binding, Health, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped};
use crate::crypto::Secret;
use crate::format::config::{Algorithm, KekReference};

/// The one type of key that is used.
const KEY_TYPE: &str = "aes256-gcm96";
/// Longest wrapped key (`format::config`) and longest secret, in bytes.
const WRAPPED_BYTES_MAX: usize = 1024;
const SECRET_BYTES_MAX: usize = 512;
/// Header of the namespace.
const NAMESPACE: &str = "X-Vault-Namespace";
/// Header of the token.
const TOKEN: &str = "X-Vault-Token";

/// The provider of one transit key.
struct TransitProvider {
    uri: String,
    /// `MOUNT/keys/KEY`, which is the identifier in slots.
    key_id: String,
    urls: Urls,
    client: Client,
    login: Login,
}

/// Where the key's operations are.
struct Urls {
    key: Url,
    encrypt: Url,
    decrypt: Url,
    rotate: Url,
}

/// Makes the provider; [`super::Registry`] calls it. Nothing is asked yet.
///
/// # Errors
/// `Configuration` if the URI or the host's settings for it are of no use.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    let settings = options.settings(uri)?;
    provider(uri, &settings).map(|provider| Arc::new(provider) as _)
}

fn provider(uri: &str, settings: &EndpointSettings) -> Result<TransitProvider, KekError> {
    let refuse = |problem| KekError::new(KekErrorKind::Configuration { problem }, uri, "");
    let text = uri.strip_prefix("transit:").unwrap_or(uri);
    let url = Url::parse(text).map_err(|error| refuse(error.to_string()))?;
    let (key_id, urls) = urls(&url).ok_or_else(|| {
        refuse("a transit key's URI is transit:https://HOST/v1/transit/keys/KEY".to_owned())
    })?;
    let client = Client::new(settings.http.clone()).map_err(|error| error.into_kek(uri, ""))?;
    let login = Login::new(&url, &settings.transit).map_err(refuse)?;
    // One spelling: it is what slots say, and what is authorised.
    Ok(TransitProvider { uri: format!("transit:{url}"), key_id, urls, client, login })
}

fn urls(url: &Url) -> Option<(String, Urls)> {
    let segments: Vec<_> = url.segments().collect();
    let ["v1", mount @ .., "keys", key] = segments.as_slice() else { return None };
    if mount.is_empty() || url.path().ends_with('/') {
        return None;
    }
    let mount = mount.join("/");
    let at = |operation: &str| url.with_path(&format!("/v1/{mount}/{operation}/{key}")).ok();
    let urls = Urls {
        key: at("keys")?,
        encrypt: at("encrypt")?,
        decrypt: at("decrypt")?,
        rotate: url.with_path(&format!("/v1/{mount}/keys/{key}/rotate")).ok()?,
    };
    Some((format!("{mount}/keys/{key}"), urls))
}

/// A reply's content; the rest of what it says is not looked at.
#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct KeyData {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u64,
    #[serde(default)]
    derived: bool,
    #[serde(default)]
    deletion_allowed: bool,
    /// OpenBao's.
    #[serde(default)]
    soft_deleted: bool,
    /// When each version that is there was made, or for other types an object.
    #[serde(default)]
    keys: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
    key_version: u64,
}

#[derive(Deserialize)]
struct Encrypted<'a> {
    ciphertext: &'a str,
}

#[derive(Serialize)]
struct Decrypt<'a> {
    ciphertext: &'a str,
    associated_data: &'a str,
}

#[derive(Deserialize)]
struct Decrypted<'a> {
    plaintext: &'a str,
}

impl TransitProvider {
    /// Sends what `make` makes with a token, logging in when there is none; once more if it is
    /// refused with a token that may have ended.
    fn ask<'a>(
        &self,
        operation: Operation,
        about: &str,
        deadline: Deadline,
        make: impl Fn() -> Request<'a>,
    ) -> Result<Reply, KekError> {
        let mut refused: Option<Arc<Session>> = None;
        loop {
            let session = self.login.session(&self.client, deadline, refused.as_ref());
            let session = session.map_err(|refusal| self.refused(refusal, about))?;
            let token = session.token().map_err(|refusal| self.refused(refusal, about))?;
            let request = self.login.with_namespace(make()).header(TOKEN, token);
            // A version that is made twice is one too many.
            let reply = match operation {
                Operation::Rotate => self.client.send_once(&request),
                _ => self.client.send(&request, deadline),
            };
            let reply = reply.map_err(|error| error.into_kek(&self.uri, about))?;
            match reply.status() {
                200 | 204 => return Ok(reply),
                // The token may have ended, and a right look the same.
                403 if refused.is_none() && self.login.may_have_ended(&session) => {
                    refused = Some(session);
                }
                403 => {
                    let valid = self.login.is_valid(&self.client, token, deadline);
                    let valid = valid.map_err(|error| error.into_kek(&self.uri, about))?;
                    let refusal = answer::forbidden(&reply, operation, &self.key_id, valid);
                    return Err(self.refused(refusal, about));
                }
                _ => {
                    let refusal = answer::refusal(&reply, operation, &self.key_id);
                    return Err(self.refused(refusal, about));
                }
            }
        }
    }

    fn refused(&self, refusal: Refusal, about: &str) -> KekError {
        let error = KekError::new(refusal.kind, &self.uri, about);
        match refusal.cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        }
    }

    fn error(&self, kind: KekErrorKind, about: &str) -> KekError {
        KekError::new(kind, &self.uri, about)
    }

    fn unexpected(&self, problem: &str, about: &str) -> KekError {
        let reason = format!("{} answers {problem}", self.urls.key.authority());
        self.error(KekErrorKind::Unreachable { reason }, about)
    }

    fn key(&self, deadline: Deadline) -> Result<KeyData, KekError> {
        let about = &self.key_id;
        let reply = self.ask(Operation::Read, about, deadline, || Request::get(&self.urls.key))?;
        let Envelope { data } =
            reply.json::<Envelope<KeyData>>().map_err(|error| error.into_kek(&self.uri, about))?;
        if data.latest_version == 0 || data.latest_version > u64::from(u32::MAX) {
            return Err(self.unexpected("with a key that has no version", about));
        }
        Ok(data)
    }

    /// The key, if it can do what a volume needs.
    fn usable_key(&self, deadline: Deadline) -> Result<KeyData, KekError> {
        let key = self.key(deadline)?;
        if key.soft_deleted {
            return Err(self.error(KekErrorKind::Gone { recoverable: true }, &self.key_id));
        }
        if key.kind != KEY_TYPE || key.derived {
            let derived = if key.derived { ", derived" } else { "" };
            let found = format!("{}{derived}", super::http::printable(&key.kind));
            let problem = format!(
                "{} is a key of type {found}; a volume needs one of type {KEY_TYPE}, not derived: \
                 bao write -f {} type={KEY_TYPE}",
                self.key_id, self.key_id
            );
            return Err(self.error(KekErrorKind::Configuration { problem }, &self.key_id));
        }
        Ok(key)
    }

    fn about(&self, version: impl std::fmt::Display) -> String {
        format!("{}/{version}", self.key_id)
    }

    fn wrap_one(
        &self,
        version: u64,
        associated_data: &str,
        secret: &Secret,
        deadline: Deadline,
    ) -> Result<Vec<u8>, KekError> {
        let about = self.about(version);
        let plaintext = Zeroizing::new(STANDARD.encode(secret.expose()));
        let body =
            to_json(&Encrypt { plaintext: &plaintext, associated_data, key_version: version });
        let make = || Request::post_json(&self.urls.encrypt, &body);
        let reply = self.ask(Operation::Encrypt, &about, deadline, make)?;
        let Envelope { data } = reply
            .json::<Envelope<Encrypted<'_>>>()
            .map_err(|error| error.into_kek(&self.uri, &about))?;
        let wrapped = data.ciphertext;
        if version_of(wrapped) != Some(&version.to_string()) || wrapped.len() > WRAPPED_BYTES_MAX {
            return Err(self.unexpected("with another ciphertext than was asked for", &about));
        }
        Ok(wrapped.as_bytes().to_vec())
    }
}

/// The version that `vault:vN:...` says.
fn version_of(wrapped: &str) -> Option<&str> {
    let (version, sealed) = wrapped.strip_prefix("vault:v")?.split_once(':')?;
    let is_number = !version.starts_with('0')
        && (1..=10).contains(&version.len())
        && version.bytes().all(|b| b.is_ascii_digit());
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    let is_sealed = !sealed.is_empty() && sealed.bytes().all(is_base64);
    (is_number && is_sealed).then_some(version)
}

impl KekProvider for TransitProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::A256Gcm]
    }

    fn wrap(&self, binding: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let deadline = self.client.deadline();
        let version = self.usable_key(deadline)?.latest_version;
        let data = STANDARD.encode(binding.associated_data());
        let blobs = secrets.iter().map(|secret| self.wrap_one(version, &data, secret, deadline));
        let kek = KekReference {
            key_id: self.key_id.clone(),
            key_version: version.to_string(),
            algorithm: Algorithm::A256Gcm,
            parameters: None,
        };
        Ok(Wrapped { blobs: blobs.collect::<Result<_, _>>()?, kek })
    }

    fn unwrap(
        &self,
        binding: &Binding,
        kek: &KekReference,
        wrapped: &[u8],
    ) -> Result<Secret, KekError> {
        let about = format!("{}/{}", kek.key_id, kek.key_version);
        let ciphertext = std::str::from_utf8(wrapped).ok().filter(|wrapped| {
            version_of(wrapped) == Some(&kek.key_version) && kek.key_id == self.key_id
        });
        let Some(ciphertext) = ciphertext else {
            return Err(self.error(KekErrorKind::Integrity, &about).caused_by(
                "the slot's key or version is not the one that the wrapped key says".to_owned(),
            ));
        };
        let associated_data = STANDARD.encode(binding.associated_data());
        let body = to_json(&Decrypt { ciphertext, associated_data: &associated_data });
        let make = || Request::post_json(&self.urls.decrypt, &body);
        let reply = self.ask(Operation::Decrypt, &about, self.client.deadline(), make)?;
        let Envelope { data } = reply
            .json::<Envelope<Decrypted<'_>>>()
            .map_err(|error| error.into_kek(&self.uri, &about))?;
        let secret = decode_secret(&STANDARD, data.plaintext, SECRET_BYTES_MAX);
        secret.ok_or_else(|| self.unexpected("with a plaintext that is no key", &about))
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        let key = self.usable_key(self.client.deadline())?;
        Ok(Some(key.latest_version.to_string()))
    }

    fn health(&self) -> Result<Health, KekError> {
        let key = self.key(self.client.deadline())?;
        let version = key.latest_version.to_string();
        let usable = key.kind == KEY_TYPE && !key.derived;
        let missing = ["encrypt", "decrypt"].iter().filter(|_| !usable);
        Ok(Health {
            enabled: Some(!key.soft_deleted && key.keys.contains_key(&version)),
            version: Some(version),
            purge_protected: Some(!key.deletion_allowed),
            operations_missing: missing.map(|&name| name.to_owned()).collect(),
            ..Health::default()
        })
    }

    fn create_version(&self) -> Result<String, KekError> {
        let deadline = self.client.deadline();
        self.usable_key(deadline)?;
        let make = || Request::post_json(&self.urls.rotate, b"{}");
        self.ask(Operation::Rotate, &self.key_id, deadline, make)?;
        Ok(self.key(deadline)?.latest_version.to_string())
    }
}
