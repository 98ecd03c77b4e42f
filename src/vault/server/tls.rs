//! TLS 1.2 and 1.3 by rustls, with aws-lc as its cryptography.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

/// Largest file of certificates or of a key that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read the private key.
    #[error("{path} is open to others; run: chmod go= {path}", path = .0.display())]
    OpenToOthers(PathBuf),
    /// Not PEM, or without what it should have.
    #[error("{} has no {what} in PEM form", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("the certificate and the private key cannot be used together")]
    Refused(#[source] rustls::Error),
}

/// What turns TCP connections into TLS connections.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// Serves the certificates in the PEM file `certificates` (leaf first, then those between it
    /// and the root), whose key is in the PEM file `key` (PKCS#8, PKCS#1 or SEC1, not encrypted).
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn new(certificates: &Path, key: &Path) -> Result<Self, TlsError> {
        let pem = read(certificates)?;
        let missing = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.map_err(|_| missing(certificates, "certificate"))?;
        if chain.is_empty() {
            return Err(missing(certificates, "certificate"));
        }
        let pem = read(key)?;
        check_private(key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| missing(key, "private key"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Refused)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(TlsError::Refused)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.0.accept(stream).await
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(failed(io::Error::other("it is too large")));
    }
    std::fs::read(path).map(Zeroizing::new).map_err(failed)
}

fn check_private(path: &Path) -> Result<(), TlsError> {
    use std::os::unix::fs::MetadataExt as _;
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(failed)?.mode();
    // The group may read it: certificates are often kept for a group of services.
    if mode & 0o007 != 0 { Err(TlsError::OpenToOthers(path.to_owned())) } else { Ok(()) }
}
