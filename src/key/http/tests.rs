//! The client against a server on loopback: what it refuses, what it retries, and what it says.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde::Deserialize;

use super::*;
use crate::key::test_server::{Received, Server, json, reply};
use crate::key::{KekError, KekErrorKind};

fn settings() -> Settings {
    Settings {
        proxy: Proxy::None,
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(2),
        total_timeout: Duration::from_secs(5),
        plain_http: true,
        ..Settings::default()
    }
}

fn client() -> Client {
    Client::new(settings()).expect("settings that can be used")
}

fn url(server: &Server) -> Url {
    Url::parse(&format!("http://{}/x", server.authority)).expect("a URL")
}

/// The kind and the words of an error as providers hand it on.
fn kek(error: HttpError) -> KekError {
    error.into_kek("azure:https://v/keys/k", "")
}

fn once(
    client: &Client,
    answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static,
) -> Result<Reply, HttpError> {
    let server = Server::start(answer);
    client.send_once(&Request::get(&url(&server)))
}

/// The request arrives as it was given, replies are handed on whatever their status, and one
/// connection serves several requests.
#[test]
fn requests_and_replies() {
    let server = Server::start(|request| match request.method.as_str() {
        "GET" => reply(404, &[("x-ms-request-id", "id-1"), ("Content-Type", "text/x")], "no"),
        _ => json(200, "{\"value\":\"abc\"}"),
    });
    let (client, url) = (client(), url(&server).with_query(&[("a", "b c")]));
    let reply = client.send_once(&Request::get(&url)).expect("a reply");
    assert_eq!((reply.status(), reply.body()), (404, &b"no"[..]));
    assert_eq!(reply.request_id().as_deref(), Some("id-1"));
    let request = Request::post_json(&url, b"{}").header("Authorization", "Bearer s3cret");
    assert!(!format!("{request:?}").contains("s3cret"));
    #[derive(Deserialize)]
    struct Value<'a> {
        value: &'a str,
    }
    let reply = client.send_once(&request).expect("a reply");
    assert_eq!(reply.json::<Value>().expect("it is JSON").value, "abc");
    assert!(!format!("{reply:?} {client:?}").contains("abc"));
    let received = server.received();
    assert_eq!(received[0].target, "/x?a=b%20c");
    assert_eq!(received[1].header("authorization"), "Bearer s3cret");
    assert_eq!(received[1].header("content-type"), "application/json");
    assert_eq!((received[1].method.as_str(), received[1].body.as_str()), ("POST", "{}"));
    assert!(received[1].header("user-agent").starts_with("atrest/"));
    assert_eq!(received.iter().map(|request| request.connection).max(), Some(0));
}

/// Plain http needs both the caller's word and a local address; it is refused before anything is
/// sent.
#[test]
fn https_only() {
    let strict = Client::new(Settings { plain_http: false, ..settings() }).expect("a client");
    for (client, text) in
        [(&strict, "http://127.0.0.1:1/x"), (&client(), "http://vault.example.invalid/x")]
    {
        let url = Url::parse(text).expect("a URL");
        let error = client.send_once(&Request::get(&url)).expect_err(text);
        assert!(matches!(kek(error).kind(), KekErrorKind::Configuration { problem }
            if problem.contains("https")));
    }
}

/// A redirect is an error that says so, and nobody goes there.
#[test]
fn redirects() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start(move |request| match request.target.as_str() {
            "/x" => reply(status, &[("Location", "/y")], ""),
            _ => json(200, "{}"),
        });
        let error = client().send_once(&Request::get(&url(&server))).expect_err("a redirect");
        assert!(error.to_string().contains("redirect"), "{error}");
        assert_eq!(server.received().len(), 1);
    }
}

/// Replies without end, in head or body, are cut off.
#[test]
fn sizes() {
    let longest = "x".repeat(REPLY_BYTES_MAX);
    let reply_of = |body: String| once(&client(), move |_| reply(200, &[], &body));
    assert_eq!(reply_of(longest.clone()).expect("it fits").body().len(), REPLY_BYTES_MAX);
    let error = reply_of(longest + "x").expect_err("it is too large");
    assert!(matches!(error, HttpError::TooLarge { .. }), "{error}");
    let head = "x".repeat(HEAD_BYTES_MAX);
    let error = once(&client(), move |_| reply(200, &[("X-Long", &head)], "")).expect_err("long");
    assert!(matches!(kek(error).kind(), KekErrorKind::Unreachable { .. }));
}

