//! From what the settings want to a package in the store that was verified.

use std::fs::File as HostFile;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::download::{self, Outcome, Rules, Sink as _, Source, Validator};
use super::error::AppError;
use super::files::File;
use super::sniff::{self, Kind};
use super::store::{Store, Stored};
use super::wanted::{Request, Wanted};
use crate::package::{self, Limits, Package, Progress};

/// A file that was changed this recently may still be being written.
const QUIET: Duration = Duration::from_secs(2);
/// How long to wait until a file is no longer being written.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to look.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes copied at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Who says which SHA-256 a package must have.
pub trait Vouch: std::fmt::Debug + Send + Sync {
    /// That of the package of this name.
    ///
    /// # Errors
    /// Nobody who is trusted says anything of it; in words.
    fn digest(&self, name: &str) -> Result<String, String>;
}

/// What packages may be, and how they are had.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Of downloads, and the largest package.
    pub rules: Rules,
    /// Of what is in a package.
    pub limits: Limits,
    /// Threads that verify.
    pub threads: usize,
    /// Without whom no package is served.
    pub vouch: Option<Arc<dyn Vouch>>,
}

/// A package that is in the store and may be served.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Which.
    pub stored: Stored,
    /// Why it may not be the newest one.
    pub warning: Option<String>,
    /// When the signature of its URL ends.
    pub expires: Option<String>,
}

/// Who shows how far it is, bytes so far and of how many, and says whether to go on.
pub type OnProgress<'a> = dyn FnMut(u64, Option<u64>) -> bool + 'a;

/// The package that `request` wants: the newest there is, downloaded or copied if the store has it
/// not, and verified before it is anything. `digest` is the SHA-256 that it must have; `in_use` the
/// package that must stay in the store.
///
/// When its source or the vault cannot be asked, the last one that the same setting led to.
///
/// # Errors
/// [`AppError`].
pub fn fetch(
    store: &Store,
    policy: &Policy,
    request: &Request,
    digest: Option<&str>,
    in_use: Option<&str>,
    progress: &mut OnProgress<'_>,
) -> Result<Fetched, AppError> {
    let job = Job { store, policy, request, digest, in_use };
    let (found, expires) = match &request.wanted {
        Wanted::Url(source) => (job.download(source, progress), source.expires()),
        Wanted::Path(path) => (job.import(path, progress), None),
        Wanted::Unknown { problem } => {
            let setting = super::wanted::SETTING.to_owned();
            let problem = problem.clone();
            (Err(AppError::Reference { setting, problem, is_outage: true }), None)
        }
    };
    let (stored, warning) = match found {
        Ok(stored) => (stored, None),
        Err(error) if error.is_outage() => {
            let last = store.newest_for_setting(&request.setting);
            let Some(last) = last.filter(|last| job.fits_setting(&last.sha256)) else {
                return Err(error);
            };
            (last, Some(format!("{error}; the last package that was verified is served")))
        }
        Err(error) => return Err(error),
    };
    let stored = store.to_serve(&stored);
    check_vouched(policy, &stored)?;
    Ok(Fetched { stored, warning, expires })
}

/// Refuses a package that came when nobody had to vouch for it, if somebody has to now.
///
/// # Errors
/// [`AppError::Refused`].
pub fn check_vouched(policy: &Policy, stored: &Stored) -> Result<(), AppError> {
    if policy.vouch.is_none() || stored.vouched {
        return Ok(());
    }
    let problem = "no signed manifest named it when it was fetched".to_owned();
    Err(AppError::Refused { source_name: stored.source.clone(), problem })
}

struct Job<'a> {
    store: &'a Store,
    policy: &'a Policy,
    request: &'a Request,
    digest: Option<&'a str>,
    in_use: Option<&'a str>,
}

