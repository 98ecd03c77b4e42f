//! A volume as records and page contents: what the tree's keys mean. Knows no POSIX rules.

mod ahead;
mod background;
pub mod check;
mod content;
mod cuts;
mod data_keys;
mod defragment;
mod discard;
mod evacuate;
pub mod inspect;
mod path;
mod promises;
mod read;
mod records;
pub mod repair;
mod resize;
mod scan;
mod unsaved;

pub use crate::epoch::{
    Backlog, CacheCounts, CommitOptions, OpenError, OpenOptions, OpenReport, log_bytes_for,
};
pub use check::{CheckOptions, CheckReport, Progress, Stage};
pub use records::Change;

use crate::crypto::random::NonceSequence;
use crate::crypto::{Cipher, kdf};
use crate::defect::{self, Defect};
use crate::epoch::{self, Epochs, SlotDecoder};
use crate::format::map::PageMap;
use crate::format::record::{self, Counters, Inode, Table, Timestamp};
use crate::format::{PAGE_BYTES, VolumeId};
use crate::key::VolumeKeys;
use crate::storage::{Shadow, Storage};
use ahead::Ahead;
use background::Background;
use cuts::Cuts;
use data_keys::DataKeys;
use defragment::Apart;
use parking_lot::{Mutex, MutexGuard, RwLock};
use path::DamageLog;
use promises::Promises;
use smallvec::SmallVec;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Contents up to this size are kept inline, in a record of their own, so that three fill a leaf.
pub const INLINE_BYTES_MAX: u64 = 1_280;
/// The largest file: 8 EiB minus a page, so that every offset is an `off_t`.
pub const FILE_BYTES_MAX: u64 = (1 << 63) - PAGE_BYTES as u64;
/// Directory cookies start above those of `.` and `..`.
const COOKIE_FIRST: u64 = 17;
/// The root directory.
const ROOT: u64 = 1;
const INO_FIRST: u64 = ROOT + 1;
/// The random part of nonces is drawn anew at an epoch's end, but not for every `fsync`: a chunk
/// that is written for ever stays below the limit of NIST SP 800-38D for years; see
/// [`crate::manual::format`].
const NONCE_RENEWAL: Duration = Duration::from_secs(5);
/// Ends of epochs after which what was freed before the first can be written again.
const EPOCHS_UNTIL_REUSE: usize = 3;
const CONTENT_LOCKS: usize = 256;
const RECORD_LOCKS: usize = 1024;

