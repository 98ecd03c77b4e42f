//! Where tokens come from: the OAuth 2.0 token endpoint (RFC 6749, 4.4) and its discovery documents
//! as Entra ID has them, and the metadata services (IMDS, App Service) of managed identities.
//!
//! Errors are those of Entra ID (`AADSTS...`), by which SDKs tell what is wrong. Whoever presents
//! wrong credentials is delayed ([`Damper`](super::ratelimit::Damper)); nothing here says whether a
//! secret was nearly right.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use jsonwebtoken::jwk::JwkSet;
use serde_json::{Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use super::access::Extension;
use super::audit::Event;
use super::authority::{Guard, State, event_of, unix_now};
use super::error::ApiError;
use super::firewall;
use super::identity::{CredentialError, Identity, KeySource};
use super::request::{Peer, Reply, Request, parse_query, random_id};
use super::token::{Expected, TokenError, claimed_of, verify_assertion, verify_assertion_rsa};

/// Largest key set in a file, in bytes.
const KEY_SET_BYTES_MAX: u64 = 256 * 1024;
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Path of the metadata service of virtual machines.
const IMDS_PATH: &str = "/metadata/identity/oauth2/token";
/// Path of the metadata service in the shape of App Service's.
pub const APP_SERVICE_PATH: &str = "/msi/token";

/// Why there is no token.
#[derive(Debug)]
struct LoginError {
    status: u16,
    /// `error` of RFC 6749, 5.2.
    error: &'static str,
    /// The number after `AADSTS`; 0 where the metadata services have none.
    code: u32,
    description: String,
    retry_after: Option<Duration>,
    /// Whether it counts as a guess.
    is_guess: bool,
}

impl LoginError {
    fn new(status: u16, error: &'static str, code: u32, description: impl Into<String>) -> Self {
        let description = description.into();
        Self { status, error, code, description, retry_after: None, is_guess: false }
    }

    fn guess(mut self) -> Self {
        self.is_guess = true;
        self
    }

    fn throttled(wait: Duration) -> Self {
        let description = "too many requests, or too many with wrong credentials; wait";
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let retry_after = Some(Duration::from_secs(seconds.max(1)));
        Self { retry_after, ..Self::new(429, "temporarily_unavailable", 90055, description) }
    }

    fn reply(&self, id: &str) -> Reply {
        let mut body = json!({ "error": self.error, "error_description": self.description });
        if self.code > 0 {
            body["error_description"] = json!(format!("AADSTS{}: {}", self.code, self.description));
            body["error_codes"] = json!([self.code]);
            let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ");
            body["timestamp"] = json!(now.to_string());
            body["trace_id"] = json!(id);
            body["correlation_id"] = json!(random_id());
        }
        let reply = Reply::json(self.status, &body).header("cache-control", "no-store".into());
        match self.retry_after {
            Some(wait) => reply.header("retry-after", wait.as_secs().to_string()),
            None => reply,
        }
    }
}

/// A token, and for whom: what is answered and recorded.
struct Issued {
    body: Value,
    application_id: String,
    object_id: String,
}

/// What becomes of a request at one of these paths.
enum Outcome {
    Issued(Issued),
    /// A document that everybody may read.
    Document(Value),
    /// Refused in the words of OAuth.
    Refused(LoginError),
    /// Refused before anybody looked at what it says.
    Rejected(ApiError),
}

impl Extension for Guard {
    fn handle(&self, request: &Request) -> Option<Result<Reply, ApiError>> {
        let address = match request.peer {
            Peer::Network(address) | Peer::Metadata(address) => address.ip(),
            Peer::Operator => return super::admin::handle(&self.0, request),
        };
        let started = Instant::now();
        let state = self.0.state();
        let endpoint = Endpoint::of(request, &state.settings.tenant)?;
        let outcome = if !state.settings.firewall.permits(address) {
            let message = firewall::refusal(address, self.0.name());
            Outcome::Rejected(ApiError::forbidden("ForbiddenByFirewall", message))
        } else if let Err(wait) = self.0.take_from_vault() {
            Outcome::Refused(LoginError::throttled(wait))
        } else {
            match endpoint {
                Endpoint::Configuration => Outcome::Document(configuration(&state, request)),
                Endpoint::Instance => Outcome::Document(instance(&state, request)),
                Endpoint::Keys => Outcome::Document(json!(state.keys.jwks())),
                Endpoint::WrongTenant => {
                    let description =
                        "this vault is no such tenant; see: atrest vault settings show";
                    let error = LoginError::new(400, "invalid_request", 90002, description);
                    Outcome::Refused(error)
                }
                Endpoint::WrongMethod => {
                    let message = "this path does not have this method";
                    Outcome::Rejected(ApiError::new(405, "MethodNotAllowed", message))
                }
                Endpoint::Token => self.log_in(request, address, client_token),
                Endpoint::Imds => self.log_in(request, address, imds),
                Endpoint::AppService => self.log_in(request, address, app_service),
            }
        };
        Some(self.conclude(request, endpoint.operation(), started, outcome))
    }
}

/// What gets a token out of a request.
type Login = fn(&State, &Request, IpAddr, u64) -> Result<Issued, LoginError>;

impl Guard {
    /// Issues a token or says why not; who guesses is delayed.
    fn log_in(&self, request: &Request, address: IpAddr, login: Login) -> Outcome {
        self.0.roll_over_if_due();
        let claimed = claimed_client(request);
        let now = self.0.elapsed();
        let allowed = self.0.damper.lock().check(address, &claimed, now);
        if let Err(wait) = allowed {
            return Outcome::Refused(LoginError::throttled(wait));
        }
        let state = self.0.state();
        let result = login(&state, request, address, unix_now());
        let mut damper = self.0.damper.lock();
        match result {
            Ok(issued) => {
                damper.succeeded(address, &claimed);
                Outcome::Issued(issued)
            }
            Err(error) => {
                if error.is_guess {
                    damper.failed(address, &claimed, now);
                }
                Outcome::Refused(error)
            }
        }
    }

    /// The reply, once what became of the request is on record.
    fn conclude(
        &self,
        request: &Request,
        operation: &'static str,
        started: Instant,
        outcome: Outcome,
    ) -> Result<Reply, ApiError> {
        let base = request.base_url();
        let event = event_of(request, &base);
        let event = Event { operation, duration: started.elapsed(), ..event };
        let recorded = match &outcome {
            Outcome::Document(_) => self.0.record(&Event { status: 200, ..event }),
            Outcome::Issued(issued) => self.0.record(&Event {
                status: 200,
                application_id: Some(&issued.application_id),
                object_id: Some(&issued.object_id),
                ..event
            }),
            Outcome::Refused(error) => {
                let claimed = claimed_client(request);
                self.0.record(&Event {
                    status: error.status,
                    error: Some((error.error, None)),
                    application_id: (!claimed.is_empty()).then_some(&claimed),
                    ..event
                })
            }
            Outcome::Rejected(error) => self.0.record(&Event {
                status: error.status,
                error: Some((error.code, error.inner)),
                ..event
            }),
        };
        if let Err(error) = recorded {
            log::error!("{error}: {:?}", std::error::Error::source(&error));
            return Err(ApiError::internal());
        }
        match outcome {
            Outcome::Document(document) => Ok(Reply::json(200, &document)),
            Outcome::Issued(mut issued) => {
                let reply = Reply::json(200, &issued.body);
                wipe(&mut issued.body);
                Ok(reply
                    .header("cache-control", "no-store".into())
                    .header("pragma", "no-cache".into()))
            }
            Outcome::Refused(error) => Ok(error.reply(&request.id)),
            Outcome::Rejected(error) => Err(error),
        }
    }
}

/// Wipes the texts of a reply that was sent.
fn wipe(body: &mut Value) {
    if let Some(Value::String(token)) = body.get_mut("access_token") {
        token.zeroize();
    }
}

/// Paths of this file.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint {
    Configuration,
    Instance,
    Keys,
    Token,
    Imds,
    AppService,
    WrongTenant,
    WrongMethod,
}

