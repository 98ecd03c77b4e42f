//! The provider against a scripted vault on loopback, which is also its authority and its metadata
//! service: what is sent when, and what each answer means.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rcgen::PublicKeyData as _;

use super::*;
use crate::format::VolumeId;
use crate::key::Providers;
use crate::key::test_server::{Received, Server, json, reply};

const VERSION: &str = "0123456789abcdef0123456789abcdef";
const BINDING: Binding = Binding { volume_id: VolumeId([7; 16]) };
const TOKEN: &str = "eyJ0b2tlbg.s3cret";

/// A provider, and the vault that it asks.
struct Fixture {
    server: Server,
    provider: AzureProvider,
    _directory: tempfile::TempDir,
}

type Answer = Box<dyn Fn(&Received) -> Option<Vec<u8>> + Send + Sync>;

impl Fixture {
    /// A vault that answers like the service where `answer` does not.
    fn new(answer: impl Fn(&Received) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::with("", &[], Box::new(answer))
    }

    /// The same with more settings, where `AUTHORITY` is the server, and these variables.
    fn with(settings: &str, variables: &[(&str, &str)], answer: Answer) -> Self {
        let server =
            Server::start(move |request| answer(request).unwrap_or_else(|| vault(request)));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("providers.toml");
        let uri = format!("azure:http://{}/keys/k", server.authority);
        let text = format!(
            "[[provider]]\nuri = \"{uri}\"\nplain_http = true\nproxy = \"none\"\n\
             resource = \"https://vault.test\"\ntotal_timeout_s = 3\nrequest_timeout_s = 2\n{}",
            settings.replace("AUTHORITY", &format!("http://{}", server.authority))
        );
        std::fs::write(&path, text).expect("written");
        let providers = Providers::from_file(path);
        let options = ProviderOptions { providers, ..ProviderOptions::default() };
        let server_url = format!("http://{}", server.authority);
        let mut known: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.replace("AUTHORITY", &server_url)))
            .collect();
        known.entry("AZURE_POD_IDENTITY_AUTHORITY_HOST".into()).or_insert(server_url);
        let variables = move |name: &str| known.get(name).cloned();
        let provider = AzureProvider::new(&uri, &options, Arc::new(variables)).expect(&uri);
        Self { server, provider, _directory: directory }
    }

    fn kek(&self) -> KekReference {
        KekReference {
            key_id: self.provider.key.unversioned(),
            key_version: VERSION.to_owned(),
            algorithm: Algorithm::RsaOaep256,
            parameters: None,
        }
    }

    fn unwrap(&self) -> Result<Secret, KekError> {
        self.provider.unwrap(&BINDING, &self.kek(), &[1; 256])
    }

    /// Paths without the query, of what was asked.
    fn asked(&self) -> Vec<String> {
        let path =
            |request: &Received| request.target.split('?').next().unwrap_or_default().to_owned();
        self.server.received().iter().map(path).collect()
    }
}

/// The service's answers: challenge, token, attributes, wrapped and unwrapped keys.
fn vault(request: &Received) -> Vec<u8> {
    let path = request.target.split('?').next().unwrap_or_default();
    if path.ends_with("/oauth2/token") || path.ends_with("/v2.0/token") || path == "/msi/token" {
        return token("3599");
    }
    if request.header("authorization").is_empty() {
        return challenge("https://vault.test");
    }
    assert_eq!(request.header("authorization"), format!("Bearer {TOKEN}"));
    match path.rsplit('/').next() {
        Some("wrapkey") => {
            let secret = value_in(&request.body);
            let mut blob = URL_SAFE_NO_PAD.decode(secret).expect("base64url");
            blob.resize(256, 0);
            operation(request, VERSION, &URL_SAFE_NO_PAD.encode(blob))
        }
        Some("unwrapkey") => {
            let blob = URL_SAFE_NO_PAD.decode(value_in(&request.body)).expect("base64url");
            operation(request, VERSION, &URL_SAFE_NO_PAD.encode(&blob[..32]))
        }
        _ => bundle(request, "RSA", "\"enabled\":true"),
    }
}