/// JSON must say that it is, be whole, and be what was expected; its content is not repeated.
#[test]
fn json_is_strict() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Expected {
        value: u32,
    }
    for (content_type, body, words) in [
        ("text/html", "<html>s3cret</html>", "text/html"),
        ("text/json", "{\"value\":1}", "text/json"),
        ("application/json", "{\"value\":1", "too early"),
        ("application/json", "", "too early"),
        ("application/json", "s3cret", "not JSON"),
        ("application/json", "{\"value\":1} s3cret", "not JSON"),
        ("application/json", "{\"value\":\"s3cret\"}", "another kind"),
        ("application/json", "{\"s3cret\":1}", "missing"),
        ("application/json", "{\"value\":1,\"value\":2}", "another kind"),
    ] {
        let reply = once(&client(), move |_| reply(200, &[("Content-Type", content_type)], body));
        let error = reply.expect("a reply").json::<Expected>().expect_err(body).to_string();
        assert!(error.contains(words) && !error.contains("s3cret"), "{body}: {error}");
    }
    for content_type in
        ["Application/JSON; charset=utf-8", "application/x-amz-json-1.1", "application/a+json"]
    {
        assert!(is_json(content_type), "{content_type}");
    }
}

/// Half a reply, none, or something else than HTTP: no answer, and never a part of one.
#[test]
fn broken_replies() {
    for (answer, words) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhalf"[..], "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Le\r\nConnection: close", "proper HTTP"),
        (b"", "broke"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\nConnection: close\r\n\r\n", "proper HTTP"),
    ] {
        let error = once(&client(), move |_| answer.to_vec()).expect_err("broken");
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
        assert!(matches!(kek(error).kind(), KekErrorKind::Unreachable { .. }));
    }
}

/// Nobody listens, or nobody knows the name.
#[test]
fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let url = Url::parse(&format!("http://{authority}/x")).expect("a URL");
    let error = client().send_once(&Request::get(&url)).expect_err("nobody listens");
    assert!(matches!(error, HttpError::Refused { .. }), "{error}");
    let url = Url::parse("https://no-such-vault.invalid/x").expect("a URL");
    let error = client().send_once(&Request::get(&url)).expect_err("no such name");
    assert!(matches!(error, HttpError::NameUnknown { .. }), "{error}");
}

