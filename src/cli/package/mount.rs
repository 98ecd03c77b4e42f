//! `atrest package mount`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};

use super::{MountArgs, check_digest, open, source, threads};
use crate::cli::exit::Exit;
use crate::cli::hint::{Failure, chain};
use crate::cli::mount::{check_fuse, check_mountpoint, start_log};
use crate::cli::options::{Common, parse_common};
use crate::daemon::{self, Detached, Readiness, Served, Service, paths};
use crate::fs::package::PackageTree;
use crate::package::{Digest, Package, Progress, digest};

/// Mounts, and returns the exit code when the mount is usable (or, in the foreground, gone).
///
/// # Errors
/// A package that is refused; everything that keeps it from being mounted.
pub fn run(arguments: &MountArgs) -> Result<u8, Failure> {
    let typed = &arguments.package;
    let path =
        typed.canonicalize().map_err(|error| Failure::io("open the package", typed, &error))?;
    let common = parse_common(&arguments.options, path.clone(), arguments.log.clone())?;
    let Common { mut mount, nonempty, log } = common;
    mount.read_only = true;
    let place = (path.as_path(), "package");
    let mountpoint = check_mountpoint(&arguments.mountpoint, place, nonempty)?;
    check_fuse()?;
    let readiness = if arguments.foreground {
        Readiness::foreground()
    } else {
        match daemon::detach().map_err(|error| Failure::daemon(&error))? {
            Detached::Parent(code) => return Ok(code),
            Detached::Child(readiness) => readiness,
        }
    };
    let id = paths::mount_id(&mountpoint);
    start_log(log, arguments.log_level, arguments.foreground, &id)?;
    daemon::raise_limits();
    let opened = prepare(arguments, &path).inspect_err(|failure| log::error!("{failure}"))?;
    let package = opened.package.clone();
    let tree = PackageTree::new(package, geteuid().as_raw(), getegid().as_raw());
    let service = Service {
        tree: Arc::new(tree),
        served: Arc::new(opened),
        keyed: None,
        id,
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

/// A package that is served.
struct Opened {
    package: Arc<Package>,
    path: PathBuf,
    digest: Option<Digest>,
}

/// Opens a package and verifies of it what was asked for, before anything is served.
fn prepare(arguments: &MountArgs, path: &Path) -> Result<Opened, Failure> {
    let source = source(path)?;
    let progress = Progress::default();
    let expected = arguments.expected.digest(&arguments.package)?;
    let found = match expected {
        Some(_) => Some(
            digest(&*source, &progress)
                .map_err(|error| Failure::io("read the package", path, &error))?,
        ),
        None => None,
    };
    if let Some(found) = found {
        check_digest(path, found, expected)?;
    }
    let package = open(path, source, &arguments.limits.limits())?;
    let place = path.display();
    if arguments.verify {
        package
            .verify(threads(), &progress)
            .map_err(|failed| super::verify::failure(path, &failed))?;
    } else {
        package.check_headers(threads()).map_err(|failed| {
            let message = format!("{place} is refused: {}", chain(&failed));
            Failure::new(Exit::PackageRefused, message)
        })?;
    }
    let index = package.index();
    log::info!("{place}: {} entries, {} bytes", index.len() - 1, index.bytes());
    Ok(Opened { package: Arc::new(package), path: path.to_owned(), digest: found })
}

impl Served for Opened {
    fn status_json(&self) -> Value {
        let (index, reads) = (self.package.index(), self.package.statistics());
        json!({
            "kind": "package",
            "package": self.path.to_string_lossy(),
            "sha256": self.digest.map(|digest| digest.to_string()),
            "entries": index.len() - 1,
            "bytes": index.bytes(),
            "cache": {
                "hits": reads.hits,
                "misses": reads.misses,
                "read_bytes": reads.read_bytes,
                "inflated_bytes": reads.inflated_bytes,
                "seek_points": reads.points,
                "memory_bytes": reads.memory_bytes,
            },
        })
    }

    fn sync(&self) -> Result<(), String> {
        Ok(())
    }

    fn close(&self) -> Result<(), String> {
        Ok(())
    }
}
