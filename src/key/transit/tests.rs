//! What a transit engine can answer, from a server that answers it.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::crypto::random;
use crate::format::VolumeId;
use crate::key::authorize::{TransitAuth, TransitSettings};
use crate::key::test_server::{Received, Server, json, private_file, reply};

const BINDING: Binding = Binding { volume_id: VolumeId([7; 16]) };
const KEY: &str = "{\"data\":{\"type\":\"aes256-gcm96\",\"latest_version\":3,\"derived\":false,\
                   \"deletion_allowed\":false,\"keys\":{\"3\":1767222000}}}";
const DENIED: &str = "{\"errors\":[\"1 error occurred:\\n\\t* permission denied\\n\\n\"]}";
const TOKEN_TEXT: &str = "s.abcdefghijklmnopqrstuvwx";

fn kek() -> KekReference {
    KekReference {
        key_id: "transit/keys/k".into(),
        key_version: "3".into(),
        algorithm: Algorithm::A256Gcm,
        parameters: None,
    }
}

/// The provider of `server`, with `settings`.
fn with(server: &Server, settings: TransitSettings) -> TransitProvider {
    let mut all = EndpointSettings { transit: settings, ..EndpointSettings::default() };
    all.http.plain_http = true;
    let uri = format!("transit:http://{}/v1/transit/keys/k", server.authority);
    provider(&uri, &all).expect("the URI is one")
}

/// The same, with a token in a file.
fn with_token(server: &Server) -> TransitProvider {
    with(
        server,
        TransitSettings { token_file: Some(private_file(TOKEN_TEXT)), ..Default::default() },
    )
}

fn unwrap_error(provider: &TransitProvider) -> KekError {
    let error = provider.unwrap(&BINDING, &kek(), b"vault:v3:AQID").err();
    error.expect("the server refuses")
}

fn targets(server: &Server) -> Vec<String> {
    server.received().iter().map(|r| format!("{} {}", r.method, r.target)).collect()
}

/// What is asked, in which order, with what, and that the answers are taken as they are.
#[test]
fn requests() {
    let secret = Secret::from_fn(32, |bytes| bytes.fill(0xa5));
    let base64 = STANDARD.encode(secret.expose());
    let decrypted = format!("{{\"request_id\":\"1\",\"data\":{{\"plaintext\":\"{base64}\"}}}}");
    let server = Server::start(move |request| match request.target.as_str() {
        "/v1/transit/keys/k" => json(200, KEY),
        "/v1/transit/encrypt/k" => {
            json(200, "{\"data\":{\"ciphertext\":\"vault:v3:AQID\",\"key_version\":3}}")
        }
        "/v1/transit/decrypt/k" => json(200, &decrypted),
        "/v1/transit/keys/k/rotate" => reply(204, &[], ""),
        _ => json(404, "{\"errors\":[]}"),
    });
    let namespace = Some("team".to_owned());
    let token_file = Some(private_file(TOKEN_TEXT));
    let provider = with(&server, TransitSettings { namespace, token_file, ..Default::default() });
    let wrapped = provider.wrap(&BINDING, &[&secret, &secret]).expect("it wraps");
    assert_eq!(wrapped.kek, kek());
    assert_eq!(wrapped.blobs, [b"vault:v3:AQID", b"vault:v3:AQID"]);
    let found = provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).expect("it unwraps");
    assert!(found.is_same(&secret));
    assert_eq!(provider.latest_version().expect("it tells").as_deref(), Some("3"));
    assert_eq!(provider.create_version().expect("it makes one"), "3");
    assert_eq!(
        targets(&server),
        [
            "GET /v1/transit/keys/k",
            "POST /v1/transit/encrypt/k",
            "POST /v1/transit/encrypt/k",
            "POST /v1/transit/decrypt/k",
            "GET /v1/transit/keys/k",
            "GET /v1/transit/keys/k",
            "POST /v1/transit/keys/k/rotate",
            "GET /v1/transit/keys/k",
        ]
    );
    let received = server.received();
    let data = STANDARD.encode("atrest volume key of 07070707070707070707070707070707");
    assert_eq!(
        received[1].body,
        format!("{{\"plaintext\":\"{base64}\",\"associated_data\":\"{data}\",\"key_version\":3}}")
    );
    assert_eq!(
        received[3].body,
        format!("{{\"ciphertext\":\"vault:v3:AQID\",\"associated_data\":\"{data}\"}}")
    );
    for request in received {
        assert_eq!(request.header("x-vault-token"), TOKEN_TEXT);
        assert_eq!(request.header("x-vault-namespace"), "team");
    }
}