impl Endpoint {
    /// Its name in the audit log.
    fn operation(&self) -> &'static str {
        match self {
            Self::Configuration | Self::Instance | Self::Keys => "VaultDiscovery",
            Self::Imds | Self::AppService => "VaultManagedIdentityToken",
            Self::Token | Self::WrongTenant | Self::WrongMethod => "VaultTokenIssue",
        }
    }

    fn of(request: &Request, tenant: &str) -> Option<Self> {
        let path = request.path.trim_end_matches('/');
        let is_metadata = matches!(request.peer, Peer::Metadata(_));
        let with_method = |method: Method, endpoint| match request.method == method {
            true => Some(endpoint),
            false => Some(Self::WrongMethod),
        };
        match path {
            IMDS_PATH if is_metadata => return with_method(Method::GET, Self::Imds),
            APP_SERVICE_PATH => return with_method(Method::GET, Self::AppService),
            "/common/discovery/instance" if !is_metadata => {
                return with_method(Method::GET, Self::Instance);
            }
            _ if is_metadata => return None,
            _ => {}
        }
        let (named, rest) = path.strip_prefix('/')?.split_once('/')?;
        let (method, endpoint) = match rest {
            "v2.0/.well-known/openid-configuration" | ".well-known/openid-configuration" => {
                (Method::GET, Self::Configuration)
            }
            "discovery/v2.0/keys" | "discovery/keys" => (Method::GET, Self::Keys),
            "oauth2/v2.0/token" | "oauth2/token" => (Method::POST, Self::Token),
            _ => return None,
        };
        match named.eq_ignore_ascii_case(tenant) {
            true => with_method(method, endpoint),
            false => Some(Self::WrongTenant),
        }
    }
}

