//! Who asks AWS: an access key with its secret, and where it comes from. The sources are those of
//! the official SDKs, in the order of those for Rust: environment, credentials file, web identity,
//! container (ECS, EKS), instance (EC2). The first that is set up is the one; if it fails, no other
//! is tried.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::key::KekErrorKind;
use crate::key::authorize::AwsSettings;
use crate::key::file;
use crate::key::http::{Client, Deadline, HttpError, Proxy, Reply, Request, Settings, Url};
use crate::key::http::{encode_form, printable};

/// Longest part of credentials, in bytes: session tokens have up to 2 KiB, some more.
const PART_BYTES_MAX: usize = 8192;
/// Longest credentials file, in bytes.
const FILE_BYTES_MAX: usize = 64 * 1024;
/// Where ECS has credentials for a container, and EC2 for an instance.
const CONTAINER: &str = "http://169.254.170.2";
const INSTANCE: &str = "http://169.254.169.254";
/// Life of a token for the instance's metadata, in seconds.
const INSTANCE_TOKEN_SECONDS: &str = "300";

/// Variables of the environment, by name.
pub(super) type Environment = dyn Fn(&str) -> Option<Zeroizing<String>> + Send + Sync;

/// An access key, and until when it is good. Neither `Clone` nor `Debug`.
pub(super) struct Credentials {
    access_key_id: String,
    /// `AWS4` and the secret access key, which begins every signature.
    signing_secret: Secret,
    session_token: Option<Secret>,
    expires: Option<SystemTime>,
}