fn value_in(body: &str) -> &str {
    let (_, value) = body.split_once("\"value\":\"").expect("a value");
    value.trim_end_matches("\"}")
}

fn token(expires_in: &str) -> Vec<u8> {
    let text = "\"token_type\":\"Bearer\",\"resource\":\"https://vault.test\"";
    let body = format!("{{\"access_token\":\"{TOKEN}\",\"expires_in\":\"{expires_in}\",{text}}}");
    json(200, &body)
}

fn challenge(resource: &str) -> Vec<u8> {
    let header = format!("Bearer authorization=\"https://login.test/t\", resource=\"{resource}\"");
    let body = error_body("Unauthorized", "");
    let headers = [("WWW-Authenticate", header.as_str()), ("Content-Type", "application/json")];
    reply(401, &headers, &body)
}

fn error_body(outer: &str, inner: &str) -> String {
    let inner = match inner {
        "" => String::new(),
        inner => format!(",\"innererror\":{{\"code\":\"{inner}\"}}"),
    };
    format!("{{\"error\":{{\"code\":\"{outer}\",\"message\":\"oid=s3cret\"{inner}}}}}")
}

fn operation(request: &Received, version: &str, value: &str) -> Vec<u8> {
    let kid = format!("http://{}/keys/k/{version}", request.header("host"));
    json(200, &format!("{{\"kid\":\"{kid}\",\"value\":\"{value}\"}}"))
}

fn bundle(request: &Received, kty: &str, attributes: &str) -> Vec<u8> {
    let kid = format!("http://{}/keys/k/{VERSION}", request.header("host"));
    let key = format!("\"kid\":\"{kid}\",\"kty\":\"{kty}\",\"key_ops\":[\"wrapKey\",\"sign\"]");
    json(200, &format!("{{\"key\":{{{key},\"n\":\"AQAB\"}},\"attributes\":{{{attributes}}}}}"))
}

fn is_operation(request: &Received) -> bool {
    request.method == "POST" && request.target.starts_with("/keys/")
}

/// Keys go in and come out; the first request says nothing, and a mount takes three in all.
#[test]
fn round_trip() {
    let fixture = Fixture::new(|_| None);
    let secrets = [random::secret(32), random::secret(32)];
    let wrapped = fixture.provider.wrap(&BINDING, &[&secrets[0], &secrets[1]]).expect("wrapped");
    assert_eq!(wrapped.kek, fixture.kek());
    for (secret, blob) in secrets.iter().zip(&wrapped.blobs) {
        let back = fixture.provider.unwrap(&BINDING, &wrapped.kek, blob).expect("unwrapped");
        assert!(back.is_same(secret));
    }
    let received = fixture.server.received();
    assert!(received[0].body.is_empty() && received[0].header("authorization").is_empty());
    for request in received.iter().filter(|request| request.target.starts_with("/keys/")) {
        assert!(request.target.ends_with("?api-version=7.4"), "{}", request.target);
    }
    for request in received.iter().filter(|request| is_operation(request)) {
        assert!(request.header("user-agent").contains(&BINDING.volume_id.to_string()));
        assert_eq!(request.header("x-ms-client-request-id").len(), 36);
    }
    assert_eq!(received.iter().filter(|request| request.target.contains("metadata")).count(), 1);

    let mount = Fixture::new(|_| None);
    let begun = Instant::now();
    mount.unwrap().expect("unwrapped");
    assert!(begun.elapsed() < Duration::from_millis(150), "{:?}", begun.elapsed());
    let key = format!("/keys/k/{VERSION}");
    let unwrap = format!("{key}/unwrapkey");
    assert_eq!(mount.asked(), [key.as_str(), "/metadata/identity/oauth2/token", &unwrap]);
    mount.unwrap().expect("unwrapped");
    assert_eq!(mount.asked().len(), 4, "the token is kept");
}

