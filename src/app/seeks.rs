//! Seek points of packages, kept in a volume from mount to mount.

use std::io::{self, BufWriter};
use std::sync::Arc;

use super::fetch::VolumeSource;
use super::files::Files;
use crate::fs;
use crate::package::Package;

/// Bytes that are written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Has a package use the seek points in the file `name`. If there are none, or none that are of
/// use, reading does without them.
pub fn use_seek_points(files: &Files, name: &str, package: &Package) {
    let used = || {
        let Some(file) = files.open(name).map_err(io::Error::other)? else { return Ok(()) };
        let source = VolumeSource::new(Arc::new(file)).map_err(io::Error::other)?;
        package.use_seek_points(Arc::new(source))
    };
    if let Err(error) = used() {
        log::info!("the seek points of an earlier mount are not used: {error}");
    }
}

/// Writes the seek points of a package into the file `name`, if it has some that are not there. A
/// failure costs time when it is read next, and nothing else.
pub fn keep_seek_points(files: &Files, name: &str, package: &Package) {
    let fresh = format!("{name}.new");
    let keep = || -> io::Result<()> {
        let to_io = |error: fs::Error| io::Error::other(error);
        let open = || -> io::Result<Box<dyn io::Write>> {
            let writer = files.writer(&fresh).map_err(to_io)?;
            Ok(Box::new(BufWriter::with_capacity(CHUNK_BYTES, writer)))
        };
        if package.keep_seek_points(open)? {
            files.rename(&fresh, name).map_err(to_io)?;
        }
        Ok(())
    };
    if let Err(error) = keep() {
        log::warn!("seek points are not kept: {error}");
        let _ = files.remove(&fresh);
    }
}
