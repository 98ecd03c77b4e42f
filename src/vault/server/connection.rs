//! One connection: HTTP/1.1, a request at a time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use zeroize::Zeroizing;

use super::Stop;
use crate::vault::error::ApiError;
use crate::vault::request::{Peer, Reply, Request, parse_query, random_id};
use crate::vault::service::Service;

/// Largest body of a request: a backup of a key with its versions.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Largest header of a request, in bytes: a token has up to 8 KiB.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// How long a header may take, from the reply before it: also how long a connection may idle.
const HEADER_PATIENCE: Duration = Duration::from_secs(60);
/// After this time a connection ends with the reply to its current request; clients make another.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(600);
/// How long that request, and the client's taking of the reply, may take then.
const REPLY_PATIENCE: Duration = Duration::from_secs(60);
/// How long a body may take.
const BODY_PATIENCE: Duration = Duration::from_secs(20);

/// Serves a connection until the client ends it or breaks a limit, its lifetime is over, or `stop`
/// says so; then the request that is being answered is answered.
pub async fn serve<S>(stream: S, peer: Peer, service: Arc<Service>, stop: &Stop)
where
    S: Read + Write + Unpin,
{
    let respond = service_fn(|request: hyper::Request<Incoming>| {
        let (service, peer) = (service.clone(), peer.clone());
        async move { Ok::<_, Infallible>(respond(request, peer, service).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(64);
    let connection = http.serve_connection(stream, respond);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending(stop) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(REPLY_PATIENCE, connection).await {
                Ok(ended) => ended,
                // Whoever does not take its reply loses it.
                Err(_) => return log::debug!("connection of {peer}: cut"),
            }
        }
    };
    if let Err(error) = ended {
        log::debug!("connection of {peer}: {error}");
    }
}

/// Returns when the server ends, or the connection has been there long enough.
async fn ending(stop: &Stop) {
    tokio::select! {
        () = stop.told() => {}
        () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
    }
}

async fn respond(
    request: hyper::Request<Incoming>,
    peer: Peer,
    service: Arc<Service>,
) -> hyper::Response<Full<Bytes>> {
    let id = random_id();
    let client_id = request.headers().get("x-ms-client-request-id").cloned();
    let (parts, body) = request.into_parts();
    let mut request = Request {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parse_query(parts.uri.query().unwrap_or("")),
        headers: parts.headers,
        body: Zeroizing::default(),
        peer,
        id: id.clone(),
    };
    let read = read(body).await;
    let handled = tokio::task::spawn_blocking(move || match read {
        Ok(body) => {
            request.body = body;
            service.handle(&request)
        }
        Err(error) => service.refuse(&request, error),
    });
    // A panic is logged by the hook, and concerns this request only.
    let reply = handled.await.unwrap_or_else(|_| ApiError::internal().reply());
    encode(reply, &id, client_id)
}

/// The body, within its limits.
async fn read(body: Incoming) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let limited = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_PATIENCE, limited).await {
        Ok(Ok(body)) => Ok(wipeable(body.to_bytes())),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("bodies have up to {BODY_BYTES_MAX} bytes");
            Err(ApiError::new(413, "RequestTooLarge", message))
        }
        Ok(Err(_)) => Err(ApiError::bad_parameter("the body is incomplete")),
        Err(_) => Err(ApiError::new(408, "RequestTimeout", "the body took too long")),
    }
}

/// The body in a buffer that is wiped, and the one that it came in wiped, if nobody shares it.
fn wipeable(body: Bytes) -> Zeroizing<Vec<u8>> {
    match body.try_into_mut() {
        Ok(body) => {
            let mut body = Zeroizing::new(Vec::from(body));
            body.shrink_to_fit();
            body
        }
        Err(body) => Zeroizing::new(body.to_vec()),
    }
}

fn encode(reply: Reply, id: &str, client_id: Option<HeaderValue>) -> hyper::Response<Full<Bytes>> {
    let has_type = reply.headers.iter().any(|(name, _)| *name == "content-type");
    let mut response = hyper::Response::new(Full::new(Bytes::from_owner(reply.body)));
    *response.status_mut() = hyper::StatusCode::from_u16(reply.status)
        .unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-ms-keyvault-service-version", concat!("atrest ", env!("CARGO_PKG_VERSION"))),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if !has_type {
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        headers.insert(hyper::header::CONTENT_TYPE, json);
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(HeaderName::from_static("x-ms-request-id"), id);
    }
    if let Some(id) = client_id {
        headers.insert(HeaderName::from_static("x-ms-client-request-id"), id);
    }
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}
