//! The listeners: sockets, limits, errors on the wire, the end.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atrest::vault::Service;
use atrest::vault::access::{Access, Audit, AuditFailed, AuditRecord};
use atrest::vault::server::{Listen, SOCKET_NAME, Server, ServerError, Stop};
use parking_lot::Mutex;

use crate::world::World;

/// Statuses and paths that were put on record.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<(u16, String)>>>);

impl Audit for Records {
    fn record(&self, record: &AuditRecord) -> Result<(), AuditFailed> {
        self.0.lock().push((record.status, record.request.path.clone()));
        Ok(())
    }
}

/// A server that runs until it is dropped.
struct Running {
    world: World,
    records: Records,
    address: SocketAddr,
    stop: Stop,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start() -> Self {
        let world = World::new();
        let any = "127.0.0.1:0".parse().expect("an address");
        let directory = world.place.path().join("vault");
        let records = Records::default();
        let access = Access { audit: Box::new(records.clone()), ..Access::closed() };
        let store = world.vault.as_ref().expect("it is open").store.clone();
        let service = Arc::new(Service::new(store, access));
        let server = Server::bind(service, vec![Listen::Plain(any)], &directory);
        let server = server.expect("loopback can be listened on");
        let address = server.addresses()[0];
        let stop = Stop::new();
        let told = stop.clone();
        let thread = Some(std::thread::spawn(move || server.run(&told)));
        Self { world, records, address, stop, thread }
    }

    /// Sends `request` and returns the reply, until the server closes the connection.
    fn send(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
        // A server that refuses early may close before all is sent.
        let _ = stream.write_all(request);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().expect("it was started").join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// Without a token: 401 with a challenge, whatever the path. The client's request id comes back.
#[test]
fn challenged() {
    let running = Running::start();
    for line in ["GET /keys?api-version=7.4", "POST /keys/k//wrapkey?api-version=7.4", "GET /x"] {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: a.test\r\nX-Ms-Client-Request-Id: mine\r\n\
             Connection: close\r\n\r\n"
        );
        let reply = running.send(request.as_bytes());
        assert!(reply.starts_with("HTTP/1.1 401 "), "{line}: {reply}");
        for part in [
            "www-authenticate: Bearer ",
            "x-ms-client-request-id: mine",
            "x-ms-request-id: ",
            "content-type: application/json; charset=utf-8",
            "cache-control: no-store",
            r#""code":"Unauthorized""#,
        ] {
            assert!(reply.contains(part), "{part} is missing: {reply}");
        }
    }
}

/// Bodies and headers beyond the limits, and what is no HTTP, are refused, and the server goes on.
#[test]
fn limits() {
    let running = Running::start();
    let head = |length: usize| {
        format!(
            "PUT /secrets/s?api-version=7.4 HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        )
    };
    let mut large = head(2 << 20).into_bytes();
    large.resize(large.len() + (2 << 20), b'x');
    assert!(running.send(&large).starts_with("HTTP/1.1 413 "));
    assert_eq!(*running.records.0.lock(), [(413, "/secrets/s".to_owned())], "it is on record");
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100 << 10));
    let reply = running.send(long.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 4"), "{reply}");
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
    let reply = running.send(many.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 431 ") || reply.is_empty(), "{reply}");
    let reply = running.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert!(!reply.starts_with("HTTP/1.1 2"), "{reply}");
    let reply = running.send(head(0).as_bytes());
    assert!(reply.starts_with("HTTP/1.1 401 "), "it goes on: {reply}");
}

/// The operator's socket: of the owner alone, and no token is asked for.
#[test]
fn operator() {
    let running = Running::start();
    let path = running.world.place.path().join("vault").join(SOCKET_NAME);
    let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).expect("it listens");
    let request =
        "GET /keys?api-version=7.4 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("it answers");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    drop(running);
    assert!(!path.exists(), "it goes with the server");
}

/// A server that is told to end ends, also with connections that idle; the port is free then.
#[test]
fn ends() {
    let running = Running::start();
    let idle = TcpStream::connect(running.address).expect("it listens");
    let address = running.address;
    let begun = Instant::now();
    drop(running);
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert!(TcpStream::connect(address).is_err());
    drop(idle);
}

/// Plain http is refused where others can listen in.
#[test]
fn loopback_only() {
    let world = World::new();
    let directory = world.place.path().join("vault");
    for listen in [
        Listen::Plain("0.0.0.0:0".parse().expect("an address")),
        Listen::Plain("[::]:0".parse().expect("an address")),
        Listen::Metadata("192.0.2.1:80".parse().expect("an address")),
    ] {
        let bound = Server::bind(world.service.clone(), vec![listen], &directory);
        assert!(matches!(bound, Err(ServerError::NotLoopback(_))));
    }
}
