//! The one HTTP client of all providers that live in a network, and what it promises them:
//!
//! - https only, with the host's own trust or one named CA; plain http only to this host and to
//!   link-local metadata services, and only if the caller asks for it ([`Settings::plain_http`]);
//! - no redirect is followed, no cookie kept, nothing decompressed; the body is bounded
//!   ([`REPLY_BYTES_MAX`]) unless it is read piece by piece ([`Client::open`]), and every request
//!   and every operation of several requests is bounded in time ([`Deadline`]);
//! - a status is never an error by itself: the provider knows what it means;
//! - bodies are wiped; errors and `Debug` output have neither bodies nor headers.
//!
//! A provider makes one [`Client`] for an endpoint and keeps it. In one operation all requests take
//! the same [`Deadline`]:
//!
//! ```no_run
//! # use atrest::key::http::{Client, HttpError, Request, Settings, Url};
//! # fn f(body: &[u8], token: &str) -> Result<(), HttpError> {
//! let url = Url::parse("https://vault.example/v1/transit/decrypt/k").expect("a URL");
//! let client = Client::new(Settings::default())?;
//! let request = Request::post_json(&url, body).header("X-Vault-Token", token);
//! let reply = client.send(&request, client.deadline())?;
//! if reply.status() == 200 {
//!     let parsed: serde_json::Value = reply.json()?;
//! }
//! # Ok(())
//! # }
//! ```

mod error;
#[cfg(test)]
mod tests;
mod url;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, HeaderValue, Request as HttpRequest};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use zeroize::Zeroizing;

pub use error::{HttpError, printable};
pub use url::{Url, UrlError, encode_form};

/// Largest body of a reply, in bytes. Tokens and keys are a few KiB.
pub const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Room for the body of a request; one that outgrows it leaves a copy behind that is not wiped.
const BODY_BYTES: usize = 16 * 1024;

/// Largest head of a reply, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Largest file of CA certificates, in bytes: a host's whole bundle has 250 KiB.
const CA_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// How often a request is sent at most when the service is busy or away.
const ATTEMPTS_MAX: u32 = 4;
/// Wait before the second attempt if the service does not say; doubles with each.
const BACKOFF: Duration = Duration::from_millis(200);
/// 304, which is no redirect: what was asked for is as it was (RFC 9110, section 15.4.5).
const NOT_MODIFIED: u16 = 304;
/// Longest `Retry-After` that is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Headers in which services name a request, for both sides' logs.
const REQUEST_IDS: &[&str] =
    &["x-ms-request-id", "x-amzn-requestid", "x-amz-request-id", "x-request-id"];

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Trust this PEM file's certificates, and no others, as issuers; instead of the host's trust
    /// (its bundle, or `SSL_CERT_FILE` and `SSL_CERT_DIR`).
    pub ca_file: Option<PathBuf>,
    /// Through which proxy.
    pub proxy: Proxy,
    /// How long until the connection is there, names and TLS included.
    pub connect_timeout: Duration,
    /// How long until a request's whole reply is there.
    pub request_timeout: Duration,
    /// In how long an operation of several requests, with repetitions, begins its last one.
    pub total_timeout: Duration,
    /// Allow plain http, but only where [`Url::is_local`] holds.
    pub plain_http: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ca_file: None,
            proxy: Proxy::Environment,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            total_timeout: Duration::from_secs(20),
            plain_http: false,
        }
    }
}

/// Through which proxy https goes. Plain http, which is local, never takes one.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Proxy {
    /// What `HTTPS_PROXY`, else `ALL_PROXY`, says, and not to the hosts of `NO_PROXY` (also in
    /// lower case).
    #[default]
    Environment,
    /// None, whatever the environment says.
    None,
    /// `http://[USER:PASSWORD@]HOST:PORT`.
    Url(String),
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "Environment",
            Self::None => "None",
            // It may have a password.
            Self::Url(_) => "Url(..)",
        })
    }
}

/// Until when an operation may begin another request.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// In `duration` from now.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration)
    }

    /// How long that is from now; zero if it is over.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// The body of a request, in a buffer that is wiped, and that does not move.
pub fn to_json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_BYTES));
    serde_json::to_writer(&mut *body, value).expect("writing to memory succeeds");
    body
}

/// A request. Header values and the body may be secrets: they are never shown.
pub struct Request<'a> {
    method: &'static str,
    url: &'a Url,
    /// Instead of the URL's own, if it is not empty.
    query: &'a str,
    headers: Vec<(&'static str, &'a str)>,
    body: &'a [u8],
    retried: &'a [u16],
}

impl<'a> Request<'a> {
    /// `GET`.
    pub fn get(url: &'a Url) -> Self {
        Self { method: "GET", url, query: "", headers: Vec::new(), body: &[], retried: &[] }
    }