/// OpenID Connect Discovery 1.0, section 3, as far as client credentials need it.
fn configuration(state: &State, request: &Request) -> Value {
    let base = request.base_url();
    let (authority, tenant) = (state.settings.authority(&base), &state.settings.tenant);
    json!({
        "issuer": state.settings.issuer(&base),
        "authorization_endpoint": format!("{authority}/{tenant}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{authority}/{tenant}/oauth2/v2.0/token"),
        "jwks_uri": format!("{authority}/{tenant}/discovery/v2.0/keys"),
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
    })
}

/// What MSAL asks before it believes an authority that it does not know.
fn instance(state: &State, request: &Request) -> Value {
    let base = request.base_url();
    let (authority, tenant) = (state.settings.authority(&base), &state.settings.tenant);
    let host = authority.strip_prefix("https://").unwrap_or(authority);
    json!({
        "tenant_discovery_endpoint":
            format!("{authority}/{tenant}/v2.0/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [
            { "preferred_network": host, "preferred_cache": host, "aliases": [host] },
        ],
    })
}

/// The client that a request says it is.
fn claimed_client(request: &Request) -> String {
    let form = Form::of(request);
    let claimed = form.get("client_id").or_else(|| request.parameter("client_id"));
    claimed.unwrap_or_default().chars().take(64).collect()
}

/// A form: wiped when dropped, as it has secrets.
struct Form(Vec<(String, String)>);

impl Form {
    fn of(request: &Request) -> Self {
        match std::str::from_utf8(&request.body) {
            Ok(body) => Self(parse_query(body)),
            Err(_) => Self(Vec::new()),
        }
    }

    /// The value, if it is there once and not empty: RFC 6749, 3.2.
    fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(key, _)| key == name);
        let (_, value) = values.next()?;
        (values.next().is_none() && !value.is_empty()).then_some(value)
    }
}

impl Drop for Form {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|(_, value)| value.zeroize());
    }
}

/// The token endpoint: client credentials with a secret or an assertion.
fn client_token(
    state: &State,
    request: &Request,
    _address: IpAddr,
    now: u64,
) -> Result<Issued, LoginError> {
    let form = Form::of(request);
    if form.get("grant_type") != Some("client_credentials") {
        let description = "the grant_type must be client_credentials";
        return Err(LoginError::new(400, "unsupported_grant_type", 70003, description));
    }
    let missing = |what: &str| {
        LoginError::new(400, "invalid_request", 900_144, format!("the parameter {what} is missing"))
    };
    let client_id = form.get("client_id").ok_or_else(|| missing("client_id"))?;
    let resource = match (form.get("scope"), form.get("resource")) {
        (Some(scope), _) => scope.strip_suffix("/.default").ok_or_else(|| {
            let description = "the scope must be a resource with /.default after it";
            LoginError::new(400, "invalid_scope", 1_002_012, description)
        })?,
        (None, Some(resource)) => resource,
        (None, None) => return Err(missing("scope")),
    };
    let identity = state.directory.by_client_id(client_id).ok_or_else(|| {
        let description = "this vault has no such application; see: atrest vault identity list";
        LoginError::new(400, "unauthorized_client", 700_016, description).guess()
    })?;
    let base = request.base_url();
    let proof = match (form.get("client_assertion"), form.get("client_secret")) {
        (Some(assertion), None) => {
            if form.get("client_assertion_type") != Some(JWT_BEARER) {
                return Err(missing("client_assertion_type"));
            }
            check_assertion(state, identity, assertion, &base, now)?;
            "2"
        }
        (None, Some(secret)) => {
            identity.check_secret(secret, now).map_err(wrong_secret)?;
            "1"
        }
        _ => {
            let description = "exactly one of client_secret and client_assertion is needed";
            return Err(LoginError::new(401, "invalid_client", 7_000_218, description));
        }
    };
    if !identity.enabled {
        let description = "the application is disabled; see: atrest vault identity enable";
        return Err(LoginError::new(401, "unauthorized_client", 7_000_112, description));
    }
    let audience = accepted(state, resource)?;
    let (mut token, claims) = state.issue(identity, audience, proof, &base, now);
    let expires_in = claims.exp - now;
    let body = json!({
        "token_type": "Bearer", "expires_in": expires_in, "ext_expires_in": expires_in,
        "expires_on": claims.exp.to_string(), "resource": audience, "access_token": token,
    });
    token.zeroize();
    Ok(Issued { body, application_id: claims.appid, object_id: claims.oid })
}

