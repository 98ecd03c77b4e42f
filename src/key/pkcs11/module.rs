//! The shared library of a token's maker: loaded once, initialised once in each process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use parking_lot::Mutex;

use super::error::Failure;
use super::uri::Query;
use crate::crypto::Secret;

/// Names the library when no URI of the operator does.
pub(super) const MODULE_VARIABLE: &str = "ATREST_PKCS11_MODULE";
/// Where `module-name` is looked for: p11-kit's directory of modules, and where Debian and Fedora
/// put those that have one of their own.
const DIRECTORIES: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu/pkcs11",
    "/usr/lib/aarch64-linux-gnu/pkcs11",
    "/usr/lib64/pkcs11",
    "/usr/lib/pkcs11",
    "/usr/local/lib/pkcs11",
    "/usr/lib/softhsm",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
];

/// A loaded library. It stays for the life of the process: its state is the process's.
pub(super) struct Module {
    path: PathBuf,
    pkcs11: Pkcs11,
    /// The process that it is initialised in.
    process: Mutex<Option<u32>>,
    /// PINs that tokens refused, by token: none is tried twice, or the token would be locked.
    refused: Mutex<Vec<(String, Secret)>>,
}

static MODULES: Mutex<Vec<&'static Module>> = Mutex::new(Vec::new());

/// The library that the operator named: in a URI, else in the environment.
///
/// # Errors
/// What to do.
pub(super) fn locate(query: &Query) -> Result<PathBuf, String> {
    if let Some(path) = &query.module_path {
        return Ok(path.clone());
    }
    if let Some(name) = &query.module_name {
        let files = [format!("{name}.so"), format!("lib{name}.so")];
        let mut found = DIRECTORIES.iter().flat_map(|directory| {
            files.iter().map(|file| Path::new(directory).join(file)).filter(|path| path.exists())
        });
        return found.next().ok_or_else(|| {
            format!("no PKCS #11 module {name:?} is installed; give module-path=/PATH of it")
        });
    }
    match std::env::var_os(MODULE_VARIABLE).map(PathBuf::from) {
        Some(path) if path.is_absolute() => Ok(path),
        Some(_) => Err(format!("{MODULE_VARIABLE} has to be an absolute path")),
        None => Err(format!(
            "which PKCS #11 module? Give it with the key, as in \
             'pkcs11:…?module-path=/usr/lib/…/module.so', or in {MODULE_VARIABLE}"
        )),
    }
}

/// Loads `path`, or finds it loaded.
///
/// # Errors
/// `Configuration`: not there, not a module, or others could have written it.
pub(super) fn load(path: &Path) -> Result<&'static Module, Failure> {
    let refuse = |problem: String| Failure::configuration(format!("{}: {problem}", path.display()));
    let path =
        path.canonicalize().map_err(|error| refuse(format!("no PKCS #11 module: {error}")))?;
    let mut modules = MODULES.lock();
    if let Some(module) = modules.iter().find(|module| module.path == path) {
        return Ok(module);
    }
    let metadata = fs::metadata(&path).map_err(|error| refuse(error.to_string()))?;
    let owner = metadata.uid();
    if !metadata.is_file() || metadata.mode() & 0o022 != 0 {
        return Err(refuse("not loaded: others than its owner can write it".to_owned()));
    }
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(refuse(format!("not loaded: it belongs to user {owner}")));
    }
    let pkcs11 = Pkcs11::new(&path)
        .map_err(|error| refuse("this is not a PKCS #11 module".to_owned()).caused_by(error))?;
    let module = Module { path, pkcs11, process: Mutex::new(None), refused: Mutex::default() };
    let module: &'static Module = Box::leak(Box::new(module));
    modules.push(module);
    Ok(module)
}

impl Module {
    /// Where it was loaded from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The library, initialised in this process.
    ///
    /// A child of fork(2) has to initialise again (PKCS #11 3.1, section 5.4): sessions, handles
    /// and the login of its parent are not its own. A library that does not notice the fork says
    /// that it is initialised; it is then finalised first.
    ///
    /// # Errors
    /// That of `C_Initialize`.
    pub(super) fn ready(&self) -> Result<&Pkcs11, Failure> {
        let mut process = self.process.lock();
        let this = std::process::id();
        if *process == Some(this) {
            return Ok(&self.pkcs11);
        }
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        match self.pkcs11.initialize(arguments) {
            Ok(()) => {}
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) if process.is_some() => {
                self.pkcs11.clone().finalize()?;
                self.pkcs11.initialize(arguments)?;
            }
            // By somebody else in this process, who shares it then.
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
        *process = Some(this);
        Ok(&self.pkcs11)
    }

    /// Whether `token` has refused `pin` in this process.
    pub(super) fn has_refused(&self, token: &str, pin: &Secret) -> bool {
        self.refused.lock().iter().any(|(known, refused)| known == token && refused.is_same(pin))
    }

    /// Remembers that `token` has refused `pin`.
    pub(super) fn remember_refused(&self, token: &str, pin: Secret) {
        self.refused.lock().push((token.to_owned(), pin));
    }
}
