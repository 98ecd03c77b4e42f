//! The endpoints as SDKs ask them, on a store in a temporary directory.

use std::sync::Arc;

use super::*;
use crate::crypto::random;
use crate::format::VolumeId;
use crate::vault::access::Authenticator as _;
use crate::vault::admin::{self, Command};
use crate::vault::audit::{AuditLog, AuditOptions};
use crate::vault::authority::{Authority, RESOURCE_DEFAULT};
use crate::vault::store::Store;

/// A vault's authority, and what is asked of it.
pub(in crate::vault) struct Bench {
    pub(in crate::vault) directory: tempfile::TempDir,
    pub(in crate::vault) guard: Guard,
}

impl Bench {
    pub(in crate::vault) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::create(directory.path(), random::secret(32), VolumeId([7; 16]));
        let store = Arc::new(store.expect("it is made"));
        Self { guard: Self::guard(&directory, store), directory }
    }

    pub(in crate::vault) fn guard(directory: &tempfile::TempDir, store: Arc<Store>) -> Guard {
        let audit = AuditLog::open(AuditOptions::new(directory.path().join("audit")));
        let authority = Authority::open(store, "contoso", audit.expect("it is made"));
        Guard(Arc::new(authority.expect("a new store is good")))
    }

    /// A command of the operator.
    pub(in crate::vault) fn command(&self, command: Value) -> Result<Value, ApiError> {
        let body = command.to_string();
        let request = Request::of_operator(Method::POST, admin::PATH, Some(body.as_bytes()));
        let reply = self.guard.handle(&request).expect("it is a command")?;
        Ok(serde_json::from_slice(&reply.body).expect("JSON"))
    }

    pub(in crate::vault) fn text(&self, command: Value, pointer: &str) -> String {
        let shown = self.command(command).expect("it is done");
        shown.pointer(pointer).and_then(Value::as_str).expect(pointer).to_owned()
    }

    pub(in crate::vault) fn tenant(&self) -> String {
        self.guard.0.state().settings.tenant.clone()
    }

    fn ask(&self, request: &Request) -> (u16, Value) {
        match self.guard.handle(request).expect("the path is known") {
            Ok(reply) => (reply.status, serde_json::from_slice(&reply.body).expect("JSON")),
            Err(error) => (error.status, json!({ "error": { "code": error.code } })),
        }
    }

    /// The token endpoint.
    fn token(&self, form: &[(&str, &str)]) -> (u16, Value) {
        let path = format!("/{}/oauth2/v2.0/token", self.tenant());
        self.ask(&post(&path, form))
    }

    fn client_token(&self, client_id: &str, secret: &str) -> (u16, Value) {
        self.token(&[
            ("grant_type", "client_credentials"),
            ("client_id", client_id),
            ("client_secret", secret),
            ("scope", "https://vault.azure.net/.default"),
        ])
    }

    /// Who the vault thinks the bearer of a token is.
    fn authenticate(&self, token: &str) -> Result<String, String> {
        let request = network("GET", "/keys");
        let known = self.guard.authenticate(Some(token), &request);
        known.map(|identity| identity.name).map_err(|challenge| challenge.message)
    }
}

pub(in crate::vault) fn network(method: &str, target: &str) -> Request {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let mut request = Request::of_operator(method, target, None);
    request.peer = Peer::Network("192.0.2.1:1234".parse().expect("an address"));
    request.headers.insert("host", "contoso.vault.azure.net".parse().expect("a host"));
    request
}

fn post(path: &str, form: &[(&str, &str)]) -> Request {
    let mut request = network("POST", path);
    let encode = |text: &str| text.replace('%', "%25").replace('&', "%26").replace('+', "%2B");
    let pairs = form.iter().map(|(name, value)| format!("{name}={}", encode(value)));
    request.body = Zeroizing::new(pairs.collect::<Vec<_>>().join("&").into_bytes());
    request
}