    /// `POST` of anything; give its `Content-Type` as a header.
    pub fn post(url: &'a Url, body: &'a [u8]) -> Self {
        Self { method: "POST", body, ..Self::get(url) }
    }

    /// `PUT` of nothing.
    pub fn put(url: &'a Url) -> Self {
        Self { method: "PUT", ..Self::get(url) }
    }

    /// `POST` of JSON.
    pub fn post_json(url: &'a Url, body: &'a [u8]) -> Self {
        Self::post(url, body).header("Content-Type", "application/json")
    }

    /// `POST` of what [`encode_form`] made.
    pub fn post_form(url: &'a Url, body: &'a [u8]) -> Self {
        Self::post(url, body).header("Content-Type", "application/x-www-form-urlencoded")
    }

    /// With this query, encoded already, which may be a secret and is never shown.
    #[must_use]
    pub fn secret_query(mut self, query: &'a str) -> Self {
        self.query = query;
        self
    }

    /// With this header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &'a str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// [`Client::send`] repeats it for these statuses, too.
    #[must_use]
    pub fn retry_also(mut self, statuses: &'a [u16]) -> Self {
        self.retried = statuses;
        self
    }

    /// For `http::Request`; a header that a caller got wrong is an error of this host.
    fn build(&self) -> Result<HttpRequest<&'a [u8]>, HttpError> {
        let refuse = |what: &str| HttpError::Configuration {
            problem: format!("cannot ask {}: {what}", self.url.host()),
        };
        let target = match self.query {
            "" => Zeroizing::new(self.url.full()),
            query => Zeroizing::new(format!("{}?{query}", self.url)),
        };
        let mut builder = HttpRequest::builder().method(self.method).uri(target.as_str());
        for (name, value) in &self.headers {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| refuse(&format!("the value of {name} has line breaks or the like")))?;
            value.set_sensitive(true);
            builder = builder.header(*name, value);
        }
        builder.body(self.body).map_err(|error| refuse(&error.to_string()))
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)
    }
}

/// The head of a reply of any status but a redirect's, and its body to be read.
pub struct Stream {
    host: String,
    status: u16,
    headers: HeaderMap,
    body: ureq::BodyReader<'static>,
}

impl Stream {
    /// Its status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header of this name, if it is ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// As [`Reply::retry_after`].
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.headers)
    }

    /// Reads some of the body; 0 at its end. Less than was announced is an error.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, HttpError> {
        loop {
            match self.body.read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(HttpError::from_io(error, &self.host, self.host.clone()));
                }
                Ok(count) => return Ok(count),
            }
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A reply of any status but a redirect's.
pub struct Reply {
    host: String,
    status: u16,
    headers: HeaderMap,
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// Its status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header of this name, if it is ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// All headers of this name that are ASCII.
    pub fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
    }

    /// By which name the service knows the request, fit to be shown.
    pub fn request_id(&self) -> Option<String> {
        REQUEST_IDS.iter().find_map(|name| self.header(name)).map(printable)
    }

    /// How long to wait before asking again, from `Retry-After` in either of its forms (RFC 9110,
    /// section 10.2.3); at most an hour.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The body as it came; wiped with the reply.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body, which must say that it is JSON and be a whole `T`. A `&str` in `T` is borrowed
    /// from the body and not copied; take secrets like that.
    ///
    /// # Errors
    /// [`HttpError::Unexpected`], which says where, but not what is there.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, HttpError> {
        let refuse = |problem: String| HttpError::Unexpected {
            host: self.host.clone(),
            status: self.status,
            problem,
        };
        let content_type = self.header("content-type").unwrap_or_default();
        if !is_json(content_type) {
            return Err(refuse(format!("type {:?}, not JSON", printable(content_type))));
        }
        // serde_json's own words can quote the value, which may be a secret.
        serde_json::from_slice(&self.body).map_err(|error| {
            let what = match error.classify() {
                serde_json::error::Category::Data => "a member is missing or of another kind",
                serde_json::error::Category::Eof => "it ends too early",
                _ => "it is not JSON",
            };
            refuse(format!("{what} (at byte {} of line {})", error.column(), error.line()))
        })
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {} of {}, {} bytes", self.status, self.host, self.body.len())
    }
}

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json"
        || (kind.starts_with("application/")
            && (kind.ends_with("+json") || kind.contains("amz-json")))
}

/// Sends requests to an endpoint, over connections that it keeps for a while.
pub struct Client {
    settings: Settings,
    direct: ureq::Agent,
    proxied: Option<Proxied>,
}

struct Proxied {
    agent: ureq::Agent,
    /// Host and port, for errors.
    name: String,
    exceptions: Vec<String>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({:?})", self.settings)
    }
}