/// Why a volume operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A page does not authenticate.
    #[error("inode {ino}: {what} does not authenticate")]
    Damaged {
        /// The inode that it belongs to.
        ino: u64,
        /// Which part, with its offset.
        what: String,
    },
    /// The inode does not exist (any more).
    #[error("inode {0} does not exist")]
    NoInode(u64),
    /// A file would become larger than [`FILE_BYTES_MAX`].
    #[error("the file would be too large")]
    TooLarge,
    /// No space is left.
    #[error("no space is left on the volume")]
    NoSpace,
    /// The volume is open read-only.
    #[error("the volume is open read-only")]
    ReadOnly,
    /// The volume stopped writing after a failed sync or write.
    #[error("writing stopped after an error of the storage: unmount the volume and mount it again")]
    Poisoned,
    /// A record breaks the format.
    #[error("malformed {0} record")]
    Malformed(&'static str),
    /// Anything else of the storage.
    #[error("{what}")]
    Storage {
        /// What was attempted.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<epoch::Error> for Error {
    fn from(error: epoch::Error) -> Self {
        match error {
            epoch::Error::NoSpace => Self::NoSpace,
            epoch::Error::Poisoned(_) => Self::Poisoned,
            epoch::Error::ReadOnly => Self::ReadOnly,
            epoch::Error::Lost => {
                Self::Storage { what: "making changes durable".into(), source: error.into() }
            }
            epoch::Error::Tree(source) => Self::Storage {
                what: "reading the volume's metadata".into(),
                source: source.into(),
            },
        }
    }
}

impl From<record::RecordError> for Error {
    fn from(record::RecordError(what): record::RecordError) -> Self {
        Self::Malformed(what)
    }
}

/// The sequence number of the newest superblock, which knows this configuration. Needs no lock: of
/// a volume that is in use it is the one of a moment ago.
///
/// # Errors
/// [`OpenError::ConfigReplaced`] if it knows another configuration; those of reading it.
pub fn newest_sequence(
    storage: &dyn Storage,
    keys: &VolumeKeys,
    volume_id: VolumeId,
    config: &[u8],
) -> Result<u64, OpenError> {
    epoch::newest_sequence(storage, keys, volume_id, kdf::digest(config))
}

/// Numbers that every epoch stores.
struct Live {
    next_ino: AtomicU64,
    next_cookie: AtomicU64,
    inodes: AtomicU64,
}

impl From<Counters> for Live {
    fn from(counters: Counters) -> Self {
        Self {
            next_ino: AtomicU64::new(counters.next_ino),
            next_cookie: AtomicU64::new(counters.next_cookie),
            inodes: AtomicU64::new(counters.inodes),
        }
    }
}

impl Live {
    /// What the log remembers with a change: the next inode number, the next cookie, and how many
    /// inodes came or went.
    fn note(&self, inodes: i64) -> [u8; Counters::LEN] {
        Counters { inodes: inodes as u64, ..self.counters() }.encode()
    }

    fn counters(&self) -> Counters {
        Counters {
            next_ino: self.next_ino.load(Ordering::Relaxed),
            next_cookie: self.next_cookie.load(Ordering::Relaxed),
            inodes: self.inodes.load(Ordering::Relaxed),
        }
    }
}

/// An open volume. Shared between threads by `Arc`.
///
/// # Locks, in this order
/// 1. Content locks (striped, one inode at a time), inside content operations: shared by reads and
///    by writes of whole pages, alone for everything else that changes contents.
/// 2. [`Volume::lock_inodes`] (striped mutexes over inode records), taken in one call for all
///    inodes that an operation changes. Content operations ([`Volume::write`],
///    [`Volume::truncate`], …) take theirs themselves and must not be called with any held.
/// 3. A [`Change`] ([`Volume::change`]): everything put through one `Change` becomes durable
///    together. It blocks the end of an epoch, so no content operation and no waiting while it
///    lives.
pub struct Volume {
    pub(crate) epochs: Arc<Epochs>,
    storage: Arc<dyn Storage>,
    keys: Arc<VolumeKeys>,
    cipher: Cipher,
    volume_id: VolumeId,
    nonces: Arc<NonceSequence>,
    data_keys: DataKeys,
    content_locks: Vec<RwLock<()>>,
    record_locks: Vec<Mutex<()>>,
    live: Arc<Live>,
    cuts: Cuts,
    promises: Promises,
    background: Background,
    ahead: Ahead,
    apart: Apart,
    damage_log: DamageLog,
    before_epoch: OnceLock<BeforeEpoch>,
    read_only: bool,
}

/// See [`Volume::before_epoch`].
type BeforeEpoch = Box<dyn Fn(&Volume, bool) + Send + Sync>;

/// Locks on inode records; released on drop.
pub struct InodeLocks<'a>(#[allow(dead_code)] SmallVec<[MutexGuard<'a, ()>; 4]>);

impl Volume {
    /// Makes a new, empty volume in `storage`, which is empty; `config` are the bytes of its
    /// `atrest.json`, `log_bytes` is the length of its log (see [`log_bytes_for`]). The root
    /// directory is for the caller to make.
    ///
    /// # Errors
    /// If the storage fails.
    pub fn create(
        storage: &dyn Storage,
        keys: &VolumeKeys,
        volume_id: VolumeId,
        config: &[u8],
        log_bytes: u64,
    ) -> io::Result<()> {
        Epochs::create(storage, keys, volume_id, kdf::digest(config), log_bytes)?;
        storage.replace_config(config)
    }