impl Credentials {
    /// `None` if a part is empty, too long, or has other characters than such parts have.
    pub(super) fn new(
        access_key_id: &str,
        secret_access_key: &str,
        session_token: Option<&str>,
        expires: Option<SystemTime>,
    ) -> Option<Self> {
        let is_part = |text: &str| {
            (1..=PART_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        let is_id = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let sound = is_part(access_key_id)
            && access_key_id.bytes().all(is_id)
            && is_part(secret_access_key)
            && session_token.is_none_or(is_part);
        sound.then(|| Self {
            access_key_id: access_key_id.to_owned(),
            signing_secret: Secret::from_fn(secret_access_key.len() + 4, |target| {
                target[..4].copy_from_slice(b"AWS4");
                target[4..].copy_from_slice(secret_access_key.as_bytes());
            }),
            session_token: session_token.map(|token| {
                Secret::from_fn(token.len(), |target| target.copy_from_slice(token.as_bytes()))
            }),
            expires,
        })
    }

    /// The public name of the access key.
    pub(super) fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// A copy of the first key of a signature.
    pub(super) fn signing_secret(&self) -> Secret {
        let secret = self.signing_secret.expose();
        Secret::from_fn(secret.len(), |target| target.copy_from_slice(secret))
    }

    /// The token of temporary credentials.
    pub(super) fn session_token(&self) -> Option<&str> {
        let token = self.session_token.as_ref()?;
        Some(std::str::from_utf8(token.expose()).expect("its characters were checked"))
    }

    /// Whether they end within `margin` from now.
    pub(super) fn end_within(&self, margin: Duration) -> bool {
        self.expires.is_some_and(|expires| expires <= SystemTime::now() + margin)
    }
}

/// Where credentials come from.
pub(super) enum Source {
    /// `AWS_ACCESS_KEY_ID` and the like.
    Environment,
    /// A profile of a credentials file.
    Profile { file: PathBuf, profile: String },
    /// A role, for a token of this host's own.
    WebIdentity { role: String, session: String, token_file: PathBuf, service: Url },
    /// A service beside the container.
    Container { url: Url, token_file: Option<PathBuf> },
    /// The machine's metadata.
    Instance { base: Url },
}

/// Finds, and then asks, the one source.
pub(super) struct Provider {
    source: Source,
    environment: Box<Environment>,
    /// For the security token service.
    client: Client,
    /// For services beside this host, which are asked in clear and without a proxy.
    local: Client,
}

impl Provider {
    /// The source that `settings`, and for what they leave open `environment`, set up; `service` is
    /// the security token service.
    ///
    /// # Errors
    /// In words: what is set up wrongly.
    pub(super) fn new(
        settings: &AwsSettings,
        http: &Settings,
        environment: Box<Environment>,
        service: Url,
    ) -> Result<Self, String> {
        let source = find(settings, &*environment, service)?;
        let local = Settings {
            ca_file: None,
            proxy: Proxy::None,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(3),
            total_timeout: Duration::from_secs(6),
            plain_http: true,
        };
        let client = |settings| Client::new(settings).map_err(|error| error.to_string());
        Ok(Self { source, environment, client: client(http.clone())?, local: client(local)? })
    }

    /// Gets credentials.
    ///
    /// # Errors
    /// `AuthenticationFailed`, `Configuration`, `Unreachable`.
    pub(super) fn get(&self, deadline: Deadline) -> Result<Credentials, KekErrorKind> {
        match &self.source {
            Source::Environment => from_environment(&*self.environment),
            Source::Profile { file, profile } => from_profile(file, profile),
            Source::WebIdentity { role, session, token_file, service } => {
                self.web_identity(role, session, token_file, service, deadline)
            }
            Source::Container { url, token_file } => self.container(url, token_file.as_deref()),
            Source::Instance { base } => self.instance(base),
        }
    }

    fn web_identity(
        &self,
        role: &str,
        session: &str,
        token_file: &Path,
        service: &Url,
        deadline: Deadline,
    ) -> Result<Credentials, KekErrorKind> {
        let token = read(token_file, ("read the web identity token from", "token"))?;
        let body = Zeroizing::new(encode_form(&[
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", session),
            ("WebIdentityToken", text(&token, "web identity token")?),
        ]));
        let request = Request::post_form(service, body.as_bytes()).header("Accept", "text/xml");
        let reply = self.client.send(&request, deadline).map_err(no_answer)?;
        let said = std::str::from_utf8(reply.body()).unwrap_or_default();
        if reply.status() != 200 {
            return Err(match (reply.status(), element(said, "Code")) {
                (429, _) => KekErrorKind::Throttled { retry_after: reply.retry_after() },
                (400..500, Some("Throttling")) => KekErrorKind::Throttled { retry_after: None },
                (400..500, Some(code)) => {
                    let message = element(said, "Message").unwrap_or("no explanation");
                    let words = printable(&format!("{code}: {message}"));
                    failed(format!("the role {role} is not given: {words}"))
                }
                (status, _) => KekErrorKind::Unreachable {
                    reason: format!("{} answers status {status}", service.authority()),
                },
            });
        }
        let expires = element(said, "Expiration").and_then(parse_time);
        let parts =
            ["AccessKeyId", "SecretAccessKey", "SessionToken"].map(|tag| element(said, tag));
        let [Some(id), Some(secret), Some(token)] = parts else {
            return Err(malformed(service));
        };
        let credentials = Credentials::new(id, secret, Some(token), expires);
        credentials.filter(|_| expires.is_some()).ok_or_else(|| malformed(service))
    }

    fn container(&self, url: &Url, token_file: Option<&Path>) -> Result<Credentials, KekErrorKind> {
        let token = match token_file {
            Some(path) => Some(read(path, ("read the container's token from", "token"))?),
            None => (self.environment)("AWS_CONTAINER_AUTHORIZATION_TOKEN")
                .map(|token| Secret::new(token.as_bytes().into())),
        };
        let mut request = Request::get(url);
        if let Some(token) = &token {
            request = request.header("Authorization", text(token, "container's token")?);
        }
        let client = if url.is_https() { &self.client } else { &self.local };
        let reply = client.send(&request, client.deadline()).map_err(no_answer)?;
        from_metadata(&reply, url)
    }

    fn instance(&self, base: &Url) -> Result<Credentials, KekErrorKind> {
        let deadline = self.local.deadline();
        let at = |path: &str| {
            base.with_path(path).map_err(|error| {
                let problem = format!("the instance's role is named {}: {error}", printable(path));
                KekErrorKind::Configuration { problem }
            })
        };
        let url = at("/latest/api/token")?;
        let life = ("X-aws-ec2-metadata-token-ttl-seconds", INSTANCE_TOKEN_SECONDS);
        let request = Request::put(&url).header(life.0, life.1);
        let reply = self.local.send(&request, deadline).map_err(|error| match no_answer(error) {
            KekErrorKind::Unreachable { reason } => failed(format!(
                "no credentials are set up for this process, and there is no EC2 instance's role \
                 ({reason}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            )),
            other => other,
        })?;
        if reply.status() != 200 {
            return Err(refused(&reply, &url));
        }
        let token = Zeroizing::new(one_line(&reply).ok_or_else(|| malformed(&url))?.to_owned());
        let token = ("X-aws-ec2-metadata-token", token.as_str());
        let list = "/latest/meta-data/iam/security-credentials/";
        let url = at(list)?;
        let request = Request::get(&url).header(token.0, token.1);
        let reply = self.local.send(&request, deadline).map_err(no_answer)?;
        match reply.status() {
            200 => {}
            404 => return Err(failed("the instance has no role; attach one to it".to_owned())),
            _ => return Err(refused(&reply, &url)),
        }
        let role = one_line(&reply).ok_or_else(|| malformed(&url))?;
        let url = at(&format!("{list}{role}"))?;
        let request = Request::get(&url).header(token.0, token.1);
        let reply = self.local.send(&request, deadline).map_err(no_answer)?;
        from_metadata(&reply, &url)
    }
}

/// The source that is set up.
pub(super) fn find(
    settings: &AwsSettings,
    environment: &Environment,
    service: Url,
) -> Result<Source, String> {
    let variable = |name: &str| environment(name).map(|value| value.as_str().to_owned());
    let file = settings.credentials_file.clone();
    let file = file.or_else(|| variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from));
    let home = || variable("HOME").map(|home| Path::new(&home).join(".aws/credentials"));
    let profile = settings.profile.clone();
    let unnamed = profile.is_none() && settings.credentials_file.is_none();
    if unnamed && variable("AWS_ACCESS_KEY_ID").is_some() {
        return Ok(Source::Environment);
    }
    let named = profile.or_else(|| variable("AWS_PROFILE"));
    let asked = named.is_some() || file.is_some();
    if let Some(file) = file.or_else(home).filter(|file| asked || file.exists()) {
        let profile = named.unwrap_or_else(|| "default".to_owned());
        return Ok(Source::Profile { file, profile });
    }
    if let Some(token_file) = variable("AWS_WEB_IDENTITY_TOKEN_FILE") {
        let role = variable("AWS_ROLE_ARN");
        let role = role.ok_or("AWS_WEB_IDENTITY_TOKEN_FILE is set, and AWS_ROLE_ARN is not")?;
        let session = variable("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "atrest".to_owned());
        return Ok(Source::WebIdentity { role, session, token_file: token_file.into(), service });
    }
    let token_file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(PathBuf::from);
    let relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let full = relative.map(|path| format!("{CONTAINER}{path}"));
    if let Some(full) = full.or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")) {
        let url = Url::parse(&full)
            .map_err(|error| format!("the URI of the container's credentials is {error}"))?;
        return Ok(Source::Container { url, token_file });
    }
    if variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
    {
        return Err("no credentials are set up: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
                    or a profile"
            .to_owned());
    }
    let base = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    let base = Url::parse(base.as_deref().unwrap_or(INSTANCE));
    let base = base.map_err(|error| format!("AWS_EC2_METADATA_SERVICE_ENDPOINT is {error}"))?;
    Ok(Source::Instance { base })
}

fn from_environment(environment: &Environment) -> Result<Credentials, KekErrorKind> {
    let [id, secret, token] =
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"].map(environment);
    let credentials = match (&id, &secret) {
        (Some(id), Some(secret)) => {
            Credentials::new(id, secret, token.as_ref().map(|token| token.as_str()), None)
        }
        _ => None,
    };
    let problem = "AWS_ACCESS_KEY_ID or AWS_SECRET_ACCESS_KEY is not set, or has other characters \
                   than such keys";
    credentials.ok_or_else(|| KekErrorKind::Configuration { problem: problem.to_owned() })
}

/// Reads `[profile]` of the file; other ways to credentials than a key in it are not followed.
fn from_profile(path: &Path, profile: &str) -> Result<Credentials, KekErrorKind> {
    let what = ("read the credentials from", "credentials");
    let secret =
        file::read_line(path, what, FILE_BYTES_MAX).map_err(|error| file_problem(&error))?;
    let content = text(&secret, "credentials file")?;
    let problem = |what: &str| KekErrorKind::Configuration {
        problem: format!("profile {} of {} {what}", printable(profile), path.display()),
    };
    let mut section = content.lines().map(str::trim).skip_while(|line| {
        let name = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
        name.map(str::trim) != Some(profile)
    });
    section.next().ok_or_else(|| problem("is not there"))?;
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in section.take_while(|line| !line.starts_with('[')) {
        let Some((name, value)) = line.split_once('=') else { continue };
        match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => id = Some(value.trim()),
            "aws_secret_access_key" => secret = Some(value.trim()),
            "aws_session_token" => token = Some(value.trim()),
            _ => {}
        }
    }
    let (Some(id), Some(secret)) = (id, secret) else {
        return Err(problem(
            "has no aws_access_key_id with aws_secret_access_key; roles, single sign-on and \
             credential_process are not followed",
        ));
    };
    Credentials::new(id, secret, token, None)
        .ok_or_else(|| problem("has a key with other characters than such keys"))
}

/// What the services beside containers and instances answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata<'a> {
    /// `Success`; the instance's only.
    code: Option<&'a str>,
    access_key_id: Option<&'a str>,
    secret_access_key: Option<&'a str>,
    token: Option<&'a str>,
    expiration: Option<&'a str>,
}

fn from_metadata(reply: &Reply, url: &Url) -> Result<Credentials, KekErrorKind> {
    if reply.status() != 200 {
        return Err(refused(reply, url));
    }
    // EC2 says that it is plain text.
    let metadata: Metadata<'_> =
        serde_json::from_slice(reply.body()).map_err(|_| malformed(url))?;
    if metadata.code.is_some_and(|code| code != "Success") {
        let code = printable(metadata.code.unwrap_or_default());
        return Err(failed(format!("{} gives no credentials: {code}", url.authority())));
    }
    let expires = metadata.expiration.map(|text| parse_time(text).ok_or_else(|| malformed(url)));
    let expires = expires.transpose()?;
    let (Some(id), Some(secret)) = (metadata.access_key_id, metadata.secret_access_key) else {
        return Err(malformed(url));
    };
    Credentials::new(id, secret, metadata.token, expires).ok_or_else(|| malformed(url))
}

/// The text of the one element of that name that has only text in it, without markup and escapes.
/// Replies are flat and of a known form: what is not so is refused, rather than understood.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let (_, rest) = xml.split_once(&open)?;
    let (inside, after) = rest.split_once(&close)?;
    let plain = !inside.contains(['<', '&']) && !after.contains(&open);
    plain.then_some(inside.trim())
}

