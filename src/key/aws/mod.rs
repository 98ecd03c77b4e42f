//! `aws:ARN`: a symmetric key of AWS Key Management Service, by the ARN of the key or of an alias:
//! `aws:arn:aws:kms:REGION:ACCOUNT:key/ID`, `aws:arn:aws:kms:REGION:ACCOUNT:alias/NAME`.
//!
//! The volume is the encryption context, which the service authenticates (and writes into its audit
//! log). Slots have the ARN of the key itself, and as version the identifier of its key material;
//! older material goes on decrypting. Where an alias points is for new wraps only: a slot's key is
//! asked by its own ARN, and must be of the account and region that the URI says.
//!
//! What a mount has to be granted: `kms:Decrypt`; to wrap, also `kms:DescribeKey` and
//! `kms:Encrypt`.

mod answer;
mod credentials;
mod sign;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::answer::Exception;
use self::credentials::{Credentials, Environment, Provider};
use self::sign::Target;
use super::authorize::EndpointSettings;
use super::http::{Client, Deadline, Reply, Request, Url, printable, to_json};
use super::redact::decode_secret;
use super::{Binding, Health, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped};
use crate::crypto::Secret;
use crate::format::config::{Algorithm, KekReference};

/// Name under which the volume is in the encryption context.
const CONTEXT: &str = "atrest";
/// Longest wrapped key (`format::config`) and longest secret, in bytes.
const WRAPPED_BYTES_MAX: usize = 1024;
const SECRET_BYTES_MAX: usize = 512;
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// Credentials that end within this are had anew.
const MARGIN: Duration = Duration::from_secs(120);
/// Wait before a request that was throttled is repeated; doubles with each.
const BACKOFF: Duration = Duration::from_millis(250);
const ATTEMPTS_MAX: u32 = 4;
/// Between looks whether a rotation has come through.
const ROTATION_POLL: Duration = Duration::from_millis(500);

/// The provider of one key or alias.
struct AwsProvider {
    uri: String,
    arn: Arn,
    endpoint: Url,
    client: Client,
    source: Provider,
    credentials: Mutex<Option<Arc<Credentials>>>,
}

/// The ARN of a key or an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arn {
    text: String,
    partition: String,
    region: String,
    /// `arn:PARTITION:kms:REGION:ACCOUNT:`.
    scope: String,
    /// Of a key, not an alias.
    is_key: bool,
}

impl Arn {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split(':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts.as_slice() else {
            return None;
        };
        let is_word = |text: &str, max: usize| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=max).contains(&text.len()) && text.bytes().all(allowed)
        };
        let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let is_alias = |name: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/_-".contains(&b);
            (1..=250).contains(&name.len()) && name.bytes().all(allowed)
        };
        let is_key = match resource.split_once('/')? {
            ("key", id) if is_word(id, 64) => true,
            ("alias", name) if is_alias(name) => false,
            _ => return None,
        };
        let sound = is_word(partition, 16) && is_word(region, 32) && is_account;
        sound.then(|| Self {
            text: text.to_owned(),
            partition: (*partition).to_owned(),
            region: (*region).to_owned(),
            scope: text[..text.len() - resource.len()].to_owned(),
            is_key,
        })
    }

    /// Domain of the partition's services.
    fn domain(&self) -> Option<&'static str> {
        match self.partition.as_str() {
            "aws" | "aws-us-gov" => Some("amazonaws.com"),
            "aws-cn" => Some("amazonaws.com.cn"),
            _ => None,
        }
    }

    /// Whether a slot of this URI may have been wrapped by `key`.
    fn covers(&self, key: &Self) -> bool {
        key.is_key && if self.is_key { key.text == self.text } else { key.scope == self.scope }
    }
}

/// Makes the provider; [`super::Registry`] calls it. Nothing is asked yet.
///
/// # Errors
/// `Configuration` if the URI, the host's settings for it or the environment are of no use.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    let settings = options.settings(uri)?;
    let environment = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.map(Zeroizing::new)
    };
    provider(uri, &settings, Box::new(environment), None).map(|provider| Arc::new(provider) as _)
}

