//! Mount options, the mount itself, and the event loops.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::MsFlags;
use nix::unistd::{SysconfVar, geteuid, sysconf};
use parking_lot::Mutex;

use super::caches::Caches;
use super::loops::{self, NoRings, Rings};
use super::watch::Watch;
use super::wire::abi::init::OVER_IO_URING;
use super::wire::device::HandshakeError;
use super::wire::init::{Agreement, Wishes};
use super::wire::{Device, Notifier};
use super::writeback::Writeback;
use super::{Adapter, BACKGROUND_MAX, REQUEST_BYTES, flags};
use crate::fs::Tree;
use crate::sys::{fuse, mount};

/// Share of the dirty limit that a mount may use, in percent. The kernel gives FUSE 1, which
/// throttles writers at a few MiB.
const DIRTY_PERCENT: u32 = 40;
/// Readahead window of the mount in KiB; the kernel's default is 128.
const READAHEAD_KIB: u32 = 1024;

/// Who may use the mount beside the user that mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowOther {
    /// Everybody, if root mounts; nobody else otherwise.
    #[default]
    Default,
    /// Everybody; for users other than root, `/etc/fuse.conf` must say `user_allow_other`.
    Yes,
    /// Nobody.
    No,
}

/// Whether requests come by io_uring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoUring {
    /// If the kernel offers it.
    Auto,
    /// Or there is no mount.
    On,
    /// By reading `/dev/fuse`.
    #[default]
    Off,
}

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What the mount table shows as the source: the canonical path of the volume.
    pub source: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
    /// Who may use the mount.
    pub allow_other: AllowOther,
    /// Honour set-user-ID bits; root only.
    pub suid: bool,
    /// Honour device files; root only.
    pub dev: bool,
    /// Allow programs to be executed.
    pub exec: bool,
    /// Record access times.
    pub atime: bool,
    /// Write through: every write waits for its fsync.
    pub sync: bool,
    /// Event-loop threads, at least 1. One waits for requests, others are called when it is busy.
    pub threads: usize,
    /// How requests come.
    pub io_uring: IoUring,
}

impl Options {
    /// Event-loop threads unless told otherwise.
    pub const THREADS_DEFAULT: usize = 8;
    /// Most event-loop threads; each has a buffer of 1 MiB.
    pub const THREADS_MAX: usize = 64;

    /// Read-write, `nosuid`, `nodev`, and everything else as the kernel does by default.
    pub fn new(source: PathBuf) -> Self {
        Self {
            source,
            read_only: false,
            allow_other: AllowOther::Default,
            suid: false,
            dev: false,
            exec: true,
            atime: true,
            sync: false,
            threads: Self::THREADS_DEFAULT,
            io_uring: IoUring::default(),
        }
    }

    fn for_everybody(&self) -> bool {
        match self.allow_other {
            AllowOther::Default => geteuid().is_root(),
            AllowOther::Yes => true,
            AllowOther::No => false,
        }
    }
}

