//! The registry of exit codes. Scripts depend on them: a number is never given a second meaning,
//! and one that is no longer used stays here, marked so.

use std::process::ExitCode;

/// Why the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// What is not foreseen below.
    Other = 1,
    /// The command line makes no sense; clap uses the same number.
    Usage = 2,

    /// `atrest.json` is not there: not a volume.
    ConfigMissing = 10,
    /// `atrest.json` cannot be understood.
    ConfigDamaged = 11,
    /// `atrest.json` was changed by somebody without the volume key.
    ConfigForged = 12,
    /// Made by a version of the program that this one does not know.
    VersionUnsupported = 13,
    /// `init`: the directory is not empty.
    VolumeNotEmpty = 14,

    /// No key slot opens the volume: a wrong passphrase or key.
    NoSlotOpens = 20,
    /// The key service knows who asks, and refuses.
    KeyDenied = 21,
    /// The key service does not answer.
    KeyUnreachable = 22,
    /// This host does not allow the key that the volume names, or lacks what opening it needs.
    KeyNotConfigured = 23,
    /// There is no key slot of that number.
    SlotMissing = 24,
    /// The last key slot is not removed.
    SlotLast = 25,
    /// There are as many key slots as can be.
    SlotsFull = 26,
    /// The key service does not know who asks, or the credential could not be had.
    KeyUnauthenticated = 27,
    /// The key service calls the request malformed: a key of another kind, a slot that was changed.
    KeyRefused = 28,
    /// `key verify`, `key rotate`: the volume opens, and a key slot does not do what it must.
    SlotBad = 29,

    /// The mount point does not exist.
    MountpointMissing = 30,
    /// The mount point is not a directory.
    MountpointNotDirectory = 31,
    /// The mount point is not empty.
    MountpointNotEmpty = 32,
    /// Something is mounted there.
    MountpointInUse = 33,
    /// The volume lies inside the mount point, or the reverse.
    Nested = 34,
    /// Another process has the volume.
    VolumeLocked = 35,
    /// `/dev/fuse` is missing or cannot be opened.
    NoFuse = 36,
    /// `fusermount3` is missing, which users other than root need.
    NoHelper = 37,
    /// The kernel or `fusermount3` refused to mount.
    MountRefused = 38,
    /// `allow_other` is not permitted to this user.
    AllowOtherRefused = 39,

    /// The volume is damaged.
    VolumeDamaged = 40,
    /// No space is left where the volume lies.
    NoSpace = 41,
    /// The volume lies on something read-only.
    ReadOnly = 42,
    /// The volume is older than it was when this host saw it last, or another one.
    RolledBack = 43,
    /// `fsck`: the volume opens, and something in it is damaged.
    DamageFound = 44,
    /// `fsck --repair`: damage was found, and repaired; what was lost by it is listed.
    DamageRepaired = 45,

    /// Not a mount of this program.
    NotMounted = 50,
    /// The mount is in use.
    Busy = 51,
    /// The daemon could not make everything durable.
    NotDurable = 52,
    /// The daemon does not answer, or did not end in time.
    DaemonSilent = 53,
    /// `unlock`: the key cannot be had, or the volume cannot be opened with it.
    StillLocked = 54,

    /// With `--audit-strict`: nothing was done, because it could not be put on record.
    AuditUnwritable = 60,
    /// `audit verify`: the log was changed, or something is missing.
    AuditTampered = 61,
    /// A package is refused: it is no ZIP archive, is damaged, or breaks a rule of the manual.
    PackageRefused = 62,
    /// A package is not what a digest, a signature or its own CRC-32s say.
    PackageMismatch = 63,

    /// `app run`: the file of settings cannot be read or understood.
    SettingsMalformed = 70,
    /// `app run`: a setting says something that cannot be done.
    SettingRefused = 71,
    /// `app run`: the package's setting is a reference to a secret that cannot be had.
    ReferenceUnresolved = 72,
    /// `app run`: the package is not there, or cannot be downloaded; `package rollback`: there is
    /// none.
    PackageUnavailable = 73,
    /// `app run`: the server does not give the package to whoever has this URL.
    PackageDenied = 74,
    /// `app run`: HOME is not a directory that can be written to.
    HomeUnusable = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
