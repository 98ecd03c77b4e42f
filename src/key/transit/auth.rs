//! Who asks: a token that is given, or one that a login gives (AppRole, Kubernetes).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::answer::{self, Operation, Refusal};
use super::{NAMESPACE, TOKEN};
use crate::crypto::Secret;
use crate::key::KekErrorKind;
use crate::key::authorize::{TransitAuth, TransitSettings};
use crate::key::file;
use crate::key::http::{Client, Deadline, HttpError, Request, Url, to_json};

/// Longest token, in bytes: a service account's has about 1,200.
const TOKEN_BYTES_MAX: usize = 8192;
/// Where Kubernetes puts a pod's own token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// A variable of OpenBao, then that of Vault.
const TOKEN_VARIABLES: &[&str] = &["BAO_TOKEN", "VAULT_TOKEN"];
const NAMESPACE_VARIABLES: &[&str] = &["BAO_NAMESPACE", "VAULT_NAMESPACE"];
const SECRET_ID_VARIABLES: &[&str] = &["BAO_SECRET_ID", "VAULT_SECRET_ID"];

/// How to get a token, and the one that there is.
pub(super) struct Login {
    method: Method,
    login: Url,
    lookup: Url,
    namespace: Option<String>,
    session: Mutex<Option<Arc<Session>>>,
}

enum Method {
    /// From a file, or else from the environment.
    Token {
        file: Option<PathBuf>,
    },
    AppRole {
        role_id: String,
        secret_id_file: Option<PathBuf>,
    },
    Kubernetes {
        role: String,
        token_file: PathBuf,
    },
}

/// A token, and until when it is good.
pub(super) struct Session {
    token: Secret,
    until: Option<Instant>,
}

impl Session {
    /// The token, as a header takes it.
    pub(super) fn token(&self) -> Result<&str, Refusal> {
        let text = std::str::from_utf8(self.token.expose()).ok();
        let is_token =
            |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let problem = "the token is empty or has other characters than a token; \
                       put nothing else into the file or variable";
        text.filter(is_token).ok_or_else(|| configuration(problem.to_owned()))
    }

    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

#[derive(Serialize)]
struct AppRoleLogin<'a> {
    role_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_id: Option<&'a str>,
}

#[derive(Serialize)]
struct KubernetesLogin<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Deserialize)]
struct LoggedIn<'a> {
    #[serde(borrow)]
    auth: Granted<'a>,
}

#[derive(Deserialize)]
struct Granted<'a> {
    client_token: &'a str,
    /// In seconds; 0 for a token that does not end.
    lease_duration: u64,
}

impl Login {
    /// What `settings` and, for what they leave open, the environment say about the service of
    /// `url`. Without `auth`, an AppRole if there is a `role_id`, Kubernetes if there is a `role`,
    /// and else a token.
    pub(super) fn new(url: &Url, settings: &TransitSettings) -> Result<Self, String> {
        let auth = settings.auth.unwrap_or(match settings {
            TransitSettings { role_id: Some(_), .. } => TransitAuth::Approle,
            TransitSettings { role: Some(_), .. } => TransitAuth::Kubernetes,
            _ => TransitAuth::Token,
        });
        let (mount, method) = match auth {
            TransitAuth::Token => ("token", Method::Token { file: settings.token_file.clone() }),
            TransitAuth::Approle => {
                let role_id = settings.role_id.clone().ok_or("auth by approle needs role_id")?;
                let secret_id_file = settings.secret_id_file.clone();
                ("approle", Method::AppRole { role_id, secret_id_file })
            }
            TransitAuth::Kubernetes => {
                let role = settings.role.clone().ok_or("auth by kubernetes needs role")?;
                let token_file = settings.token_file.clone();
                let token_file = token_file.unwrap_or_else(|| SERVICE_ACCOUNT.into());
                ("kubernetes", Method::Kubernetes { role, token_file })
            }
        };
        let mount = settings.auth_mount.as_deref().unwrap_or(mount);
        let at = |path: &str| url.with_path(path).map_err(|error| format!("auth_mount: {error}"));
        let namespace = settings.namespace.clone();
        let namespace = namespace.or_else(|| variable(NAMESPACE_VARIABLES).map(|v| v.to_string()));
        Ok(Self {
            method,
            login: at(&format!("/v1/auth/{mount}/login"))?,
            lookup: at("/v1/auth/token/lookup-self")?,
            namespace,
            session: Mutex::new(None),
        })
    }

    /// The same request, in the namespace.
    pub(super) fn with_namespace<'a>(&'a self, request: Request<'a>) -> Request<'a> {
        match &self.namespace {
            Some(namespace) => request.header(NAMESPACE, namespace),
            None => request,
        }
    }