impl Client {
    /// A client with `settings`; connects to nothing yet.
    ///
    /// # Errors
    /// [`HttpError::Configuration`] for a CA file or proxy that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, HttpError> {
        let roots = match &settings.ca_file {
            Some(path) => RootCerts::new_with_certs(&read_ca_file(path)?),
            None => RootCerts::PlatformVerifier,
        };
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .root_certs(roots)
            .build();
        let (url, exceptions) = proxy_of(&settings.proxy);
        let proxied = match url {
            Some(url) => {
                let proxy = parse_proxy(&url)?;
                let name = format!("{}:{}", proxy.host(), proxy.port());
                Some(Proxied { agent: agent(&settings, &tls, Some(proxy)), name, exceptions })
            }
            None => None,
        };
        Ok(Self { direct: agent(&settings, &tls, None), proxied, settings })
    }

    /// With what it was made.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// For an operation that begins now.
    pub fn deadline(&self) -> Deadline {
        Deadline::after(self.settings.total_timeout)
    }

    /// Sends `request`, and again while the service is busy or away (429, 502, 503, 504, those of
    /// [`Request::retry_also`], and broken or refused connections), waiting as long as it says, or
    /// else a little longer each time; gives up early enough to keep `deadline`. So send only what
    /// may happen twice.
    ///
    /// # Errors
    /// [`HttpError`]; that of the last attempt.
    pub fn send(&self, request: &Request<'_>, deadline: Deadline) -> Result<Reply, HttpError> {
        for attempt in 1.. {
            let result = self.send_once(request);
            let wait = match &result {
                Ok(reply) if is_busy(reply.status) || request.retried.contains(&reply.status) => {
                    reply.retry_after.unwrap_or_else(|| backoff(attempt)).max(BACKOFF)
                }
                Err(error) if error.is_transient() => backoff(attempt),
                _ => return result,
            };
            if attempt == ATTEMPTS_MAX || wait >= deadline.remaining() {
                return result;
            }
            log::debug!("{request:?}: again in {} ms", wait.as_millis());
            std::thread::sleep(wait);
        }
        unreachable!("the last attempt returns")
    }

    /// Sends `request` once.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn send_once(&self, request: &Request<'_>) -> Result<Reply, HttpError> {
        let mut stream = self.open(request)?;
        let body = read_body(&mut stream)?;
        let retry_after = stream.retry_after();
        let Stream { host, status, headers, .. } = stream;
        Ok(Reply { host, status, headers, retry_after, body })
    }

    /// Sends `request` once, and leaves the body to be read. The request's time-out is for that,
    /// too.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn open(&self, request: &Request<'_>) -> Result<Stream, HttpError> {
        let url = request.url;
        let allowed = url.is_https() || (self.settings.plain_http && url.is_local());
        if !allowed {
            let host = url.host();
            let problem = format!("{host} is not asked over plain http; give it an https URL");
            return Err(HttpError::Configuration { problem });
        }
        let proxied = self.proxied.as_ref().filter(|proxied| {
            url.is_https() && !is_exception(&proxied.exceptions, url.host(), url.port())
        });
        let (agent, proxy) = match proxied {
            Some(proxied) => (&proxied.agent, Some(proxied.name.as_str())),
            None => (&self.direct, None),
        };
        let host = url.authority();
        let response = agent
            .run(request.build()?)
            .map_err(|error| HttpError::from_ureq(error, &host, proxy))?;
        let (head, body) = response.into_parts();
        let status = head.status.as_u16();
        if head.status.is_redirection() && status != NOT_MODIFIED {
            return Err(HttpError::Redirect { host, status });
        }
        Ok(Stream { host, status, headers: head.headers, body: body.into_reader() })
    }
}

/// Whether a status says that the same request may do better soon.
fn is_busy(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

/// 0.2 s, 0.4 s, 0.8 s, …, and up to a quarter more, so that hosts that failed together do not
/// come back together.
fn backoff(attempt: u32) -> Duration {
    let mut random = [0];
    crate::crypto::random::fill(&mut random);
    let wait = BACKOFF * 2_u32.pow(attempt - 1);
    wait + wait / 4 * u32::from(random[0]) / 256
}

fn agent(settings: &Settings, tls: &TlsConfig, proxy: Option<ureq::Proxy>) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(proxy)
        .tls_config(tls.clone())
        .timeout_resolve(Some(settings.connect_timeout))
        .timeout_connect(Some(settings.connect_timeout))
        .timeout_global(Some(settings.request_timeout))
        .user_agent(concat!("atrest/", env!("CARGO_PKG_VERSION")))
        .accept("application/json")
        .accept_encoding("")
        .max_response_header_size(HEAD_BYTES_MAX)
        .input_buffer_size(2 * HEAD_BYTES_MAX)
        .output_buffer_size(HEAD_BYTES_MAX)
        .build();
    ureq::Agent::with_parts(config, DefaultConnector::new(), NameResolver::default())
}

