//! The provider against a scripted vault on loopback, which is also its authority and its metadata
//! service: what is sent when, and what each answer means.

mod identities;
mod keys;
mod refusals;

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
