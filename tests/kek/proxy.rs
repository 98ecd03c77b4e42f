//! A proxy between a provider and its service that does one thing wrong.
//!
//! It ends TLS with a certificate of its own and opens it again towards the service, so that faults
//! of the network, of TLS and of HTTP are all its to make. One request a connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection, StreamOwned};

use crate::certificates::{Authority, Shown};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection is taken, and nothing is said.
    Blackhole,
    /// Not TLS.
    TlsGarbage,
    /// A certificate that must be refused.
    Certificate(Shown),
    /// The reply ends in the middle.
    HalfReply,
    /// A byte of the reply a second.
    SlowReply,
    /// This many requests are answered with a status, `Retry-After: 1` and the JSON `{}`; then it
    /// is as if nothing had been.
    Status(u16, usize),
    /// The client is sent elsewhere, to the address of [`Proxy::trap`].
    Redirect,
    /// A body that does not end: 64 KiB, again and again.
    Oversized,
    /// A head that does not end.
    EndlessHead,
    /// The true reply, called HTML.
    CalledHtml,
    /// A page of a captive portal, with status 200.
    Portal,
    /// JSON that is not what was asked for.
    OtherJson,
    /// The true reply in which one text is replaced by another.
    Replaced(String, String),
}

/// A proxy, until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    /// Where a redirect leads: nobody may follow it.
    pub trap: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    fault: Mutex<Fault>,
    authority: Authority,
    upstream: String,
    upstream_tls: Arc<ClientConfig>,
    trap: SocketAddr,
    trapped: AtomicUsize,
    requests: AtomicUsize,
    ended: AtomicBool,
}

impl Proxy {
    /// In front of `upstream` (`host:port`), which `ca_file` vouches for; files go to `directory`.
    pub fn start(upstream: &str, ca_file: &Path, directory: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca_file).expect("a PEM file") {
            roots.add(certificate.expect("a certificate")).expect("of an authority");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let upstream_tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (listener, trap) = (listen(), listen());
        let trap_address = trap.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            fault: Mutex::new(Fault::None),
            authority: Authority::new(directory),
            upstream: upstream.to_owned(),
            upstream_tls: Arc::new(upstream_tls),
            trap: trap_address,
            trapped: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let address = listener.local_addr().expect("it listens");
        accept(listener, shared.clone(), |shared, stream| {
            if let Err(error) = shared.serve(stream) {
                eprintln!("proxy: {error}");
            }
        });
        accept(trap, shared.clone(), |shared, _| {
            shared.trapped.fetch_add(1, Ordering::Relaxed);
        });
        Self { address, trap: trap_address, shared }
    }

    /// `https://localhost:PORT`.
    pub fn origin(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// PEM file of the authority of its good certificate.
    pub fn ca_file(&self) -> &Path {
        &self.shared.authority.file
    }

    /// Does this from now on.
    pub fn set(&self, fault: Fault) {
        self.shared.requests.store(0, Ordering::Relaxed);
        *self.shared.fault.lock() = fault;
    }

    /// Requests since [`Proxy::set`].
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Connections to [`Proxy::trap`].
    pub fn trapped(&self) -> usize {
        self.shared.trapped.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the two that wait for connections.
        for address in [self.address, self.trap] {
            let _ = TcpStream::connect(address);
        }
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

/// An address where nobody listens.
pub fn closed_address() -> SocketAddr {
    listen().local_addr().expect("it listened")
}

fn accept(listener: TcpListener, shared: Arc<Shared>, serve: fn(&Shared, TcpStream)) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if shared.ended.load(Ordering::Relaxed) {
                return;
            }
            let (stream, shared) = (stream.expect("a connection"), shared.clone());
            std::thread::spawn(move || serve(&shared, stream));
        }
    });
}

