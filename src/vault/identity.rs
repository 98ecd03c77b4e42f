//! Who may ask: service principals and managed identities, and with what they prove themselves.
//! Pure: no I/O; the caller brings the time, in seconds since 1970.
//!
//! Secrets are made here, of 256 random bits, shown once and kept as their SHA-256: there is
//! nothing to guess that a slow hash would protect. They are compared in constant time.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ipnet::IpNet;
use jsonwebtoken::jwk::JwkSet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::request::random_id;
use crate::crypto::random;

/// Most identities of a vault.
pub const IDENTITIES_MAX: usize = 10_000;
/// Most credentials of one kind of one identity.
pub const CREDENTIALS_MAX: usize = 20;
/// How long a client secret lives if nothing else is said: 180 days.
pub const SECRET_LIFETIME_DEFAULT: u64 = 180 * 24 * 3600;
/// Bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Longest name, issuer, subject, audience, path or address of keys, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// The SHA-256 of a secret: safe to keep, not to print.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    /// The digest of a secret as it is presented.
    pub fn of(secret: &str) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// Whether both are of the same secret, compared in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretDigest")
    }
}

impl Serialize for SecretDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for SecretDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("not 32 bytes of base64"))
    }
}

/// A public key in DER; base64 where it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(pub Vec<u8>);

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A secret that is shown once: not `Debug`, wiped when dropped.
pub struct NewSecret {
    /// Its identifier, by which it is removed.
    pub id: String,
    /// What the client presents.
    pub value: Zeroizing<String>,
}

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

/// A client secret, or the secret of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSecret {
    /// UUID.
    pub id: String,
    /// What it is for, in the operator's words.
    pub name: String,
    /// Of the secret.
    pub digest: SecretDigest,
    /// When it was made.
    pub created: u64,
    /// When it ends.
    pub expires: Option<u64>,
}

/// An external issuer whose assertions about one subject are believed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederatedCredential {
    /// UUID.
    pub id: String,
    /// What it is for, in the operator's words.
    pub name: String,
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `aud`.
    pub audience: String,
    /// Where the issuer's keys are.
    pub keys: KeySource,
}

/// Where an issuer's public keys are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeySource {
    /// Here: they change when the operator says so.
    Inline(JwkSet),
    /// In a file on the vault's host, read again when it has changed.
    File(PathBuf),
}

/// A certificate that a client signs assertions with. Its dates do not count: it is believed
/// because it was registered, until it is removed or `expires`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// UUID.
    pub id: String,
    /// What it is for, in the operator's words.
    pub name: String,
    /// RSA public key: DER of a SubjectPublicKeyInfo.
    pub public_key: PublicKey,
    /// When it was registered.
    pub created: u64,
    /// When it ends.
    pub expires: Option<u64>,
}

/// Where a managed identity may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostBinding {
    /// UUID.
    pub id: String,
    /// The host, in the operator's words.
    pub name: String,
    /// How the host is known.
    pub proof: HostProof,
}

/// How a host is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostProof {
    /// By a secret that it presents.
    Secret(StoredSecret),
    /// By its address, at an endpoint that only hosts can reach.
    Address(IpNet),
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

/// All identities of a vault.
#[derive(Clone, Debug, Default)]
pub struct Directory(Vec<Identity>);

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

/// Why a credential was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialError {
    /// None that fits.
    Invalid,
    /// The right one, but its time is over.
    Expired,
}

fn check_text(text: &str, what: &'static str, max: usize) -> Result<(), DirectoryError> {
    let good = !text.is_empty()
        && text.len() <= max
        && !text.chars().any(char::is_control)
        && text.trim() == text;
    if good { Ok(()) } else { Err(DirectoryError::Text { what, max }) }
}

