//! URLs in the one form that nobody reads differently.
//!
//! A volume's slot, a configuration file and a server's challenge all name URLs, and tokens are
//! sent where they point. So only a subset of RFC 3986 is understood: no user, query, fragment,
//! percent encoding, dot segments or empty segments; what is left has one spelling, and is compared
//! by host, port and path segment.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zeroize::Zeroizing;

/// Longest URL, in bytes.
const URL_BYTES_MAX: usize = 1024;
/// Longest query of a download, in bytes; that of a shared access signature has some hundreds.
const QUERY_BYTES_MAX: usize = 4096;
/// Longest host name, in bytes (RFC 1035, section 2.3.4, without the trailing dot).
const HOST_BYTES_MAX: usize = 253;
/// Longest label of a host name, in bytes.
const LABEL_BYTES_MAX: usize = 63;

/// A URL of http or https. `Display` gives its one spelling, without the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    https: bool,
    host: String,
    address: Option<IpAddr>,
    port: u16,
    /// Empty, or segments that each begin with a slash; perhaps a last slash.
    path: String,
    /// Encoded; only from [`Url::with_query`].
    query: String,
}

/// Why a text is not a [`Url`]: what about it, and how to write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a URL that is understood here: {0}")]
pub struct UrlError(&'static str);

impl Url {
    /// Reads `text`. Upper case in scheme and host, and a default port, are brought to their one
    /// spelling; everything else that has two is refused.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_BYTES_MAX {
            return Err(UrlError("it is too long"));
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError("begin with https://"))?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(UrlError("begin with https://")),
        };
        if let Some(found) = rest.find(['@', '?', '#', '%', '\\']) {
            return Err(UrlError(match rest.as_bytes()[found] {
                b'@' => "a user before the host (@) is not allowed",
                b'?' | b'#' => "a query or fragment is not allowed",
                b'%' => "percent encoding is not allowed",
                _ => "a backslash is not allowed",
            }));
        }
        let url = Self::of_parts(https, rest)?;
        check_path(&url.path)?;
        Ok(url)
    }

    /// Reads the URL of something to download. Its path may be percent-encoded, and is sent as it
    /// is; its query, which may be a secret such as a shared access signature, comes apart.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse_download(text: &str) -> Result<(Self, Zeroizing<String>), UrlError> {
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        if place.len() > URL_BYTES_MAX || query.len() > QUERY_BYTES_MAX {
            return Err(UrlError("it is too long"));
        }
        if !query.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&byte)) {
            return Err(UrlError("the query has characters that must be percent-encoded"));
        }
        let (scheme, rest) = place.split_once("://").ok_or(UrlError("begin with https://"))?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(UrlError("begin with https://")),
        };
        let url = Self::of_parts(https, rest)?;
        check_encoded_path(&url.path)?;
        Ok((url, Zeroizing::new(query.to_owned())))
    }

    /// Of what is behind `://`; the path is the caller's to check.
    fn of_parts(https: bool, rest: &str) -> Result<Self, UrlError> {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = split_port(authority)?;
        let (host, address) = parse_host(&host.to_ascii_lowercase())?;
        let port = port.unwrap_or(if https { 443 } else { 80 });
        let path = if path == "/" { "" } else { path };
        Ok(Self { https, host, address, port, path: path.to_owned(), query: String::new() })
    }

    /// Whether it is encrypted.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Its host in lower case; an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port, which may be the default one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its host, and its port if it is not the default one.
    pub fn authority(&self) -> String {
        match (self.https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// Its path: empty, or beginning with a slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The segments of its path.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter(|segment| !segment.is_empty())
    }

    /// Whether it is this host itself, or a metadata service next to it: `localhost`, an address of
    /// 127.0.0.0/8, 169.254.0.0/16, `[::1]` or fe80::/10. Nothing else may be asked without TLS.
    pub fn is_local(&self) -> bool {
        match self.address {
            Some(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
            Some(IpAddr::V6(address)) => {
                address.is_loopback() || address.segments()[0] & 0xffc0 == 0xfe80
            }
            None => self.host == "localhost",
        }
    }

    /// Whether both are the same service: scheme, host and port.
    pub fn is_same_origin(&self, other: &Self) -> bool {
        (self.https, &self.host, self.port) == (other.https, &other.host, other.port)
    }

    /// The same service with another path, which begins with a slash.
    ///
    /// # Errors
    /// [`UrlError`] if the path has segments that are not allowed.
    pub fn with_path(&self, path: &str) -> Result<Self, UrlError> {
        check_path(path)?;
        Ok(Self { path: path.to_owned(), query: String::new(), ..self.clone() })
    }

    /// The same with a query of these names and values, which are encoded.
    #[must_use]
    pub fn with_query(&self, pairs: &[(&str, &str)]) -> Self {
        Self { query: encode_form(pairs), ..self.clone() }
    }

    /// The whole, with its query, as it is sent.
    pub(super) fn full(&self) -> String {
        match self.query.as_str() {
            "" => self.to_string(),
            query => format!("{self}?{query}"),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// `name=value&…` with everything but RFC 3986's unreserved characters encoded; also right for
/// `application/x-www-form-urlencoded`.
pub fn encode_form(pairs: &[(&str, &str)]) -> String {
    // Values may be secrets: with room from the start, the text does not move and leave copies.
    let room: usize = pairs.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
    let mut text = String::with_capacity(room);
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        encode(name, &mut text);
        text.push('=');
        encode(value, &mut text);
    }
    text
}

fn encode(value: &str, text: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if is_unreserved(byte) {
            text.push(byte.into());
        } else {
            text.push('%');
            text.push(HEX[usize::from(byte >> 4)].into());
            text.push(HEX[usize::from(byte & 15)].into());
        }
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), UrlError> {
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = authority[host_end..].find(':') else { return Ok((authority, None)) };
    let (host, port) = authority.split_at(host_end + colon);
    let port = &port[1..];
    let is_number = !port.starts_with('0') && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(port) if is_number => Ok((host, Some(port))),
        _ => Err(UrlError("the port is not a number from 1 to 65535")),
    }
}

/// The host, already in lower case, in its one spelling.
fn parse_host(host: &str) -> Result<(String, Option<IpAddr>), UrlError> {
    if let Some(inside) = host.strip_prefix('[') {
        let inside = inside.strip_suffix(']').ok_or(UrlError("the address is malformed"))?;
        let address: Ipv6Addr = inside.parse().map_err(|_| UrlError("the address is malformed"))?;
        return Ok((format!("[{address}]"), Some(address.into())));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok((address.to_string(), Some(address.into())));
    }
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return Err(UrlError("the host is missing or too long"));
    }
    if host.ends_with('.') {
        return Err(UrlError("a dot at the end of the host is not allowed"));
    }
    if !host.split('.').all(is_label) {
        return Err(UrlError("the host has characters that host names do not have"));
    }
    // Some programs read `0x7f.1` or `2130706433` as an address.
    let last = host.rsplit('.').next().unwrap_or_default();
    if last.as_bytes()[0].is_ascii_digit() {
        return Err(UrlError("the host is neither a name nor a plain address"));
    }
    Ok((host.to_owned(), None))
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_path(path: &str) -> Result<(), UrlError> {
    if path.is_empty() {
        return Ok(());
    }
    let inside = path.strip_prefix('/').ok_or(UrlError("the path begins without a slash"))?;
    let inside = inside.strip_suffix('/').unwrap_or(inside);
    if inside.is_empty() && path.len() <= 1 {
        return Ok(());
    }
    for segment in inside.split('/') {
        match segment {
            "" => return Err(UrlError("empty path segments (//) are not allowed")),
            "." | ".." => return Err(UrlError("path segments . and .. are not allowed")),
            _ if segment.bytes().all(is_unreserved) => {}
            _ => return Err(UrlError("path segments have letters, digits and - . _ ~ only")),
        }
    }
    Ok(())
}

/// The same for a path that may be percent-encoded (RFC 3986, section 3.3).
fn check_encoded_path(path: &str) -> Result<(), UrlError> {
    for segment in path.split('/').skip(1) {
        if matches!(segment, "." | "..") {
            return Err(UrlError("path segments . and .. are not allowed"));
        }
        let mut bytes = segment.bytes();
        while let Some(byte) = bytes.next() {
            if byte == b'%' {
                let digits = [bytes.next(), bytes.next()].map(Option::unwrap_or_default);
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(UrlError(
                        "a percent sign in the path is not followed by two digits",
                    ));
                }
            } else if !is_unreserved(byte) && !b"!$&'()*+,;=:@".contains(&byte) {
                return Err(UrlError("the path has characters that must be percent-encoded"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One spelling for what may be written in several, and each part where it belongs.
    #[test]
    fn one_spelling() {
        for (text, expected) in [
            ("https://a.example", "https://a.example"),
            ("https://a.example/", "https://a.example"),
            ("HTTPS://A.Example:443/Keys/K", "https://a.example/Keys/K"),
            ("https://a.example:8443/keys/k/", "https://a.example:8443/keys/k/"),
            ("http://127.0.0.1:80/x", "http://127.0.0.1/x"),
            ("https://127.0.0.1:80/x", "https://127.0.0.1:80/x"),
            ("https://[0:0::1]:1/x", "https://[::1]:1/x"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ] {
            let url = Url::parse(text).expect(text);
            assert_eq!(url.to_string(), expected);
            assert_eq!(Url::parse(expected).expect(expected), url, "{text}");
        }
        let url = Url::parse("https://a.example:8443/keys/k").expect("a URL");
        assert_eq!(url.segments().collect::<Vec<_>>(), ["keys", "k"]);
        assert_eq!((url.host(), url.port()), ("a.example", 8443));
    }

    /// Everything that two programs could read differently is refused, and it is said why.
    #[test]
    fn refused() {
        for (text, words) in [
            ("", "begin with https"),
            ("a.example", "begin with https"),
            ("ftp://a.example", "begin with https"),
            ("https://good.vault.azure.net@evil/", "user"),
            ("https://good.vault.azure.net\\@evil/", "backslash"),
            ("https://good\\.evil", "backslash"),
            ("https://good%2eevil/", "percent"),
            ("https://good/a?b", "query"),
            ("https://good#.evil/", "query"),
            ("https://good./", "dot at the end"),
            ("https:///path", "host is missing"),
            ("https://", "host is missing"),
            ("https://good..evil", "characters"),
            ("https://go od", "characters"),
            ("https://g\u{f6}d", "characters"),
            ("https://-good", "characters"),
            ("https://good_one", "characters"),
            ("https://good\n.evil", "characters"),
            ("https://0x7f.1", "neither a name"),
            ("https://2130706433", "neither a name"),
            ("https://127.0.0.01", "neither a name"),
            ("https://good:", "port"),
            ("https://good:0", "port"),
            ("https://good:0443", "port"),
            ("https://good:+443", "port"),
            ("https://good:65536", "port"),
            ("https://good:443:443", "port"),
            ("https://good:evil", "port"),
            ("https://[::1", "port"),
            ("https://[12", "address is malformed"),
            ("https://[::1]x", "address is malformed"),
            ("https://[v1.x]", "address is malformed"),
            ("https://good/a/../b", ".."),
            ("https://good/./b", ".."),
            ("https://good//b", "//"),
            ("https://good/a//", "//"),
            ("https://good//", "//"),
            ("https://good/a;b", "segments have"),
            ("https://good/a b", "segments have"),
        ] {
            let error = Url::parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        assert!(Url::parse(&format!("https://a/{}", "x".repeat(URL_BYTES_MAX))).is_err());
        assert!(Url::parse(&format!("https://{}.example", "x".repeat(64))).is_err());
    }

    /// Only this host and link-local addresses are local, however they are dressed up.
    #[test]
    fn local() {
        for (text, expected) in [
            ("http://127.0.0.1:1/x", true),
            ("http://127.9.9.9", true),
            ("http://localhost:5", true),
            ("http://[::1]:5", true),
            ("http://[fe80::1]", true),
            ("http://169.254.169.254/metadata", true),
            ("http://169.255.0.1", false),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
            ("http://[fec0::1]", false),
        ] {
            assert_eq!(Url::parse(text).expect(text).is_local(), expected, "{text}");
        }
    }

    /// The query of a download comes apart, and is in nothing that is shown; its path may be
    /// encoded. What has two readings is refused here, too.
    #[test]
    fn downloads() {
        let text = "https://a.blob.core.windows.net/c/my%20app.zip?sv=1&sig=s3cret%2B%3D";
        let (url, query) = Url::parse_download(text).expect("a URL");
        assert_eq!(url.to_string(), "https://a.blob.core.windows.net/c/my%20app.zip");
        assert_eq!(query.as_str(), "sv=1&sig=s3cret%2B%3D");
        assert!(!format!("{url:?}").contains("s3cret"));
        for (text, words) in [
            ("a/b.zip", "begin with https"),
            ("ftp://a/b.zip", "begin with https"),
            ("https://u:p@a/b.zip", "port"),
            ("https://a/../b.zip", ".."),
            ("https://a/b%2.zip", "two digits"),
            ("https://a/b c.zip", "path has characters"),
            ("https://a/b\u{e4}.zip", "path has characters"),
            ("https://a/b.zip#x", "path has characters"),
            ("https://a/b.zip?x y", "query has characters"),
            ("https://a/b.zip?x#y", "query has characters"),
        ] {
            let error = Url::parse_download(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    /// Other paths and queries stay at the same service.
    #[test]
    fn paths_and_queries() {
        let url = Url::parse("https://a.example:8443/x").expect("a URL");
        let other = url.with_path("/keys/k/unwrapkey").expect("a path");
        assert!(url.is_same_origin(&other));
        assert!(!url.is_same_origin(&Url::parse("https://a.example/x").expect("a URL")));
        let asked = other.with_query(&[("api-version", "7.4"), ("resource", "https://v.net/ +&")]);
        assert_eq!(
            asked.full(),
            "https://a.example:8443/keys/k/unwrapkey?api-version=7.4&\
             resource=https%3A%2F%2Fv.net%2F%20%2B%26"
        );
        assert_eq!(asked.to_string(), other.to_string());
        assert!(url.with_path("@evil").is_err());
        assert!(url.with_path("/../x").is_err());
    }
}
