//! Downloads from a scripted server on loopback.

use super::*;
use crate::key::test_server::{Received, Server};

const SECRET: &str = "s3cr3t%2Bsignature";

/// A sink in memory.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    validator: Validator,
    began: usize,
    stop_at: Option<u64>,
}

impl Sink for Memory {
    fn resume(&mut self) -> Result<(u64, Validator), fs::Error> {
        Ok((self.bytes.len() as u64, self.validator.clone()))
    }

    fn begin(&mut self, validator: &Validator) -> Result<(), fs::Error> {
        self.bytes.clear();
        self.validator = validator.clone();
        self.began += 1;
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), fs::Error> {
        assert_eq!(offset, self.bytes.len() as u64, "no byte is left out");
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn progress(&mut self, done: u64, _: Option<u64>) -> bool {
        self.stop_at.is_none_or(|stop_at| done < stop_at)
    }
}

fn content() -> Vec<u8> {
    let noise = (0..1_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8);
    b"PK\x03\x04".iter().copied().chain(noise).collect()
}

fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut reply = format!("HTTP/1.1 {status} Said\r\n").into_bytes();
    for (name, value) in headers {
        reply.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    reply.extend(b"\r\n");
    reply.extend(body);
    reply
}

/// Where the asked range begins.
fn first_of(request: &Received) -> usize {
    let range = request.header("range").strip_prefix("bytes=").expect("a range");
    range.strip_suffix('-').expect("open at its end").parse().expect("a number")
}

/// What a blob service answers of `content`, of which it sends `length` bytes at most.
fn part(request: &Received, content: &[u8], etag: &str, length: usize) -> Vec<u8> {
    let first = first_of(request);
    let total = content.len();
    let whole = (total - first).to_string();
    let range = format!("bytes {first}-{}/{total}", total - 1);
    let headers = [("Content-Length", whole.as_str()), ("Content-Range", &range), ("ETag", etag)];
    let close = [headers[0], headers[1], headers[2], ("Connection", "close")];
    let body = &content[first..];
    match body.len() > length {
        true => reply(206, &close, &body[..length]),
        false => reply(206, &headers, body),
    }
}

fn source(server: &Server) -> Source {
    let url = format!("http://{}/c/app.zip?sv=1&sig={SECRET}", server.authority);
    Source::parse(&url).expect("a URL")
}

fn rules() -> Rules {
    let request_timeout = Duration::from_secs(1);
    Rules { plain_http: true, request_timeout, ..Rules::default() }
}

fn run(server: &Server, sink: &mut Memory) -> Result<Outcome, DownloadError> {
    download(&source(server), &rules(), &Validator::default(), sink)
}

/// All of it comes, with the signature, and is not fetched again if it has not changed.
#[test]
fn whole_and_unchanged() {
    let server = Server::start(|request| match request.header("if-none-match") {
        "\"one\"" => reply(304, &[("ETag", "\"one\"")], b""),
        _ => part(request, &content(), "\"one\"", usize::MAX),
    });
    let mut sink = Memory::default();
    let done = run(&server, &mut sink).expect("a package");
    let validator = Validator { etag: Some("\"one\"".to_owned()) };
    let bytes = content().len() as u64;
    assert_eq!(done, Outcome::Complete { bytes, validator: validator.clone() });
    assert!(sink.bytes == content());
    assert_eq!(server.received()[0].target, format!("/c/app.zip?sv=1&sig={SECRET}"));
    let again = download(&source(&server), &rules(), &validator, &mut Memory::default());
    assert_eq!(again.expect("unchanged"), Outcome::Unchanged);
}

/// Connections that break are gone on with where they did, by the same and by a later download,
/// and only if it is the same file.
#[test]
fn goes_on() {
    let server = Server::start(|request| part(request, &content(), "\"one\"", 300_000));
    let mut sink = Memory::default();
    run(&server, &mut sink).expect("a package");
    assert!(sink.bytes == content());
    let asked = server.received();
    let firsts: Vec<usize> = asked.iter().map(first_of).collect();
    assert_eq!(firsts, [0, 300_000, 600_000, 900_000]);
    assert_eq!(asked[0].header("if-match"), "");
    assert!(asked[1..].iter().all(|request| request.header("if-match") == "\"one\""));

    let mut sink = Memory { stop_at: Some(1), ..Memory::default() };
    let stopped = run(&server, &mut sink).expect_err("it was stopped");
    assert!(matches!(stopped, DownloadError::Stopped { .. }), "{stopped}");
    let there = sink.bytes.len();
    assert!(there > 0 && there < content().len());
    sink.stop_at = None;
    let before = server.received().len();
    run(&server, &mut sink).expect("a package");
    assert!(sink.bytes == content() && sink.began == 1);
    assert_eq!(first_of(&server.received()[before]), there);
}

/// A file that is replaced meanwhile is begun anew, whether the server refuses or gives a part of
/// the new one; one that is always another is given up.
#[test]
fn changes() {
    for refuses in [true, false] {
        let server = Server::start(move |request| match request.header("if-match") {
            "" if request.connection == 0 => part(request, &content(), "\"one\"", 300_000),
            "\"one\"" if refuses => reply(412, &[("Content-Length", "0")], b""),
            _ => part(request, &content(), "\"two\"", usize::MAX),
        });
        let mut sink = Memory::default();
        run(&server, &mut sink).expect("a package");
        assert!(sink.bytes == content() && sink.began == 2);
        assert_eq!(sink.validator.etag.as_deref(), Some("\"two\""));
    }
    let server = Server::start(|request| match request.header("if-match") {
        "" => part(request, &content(), "\"one\"", 300_000),
        _ => reply(412, &[("Content-Length", "0")], b""),
    });
    let error = run(&server, &mut Memory::default()).expect_err("it changes");
    assert!(matches!(error, DownloadError::Changing { .. }), "{error}");
}

/// A server that knows no ranges, or names nothing, is read in one request, to its end.
#[test]
fn without_ranges() {
    let server = Server::start(|_| {
        let bytes = content();
        reply(200, &[("Content-Length", &bytes.len().to_string())], &bytes)
    });
    let mut sink = Memory::default();
    run(&server, &mut sink).expect("a package");
    assert!(sink.bytes == content());
    let server = Server::start(|_| reply(200, &[("Connection", "close")], &content()));
    let mut sink = Memory::default();
    run(&server, &mut sink).expect("a package");
    assert!(sink.bytes == content());
    assert_eq!(server.received()[1].header("range"), "");
}

/// Each refusal, by kind, and whether it says something about the package; none shows the
/// signature.
#[test]
fn refusals() {
    let none: &[(&str, &str)] = &[("Content-Length", "0")];
    let http: &[(&str, &str)] = &[("Content-Length", "0"), ("Location", "http://127.0.0.1:1/x")];
    for (status, headers, words, outage) in [
        (401, none, "not accessible (status 401)", false),
        (403, none, "not accessible (status 403)", false),
        (404, none, "nothing there", false),
        (302, http, "is a redirect (status 302)", false),
        (418, none, "status 418", false),
        (416, none, "is empty", false),
        (500, none, "answers with status 500", true),
        (503, &[("Content-Length", "0"), ("Retry-After", "4000")], "status 503", true),
    ] {
        let server = Server::start(move |_| reply(status, headers, b""));
        let error = run(&server, &mut Memory::default()).expect_err(words);
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(words), "{status}: {shown}");
        assert!(!shown.contains("s3cr3t"), "{shown}");
        assert_eq!(error.is_outage(), outage, "{status}");
    }
}