/// Each way in which the service refuses to unwrap, and what it means.
#[test]
fn refusals() {
    let said = |words: &str| format!("{{\"errors\":[\"{words}\"]}}");
    for (status, body, expected) in [
        (400, said("cipher: message authentication failed"), "did not wrap the volume key"),
        (
            400,
            said("ciphertext or signature version is disallowed by policy (too old)"),
            "the key version is disabled",
        ),
        (400, said("refusing to use soft-deleted key"), "deleted; it can be restored"),
        (400, said("encryption key not found"), "the key does not exist"),
        (400, said("invalid ciphertext: version is too new"), "the key does not exist"),
        (400, said("invalid ciphertext: no prefix"), "did not wrap the volume key"),
        (400, said("something else"), "the request was refused: something else"),
        (404, said("no handler for route \\\"transit/\\\""), "the key does not exist"),
        (404, "{\"errors\":[]}".to_owned(), "the key does not exist"),
        (405, said("unsupported operation"), "status 405: unsupported operation"),
        (412, said("required index state not present"), "no answer: required index"),
        (429, said("request path quota exceeded"), "too many requests"),
        (500, said("internal error"), "no answer: status 500: internal error"),
        (503, said("Vault is sealed"), "no answer: the service is sealed; unseal it"),
        (502, "<html>bad gateway</html>".to_owned(), "no answer: status 502: no explanation"),
        // Not the service's words: nothing is decided.
        (400, "<html>encryption key not found</html>".to_owned(), "not from OpenBao or Vault"),
        (401, "{\"error\":\"log in to the proxy\"}".to_owned(), "not from OpenBao or Vault"),
        (403, "<html>permission denied</html>".to_owned(), "not from OpenBao or Vault"),
        (404, "{\"message\":\"no such page\"}".to_owned(), "not from OpenBao or Vault"),
        (404, "{}".to_owned(), "not from OpenBao or Vault"),
    ] {
        let server = Server::start(move |_| json(status, &body));
        let mut provider = with_token(&server);
        // Without waiting for a service that stays busy.
        provider.client = Client::new(crate::key::http::Settings {
            total_timeout: std::time::Duration::from_millis(1),
            plain_http: true,
            ..Default::default()
        })
        .expect("the settings are sound");
        let error = unwrap_error(&provider);
        assert!(error.kind().to_string().contains(expected), "{status} {expected}: {error}");
        assert_eq!(error.key(), "transit/keys/k/3");
        let decided = matches!(
            error.kind(),
            KekErrorKind::Disabled | KekErrorKind::Gone { .. } | KekErrorKind::Integrity
        );
        let has_words = std::error::Error::source(&error).is_some();
        assert_eq!(has_words, decided, "its words are kept once: {error:?}");
    }
}

/// A 403 with a token that the service knows is a decision about the key, with what to grant; with
/// one that it does not know, it is the credential's end.
#[test]
fn denied_or_revoked() {
    for (lookup, expected) in [
        (
            200,
            "access to the key is denied: 1 error occurred: * permission denied; grant it in a \
               policy of the token: path \"transit/decrypt/k\" { capabilities = [\"update\"] }",
        ),
        (
            403,
            "authentication failed: 1 error occurred: * permission denied; the token has ended or \
               was revoked",
        ),
    ] {
        let server = Server::start(move |request| match request.target.as_str() {
            "/v1/auth/token/lookup-self" if lookup == 200 => json(200, "{\"data\":{}}"),
            _ => json(403, DENIED),
        });
        let error = unwrap_error(&with_token(&server));
        assert!(error.kind().to_string().starts_with(expected), "{error}");
        assert_eq!(error.is_definitive(), lookup == 200);
        assert!(!format!("{error:?}").contains(TOKEN_TEXT));
    }
}