/// Each row of the service's error table, and what it means for a volume.
#[test]
fn error_table() {
    type Check = fn(&KekErrorKind) -> bool;
    let denied: Check = |kind| matches!(kind, KekErrorKind::Denied { .. });
    let disabled: Check = |kind| matches!(kind, KekErrorKind::Disabled);
    let unreachable: Check = |kind| matches!(kind, KekErrorKind::Unreachable { .. });
    let refused: Check = |kind| matches!(kind, KekErrorKind::AuthenticationFailed { .. });
    let malformed: Check = |kind| matches!(kind, KekErrorKind::BadRequest { .. });
    let integrity: Check = |kind| matches!(kind, KekErrorKind::Integrity);
    let gone: Check = |kind| matches!(kind, KekErrorKind::Gone { recoverable: true });
    for (status, outer, inner, expected, words) in [
        (401, "Unauthorized", "", refused, "clock"),
        (403, "Forbidden", "KeyDisabled", disabled, "disabled"),
        (403, "Forbidden", "ForbiddenByPolicy", denied, "access policy"),
        (403, "Forbidden", "ForbiddenByRbac", denied, "Key Vault Crypto Service Encryption User"),
        (403, "Forbidden", "AccessDenied", denied, "may not unwrapKey"),
        (403, "Forbidden", "", denied, "role"),
        (403, "Forbidden", "KeyOperationForbidden", denied, "key_ops"),
        (403, "Forbidden", "KeyExpired", denied, "exp"),
        (403, "Forbidden", "KeyNotYetValid", denied, "nbf"),
        (403, "Forbidden", "ForbiddenByFirewall", unreachable, "network rules"),
        (403, "Forbidden", "ForbiddenByConnection", unreachable, "network rules"),
        (409, "Conflict", "ObjectIsDeletedButRecoverable", gone, "restored"),
        (409, "Conflict", "ObjectIsBeingDeleted", gone, "restored"),
        (409, "Conflict", "ObjectIsBeingRecovered", unreachable, "try again"),
        (400, "BadParameter", "", integrity, "did not wrap"),
        (400, "BadRequest", "", malformed, "BadRequest"),
        (405, "MethodNotAllowed", "", malformed, "MethodNotAllowed"),
        (500, "InternalServerError", "", unreachable, "InternalServerError"),
    ] {
        let body = error_body(outer, inner);
        let fixture = Fixture::new(move |request| {
            let headers = [
                ("Content-Type", "application/json"),
                ("x-ms-request-id", "id-1"),
                ("WWW-Authenticate", "Bearer resource=\"https://vault.test\""),
            ];
            is_operation(request).then(|| reply(status, &headers, &body))
        });
        let error = fixture.unwrap().err().expect("refused");
        let text = error.to_string();
        assert!(expected(error.kind()), "{status} {outer} {inner}: {error:?}");
        assert!(text.contains(words) && !text.contains("s3cret"), "{status} {inner}: {text}");
        assert!(text.contains("/keys/k/") && !text.contains(TOKEN), "{text}");
    }
}

/// The same words from something on the way that is no vault take no key away.
#[test]
fn proxies_take_nothing_away() {
    for (status, content_type, body) in [
        (403, "text/html", "<html>Blocked</html>"),
        (404, "text/html", ""),
        (403, "application/json", "{\"message\":\"forbidden\"}"),
        (404, "application/json", "[]"),
        (407, "text/plain", "x"),
    ] {
        let fixture = Fixture::new(move |request| {
            is_operation(request).then(|| reply(status, &[("Content-Type", content_type)], body))
        });
        let error = fixture.unwrap().err().expect("refused");
        assert!(
            matches!(error.kind(), KekErrorKind::Unreachable { reason }
            if reason.contains("not from a key vault")),
            "{error}"
        );
        assert!(!error.is_definitive());
    }
}

/// A key that is not there: deleted and recoverable, or gone.
#[test]
fn deleted_keys() {
    for recoverable in [true, false] {
        let fixture = Fixture::new(move |request| {
            let not_there = error_body("KeyNotFound", "");
            match request.target.starts_with("/deletedkeys/k?") {
                true if recoverable => Some(json(200, "{}")),
                true => Some(json(404, &not_there)),
                false => is_operation(request).then(|| json(404, &not_there)),
            }
        });
        let error = fixture.unwrap().err().expect("refused");
        assert!(matches!(error.kind(), KekErrorKind::Gone { recoverable: found }
            if *found == recoverable));
    }
}

