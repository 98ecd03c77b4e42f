//! `passphrase:[LABEL]`: the KEK is derived from a passphrase with Argon2id (RFC 9106).
//!
//! The passphrase comes from `--passphrase-file`, a systemd credential or the terminal, never from
//! the command line or the environment, which other users can read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use argon2::{Argon2, Block, Params, Version};
use parking_lot::Mutex;
use zeroize::{Zeroize, Zeroizing};

use super::file;
use super::{Binding, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped, file_error};
use crate::crypto::{Secret, random, wrap};
use crate::format::config::{Algorithm, Argon2Parameters, KekReference};

/// Longest passphrase that is read, in bytes.
const PASSPHRASE_BYTES_MAX: usize = 4096;
/// Name of the systemd credential (`LoadCredential=`, systemd.exec(5)).
const CREDENTIAL: &str = "atrest.passphrase";

/// Cost of the passphrases that are set from now on; volumes remember theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Cost {
    /// RFC 9106 section 4, second recommended option: about 0.2 s.
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 }
    }
}

/// The provider of one passphrase.
struct PassphraseProvider {
    uri: String,
    cost: Cost,
    /// Where the passphrase that unwraps comes from.
    current: Source,
    /// Where the passphrase that wraps comes from.
    new: Source,
    /// What was derived last, so that the checks of a mounted volume neither ask nor derive again.
    derived: Mutex<Option<(Argon2Parameters, Secret)>>,
}

enum Source {
    File(PathBuf),
    Terminal,
    None,
}

/// Makes the provider for `passphrase:` or `passphrase:LABEL`; [`super::Registry`] calls it.
///
/// # Errors
/// `Configuration` if the label is not printable ASCII. No passphrase is asked for yet.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    if uri.len() > 64 + "passphrase:".len() || !uri.bytes().all(|b| b.is_ascii_graphic()) {
        let problem = "labels of passphrases have up to 64 printable ASCII characters".to_owned();
        return Err(KekError::new(KekErrorKind::Configuration { problem }, "passphrase:", ""));
    }
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let source = |file: Option<&PathBuf>| Source::find(file, credentials.as_deref(), options);
    let current = options.passphrase_file.as_ref();
    Ok(Arc::new(PassphraseProvider {
        uri: uri.to_owned(),
        cost: options.passphrase_cost,
        current: source(current),
        new: source(options.new_passphrase_file.as_ref().or(current)),
        derived: Mutex::new(None),
    }))
}

impl Source {
    fn find(file: Option<&PathBuf>, credentials: Option<&Path>, options: &ProviderOptions) -> Self {
        let credential = credentials.map(|directory| directory.join(CREDENTIAL));
        match (file, credential.filter(|path| path.exists())) {
            (Some(path), _) => Self::File(path.clone()),
            (None, Some(path)) => Self::File(path),
            (None, None) if options.interactive => Self::Terminal,
            (None, None) => Self::None,
        }
    }
}

impl PassphraseProvider {
    fn read(&self, source: &Source, twice: bool) -> Result<Secret, KekError> {
        let passphrase = match source {
            Source::File(path) => self.read_file(path)?,
            Source::Terminal => self.ask(twice)?,
            Source::None => {
                return Err(self.configuration(
                    "no passphrase: give --passphrase-file, or run on a terminal".to_owned(),
                ));
            }
        };
        match passphrase.len() {
            0 => Err(self.configuration("the passphrase is empty".to_owned())),
            _ => Ok(passphrase),
        }
    }

    /// One trailing line feed is not part of the passphrase.
    fn read_file(&self, path: &Path) -> Result<Secret, KekError> {
        let what = ("read the passphrase from", "passphrase");
        file::read_line(path, what, PASSPHRASE_BYTES_MAX)
            .map_err(|error| file_error(error, &self.uri, ""))
    }