fn metadata(target: &str, headers: &[(&'static str, &str)]) -> Request {
    let mut request = network("GET", target);
    request.peer = Peer::Metadata("169.254.169.1:99".parse().expect("an address"));
    for (name, value) in headers {
        request.headers.insert(*name, value.parse().expect("a header"));
    }
    request
}

fn code(reply: &(u16, Value)) -> (u16, &str, u64) {
    let (status, body) = reply;
    (*status, body["error"].as_str().unwrap_or(""), body["error_codes"][0].as_u64().unwrap_or(0))
}

/// A service principal with a secret gets a token, with which it is known; each way to be wrong has
/// its own number, and the audit log has no secret in it.
#[test]
fn client_secret() {
    let bench = Bench::new();
    let create = json!({ "op": "identity-create", "name": "web", "managed": false });
    let client_id = bench.text(create, "/client_id");
    let add = json!({ "op": "secret-add", "which": "web", "name": "s", "expires_in": 3600 });
    let secret = bench.text(add, "/secret");
    let (status, body) = bench.client_token(&client_id, &secret);
    assert_eq!(
        (status, &body["token_type"], &body["expires_in"]),
        (200, &json!("Bearer"), &json!(3600))
    );
    let token = body["access_token"].as_str().expect("a token").to_owned();
    assert_eq!(bench.authenticate(&token), Ok("web".into()));
    let good = [
        ("grant_type", "client_credentials"),
        ("client_id", &*client_id),
        ("client_secret", &*secret),
        ("scope", "https://vault.azure.net/.default"),
    ];
    let with = |name: &str, value: Option<&'static str>| {
        let changed = good.iter().filter_map(|(key, old)| match *key == name {
            true => value.map(|value| (*key, value)),
            false => Some((*key, *old)),
        });
        bench.token(&changed.collect::<Vec<_>>())
    };
    for (name, value, expected) in [
        ("grant_type", Some("password"), (400, "unsupported_grant_type", 70003)),
        ("client_id", None, (400, "invalid_request", 900_144)),
        ("client_id", Some("nobody"), (400, "unauthorized_client", 700_016)),
        ("client_secret", Some("wrong"), (401, "invalid_client", 7_000_215)),
        ("client_secret", None, (401, "invalid_client", 7_000_218)),
        ("scope", None, (400, "invalid_request", 900_144)),
        ("scope", Some("https://vault.azure.net"), (400, "invalid_scope", 1_002_012)),
        ("scope", Some("https://storage.azure.com/.default"), (400, "invalid_resource", 500_011)),
    ] {
        assert_eq!(code(&with(name, value)), expected, "{name}: {value:?}");
    }
    let twice = [good.as_slice(), &[("client_id", "other")]].concat();
    assert_eq!(code(&bench.token(&twice)), (400, "invalid_request", 900_144));
    let other_tenant = post("/00000000-0000-0000-0000-000000000000/oauth2/v2.0/token", &good);
    assert_eq!(code(&bench.ask(&other_tenant)), (400, "invalid_request", 90002));
    let log = std::fs::read_to_string(bench.directory.path().join("audit/audit.jsonl"));
    let log = log.expect("it is written");
    assert!(log.contains("VaultTokenIssue") && log.contains("VaultCredentialCreate"));
    assert!(!log.contains(&secret) && !log.contains(&token));
}

/// What ends tokens: revocation of the one, of all, a disabled and a deleted identity; and it stays
/// so when the vault is opened again.
#[test]
fn revocation() {
    let bench = Bench::new();
    let create = json!({ "op": "identity-create", "name": "web", "managed": false });
    let client_id = bench.text(create, "/client_id");
    let add = json!({ "op": "secret-add", "which": "web", "name": "s" });
    let secret = bench.text(add, "/secret");
    let token = || {
        let (status, body) = bench.client_token(&client_id, &secret);
        assert_eq!(status, 200, "{body}");
        body["access_token"].as_str().expect("a token").to_owned()
    };
    let (one, two) = (token(), token());
    bench.command(json!({ "op": "token-revoke", "token": one })).expect("it is good");
    assert!(bench.authenticate(&one).expect_err("revoked").contains("revoked"));
    assert_eq!(bench.authenticate(&two), Ok("web".into()));
    bench.command(json!({ "op": "signing-key-rotate" })).expect("always");
    assert_eq!(bench.authenticate(&two), Ok("web".into()), "rollover ends nothing");
    bench.command(json!({ "op": "identity-revoke", "which": "web" })).expect("it is there");
    assert!(bench.authenticate(&two).is_err());
    let three = token();
    assert_eq!(bench.authenticate(&three), Ok("web".into()));
    for enabled in [false, true] {
        let enable = json!({ "op": "identity-enable", "which": "web", "enabled": enabled });
        bench.command(enable).expect("it is there");
        assert_eq!(bench.authenticate(&three).is_ok(), enabled);
        assert_eq!(bench.client_token(&client_id, &secret).0, if enabled { 200 } else { 401 });
    }
    bench.command(json!({ "op": "identity-delete", "which": "web" })).expect("it is there");
    assert!(bench.authenticate(&three).is_err());
    assert_eq!(code(&bench.client_token(&client_id, &secret)).2, 700_016);
}

/// After a restart everything is as it was: identities, tokens, revocations, grants.
#[test]
fn restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let master = || crate::crypto::Secret::from_fn(32, |bytes| bytes.fill(9));
    let store = Store::create(directory.path(), master(), VolumeId([7; 16])).expect("it is made");
    let mut bench = Bench { guard: Bench::guard(&directory, Arc::new(store)), directory };
    let create = json!({ "op": "identity-create", "name": "web", "managed": false });
    let client_id = bench.text(create, "/client_id");
    let secret = bench.text(json!({ "op": "secret-add", "which": "web", "name": "s" }), "/secret");
    bench
        .command(
            json!({ "op": "policy-assign", "which": "web", "role": "Crypto User", "scope": "/" }),
        )
        .expect("the role is known");
    let tokens: Vec<String> = (0..2)
        .map(|_| {
            bench.client_token(&client_id, &secret).1["access_token"].as_str().expect("one").into()
        })
        .collect();
    bench.command(json!({ "op": "token-revoke", "token": tokens[0] })).expect("it is good");
    let shown = bench.command(json!({ "op": "policy-show" })).expect("always");
    let Bench { guard, directory } = bench;
    drop(guard);
    let store = Store::open(directory.path(), master(), VolumeId([7; 16])).expect("it is there");
    bench = Bench { guard: Bench::guard(&directory, Arc::new(store)), directory };
    assert!(bench.authenticate(&tokens[0]).is_err());
    assert_eq!(bench.authenticate(&tokens[1]), Ok("web".into()));
    assert_eq!(bench.client_token(&client_id, &secret).0, 200);
    assert_eq!(bench.command(json!({ "op": "policy-show" })).expect("always"), shown);
}

