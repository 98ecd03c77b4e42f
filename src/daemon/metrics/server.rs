//! Serves metrics over HTTP, to this host only: one thread, few connections, none of them for long.

use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};

use super::Source;

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 8;
/// How long a connection may last, from its first byte to the last of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest header of a request, in bytes; the smallest that hyper takes.
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// How long to wait when no connection can be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket that only its owner may use.
    Unix(PathBuf),
    /// A port of the loopback interface.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => {
                let wrong = || format!("{address:?} is not ADDRESS:PORT, as in 127.0.0.1:9480");
                let address: SocketAddr = address.parse().map_err(|_| wrong())?;
                if address.ip().to_canonical().is_loopback() {
                    return Ok(Self::Tcp(address));
                }
                Err("metrics are served to this host only, on 127.0.0.1 or [::1]: they say when \
                     and how much is read and written; to have them elsewhere, put a proxy that \
                     asks who it is in front"
                    .to_owned())
            }
            _ => Err("write unix:/PATH or tcp:127.0.0.1:PORT".to_owned()),
        }
    }
}

/// Serves until it is dropped.
pub(in crate::daemon) struct Server {
    /// The socket that is removed at the end.
    path: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

enum Listener {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

impl Server {
    /// Listens, and serves on a thread of its own.
    ///
    /// # Errors
    /// Those of listening there, and of starting the thread.
    pub(in crate::daemon) fn start(endpoint: Endpoint, source: Arc<Source>) -> io::Result<Self> {
        let (listener, path) = match endpoint {
            Endpoint::Unix(path) => (Listener::Unix(listen(&path)?), Some(path)),
            Endpoint::Tcp(address) => (Listener::Tcp(std::net::TcpListener::bind(address)?), None),
        };
        match &listener {
            Listener::Unix(listener) => listener.set_nonblocking(true)?,
            Listener::Tcp(listener) => listener.set_nonblocking(true)?,
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("atrest-metrics".to_owned());
        let thread = thread.spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, source, stopped)) {
                log::error!("no metrics: {error}");
            }
        })?;
        Ok(Self { path, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        // A thread that has panicked has said so.
        _ = self.thread.take().map(std::thread::JoinHandle::join);
        if let Some(path) = &self.path {
            _ = std::fs::remove_file(path);
        }
    }
}

/// Listens at `path`, for this user; a socket that nobody listens to is replaced, nothing else is.
fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::{UnixListener, UnixStream};
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts until whoever holds the other end of `stopped` drops it.
async fn serve(
    listener: Listener,
    source: Arc<Source>,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let listener = match listener {
        Listener::Unix(listener) => Accept::Unix(tokio::net::UnixListener::from_std(listener)?),
        Listener::Tcp(listener) => Accept::Tcp(tokio::net::TcpListener::from_std(listener)?),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return Ok(()),
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("metrics: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = free.clone().try_acquire_owned() else { continue };
        let source = source.clone();
        tokio::spawn(async move {
            let done = match stream {
                Stream::Unix(stream) => {
                    tokio::time::timeout(PATIENCE, answer(TokioIo::new(stream), source)).await
                }
                Stream::Tcp(stream) => {
                    tokio::time::timeout(PATIENCE, answer(TokioIo::new(stream), source)).await
                }
            };
            if done.is_err() {
                log::debug!("metrics: a slow client is cut off");
            }
            drop(permit);
        });
    }
}

enum Accept {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Accept {
    async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Unix(listener) => Stream::Unix(listener.accept().await?.0),
            Self::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
        })
    }
}

/// One request and its answer.
async fn answer(stream: impl Read + Write + Unpin, source: Arc<Source>) {
    let respond = service_fn(|request: Request<Incoming>| {
        let response = respond(&request, &source);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false);
    if let Err(error) = http.serve_connection(stream, respond).await {
        log::debug!("metrics: {error}");
    }
}

fn respond(request: &Request<Incoming>, source: &Arc<Source>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", source.text())
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there is /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only this host can ask.
    #[test]
    fn endpoints() {
        let path = "/run/atrest/metrics.sock";
        assert_eq!(format!("unix:{path}").parse(), Ok(Endpoint::Unix(path.into())));
        for good in ["tcp:127.0.0.1:9480", "tcp:[::1]:9480", "tcp:127.5.0.1:1"] {
            assert!(good.parse::<Endpoint>().is_ok(), "{good}");
        }
        for bad in ["tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:192.0.2.1:1", "tcp:[::ffff:10.0.0.1]:1"] {
            let error = bad.parse::<Endpoint>().unwrap_err();
            assert!(error.contains("this host only"), "{bad}: {error}");
        }
        for bad in ["", "unix:", "unix:relative", "tcp:localhost:1", "tcp:127.0.0.1", "9480"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    /// A socket that is left over is replaced; a file, and a socket in use, are not.
    #[test]
    fn takes_nothing_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(listen(&path).unwrap());
        let listener = listen(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let file = directory.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }
}