impl StoredSecret {
    /// A new secret, and what is kept of it.
    fn generate(name: &str, now: u64, expires: Option<u64>) -> (Self, NewSecret) {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        random::fill(&mut *bytes);
        let value = Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes[..]));
        let (id, digest) = (random_id(), SecretDigest::of(&value));
        let stored = Self { id: id.clone(), name: name.to_owned(), digest, created: now, expires };
        (stored, NewSecret { id, value })
    }

    fn is_over(&self, now: u64) -> bool {
        self.expires.is_some_and(|at| at <= now)
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

impl From<Vec<Identity>> for Directory {
    fn from(mut identities: Vec<Identity>) -> Self {
        identities.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Self(identities)
    }
}

impl Directory {
    /// Makes an identity that cannot do anything yet.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn create(
        &mut self,
        name: &str,
        kind: IdentityKind,
        now: u64,
    ) -> Result<&mut Identity, DirectoryError> {
        check_text(name, "the name", 120)?;
        if self.0.len() >= IDENTITIES_MAX {
            return Err(DirectoryError::TooMany("identities"));
        }
        if self.find(name).is_ok() {
            return Err(DirectoryError::Exists(name.to_owned()));
        }
        self.0.push(Identity {
            client_id: random_id(),
            object_id: random_id(),
            name: name.to_owned(),
            kind,
            enabled: true,
            created: now,
            epoch: 0,
            secrets: Vec::new(),
            certificates: Vec::new(),
            federated: Vec::new(),
            hosts: Vec::new(),
        });
        Ok(self.0.last_mut().expect("it was just added"))
    }

    /// In the order they were made.
    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.0.iter()
    }

    /// By name, client id or object id; case does not matter.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find(&self, which: &str) -> Result<&Identity, DirectoryError> {
        let found = self.0.iter().find(|identity| identity.is_called(which));
        found.ok_or_else(|| DirectoryError::NotFound(which.to_owned()))
    }

    /// As [`Directory::find`], to change it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find_mut(&mut self, which: &str) -> Result<&mut Identity, DirectoryError> {
        let found = self.0.iter_mut().find(|identity| identity.is_called(which));
        found.ok_or_else(|| DirectoryError::NotFound(which.to_owned()))
    }

    /// Removes an identity, and returns it: its policies are to go, too.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&mut self, which: &str) -> Result<Identity, DirectoryError> {
        let position = self.0.iter().position(|identity| identity.is_called(which));
        let position = position.ok_or_else(|| DirectoryError::NotFound(which.to_owned()))?;
        Ok(self.0.remove(position))
    }

    /// By client id only: what a token request names.
    pub fn by_client_id(&self, client_id: &str) -> Option<&Identity> {
        self.0.iter().find(|identity| identity.client_id.eq_ignore_ascii_case(client_id))
    }

    /// By object id only: what a token names.
    pub fn by_object_id(&self, object_id: &str) -> Option<&Identity> {
        self.0.iter().find(|identity| identity.object_id == object_id)
    }

    /// Managed identities whose host presents this secret. All are compared.
    pub fn by_host_secret(&self, secret: &str, now: u64) -> Vec<&Identity> {
        let presented = SecretDigest::of(secret);
        let fits = |host: &HostBinding| match &host.proof {
            HostProof::Secret(stored) => stored.digest.matches(&presented) & !stored.is_over(now),
            HostProof::Address(_) => false,
        };
        self.bound(fits)
    }

    /// Managed identities of the host with this address.
    pub fn by_address(&self, address: IpAddr) -> Vec<&Identity> {
        let address = address.to_canonical();
        self.bound(|host| match &host.proof {
            HostProof::Address(network) => network.contains(&address),
            HostProof::Secret(_) => false,
        })
    }

    fn bound(&self, fits: impl Fn(&HostBinding) -> bool) -> Vec<&Identity> {
        let is_bound = |identity: &&Identity| {
            let fitting = identity.hosts.iter().filter(|host| fits(host)).count();
            fitting > 0 && identity.kind == IdentityKind::Managed && identity.enabled
        };
        self.0.iter().filter(is_bound).collect()
    }
}