    /// Opens a volume. `config` is the verified content of `atrest.json`.
    ///
    /// # Errors
    /// One [`OpenError`] per refusal.
    pub fn open(
        storage: Arc<dyn Storage>,
        keys: Arc<VolumeKeys>,
        volume_id: VolumeId,
        cipher: Cipher,
        config: &[u8],
        options: &OpenOptions,
    ) -> Result<(Arc<Self>, OpenReport), OpenError> {
        let open = |storage: &Arc<dyn Storage>, read_only| {
            let options = OpenOptions { read_only, ..*options };
            Self::open_on(storage.clone(), keys.clone(), volume_id, cipher, config, &options)
        };
        // A repair takes what the log says into what it builds.
        if !options.read_only || options.repair {
            return open(&storage, options.read_only);
        }
        // Replaying the log brings contents into their slots, but who only reads changes nothing.
        let in_memory = || Arc::new(Shadow::new(storage.clone())) as Arc<dyn Storage>;
        let (volume, report) = open(&in_memory(), true)?;
        if report.replayed == 0 {
            return Ok((volume, report));
        }
        // An epoch in memory takes what the log says into the tree, which is what a check walks.
        // Damage can keep it from being written, though not what is whole from being read.
        let shadow = in_memory();
        let committed = open(&shadow, false).ok().filter(|(volume, _)| volume.sync().is_ok());
        let settled = committed.and_then(|_| open(&shadow, true).ok());
        Ok((settled.map_or(volume, |(volume, _)| volume), report))
    }

    fn open_on(
        storage: Arc<dyn Storage>,
        keys: Arc<VolumeKeys>,
        volume_id: VolumeId,
        cipher: Cipher,
        config: &[u8],
        options: &OpenOptions,
    ) -> Result<(Arc<Self>, OpenReport), OpenError> {
        let (epochs, report) = Epochs::open(
            storage.clone(),
            keys.clone(),
            volume_id,
            kdf::digest(config),
            options,
            slot_decoder(cipher),
        )?;
        let epochs = Arc::new(epochs);
        let live = match load_counters(&epochs) {
            // Who only reads gives out no numbers.
            Err(error) if options.read_only => {
                log::error!("the volume's counters cannot be read: {error}");
                Live::from(Counters::default())
            }
            other => other?,
        };
        let live = Arc::new(live);
        let nonces = Arc::new(NonceSequence::new());
        let (sealed_live, sealed_nonces) = (live.clone(), nonces.clone());
        let renewed = Mutex::new(Instant::now());
        epochs.on_seal(Box::new(move || {
            let mut renewed = renewed.lock();
            if renewed.elapsed() >= NONCE_RENEWAL {
                sealed_nonces.renew();
                *renewed = Instant::now();
            }
            let value = sealed_live.counters().encode();
            (Arc::from(&record::key(Table::Counters, 0, &[])[..]), Some(Arc::from(&value[..])))
        }));
        let cuts = Cuts::load(&epochs, options.read_only)?;
        let volume = Arc::new(Self {
            epochs,
            storage,
            keys,
            cipher,
            volume_id,
            nonces,
            data_keys: DataKeys::new(),
            content_locks: (0..CONTENT_LOCKS).map(|_| RwLock::new(())).collect(),
            record_locks: (0..RECORD_LOCKS).map(|_| Mutex::new(())).collect(),
            live,
            cuts,
            promises: Promises::default(),
            background: Background::new(),
            ahead: Ahead::new(),
            apart: Apart::default(),
            damage_log: DamageLog::new(),
            before_epoch: OnceLock::new(),
            read_only: options.read_only,
        });
        Ok((volume, report))
    }

    /// Starts the threads that read ahead, and the one that commits every few seconds and frees
    /// what was cut off. Without that one, epochs end only by [`Volume::sync`].
    pub fn start(self: &Arc<Self>) {
        Ahead::start(self);
        if !self.read_only {
            Background::start(self);
        }
    }

    /// Commits everything and marks the volume as unmounted in order. Nothing may be changed after.
    ///
    /// # Errors
    /// If not everything could be made durable.
    pub fn close(&self) -> Result<(), Error> {
        self.ahead.stop();
        self.background.stop();
        if self.read_only {
            return Ok(());
        }
        self.prepare_epoch(true);
        self.epochs.commit(&CommitOptions::default())?;
        // Both superblocks hold the last state, so that putting an old copy of one back changes
        // nothing.
        let clean = CommitOptions { clean: true, force: true, ..CommitOptions::default() };
        self.epochs.commit(&clean)?;
        Ok(self.epochs.commit(&clean)?)
    }

