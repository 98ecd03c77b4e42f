//! Mount options, the mount itself, and the event loops.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use fuser::{Config, MountOption, SessionACL};
use nix::mount::MsFlags;
use nix::unistd::geteuid;

use super::Adapter;
use super::caches::Caches;
use super::writeback::Writeback;
use crate::fs::Tree;
use crate::sys::mount;

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
    /// Event-loop threads, at least 1. More help concurrent clients and cost a lone one.
    pub threads: usize,
}

impl Options {
    /// Event-loop threads unless told otherwise.
    pub const THREADS_DEFAULT: usize = 2;
    /// Most event-loop threads; each has a buffer of 16 MiB, of which requests touch 1.
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
        }
    }

    fn for_everybody(&self) -> bool {
        match self.allow_other {
            AllowOther::Default => geteuid().is_root(),
            AllowOther::Yes => true,
            AllowOther::No => false,
        }
    }

    fn acl(&self) -> SessionACL {
        if self.for_everybody() { SessionACL::All } else { SessionACL::Owner }
    }
}

/// Why a mount failed. `Display` says what was attempted; the cause is in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse")]
    Device(#[source] io::Error),
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
    /// The first exchange with the kernel failed.
    #[error("the kernel and the daemon do not agree on the FUSE protocol")]
    Handshake(#[source] io::Error),
}

/// A mount whose requests wait for [`Session::run`].
pub struct Session {
    pub(super) inner: fuser::Session<Adapter>,
    mountpoint: PathBuf,
    caches: Caches,
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
        let writeback = Arc::new(OnceLock::new());
        let adapter = Adapter::new(tree, writeback.clone(), options);
        let caches = Caches { shared: adapter.shared.clone() };
        let inner = match mount_directly(mountpoint, options)? {
            Some(device) => {
                let config = config(options, Vec::new());
                fuser::Session::from_fd(adapter, device, options.acl(), config)
                    .map_err(MountError::Handshake)?
            }
            None => mount_by_helper(adapter, mountpoint, options)?,
        };
        let table = mount::mount_at(mountpoint).ok().flatten();
        if let Some(entry) = &table {
            // Only root may, and without it the mount is slower but no worse.
            if let Err(error) = mount::tune(entry, DIRTY_PERCENT, READAHEAD_KIB) {
                log::debug!("the limits of the page cache stay as they are: {error}");
            }
        }
        let device = table.as_ref().and_then(mount::device_number).unwrap_or(0);
        let way =
            Writeback { notifier: inner.notifier(), mountpoint: mountpoint.to_owned(), device };
        let _ = writeback.set(way);
        Ok(Self { inner, mountpoint: mountpoint.to_owned(), caches })
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
        self.inner.run()
    }
}

fn config(options: &Options, mount_options: Vec<MountOption>) -> Config {
    let mut config = Config::default();
    config.mount_options = mount_options;
    config.acl = options.acl();
    config.n_threads = Some(options.threads.clamp(1, Options::THREADS_MAX));
    config
}

/// mount(2), for root; `None` if that is not permitted. fuser could do it, but only as type "fuse"
/// without the subtype that `mount`, `findmnt -t` and systemd show.
fn mount_directly(mountpoint: &Path, options: &Options) -> Result<Option<OwnedFd>, MountError> {
    let device = mount::open_fuse().map_err(MountError::Device)?;
    let data = if options.for_everybody() {
        "default_permissions,allow_other"
    } else {
        "default_permissions"
    };
    let flags = mount_flags(options);
    match mount::mount_fuse(&device, &options.source, mountpoint, flags, data) {
        Ok(()) => Ok(Some(device.into())),
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
fn mount_by_helper(
    adapter: Adapter,
    mountpoint: &Path,
    options: &Options,
) -> Result<fuser::Session<Adapter>, MountError> {
    let config = config(options, helper_options(options));
    fuser::Session::new(adapter, mountpoint, &config).map_err(|source| {
        if source.to_string().contains("user_allow_other") {
            return MountError::AllowOther;
        }
        MountError::Mount { mountpoint: mountpoint.to_owned(), source }
    })
}

fn helper_options(options: &Options) -> Vec<MountOption> {
    // fusermount3 splits its argument at commas that no backslash precedes.
    let source = options.source.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,");
    let mut list = vec![
        MountOption::FSName(source),
        MountOption::Subtype("atrest".to_owned()),
        MountOption::DefaultPermissions,
    ];
    let table = [
        (options.read_only, MountOption::RO),
        (!options.exec, MountOption::NoExec),
        (!options.atime, MountOption::NoAtime),
        (options.sync, MountOption::Sync),
    ];
    list.extend(table.into_iter().filter(|(on, _)| *on).map(|(_, option)| option));
    list
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
        assert_eq!(list[0], MountOption::FSName(r"/srv/a\,allow_other\\b".to_owned()));
    }
}