    fn ask(&self, twice: bool) -> Result<Secret, KekError> {
        let prompt = |text: String| {
            rpassword::prompt_password(text).map(Zeroizing::new).map_err(|source| {
                let problem = "cannot ask for the passphrase; give --passphrase-file".to_owned();
                self.configuration(problem).caused_by(source)
            })
        };
        let what = if twice { "New passphrase" } else { "Passphrase" };
        let label = match self.label() {
            "" => String::new(),
            label => format!(" \"{label}\""),
        };
        let passphrase = prompt(format!("{what}{label}: "))?;
        if twice && *prompt(format!("Repeat{label}: "))? != *passphrase {
            return Err(self.configuration("the two passphrases differ".to_owned()));
        }
        if passphrase.len() > PASSPHRASE_BYTES_MAX {
            return Err(self.configuration("the passphrase is too long".to_owned()));
        }
        Ok(Secret::from_fn(passphrase.len(), |bytes| bytes.copy_from_slice(passphrase.as_bytes())))
    }

    fn label(&self) -> &str {
        self.uri.split_once(':').map_or("", |(_, label)| label)
    }

    fn configuration(&self, problem: String) -> KekError {
        KekError::new(KekErrorKind::Configuration { problem }, &self.uri, "")
    }

    fn derive(
        &self,
        passphrase: &Secret,
        parameters: &Argon2Parameters,
    ) -> Result<Secret, KekError> {
        derive(passphrase, parameters).map_err(|error| {
            self.configuration("cannot derive the key from the passphrase".into()).caused_by(error)
        })
    }
}

impl KekProvider for PassphraseProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::A256Kw]
    }

    fn wrap(&self, _: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let mut salt = [0; 16];
        random::fill(&mut salt);
        let Cost { memory_kib, passes, lanes } = self.cost;
        let parameters = Argon2Parameters { memory_kib, passes, lanes, salt };
        if !parameters.is_allowed() {
            return Err(self.configuration("the cost of the passphrase is out of bounds".into()));
        }
        let kek = self.derive(&self.read(&self.new, true)?, &parameters)?;
        let blobs = secrets.iter().map(|secret| wrap::wrap(&kek, secret)).collect();
        *self.derived.lock() = Some((parameters, kek));
        let kek = KekReference {
            key_id: "passphrase".to_owned(),
            // Tells one setting of the passphrase from the next in audit records.
            key_version: salt[..4].iter().map(|byte| format!("{byte:02x}")).collect(),
            algorithm: Algorithm::A256Kw,
            parameters: Some(parameters),
        };
        Ok(Wrapped { kek, blobs })
    }

    fn unwrap(&self, _: &Binding, kek: &KekReference, wrapped: &[u8]) -> Result<Secret, KekError> {
        let Some(parameters) = kek.parameters else {
            let reason = "the slot has no Argon2id parameters".to_owned();
            return Err(KekError::new(KekErrorKind::BadRequest { reason }, &self.uri, ""));
        };
        if !parameters.is_allowed() {
            let reason = "the cost of the passphrase is out of bounds".to_owned();
            return Err(KekError::new(KekErrorKind::BadRequest { reason }, &self.uri, ""));
        }
        let mut derived = self.derived.lock();
        let key = match derived.take() {
            Some((known, key)) if known == parameters => key,
            _ => self.derive(&self.read(&self.current, false)?, &parameters)?,
        };
        let secret = wrap::unwrap(&key, wrapped)
            .map_err(|_| KekError::new(KekErrorKind::Integrity, &self.uri, ""))?;
        // A wrong passphrase is forgotten, so that the next call asks again.
        *derived = Some((parameters, key));
        Ok(secret)
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        Ok(None)
    }
}

