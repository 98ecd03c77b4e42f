//! A small HTTP server on loopback for the tests of providers: what it answers is a closure, and
//! what it was asked is remembered.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

/// A file that only this user can read, which stays until the test ends.
pub(crate) fn private_file(text: &str) -> PathBuf {
    thread_local! {
        static FILES: RefCell<Vec<tempfile::NamedTempFile>> = const { RefCell::new(Vec::new()) };
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("writable");
    let path = file.path().to_owned();
    FILES.with_borrow_mut(|files| files.push(file));
    path
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// `GET`, `POST`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Received {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    }
}

/// Serves until the process ends.
pub(crate) struct Server {
    /// `127.0.0.1:PORT`.
    pub authority: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Server {
    /// Answers each request with the bytes that `answer` gives; an empty answer closes the
    /// connection.
    pub fn start(answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start_tls(None, answer)
    }

    /// The same over TLS.
    pub fn start_tls(
        tls: Option<Arc<rustls::ServerConfig>>,
        answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let authority = listener.local_addr().expect("its address").to_string();
        let received = Arc::new(Mutex::new(Vec::new()));
        let (remembered, answer) = (received.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (tls, received, answer) = (tls.clone(), remembered.clone(), answer.clone());
                std::thread::spawn(move || {
                    let stream = stream.expect("a connection");
                    match tls {
                        None => serve(stream, connection, &received, &*answer),
                        Some(config) => {
                            let tls = rustls::ServerConnection::new(config).expect("its settings");
                            let stream = rustls::StreamOwned::new(tls, stream);
                            serve(stream, connection, &received, &*answer);
                        }
                    }
                });
            }
        });
        Self { authority, received }
    }

    /// What was asked so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }
}

fn serve(
    stream: impl Read + Write,
    connection: usize,
    received: &Mutex<Vec<Received>>,
    answer: &dyn Fn(&Received) -> Vec<u8>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream, connection) {
        received.lock().push(request.clone());
        let reply = answer(&request);
        if reply.is_empty() || stream.get_mut().write_all(&reply).is_err() {
            return;
        }
        let _ = stream.get_mut().flush();
        if String::from_utf8_lossy(&reply).to_ascii_lowercase().contains("connection: close") {
            return;
        }
    }
}

fn read_request(stream: &mut impl BufRead, connection: usize) -> Option<Received> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Received { method, target, headers, body: String::new(), connection };
    let length: u64 = request.header("content-length").parse().unwrap_or(0);
    stream.take(length).read_to_string(&mut request.body).ok()?;
    Some(request)
}

/// A reply with a JSON body.
pub(crate) fn json(status: u16, body: &str) -> Vec<u8> {
    reply(status, &[("Content-Type", "application/json; charset=utf-8")], body)
}

/// A reply with these headers.
pub(crate) fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}
