//! Asks a vault as its operator: by its socket while it is served, else in this process.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{KeyArgs, access, open};
use crate::cli::exit::Exit;
use crate::cli::hint::Failure;
use crate::vault::audit::AuditOptions;
use crate::vault::server::SOCKET_NAME;
use crate::vault::{Request, Service};

/// Longest reply, in bytes.
const REPLY_BYTES_MAX: u64 = 64 << 20;
/// How long a vault that is served may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a vault answered: an HTTP status and a body, which is wiped when dropped.
pub type Answer = (u16, Zeroizing<Vec<u8>>);

/// Asks the vault in `directory`. `target`: path and query.
///
/// # Errors
/// A vault that cannot be opened or asked, and its refusal.
pub fn ask(
    directory: &Path,
    keys: &KeyArgs,
    (method, target): (Method, &str),
    body: Option<&[u8]>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let asking = |error: io::Error| Failure::io("ask the vault in", directory, &error);
    let answer = match connect(directory).map_err(asking)? {
        Some(stream) => exchange(stream, &method, target, body).map_err(asking)?,
        None => {
            let vault = open(directory, keys, "vault", false)?;
            let audit = AuditOptions::new(directory.join(super::AUDIT_NAME));
            let service = Service::new(vault.store.clone(), access(directory, &vault, audit)?);
            let reply = service.handle(&Request::of_operator(method, target, body));
            vault.remember().map_err(|error| super::failure(directory, &error))?;
            (reply.status, reply.body)
        }
    };
    refuse(answer)
}

/// The body, if the status says that it is what was asked for.
fn refuse((status, body): Answer) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if status < 300 {
        return Ok(body);
    }
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = value.pointer("/error/message").and_then(Value::as_str);
    let message = message.map_or_else(|| format!("the vault answered {status}"), str::to_owned);
    let exit = if status == 400 { Exit::Usage } else { Exit::Other };
    Err(Failure::new(exit, message))
}

/// The socket, if somebody serves the vault. Its name is taken from the directory's descriptor,
/// since names of sockets are short (unix(7)).
fn connect(directory: &Path) -> io::Result<Option<UnixStream>> {
    let opened = match std::fs::File::open(directory) {
        // Opening the vault says it better.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", opened.as_raw_fd());
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        // Nobody serves it, or somebody did and was killed.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// One request of HTTP/1.1, and the reply until the connection ends (RFC 9112).
fn exchange(
    mut stream: UnixStream,
    method: &Method,
    target: &str,
    body: Option<&[u8]>,
) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let body = body.unwrap_or_default();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len(),
    )?;
    stream.write_all(body)?;
    let mut reply = Zeroizing::new(Vec::new());
    stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply)?;
    parse(&reply).ok_or_else(|| io::Error::other("its answer is not HTTP"))
}

/// Status and body of a reply that ends with its connection.
fn parse(reply: &[u8]) -> Option<Answer> {
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&reply[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding:");
    (!is_chunked).then(|| (status, Zeroizing::new(reply[end + 4..].to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status and body, and nothing that is not both.
    #[test]
    fn replies() {
        let parsed =
            |reply: &str| parse(reply.as_bytes()).map(|(status, body)| (status, body.to_vec()));
        assert_eq!(parsed("HTTP/1.1 200 OK\r\na: b\r\n\r\n{}"), Some((200, b"{}".to_vec())));
        assert_eq!(parsed("HTTP/1.1 204 No Content\r\n\r\n"), Some((204, Vec::new())));
        for bad in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 x\r\n\r\n"] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
        assert_eq!(parsed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), None);
    }
}