/// Guessing gets slow after a few tries, also with the right secret, for this source and client.
#[test]
fn guessing() {
    let bench = Bench::new();
    let create = json!({ "op": "identity-create", "name": "web", "managed": false });
    let client_id = bench.text(create, "/client_id");
    let secret = bench.text(json!({ "op": "secret-add", "which": "web", "name": "s" }), "/secret");
    for _ in 0..5 {
        assert_eq!(bench.client_token(&client_id, "wrong").0, 401);
    }
    let reply = bench.client_token(&client_id, &secret);
    assert_eq!(code(&reply), (429, "temporarily_unavailable", 90055));
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(bench.client_token(&client_id, &secret).0, 200);
}

/// What an SDK needs to find the endpoints, and the challenge that leads it there.
#[test]
fn discovery() {
    let bench = Bench::new();
    let tenant = bench.tenant();
    let base = "https://contoso.vault.azure.net";
    let path = format!("/{tenant}/v2.0/.well-known/openid-configuration");
    let (status, found) = bench.ask(&network("GET", &path));
    assert_eq!(status, 200);
    assert_eq!(found["token_endpoint"], format!("{base}/{tenant}/oauth2/v2.0/token"));
    let keys = found["jwks_uri"].as_str().expect("it is there").strip_prefix(base).expect("here");
    let (_, keys) = bench.ask(&network("GET", keys));
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(1));
    let instance = "/common/discovery/instance?api-version=1.1&authorization_endpoint=x";
    let (_, found) = bench.ask(&network("GET", instance));
    assert_eq!(found["metadata"][0]["preferred_network"], "contoso.vault.azure.net");
    let set = json!({ "op": "settings-set", "authority": "https://Login.test/" });
    bench.command(set).expect("it is an origin");
    let (_, found) = bench.ask(&network("GET", &path));
    assert_eq!(found["issuer"], format!("https://login.test/{tenant}/v2.0"));
    let challenge = bench.guard.authenticate(None, &network("GET", "/keys")).expect_err("no token");
    let expected = format!(
        r#"Bearer authorization="https://login.test/{tenant}", resource="{RESOURCE_DEFAULT}""#
    );
    assert_eq!(challenge.header, expected);
    assert!(bench.guard.handle(&network("GET", "/keys/k/v")).is_none(), "not ours");
    assert!(bench.guard.handle(&network("POST", admin::PATH)).is_none(), "the operator's alone");
    assert!(bench.guard.handle(&metadata(admin::PATH, &[])).is_none());
    let wrong = network("GET", &format!("/{tenant}/oauth2/v2.0/token"));
    assert_eq!(bench.ask(&wrong).0, 405);
}

