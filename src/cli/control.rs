//! What the daemon asks of the volume that it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};

use super::hint::chain;
use super::open::{Place, Serving};
use super::{audit, place, status};
use crate::audit::{Asker, Entry, Event};
use crate::daemon::metrics::ProviderMeter;
use crate::daemon::{Answer, Lost, Numbers, Opening, Served, VolumeControl, VolumeNumbers};
use crate::format::config::Config;
use crate::fs::volume::{GatedTree, Refusal, recover};
use crate::key::pin::Pin;
use crate::key::{KekError, KekProvider, KeyError, Opened, ProviderOptions, VolumeKeys};
use crate::storage::VolumeLock;
use crate::sys::memory;
use crate::volume::Volume;

/// Bytes of a page, in which the volume counts its space.
const PAGE_BYTES: u64 = crate::format::PAGE_BYTES as u64;

/// See [`VolumeControl`].
pub struct Control {
    place: Place,
    /// Number of the key slot that opened the volume last; the lease is on its key.
    slot: AtomicU32,
    /// How to ask for that key again.
    options: ProviderOptions,
    /// The newest configuration; held while it is replaced, so that of two that are made from the
    /// same one the second is refused.
    config: Mutex<Config>,
    /// Since when the volume key is seen to be wrapped under this version of its key.
    version: Mutex<(String, Instant)>,
    provider: ProviderMeter,
    /// `None` while it is locked.
    serving: RwLock<Option<Serving>>,
    tree: Arc<GatedTree>,
    /// Released when everything else is gone.
    _lock: VolumeLock,
}

impl Control {
    /// The control of a volume that was just opened, by this slot.
    pub(super) fn new(
        place: Place,
        slot: u32,
        options: ProviderOptions,
        config: Config,
        serving: Serving,
        tree: Arc<GatedTree>,
        lock: VolumeLock,
    ) -> Self {
        let (config, serving) = (Mutex::new(config), RwLock::new(Some(serving)));
        let version = Mutex::new((String::new(), Instant::now()));
        let provider = ProviderMeter::default();
        let slot = AtomicU32::new(slot);
        Self { place, slot, options, config, version, provider, serving, tree, _lock: lock }
    }

    /// [`VolumeKeys::open`], counted.
    fn open_keys(&self, bytes: &[u8], options: &ProviderOptions) -> Result<Opened, KeyError> {
        let begun = Instant::now();
        let opened = VolumeKeys::open(bytes, options);
        self.provider.asked(begun.elapsed(), audit::class_of(opened.as_ref().err()));
        opened
    }

    /// Starts what runs beside requests. Threads: not before a fork.
    pub fn start(&self) {
        let serving = self.serving.read();
        let Some(Serving { volume, .. }) = &*serving else { return };
        match recover(volume) {
            Ok(0) => {}
            Ok(count) => log::info!("{count} files that were deleted while open are gone now"),
            Err(error) => log::error!("deleted files are still there: {}", chain(&error)),
        }
        volume.start();
    }

    /// Calls `work` with the volume; `None` while it is locked.
    pub fn with_volume<R>(&self, work: impl FnOnce(&Volume) -> R) -> Option<R> {
        self.serving.read().as_ref().map(|serving| work(&serving.volume))
    }

    fn remember(&self, serving: &Serving) -> Result<(), String> {
        let superblock = serving.volume.epochs().superblock();
        let pin = Pin {
            pin: serving.keys.pin(),
            // After an unmount in order both superblocks hold the same state: if the newer one is
            // lost, the other is no older.
            sequence: superblock.sequence - u64::from(superblock.clean),
            generation: self.config.lock().data().generation,
        };
        let id = serving.volume.volume_id();
        self.place.pins.store(id, &pin).map_err(|error| chain(&error))
    }

    fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// Unwraps the volume's keys anew, by the slot that the lease is on.
    fn ask(&self) -> Result<Opened, Answer> {
        let bytes = self.config.lock().bytes().to_vec();
        let options = ProviderOptions { slot: Some(self.slot()), ..self.options.clone() };
        let opened = self.open_keys(&bytes, &options);
        let (how, own) = ((Event::Recheck, "check"), Asker::of_this_process());
        // What was refused is no less refused because it cannot be put on record.
        _ = audit::unwrapped(&self.place.audit, how, &own, &opened);
        opened.map_err(|error| answer_of(&error))
    }

    fn check_key(&self) -> Answer {
        // What a passphrase opens cannot be taken away, and deriving its key is made to be dear.
        let slot = self.config.lock().slot(self.slot()).map(|slot| slot.provider.clone());
        if slot.is_some_and(|provider| provider.starts_with("passphrase:")) {
            return Answer::Granted;
        }
        let Opened { config, keys, slot, provider, .. } = match self.ask() {
            Ok(opened) => opened,
            Err(answer) => return answer,
        };
        // Not kept while the service is asked more: the volume may be locked meanwhile.
        drop(keys);
        if !self.place.read_only && self.serving.read().is_some() {
            self.follow_rotation(&config, slot, &*provider);
        }
        Answer::Granted
    }

    /// Makes the configuration say how far the audit log goes; with `only_due`, if it is time to.
    /// A volume that is locked or read-only keeps the anchor that it has.
    fn anchor(&self, only_due: bool) {
        let audit = &self.place.audit;
        let Some(anchor) = audit.to_anchor(only_due).filter(|_| !self.place.read_only) else {
            return;
        };
        let serving = self.serving.read();
        let Some(Serving { volume, keys }) = &*serving else { return };
        let mut newest = self.config.lock();
        let anchored = keys.anchor_audit(&newest, anchor).map_err(|error| chain(&error));
        let replaced = anchored.and_then(|config| {
            volume.replace_config(config.bytes()).map_err(|error| chain(&error))?;
            Ok(config)
        });
        match replaced {
            Ok(config) => {
                *newest = config;
                audit.anchored(anchor);
            }
            Err(error) => log::warn!("audit: the end of the log is not anchored: {error}"),
        }
    }

    /// Takes a verified configuration over.
    fn take_over(&self, bytes: &[u8], by: &Asker) -> Result<(), String> {
        let serving = self.serving.read();
        let Some(Serving { volume, keys }) = &*serving else {
            return Err("the volume is locked; unlock it first: atrest unlock".to_owned());
        };
        let config = keys.verify_config(bytes).map_err(|error| chain(&error))?;
        let mut newest = self.config.lock();
        let generation = newest.data().generation;
        if config.data().generation <= generation {
            return Err(format!(
                "the volume's keys were changed meanwhile (generation {generation}): run it again"
            ));
        }
        let changes = audit::slot_changes(&newest, &config, "key slots", by);
        for change in &changes {
            let recorded = self.place.audit.record(&change.clone().begun());
            recorded.map_err(|error| chain(&error))?;
        }
        let replaced = volume.replace_config(config.bytes()).map_err(|error| chain(&error));
        for change in changes {
            // It is done, or it is not: neither can be refused.
            _ = self.place.audit.record(&match &replaced {
                Ok(()) => change,
                Err(error) => change.failed("storage", error),
            });
        }
        replaced?;
        if config.slot(self.slot()).is_none() {
            log::warn!("key slot {}, which opened the volume, is removed", self.slot());
        }
        log::info!("the volume's keys were changed: generation {}", config.data().generation);
        *newest = config;
        Ok(())
    }