fn parse_time(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

fn one_line(reply: &Reply) -> Option<&str> {
    let text = std::str::from_utf8(reply.body()).ok()?.trim();
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    (plain && text.len() <= PART_BYTES_MAX).then_some(text)
}

fn read(path: &Path, what: (&'static str, &'static str)) -> Result<Secret, KekErrorKind> {
    file::read_line(path, what, PART_BYTES_MAX).map_err(|error| file_problem(&error))
}

fn file_problem(error: &file::FileError) -> KekErrorKind {
    let problem = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    KekErrorKind::Configuration { problem }
}

fn text<'a>(secret: &'a Secret, what: &str) -> Result<&'a str, KekErrorKind> {
    let problem = || KekErrorKind::Configuration { problem: format!("the {what} is not text") };
    std::str::from_utf8(secret.expose()).map_err(|_| problem())
}

fn no_answer(error: HttpError) -> KekErrorKind {
    match error {
        HttpError::Configuration { problem } => KekErrorKind::Configuration { problem },
        other => KekErrorKind::Unreachable { reason: other.to_string() },
    }
}

fn refused(reply: &Reply, url: &Url) -> KekErrorKind {
    let (status, host) = (reply.status(), url.authority());
    match status {
        429 => KekErrorKind::Throttled { retry_after: reply.retry_after() },
        500.. => KekErrorKind::Unreachable { reason: format!("{host} answers status {status}") },
        _ => failed(format!("{host} gives no credentials (status {status})")),
    }
}

fn malformed(url: &Url) -> KekErrorKind {
    let host = url.authority();
    KekErrorKind::Unreachable {
        reason: format!("{host} answers with something else than credentials"),
    }
}

fn failed(reason: String) -> KekErrorKind {
    KekErrorKind::AuthenticationFailed { reason }
}