/// Throttled on the very first request, or later: it waits as told, or says for how long.
#[test]
fn throttled() {
    for first in [true, false] {
        let count = AtomicUsize::new(0);
        let fixture = Fixture::new(move |request| {
            let applies = first || is_operation(request);
            let busy = applies && count.fetch_add(1, Ordering::Relaxed) == 0;
            busy.then(|| reply(429, &[("Retry-After", "1")], ""))
        });
        let begun = Instant::now();
        fixture.unwrap().expect("it is free again");
        assert!(begun.elapsed() >= Duration::from_secs(1));
        let fixture = Fixture::new(move |request| {
            (first || is_operation(request)).then(|| reply(429, &[("Retry-After", "60")], ""))
        });
        let error = fixture.unwrap().err().expect("throttled");
        assert!(matches!(error.kind(), KekErrorKind::Throttled { retry_after: Some(wait) }
            if wait.as_secs() == 60));
    }
}

/// A vault whose name nobody knows may have been deleted, which is an outage all the same.
#[test]
fn unknown_names() {
    let uri = "azure:https://contoso.invalid/keys/k";
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("providers.toml");
    let text = format!("[[provider]]\nuri = \"{uri}\"\nproxy = \"none\"\ntotal_timeout_s = 3\n");
    std::fs::write(&path, text).expect("written");
    let providers = Providers::from_file(path);
    let options = ProviderOptions { providers, ..ProviderOptions::default() };
    let provider = AzureProvider::new(uri, &options, Arc::new(|_| None)).expect("a key");
    let kek = KekReference {
        key_id: "https://contoso.invalid/keys/k".to_owned(),
        key_version: VERSION.to_owned(),
        algorithm: Algorithm::RsaOaep256,
        parameters: None,
    };
    let error = provider.unwrap(&BINDING, &kek, &[1; 256]).err().expect("nobody answers");
    assert!(
        matches!(error.kind(), KekErrorKind::Unreachable { reason }
        if reason.contains("a vault that was deleted has no name")),
        "{error}"
    );
}

/// A metadata service that is starting, being updated or busy is asked again.
#[test]
fn metadata_services_get_time() {
    for status in [404, 410, 429, 500, 503] {
        let count = AtomicUsize::new(0);
        let fixture = Fixture::new(move |request| {
            let is_metadata = request.target.starts_with("/metadata/");
            let first = is_metadata && count.fetch_add(1, Ordering::Relaxed) == 0;
            first.then(|| json(status, "{\"error\":\"starting\"}"))
        });
        assert!(fixture.unwrap().is_ok(), "{status}");
        let tokens = fixture.asked().iter().filter(|path| path.ends_with("/token")).count();
        assert_eq!(tokens, 2, "{status}");
    }
}

/// A vault that wants a token for something else gets none, and neither does who asks for none.
#[test]
fn challenges() {
    for resource in ["https://storage.test", "https://vault.test@evil", "http://vault.test"] {
        let fixture = Fixture::new(move |request| {
            request.header("authorization").is_empty().then(|| challenge(resource))
        });
        let error = fixture.unwrap().err().expect("refused");
        assert!(!error.is_definitive());
        assert_eq!(fixture.asked().len(), 1, "no token was asked for");
    }
    for (status, words) in [(200, "without asking"), (404, "without asking"), (204, "without")] {
        let fixture = Fixture::new(move |_| Some(json(status, "{}")));
        let error = fixture.unwrap().err().expect("refused").to_string();
        assert!(error.contains(words), "{error}");
    }
    let own = "https://kv.test:8443";
    let url = |text| Url::parse(text).expect("a URL");
    let challenge = Challenge::parse(&format!("Bearer resource=\"{own}\"")).expect("one");
    assert!(challenge.is_for(&url(own), None));
}