    /// The token that there is, if it is good for a while and not the one that was `refused`; else
    /// another. Whoever comes while somebody logs in waits for that login.
    pub(super) fn session(
        &self,
        client: &Client,
        deadline: Deadline,
        refused: Option<&Arc<Session>>,
    ) -> Result<Arc<Session>, Refusal> {
        let mut current = self.session.lock();
        let was_refused = |session: &Arc<Session>| refused.is_some_and(|r| Arc::ptr_eq(r, session));
        if let Some(session) = current.as_ref().filter(|s| !s.is_over() && !was_refused(s)) {
            return Ok(session.clone());
        }
        let session = Arc::new(match &self.method {
            Method::Token { file } => Session { token: given_token(file.as_deref())?, until: None },
            Method::AppRole { role_id, secret_id_file } => {
                let secret_id = secret_id(secret_id_file.as_deref())?;
                let secret_id = secret_id.as_ref().map(text).transpose()?;
                let body = to_json(&AppRoleLogin { role_id, secret_id });
                self.log_in(client, deadline, &body)?
            }
            Method::Kubernetes { role, token_file } => {
                let what = ("read the service account's token from", "token");
                let jwt = read(token_file, what)?;
                let body = to_json(&KubernetesLogin { role, jwt: text(&jwt)? });
                self.log_in(client, deadline, &body)?
            }
        });
        *current = Some(session.clone());
        Ok(session)
    }

    fn log_in(&self, client: &Client, deadline: Deadline, body: &[u8]) -> Result<Session, Refusal> {
        let asked = Instant::now();
        let request = self.with_namespace(Request::post_json(&self.login, body));
        let reply = client.send(&request, deadline).map_err(http_refusal)?;
        match reply.status() {
            200 => {}
            403 => return Err(answer::forbidden(&reply, Operation::Login, "", true)),
            _ => return Err(answer::refusal(&reply, Operation::Login, "")),
        }
        let LoggedIn { auth } = reply.json().map_err(http_refusal)?;
        let token = auth.client_token.as_bytes();
        if token.len() > TOKEN_BYTES_MAX {
            let reason = "the login gave a token that is too long".to_owned();
            return Err(KekErrorKind::AuthenticationFailed { reason }.into());
        }
        let life = Duration::from_secs(auth.lease_duration.min(u32::MAX.into()));
        let until = (!life.is_zero()).then(|| asked + life - answer::margin(life));
        Ok(Session { token: Secret::from_fn(token.len(), |to| to.copy_from_slice(token)), until })
    }

    /// Whether a request that was refused with this session may do better with another: one that a
    /// login gives, or another token in the file.
    pub(super) fn may_have_ended(&self, session: &Session) -> bool {
        match &self.method {
            Method::Token { file } => {
                given_token(file.as_deref()).is_ok_and(|token| !token.is_same(&session.token))
            }
            Method::AppRole { .. } | Method::Kubernetes { .. } => true,
        }
    }

    /// Whether the service knows the token. A token that a login has just given is known.
    pub(super) fn is_valid(
        &self,
        client: &Client,
        token: &str,
        deadline: Deadline,
    ) -> Result<bool, HttpError> {
        if !matches!(self.method, Method::Token { .. }) {
            return Ok(true);
        }
        let request = self.with_namespace(Request::get(&self.lookup)).header(TOKEN, token);
        client.send(&request, deadline).map(|reply| reply.status() == 200)
    }
}

fn given_token(path: Option<&Path>) -> Result<Secret, Refusal> {
    if let Some(path) = path {
        return read(path, ("read the token from", "token"));
    }
    let token = variable(TOKEN_VARIABLES).ok_or_else(|| {
        configuration(
            "no token: set BAO_TOKEN or VAULT_TOKEN, or say in /etc/atrest/providers.toml how to \
             log in (token_file; role_id and secret_id_file; role)"
                .to_owned(),
        )
    })?;
    Ok(to_secret(&token))
}

fn secret_id(path: Option<&Path>) -> Result<Option<Secret>, Refusal> {
    match path {
        Some(path) => read(path, ("read the secret id from", "secret id")).map(Some),
        None => Ok(variable(SECRET_ID_VARIABLES).map(|value| to_secret(&value))),
    }
}

fn read(path: &Path, what: (&'static str, &'static str)) -> Result<Secret, Refusal> {
    file::read_line(path, what, TOKEN_BYTES_MAX).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Refusal { kind: KekErrorKind::Configuration { problem: error.to_string() }, cause }
    })
}

fn text(secret: &Secret) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(secret.expose());
    text.map_err(|_| configuration("a token or secret id is not text".to_owned()))
}

fn variable(names: &[&str]) -> Option<Zeroizing<String>> {
    let values = names.iter().filter_map(|name| std::env::var(name).ok());
    values.map(Zeroizing::new).find(|value| !value.is_empty())
}

fn to_secret(text: &str) -> Secret {
    Secret::from_fn(text.len(), |target| target.copy_from_slice(text.as_bytes()))
}

fn configuration(problem: String) -> Refusal {
    KekErrorKind::Configuration { problem }.into()
}

fn http_refusal(error: HttpError) -> Refusal {
    let kind = match error {
        HttpError::Configuration { problem } => KekErrorKind::Configuration { problem },
        other => KekErrorKind::Unreachable { reason: other.to_string() },
    };
    kind.into()
}