/// A service that says nothing, or a byte a second for ever, is given up in time.
#[test]
fn time_is_bounded() {
    let settings = Settings { request_timeout: Duration::from_millis(400), ..settings() };
    let client = Client::new(settings).expect("a client");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let dripping = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addresses = [&silent, &dripping].map(|listener| listener.local_addr().expect("one"));
    std::thread::spawn(move || {
        let (mut stream, _) = dripping.accept().expect("a connection");
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
        for byte in head.iter().chain(std::iter::repeat(&b' ')) {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    for address in addresses {
        let begun = Instant::now();
        let url = Url::parse(&format!("http://{address}/x")).expect("a URL");
        let error = client.send(&Request::get(&url), client.deadline()).expect_err("too slow");
        assert!(matches!(error, HttpError::TimedOut { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}

/// A busy service is asked again, as it says and within the deadline; a decision is not questioned.
#[test]
fn retries() {
    let busy_first = |status: u16, headers: &'static [(&'static str, &'static str)]| {
        let count = AtomicUsize::new(0);
        Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
            0 => reply(status, headers, ""),
            _ => json(200, "{}"),
        })
    };
    let client = client();
    let send = |server: &Server| {
        let begun = Instant::now();
        let reply = client.send(&Request::get(&url(server)), client.deadline());
        (reply.expect("a reply").status(), begun.elapsed(), server.received().len())
    };
    for status in [429, 502, 503, 504] {
        let (status, elapsed, count) = send(&busy_first(status, &[]));
        assert_eq!((status, count), (200, 2));
        assert!(elapsed >= BACKOFF);
    }
    for status in [400, 401, 403, 404, 409, 500] {
        assert_eq!(send(&busy_first(status, &[])).0, status);
    }
    let (status, elapsed, _) = send(&busy_first(429, &[("Retry-After", "1")]));
    assert!(status == 200 && elapsed >= Duration::from_secs(1), "{elapsed:?}");
    let (status, elapsed, count) = send(&busy_first(429, &[("Retry-After", "30")]));
    assert!(status == 429 && count == 1 && elapsed < Duration::from_secs(1), "{elapsed:?}");
    let always = Server::start(|_| reply(503, &[], ""));
    let (status, _, count) = send(&always);
    assert_eq!((status, count), (503, ATTEMPTS_MAX as usize));
    let server = busy_first(404, &[]);
    let url = url(&server);
    let request = Request::get(&url).retry_also(&[404]);
    assert_eq!(client.send(&request, client.deadline()).expect("a reply").status(), 200);
}

/// A connection that breaks is tried again.
#[test]
fn broken_connections_are_tried_again() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Vec::new(),
        _ => json(200, "{}"),
    });
    let client = client();
    let reply = client.send(&Request::get(&url(&server)), client.deadline()).expect("a reply");
    assert_eq!((reply.status(), server.received().len()), (200, 2));
}

/// Both forms of `Retry-After`, the date by the server's own clock.
#[test]
fn retry_after_forms() {
    let date = "Wed, 21 Oct 2015 07:28:00 GMT";
    for (headers, expected) in [
        (vec![], None),
        (vec![("Retry-After", "7")], Some(7)),
        (vec![("Retry-After", "99999999")], Some(3600)),
        (vec![("Retry-After", "-1")], None),
        (vec![("Retry-After", "soon")], None),
        (vec![("Retry-After", "Wed, 21 Oct 2015 07:28:09 GMT"), ("Date", date)], Some(9)),
        (vec![("Retry-After", date)], Some(0)),
    ] {
        let shown = format!("{headers:?}");
        let reply = once(&client(), move |_| reply(400, &headers, "")).expect("a reply");
        assert_eq!(reply.retry_after().map(|wait| wait.as_secs()), expected, "{shown}");
    }
}

/// A CA, and a server's settings with a certificate that `change` has changed.
fn certified(change: impl Fn(&mut CertificateParams)) -> (String, Arc<rustls::ServerConfig>) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    change(&mut leaf);
    let certificate = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).expect("signed");
    let chain = vec![certificate.der().clone()];
    (ca_certificate.pem(), server_config(chain, &key))
}

fn server_config(
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: &KeyPair,
) -> Arc<rustls::ServerConfig> {
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a chain");
    Arc::new(config)
}

fn over_tls(ca_pem: &str, config: Arc<rustls::ServerConfig>) -> Result<Reply, HttpError> {
    let directory = tempfile::tempdir().expect("a directory");
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, ca_pem).expect("written");
    let server = Server::start_tls(Some(config), |_| json(200, "{}"));
    let client = Client::new(Settings { ca_file: Some(ca_file), ..settings() }).expect("a client");
    let url = Url::parse(&format!("https://{}/x", server.authority)).expect("a URL");
    client.send(&Request::get(&url), client.deadline())
}

