//! The mount table, and taking mounts away.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{getegid, geteuid};

use super::process::users_of;

/// The filesystem type under which our mounts appear in the mount table.
pub const TYPE: &str = "fuse.atrest";
/// How long a mount may be in use by nobody who can be named: a process between fork(2) and
/// execve(2) has what its parent has open, and looking up a path takes a moment.
const PASSING: Duration = Duration::from_secs(2);

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor`
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Options of the mount and of the filesystem, comma-separated.
    pub options: String,
    /// The type, for FUSE with its subtype.
    pub kind: String,
    /// What is mounted; for our mounts the canonical path of the volume.
    pub source: PathBuf,
}

/// All mounts that this process sees, in mount order.
///
/// # Errors
/// Whatever reading `/proc/self/mountinfo` meets.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount at exactly `mountpoint`, which must be canonical.
///
/// # Errors
/// As [`mounts`].
pub fn mount_at(mountpoint: &Path) -> io::Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rev().find(|mount| mount.mountpoint == mountpoint))
}

/// mount(2) of a FUSE filesystem whose requests are read from `device`; `options` are those of
/// the kernel's fs/fuse/inode.c, without the ones that every mount needs. The mount belongs to this
/// process's user.
///
/// # Errors
/// Those of mount(2); EPERM without CAP_SYS_ADMIN.
pub fn mount_fuse(
    device: impl AsFd,
    source: &Path,
    mountpoint: &Path,
    flags: MsFlags,
    options: &str,
) -> io::Result<()> {
    let data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},{options}",
        device.as_fd().as_raw_fd(),
        std::fs::metadata(mountpoint)?.mode(),
        geteuid(),
        getegid(),
    );
    Ok(nix::mount::mount(Some(source), mountpoint, Some(TYPE), flags, Some(data.as_str()))?)
}

/// Raises the limits of a mount's page cache: its share of the dirty limit in percent, and its
/// readahead window. The kernel lets a FUSE mount have 1 % and 128 KiB.
///
/// # Errors
/// EACCES without root; `NotFound` without sysfs.
pub fn tune(mount: &Mount, dirty_percent: u32, readahead_kib: u32) -> io::Result<()> {
    let base = Path::new("/sys/class/bdi");
    let suffixed = base.join(format!("{}-fuse", mount.device));
    let bdi = if suffixed.exists() { suffixed } else { base.join(&mount.device) };
    std::fs::write(bdi.join("max_ratio"), dirty_percent.to_string())?;
    std::fs::write(bdi.join("read_ahead_kb"), readahead_kib.to_string())
}

/// `st_dev` of what a mount's `major:minor` says.
pub fn device_number(mount: &Mount) -> Option<u64> {
    let (major, minor) = mount.device.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Opens the root directory of the mount at `mountpoint`, if it is still that of `device`. The
/// mount is busy while it is open.
///
/// # Errors
/// Those of open(2), and `NotFound` if another filesystem is there.
pub fn open_root(mountpoint: &Path, device: u64) -> io::Result<File> {
    let root = File::open(mountpoint)?;
    if root.metadata()?.dev() != device {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(root)
}

fn parse(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let options = [text(fields.get(5)?), text(fields.get(dash + 3)?)].join(",");
    Some(Mount {
        device: text(fields.get(2)?),
        mountpoint: unescape(fields.get(4)?),
        options,
        kind: text(fields.get(dash + 1)?),
        source: unescape(fields.get(dash + 2)?),
    })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) if first == b'\\' => {
                let value = digits.iter().fold(0_u32, |sum, d| sum * 8 + u32::from(d - b'0'));
                bytes.push(value as u8);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Unmounts `mountpoint`; with `detach` it disappears at once and ends when its last user is gone.
/// Who may not unmount goes through `fusermount3`, as FUSE means it. What nobody can be named for
/// is waited for, 2 s at most.
///
/// # Errors
/// EBUSY while it is in use; EINVAL if nothing is mounted there.
pub fn unmount(mountpoint: &Path, detach: bool) -> io::Result<()> {
    let deadline = Instant::now() + PASSING;
    loop {
        let done = unmount_now(mountpoint, detach);
        let is_busy = done.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY));
        if !is_busy || !users_of(mountpoint).is_empty() || Instant::now() >= deadline {
            return done;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn unmount_now(mountpoint: &Path, detach: bool) -> io::Result<()> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if detach {
        flags |= MntFlags::MNT_DETACH;
    }
    match umount2(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => unmount_by_helper(mountpoint, detach),
        Err(errno) => Err(errno.into()),
    }
}

fn unmount_by_helper(mountpoint: &Path, detach: bool) -> io::Result<()> {
    let mut helper = Command::new(super::fuse::HELPER);
    helper.arg("-u");
    if detach {
        helper.arg("-z");
    }
    let output =
        helper.arg("--").arg(mountpoint).stdin(Stdio::null()).env("LC_ALL", "C").output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("busy") {
        return Err(Errno::EBUSY.into());
    }
    Err(io::Error::other(message.trim().to_owned()))
}

/// Whether `path` lies below `directory` or is it. Both must be canonical.
pub fn is_within(path: &Path, directory: &Path) -> bool {
    path.starts_with(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields are found behind any number of optional ones, and escapes are undone.
    #[test]
    fn parses_a_line() {
        let line = [
            &br"36 35 0:45 / /mnt/a\040b rw,nosuid shared:1 master:2"[..],
            br" - fuse.atrest /srv/v\134 rw,id=0",
        ]
        .concat();
        let mount = parse(&line).unwrap();
        assert_eq!(mount.device, "0:45");
        assert_eq!(device_number(&mount), Some(libc::makedev(0, 45)));
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b"));
        assert_eq!(mount.kind, TYPE);
        assert_eq!(mount.source, Path::new(r"/srv/v\"));
        assert_eq!(mount.options, "rw,nosuid,rw,id=0");
    }

    /// A cut line is no mount, and no panic.
    #[test]
    fn refuses_cut_lines() {
        let line = b"36 35 0:45 / /mnt rw - fuse.atrest /srv rw";
        for length in 0..line.len() - 3 {
            assert_eq!(parse(&line[..length]), None, "length {length}");
        }
    }

    /// The real table has the root.
    #[test]
    fn finds_the_root() {
        assert!(mount_at(Path::new("/")).unwrap().is_some());
        assert!(mount_at(Path::new("/proc/self/nothing")).unwrap().is_none());
    }
}