/// IMDS: the header, the version, the address, which identity.
#[test]
fn metadata_service() {
    let bench = Bench::new();
    let create = |name: &str| json!({ "op": "identity-create", "name": name, "managed": true });
    let bind = |name: &str, network: &str| {
        let bind =
            json!({ "op": "host-bind-address", "which": name, "host": "h", "network": network });
        bench.command(bind).expect("it is managed");
    };
    let client_id = bench.text(create("host"), "/client_id");
    bind("host", "169.254.0.0/16");
    let target =
        format!("{IMDS_PATH}?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net");
    let good = [("metadata", "true")];
    let (status, body) = bench.ask(&metadata(&target, &good));
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["client_id"], client_id);
    assert_eq!(body["expires_in"], "3600", "numbers are strings");
    assert!(body["expires_on"].is_string() && body["not_before"].is_string());
    assert_eq!(bench.authenticate(body["access_token"].as_str().expect("one")), Ok("host".into()));
    let ask = |target: &str, headers: &[(&'static str, &str)]| {
        let (status, body) = bench.ask(&metadata(target, headers));
        (status, body["error_description"].as_str().unwrap_or_default().to_owned())
    };
    assert!(ask(&target, &[]).1.contains("metadata header"));
    assert!(ask(&target, &[("metadata", "false")]).1.contains("metadata header"));
    assert!(ask(&target, &[good[0], ("x-forwarded-for", "1.2.3.4")]).1.contains("proxy"));
    assert!(ask(&format!("{IMDS_PATH}?resource=x"), &good).1.contains("api-version is missing"));
    assert!(ask(&target.replace("2018", "2017"), &good).1.contains("not supported"));
    assert!(ask(&format!("{IMDS_PATH}?api-version=2019-08-01"), &good).1.contains("resource"));
    assert_eq!(ask(&target.replace("vault", "storage"), &good).0, 400);
    assert!(ask(&format!("{target}&client_id=x"), &good).1.contains("Identity not found"));
    let second = bench.text(create("second"), "/object_id");
    bind("second", "169.254.169.1");
    assert!(ask(&target, &good).1.contains("Multiple"));
    for (choice, expected) in [
        (format!("client_id={client_id}"), "host"),
        (format!("object_id={second}"), "second"),
        ("msi_res_id=/subscriptions/x/userAssignedIdentities/second".to_owned(), "second"),
    ] {
        let (_, body) = bench.ask(&metadata(&format!("{target}&{choice}"), &good));
        let token = body["access_token"].as_str().expect("a token");
        assert_eq!(bench.authenticate(token), Ok(expected.into()));
    }
    let mut elsewhere = metadata(&target, &good);
    elsewhere.peer = Peer::Metadata("127.0.0.1:1".parse().expect("an address"));
    assert_eq!(bench.ask(&elsewhere).0, 400);
    let mut outside = metadata(&target, &good);
    outside.peer = Peer::Network("169.254.169.1:1".parse().expect("an address"));
    assert!(bench.guard.handle(&outside).is_none(), "a vault's listener is no metadata service");
}

/// App Service: the secret of the host, and nothing else, decides.
#[test]
fn app_service_endpoint() {
    let bench = Bench::new();
    bench
        .command(json!({ "op": "identity-create", "name": "host", "managed": true }))
        .expect("new");
    let bind = json!({ "op": "host-bind-secret", "which": "host", "host": "h" });
    let secret = bench.text(bind, "/secret");
    let target =
        format!("{APP_SERVICE_PATH}/?api-version=2019-08-01&resource=https://vault.azure.net/");
    let ask = |secret: Option<&str>| {
        let mut request = network("GET", &target);
        if let Some(secret) = secret {
            request.headers.insert("x-identity-header", secret.parse().expect("a header"));
        }
        bench.ask(&request)
    };
    let (status, body) = ask(Some(&secret));
    assert_eq!((status, body["expires_on"].is_string()), (200, true), "{body}");
    let token = body["access_token"].as_str().expect("one").to_owned();
    assert_eq!(bench.authenticate(&token), Ok("host".into()));
    assert_eq!(ask(None).0, 400);
    for _ in 0..5 {
        assert_eq!(ask(Some("wrong")).0, 401);
    }
    assert_eq!(ask(Some(&secret)).0, 429, "guessing is slow here, too");
}