/// Why a mount failed. `Display` says what was attempted; the cause is in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse")]
    Device(#[source] io::Error),
    /// Event loops cannot be made.
    #[error("no event loop can be made")]
    Loops(#[source] io::Error),
    /// `fusermount3` says that `allow_other` needs `user_allow_other` in `/etc/fuse.conf`.
    #[error("allow_other is not permitted to this user")]
    AllowOther,
    /// mount(2) or `fusermount3` refused.
    #[error("cannot mount on {mountpoint}")]
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// io_uring was demanded, and cannot be had.
    #[error("FUSE over io_uring cannot be had: {0}")]
    NoIoUring(NoRings),
    /// The first exchange with the kernel failed.
    #[error("the kernel and the daemon do not agree on the FUSE protocol")]
    Handshake(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl MountError {
    fn handshake(error: HandshakeError) -> Self {
        Self::Handshake(Box::new(error))
    }
}

/// A mount whose requests wait for [`Session::run`]. It goes with it, if nobody took it away.
pub struct Session {
    adapter: Arc<Adapter>,
    device: Arc<Device>,
    mountpoint: PathBuf,
    caches: Caches,
    /// What the mount table says of it.
    entry: Option<mount::Mount>,
    /// Until [`Session::run`] takes them.
    rings: Mutex<Option<Rings>>,
    transport: String,
}

impl Session {
    /// Mounts `tree` on `mountpoint`, which must be canonical.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn mount(
        tree: Arc<dyn Tree>,
        mountpoint: &Path,
        options: &Options,
    ) -> Result<Self, MountError> {
        if let (IoUring::On, Err(reason)) = (options.io_uring, loops::is_possible()) {
            return Err(MountError::NoIoUring(reason));
        }
        let watch = Watch::new().map_err(MountError::Loops)?;
        let file = match mount_directly(mountpoint, options)? {
            Some(file) => file,
            None => mount_by_helper(mountpoint, options)?,
        };
        let device = Arc::new(Device::new(file));
        let entry = mount::mount_at(mountpoint).ok().flatten();
        let (agreement, rings) = agree(&device, options).inspect_err(|_| {
            take_away(&device, mountpoint, entry.as_ref());
        })?;
        log::debug!("FUSE 7.{}, flags {:#x}", agreement.minor, agreement.flags);
        if let Some(entry) = &entry {
            // Only root may, and without it the mount is slower but no worse.
            if let Err(error) = mount::tune(entry, DIRTY_PERCENT, READAHEAD_KIB) {
                log::debug!("the limits of the page cache stay as they are: {error}");
            }
        }
        let kernel = Writeback {
            notifier: Notifier::new(device.clone()),
            mountpoint: mountpoint.to_owned(),
            device: entry.as_ref().and_then(mount::device_number).unwrap_or(0),
        };
        // By io_uring a processor's requests have one thread: none that could wait for a disk.
        let may_wait = options.threads > 1 && rings.is_err();
        // What io_uring does not carry is little.
        let loops = if rings.is_ok() { 1 } else { options.threads.clamp(1, Options::THREADS_MAX) };
        let (watch, dialect) = (watch.of(loops), agreement.dialect());
        let adapter = Adapter::new(tree, kernel, watch, dialect, options, may_wait);
        let adapter = Arc::new(adapter);
        let caches = Caches { shared: adapter.shared.clone() };
        let mountpoint = mountpoint.to_owned();
        let transport = match &rings {
            Ok(rings) => format!("io_uring, {} queues", rings.queues()),
            Err(reason) => format!("/dev/fuse ({reason})"),
        };
        let rings = Mutex::new(rings.ok());
        Ok(Self { adapter, device, mountpoint, caches, entry, rings, transport })
    }

    /// How requests come, for people.
    pub fn transport(&self) -> &str {
        &self.transport
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What the kernel caches of it.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// Serves requests until the mount is gone, whoever took it away. Worker threads may still be
    /// busy with requests that nobody waits for any more.
    ///
    /// # Errors
    /// The connection to the kernel broke.
    pub fn run(self) -> io::Result<()> {
        let session = Arc::new(self);
        let rings = session.rings.lock().take();
        let mut loops = Vec::new();
        if let Some(rings) = rings {
            for ring in rings.into_each() {
                let session = session.clone();
                let thread = std::thread::Builder::new().name("atrest-uring".to_owned());
                loops.push(thread.spawn(move || session.serve_ring(ring))?);
            }
        }
        let number_of_loops = session.adapter.shared.watch.loops();
        if number_of_loops > 1 {
            let session = session.clone();
            let thread = std::thread::Builder::new().name("atrest-guard".to_owned());
            let guard = move || {
                session.adapter.shared.watch.guard(&session.device);
                Ok(())
            };
            loops.push(thread.spawn(guard)?);
        }
        for number in 0..number_of_loops {
            let session = session.clone();
            let thread = std::thread::Builder::new().name(format!("atrest-fuse-{number}"));
            match thread.spawn(move || loops::serve(&session.adapter, &session.device)) {
                Ok(started) => loops.push(started),
                // With fewer it is served all the same.
                Err(error) if number > 0 => log::warn!("only {number} event loops: {error}"),
                Err(error) => return Err(error),
            }
        }
        let ended = loops.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("an event loop panicked")))
        });
        // All of them, before the first failure is returned.
        ended.collect::<Vec<_>>().into_iter().collect()
    }

    /// Nobody else serves a ring's queues: without it the mount cannot go on.
    fn serve_ring(&self, ring: loops::Share) -> io::Result<()> {
        loops::serve_ring(&self.adapter, ring).inspect_err(|error| {
            log::error!("a ring broke, and the mount ends: {error}");
            take_away(&self.device, &self.mountpoint, self.entry.as_ref());
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        take_away(&self.device, &self.mountpoint, self.entry.as_ref());
    }
}

/// Unmounts what nobody unmounted. Another mount that has taken its place is left alone.
fn take_away(device: &Device, mountpoint: &Path, entry: Option<&mount::Mount>) {
    let Some(entry) = entry.filter(|_| !device.is_gone()) else { return };
    let is_there = mount::mount_at(mountpoint).ok().flatten();
    if is_there.is_some_and(|there| there.device == entry.device) {
        if let Err(error) = mount::unmount(mountpoint, true) {
            log::warn!("cannot unmount {}: {error}", mountpoint.display());
        }
    }
}

/// The first exchange. Rings are made before, for once they are agreed on, the kernel waits for
/// them.
fn agree(
    device: &Device,
    options: &Options,
) -> Result<(Agreement, Result<Rings, NoRings>), MountError> {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let mut wishes = Wishes {
        flags: flags::wanted(options.read_only),
        request_bytes: REQUEST_BYTES,
        readahead_bytes: REQUEST_BYTES,
        background_max: BACKGROUND_MAX,
        page_bytes: page.and_then(|page| u32::try_from(page).ok()).unwrap_or(4096),
    };
    let mut rings = match options.io_uring {
        IoUring::Off => Err(NoRings::Off),
        IoUring::Auto | IoUring::On => Rings::new(device),
    };
    if rings.is_ok() {
        wishes.flags |= OVER_IO_URING;
    }
    let agreement = device.handshake(wishes).map_err(MountError::handshake)?;
    if !agreement.has(OVER_IO_URING) {
        rings = rings.and(Err(NoRings::NotOffered));
    }
    match (options.io_uring, rings) {
        (IoUring::On, Err(reason)) => Err(MountError::NoIoUring(reason)),
        (_, rings) => {
            let rings = rings.map(|rings| rings.of(agreement.payload_bytes()));
            Ok((agreement, rings))
        }
    }
}

/// mount(2), for root; `None` if that is not permitted.
fn mount_directly(mountpoint: &Path, options: &Options) -> Result<Option<OwnedFd>, MountError> {
    let device = fuse::open_device().map_err(MountError::Device)?;
    let data = if options.for_everybody() {
        "default_permissions,allow_other"
    } else {
        "default_permissions"
    };
    let flags = mount_flags(options);
    match mount::mount_fuse(&device, &options.source, mountpoint, flags, data) {
        Ok(()) => Ok(Some(device)),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
        Err(source) => Err(MountError::Mount { mountpoint: mountpoint.to_owned(), source }),
    }
}

fn mount_flags(options: &Options) -> MsFlags {
    let table = [
        (options.read_only, MsFlags::MS_RDONLY),
        (!options.suid, MsFlags::MS_NOSUID),
        (!options.dev, MsFlags::MS_NODEV),
        (!options.exec, MsFlags::MS_NOEXEC),
        (!options.atime, MsFlags::MS_NOATIME),
        (options.sync, MsFlags::MS_SYNCHRONOUS),
    ];
    table.into_iter().filter(|(on, _)| *on).fold(MsFlags::empty(), |all, (_, flag)| all | flag)
}

/// The road of everybody but root: `fusermount3` mounts and hands the descriptor over.
fn mount_by_helper(mountpoint: &Path, options: &Options) -> Result<OwnedFd, MountError> {
    fuse::mount_by_helper(mountpoint, &helper_options(options)).map_err(|source| {
        if source.to_string().contains("user_allow_other") {
            return MountError::AllowOther;
        }
        MountError::Mount { mountpoint: mountpoint.to_owned(), source }
    })
}

/// `fusermount3` splits its argument at commas that no backslash precedes.
fn helper_options(options: &Options) -> OsString {
    let mut list = b"fsname=".to_vec();
    for &byte in options.source.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',') {
            list.push(b'\\');
        }
        list.push(byte);
    }
    list.extend_from_slice(b",subtype=atrest,default_permissions");
    let table: [(bool, &[u8]); 5] = [
        (options.for_everybody(), b",allow_other"),
        (options.read_only, b",ro"),
        (!options.exec, b",noexec"),
        (!options.atime, b",noatime"),
        (options.sync, b",sync"),
    ];
    table.iter().filter(|(on, _)| *on).for_each(|(_, option)| list.extend_from_slice(option));
    OsString::from_vec(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Defaults keep set-user-ID and devices off; each option has its flag.
    #[test]
    fn flags_of_options() {
        let mut options = Options::new(PathBuf::from("/srv/v"));
        assert_eq!(mount_flags(&options), MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        options.suid = true;
        options.dev = true;
        options.exec = false;
        options.atime = false;
        options.read_only = true;
        let expected = MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME | MsFlags::MS_RDONLY;
        assert_eq!(mount_flags(&options), expected);
    }

    /// A comma in the volume's path does not become a second option.
    #[test]
    fn helper_escapes_the_source() {
        let options = Options::new(PathBuf::from(r"/srv/a,allow_other\b"));
        let list = helper_options(&options);
        let list = list.to_str().unwrap();
        assert!(list.starts_with(r"fsname=/srv/a\,allow_other\\b,subtype=atrest,"), "{list}");
    }
}