/// `Retry-After` is kept to, and then it goes on.
#[test]
fn waits_as_told() {
    let server = Server::start(|request| match request.connection {
        0 => reply(429, &[("Retry-After", "2"), ("Content-Length", "0")], b""),
        _ => part(request, &content(), "\"one\"", usize::MAX),
    });
    let began = std::time::Instant::now();
    run(&server, &mut Memory::default()).expect("a package");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Larger than allowed: by what the server says, before anything is kept; or by what it sends.
#[test]
fn bounded_in_size() {
    let limited = Rules { bytes_max: 400_000, ..rules() };
    let says = Server::start(|request| part(request, &content(), "\"one\"", usize::MAX));
    let sends = Server::start(|_| reply(200, &[("Connection", "close")], &content()));
    for (server, kept) in [(says, 0), (sends, 400_000)] {
        let mut sink = Memory::default();
        let error = download(&source(&server), &limited, &Validator::default(), &mut sink);
        let error = error.expect_err("it is too large");
        assert!(matches!(error, DownloadError::TooLarge { .. }), "{error}");
        assert!(sink.bytes.len() <= kept);
    }
}

/// A server that says nothing is left after a while, and what takes too long in all ends.
#[test]
fn bounded_in_time() {
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_secs(30));
        Vec::new()
    });
    let hasty = Rules {
        request_timeout: Duration::from_millis(300),
        time_max: Duration::from_secs(2),
        ..rules()
    };
    let began = std::time::Instant::now();
    let sink = &mut Memory::default();
    let error = download(&source(&server), &hasty, &Validator::default(), sink);
    let error = error.expect_err("nothing comes");
    assert!(error.is_outage(), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Whoever is no ZIP is refused at its first bytes, whatever it calls itself.
#[test]
fn kinds() {
    for (head, kind) in [
        (b"\x1f\x8b\x08\x00".as_slice(), "GZIP"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"<!DOCTYPE html><title>Sign in</title>", "HTML"),
    ] {
        let bytes: Vec<u8> = head.iter().copied().chain(std::iter::repeat_n(0, 5000)).collect();
        let server = Server::start(move |request| part(request, &bytes, "\"one\"", usize::MAX));
        let mut sink = Memory::default();
        let error = run(&server, &mut sink).expect_err(kind).to_string();
        assert!(error.contains(kind) && error.contains("not a ZIP"), "{error}");
        assert!(sink.bytes.is_empty());
    }
}

/// Plain http needs a word, and this host; a name that is not known is an outage.
#[test]
fn places() {
    let server = Server::start(|request| part(request, &content(), "\"one\"", usize::MAX));
    let known = Validator::default();
    let strict = download(&source(&server), &Rules::default(), &known, &mut Memory::default());
    let error = strict.expect_err("it is http");
    assert!(error.to_string().contains("plain http") && !error.is_outage(), "{error}");
    let elsewhere = Source::parse("http://192.0.2.1/app.zip").expect("a URL");
    let error = download(&elsewhere, &rules(), &known, &mut Memory::default());
    assert!(error.expect_err("it is elsewhere").to_string().contains("plain http"));
    let nowhere = Source::parse("https://nowhere.invalid/app.zip").expect("a URL");
    let error = download(&nowhere, &rules(), &known, &mut Memory::default());
    assert!(error.expect_err("it is nowhere").is_outage());
}

/// When a signature ends is read from it, if it is a time.
#[test]
fn expiry() {
    let expires = |url: &str| Source::parse(url).expect("a URL").expires();
    let url = "https://a.example/x.zip?sv=1&se=2026-01-31T10%3A00%3A00Z&sig=x";
    assert_eq!(expires(url).as_deref(), Some("2026-01-31T10:00:00Z"));
    assert_eq!(expires("https://a.example/x.zip?se=x%0a&sig=x"), None);
    assert_eq!(expires("https://a.example/x.zip"), None);
}
