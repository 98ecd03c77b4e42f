//! What the contract asks of a peer: where keys live in this test, and what can be done to them.

use std::path::PathBuf;

use atrest::key::ProviderOptions;

/// What can be done to a key or credential at a peer, besides wrapping and unwrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Make a new version of the key, where it lives.
    Rotate,
    /// Switch the key off.
    Disable,
    /// Switch it on again.
    Enable,
    /// Delete the key.
    Delete,
    /// Bring it back.
    Recover,
    /// Take the caller's credential away, or its right to use the key.
    Revoke,
    /// Give it back.
    Restore,
}

/// The acts, all of them.
pub const ACTS: [Act; 7] =
    [Act::Rotate, Act::Disable, Act::Enable, Act::Delete, Act::Recover, Act::Revoke, Act::Restore];

/// A key service or key store of the test.
pub trait Peer: Sync {
    /// Its row in the table.
    fn row(&self) -> &'static Row;

    /// URI of the key under test.
    fn uri(&self) -> String;

    /// URI of another key of the same kind at the same peer.
    fn other_uri(&self) -> String;

    /// Options that lead there.
    fn options(&self) -> ProviderOptions;

    /// The same as a `providers.toml`, for a process that has only that and a command line; `None`
    /// if the command line says all.
    fn providers_file(&self) -> Option<PathBuf> {
        None
    }

    /// Does what [`Row::offers`] says that it does.
    fn act(&self, act: Act);

    /// What must not be shown, if it became known only now.
    fn secrets(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Where it listens, if it is in a network.
    fn network(&self) -> Option<&dyn NetworkPeer> {
        None
    }
}

/// A peer behind https.
pub trait NetworkPeer {
    /// `host:port` of the service.
    fn address(&self) -> String;

    /// PEM file of the authority that the service's certificate is of.
    fn ca_file(&self) -> PathBuf;

    /// URI of the key under test, as if the service were at `origin` (`https://host:port`).
    fn uri_at(&self, origin: &str) -> String;

    /// Options that lead to `origin`, whose authority is in `ca_file`; time-outs of a second or
    /// two.
    fn options_at(&self, origin: &str, ca_file: &std::path::Path) -> ProviderOptions;

    /// Lies of the service that must be found: a text of its replies to an unwrap, and what to put
    /// in its place, such as the name of another key.
    fn lies(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Where a peer is not like the service that it stands for, so that a promise is not tried there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// It says that access is denied when it cannot read a wrapped key.
    DeniesChanged,
    /// It unwraps by whichever key wrapped, and says that it was the one that it was asked for.
    TakesAnyKey,
}

/// A row of the table of peers: what each offers, explicitly, so that nothing is left out silently.
#[derive(Debug)]
pub struct Row {
    /// The peer.
    pub name: &'static str,
    /// What can be done there.
    pub offers: &'static [Act],
    /// Why the rest cannot.
    pub not_offered: &'static str,
    /// Whether the wrapped key is bound to the volume.
    pub binds: bool,
    /// How many of 100 threads may ask at once, where the service is a single one.
    pub at_once: usize,
    /// How many volumes are mounted at once, each by a daemon of its own.
    pub mounts: usize,
    /// How many of those may ask for the key at once: others' software for tests takes fewer
    /// processes than threads.
    pub daemons_at_once: usize,
    /// What it does that the service that it stands for does not.
    pub quirks: &'static [Quirk],
    /// Whether wrapped keys are authenticated where they are unwrapped: each changed byte is
    /// noticed.
    pub authenticates: bool,
}

impl Row {
    /// Whether `act` can be done.
    pub fn offers(&self, act: Act) -> bool {
        self.offers.contains(&act)
    }

    /// How the key is taken away, and given back, if both can be done.
    pub fn taking(&self) -> Option<(Act, Act)> {
        let pairs =
            [(Act::Disable, Act::Enable), (Act::Revoke, Act::Restore), (Act::Delete, Act::Recover)];
        pairs.into_iter().find(|(take, give)| self.offers(*take) && self.offers(*give))
    }
}
