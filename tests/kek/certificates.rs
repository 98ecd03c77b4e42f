//! Certificates of the fault proxy: good ones, and those that must be refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Which certificate a server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// For `localhost`, of the authority.
    Good,
    /// It ended in 2001.
    Expired,
    /// It begins in 2999.
    Future,
    /// Signed by itself.
    SelfSigned,
    /// Of another authority, with the same name.
    OtherAuthority,
    /// For another host.
    OtherHost,
}

/// An authority, and the file that clients know it by.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// PEM.
    pub file: PathBuf,
}

impl Authority {
    /// A new one; its certificate is in `directory`.
    pub fn new(directory: &Path) -> Self {
        let issuer = issuer();
        let file = directory.join("proxy-ca.pem");
        std::fs::write(&file, issuer.pem()).expect("writable");
        Self { issuer, file }
    }

    /// A good certificate and its key, in PEM.
    pub fn server_files(&self) -> (String, String) {
        let parameters = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("it is signed");
        (certificate.pem(), key.serialize_pem())
    }

    /// A server's settings with this certificate.
    pub fn server(&self, shown: Shown) -> Arc<ServerConfig> {
        let name = if shown == Shown::OtherHost { "elsewhere.example" } else { "localhost" };
        let mut parameters = CertificateParams::new([name.to_owned()]).expect("a name");
        match shown {
            Shown::Expired => {
                parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
                parameters.not_after = rcgen::date_time_ymd(2001, 1, 1);
            }
            Shown::Future => {
                parameters.not_before = rcgen::date_time_ymd(2999, 1, 1);
                parameters.not_after = rcgen::date_time_ymd(3000, 1, 1);
            }
            _ => {}
        }
        let key = KeyPair::generate().expect("a key");
        let signed = match shown {
            Shown::SelfSigned => parameters.self_signed(&key),
            Shown::OtherAuthority => parameters.signed_by(&key, &issuer()),
            _ => parameters.signed_by(&key, &self.issuer),
        };
        let certificate = signed.expect("it is signed").der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("the key is the certificate's");
        Arc::new(config)
    }
}

fn issuer() -> CertifiedIssuer<'static, KeyPair> {
    let mut parameters = CertificateParams::new([]).expect("no names");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "atrest test proxy");
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(parameters, key).expect("it signs itself")
}
