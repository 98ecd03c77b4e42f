//! A request that was read, and the reply to it.

use std::fmt;
use std::net::SocketAddr;

use hyper::{HeaderMap, Method};
use zeroize::Zeroizing;

use super::encoding::to_json;
use super::error::ApiError;
use crate::crypto::random;

/// Where a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// By the network, to a listener of the vault.
    Network(SocketAddr),
    /// By the network, to a listener for metadata services (IMDS).
    Metadata(SocketAddr),
    /// By the socket in the vault's directory, or in this very process.
    Operator,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) | Self::Metadata(address) => write!(f, "{address}"),
            Self::Operator => f.write_str("the operator's socket"),
        }
    }
}

/// A request, whole, within the limits of `server`.
///
/// `Debug` shows neither body nor headers: those have secrets.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path as it was sent, from `/` to before `?`; not percent-decoded.
    pub path: String,
    /// Names and values of the query, percent-decoded, in order.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
    /// Where it comes from.
    pub peer: Peer,
    /// Drawn for this request: the reply's `x-ms-request-id`.
    pub id: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} from {} ({})", self.method, self.path, self.peer, self.id)
    }
}

impl Request {
    /// A request of the operator, as a command makes it. `target`: path and query.
    pub fn of_operator(method: Method, target: &str, body: Option<&[u8]>) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let body = body.unwrap_or_default().to_vec();
        Self {
            method,
            path: path.to_owned(),
            query: parse_query(query),
            headers: HeaderMap::new(),
            body: Zeroizing::new(body),
            peer: Peer::Operator,
            id: random_id(),
        }
    }

    /// The first value of a parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A header's value, if it is there once or more and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The bearer token, if there is one.
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The body as JSON: an object that has the fields of `T`; others are ignored, as Key Vault
    /// does. An empty body counts as `{}`.
    ///
    /// # Errors
    /// 400 `BadParameter`, without words of the body.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = match error.classify() {
                serde_json::error::Category::Data => "does not have the fields of this operation",
                _ => "is not JSON",
            };
            ApiError::bad_parameter(format!("the body {what} (line {line}, column {column})"))
        })
    }

    /// `https://HOST` of this vault as the client calls it, for identifiers in replies. A missing
    /// or strange `Host` gives `https://localhost`.
    pub fn base_url(&self) -> String {
        let is_host = |host: &&str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b);
            !host.is_empty() && host.len() <= 255 && host.bytes().all(allowed)
        };
        let host = self.header("host").filter(is_host).unwrap_or("localhost");
        let host = host.to_ascii_lowercase();
        format!("https://{}", host.strip_suffix(":443").unwrap_or(&host))
    }
}

/// A reply.
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers beside those of every reply; names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body, JSON unless a header says otherwise; wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// A reply with a JSON body.
    pub fn json(status: u16, body: &impl serde::Serialize) -> Self {
        Self { status, headers: Vec::new(), body: to_json(body) }
    }

    /// A reply without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Zeroizing::default() }
    }

    /// The same with one more header. A value that no header can have is left out.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// A random UUID (RFC 9562, version 4), in lower case.
pub fn random_id() -> String {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [a, b, c, d, e] =
        [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].map(hex);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// Names and values of a query or a form (`application/x-www-form-urlencoded`), decoded. What is
/// not UTF-8 after decoding is replaced.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(name), percent_decode(value))
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|b| (*b as char).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => decoded.push(b' '),
            (byte, ..) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Escapes are decoded, broken ones are left, and nothing is lost.
    #[test]
    fn queries() {
        let pairs = parse_query("api-version=7.4&a%3Db=%E2%82%AC+x&&flag&bad=%zz%4");
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let expected =
            [("api-version", "7.4"), ("a=b", "\u{20ac} x"), ("flag", ""), ("bad", "%zz%4")];
        assert_eq!(pairs, expected);
    }

    /// `Host` decides the base, and only if it can be a host.
    #[test]
    fn base_urls() {
        for (host, expected) in [
            ("Contoso.vault.azure.net", "https://contoso.vault.azure.net"),
            ("localhost:443", "https://localhost"),
            ("[::1]:8443", "https://[::1]:8443"),
            ("evil/\"path", "https://localhost"),
            ("", "https://localhost"),
        ] {
            let mut request = Request::of_operator(Method::GET, "/keys", None);
            request.headers.insert("host", host.parse().expect("a header"));
            assert_eq!(request.base_url(), expected);
        }
    }

    /// Identifiers have the form of a UUID and differ.
    #[test]
    fn ids() {
        let (a, b) = (random_id(), random_id());
        assert_ne!(a, b);
        assert_eq!(a.len(), 36);
        assert_eq!(&a[14..15], "4");
    }
}
