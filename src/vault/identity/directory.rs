//! All identities of a vault.

use std::net::IpAddr;

use super::{
    DirectoryError, HostBinding, HostProof, Identity, IdentityKind, SecretDigest, check_text,
};
use crate::vault::request::random_id;

/// Most identities of a vault.
pub const IDENTITIES_MAX: usize = 10_000;

/// All identities of a vault.
#[derive(Clone, Debug, Default)]
pub struct Directory(Vec<Identity>);

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