/// A token that is refused is replaced once; a second refusal is the answer.
#[test]
fn refused_tokens() {
    let count = AtomicUsize::new(0);
    let fixture = Fixture::new(move |request| {
        let refused = is_operation(request) && count.fetch_add(1, Ordering::Relaxed) == 1;
        refused.then(|| challenge("https://vault.test"))
    });
    fixture.unwrap().expect("unwrapped");
    fixture.unwrap().expect("unwrapped with a new token");
    let tokens =
        |fixture: &Fixture| fixture.asked().iter().filter(|path| path.ends_with("/token")).count();
    assert_eq!(tokens(&fixture), 2);
    let fixture =
        Fixture::new(|request| is_operation(request).then(|| challenge("https://vault.test")));
    let error = fixture.unwrap().err().expect("refused");
    assert!(matches!(error.kind(), KekErrorKind::AuthenticationFailed { .. }), "{error}");
    assert_eq!(tokens(&fixture), 2);
    let fixture =
        Fixture::new(|request| is_operation(request).then(|| challenge("https://evil.test")));
    let error = fixture.unwrap().err().expect("refused");
    assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    assert_eq!(tokens(&fixture), 1);
}

/// Tokens are kept while they are good, and no longer.
#[test]
fn token_lives() {
    for (expires_in, expected) in [("3599", 1), ("0", 2), ("-1", 2), ("soon", 2)] {
        let fixture = Fixture::new(move |request| {
            request.target.contains("/oauth2/token").then(|| token(expires_in))
        });
        fixture.unwrap().expect("unwrapped");
        fixture.unwrap().expect("unwrapped");
        let tokens = fixture.asked().iter().filter(|path| path.ends_with("/token")).count();
        assert_eq!(tokens, expected, "{expires_in}");
    }
    for (body, words) in [
        ("{\"access_token\":\"\"}", "characters"),
        ("{\"access_token\":\"a b\"}", "characters"),
        ("{\"access_token\":\"s3cret\",\"token_type\":\"pop\"}", "another kind"),
        ("{}", "missing"),
        ("s3cret", "not JSON"),
    ] {
        let fixture = Fixture::new(move |request| {
            request.target.contains("/oauth2/token").then(|| json(200, body))
        });
        let error = fixture.unwrap().err().expect("refused").to_string();
        assert!(error.contains(words) && !error.contains("s3cret"), "{body}: {error}");
    }
}

/// A reply about another vault, key or version, or with a value that cannot be one, is not used.
#[test]
fn replies_are_checked() {
    let good = URL_SAFE_NO_PAD.encode([7; 32]);
    let long = URL_SAFE_NO_PAD.encode([7; SECRET_BYTES_MAX + 1]);
    for (kid, value, words) in [
        ("http://HOST/keys/k/ffffffffffffffffffffffffffffffff", good.as_str(), "another key"),
        ("http://HOST/keys/k2/VERSION", &good, "another key"),
        ("http://evil.test/keys/k/VERSION", &good, "another key"),
        ("https://HOST/keys/k/VERSION", &good, "another key"),
        ("http://HOST@evil/keys/k/VERSION", &good, "another key"),
        ("http://HOST/keys/k", &good, "another key"),
        ("", &good, "another key"),
        ("http://HOST/keys/k/VERSION", "", "cannot be one"),
        ("http://HOST/keys/k/VERSION", "s3cret+/", "cannot be one"),
        ("http://HOST/keys/k/VERSION", "s3cre", "cannot be one"),
        ("http://HOST/keys/k/VERSION", &long, "cannot be one"),
    ] {
        let (kid, value) = (kid.to_owned(), value.to_owned());
        let fixture = Fixture::new(move |request| {
            let kid = kid.replace("HOST", request.header("host")).replace("VERSION", VERSION);
            let body = format!("{{\"kid\":\"{kid}\",\"value\":\"{value}\"}}");
            is_operation(request).then(|| json(200, &body))
        });
        let error = fixture.unwrap().err().expect("refused");
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains("s3cret"), "{text}");
        assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }));
    }
}