    /// Sets what is called, once for ever, before the background ends an epoch and before the
    /// volume is closed: the chance to put what can wait that long. It is told whether the epoch
    /// has anything else in it.
    pub fn before_epoch(&self, hook: BeforeEpoch) {
        let _ = self.before_epoch.set(hook);
    }

    fn prepare_epoch(&self, has_work: bool) {
        if let Some(hook) = self.before_epoch.get() {
            hook(self, has_work);
        }
    }

    /// Identity of the volume.
    pub fn volume_id(&self) -> VolumeId {
        self.volume_id
    }

    /// How contents are sealed.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The volume's keys.
    pub fn keys(&self) -> &VolumeKeys {
        &self.keys
    }

    /// How the cache of data keys is.
    pub fn key_cache(&self) -> CacheCounts {
        self.data_keys.counts()
    }

    /// The engine below, for `fsck`, `inspect` and `status`.
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Replaces `atrest.json`. Both superblocks name the new content before it is there, so that a
    /// crash at any point leaves a configuration that either of them knows. `bytes` were verified
    /// by the caller, who lets one replacement happen at a time.
    ///
    /// # Errors
    /// If the storage fails, or the file that is there is not the volume's: then nothing is
    /// replaced, because announcing would vouch for it.
    pub fn replace_config(&self, bytes: &[u8]) -> Result<(), Error> {
        let failed = |what: &str| {
            let what = format!("{what} atrest.json");
            move |source: io::Error| Error::Storage { what, source: Box::new(source) }
        };
        let old = kdf::digest(&self.storage.read_config().map_err(failed("reading"))?);
        let new = kdf::digest(bytes);
        if !self.epochs.superblock().knows(old) {
            let strange = io::Error::other("it was changed or put back while the volume is open");
            return Err(failed("replacing")(strange));
        }
        let announce = CommitOptions { config: Some((old, Some(new))), ..CommitOptions::default() };
        let announcements = match () {
            () if defect::active(Defect::NoAnnouncement) => 0,
            () if defect::active(Defect::AnnounceOnce) => 1,
            () => 2,
        };
        for _ in 0..announcements {
            self.epochs.commit(&announce)?;
        }
        self.storage.replace_config(bytes).map_err(failed("replacing"))?;
        let done = CommitOptions { config: Some((new, None)), ..CommitOptions::default() };
        Ok(self.epochs.commit(&done)?)
    }