/// Nothing is encrypted under a key that was not found: the service could make one of that name.
#[test]
fn a_misspelt_key_is_not_made() {
    let answers: [(u16, &str, &str); 7] = [
        (404, "{\"errors\":[]}", "does not exist"),
        (403, DENIED, "path \"transit/keys/k\" { capabilities = [\"read\"] }"),
        (200, "{\"data\":{}}", "a member is missing"),
        (200, "{\"data\":{\"type\":\"aes256-gcm96\",\"latest_version\":0}}", "no version"),
        (200, "{\"data\":{\"type\":\"rsa-2048\",\"latest_version\":1}}", "type=aes256-gcm96"),
        (
            200,
            "{\"data\":{\"type\":\"aes256-gcm96\",\"latest_version\":1,\"derived\":true}}",
            "aes256-gcm96, derived",
        ),
        (
            200,
            "{\"data\":{\"type\":\"aes256-gcm96\",\"latest_version\":1,\"soft_deleted\":true}}",
            "it can be restored",
        ),
    ];
    for (status, body, words) in answers {
        let server = Server::start(move |request| match request.target.as_str() {
            "/v1/auth/token/lookup-self" => json(200, "{}"),
            _ => json(status, body),
        });
        let secret = random::secret(32);
        let error = with_token(&server).wrap(&BINDING, &[&secret]).expect_err("no such key");
        assert!(error.to_string().contains(words), "{words}: {error}");
        let asked = targets(&server);
        assert!(asked.iter().all(|target| target.starts_with("GET ")), "{asked:?}");
    }
}

/// A slot that names another key or version than its wrapped key does is not asked about.
#[test]
fn slots_that_contradict_themselves() {
    let server = Server::start(|_| json(500, "{}"));
    let provider = with_token(&server);
    for wrapped in [
        &b""[..],
        b"vault",
        b"vault:v3",
        b"vault:v3:",
        b"vault:v2:AQID",
        b"vault:v03:AQID",
        b"vault:v:AQID",
        b"vault:v3:AQ ID",
        b"vault:v3:AQID\",\"context\":\"",
        b"vault:v3:\xff",
    ] {
        let error = provider.unwrap(&BINDING, &kek(), wrapped).err().expect("it contradicts");
        assert!(matches!(error.kind(), KekErrorKind::Integrity), "{error}");
    }
    for (key_id, key_version) in [("transit/keys/other", "3"), ("transit/keys/k", "4")] {
        let kek = KekReference { key_id: key_id.into(), key_version: key_version.into(), ..kek() };
        let error = provider.unwrap(&BINDING, &kek, b"vault:v3:AQID").err().expect("another key");
        assert!(matches!(error.kind(), KekErrorKind::Integrity), "{error}");
    }
    assert_eq!(targets(&server), [""; 0]);
}

/// Success that is none is an outage, and is not shown.
#[test]
fn malformed_success() {
    let bodies = [
        "",
        "{}",
        "{\"data\":null}",
        "{\"data\":{\"plaintext\":\"\"}}",
        "{\"data\":{\"plaintext\":\"SECRET!\"}}",
        "{\"data\":{\"plaintext\":[83,69,67]}}",
        "{\"data\":{\"plaintext\":\"SECRET\\u0041=\"}}",
        "{\"data\":{\"ciphertext\":\"vault:v2:SECRETSE\"}}",
        "{\"data\":{\"ciphertext\":\"SECRETSE\"}}",
    ];
    for body in bodies {
        let server = Server::start(move |request| match request.method.as_str() {
            "GET" => json(200, KEY),
            _ => json(200, body),
        });
        let provider = with_token(&server);
        let secret = random::secret(32);
        let errors = [
            unwrap_error(&provider),
            provider.wrap(&BINDING, &[&secret]).expect_err("nothing is encrypted"),
        ];
        for error in errors {
            assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{body}: {error}");
            assert!(!format!("{error} {error:?}").contains("SECRET"), "{error:?}");
        }
    }
}