fn provider(
    uri: &str,
    settings: &EndpointSettings,
    environment: Box<Environment>,
    token_service: Option<Url>,
) -> Result<AwsProvider, KekError> {
    let refuse = |problem: String| KekError::new(KekErrorKind::Configuration { problem }, uri, "");
    let arn = Arn::parse(uri.strip_prefix("aws:").unwrap_or(uri)).ok_or_else(|| {
        refuse("an AWS key's URI is aws:arn:aws:kms:REGION:ACCOUNT:key/ID or …:alias/NAME".into())
    })?;
    let service = |name: &str| {
        let domain = arn.domain().ok_or_else(|| {
            let partition = &arn.partition;
            refuse(format!("set `endpoint`: where services of {partition} are is not known here"))
        })?;
        let url = format!("https://{name}.{}.{domain}", arn.region);
        Url::parse(&url).map_err(|error| refuse(error.to_string()))
    };
    let endpoint = settings.aws.endpoint.clone().map_or_else(|| service("kms"), Ok)?;
    if !endpoint.path().is_empty() {
        return Err(refuse("`endpoint` has a path; give it as https://HOST[:PORT]".to_owned()));
    }
    let token_service = token_service.map_or_else(|| service("sts"), Ok);
    // Only web identities need it.
    let token_service = token_service.unwrap_or_else(|_| endpoint.clone());
    let client = Client::new(settings.http.clone()).map_err(|error| error.into_kek(uri, ""))?;
    let source = Provider::new(&settings.aws, &settings.http, environment, token_service);
    let source = source.map_err(refuse)?;
    let (uri, credentials) = (uri.to_owned(), Mutex::new(None));
    Ok(AwsProvider { uri, arn, endpoint, client, source, credentials })
}

/// What is asked.
#[derive(Clone, Copy)]
enum Operation {
    Describe,
    Encrypt,
    Decrypt,
    Rotate,
}