/// A slot that names another vault, key or version than its URI, or a wrapped key that cannot be
/// one, is refused before anybody is asked.
#[test]
fn slots_are_checked() {
    let fixture = Fixture::new(|_| None);
    let own = fixture.kek();
    for (key_id, version) in [
        ("https://evil.test/keys/k", VERSION),
        ("http://HOST/keys/k2", VERSION),
        ("http://HOST/keys/k", "../x"),
        ("http://HOST/keys/k", ""),
        ("k", VERSION),
    ] {
        let key_id = key_id.replace("HOST", &fixture.server.authority);
        let kek = KekReference { key_id, key_version: version.into(), ..own.clone() };
        let error = fixture.provider.unwrap(&BINDING, &kek, &[1; 256]).err().expect("refused");
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    }
    for length in [0, 255, 257] {
        let error = fixture.provider.unwrap(&BINDING, &own, &vec![1; length]);
        assert!(matches!(error.err().expect("refused").kind(), KekErrorKind::Integrity));
    }
    assert!(fixture.asked().is_empty());
}

/// The key's type decides the algorithm; a disabled key does not wrap although the service would.
#[test]
fn keys_that_wrap() {
    let secret = random::secret(32);
    for (kty, expected) in [
        ("RSA", Some(Algorithm::RsaOaep256)),
        ("RSA-HSM", Some(Algorithm::RsaOaep256)),
        ("oct-HSM", Some(Algorithm::A256Kw)),
        ("EC", None),
    ] {
        let fixture = Fixture::new(move |request| {
            if request.target.contains("/wrapkey") && kty == "oct-HSM" {
                assert!(request.body.contains("\"alg\":\"A256KW\""));
                return Some(operation(request, VERSION, &URL_SAFE_NO_PAD.encode([1; 40])));
            }
            let is_get = request.method == "GET" && !request.header("authorization").is_empty();
            is_get.then(|| bundle(request, kty, ""))
        });
        let wrapped = fixture.provider.wrap(&BINDING, &[&secret]);
        match expected {
            Some(algorithm) => assert_eq!(wrapped.expect(kty).kek.algorithm, algorithm),
            None => assert!(wrapped.expect_err(kty).to_string().contains("make an RSA key")),
        }
    }
    let fixture = Fixture::new(|request| {
        let is_get = request.method == "GET" && !request.header("authorization").is_empty();
        is_get.then(|| bundle(request, "RSA", "\"enabled\":false"))
    });
    let error = fixture.provider.wrap(&BINDING, &[&secret]).expect_err("it is disabled");
    assert!(matches!(error.kind(), KekErrorKind::Disabled));
}

/// What the service says of a key, and the newest version.
#[test]
fn health() {
    let time = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    for (attributes, recoverable, protected) in [
        ("\"recoveryLevel\":\"CustomizedRecoverable+Purgeable\"", Some(true), Some(false)),
        (
            "\"recoveryLevel\":\"CustomizedRecoverable+ProtectedSubscription\"",
            Some(true),
            Some(true),
        ),
        ("\"recoveryLevel\":\"Recoverable\"", Some(true), Some(true)),
        ("\"recoveryLevel\":\"Purgeable\"", Some(false), Some(false)),
        ("\"created\":1", None, None),
    ] {
        let text = format!("\"enabled\":true,\"nbf\":1,\"exp\":1893456000,{attributes}");
        let fixture = Fixture::new(move |request| {
            let is_get = request.method == "GET" && !request.header("authorization").is_empty();
            is_get.then(|| bundle(request, "RSA", &text))
        });
        let expected = Health {
            version: Some(VERSION.into()),
            enabled: Some(true),
            not_before: time(1),
            expires: time(1_893_456_000),
            recoverable,
            purge_protected: protected,
            operations_missing: vec!["unwrapKey".into()],
        };
        assert_eq!(fixture.provider.health().expect(attributes), expected);
        let latest = fixture.provider.latest_version().expect("it is there");
        assert_eq!(latest.as_deref(), Some(VERSION));
    }
}