    /// Wraps the volume key under a newer version of its key, if there is one.
    fn follow_rotation(&self, config: &Config, slot: u32, provider: &dyn KekProvider) {
        let old = config.slot(slot).map(|slot| slot.kek.key_version.clone()).unwrap_or_default();
        let newest = match provider.latest_version() {
            Ok(Some(newest)) if newest != old => newest,
            Ok(_) => return,
            // Unwrapping worked, which is what matters.
            Err(error) => {
                return log::debug!("the newest version of the key is not known: {error}");
            }
        };
        let own = Asker::of_this_process();
        // Who locks waits for this: the key is on its way to the service.
        let made = match &*self.serving.read() {
            Some(Serving { keys, .. }) => keys.rotate_slot(config, slot, provider, false),
            None => return,
        };
        let rewrapped = made.as_ref().map(|config| config.slot(slot).expect("it was rotated"));
        let rewrap = Entry::new(Event::Rewrap, "check", &own);
        let rotated = match audit::wrapped(&self.place.audit, rewrap, rewrapped) {
            Err(error) => Err(chain(&error)),
            Ok(()) => made
                .map_err(|error| chain(&error))
                .and_then(|config| self.replace_config(config.bytes(), &own)),
        };
        match rotated {
            Ok(()) => log::info!("slot {slot}: wrapped under version {newest} of its key"),
            Err(error) => log::error!("slot {slot}: cannot follow its key to {newest}: {error}"),
        }
    }
}

/// What an attempt to unwrap says about the key.
fn answer_of(error: &KeyError) -> Answer {
    let denied = match error {
        KeyError::Kek(error) => error.is_definitive(),
        KeyError::NoSlot(failures) => {
            failures.iter().any(|failure| KekError::is_definitive(&failure.error))
        }
        _ => false,
    };
    if denied { Answer::Denied(chain(error)) } else { Answer::Outage(chain(error)) }
}

/// The key slot that opened the volume, as it is now: it may have been wrapped again since.
fn key_in_use(config: &Config, slot: u32) -> Value {
    match config.slot(slot) {
        Some(slot) => status::slot(slot),
        None => json!({ "slot": slot, "removed": true }),
    }
}

fn state_of(volume: &Volume, keys: &VolumeKeys) -> Value {
    let (_, free, inodes) = volume.space();
    let (used, _) = volume.epochs().space.usage();
    let damage = volume.epochs().damage();
    json!({
        "cipher": volume.cipher().name(),
        "epoch": keys.current_epoch(),
        "sequence": volume.epochs().superblock().sequence,
        "used_bytes": used * PAGE_BYTES,
        "free_bytes": free * PAGE_BYTES,
        "inodes": inodes,
        "damage": {
            "nodes_healed": damage.nodes_healed.load(Ordering::Relaxed),
            "nodes_lost": damage.nodes_lost.load(Ordering::Relaxed),
            "pages_lost": damage.pages_lost.load(Ordering::Relaxed),
            "changes_lost": damage.changes_lost.load(Ordering::Relaxed),
        },
    })
}

fn numbers_of(volume: &Volume) -> VolumeNumbers {
    let (_, free, inodes) = volume.space();
    let (used, _) = volume.epochs().space.usage();
    let damage = volume.epochs().damage();
    VolumeNumbers {
        used_bytes: used * PAGE_BYTES,
        free_bytes: free * PAGE_BYTES,
        inodes,
        nodes_healed: damage.nodes_healed.load(Ordering::Relaxed),
        nodes_lost: damage.nodes_lost.load(Ordering::Relaxed),
        pages_lost: damage.pages_lost.load(Ordering::Relaxed),
        changes_lost: damage.changes_lost.load(Ordering::Relaxed),
        node_cache: volume.epochs().node_cache(),
        key_cache: volume.key_cache(),
        backlog: volume.epochs().backlog(),
    }
}

impl Served for Control {
    fn status_json(&self) -> Value {
        let mut status = match &*self.serving.read() {
            Some(serving) => state_of(&serving.volume, &serving.keys),
            None => json!({}),
        };
        let config = self.config.lock();
        status["generation"] = json!(config.data().generation);
        status["key_in_use"] = key_in_use(&config, self.slot());
        status
    }

    fn sync(&self) -> Result<(), String> {
        // What is locked is durable, or was reported.
        let synced = self.with_volume(|volume| volume.sync().map_err(|error| chain(&error)));
        synced.unwrap_or(Ok(()))
    }

