//! What the daemon asks of a host: of its store, and for what is served from it.

use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::host::{Ask, Host};
use crate::audit::Asker;
use crate::daemon::{Answer, Caches, Companion, Lost, Numbers, Opening, Served, VolumeControl};
use crate::fs::volume::Refusal;

/// The control of the store's volume, with the host's over it: when the store's key is taken away,
/// what was read from it is, too.
pub struct HostControl {
    store: Arc<dyn VolumeControl>,
    host: Arc<Host>,
}

impl HostControl {
    /// For a host whose packages are in the volume that `store` controls.
    pub fn new(store: Arc<dyn VolumeControl>, host: Arc<Host>) -> Self {
        Self { store, host }
    }
}

impl Served for HostControl {
    fn status_json(&self) -> Value {
        let mut status = self.store.status_json();
        status["app"] = json!(self.host.status());
        status
    }

    fn sync(&self) -> Result<(), String> {
        self.store.sync()
    }

    fn roll_back(&self, undo: bool) -> Result<(), String> {
        self.host.ask(if undo { Ask::UndoRollback } else { Ask::Rollback })
    }

    fn close(&self) -> Result<(), String> {
        self.host.stop();
        self.host.keep_seek_points();
        self.host.forget_contents();
        self.store.close()
    }
}

impl VolumeControl for HostControl {
    fn numbers(&self) -> Numbers {
        self.store.numbers()
    }

    fn anchor_audit(&self) {
        self.store.anchor_audit();
    }

    fn replace_config(&self, bytes: &[u8], by: &Asker) -> Result<(), String> {
        self.store.replace_config(bytes, by)
    }

    fn check(&self) -> Answer {
        self.store.check()
    }

    fn drain(&self, revoked: bool) {
        let refusal = if revoked { Refusal::Revoked } else { Refusal::NoKey };
        self.host.tree().refuse(Some(refusal));
        self.store.drain(revoked);
    }

    fn late_writes(&self) -> u64 {
        self.store.late_writes()
    }

    fn lock(&self, late: &[u64], deadline: Instant) -> Result<(), Lost> {
        self.host.forget_contents();
        self.store.lock(late, deadline)
    }

    fn reopen(&self, how: &Opening, by: &Asker) -> Answer {
        let answer = self.store.reopen(how, by);
        if answer == Answer::Granted {
            self.host.tree().refuse(None);
        }
        answer
    }
}

impl Companion for Host {
    fn run(&self, caches: Caches) {
        Self::run(self, caches);
    }

    fn signal(&self, signal: Signal) {
        Self::signal(self, signal);
    }

    fn stop(&self) {
        Self::stop(self);
    }
}
