//! Listeners: TCP with TLS, TCP without on loopback, and the operator's socket.
//!
//! Whatever a client does is bounded: connections, header and body sizes, the time of a TLS
//! handshake, of a header, of a body and of a reply. Requests are handled on blocking threads, of
//! which there are a few for each processor; who waits for one waits in its own connection.

mod connection;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::request::Peer;
use super::service::Service;

pub use tls::{Acceptor, TlsError};

/// Name of the operator's socket in the vault's directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// Connections at once, over all listeners.
const CONNECTIONS_MAX: usize = 1024;
/// Connections of the operator at once, apart from those.
const OPERATOR_CONNECTIONS_MAX: usize = 16;
/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long connections have to finish what they do when the server ends.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// A refused accept(2), such as for want of descriptors, is tried again after this time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Blocking threads for each processor.
const THREADS_PER_CPU: usize = 4;

/// What to listen on.
pub enum Listen {
    /// HTTPS.
    Tls(SocketAddr, Acceptor),
    /// HTTP, for loopback only: refused for other addresses.
    Plain(SocketAddr),
    /// HTTP for a metadata service (IMDS), on loopback or a link-local address only.
    Metadata(SocketAddr),
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// bind(2) and the like.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// HTTP without TLS where others could listen in.
    #[error("{0} is not a loopback address: what goes there in the clear can be read on the way")]
    NotLoopback(SocketAddr),
    /// Threads and the like.
    #[error("cannot start the server")]
    Start(#[source] io::Error),
}

/// A server that has its sockets and does not answer yet.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listeners: Vec<(Kind, TcpListener)>,
    operator: UnixListener,
    socket: PathBuf,
    service: Arc<Service>,
}

enum Kind {
    Tls(Acceptor),
    Plain,
    Metadata,
}

/// Tells a running [`Server`] to end.
#[derive(Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    /// One that has not told yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Ends the server: no new connections; requests that are being answered are answered.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Returns when the server was told to end.
    async fn told(&self) {
        // An error would mean that nobody can tell any more, but `self` can.
        let _ = self.0.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Waits for at most `patience`; whether the server was told to end. Blocks.
    pub fn wait(&self, patience: Duration) -> bool {
        let step = Duration::from_millis(100);
        let begun = std::time::Instant::now();
        while !*self.0.borrow() && begun.elapsed() < patience {
            std::thread::sleep(step.min(patience));
        }
        *self.0.borrow()
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// Binds all of `listen`, and the operator's socket in `directory` (mode 0600).
    ///
    /// # Errors
    /// [`ServerError`]
    pub fn bind(
        service: Arc<Service>,
        listen: Vec<Listen>,
        directory: &Path,
    ) -> Result<Self, ServerError> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cpus.clamp(1, 4))
            .max_blocking_threads((cpus * THREADS_PER_CPU).clamp(8, 64))
            .thread_name("atrest-vault")
            .enable_all()
            .build()
            .map_err(ServerError::Start)?;
        let _context = runtime.enter();
        let mut listeners = Vec::new();
        for listen in listen {
            let (address, kind) = match listen {
                Listen::Tls(address, acceptor) => (address, Kind::Tls(acceptor)),
                Listen::Plain(address) => (address, Kind::Plain),
                Listen::Metadata(address) => (address, Kind::Metadata),
            };
            let is_local = address.ip().is_loopback()
                || matches!((&kind, address.ip()), (Kind::Metadata, IpAddr::V4(ip))
                    if ip.is_link_local());
            if !matches!(kind, Kind::Tls(_)) && !is_local {
                return Err(ServerError::NotLoopback(address));
            }
            let failed = |source| ServerError::Listen { address: address.to_string(), source };
            let listener = std::net::TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            listeners.push((kind, TcpListener::from_std(listener).map_err(failed)?));
        }
        let socket = directory.join(SOCKET_NAME);
        let operator = bind_operator(directory).map_err(|source| ServerError::Listen {
            address: socket.display().to_string(),
            source,
        })?;
        drop(_context);
        Ok(Self { runtime, listeners, operator, socket, service })
    }

    /// The addresses of the TCP listeners, in the order given; a port 0 has become a real one.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|(_, listener)| listener.local_addr().ok()).collect()
    }

    /// Answers until `stop` says so, and then until every connection has its reply, or for 10
    /// seconds.
    pub fn run(self, stop: &Stop) {
        let Self { runtime, listeners, operator, socket, service } = self;
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let operators = Arc::new(Semaphore::new(OPERATOR_CONNECTIONS_MAX));
        runtime.block_on(async {
            for (kind, listener) in listeners {
                let shared = Shared { service: service.clone(), stop: stop.clone() };
                tokio::spawn(accept_tcp(listener, Arc::new(kind), connections.clone(), shared));
            }
            let shared = Shared { service: service.clone(), stop: stop.clone() };
            tokio::spawn(accept_operator(operator, operators.clone(), shared));
            stop.told().await;
            let _ = std::fs::remove_file(&socket);
            let all = u32::try_from(CONNECTIONS_MAX).expect("a small number");
            let drained = tokio::time::timeout(DRAIN_PATIENCE, async {
                let _ = connections.acquire_many(all).await;
                let _ = operators.acquire_many(OPERATOR_CONNECTIONS_MAX as u32).await;
            });
            if drained.await.is_err() {
                log::warn!("connections that did not end in time are cut");
            }
        });
        runtime.shutdown_timeout(DRAIN_PATIENCE);
    }
}

/// Whatever a connection needs.
#[derive(Clone)]
struct Shared {
    service: Arc<Service>,
    stop: Stop,
}

/// Binds the operator's socket. The path of a socket is short (unix(7)), so it is named from the
/// directory's descriptor.
fn bind_operator(directory: &Path) -> io::Result<UnixListener> {
    let directory: OwnedFd = std::fs::File::open(directory)?.into();
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd()));
    // What a killed server left; nobody else serves, since the vault is locked.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    // The directory lets nobody else in meanwhile: it has mode 0700.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn accept_tcp(
    listener: TcpListener,
    kind: Arc<Kind>,
    connections: Arc<Semaphore>,
    shared: Shared,
) {
    loop {
        // Beyond the limit, connections wait in the kernel's queue.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shared.stop.told() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                tokio::spawn(serve_tcp(stream, address, kind.clone(), shared.clone(), permit));
            }
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_tcp(
    stream: TcpStream,
    address: SocketAddr,
    kind: Arc<Kind>,
    shared: Shared,
    permit: OwnedSemaphorePermit,
) {
    // Replies are small and whole; waiting for more to send only costs time.
    let _ = stream.set_nodelay(true);
    match &*kind {
        Kind::Plain => serve(stream, Peer::Network(address), shared).await,
        Kind::Metadata => serve(stream, Peer::Metadata(address), shared).await,
        Kind::Tls(acceptor) => {
            match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve(stream, Peer::Network(address), shared).await,
                Ok(Err(error)) => log::debug!("TLS with {address}: {error}"),
                Err(_) => log::debug!("TLS with {address}: timed out"),
            }
        }
    }
    drop(permit);
}

async fn accept_operator(listener: UnixListener, connections: Arc<Semaphore>, shared: Shared) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shared.stop.told() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if is_operator(&stream) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    serve(stream, Peer::Operator, shared).await;
                    drop(permit);
                });
            }
            Ok(_) => log::warn!("another user than the vault's tried its socket"),
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The same user, or root.
fn is_operator(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send, peer: Peer, shared: Shared) {
    connection::serve(TokioIo::new(stream), peer, shared.service, &shared.stop).await;
}