/// `Argon2id(passphrase, salt)`, 256 bits.
fn derive(passphrase: &Secret, parameters: &Argon2Parameters) -> Result<Secret, argon2::Error> {
    let Argon2Parameters { memory_kib, passes, lanes, salt } = parameters;
    let params = Params::new(*memory_kib, *passes, *lanes, Some(32))?;
    let mut memory = vec![Block::new(); params.block_count()];
    let argon2 = Argon2::new(argon2::Algorithm::Argon2id, Version::V0x13, params);
    let key = Secret::try_from_fn(32, |output| {
        argon2.hash_password_into_with_memory(passphrase.expose(), salt, output, &mut memory)
    });
    memory.iter_mut().for_each(Zeroize::zeroize);
    key
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    const BINDING: Binding = Binding { volume_id: crate::format::VolumeId([7; 16]) };

    /// The file of the command line goes before systemd's credential, that before the terminal,
    /// and without any of them nothing is asked.
    #[test]
    fn order_of_sources() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = PathBuf::from("/given");
        let find = |file: Option<&PathBuf>, interactive| {
            let options = ProviderOptions { interactive, ..ProviderOptions::default() };
            Source::find(file, Some(directory.path()), &options)
        };
        assert!(matches!(find(None, false), Source::None));
        assert!(matches!(find(None, true), Source::Terminal));
        let credential = directory.path().join(CREDENTIAL);
        std::fs::write(&credential, "from systemd").expect("writable");
        assert!(matches!(find(None, true), Source::File(path) if path == credential));
        assert!(matches!(find(Some(&file), true), Source::File(path) if path == file));
    }

    /// Parameters out of bounds are refused before any memory is taken for them.
    #[test]
    fn costs_are_bounded() {
        let options = ProviderOptions::default();
        let provider = from_uri("passphrase:", &options).expect("no label is allowed");
        let kek = |memory_kib, passes, lanes| KekReference {
            key_id: "passphrase".into(),
            key_version: "1".into(),
            algorithm: Algorithm::A256Kw,
            parameters: Some(Argon2Parameters { memory_kib, passes, lanes, salt: [0; 16] }),
        };
        let default = Cost::default();
        let good = kek(default.memory_kib, default.passes, default.lanes).parameters;
        assert!(good.is_some_and(|parameters| parameters.is_allowed()));
        for kek in [kek(u32::MAX, 1, 1), kek(8191, 1, 1), kek(8192, 0, 1), kek(8192, 17, 1)] {
            assert!(kek.parameters.is_some_and(|parameters| !parameters.is_allowed()));
            let error =
                provider.unwrap(&BINDING, &kek, &[0; 40]).err().expect("there is no passphrase");
            assert!(matches!(error.kind(), KekErrorKind::BadRequest { .. }), "{error}");
        }
        let none = KekReference { parameters: None, ..kek(8192, 1, 1) };
        let error =
            provider.unwrap(&BINDING, &none, &[0; 40]).err().expect("nothing to derive with");
        assert!(matches!(error.kind(), KekErrorKind::BadRequest { .. }));
    }

    /// A volume's checks derive once: the second unwrap works after the file is gone. A wrong
    /// passphrase is not remembered.
    #[test]
    fn derives_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("passphrase");
        let write = |text: &str| {
            _ = std::fs::remove_file(&path);
            let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            std::io::Write::write_all(&mut options.expect("writable"), text.as_bytes())
                .expect("writable");
        };
        let options = ProviderOptions {
            passphrase_file: Some(path.clone()),
            passphrase_cost: Cost { memory_kib: 8192, passes: 1, lanes: 1 },
            ..ProviderOptions::default()
        };
        let new = || from_uri("passphrase:label", &options).expect("the label is allowed");
        write("right");
        let secret = random::secret(32);
        let Wrapped { kek, blobs } = new().wrap(&BINDING, &[&secret]).expect("readable");
        let provider = new();
        write("wrong");
        let error =
            provider.unwrap(&BINDING, &kek, &blobs[0]).err().expect("the passphrase is wrong");
        assert!(matches!(error.kind(), KekErrorKind::Integrity));
        write("right");
        assert!(
            provider.unwrap(&BINDING, &kek, &blobs[0]).expect("it is right now").is_same(&secret)
        );
        std::fs::remove_file(&path).expect("it exists");
        assert!(
            provider.unwrap(&BINDING, &kek, &blobs[0]).expect("it was derived").is_same(&secret)
        );
    }
}