/// A certificate of the named CA is taken; each that is not right is refused, with what to do.
#[test]
fn certificates() {
    let (ca, config) = certified(|_| ());
    assert_eq!(over_tls(&ca, config).expect("it is right").status(), 200);
    let (other_ca, _) = certified(|_| ());
    let (_, config) = certified(|_| ());
    let refused = |ca: &str, config, words: &str| {
        let error = over_tls(ca, config).expect_err(words);
        assert!(matches!(error, HttpError::Tls { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(words), "{words}: {text}");
        assert!(matches!(kek(error).kind(), KekErrorKind::Unreachable { .. }));
    };
    refused(&other_ca, config, "ca_file");
    let (ca, config) = certified(|leaf| {
        leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    refused(&ca, config, "expired");
    let (ca, config) = certified(|leaf| leaf.not_before = rcgen::date_time_ymd(2990, 1, 1));
    refused(&ca, config, "not valid yet");
    let (ca, config) = certified(|leaf| {
        leaf.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
    });
    refused(&ca, config, "other.example");
    let key = KeyPair::generate().expect("a key");
    let mut own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = own.self_signed(&key).expect("a certificate");
    refused(&own.pem(), server_config(vec![own.der().clone()], &key), "a CA's, not a server's");
}

/// Without a CA file the host's trust counts, and a private CA is not in it.
#[test]
fn host_trust() {
    let (_, config) = certified(|_| ());
    let server = Server::start_tls(Some(config), |_| json(200, "{}"));
    let url = Url::parse(&format!("https://{}/x", server.authority)).expect("a URL");
    let error = client().send_once(&Request::get(&url)).expect_err("a private CA");
    assert!(error.to_string().contains("does not trust"), "{error}");
}

/// A port that does not speak TLS is told apart from a wrong certificate.
#[test]
fn not_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 4096]);
    });
    let url = Url::parse(&format!("https://{address}/x")).expect("a URL");
    let error = client().send_once(&Request::get(&url)).expect_err("not TLS");
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

/// CA files that cannot be meant are refused before anybody is asked.
#[test]
fn ca_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ca.pem");
    let key = KeyPair::generate().expect("a key").serialize_pem();
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    for (content, words) in [
        (None, "No such file"),
        (Some(""), "no certificate"),
        (Some("hello"), "no certificate"),
        (Some(damaged), "damaged"),
        (Some(broken), "not PEM"),
        (Some(key.as_str()), "private key"),
    ] {
        if let Some(content) = content {
            std::fs::write(&path, content).expect("written");
        }
        let made = Client::new(Settings { ca_file: Some(path.clone()), ..settings() });
        let error = kek(made.expect_err(words));
        assert!(
            matches!(error.kind(), KekErrorKind::Configuration { problem }
            if problem.contains(words)),
            "{words}: {error}"
        );
    }
}

/// https goes through the proxy with its credentials, and what the proxy says is handed on; plain
/// http to this host does not.
#[test]
fn proxies() {
    let server = Server::start(|_| reply(407, &[], ""));
    let proxy = format!("http://user:s3cret@{}", server.authority);
    let settings = Settings { proxy: Proxy::Url(proxy), ..settings() };
    assert!(!format!("{settings:?}").contains("s3cret"));
    let client = Client::new(settings).expect("a client");
    let url = Url::parse("https://vault.example.invalid/x").expect("a URL");
    let error = client.send_once(&Request::get(&url)).expect_err("refused").to_string();
    assert!(error.contains("407") && error.contains(&server.authority), "{error}");
    assert!(!error.contains("s3cret"));
    let received = server.received();
    assert_eq!(received[0].method, "CONNECT");
    assert_eq!(received[0].target, "vault.example.invalid:443");
    assert_eq!(received[0].header("proxy-authorization"), "Basic dXNlcjpzM2NyZXQ=");
    let local = Server::start(|_| json(200, "{}"));
    let url = Url::parse(&format!("http://{}/x", local.authority)).expect("a URL");
    assert_eq!(client.send_once(&Request::get(&url)).expect("a reply").status(), 200);
    assert_eq!(server.received().len(), 1);
    for bad in ["https://proxy:1", "socks5://proxy:1", "http://", "", "http://a b"] {
        assert!(parse_proxy(bad).is_err(), "{bad}");
    }
}

/// `NO_PROXY` means hosts and what is below them.
#[test]
fn proxy_exceptions() {
    let matches = |entry: &str, host| is_exception(&[entry.to_owned()], host, 443);
    for (entry, host, expected) in [
        ("*", "a.example", true),
        ("a.example", "a.example", true),
        ("example", "a.example", true),
        (".example", "a.example", true),
        ("*.example", "a.example", true),
        ("a.example:443", "a.example", true),
        ("a.example:444", "a.example", false),
        ("ample", "a.example", false),
        ("", "a.example", false),
        ("::1", "[::1]", true),
        ("127.0.0.1", "127.0.0.1", true),
    ] {
        assert_eq!(matches(entry, host), expected, "{entry} {host}");
    }
}
