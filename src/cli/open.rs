//! The seam to the volume: making, opening and checking one.

use std::path::Path;
use std::sync::Arc;

use super::args::{FsckArgs, InitArgs, MountArgs};
use super::exit::Exit;
use super::hint::Failure;
use crate::daemon::{Options, VolumeControl};
use crate::fs::Tree;
use crate::key::ProviderOptions;

/// A volume that is ready to be served.
pub struct OpenVolume {
    /// Its filesystem.
    pub tree: Arc<dyn Tree>,
    /// Its control.
    pub control: Arc<dyn VolumeControl>,
}

/// Locks the volume, unwraps its keys and opens it, to be mounted at `mountpoint`.
///
/// # Errors
/// Everything that keeps it from being opened.
pub fn open(
    volume: &Path,
    _mountpoint: Option<&Path>,
    options: &ProviderOptions,
    _mount: &Options,
    _arguments: &MountArgs,
) -> Result<OpenVolume, Failure> {
    let _opened = super::keys::open(volume, options)?;
    Err(unavailable())
}

/// Makes a volume.
///
/// # Errors
/// Everything that keeps it from being made.
pub fn create(_arguments: &InitArgs) -> Result<(), Failure> {
    Err(unavailable())
}

/// Checks a volume that is not mounted.
///
/// # Errors
/// What is damaged, or keeps it from being checked.
pub fn check(_arguments: &FsckArgs) -> Result<(), Failure> {
    Err(unavailable())
}

fn unavailable() -> Failure {
    Failure::new(Exit::Other, "this build has no volumes")
}