/// How each identity asks for a token, and which is taken when several could be.
#[test]
fn identities() {
    let directory = tempfile::tempdir().expect("a directory");
    let assertion = directory.path().join("token");
    std::fs::write(&assertion, "a.b.c\n").expect("written");
    let assertion = assertion.to_str().expect("UTF-8");
    let application = [
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_AUTHORITY_HOST", "AUTHORITY"),
    ];
    let secret = ("AZURE_CLIENT_SECRET", "s3 cret");
    let federated = ("AZURE_FEDERATED_TOKEN_FILE", assertion);
    let service = [("IDENTITY_ENDPOINT", "AUTHORITY/msi/token"), ("IDENTITY_HEADER", "h")];
    let all = [&application[..], &[secret, federated], &service].concat();
    let workload = [&application[..], &[federated], &service].concat();
    let managed = [&application[..1], &service].concat();
    let authority = "/tenant/oauth2/v2.0/token";
    let secret_form = "grant_type=client_credentials&client_id=client&\
                       scope=https%3A%2F%2Fvault.test%2F.default&client_secret=s3%20cret";
    let workload_form = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type\
                         %3Ajwt-bearer&client_assertion=a.b.c";
    let imds = "/metadata/identity/oauth2/token?api-version=2018-02-01&\
                resource=https%3A%2F%2Fvault.test";
    let imds_user = format!("{imds}&client_id=me");
    let msi = "/msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fvault.test";
    let msi_client = format!("{msi}&client_id=client");
    for (settings, variables, target, part) in [
        ("", &all[..], authority, secret_form),
        ("", &workload, authority, workload_form),
        ("", &managed, msi, ""),
        ("", &[], imds, ""),
        ("client_id = \"me\"", &[], &imds_user, ""),
        ("identity = \"managed\"", &all, &msi_client, ""),
        ("identity = \"workload\"", &all, authority, workload_form),
    ] {
        let fixture = Fixture::with(settings, variables, Box::new(|_| None));
        fixture.unwrap().expect(settings);
        let asked = fixture.server.received()[1].clone();
        assert_eq!(asked.target, target, "{settings} {variables:?}");
        assert!(asked.body.contains(part), "{}", asked.body);
        match asked.method.as_str() {
            "POST" => assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded"),
            _ if target.starts_with("/msi") => assert_eq!(asked.header("x-identity-header"), "h"),
            _ => assert_eq!(asked.header("metadata"), "true"),
        }
    }
}

/// A credential that is meant but not complete is said, and no other is tried.
#[test]
fn incomplete_identities() {
    for (settings, variables, words) in [
        ("identity = \"client-secret\"", &[][..], "client_secret_file"),
        ("identity = \"workload\"", &[], "federated_token_file"),
        ("identity = \"client-certificate\"", &[], "client_certificate_file"),
        ("client_secret_file = \"/nonexistent\"", &[("AZURE_CLIENT_ID", "c")], "cannot read"),
        ("", &[("AZURE_CLIENT_ID", "c"), ("AZURE_CLIENT_SECRET", "s3cret")], "AZURE_TENANT_ID"),
        (
            "tenant_id = \"a/../b\"",
            &[("AZURE_CLIENT_ID", "c"), ("AZURE_CLIENT_SECRET", "s3cret")],
            "tenant",
        ),
        (
            "tenant_id = \"t\"",
            &[
                ("AZURE_CLIENT_ID", "c"),
                ("AZURE_CLIENT_SECRET", "s3cret"),
                ("AZURE_AUTHORITY_HOST", "http://login.invalid"),
            ],
            "plain http",
        ),
        ("", &[("IDENTITY_ENDPOINT", "x"), ("IDENTITY_HEADER", "s3cret")], "IDENTITY_ENDPOINT"),
    ] {
        let fixture = Fixture::with(settings, variables, Box::new(|_| None));
        let error = fixture.unwrap().err().expect(words);
        let text = error.to_string();
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error:?}");
        assert!(text.contains(words) && !text.contains("s3cret"), "{words}: {text}");
        assert_eq!(fixture.asked().len(), 1, "{words}: nobody else is tried");
    }
}

