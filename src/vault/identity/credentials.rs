//! What identities prove themselves with, as it is kept.

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ipnet::IpNet;
use jsonwebtoken::jwk::JwkSet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::random;
use crate::vault::request::random_id;

/// Bytes of a secret.
const SECRET_BYTES: usize = 32;

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

/// Why a credential was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialError {
    /// None that fits.
    Invalid,
    /// The right one, but its time is over.
    Expired,
}

impl StoredSecret {
    /// A new secret, and what is kept of it.
    pub(super) fn generate(name: &str, now: u64, expires: Option<u64>) -> (Self, NewSecret) {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        random::fill(&mut *bytes);
        let value = Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes[..]));
        let (id, digest) = (random_id(), SecretDigest::of(&value));
        let stored = Self { id: id.clone(), name: name.to_owned(), digest, created: now, expires };
        (stored, NewSecret { id, value })
    }

    pub(super) fn is_over(&self, now: u64) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}