impl Identity {
    fn is_called(&self, which: &str) -> bool {
        [&self.name, &self.client_id, &self.object_id].iter().any(|n| n.eq_ignore_ascii_case(which))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn directory() -> Directory {
        let mut directory = Directory::default();
        directory.create("web", IdentityKind::ServicePrincipal, NOW).expect("new");
        directory.create("host", IdentityKind::Managed, NOW).expect("new");
        directory
    }

    /// Several secrets at once, each until its end; what is stored tells none of them.
    #[test]
    fn secrets() {
        let mut directory = directory();
        let web = directory.find_mut("WEB").expect("case does not matter");
        let old = web.add_secret("old", NOW, Some(NOW + 10)).expect("room");
        let new = web.add_secret("new", NOW, None).expect("room");
        assert_eq!((old.value.len(), old.value == new.value), (43, false));
        assert_eq!(web.check_secret(&old.value, NOW + 9), Ok(()));
        assert_eq!(web.check_secret(&old.value, NOW + 10), Err(CredentialError::Expired));
        assert_eq!(web.check_secret(&new.value, NOW + 1_000_000_000), Ok(()));
        for wrong in ["", "x", &new.value[1..], &format!("{}x", *new.value)] {
            assert_eq!(web.check_secret(wrong, NOW), Err(CredentialError::Invalid));
        }
        let json = serde_json::to_string(web).expect("strings");
        let debug = format!("{web:?}");
        for secret in [&old.value, &new.value] {
            assert!(!json.contains(&***secret) && !debug.contains(&***secret));
        }
        let read: Identity = serde_json::from_str(&json).expect("the same");
        assert_eq!(read.check_secret(&new.value, NOW), Ok(()));
        web.remove_credential(&old.id).expect("it is there");
        assert_eq!(web.check_secret(&old.value, NOW), Err(CredentialError::Invalid));
        assert_eq!(web.check_secret(&new.value, NOW), Ok(()));
        let gone = web.remove_credential(&old.id);
        assert_eq!(gone, Err(DirectoryError::NoCredential(old.id.clone())));
        web.remove_credential("new").expect("by its name, which is the only one");
        assert_eq!(web.check_secret(&new.value, NOW), Err(CredentialError::Invalid));
    }

    /// A host is known by its secret or address, for managed identities that are switched on.
    #[test]
    fn hosts() {
        let mut directory = directory();
        let host = directory.find_mut("host").expect("made");
        let secret = host.bind_secret("web-1", NOW, Some(NOW + 10)).expect("room");
        host.bind_address("rack", "192.0.2.7/24".parse().expect("a network")).expect("room");
        let names =
            |found: Vec<&Identity>| found.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(directory.by_host_secret(&secret.value, NOW)), ["host"]);
        assert_eq!(names(directory.by_host_secret(&secret.value, NOW + 10)), [""; 0]);
        assert_eq!(names(directory.by_host_secret("", NOW)), [""; 0]);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(names(directory.by_address(address("::ffff:192.0.2.200"))), ["host"]);
        assert_eq!(names(directory.by_address(address("192.0.3.1"))), [""; 0]);
        directory.find_mut("host").expect("made").enabled = false;
        assert_eq!(names(directory.by_host_secret(&secret.value, NOW)), [""; 0]);
        assert_eq!(names(directory.by_address(address("192.0.2.7"))), [""; 0]);
    }

    /// Each kind has its own credentials, and what makes no sense is refused.
    #[test]
    fn refusals() {
        let mut directory = directory();
        let taken = directory.create("Web", IdentityKind::Managed, NOW).err();
        assert_eq!(taken, Some(DirectoryError::Exists("Web".into())));
        let long = "x".repeat(121);
        for bad in ["", " x", "x\n", &long] {
            let error = directory.create(bad, IdentityKind::Managed, NOW).expect_err("no name");
            assert!(matches!(error, DirectoryError::Text { .. }), "{bad:?}");
        }
        assert!(directory.find("nobody").is_err() && directory.remove("nobody").is_err());
        let host = directory.find_mut("host").expect("made");
        assert!(matches!(host.add_secret("s", NOW, None), Err(DirectoryError::Kind(_))));
        let web = directory.find_mut("web").expect("made");
        assert!(matches!(web.bind_secret("s", NOW, None), Err(DirectoryError::Kind(_))));
        let past = web.add_secret("s", NOW, Some(NOW)).err();
        assert_eq!(past, Some(DirectoryError::Expiry));
        assert!(matches!(
            web.add_certificate("c", b"no key", NOW, None),
            Err(DirectoryError::Key(_))
        ));
        for n in 0..CREDENTIALS_MAX {
            web.add_secret(&n.to_string(), NOW, None).expect("room");
        }
        assert!(matches!(web.add_secret("s", NOW, None), Err(DirectoryError::TooMany(_))));
        let removed = directory.remove("web").expect("it is there");
        assert!(directory.by_client_id(&removed.client_id).is_none());
        assert!(directory.by_object_id(&removed.object_id).is_none());
    }

    /// Federated credentials name everything, and have keys.
    #[test]
    fn federated() {
        let mut directory = directory();
        let web = directory.find_mut("web").expect("made");
        let keys = serde_json::json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        }]});
        let set: JwkSet = serde_json::from_value(keys).expect("a JWK set");
        let good = FederatedCredential {
            id: String::new(),
            name: "cluster".into(),
            issuer: "https://cluster.test".into(),
            subject: "s".into(),
            audience: "a".into(),
            keys: KeySource::Inline(set),
        };
        let changes: [fn(&mut FederatedCredential); 5] = [
            |c| c.issuer = String::new(),
            |c| c.subject = "\0".into(),
            |c| c.audience = "x".repeat(TEXT_BYTES_MAX + 1),
            |c| c.keys = KeySource::File("keys.json".into()),
            |c| c.keys = KeySource::Inline(JwkSet { keys: Vec::new() }),
        ];
        for change in changes {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(web.add_federated(bad.clone()).is_err(), "{bad:?}");
        }
        let id = web.add_federated(good).expect("it is complete");
        let json = serde_json::to_string(web).expect("strings");
        let read: Identity = serde_json::from_str(&json).expect("the same");
        assert_eq!(read.federated[0].id, id);
    }
}