/// What a token endpoint refuses is an authentication that failed, with what to do; what it cannot
/// answer is an outage. Neither takes the key away.
#[test]
fn token_refusals() {
    let application = [
        ("AZURE_TENANT_ID", "t"),
        ("AZURE_CLIENT_ID", "c"),
        ("AZURE_CLIENT_SECRET", "s3cret"),
        ("AZURE_AUTHORITY_HOST", "AUTHORITY"),
    ];
    let refused = |variables: &[(&str, &str)], status, error: &str, description: &str| {
        let body = format!("{{\"error\":\"{error}\",\"error_description\":\"{description}\"}}");
        let answer = move |request: &Received| {
            request.target.contains("/token").then(|| json(status, &body))
        };
        let fixture = Fixture::with("", variables, Box::new(answer));
        let error = fixture.unwrap().err().expect("refused");
        assert!(!error.is_definitive() && !error.to_string().contains("s3cret"));
        error
    };
    for (status, code, description, words) in [
        (401, "invalid_client", "AADSTS7000215: Invalid secret s3cret", "secret's value"),
        (401, "invalid_client", "AADSTS7000222: expired", "has expired"),
        (400, "unauthorized_client", "AADSTS700016: not found", "was deleted"),
        (400, "invalid_request", "AADSTS90002: s3cret", "tenant"),
        (401, "invalid_client", "AADSTS700024: time", "clock"),
        (401, "invalid_client", "", "client id"),
    ] {
        let error = refused(&application, status, code, description);
        assert!(
            matches!(error.kind(), KekErrorKind::AuthenticationFailed { reason }
            if reason.contains(words)),
            "{error}"
        );
    }
    let error = refused(&[], 400, "invalid_request", "Identity not found");
    assert!(error.to_string().contains("assign a managed identity"), "{error}");
    let error = refused(&application, 503, "temporarily_unavailable", "");
    assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{error}");
    let error = refused(&application, 429, "throttled", "");
    assert!(matches!(error.kind(), KekErrorKind::Throttled { .. }), "{error}");
    let nobody = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")];
    let fixture = Fixture::with("", &nobody, Box::new(|_| None));
    let error = fixture.unwrap().err().expect("there is no identity").to_string();
    assert!(error.contains("this host has no identity"), "{error}");
}

/// The assertion that a certificate signs: who, for whom, until when; and the mark is right.
#[test]
fn certificates() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("an RSA key");
    let parameters = rcgen::CertificateParams::new(vec!["x".to_owned()]).expect("parameters");
    let certificate = parameters.self_signed(&key).expect("a certificate");
    let pem = format!("{}{}", key.serialize_pem(), certificate.pem());
    let assertion =
        certificate::assertion(pem.as_bytes(), "c", "https://login.test/t").expect("ok");
    let parts: Vec<_> = assertion.split('.').collect();
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).expect("base64url");
    let object =
        |part: &str| -> serde_json::Value { serde_json::from_slice(&decode(part)).expect("JSON") };
    let (header, claims) = (object(parts[0]), object(parts[1]));
    let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
    assert_eq!(header["alg"], "PS256");
    assert_eq!(header["x5t#S256"], URL_SAFE_NO_PAD.encode(thumbprint.as_ref()));
    assert_eq!((&claims["iss"], &claims["sub"]), (&"c".into(), &"c".into()));
    assert_eq!(claims["aud"], "https://login.test/t");
    assert!(claims["exp"].as_u64() > claims["iat"].as_u64());
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::RSA_PSS_2048_8192_SHA256,
        key.subject_public_key_info(),
    );
    let signed = format!("{}.{}", parts[0], parts[1]);
    public.verify(signed.as_bytes(), &decode(parts[2])).expect("it is signed");
    let other = rcgen::KeyPair::generate().expect("an elliptic key").serialize_pem();
    for (pem, words) in [
        (key.serialize_pem(), "no certificate"),
        (certificate.pem(), "no private key"),
        (format!("{other}{}", certificate.pem()), "not an RSA key"),
    ] {
        let error = certificate::assertion(pem.as_bytes(), "c", "a").expect_err(words);
        assert!(error.contains(words), "{error}");
    }
}

/// URIs that are not those of a key.
#[test]
fn uris() {
    let options = ProviderOptions::default();
    for uri in ["azure:", "azure:x", "azure:https://v.test/secrets/k", "azure:https://a@b/keys/k"] {
        let error = from_uri(uri, &options).err().expect(uri);
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    }
    let made = from_uri("azure:https://v.vault.azure.net/keys/k/0123", &options).expect("a key");
    assert_eq!(made.latest_version().expect("it is pinned").as_deref(), Some("0123"));
}
