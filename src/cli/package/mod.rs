//! `atrest package`

mod beside;
pub mod manifest;
mod mount;
mod verify;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::app::{self, PackageListArgs, PackageRollbackArgs};
use super::args::KeyArgs;
use super::exit::Exit;
use super::hint::{Failure, chain};
use crate::package::{Digest, FileSource, Limits, Package, Refusal, Source};
use mount::Opened;

/// `atrest package`
#[derive(Debug, Subcommand)]
pub enum PackageCommand {
    /// Mount a ZIP package, read-only
    #[command(after_help = "Examples:\n  atrest package mount site.zip /srv/wwwroot\n  \
        atrest package mount site.zip /srv/wwwroot --expect-sha256 HEX\n  \
        atrest package mount site.zip /srv/wwwroot --manifest site.sha256 --key KEY.pub\n  \
        atrest package mount site.zip /srv/wwwroot --writable App_Data --state /var/lib/site")]
    Mount(Box<MountArgs>),
    /// Read a package once: every member against its CRC-32, and the SHA-256 of the whole
    #[command(after_help = "Example:\n  atrest package verify site.zip")]
    Verify(VerifyArgs),
    /// Show the packages that an app has
    #[command(after_help = "Example:\n  atrest package list --home /home/web")]
    List(PackageListArgs),
    /// Have an app go back to the package before the one that it serves
    #[command(after_help = "Examples:\n  atrest package rollback --home /home/web\n  \
        atrest package rollback --undo --home /home/web")]
    Rollback(PackageRollbackArgs),
}

/// `atrest package mount`
#[derive(Args, Debug)]
pub struct MountArgs {
    /// The ZIP archive
    pub package: PathBuf,
    /// Empty directory where its members appear
    pub mountpoint: PathBuf,
    /// Read every member once before anything is served
    #[arg(long)]
    pub verify: bool,
    /// Mount options, comma-separated; see the manual
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Do not fork; end when it is unmounted
    #[arg(short, long)]
    pub foreground: bool,
    /// Log to FILE, "journal", "syslog" or "stderr"
    #[arg(long, visible_alias = "log-file", value_name = "WHERE")]
    pub log: Option<PathBuf>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub expected: ExpectedArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub limits: LimitArgs,
}

/// What of a mount can be written, and what is kept from one to the next.
#[derive(Args, Debug)]
pub struct StateArgs {
    /// Let this directory of the package be written to; what is written is encrypted, and thrown
    /// away at the unmount unless there is --state. Given again: another
    #[arg(long, value_name = "PATH")]
    pub writable: Vec<String>,
    /// Keep in this volume, made if missing, what is written, and where reading can begin inside of
    /// members
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,
    /// Key-encryption key of a --state that is made
    #[arg(long, value_name = "URI", default_value = "local:", requires = "state")]
    pub kek: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
}

/// `atrest package verify`
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The ZIP archive
    pub package: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub expected: ExpectedArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub limits: LimitArgs,
}

/// What a package has to be.
#[derive(Args, Clone, Debug, Default)]
pub struct ExpectedArgs {
    /// Refuse the package unless this is its SHA-256
    #[arg(long, value_name = "HEX", conflicts_with = "manifest")]
    pub expect_sha256: Option<Digest>,
    /// Refuse the package unless its SHA-256 is in this file, as sha256sum writes it, and that is
    /// signed: FILE.minisig, by minisign
    #[arg(long, value_name = "FILE", requires = "key")]
    pub manifest: Option<PathBuf>,
    /// Public key of who signs manifests
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub key: Option<PathBuf>,
}

impl ExpectedArgs {
    /// The digest that the package must have, if one is asked for.
    ///
    /// # Errors
    /// A manifest that says nothing of it, or that nobody vouches for.
    pub fn digest(&self, package: &Path) -> Result<Option<Digest>, Failure> {
        match (&self.manifest, &self.key) {
            (Some(manifest), Some(key)) => manifest::digest(manifest, key, package).map(Some),
            _ => Ok(self.expect_sha256),
        }
    }
}