/// An external issuer's assertion stands for a secret; a file of keys is read anew each time.
#[test]
fn federated() {
    use crate::vault::token::tests::{EXPECTED, Issuer, assertion_at};
    let bench = Bench::new();
    let create = json!({ "op": "identity-create", "name": "web", "managed": false });
    let client_id = bench.text(create, "/client_id");
    let now = unix_now();
    let issuer = Issuer::new(now);
    let path = bench.directory.path().join("keys.json");
    let write = |issuer: &Issuer| std::fs::write(&path, issuer.jwks_json()).expect("writable");
    write(&issuer);
    bench
        .command(json!({
            "op": "federated-add", "which": "web", "name": "cluster", "issuer": EXPECTED.issuer,
            "subject": EXPECTED.subject, "audience": EXPECTED.audiences[0], "key_file": path,
        }))
        .expect("it is complete");
    let ask = |assertion: &str| {
        code(&bench.token(&[
            ("grant_type", "client_credentials"),
            ("client_id", &client_id),
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", assertion),
            ("scope", "https://vault.azure.net/.default"),
        ]))
        .2
    };
    assert_eq!(ask(&issuer.sign(assertion_at(now))), 0);
    let changed = |name: &str, value: &str| {
        let mut claims = assertion_at(now);
        claims[name] = json!(value);
        issuer.sign(claims)
    };
    assert_eq!(ask(&changed("iss", "https://other.test")), 700_211);
    assert_eq!(ask(&changed("sub", "other")), 700_213);
    assert_eq!(ask(&changed("aud", "other")), 700_212);
    assert_eq!(ask(&issuer.sign(assertion_at(now - 10_000))), 700_024);
    write(&Issuer::new(now));
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(ask(&issuer.sign(assertion_at(now))), 700_027, "its key was withdrawn");
}

/// The firewall is in front of every endpoint, and so is the limit of requests; who is kept out by
/// either is on record, as is who read what everybody may read.
#[test]
fn firewalled() {
    let bench = Bench::new();
    bench.command(json!({ "op": "firewall-enable", "enabled": true })).expect("always");
    let path = format!("/{}/discovery/keys", bench.tenant());
    assert_eq!(bench.ask(&network("GET", &path)).0, 403);
    bench.command(json!({ "op": "firewall-allow", "network": "192.0.2.0/24" })).expect("a network");
    assert_eq!(bench.ask(&network("GET", &path)).0, 200);
    let limits = json!({ "op": "limits-set", "vault": { "per_second": 0.0, "burst": 1.0 } });
    bench.command(limits).expect("it is valid");
    assert_eq!(bench.ask(&network("GET", &path)).0, 200);
    assert_eq!(bench.ask(&network("GET", &path)).0, 429);
    assert!(serde_json::from_value::<Command>(json!({ "op": "no" })).is_err());
    assert_eq!(bench.client_token("nobody", "guess").0, 429);
    let off = json!({ "op": "firewall-remove", "network": "192.0.2.0/24" });
    bench.command(off).expect("it is in the list");
    assert_eq!(bench.client_token("nobody", "guess").0, 403);
    let expected = [
        ("VaultDiscovery", 403, json!("Forbidden: ForbiddenByFirewall")),
        ("VaultDiscovery", 200, Value::Null),
        ("VaultDiscovery", 200, Value::Null),
        ("VaultDiscovery", 429, json!("temporarily_unavailable")),
        ("VaultTokenIssue", 429, json!("temporarily_unavailable")),
        ("VaultTokenIssue", 403, json!("Forbidden: ForbiddenByFirewall")),
    ];
    let log = std::fs::read_to_string(bench.directory.path().join("audit/audit.jsonl"));
    let lines: Vec<Value> = log
        .expect("it is written")
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let of_callers = lines.iter().filter(|line| line["callerIpAddress"] == "192.0.2.1");
    let found = of_callers.map(|line| {
        let name = line["operationName"].as_str().expect("a name");
        (name, &line["properties"]["httpStatusCode"], &line["resultDescription"])
    });
    let expected = expected.iter().map(|(name, status, words)| (*name, json!(status), words));
    assert!(found.map(|(n, s, w)| (n, s.clone(), w)).eq(expected), "{lines:?}");
}