impl Job<'_> {
    fn fits_setting(&self, sha256: &str) -> bool {
        self.digest.is_none_or(|digest| digest.eq_ignore_ascii_case(sha256))
    }

    /// The SHA-256 that whoever has to vouch for packages says for this one.
    fn vouched(&self, source: &str) -> Result<Option<String>, AppError> {
        let Some(vouch) = &self.policy.vouch else { return Ok(None) };
        let name = source.rsplit('/').next().unwrap_or_default();
        vouch.digest(name).map(Some).map_err(|problem| self.refused(source, &problem))
    }

    /// Whether a package is the one that the setting, and whoever vouches for it, say.
    fn is_expected(&self, sha256: &str, vouched: Option<&str>) -> bool {
        self.fits_setting(sha256) && vouched.is_none_or(|digest| digest == sha256)
    }

    fn download(&self, source: &Source, progress: &mut OnProgress<'_>) -> Result<Stored, AppError> {
        let name = source.to_string();
        let vouched = self.vouched(&name)?;
        let known = self.store.newest_of_source(&name);
        let known = known.filter(|known| self.is_expected(&known.sha256, vouched.as_deref()));
        let etag = known.as_ref().and_then(|known| known.validator.clone());
        let mut incoming = self.store.receive(&name, progress)?;
        let rules = &self.policy.rules;
        match download::download(source, rules, &Validator { etag }, &mut incoming)? {
            Outcome::Unchanged => match known {
                Some(known) => self.renew(known, vouched.is_some()),
                None => Err(self.refused(&name, "its server says that it has not changed")),
            },
            Outcome::Complete { validator, .. } => {
                drop(incoming);
                self.verify(&name, validator.etag, vouched.as_deref())
            }
        }
    }

    fn import(&self, path: &Path, progress: &mut OnProgress<'_>) -> Result<Stored, AppError> {
        let name = path.display().to_string();
        let vouched = self.vouched(&name)?;
        let (file, validator) = wait_until_quiet(path)?;
        let known = self.store.newest_of_source(&name);
        let known = known.filter(|known| {
            let is_same = known.validator.as_ref() == Some(&validator);
            is_same && self.is_expected(&known.sha256, vouched.as_deref())
        });
        if let Some(known) = known {
            return self.renew(known, vouched.is_some());
        }
        let mut incoming = self.store.receive(&name, progress)?;
        incoming.begin(&Validator::default())?;
        self.copy(path, file, &mut incoming)?;
        drop(incoming);
        let (_, now) = open(path)?;
        if now != validator {
            self.store.discard()?;
            return Err(self.refused(&name, "it is still being written"));
        }
        self.verify(&name, Some(validator), vouched.as_deref())
    }

    fn copy(
        &self,
        path: &Path,
        mut file: HostFile,
        sink: &mut super::store::Incoming<'_>,
    ) -> Result<(), AppError> {
        let failed = |source| AppError::File { attempt: "read", path: path.to_owned(), source };
        let name = path.display().to_string();
        let bytes_max = self.policy.rules.bytes_max;
        let total = file.metadata().map_err(failed)?.len();
        if total > bytes_max {
            let problem =
                format!("it has more than {bytes_max} bytes; to allow more: --package-bytes-max");
            return Err(self.refused(&name, &problem));
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut done = 0;
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if done == 0 {
                if count == 0 {
                    return Err(self.refused(&name, "it is empty"));
                }
                if let Kind::Other(kind) = sniff::kind_of(&buffer[..count]) {
                    return Err(self.refused(&name, &format!("it is {kind}, not a ZIP")));
                }
            }
            if count == 0 {
                return Ok(());
            }
            sink.write(done, &buffer[..count])?;
            done += count as u64;
            if !sink.progress(done, Some(total)) {
                return Err(self.refused(&name, "it was not copied to its end"));
            }
        }
    }

    /// A package that is in the store already, as the newest of this setting.
    fn renew(&self, known: Stored, vouched: bool) -> Result<Stored, AppError> {
        let stored = Stored { setting: self.request.setting.clone(), vouched, ..known };
        self.store.renew(&stored)?;
        Ok(stored)
    }

    fn refused(&self, source: &str, problem: &str) -> AppError {
        AppError::Refused { source_name: source.to_owned(), problem: problem.to_owned() }
    }

    /// Verifies what was received, and admits it; else throws it away.
    fn verify(
        &self,
        source: &str,
        validator: Option<String>,
        vouched: Option<&str>,
    ) -> Result<Stored, AppError> {
        let file = self.store.received()?;
        let bytes = file.len()?;
        let is_expected = |sha256: &str| self.is_expected(sha256, vouched);
        let found = verify_package(file, self.policy, is_expected);
        let (sha256, members) = found.map_err(|problem| {
            if let Err(error) = self.store.discard() {
                log::warn!("what was refused is still in the store: {error}");
            }
            self.refused(source, &problem)
        })?;
        let stored = Stored {
            sha256,
            bytes,
            members,
            setting: self.request.setting.clone(),
            source: source.to_owned(),
            validator,
            fetched: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            rolled_back: false,
            vouched: vouched.is_some(),
        };
        Ok(self.store.admit(&stored, self.in_use)?)
    }
}