/// The default resolver, with its failures told apart from those of connections.
#[derive(Debug, Default)]
struct NameResolver(DefaultResolver);

impl Resolver for NameResolver {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.0.resolve(uri, config, timeout).map_err(|error| match error {
            ureq::Error::Io(error) => {
                log::debug!("{}: {error}", uri.host().unwrap_or_default());
                ureq::Error::HostNotFound
            }
            other => other,
        })
    }
}

/// Reads a whole body into one buffer that is wiped.
fn read_body(stream: &mut Stream) -> Result<Zeroizing<Vec<u8>>, HttpError> {
    // One byte of room more than is allowed, and no growth: a buffer that moves leaves copies.
    let mut bytes = Zeroizing::new(vec![0; REPLY_BYTES_MAX + 1]);
    let mut length = 0;
    while length < bytes.len() {
        match stream.read(&mut bytes[length..])? {
            0 => break,
            count => length += count,
        }
    }
    if length > REPLY_BYTES_MAX {
        let host = stream.host.clone();
        return Err(HttpError::TooLarge { host, bytes_max: REPLY_BYTES_MAX });
    }
    bytes.truncate(length);
    Ok(bytes)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let value = text("retry-after")?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            // Their clock, if they say it: ours may differ.
            let now = text("date").and_then(parse_date).unwrap_or_else(SystemTime::now);
            parse_date(value)?.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The fixed form of RFC 9110, section 5.6.7, the only one that is still sent.
fn parse_date(text: &str) -> Option<SystemTime> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(SystemTime::from)
}

/// The proxy's URL, and the hosts that are asked without it.
fn proxy_of(proxy: &Proxy) -> (Option<String>, Vec<String>) {
    let variable = |names: &[&str]| {
        let values = names.iter().filter_map(|name| std::env::var(name).ok());
        values.map(|value| value.trim().to_owned()).find(|value| !value.is_empty())
    };
    match proxy {
        Proxy::None => (None, Vec::new()),
        Proxy::Url(url) => (Some(url.clone()), Vec::new()),
        Proxy::Environment => {
            let url = variable(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]);
            let exceptions = variable(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
            let exceptions = exceptions.split([',', ' ']).filter(|entry| !entry.is_empty());
            (url, exceptions.map(str::to_ascii_lowercase).collect())
        }
    }
}

/// Whether `NO_PROXY` names the host: `*`, a host or domain (and all below it), with or without a
/// dot or `*.` before it and a port behind.
fn is_exception(exceptions: &[String], host: &str, port: u16) -> bool {
    exceptions.iter().any(|entry| {
        if entry == "*" {
            return true;
        }
        let entry = match entry.rsplit_once(':') {
            Some((name, number)) if number.parse() == Ok(port) => name,
            _ => entry,
        };
        let entry = entry.trim_start_matches("*.").trim_start_matches('.');
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let below = || host.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'));
        !entry.is_empty() && (host == entry || bare == entry || below())
    })
}

fn parse_proxy(url: &str) -> Result<ureq::Proxy, HttpError> {
    let refuse = || HttpError::Configuration {
        problem: "the proxy is not of the form http://[USER:PASSWORD@]HOST:PORT; \
                  check HTTPS_PROXY, or proxy in /etc/atrest/providers.toml"
            .to_owned(),
    };
    let proxy = ureq::Proxy::new(url).map_err(|_| refuse())?;
    match proxy.protocol() {
        ureq::ProxyProtocol::Http if !proxy.host().is_empty() => Ok(proxy),
        _ => Err(refuse()),
    }
}

/// The certificates of a PEM file, which must be well formed, and at least one.
fn read_ca_file(path: &Path) -> Result<Vec<Certificate<'static>>, HttpError> {
    let refuse = |what: &str| HttpError::Configuration {
        problem: format!("the CA file {} cannot be used: {what}", path.display()),
    };
    let file = std::fs::File::open(path).map_err(|error| refuse(&error.to_string()))?;
    let mut pem = Vec::new();
    file.take(CA_FILE_BYTES_MAX + 1)
        .read_to_end(&mut pem)
        .map_err(|error| refuse(&error.to_string()))?;
    if pem.len() as u64 > CA_FILE_BYTES_MAX {
        return Err(refuse("it is too large"));
    }
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => return Err(refuse("it has a private key in it, which does not belong there")),
            Err(_) => return Err(refuse("it is not PEM")),
        }
    }
    if certificates.is_empty() {
        return Err(refuse("it has no certificate (-----BEGIN CERTIFICATE-----)"));
    }
    for certificate in &certificates {
        let der = rustls::pki_types::CertificateDer::from(certificate.der());
        let added = rustls::RootCertStore::empty().add(der);
        added.map_err(|error| refuse(&format!("a certificate in it is damaged ({error})")))?;
    }
    Ok(certificates)
}