/// What a package may ask for.
#[derive(Args, Clone, Debug)]
pub struct LimitArgs {
    /// Memory for decompressed contents and seek points (64M, 1G)
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = bytes)]
    pub cache_bytes: u64,
    /// Most entries of a package
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().entries_max)]
    pub entries_max: u64,
    /// Most bytes of a central directory
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = bytes)]
    pub directory_bytes_max: u64,
    /// Most bytes of all members, decompressed
    #[arg(long, value_name = "BYTES", default_value = "256G", value_parser = bytes)]
    pub total_bytes_max: u64,
    /// How many times its compressed size a member of more than 16 MiB may have
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().ratio_max)]
    pub ratio_max: u64,
    /// Serve names that differ in case only
    #[arg(long)]
    pub allow_case_collisions: bool,
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        Limits {
            entries_max: self.entries_max,
            directory_bytes_max: self.directory_bytes_max,
            total_bytes_max: self.total_bytes_max,
            ratio_max: self.ratio_max,
            allow_case_collisions: self.allow_case_collisions,
            cache_bytes: self.cache_bytes.max(Limits::CACHE_BYTES_MIN),
        }
    }
}

/// Runs a package command and returns the exit code.
///
/// # Errors
/// A package that is refused; everything that keeps it from being mounted.
pub fn run(command: &PackageCommand) -> Result<u8, Failure> {
    match command {
        PackageCommand::Mount(arguments) => mount::run(arguments),
        PackageCommand::Verify(arguments) => verify::run(arguments).map(|()| 0),
        PackageCommand::List(arguments) => app::list(arguments).map(|()| 0),
        PackageCommand::Rollback(arguments) => app::rollback(arguments).map(|()| 0),
    }
}

/// A number of bytes: `4096`, `64K`, `256M`, `1G`, `1T`.
///
/// # Errors
/// What is wrong with it.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 =
        digits.parse().map_err(|_| "not a number of bytes; write it like 64M or 1G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is too large".to_owned())
}

/// Opens the file of a package.
fn source(path: &Path) -> Result<Arc<dyn Source>, Failure> {
    let opened = File::open(path).and_then(FileSource::new);
    let source = opened.map_err(|error| Failure::io("open the package", path, &error))?;
    Ok(Arc::new(source))
}

/// Opens a package.
fn open(path: &Path, source: Arc<dyn Source>, limits: &Limits) -> Result<Package, Failure> {
    Package::open(source, limits).map_err(|refusal| refused(path, &refusal))
}

/// A package that is not served.
pub fn refused(path: &Path, refusal: &Refusal) -> Failure {
    let message = format!("{} is refused: {}", path.display(), chain(refusal));
    let failure = Failure::new(Exit::PackageRefused, message);
    match refusal {
        Refusal::Entries { .. } => failure.hint("To allow more: --entries-max"),
        Refusal::DirectoryBytes { .. } => failure.hint("To allow more: --directory-bytes-max"),
        Refusal::TotalBytes { .. } => failure.hint("To allow more: --total-bytes-max"),
        Refusal::Ratio { .. } => failure.hint("To allow more: --ratio-max"),
        Refusal::Collision { problem, .. } if problem.contains("case") => {
            failure.hint("To serve both: --allow-case-collisions")
        }
        Refusal::Prefix(_) => failure.hint("To make its offsets count it: zip -A"),
        _ => failure,
    }
}

/// Refuses a package whose digest is not the one that is expected.
fn check_digest(path: &Path, found: Digest, expected: Option<Digest>) -> Result<(), Failure> {
    match expected {
        Some(expected) if expected != found => {
            let message = format!("{} is not the package that is expected", path.display());
            Err(Failure::new(Exit::PackageMismatch, message)
                .hint(format!("its SHA-256: {found}"))
                .hint(format!("expected:    {expected}")))
        }
        _ => Ok(()),
    }
}

/// Threads for reading all of a package: more than a few wait for the disk.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64K"), Ok(64 << 10));
        assert_eq!(bytes("256M"), Ok(256 << 20));
        assert_eq!(bytes("1g"), Ok(1 << 30));
        for wrong in ["", "M", "-1", "1X", "1.5G", "99999999999T", "ü"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
