//! Who may ask: service principals and managed identities, and with what they prove themselves.
//! Pure: no I/O; the caller brings the time, in seconds since 1970.
//!
//! Secrets are made here, of 256 random bits, shown once and kept as their SHA-256: there is
//! nothing to guess that a slow hash would protect. They are compared in constant time.

mod credentials;
mod directory;
#[cfg(test)]
mod tests;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use credentials::{
    Certificate, CredentialError, FederatedCredential, HostBinding, HostProof, KeySource,
    NewSecret, PublicKey, SecretDigest, StoredSecret,
};
pub use directory::Directory;

use super::request::random_id;

/// Most credentials of one kind of one identity.
pub const CREDENTIALS_MAX: usize = 20;
/// How long a client secret lives if nothing else is said: 180 days.
pub const SECRET_LIFETIME_DEFAULT: u64 = 180 * 24 * 3600;
/// Longest issuer, subject or audience, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// What an identity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IdentityKind {
    /// A service principal: proves itself at the token endpoint.
    ServicePrincipal,
    /// A managed identity: is bound to hosts, and a host gets its tokens without a secret in the
    /// program that asks.
    Managed,
}

/// A service principal or a managed identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// What clients call themselves (`appid`): UUID.
    pub client_id: String,
    /// What policies are about (`oid`): UUID.
    pub object_id: String,
    /// The operator's name for it, unique.
    pub name: String,
    /// What it is.
    pub kind: IdentityKind,
    /// Switched off, it gets no tokens and those that it has are refused.
    pub enabled: bool,
    /// When it was made.
    pub created: u64,
    /// Tokens of an earlier epoch are refused.
    pub epoch: u64,
    /// Client secrets.
    pub secrets: Vec<StoredSecret>,
    /// Certificates.
    pub certificates: Vec<Certificate>,
    /// Federated credentials.
    pub federated: Vec<FederatedCredential>,
    /// Hosts.
    pub hosts: Vec<HostBinding>,
}

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// No identity of that name, client id or object id.
    #[error("there is no identity {0:?}; see: atrest vault identity list")]
    NotFound(String),
    /// No credential of that id.
    #[error("the identity has no credential {0:?}; see: atrest vault identity show")]
    NoCredential(String),
    /// The name is taken, also if only the case of letters differs.
    #[error("there is an identity {0:?} already")]
    Exists(String),
    /// The name, or another text, is not one.
    #[error("{what} must have 1 to {max} printable characters")]
    Text {
        /// Which.
        what: &'static str,
        /// How long it may be.
        max: usize,
    },
    /// Only one of the two kinds has such credentials.
    #[error("{0}")]
    Kind(&'static str),
    /// Too many of something.
    #[error("there are too many {0}; remove some")]
    TooMany(&'static str),
    /// An expiry that is past.
    #[error("the expiry is not in the future")]
    Expiry,
    /// A public key that is none.
    #[error("{0}")]
    Key(&'static str),
}

fn check_text(text: &str, what: &'static str, max: usize) -> Result<(), DirectoryError> {
    let good = !text.is_empty()
        && text.len() <= max
        && !text.chars().any(char::is_control)
        && text.trim() == text;
    if good { Ok(()) } else { Err(DirectoryError::Text { what, max }) }
}

fn check_new(
    name: &str,
    now: u64,
    expires: Option<u64>,
    count: usize,
) -> Result<(), DirectoryError> {
    check_text(name, "the name", 120)?;
    if count >= CREDENTIALS_MAX {
        return Err(DirectoryError::TooMany("credentials of this kind"));
    }
    match expires {
        Some(at) if at <= now => Err(DirectoryError::Expiry),
        _ => Ok(()),
    }
}

impl Identity {
    /// Adds a client secret. It is shown now and never again.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn add_secret(
        &mut self,
        name: &str,
        now: u64,
        expires: Option<u64>,
    ) -> Result<NewSecret, DirectoryError> {
        self.require_principal()?;
        check_new(name, now, expires, self.secrets.len())?;
        let (stored, new) = StoredSecret::generate(name, now, expires);
        self.secrets.push(stored);
        Ok(new)
    }

    /// Binds a managed identity to a host that presents a secret, shown now and never again.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn bind_secret(
        &mut self,
        host: &str,
        now: u64,
        expires: Option<u64>,
    ) -> Result<NewSecret, DirectoryError> {
        self.require_managed()?;
        check_new(host, now, expires, self.hosts.len())?;
        let (stored, new) = StoredSecret::generate(host, now, expires);
        let (id, proof) = (stored.id.clone(), HostProof::Secret(stored));
        self.hosts.push(HostBinding { id, name: host.to_owned(), proof });
        Ok(new)
    }

    /// Binds a managed identity to the hosts of a network.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn bind_address(&mut self, host: &str, network: IpNet) -> Result<String, DirectoryError> {
        self.require_managed()?;
        check_new(host, 0, None, self.hosts.len())?;
        let (id, proof) = (random_id(), HostProof::Address(network.trunc()));
        self.hosts.push(HostBinding { id: id.clone(), name: host.to_owned(), proof });
        Ok(id)
    }

    /// Believes an issuer's assertions about a subject.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn add_federated(
        &mut self,
        credential: FederatedCredential,
    ) -> Result<String, DirectoryError> {
        self.require_principal()?;
        check_new(&credential.name, 0, None, self.federated.len())?;
        check_text(&credential.issuer, "the issuer", TEXT_BYTES_MAX)?;
        check_text(&credential.subject, "the subject", TEXT_BYTES_MAX)?;
        check_text(&credential.audience, "the audience", TEXT_BYTES_MAX)?;
        match &credential.keys {
            KeySource::File(path) if !path.is_absolute() => {
                return Err(DirectoryError::Key("the path of the key set must be absolute"));
            }
            KeySource::Inline(set) if set.keys.is_empty() => {
                return Err(DirectoryError::Key("the key set has no key"));
            }
            _ => {}
        }
        let credential = FederatedCredential { id: random_id(), ..credential };
        let id = credential.id.clone();
        self.federated.push(credential);
        Ok(id)
    }

    /// Registers the public key of a certificate (SubjectPublicKeyInfo, DER).
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn add_certificate(
        &mut self,
        name: &str,
        public_key: &[u8],
        now: u64,
        expires: Option<u64>,
    ) -> Result<String, DirectoryError> {
        self.require_principal()?;
        check_new(name, now, expires, self.certificates.len())?;
        let key = aws_lc_rs::rsa::PublicKey::from_der(public_key);
        if !key.is_ok_and(|key| (256..=1024).contains(&key.modulus_len())) {
            return Err(DirectoryError::Key("it is no RSA key of 2048 to 8192 bits"));
        }
        let (id, public_key) = (random_id(), PublicKey(public_key.to_vec()));
        let (name, created) = (name.to_owned(), now);
        self.certificates.push(Certificate { id: id.clone(), name, public_key, created, expires });
        Ok(id)
    }

    /// Removes a credential or a host of any kind, by its id or its name if that is the only one of
    /// that name. Tokens that were issued for it stay good until they expire, or are revoked.
    ///
    /// # Errors
    /// `NoCredential`.
    pub fn remove_credential(&mut self, id: &str) -> Result<(), DirectoryError> {
        let named = self.credentials().filter(|(_, name)| *name == id).count() == 1;
        let before = self.credentials().count();
        let stays = |own_id: &str, name: &str| own_id != id && !(named && name == id);
        self.secrets.retain(|one| stays(&one.id, &one.name));
        self.certificates.retain(|one| stays(&one.id, &one.name));
        self.federated.retain(|one| stays(&one.id, &one.name));
        self.hosts.retain(|one| stays(&one.id, &one.name));
        match self.credentials().count() < before {
            true => Ok(()),
            false => Err(DirectoryError::NoCredential(id.to_owned())),
        }
    }

    fn credentials(&self) -> impl Iterator<Item = (&str, &str)> {
        let secrets = self.secrets.iter().map(|one| (&*one.id, &*one.name));
        let certificates = self.certificates.iter().map(|one| (&*one.id, &*one.name));
        let federated = self.federated.iter().map(|one| (&*one.id, &*one.name));
        let hosts = self.hosts.iter().map(|one| (&*one.id, &*one.name));
        secrets.chain(certificates).chain(federated).chain(hosts)
    }

    /// Refuses all tokens that were issued until now.
    pub fn revoke_tokens(&mut self) {
        self.epoch += 1;
    }

    /// Whether the client secret is one of this identity's. All are compared, whichever fits.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn check_secret(&self, secret: &str, now: u64) -> Result<(), CredentialError> {
        let presented = SecretDigest::of(secret);
        let mut result = Err(CredentialError::Invalid);
        for stored in &self.secrets {
            if stored.digest.matches(&presented) {
                result = if stored.is_over(now) { Err(CredentialError::Expired) } else { Ok(()) };
            }
        }
        result
    }

    fn require_principal(&self) -> Result<(), DirectoryError> {
        match self.kind {
            IdentityKind::ServicePrincipal => Ok(()),
            IdentityKind::Managed => Err(DirectoryError::Kind(
                "a managed identity has hosts, not client secrets; see: atrest vault identity bind",
            )),
        }
    }

    fn require_managed(&self) -> Result<(), DirectoryError> {
        match self.kind {
            IdentityKind::Managed => Ok(()),
            IdentityKind::ServicePrincipal => Err(DirectoryError::Kind(
                "only a managed identity is bound to hosts; make one with: \
                 atrest vault identity create --managed",
            )),
        }
    }
}
