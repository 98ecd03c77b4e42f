//! What can go wrong on the way to a service, and what to do about it.

use std::io;

use ureq::Timeout;

use crate::key::{KekError, KekErrorKind};

/// Why there is no reply, or none that can be used. Messages name the host and never what was sent
/// or received.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The host's name has no address.
    #[error("the name {host} is not known; check its spelling and this host's DNS")]
    NameUnknown {
        /// The host, or the proxy.
        host: String,
    },
    /// Nobody listens.
    #[error("{host} refuses connections; is the service running, and is the port right?")]
    Refused {
        /// The host, or the proxy.
        host: String,
    },
    /// It took too long.
    #[error("{host} did not answer in time ({phase}); check network, firewall and proxy")]
    TimedOut {
        /// The host, or the proxy.
        host: String,
        /// What took too long.
        phase: Timeout,
    },
    /// The connection ended before the whole reply was there, or another system error.
    #[error("the connection to {host} broke: {source}")]
    Broken {
        /// The host, or the proxy.
        host: String,
        /// What the system says.
        source: io::Error,
    },
    /// Its certificate is refused, or it does not speak TLS.
    #[error("{problem}")]
    Tls {
        /// What is wrong, and what to do.
        problem: String,
    },
    /// It does not speak HTTP as it should.
    #[error("{host} does not answer in proper HTTP: {problem}")]
    Protocol {
        /// The host, or the proxy.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// It sends the client elsewhere, which no key service does.
    #[error(
        "{host} answers with a redirect (status {status}), which is not followed; \
         give the URL of the service itself, and look for a proxy that wants a login"
    )]
    Redirect {
        /// The host.
        host: String,
        /// 300 to 399.
        status: u16,
    },
    /// The reply is larger than any that is expected.
    #[error("{host} answers with more than {bytes_max} bytes; is it the right service?")]
    TooLarge {
        /// The host.
        host: String,
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The reply is not the JSON that was expected.
    #[error("{host} answers status {status} with something else than expected: {problem}")]
    Unexpected {
        /// The host.
        host: String,
        /// Its status.
        status: u16,
        /// What is wrong.
        problem: String,
    },
    /// The proxy does not let it through.
    #[error("the proxy {proxy} does not connect to {host}: {problem}")]
    Proxy {
        /// The proxy.
        proxy: String,
        /// The host.
        host: String,
        /// What it says.
        problem: String,
    },
    /// Something on this host has to be put right first.
    #[error("{problem}")]
    Configuration {
        /// What, and how.
        problem: String,
    },
}

impl HttpError {
    /// Whether trying again soon may help: nothing was decided, and no rule or setting is in the
    /// way.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Broken { .. })
    }

    /// As an error of `provider` (a URI) about `key`: `Configuration` if this host has to be put
    /// right, else `Unreachable`.
    pub fn into_kek(self, provider: &str, key: &str) -> KekError {
        let kind = match self {
            Self::Configuration { problem } => KekErrorKind::Configuration { problem },
            other => KekErrorKind::Unreachable { reason: other.to_string() },
        };
        KekError::new(kind, provider, key)
    }

    /// What `error` means for a request to `host`, through `proxy` if there is one.
    pub(super) fn from_ureq(error: ureq::Error, host: &str, proxy: Option<&str>) -> Self {
        let peer = match proxy {
            Some(proxy) => format!("{host} (through the proxy {proxy})"),
            None => host.to_owned(),
        };
        match error {
            ureq::Error::HostNotFound => {
                Self::NameUnknown { host: proxy.unwrap_or(host).to_owned() }
            }
            ureq::Error::Timeout(phase) => Self::TimedOut { host: peer, phase },
            ureq::Error::ConnectionFailed => Self::Refused { host: peer },
            ureq::Error::Rustls(error) => Self::tls(&error, host),
            ureq::Error::Io(error) => Self::from_io(error, host, peer),
            ureq::Error::ConnectProxyFailed(problem) => Self::Proxy {
                proxy: proxy.unwrap_or_default().to_owned(),
                host: host.to_owned(),
                problem: printable(&problem),
            },
            other => Self::Protocol { host: peer, problem: printable(&other.to_string()) },
        }
    }

    /// The same for an error while the body is read.
    pub(super) fn from_io(error: io::Error, host: &str, peer: String) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<ureq::Error>()) {
            let inner = error.into_inner().expect("it was there just now");
            let inner = inner.downcast::<ureq::Error>().expect("it was one just now");
            return match *inner {
                ureq::Error::Timeout(phase) => Self::TimedOut { host: peer, phase },
                other => Self::Protocol { host: peer, problem: printable(&other.to_string()) },
            };
        }
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls {
            return Self::tls(tls, host);
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { host: peer },
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                Self::TimedOut { host: peer, phase: Timeout::Global }
            }
            _ => Self::Broken { host: peer, source: error },
        }
    }

    fn tls(error: &rustls::Error, host: &str) -> Self {
        let problem = match error {
            rustls::Error::InvalidCertificate(error) => certificate(error, host),
            rustls::Error::InvalidMessage(_) => {
                format!("{host} does not speak TLS on this port; check the port")
            }
            rustls::Error::AlertReceived(alert) => format!(
                "{host} refuses the TLS connection (alert {alert:?}); it may want a client \
                 certificate or another TLS version"
            ),
            other => format!("TLS with {host} failed: {}", printable(&other.to_string())),
        };
        Self::Tls { problem }
    }
}

/// What is wrong with the certificate of `host`, and what to do.
fn certificate(error: &rustls::CertificateError, host: &str) -> String {
    use rustls::CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => {
            format!("the certificate of {host} has expired; renew it there, or set the clock here")
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            format!("the certificate of {host} is not valid yet; set the clock here or there")
        }
        // The second: a CA of the same name with another key.
        E::UnknownIssuer | E::BadSignature => format!(
            "the certificate of {host} is of an issuer that this host does not trust; name the \
             CA's certificate with ca_file in /etc/atrest/providers.toml, or install it for the \
             host (or SSL_CERT_FILE)"
        ),
        E::NotValidForName => format!("the certificate of {host} is for another name"),
        E::NotValidForNameContext { presented, .. } => format!(
            "the certificate of {host} is for other names ({}); use one of them, or have it \
             issued for {host}",
            printable(&presented.join(", "))
        ),
        E::Revoked => format!("the certificate of {host} is revoked"),
        // webpki's errors come boxed, as text (`CaUsedAsEndEntity`).
        E::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => format!(
            "the certificate of {host} is a CA's, not a server's; have that CA issue one for the \
             server, and name the CA's with ca_file"
        ),
        other => format!("the certificate of {host} is refused: {}", printable(&other.to_string())),
    }
}

/// What a stranger says, fit for a terminal and a log: bounded, and no control characters.
pub fn printable(text: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(CHARACTERS_MAX).map(clean).collect()
}