/// The SHA-256 of a package and how many members it has (the root is none), if it is what it must
/// be.
fn verify_package(
    file: Arc<File>,
    policy: &Policy,
    is_expected: impl Fn(&str) -> bool,
) -> Result<(String, u64), String> {
    let source = Arc::new(VolumeSource::new(file).map_err(|error| error.to_string())?);
    let progress = Progress::default();
    let digest = package::digest(&*source, &progress).map_err(|error| error.to_string())?;
    let sha256 = digest.to_string();
    if !is_expected(&sha256) {
        return Err(format!("its SHA-256 is {sha256}, which is not the one that is expected"));
    }
    let opened = Package::open(source, &policy.limits).map_err(|error| chain(&error))?;
    opened.verify(policy.threads.max(1), &progress).map_err(|failed| {
        let count = failed.len();
        let first = failed.first().map(|failed| chain(failed)).unwrap_or_default();
        format!("{count} of its members are damaged, as {first}")
    })?;
    Ok((sha256, opened.index().len() as u64 - 1))
}

/// An error and what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The bytes of a package in a volume.
pub struct VolumeSource {
    file: Arc<File>,
    len: u64,
}

impl VolumeSource {
    /// Those of `file`, as long as it is now.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn new(file: Arc<File>) -> Result<Self, crate::fs::Error> {
        let len = file.len()?;
        Ok(Self { file, len })
    }
}

impl package::Source for VolumeSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let read = self.file.read_at(offset, buffer).map_err(std::io::Error::other)?;
        if read < buffer.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// A file and what tells it from what it was or will be.
fn open(path: &Path) -> Result<(HostFile, String), AppError> {
    let failed = |source| AppError::File { attempt: "read the package", path: path.into(), source };
    let file = HostFile::open(path).map_err(failed)?;
    let data = file.metadata().map_err(failed)?;
    if !data.is_file() {
        let problem = "it is not a file; a package is a ZIP".to_owned();
        return Err(AppError::Refused { source_name: path.display().to_string(), problem });
    }
    let (seconds, nanos) = (data.mtime(), data.mtime_nsec());
    let validator = format!("{} bytes, {seconds}.{nanos:09}, inode {}", data.len(), data.ino());
    Ok((file, validator))
}

/// Opens a file when it has not been written to for a while.
fn wait_until_quiet(path: &Path) -> Result<(HostFile, String), AppError> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (file, validator) = open(path)?;
        let changed = file.metadata().and_then(|data| data.modified());
        let age = changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        // A time in the future says nothing.
        if age.is_none_or(|age| age >= QUIET) {
            return Ok((file, validator));
        }
        if std::time::Instant::now() >= deadline {
            let problem = "it is still being written".to_owned();
            return Err(AppError::Refused { source_name: path.display().to_string(), problem });
        }
        std::thread::sleep(LOOK);
    }
}