impl Operation {
    fn target(self) -> &'static str {
        match self {
            Self::Describe => "TrentService.DescribeKey",
            Self::Encrypt => "TrentService.Encrypt",
            Self::Decrypt => "TrentService.Decrypt",
            Self::Rotate => "TrentService.RotateKeyOnDemand",
        }
    }

    /// What a policy calls it.
    fn permission(self) -> String {
        self.target().replace("TrentService.", "kms:")
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeyRequest<'a> {
    key_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CryptRequest<'a> {
    key_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_blob: Option<&'a str>,
    encryption_context: BTreeMap<&'a str, &'a str>,
    encryption_algorithm: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CryptReply<'a> {
    key_id: &'a str,
    plaintext: Option<&'a str>,
    ciphertext_blob: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeReply {
    key_metadata: KeyMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyMetadata {
    arn: String,
    key_state: String,
    key_spec: Option<String>,
    key_usage: Option<String>,
    /// Seconds since 1970; for imported material that ends.
    valid_to: Option<f64>,
    current_key_material_id: Option<String>,
}

impl KeyMetadata {
    fn is_symmetric(&self) -> bool {
        self.key_spec.as_deref().is_none_or(|spec| spec == "SYMMETRIC_DEFAULT")
            && self.key_usage.as_deref().is_none_or(|usage| usage == "ENCRYPT_DECRYPT")
    }

    /// The identifier of the newest material; without one, that of the key, which is then all that
    /// can be told apart.
    fn version(&self) -> String {
        let is_id = |id: &&String| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        let key_id = || self.arn.rsplit('/').next().unwrap_or_default().to_owned();
        self.current_key_material_id.as_ref().filter(is_id).cloned().unwrap_or_else(key_id)
    }
}

impl AwsProvider {
    fn error(&self, kind: KekErrorKind, about: &str) -> KekError {
        KekError::new(kind, &self.uri, about)
    }

    fn unexpected(&self, problem: &str, about: &str) -> KekError {
        let reason = format!("{} answers {problem}", self.endpoint.authority());
        self.error(KekErrorKind::Unreachable { reason }, about)
    }

    /// The credentials that there are, if they are good for a while and not those that were
    /// `refused`; else others. Those that are about to end are better than none.
    fn credentials(
        &self,
        deadline: Deadline,
        refused: Option<&Arc<Credentials>>,
    ) -> Result<Arc<Credentials>, KekError> {
        let mut current = self.credentials.lock();
        let known = current.clone().filter(|c| refused.is_none_or(|r| !Arc::ptr_eq(r, c)));
        if let Some(credentials) = known.as_ref().filter(|c| !c.end_within(MARGIN)) {
            return Ok(credentials.clone());
        }
        match self.source.get(deadline) {
            Ok(credentials) => {
                let credentials = Arc::new(credentials);
                *current = Some(credentials.clone());
                Ok(credentials)
            }
            Err(kind) => {
                let old = known.filter(|c| !c.end_within(Duration::ZERO));
                old.ok_or_else(|| self.error(kind, ""))
            }
        }
    }

    /// Asks, again while the service is busy, and once more with new credentials if these are
    /// refused.
    fn ask(
        &self,
        operation: Operation,
        about: &str,
        deadline: Deadline,
        body: &[u8],
    ) -> Result<Reply, KekError> {
        let mut wait = BACKOFF;
        let mut ended: Option<Arc<Credentials>> = None;
        for attempt in 1.. {
            let credentials = self.credentials(deadline, ended.as_ref())?;
            let reply = self.ask_once(operation, about, deadline, body, &credentials)?;
            if reply.status() == 200 {
                return Ok(reply);
            }
            let exception = Exception::of(&reply);
            let refused = exception.as_ref();
            if refused.is_some_and(Exception::is_about_credentials) && ended.is_none() {
                ended = Some(credentials);
                continue;
            }
            let busy = refused.is_some_and(Exception::is_busy);
            if busy && attempt < ATTEMPTS_MAX && wait < deadline.remaining() {
                std::thread::sleep(wait);
                wait *= 2;
                continue;
            }
            return Err(self.refused(operation, about, &reply, exception));
        }
        unreachable!("the last attempt returns")
    }

    fn ask_once(
        &self,
        operation: Operation,
        about: &str,
        deadline: Deadline,
        body: &[u8],
        credentials: &Credentials,
    ) -> Result<Reply, KekError> {
        let date = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let authorization = Zeroizing::new(sign::authorization(
            &Target {
                host: &self.endpoint.authority(),
                region: &self.arn.region,
                service: "kms",
                operation: operation.target(),
                content_type: CONTENT_TYPE,
                date: &date,
            },
            credentials,
            body,
        ));
        let mut request = Request::post(&self.endpoint, body)
            .header("Content-Type", CONTENT_TYPE)
            .header("X-Amz-Date", &date)
            .header("X-Amz-Target", operation.target())
            .header("Authorization", &authorization);
        if let Some(token) = credentials.session_token() {
            request = request.header("X-Amz-Security-Token", token);
        }
        let reply = match operation {
            // A rotation that is asked for twice is one too many.
            Operation::Rotate => self.client.send_once(&request),
            _ => self.client.send(&request, deadline),
        };
        reply.map_err(|error| error.into_kek(&self.uri, about))
    }

    fn refused(
        &self,
        operation: Operation,
        about: &str,
        reply: &Reply,
        exception: Option<Exception>,
    ) -> KekError {
        let status = reply.status();
        let Some(exception) = exception else {
            let kind = match status {
                429 => KekErrorKind::Throttled { retry_after: reply.retry_after() },
                _ => KekErrorKind::Unreachable {
                    reason: format!(
                        "status {status}, but not from AWS; is the endpoint right, and is there a \
                         proxy in between?"
                    ),
                },
            };
            return self.error(kind, about);
        };
        let (kind, cause) = exception.kind(&operation.permission(), &self.arn.text);
        if let Some(id) = reply.request_id() {
            log::debug!("{}: refused, request {id}", self.uri);
        }
        match cause {
            Some(cause) => self.error(kind, about).caused_by(cause),
            None => self.error(kind, about),
        }
    }

    fn describe(&self, deadline: Deadline) -> Result<KeyMetadata, KekError> {
        let about = &self.arn.text;
        let body = to_json(&KeyRequest { key_id: about });
        let reply = self.ask(Operation::Describe, about, deadline, &body)?;
        let DescribeReply { key_metadata } =
            reply.json().map_err(|error| error.into_kek(&self.uri, about))?;
        let found = Arn::parse(&key_metadata.arn).is_some_and(|found| self.arn.covers(&found));
        match found {
            true => Ok(key_metadata),
            false => Err(self.unexpected("with another key than was asked for", about)),
        }
    }

    /// The key, if it can do what a volume needs. Whether it is enabled is for the service to say.
    fn usable_key(&self, deadline: Deadline) -> Result<KeyMetadata, KekError> {
        let key = self.describe(deadline)?;
        if !key.is_symmetric() {
            let found = printable(key.key_spec.as_deref().unwrap_or("another kind"));
            let problem = format!(
                "the key is {found}; a volume needs a symmetric one for encryption \
                 (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT)"
            );
            return Err(self.error(KekErrorKind::Configuration { problem }, &key.arn));
        }
        Ok(key)
    }

    fn wrap_one(
        &self,
        arn: &str,
        context: &str,
        secret: &Secret,
        deadline: Deadline,
    ) -> Result<Vec<u8>, KekError> {
        let plaintext = Zeroizing::new(STANDARD.encode(secret.expose()));
        let body = to_json(&CryptRequest {
            key_id: arn,
            plaintext: Some(&plaintext),
            ciphertext_blob: None,
            encryption_context: BTreeMap::from([(CONTEXT, context)]),
            encryption_algorithm: "SYMMETRIC_DEFAULT",
        });
        let reply = self.ask(Operation::Encrypt, arn, deadline, &body)?;
        let encrypted: CryptReply<'_> =
            reply.json().map_err(|error| error.into_kek(&self.uri, arn))?;
        let blob = encrypted.ciphertext_blob.and_then(|text| STANDARD.decode(text).ok());
        let blob = blob.filter(|blob| (1..=WRAPPED_BYTES_MAX).contains(&blob.len()));
        blob.filter(|_| encrypted.key_id == arn)
            .ok_or_else(|| self.unexpected("with no ciphertext of the key that was asked", arn))
    }
}

impl KekProvider for AwsProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::A256Gcm]
    }

    fn wrap(&self, binding: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let deadline = self.client.deadline();
        let key = self.usable_key(deadline)?;
        let context = binding.associated_data();
        let blobs =
            secrets.iter().map(|secret| self.wrap_one(&key.arn, &context, secret, deadline));
        let blobs = blobs.collect::<Result<_, _>>()?;
        let key_version = key.version();
        let (key_id, algorithm) = (key.arn, Algorithm::A256Gcm);
        Ok(Wrapped {
            kek: KekReference { key_id, key_version, algorithm, parameters: None },
            blobs,
        })
    }

    fn unwrap(
        &self,
        binding: &Binding,
        kek: &KekReference,
        wrapped: &[u8],
    ) -> Result<Secret, KekError> {
        let arn = &kek.key_id;
        if !Arn::parse(arn).is_some_and(|key| self.arn.covers(&key)) {
            let reason = "the slot names a key that is not the URI's".to_owned();
            return Err(self.error(KekErrorKind::BadRequest { reason }, arn));
        }
        let (context, blob) = (binding.associated_data(), STANDARD.encode(wrapped));
        let body = to_json(&CryptRequest {
            key_id: arn,
            plaintext: None,
            ciphertext_blob: Some(&blob),
            encryption_context: BTreeMap::from([(CONTEXT, context.as_str())]),
            encryption_algorithm: "SYMMETRIC_DEFAULT",
        });
        let reply = self.ask(Operation::Decrypt, arn, self.client.deadline(), &body)?;
        let decrypted: CryptReply<'_> =
            reply.json().map_err(|error| error.into_kek(&self.uri, arn))?;
        let secret = decrypted.plaintext.filter(|_| decrypted.key_id == arn);
        let secret = secret.and_then(|text| decode_secret(&STANDARD, text, SECRET_BYTES_MAX));
        secret.ok_or_else(|| self.unexpected("with no plaintext of the key that was asked", arn))
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        Ok(Some(self.usable_key(self.client.deadline())?.version()))
    }

    fn health(&self) -> Result<Health, KekError> {
        let key = self.describe(self.client.deadline())?;
        let expires = key.valid_to.filter(|seconds| (0.0..1e11).contains(seconds));
        let expires = expires.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(s));
        let missing = ["kms:Encrypt", "kms:Decrypt"].iter().filter(|_| !key.is_symmetric());
        Ok(Health {
            version: Some(key.version()),
            enabled: Some(key.key_state == "Enabled"),
            not_before: None,
            expires,
            // Deletion is scheduled 7 to 30 days ahead, and can be cancelled until then.
            recoverable: Some(true),
            purge_protected: Some(true),
            operations_missing: missing.map(|&name| name.to_owned()).collect(),
        })
    }

    fn create_version(&self) -> Result<String, KekError> {
        let deadline = self.client.deadline();
        let before = self.usable_key(deadline)?;
        let body = to_json(&KeyRequest { key_id: &before.arn });
        self.ask(Operation::Rotate, &before.arn, deadline, &body)?;
        // It comes through a little later, where the service says at all which material is in use.
        loop {
            let version = self.describe(deadline)?.version();
            let tells = before.current_key_material_id.is_some();
            if !tells || version != before.version() || deadline.remaining() < ROTATION_POLL {
                return Ok(version);
            }
            std::thread::sleep(ROTATION_POLL);
        }
    }
}