/// Answers logins with tokens `t1`, `t2`, … of `life` seconds; of everything else `accepts` says
/// whether the token is good.
fn login_server(life: u64, accepts: fn(&str) -> bool) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |request: &Received| {
        if request.target.ends_with("/login") {
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            return json(
                200,
                &format!(
                    "{{\"data\":null,\"auth\":{{\"client_token\":\"t{number}\",\
                     \"lease_duration\":{life},\"renewable\":true}}}}"
                ),
            );
        }
        match accepts(request.header("x-vault-token")) {
            true => json(200, "{\"data\":{\"plaintext\":\"AQID\"}}"),
            false => json(403, DENIED),
        }
    })
}

fn app_role() -> TransitSettings {
    let secret_id_file = Some(private_file("the secret id"));
    TransitSettings { role_id: Some("role".into()), secret_id_file, ..Default::default() }
}

fn unwraps(provider: &TransitProvider) {
    provider.unwrap(&BINDING, &kek(), b"vault:v3:AQID").expect("it unwraps");
}

/// A login is made once, again before its token ends, and again when the token is refused; but only
/// once: then the right is missing.
#[test]
fn logins() {
    let server = login_server(3600, |_| true);
    let provider = with(&server, app_role());
    (0..3).for_each(|_| unwraps(&provider));
    let asked = targets(&server);
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert_eq!(asked[0], "POST /v1/auth/approle/login");
    let body = "{\"role_id\":\"role\",\"secret_id\":\"the secret id\"}";
    assert_eq!(server.received()[0].body, body);
    assert_eq!(server.received()[3].header("x-vault-token"), "t1");

    let server = login_server(1, |_| true);
    let provider = with(&server, app_role());
    unwraps(&provider);
    std::thread::sleep(std::time::Duration::from_millis(950));
    unwraps(&provider);
    assert_eq!(server.received()[3].header("x-vault-token"), "t2", "{:?}", targets(&server));

    let server = login_server(3600, |token| token != "t1");
    let provider = with(&server, app_role());
    (0..2).for_each(|_| unwraps(&provider));
    assert_eq!(targets(&server).iter().filter(|t| t.ends_with("login")).count(), 2);

    let server = login_server(3600, |_| false);
    let error = unwrap_error(&with(&server, app_role()));
    assert!(matches!(error.kind(), KekErrorKind::Denied { .. }), "{error}");
    assert_eq!(targets(&server).len(), 4, "two logins, two attempts: {:?}", targets(&server));

    let jwt = private_file("head.body.signature");
    let settings = TransitSettings {
        role: Some("web".into()),
        token_file: Some(jwt),
        auth_mount: Some("cluster/one".into()),
        ..Default::default()
    };
    let server = login_server(0, |_| true);
    let provider = with(&server, settings);
    (0..2).for_each(|_| unwraps(&provider));
    assert_eq!(targets(&server)[0], "POST /v1/auth/cluster/one/login");
    assert_eq!(server.received()[0].body, "{\"role\":\"web\",\"jwt\":\"head.body.signature\"}");
    assert_eq!(targets(&server).len(), 3, "a token without an end is kept");
}

/// A login that is refused, or answered with no token, is no decision about the key.
#[test]
fn failed_logins() {
    for (status, body, expected) in [
        (
            400,
            "{\"errors\":[\"invalid role or secret ID\"]}",
            "authentication failed: invalid role",
        ),
        (403, DENIED, "authentication failed: the login is refused"),
        (404, "{\"errors\":[\"no handler for route \\\"auth/approle\\\"\"]}", "auth_mount"),
        (500, "{\"errors\":[]}", "no answer"),
        (200, "{\"auth\":null}", "no answer"),
        (200, "{\"auth\":{\"client_token\":\"\",\"lease_duration\":1}}", "the token is empty"),
        (200, "{\"auth\":{\"client_token\":\"a b\",\"lease_duration\":1}}", "the token is empty"),
    ] {
        let server = Server::start(move |_| json(status, body));
        let error = unwrap_error(&with(&server, app_role()));
        assert!(error.kind().to_string().contains(expected), "{expected}: {error}");
        assert!(!error.is_definitive(), "{error}");
    }
}