/// A message: head and body.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let fault = self.fault.lock().clone();
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let shown = match fault {
            Fault::Blackhole => return io::copy(&mut stream, &mut io::sink()).map(drop),
            Fault::TlsGarbage => return stream.write_all(&[b'?'; 4096]),
            Fault::Certificate(shown) => shown,
            _ => Shown::Good,
        };
        let connection = ServerConnection::new(self.authority.server(shown));
        let mut tls = StreamOwned::new(connection.map_err(io::Error::other)?, stream);
        let request = read_message(&mut tls, false)?;
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let result = self.answer(&mut tls, &fault, number, &request);
        tls.conn.send_close_notify();
        let _ = tls.flush();
        result
    }

    fn answer(
        &self,
        client: &mut impl Write,
        fault: &Fault,
        number: usize,
        request: &Message,
    ) -> io::Result<()> {
        match fault {
            Fault::Status(status, times) if number < *times => {
                return write!(
                    client,
                    "HTTP/1.1 {status} Said\r\nRetry-After: 1\r\nContent-Type: application/json\r\n\
                     Content-Length: 2\r\n\r\n{{}}"
                );
            }
            Fault::Redirect => {
                let trap = self.trap;
                return write!(
                    client,
                    "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://{trap}/\r\n\
                     Content-Length: 0\r\n\r\n"
                );
            }
            Fault::Oversized => return endless(client, "\r\n[", &[b' '; 65536]),
            Fault::EndlessHead => return endless(client, "", &b"X-More: more\r\n".repeat(4096)),
            Fault::Portal => {
                let page = "<!DOCTYPE html><title>Please log in</title>";
                return reply(client, "text/html", page.as_bytes());
            }
            Fault::OtherJson => {
                let body = br#"{"value":7,"data":[],"key":"x","error":null,"kid":{}}"#;
                return reply(client, "application/json", body);
            }
            _ => {}
        }
        let Message { head, mut body } = self.forward(request)?;
        let head = match fault {
            Fault::CalledHtml => with_header(&head, "content-type", "text/html"),
            _ => head,
        };
        if let Fault::Replaced(from, to) = fault {
            body = String::from_utf8_lossy(&body).replace(from, to).into_bytes();
        }
        let head = with_header(&head, "content-length", &body.len().to_string());
        let whole = [head.as_bytes(), &body].concat();
        match fault {
            Fault::HalfReply => client.write_all(&whole[..whole.len() - body.len().div_ceil(2)]),
            Fault::SlowReply => whole.iter().try_for_each(|byte| {
                client.write_all(&[*byte])?;
                client.flush()?;
                std::thread::sleep(Duration::from_secs(1));
                Ok(())
            }),
            _ => client.write_all(&whole),
        }
    }

    /// The service's answer.
    fn forward(&self, request: &Message) -> io::Result<Message> {
        let (host, _) = self.upstream.rsplit_once(':').expect("host:port");
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.upstream_tls.clone(), name);
        let stream = TcpStream::connect(&self.upstream)?;
        let mut tls = StreamOwned::new(connection.map_err(io::Error::other)?, stream);
        let head = with_header(&request.head, "connection", "close");
        tls.write_all(&[head.as_bytes(), &request.body].concat())?;
        tls.flush()?;
        read_message(&mut tls, true)
    }
}

fn reply(client: &mut impl Write, kind: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    write!(client, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")?;
    client.write_all(body)
}

/// Until the client hangs up, or a gigabyte.
fn endless(client: &mut impl Write, begin: &str, piece: &[u8]) -> io::Result<()> {
    write!(
        client,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n{begin}"
    )?;
    (0..16384).try_for_each(|_| client.write_all(piece))
}

/// The head with this header, and no other of that name.
fn with_header(head: &str, name: &str, value: &str) -> String {
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default();
    let is_other = |line: &&str| {
        let (found, _) = line.split_once(':').unwrap_or((line, ""));
        let framing = name == "content-length" && found.eq_ignore_ascii_case("transfer-encoding");
        !found.eq_ignore_ascii_case(name) && !framing
    };
    let rest: String = lines.filter(is_other).map(|line| format!("{line}\r\n")).collect();
    format!("{first}\r\n{rest}{name}: {value}\r\n\r\n")
}

/// Reads a request; or, `to_end`, a reply of a server that then hangs up.
fn read_message(stream: &mut impl Read, to_end: bool) -> io::Result<Message> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let mut body = Vec::new();
    match header("content-length").and_then(|length| length.parse().ok()) {
        Some(length) => {
            body = vec![0; length];
            stream.read_exact(&mut body)?;
        }
        None if header("transfer-encoding").is_some() => body = read_chunks(stream)?,
        // Some servers hang up without a close_notify.
        None if to_end => match stream.read_to_end(&mut body) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        },
        None => {}
    }
    Ok(Message { head, body })
}

fn read_chunks(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line);
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk)?;
        if size == 0 {
            return Ok(body);
        }
        body.extend(&chunk[..size]);
    }
}