fn wrong_secret(error: CredentialError) -> LoginError {
    match error {
        CredentialError::Invalid => {
            let description = "the client secret is not valid; is it the secret, not its id?";
            LoginError::new(401, "invalid_client", 7_000_215, description).guess()
        }
        CredentialError::Expired => {
            let description = "the client secret has expired; see: atrest vault identity secret";
            LoginError::new(401, "invalid_client", 7_000_222, description)
        }
    }
}

/// The resource as tokens name it.
fn accepted<'a>(state: &'a State, resource: &str) -> Result<&'a str, LoginError> {
    let wanted = resource.trim_end_matches('/');
    let known = state.settings.resources.iter().find(|known| known.trim_end_matches('/') == wanted);
    known.map(String::as_str).ok_or_else(|| {
        let description =
            "this vault issues no tokens for the resource; see: atrest vault settings";
        LoginError::new(400, "invalid_resource", 500_011, description)
    })
}

/// An assertion is signed by the client's own key, or by an issuer that is believed about it.
fn check_assertion(
    state: &State,
    identity: &Identity,
    assertion: &str,
    base: &str,
    now: u64,
) -> Result<(), LoginError> {
    let refused = |error: TokenError| {
        let code = match error {
            TokenError::Expired | TokenError::NotYet | TokenError::Lifetime => 700_024,
            TokenError::Audience => 700_212,
            TokenError::Subject => 700_213,
            TokenError::Issuer => 700_211,
            _ => 700_027,
        };
        let description = format!("the client assertion is not accepted: {error}");
        LoginError::new(401, "invalid_client", code, description).guess()
    };
    let (issuer, subject) = claimed_of(assertion).map_err(refused)?;
    if issuer == identity.client_id && subject == identity.client_id {
        let (authority, tenant) = (state.settings.authority(base), &state.settings.tenant);
        let audiences = ["oauth2/v2.0/token", "oauth2/token", "v2.0"]
            .map(|rest| format!("{authority}/{tenant}/{rest}"));
        let audiences = audiences.each_ref().map(String::as_str);
        let expected = Expected { issuer: &issuer, subject: &subject, audiences: &audiences };
        let mut result = Err(TokenError::Signature);
        let is_live = |expires: Option<u64>| expires.is_none_or(|at| at > now);
        for own in identity.certificates.iter().filter(|own| is_live(own.expires)) {
            let verified = verify_assertion_rsa(assertion, &own.public_key.0, expected, now);
            match verified {
                Err(TokenError::Signature) => {}
                verified => result = verified.map(|_| ()),
            }
        }
        return result.map_err(refused);
    }
    let mut result = Err(TokenError::Issuer);
    for credential in &identity.federated {
        if credential.issuer != issuer {
            continue;
        }
        if credential.subject != subject {
            result = result.or(Err(TokenError::Subject));
            continue;
        }
        let audiences = [&*credential.audience];
        let expected = Expected { issuer: &issuer, subject: &subject, audiences: &audiences };
        let keys = key_set(&credential.keys)?;
        result = verify_assertion(assertion, &keys, expected, now).map(|_| ());
        if result.is_ok() {
            break;
        }
    }
    result.map_err(refused)
}

/// The keys of an issuer; a file is read each time, so that what is withdrawn there is withdrawn.
fn key_set(source: &KeySource) -> Result<JwkSet, LoginError> {
    let path = match source {
        KeySource::Inline(set) => return Ok(set.clone()),
        KeySource::File(path) => path,
    };
    read_key_set(path).map_err(|error| {
        log::error!("the key set {} cannot be read: {error}", path.display());
        let description = "the keys of the issuer cannot be read; the vault's log says why";
        LoginError::new(500, "server_error", 90_033, description)
    })
}

