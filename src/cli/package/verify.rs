//! `atrest package verify`

use std::path::Path;

use serde_json::{Map, json};

use super::{VerifyArgs, check_digest, open, source, threads};
use crate::cli::exit::Exit;
use crate::cli::hint::{Failure, chain};
use crate::cli::status;
use crate::package::{Failed, Progress, digest};

/// Verifies, and prints what the package is.
///
/// # Errors
/// A package that is refused, or that is not what it says.
pub fn run(arguments: &VerifyArgs) -> Result<(), Failure> {
    let path = &arguments.package;
    let source = source(path)?;
    let expected = arguments.expected.digest(path)?;
    let progress = Progress::default();
    let found = digest(&*source, &progress)
        .map_err(|error| Failure::io("read the package", path, &error))?;
    check_digest(path, found, expected)?;
    let package = open(path, source, &arguments.limits.limits())?;
    package.verify(threads(), &progress).map_err(|failed| failure(path, &failed))?;
    let index = package.index();
    let report = [
        ("package", json!(path.to_string_lossy())),
        ("sha256", json!(found.to_string())),
        ("entries", json!(index.len() - 1)),
        ("members", json!(index.members().len())),
        ("bytes", json!(index.bytes())),
    ];
    let report = report.map(|(name, value)| (name.to_owned(), value));
    status::print(&Map::from_iter(report), arguments.json);
    Ok(())
}

/// Members that are not what they should be.
pub fn failure(path: &Path, failed: &[Failed]) -> Failure {
    let message = format!("{} is damaged: {} members fail", path.display(), failed.len());
    let lines = failed.iter().map(chain_of);
    lines.fold(Failure::new(Exit::PackageMismatch, message), Failure::hint)
}

fn chain_of(failed: &Failed) -> String {
    chain(failed)
}
