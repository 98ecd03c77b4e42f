//! `atrest package mount`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{getegid, geteuid};
use serde_json::{Map, Value, json};

use super::beside::{self, Beside};
use super::{MountArgs, check_digest, open, source, threads};
use crate::cli::exit::Exit;
use crate::cli::hint::{Failure, chain};
use crate::cli::mount::{check_fuse, check_mountpoint, start_log};
use crate::cli::options::{Common, parse_common};
use crate::daemon::{self, Detached, Readiness, Served, Service, paths};
use crate::fs::graft::{GraftTree, PlantError, plant};
use crate::fs::package::PackageTree;
use crate::fs::{self, Caller, Tree};
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
    mount.read_only = arguments.state.writable.is_empty();
    let place = (path.as_path(), "package");
    let mountpoint = check_mountpoint(&arguments.mountpoint, place, nonempty)?;
    check_fuse()?;
    let state = match &arguments.state.state {
        Some(directory) => Some(beside::Place::prepare(&arguments.state, directory)?),
        None => None,
    };
    let id = match &state {
        Some(state) => {
            check_mountpoint(&mountpoint, (&state.path, "state"), nonempty)?;
            // Whoever asks for the volume finds the mount by it.
            mount.source.clone_from(&state.path);
            state.id.clone()
        }
        None => paths::mount_id(&mountpoint),
    };
    let readiness = if arguments.foreground {
        Readiness::foreground()
    } else {
        match daemon::detach().map_err(|error| Failure::daemon(&error))? {
            Detached::Parent(code) => return Ok(code),
            Detached::Child(readiness) => readiness,
        }
    };
    start_log(log, arguments.log_level, arguments.foreground, &id)?;
    daemon::raise_limits();
    let prepared = prepare(arguments, &path, state, &mountpoint);
    let (opened, tree) = prepared.inspect_err(|failure| log::error!("{failure}"))?;
    let opened = Arc::new(opened);
    let keyed = Beside::keyed(&opened);
    let served = opened.clone();
    let service = Service { tree, served, keyed, id, mountpoint, options: mount, companion: None };
    daemon::serve(service, readiness).map_err(|error| {
        let failure = Failure::daemon(&error);
        log::error!("{failure}");
        failure
    })?;
    Ok(0)
}

/// A package that is served.
pub struct Opened {
    package: Arc<Package>,
    path: PathBuf,
    digest: Option<Digest>,
    writable: Vec<String>,
    pub(super) beside: Option<Beside>,
}

/// Opens a package and verifies of it what was asked for, before anything is served; and what is
/// beside it.
fn prepare(
    arguments: &MountArgs,
    path: &Path,
    state: Option<beside::Place>,
    mountpoint: &Path,
) -> Result<(Opened, Arc<dyn Tree>), Failure> {
    let (package, digest) = verified(arguments, path)?;
    let package = Arc::new(package);
    let tree = PackageTree::new(package.clone(), geteuid().as_raw(), getegid().as_raw());
    let writable = arguments.state.writable.clone();
    let beside = match state {
        Some(place) => Some(Beside::kept(place, &arguments.state, mountpoint)?),
        None if !writable.is_empty() => Some(Beside::thrown_away()?),
        None => None,
    };
    let opened = Opened { package, path: path.to_owned(), digest, writable, beside };
    let Some(beside) = &opened.beside else { return Ok((opened, Arc::new(tree))) };
    beside.use_seek_points(&opened.package);
    if opened.writable.is_empty() {
        return Ok((opened, Arc::new(tree)));
    }
    let caller = Caller { uid: geteuid().as_raw(), gid: getegid().as_raw(), umask: 0 };
    match plant(&tree, &*beside.tree, caller, &opened.writable) {
        Ok(grafts) => {
            let tree = GraftTree::new(tree, beside.tree.clone(), grafts);
            Ok((opened, Arc::new(tree)))
        }
        Err(error) => {
            if let Err(error) = beside.close() {
                log::error!("it was not closed properly: {error}");
            }
            Err(not_planted(&error))
        }
    }
}

fn not_planted(error: &PlantError) -> Failure {
    let exit = match error {
        PlantError::Path { .. } => Exit::Usage,
        PlantError::Copy { source: fs::Error::NoSpace, .. } => Exit::NoSpace,
        PlantError::Copy { .. } => Exit::Other,
    };
    Failure::new(exit, format!("--writable: {}", chain(error)))
}

/// The package, and its digest if that was asked for.
fn verified(arguments: &MountArgs, path: &Path) -> Result<(Package, Option<Digest>), Failure> {
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
    Ok((package, found))
}

impl Served for Opened {
    fn status_json(&self) -> Value {
        let (index, reads) = (self.package.index(), self.package.statistics());
        let mut status = self.beside.as_ref().map_or_else(Map::new, Beside::status);
        let own = json!({
            "kind": "package",
            "package": self.path.to_string_lossy(),
            "sha256": self.digest.map(|digest| digest.to_string()),
            "entries": index.len() - 1,
            "bytes": index.bytes(),
            "writable": self.writable,
            "writable_kept": self.beside.as_ref().is_some_and(Beside::is_kept),
            "cache": {
                "hits": reads.hits,
                "misses": reads.misses,
                "hit_percent": reads.hit_percent(),
                "read_bytes": reads.read_bytes,
                "inflated_bytes": reads.inflated_bytes,
                "seek_points": reads.points,
                "memory_bytes": reads.memory_bytes,
            },
        });
        if let Value::Object(own) = own {
            status.extend(own);
        }
        Value::Object(status)
    }

    fn sync(&self) -> Result<(), String> {
        self.beside.as_ref().map_or(Ok(()), Beside::sync)
    }

    fn close(&self) -> Result<(), String> {
        let Some(beside) = &self.beside else { return Ok(()) };
        beside.keep_seek_points(&self.package);
        beside.close()
    }
}