/// A token that was replaced in its file, as agents do, is taken when the old one is refused.
#[test]
fn replaced_token() {
    let server = login_server(0, |token| token == "new");
    let path = private_file("old");
    let settings = TransitSettings {
        auth: Some(TransitAuth::Token),
        token_file: Some(path.clone()),
        ..Default::default()
    };
    let provider = with(&server, settings);
    let error = unwrap_error(&provider);
    assert!(matches!(error.kind(), KekErrorKind::AuthenticationFailed { .. }), "{error}");
    std::fs::write(&path, "new\n").expect("writable");
    unwraps(&provider);
}

/// What is not set up says so before anything is asked.
#[test]
fn settings() {
    let server = Server::start(|_| json(500, "{}"));
    let uri = format!("transit:http://{}/v1/transit/keys/k", server.authority);
    let mut missing_file = with(&server, app_role());
    missing_file.login = Login::new(
        &missing_file.urls.key,
        &TransitSettings { token_file: Some("/nowhere/token".into()), ..Default::default() },
    )
    .expect("the settings are whole");
    let error = unwrap_error(&missing_file);
    assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    for transit in [
        TransitSettings { auth: Some(TransitAuth::Approle), ..Default::default() },
        TransitSettings { auth: Some(TransitAuth::Kubernetes), ..Default::default() },
        TransitSettings { auth_mount: Some("../x".into()), ..Default::default() },
    ] {
        let all = EndpointSettings { transit, ..EndpointSettings::default() };
        let error = provider(&uri, &all).err().expect("not enough");
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    }
    assert_eq!(targets(&server), [""; 0]);
}

/// One spelling for each key; mounts may be deep, below namespaces.
#[test]
fn uris() {
    let settings = EndpointSettings::default();
    for (uri, expected) in [
        ("transit:https://h/v1/transit/keys/k", Some(("https://h", "transit/keys/k"))),
        ("transit:HTTPS://H:443/v1/transit/keys/k", Some(("https://h", "transit/keys/k"))),
        (
            "transit:https://h:8200/v1/ns/deep/keys/K-1.2",
            Some(("https://h:8200", "ns/deep/keys/K-1.2")),
        ),
        ("transit:https://h/v1/transit/keys/k/", None),
        ("transit:https://h/v1/keys/k", None),
        ("transit:https://h/v1/transit/keys", None),
        ("transit:https://h/v2/transit/keys/k", None),
        ("transit:https://h/v1/transit/encrypt/k", None),
        ("transit:https://h/v1/transit/keys/../k", None),
        ("transit:https://h/v1/transit/keys/k?x=1", None),
        ("transit:https://user@h/v1/transit/keys/k", None),
        ("transit:h/v1/transit/keys/k", None),
        ("transit:", None),
    ] {
        let found = provider(uri, &settings);
        match expected {
            None => assert!(found.is_err(), "{uri}"),
            Some((origin, key_id)) => {
                let found = found.map_err(|error| error.to_string()).expect(uri);
                assert_eq!(found.uri, format!("transit:{origin}/v1/{key_id}"));
                assert_eq!(found.key_id, key_id);
            }
        }
    }
}

/// The condition of a key, as far as the engine tells it.
#[test]
fn health() {
    let deletable = "{\"data\":{\"type\":\"rsa-4096\",\"latest_version\":2,\
                     \"deletion_allowed\":true,\"keys\":{\"2\":{\"name\":\"x\"}}}}";
    for (body, version, purge_protected, missing) in
        [(KEY, "3", true, 0), (deletable, "2", false, 2)]
    {
        let server = Server::start(move |_| json(200, body));
        let health = with_token(&server).health().expect("it tells");
        assert_eq!(health.version.as_deref(), Some(version));
        assert_eq!((health.enabled, health.purge_protected), (Some(true), Some(purge_protected)));
        assert_eq!(health.operations_missing.len(), missing);
    }
}