    fn close(&self) -> Result<(), String> {
        self.anchor(false);
        let serving = self.serving.read();
        let Some(serving) = &*serving else { return Ok(()) };
        serving.volume.close().map_err(|error| chain(&error))?;
        self.remember(serving)
    }
}

impl VolumeControl for Control {
    fn numbers(&self) -> Numbers {
        let config = self.config.lock();
        let now = config.slot(self.slot()).map(|slot| slot.kek.key_version.clone());
        drop(config);
        let mut version = self.version.lock();
        if let Some(now) = now.filter(|now| *now != version.0) {
            let is_first = version.0.is_empty();
            *version = (now, if is_first { version.1 } else { Instant::now() });
        }
        let key_age = version.1.elapsed();
        let serving = self.serving.read();
        let volume = serving.as_ref().map(|Serving { volume, .. }| numbers_of(volume));
        Numbers { volume, key_age, provider: self.provider.clone() }
    }

    fn replace_config(&self, bytes: &[u8], by: &Asker) -> Result<(), String> {
        self.take_over(bytes, by)?;
        self.anchor(false);
        Ok(())
    }

    fn anchor_audit(&self) {
        self.anchor(false);
    }

    fn check(&self) -> Answer {
        let answer = self.check_key();
        if let Some(Serving { keys, .. }) = &*self.serving.read() {
            self.place.audit.renew(keys);
        }
        self.anchor(true);
        answer
    }

    fn drain(&self, revoked: bool) {
        self.tree.drain(if revoked { Refusal::Revoked } else { Refusal::NoKey });
    }

    fn late_writes(&self) -> u64 {
        self.tree.late_writes()
    }

    fn lock(&self, late: &[u64], deadline: Instant) -> Result<(), Lost> {
        self.anchor(false);
        let Some(serving) = self.serving.write().take() else { return Ok(()) };
        let closed = serving.volume.close().map_err(|error| chain(&error));
        let remembered = self.remember(&serving);
        let mut unwritten = self.tree.unwritten();
        unwritten.extend(late);
        if closed.is_err() {
            unwritten.extend(serving.volume.unsaved());
        }
        let files = serving.volume.names_of(&unwritten, deadline);
        self.tree.lock();
        let Serving { volume, keys } = serving;
        // The volume's own threads have ended with it, and the tree is gone. The volume shares the
        // keys, so it goes first.
        let volume_gone = Arc::into_inner(volume).is_some();
        let keys_gone = Arc::into_inner(keys).is_some();
        if !(volume_gone && keys_gone) {
            log::error!("a defect keeps keys in memory; end the daemon to be sure");
        }
        memory::trim_heap();
        match closed.and(remembered) {
            Ok(()) if files.is_empty() => Ok(()),
            Ok(()) => Err(Lost { error: "not everything could be written".to_owned(), files }),
            Err(error) => Err(Lost { error, files }),
        }
    }

    fn reopen(&self, how: &Opening, by: &Asker) -> Answer {
        let slot = how.slot.unwrap_or(self.slot());
        let mut options = ProviderOptions { slot: Some(slot), ..self.options.clone() };
        if let Some(file) = &how.passphrase_file {
            options.passphrase_file = Some(file.clone());
        }
        // Somebody may have changed its keys while nobody held them.
        let bytes = match place::config_bytes(&self.place.path) {
            Ok(bytes) => bytes,
            Err(failure) => return Answer::Outage(failure.to_string()),
        };
        let opened = self.open_keys(&bytes, &options);
        let recorded = audit::unwrapped(&self.place.audit, (Event::Unwrap, "unlock"), by, &opened);
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => return answer_of(&error),
        };
        if let Err(error) = recorded {
            return Answer::Outage(chain(&error));
        }
        let (config, serving) = match self.place.open(opened, false) {
            Ok(opened) => opened,
            Err(failure) => return Answer::Outage(failure.to_string()),
        };
        *self.config.lock() = config;
        self.slot.store(slot, Ordering::Relaxed);
        self.tree.resume(serving.volume.clone());
        serving.volume.start();
        *self.serving.write() = Some(serving);
        Answer::Granted
    }
}