    /// Locks the records of these inodes (any order, duplicates allowed).
    pub fn lock_inodes(&self, inos: &[u64]) -> InodeLocks<'_> {
        let stripes = inos.iter().map(|&ino| stripe(ino, RECORD_LOCKS));
        let mut stripes: SmallVec<[usize; 4]> = stripes.collect();
        stripes.sort_unstable();
        stripes.dedup();
        InodeLocks(stripes.into_iter().map(|stripe| self.record_locks[stripe].lock()).collect())
    }

    fn content_lock(&self, ino: u64) -> &RwLock<()> {
        &self.content_locks[stripe(ino, CONTENT_LOCKS)]
    }

    /// A new inode number, never given out before.
    pub fn new_ino(&self) -> u64 {
        self.live.next_ino.fetch_add(1, Ordering::Relaxed)
    }

    /// A new directory cookie, larger than all before (and than 16).
    pub fn new_cookie(&self) -> u64 {
        self.live.next_cookie.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends the epoch and waits until it is durable.
    ///
    /// # Errors
    /// If it cannot be made durable.
    pub fn sync(&self) -> Result<(), Error> {
        if self.read_only {
            return Ok(());
        }
        Ok(self.epochs.sync_epoch()?)
    }

    /// Returns when everything that happened so far is durable, by a flush of the log. Fails if
    /// anything of this inode could not be made durable since the volume was opened.
    ///
    /// # Errors
    /// If not everything of it is durable.
    pub fn sync_file(&self, ino: u64) -> Result<(), Error> {
        if self.read_only {
            return Ok(());
        }
        self.epochs.sync()?;
        self.check_lost(ino)
    }

    /// As [`Volume::sync_file`], if that is one short flush; `None` if it would have to wait.
    pub fn try_sync_file(&self, ino: u64) -> Option<Result<(), Error>> {
        if self.read_only {
            return Some(Ok(()));
        }
        let synced = self.epochs.try_sync()?;
        Some(synced.map_err(Error::from).and_then(|()| self.check_lost(ino)))
    }

    fn check_lost(&self, ino: u64) -> Result<(), Error> {
        if self.epochs.has_lost(ino) { Err(epoch::Error::Lost.into()) } else { Ok(()) }
    }

    /// Repeats what a full disk refused after ending epochs, as long as that may give `slots` back.
    /// The caller holds no record locks and no [`Change`].
    fn with_space<T>(
        &self,
        slots: u64,
        mut attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..EPOCHS_UNTIL_REUSE {
            match attempt() {
                Err(Error::NoSpace) => {}
                done => return done,
            }
            match self.epochs.reclaim(slots) {
                Ok(true) | Err(epoch::Error::Lost) => {}
                Ok(false) => return Err(Error::NoSpace),
                Err(error) => return Err(error.into()),
            }
        }
        attempt()
    }

    /// Whether it was a quota, and not the end of the disk, that last refused space.
    pub fn is_over_quota(&self) -> bool {
        self.epochs.space.is_over_quota()
    }

    /// Total and free space in 4 KiB pages, and inodes in use. What is used is what this volume
    /// uses, or keeps for what `fallocate(2)` allocated: total is that and what is free, so it
    /// changes with what others do on the disk below.
    pub fn space(&self) -> (u64, u64, u64) {
        let capacity = self.storage.capacity().unwrap_or_default();
        let page = PAGE_BYTES as u64;
        let used = self.epochs.space.usage().0 + self.epochs.space.promised();
        let free = match self.epochs.is_full() {
            true => 0,
            false => self.epochs.space.free_for_data(capacity.free_bytes / page),
        };
        (used + free, free, self.live.inodes.load(Ordering::Relaxed))
    }

    /// The wall clock, as the kernel gives files their times.
    pub fn now(&self) -> Timestamp {
        let (seconds, nanoseconds) = crate::sys::clock::file_time();
        Timestamp { seconds, nanoseconds }
    }

    fn require(&self, ino: u64) -> Result<Inode, Error> {
        self.inode(ino)?.ok_or(Error::NoInode(ino))
    }
}

fn stripe(ino: u64, count: usize) -> usize {
    (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % count
}

/// Tells the engine which slots a page map refers to.
fn slot_decoder(cipher: Cipher) -> SlotDecoder {
    Box::new(move |key, value, slots| {
        if key.first() == Some(&(Table::PageMap as u8)) {
            let map = PageMap::decode(cipher, value).map_err(|record::RecordError(what)| what)?;
            slots.extend(map.pages.iter().flatten().map(|page| page.slot));
        }
        Ok(())
    })
}

fn load_counters(epochs: &Epochs) -> Result<Live, OpenError> {
    let stored = epochs.get(&record::key(Table::Counters, 0, &[]))?;
    let mut counters = match stored {
        Some(value) => Counters::decode(&value)
            .map_err(|record::RecordError(what)| OpenError::Malformed(what))?,
        None => Counters { next_ino: INO_FIRST, next_cookie: COOKIE_FIRST, inodes: 0 },
    };
    for note in epochs.take_replayed_notes() {
        let note = Counters::decode(&note).map_err(|_| OpenError::Malformed("note in the log"))?;
        counters.next_ino = counters.next_ino.max(note.next_ino);
        counters.next_cookie = counters.next_cookie.max(note.next_cookie);
        counters.inodes = counters.inodes.wrapping_add(note.inodes);
    }
    Ok(Live::from(counters))
}