fn read_key_set(path: &Path) -> std::io::Result<JwkSet> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(KEY_SET_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > KEY_SET_BYTES_MAX {
        return Err(std::io::Error::other("it is too large"));
    }
    serde_json::from_str(&text).map_err(|_| std::io::Error::other("it is no JWK set"))
}

/// What a metadata service answers when something about the request is wrong.
fn bad_request(description: &str) -> LoginError {
    LoginError::new(400, "invalid_request", 0, description)
}

/// IMDS of virtual machines: a host is known by its address.
/// <https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>
fn imds(state: &State, request: &Request, address: IpAddr, now: u64) -> Result<Issued, LoginError> {
    // A program that can be made to ask an address of somebody's choice can rarely be made to
    // send a header, too; a proxy says that it is one.
    if request.header("metadata") != Some("true") {
        return Err(bad_request("Required metadata header not specified"));
    }
    if request.headers.contains_key("x-forwarded-for") {
        return Err(bad_request("Requests by way of a proxy are not answered"));
    }
    require_api_version(request)?;
    let identity = choose(state.directory.by_address(address), request)?;
    managed_token(state, request, identity, now)
}

/// The endpoint of App Service: a host, or one program on it, is known by its secret.
/// <https://learn.microsoft.com/azure/app-service/overview-managed-identity>
fn app_service(
    state: &State,
    request: &Request,
    _address: IpAddr,
    now: u64,
) -> Result<Issued, LoginError> {
    let Some(secret) = request.header("x-identity-header") else {
        return Err(bad_request("Required header X-IDENTITY-HEADER not specified"));
    };
    let secret = Zeroizing::new(secret.to_owned());
    require_api_version(request)?;
    let bound = state.directory.by_host_secret(&secret, now);
    if bound.is_empty() {
        let description = "the secret of the host is not valid; see: atrest vault identity bind";
        return Err(LoginError::new(401, "unauthorized_client", 0, description).guess());
    }
    let identity = choose(bound, request)?;
    managed_token(state, request, identity, now)
}

fn require_api_version(request: &Request) -> Result<(), LoginError> {
    let is_date = |text: &str| {
        let digits =
            |range| text.get(range).is_some_and(|s: &str| s.bytes().all(|b| b.is_ascii_digit()));
        text.len() == 10 && digits(0..4) && digits(5..7) && digits(8..10)
    };
    match request.parameter("api-version") {
        Some(version) if is_date(version) && version >= "2018-02-01" => Ok(()),
        Some(_) => Err(bad_request("The api-version is not supported; use 2019-08-01")),
        None => Err(bad_request("The parameter api-version is missing")),
    }
}

/// Which of a host's identities is asked for; one that has only one need not say.
fn choose<'a>(bound: Vec<&'a Identity>, request: &Request) -> Result<&'a Identity, LoginError> {
    let named = |parameter: &str| request.parameter(parameter).filter(|value| !value.is_empty());
    // A resource id ends with the identity's name.
    let by_name = named("msi_res_id").or_else(|| named("mi_res_id"));
    let by_name = by_name.map(|path| path.rsplit('/').next().unwrap_or(path));
    let by_object = named("object_id").or_else(|| named("principal_id"));
    let mut fitting = bound.into_iter().filter(|identity| {
        let is = |wanted: Option<&str>, own: &str| {
            wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(own))
        };
        is(named("client_id"), &identity.client_id)
            && is(by_object, &identity.object_id)
            && is(by_name, &identity.name)
    });
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(bad_request("Identity not found")),
        (Some(_), Some(_)) => Err(bad_request(
            "Multiple user assigned identities exist, please specify the clientId of one",
        )),
    }
}

fn managed_token(
    state: &State,
    request: &Request,
    identity: &Identity,
    now: u64,
) -> Result<Issued, LoginError> {
    let resource = request.parameter("resource").unwrap_or_default();
    if resource.is_empty() {
        return Err(bad_request("The parameter resource is missing"));
    }
    let audience = accepted(state, resource).map_err(|error| LoginError { code: 0, ..error })?;
    let (mut token, claims) = state.issue(identity, audience, "2", &request.base_url(), now);
    // SDKs want numbers as strings here.
    let expires_in = (claims.exp - now).to_string();
    let body = json!({
        "access_token": token, "client_id": claims.appid, "expires_in": expires_in,
        "ext_expires_in": expires_in, "expires_on": claims.exp.to_string(),
        "not_before": claims.nbf.to_string(), "resource": audience, "token_type": "Bearer",
    });
    token.zeroize();
    Ok(Issued { body, application_id: claims.appid, object_id: claims.oid })
}

#[cfg(test)]
pub(super) mod tests;
