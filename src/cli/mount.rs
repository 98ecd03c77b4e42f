//! `atrest mount`

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::args::MountArgs;
use super::exit::Exit;
use super::hint::Failure;
use super::options::{self, Common};
use super::{audit, keys, open, place};
use crate::daemon::{self, Detached, Keyed, Readiness, Service, logging, paths};
use crate::key::ProviderOptions;
use crate::sys::mount::{is_within, mount_at};

/// Mounts, and returns the exit code when the mount is usable (or, in the foreground, gone).
///
/// # Errors
/// Everything that keeps a volume from being mounted.
pub fn run(arguments: &MountArgs) -> Result<u8, Failure> {
    let volume = place::volume(&arguments.volume)?;
    let parsed = options::parse(arguments, volume.clone())?;
    let Common { mount, nonempty, log } = parsed.common;
    let place = (volume.as_path(), "volume");
    let mountpoint = check_mountpoint(&arguments.mountpoint, place, nonempty)?;
    check_fuse()?;
    let volume_id = place::config(&volume)?.claims().volume_id.to_string();
    let audit = audit::open(&parsed.audit, &volume_id)?;
    let readiness = if arguments.foreground {
        Readiness::foreground()
    } else {
        match daemon::detach().map_err(|error| Failure::daemon(&error))? {
            Detached::Parent(code) => return Ok(code),
            Detached::Child(readiness) => readiness,
        }
    };
    start_log(log, arguments.log_level, arguments.foreground, &volume_id)?;
    daemon::raise_limits();
    let options = ProviderOptions {
        expiry_denies: parsed.expiry_denies,
        ..keys::provider_options(&parsed.keys)
    };
    let how = open::How {
        command: "mount",
        mountpoint: Some(&mountpoint),
        read_only: mount.read_only,
        allow_rollback: arguments.allow_rollback,
        audit: &audit,
    };
    let opened =
        open::open(&volume, &options, how).inspect_err(|failure| log::error!("{failure}"))?;
    opened.control.start();
    let service = Service {
        tree: opened.tree,
        served: opened.control.clone(),
        keyed: Some(Keyed {
            volume: opened.control,
            lease: parsed.lease,
            audit,
            metrics: parsed.metrics,
        }),
        id: volume_id,
        mountpoint,
        options: mount,
        companion: None,
    };
    daemon::serve(service, readiness).map_err(|error| {
        let failure = Failure::daemon(&error);
        log::error!("{failure}");
        failure
    })?;
    Ok(0)
}

/// Starts logging where it was asked for, else to the log file of the mount of that id.
///
/// # Errors
/// The log cannot be opened.
pub(super) fn start_log(
    log: Option<PathBuf>,
    level: log::LevelFilter,
    foreground: bool,
    id: &str,
) -> Result<(), Failure> {
    let target = match log.as_deref().map(|log| (log, log.to_str())) {
        Some((_, Some("journal"))) => logging::Target::Journal,
        Some((_, Some("syslog"))) => logging::Target::Syslog,
        Some((_, Some("stderr"))) => logging::Target::Stderr,
        Some((file, _)) => {
            let path = std::path::absolute(file);
            logging::Target::File(path.map_err(|error| Failure::io("log to", file, &error))?)
        }
        None if foreground => logging::Target::Stderr,
        None => {
            let path = paths::log_file(id);
            let place = Path::new("the log directory");
            logging::Target::File(path.map_err(|error| Failure::io("find", place, &error))?)
        }
    };
    let shown = PathBuf::from(format!("{target:?}"));
    logging::start(target, level).map_err(|error| Failure::io("log to", &shown, &error))
}

/// The canonical mount point, if something can be mounted there: what, and what that is called.
///
/// # Errors
/// Why it cannot.
pub(super) fn check_mountpoint(
    path: &Path,
    mounted: (&Path, &str),
    nonempty: bool,
) -> Result<PathBuf, Failure> {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(
                Exit::MountpointMissing,
                format!("the mount point {shown} does not exist"),
            )
            .hint(format!("To make it: mkdir -p {shown}")));
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return Err(Failure::new(
                Exit::MountpointInUse,
                format!("{shown} is the mount of a daemon that is dead"),
            )
            .hint(format!("To take it away: atrest umount {shown}")));
        }
        Err(error) => return Err(Failure::io("use the mount point", path, &error)),
    };
    if !metadata.is_dir() {
        return Err(Failure::new(
            Exit::MountpointNotDirectory,
            format!("the mount point {shown} is not a directory"),
        ));
    }
    let canonical = path.canonicalize().map_err(|error| Failure::io("resolve", path, &error))?;
    check_nesting(&canonical, mounted)?;
    if let Ok(Some(mount)) = mount_at(&canonical) {
        let what = format!("{shown} is a mount point already ({})", mount.source.display());
        return Err(Failure::new(Exit::MountpointInUse, what)
            .hint(format!("To unmount it: umount {shown}")));
    }
    let mut entries =
        fs::read_dir(&canonical).map_err(|error| Failure::io("list", path, &error))?;
    if !nonempty && entries.next().is_some() {
        return Err(Failure::new(
            Exit::MountpointNotEmpty,
            format!("the mount point {shown} is not empty"),
        )
        .hint("What is in it would be hidden. To mount all the same: -o nonempty"));
    }
    Ok(canonical)
}

fn check_nesting(mountpoint: &Path, (place, what): (&Path, &str)) -> Result<(), Failure> {
    let (inner, outer) = if is_within(place, mountpoint) {
        (what, "mount point")
    } else if is_within(mountpoint, place) {
        ("mount point", what)
    } else {
        return Ok(());
    };
    let message = format!("the {inner} lies inside the {outer}");
    Err(Failure::new(Exit::Nested, message)
        .hint(format!("{what}: {}", place.display()))
        .hint(format!("mount point: {}", mountpoint.display())))
}

/// Whether FUSE can be used at all.
///
/// # Errors
/// What is missing.
pub(super) fn check_fuse() -> Result<(), Failure> {
    let device = Path::new("/dev/fuse");
    if let Err(error) = fs::File::options().read(true).write(true).open(device) {
        let error = daemon::Error::Mount(daemon::MountError::Device(error));
        return Err(Failure::daemon(&error));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let helper = std::env::split_paths(&path).map(|directory| directory.join("fusermount3"));
    if !nix::unistd::geteuid().is_root() && !helper.into_iter().any(|file| file.exists()) {
        let error = io::Error::from(io::ErrorKind::NotFound);
        let error = daemon::MountError::Mount { mountpoint: PathBuf::new(), source: error };
        return Err(Failure::daemon(&daemon::Error::Mount(error)));
    }
    Ok(())
}
