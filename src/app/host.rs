//! The host of one app: what is served, what runs, and what happens when something changes.
//!
//! One thread decides ([`Host::run`]). It is told of nothing: it looks, every second, at the
//! settings file and at `packagename.txt` (HOME may be on a network share, which announces
//! nothing),
//! at the command, and at what was asked for by a client. Whatever goes wrong while an app runs is
//! said and shown, and the app goes on with what it has.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::child::{self, Running};
use super::error::AppError;
use super::fetch::{self, Fetched, OnProgress, Policy, VolumeSource, chain};
use super::reference::{Resolution, Vaults, resolve};
use super::settings::Settings;
use super::store::{Store, StoreError, Stored};
use super::{environment, notice, wanted};
use crate::daemon::Caches;
use crate::fs::package::PackageTree;
use crate::fs::swap::SwapTree;
use crate::fs::{Ino, Tree};
use crate::package::{Limits, Package};

/// The SHA-256 that the package must have, if it is set.
const DIGEST: &str = "ATREST_PACKAGE_SHA256";
/// How often everything is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// First wait before a command that crashed is started again; doubles with each crash.
const CRASH_BACKOFF: Duration = Duration::from_secs(1);
/// Longest such wait.
const CRASH_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A command that ran this long did not crash because it was started.
const HEALTHY: Duration = Duration::from_secs(60);
/// First wait before a package that could not be had is asked for again; doubles each time.
const RETRY: Duration = Duration::from_secs(5);
/// Longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// How often inodes of packages that are no longer served are looked for.
const RETIRE: Duration = Duration::from_secs(3);
/// How often seek points are kept, besides when a package is no longer served.
const KEEP: Duration = Duration::from_secs(600);
/// The root directory of a tree.
const ROOT: Ino = 1;

/// What a host is made of.
pub struct Config {
    /// The app's home, as Azure's `/home`.
    pub home: PathBuf,
    /// Where the package is mounted.
    pub wwwroot: PathBuf,
    /// The file of settings.
    pub settings: Option<PathBuf>,
    /// What to run in wwwroot; nothing if it is empty.
    pub command: Vec<OsString>,
    /// Domain of vaults that references name.
    pub vault_suffix: String,
    /// Who gives secrets.
    pub vaults: Arc<dyn Vaults>,
    /// What packages may be.
    pub policy: Policy,
    /// How often references are resolved anew at the latest.
    pub refresh: Duration,
    /// How long the command may take to end.
    pub stop_patience: Duration,
}

/// What was decided from settings at one moment.
struct Plan {
    resolved: Settings,
    in_file: Settings,
    fetched: Fetched,
}

#[derive(Default)]
struct State {
    serving: Option<Serving>,
    resolutions: Vec<Resolution>,
    /// What went wrong last, while what is served went on.
    problem: Option<String>,
    running: Option<Running>,
    environment: Vec<(OsString, OsString)>,
    crashes: u32,
    starts: u64,
    last_end: Option<String>,
}

/// What wwwroot shows.
struct Serving {
    fetched: Fetched,
    package: Arc<Package>,
    resolved: Settings,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Go back to the package before this one.
    Rollback,
    /// Take that back.
    UndoRollback,
}

/// See the [module](self).
pub struct Host {
    config: Config,
    store: Store,
    tree: Arc<SwapTree>,
    state: Mutex<State>,
    /// Held by whoever changes what is served.
    changing: Mutex<()>,
    caches: Mutex<Option<Caches>>,
    /// All packages that were opened and may still be in use.
    opened: Mutex<Vec<Weak<Package>>>,
    stopping: AtomicBool,
    wake: (Mutex<()>, Condvar),
}

impl Host {
    /// Decides what is served first. If there is no package, wwwroot shows why; the second value is
    /// why.
    ///
    /// # Errors
    /// Settings that cannot be read, or that no package could satisfy.
    pub fn prepare(
        config: Config,
        store: Store,
        progress: &mut OnProgress<'_>,
    ) -> Result<(Arc<Self>, Option<AppError>), AppError> {
        let (mut state, mut opened) = (State::default(), Vec::new());
        let planned = plan(&config, &store, None, &mut state.resolutions, progress);
        let (tree, error) = match planned {
            Ok(plan) => {
                let package = open_package(&config, &store, &plan.fetched.stored)?;
                opened.push(Arc::downgrade(&package));
                let tree = tree_of(package.clone());
                state.environment = command_environment(&config, &plan);
                let Plan { fetched, resolved, .. } = plan;
                state.serving = Some(Serving { fetched, package, resolved });
                (tree, None)
            }
            Err(error @ (AppError::Settings(_) | AppError::Setting { .. })) => return Err(error),
            Err(error) => (notice_tree(&error), Some(error)),
        };
        state.problem = error.as_ref().map(|error| chain(error));
        let host = Self {
            config,
            store,
            tree: Arc::new(SwapTree::new(tree)),
            state: Mutex::new(state),
            changing: Mutex::new(()),
            caches: Mutex::new(None),
            opened: Mutex::new(opened),
            stopping: AtomicBool::new(false),
            wake: (Mutex::new(()), Condvar::new()),
        };
        Ok((Arc::new(host), error))
    }

    /// What is to be mounted on wwwroot.
    pub fn tree(&self) -> &Arc<SwapTree> {
        &self.tree
    }

    /// Starts the command and keeps it, and what is served, as settings and packages say; returns
    /// when it is told to stop, or when the command has ended by itself without an error. `caches`
    /// are those of the mount, which is there.
    pub fn run(&self, caches: Caches) {
        *self.caches.lock() = Some(caches);
        self.start_command();
        let mut watched = Watched::now(&self.config);
        let mut last_fingerprint = watched.clone();
        let mut refresh_at = Instant::now() + self.config.refresh;
        let mut retry = (Instant::now() + RETRY, RETRY);
        let mut retire_at = Instant::now() + RETIRE;
        let mut keep_at = Instant::now() + KEEP;
        let mut start_at = None;
        let mut earlier = Vec::new();
        while !self.is_stopping() {
            self.sleep();
            let now = Instant::now();
            let fingerprint = Watched::now(&self.config);
            // Whatever writes them has finished when they are the same twice.
            if fingerprint != watched && fingerprint == last_fingerprint {
                log::info!("the settings or the name of the package have changed");
                watched = fingerprint.clone();
                self.reload();
                refresh_at = now + self.config.refresh;
            }
            last_fingerprint = fingerprint;
            if now >= refresh_at {
                refresh_at = now + self.config.refresh;
                self.refresh();
            }
            if now >= retry.0 && self.state.lock().serving.is_none() {
                self.reload();
                let wait = (retry.1 * 2).min(RETRY_MAX);
                retry = (Instant::now() + wait, wait);
            }
            if now >= retire_at {
                retire_at = now + RETIRE;
                self.retire(&mut earlier);
            }
            if now >= keep_at {
                keep_at = now + KEEP;
                self.keep_seek_points();
            }
            if self.look_at_command(&mut start_at) {
                return;
            }
        }
    }

    /// Ends the command, and soon [`Host::run`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.1.notify_all();
        self.stop_command();
    }

    /// Sends a signal on to the command.
    pub fn signal(&self, signal: Signal) {
        if let Some(running) = &self.state.lock().running {
            running.signal(signal);
        }
    }

    /// Does what a client asks for; returns when it is done.
    ///
    /// # Errors
    /// Why it is not, in words.
    pub fn ask(&self, ask: Ask) -> Result<(), String> {
        let _changing = self.changing.lock();
        let stored = {
            let state = self.state.lock();
            let serving = state.serving.as_ref().ok_or("no package is in use")?;
            let current = &serving.fetched.stored;
            match ask {
                Ask::Rollback => self.store.roll_back(&current.sha256),
                Ask::UndoRollback => self.store.undo_rollback(),
            }
        };
        let stored = stored.map_err(|error: StoreError| error.to_string())?;
        fetch::check_vouched(&self.config.policy, &stored).map_err(|error| chain(&error))?;
        let package = self.open_package(&stored).map_err(|error| chain(&error))?;
        log::info!("going to the package {}", stored.sha256);
        self.stop_command();
        self.keep_seek_points();
        self.exchange(tree_of(package.clone())).map_err(|error| error.to_string())?;
        if let Some(serving) = &mut self.state.lock().serving {
            (serving.fetched.stored, serving.package) = (stored, package);
        }
        self.start_command();
        Ok(())
    }

    /// For `atrest app status --json`.
    pub fn status(&self) -> Value {
        let state = self.state.lock();
        let command = state
            .running
            .as_ref()
            .map(|running| json!({ "pid": running.pid(), "seconds": running.age().as_secs() }));
        let package = state.serving.as_ref().map(package_status);
        let caches = state.serving.as_ref().map(|serving| {
            let found = serving.package.statistics();
            json!({
                "hits": found.hits, "misses": found.misses,
                "hit_percent": found.hit_percent(), "read_bytes": found.read_bytes,
                "inflated_bytes": found.inflated_bytes, "seek_points": found.points,
                "memory_bytes": found.memory_bytes,
            })
        });
        let references: Vec<_> = state.resolutions.iter().map(Resolution::to_json).collect();
        json!({
            "home": self.config.home.to_string_lossy(),
            "package": package,
            "caches": caches,
            "references": references,
            "problem": state.problem,
            "command": command,
            "command_starts": state.starts,
            "command_last_end": state.last_end,
            "older_packages_in_use": self.tree.old_count(),
            "packages": self.store.packages(),
        })
    }

    /// Keeps where reading can begin in the package that is served, for the next time.
    pub fn keep_seek_points(&self) {
        let serving = {
            let state = self.state.lock();
            state
                .serving
                .as_ref()
                .map(|serving| (serving.fetched.stored.sha256.clone(), serving.package.clone()))
        };
        if let Some((sha256, package)) = serving {
            self.store.keep_seek_points(&sha256, &package);
        }
    }

    /// Whether a package is served.
    pub fn is_serving(&self) -> bool {
        self.state.lock().serving.is_some()
    }

    /// Lets go of everything that was read from packages.
    pub fn forget_contents(&self) {
        let opened = self.opened.lock();
        opened.iter().filter_map(Weak::upgrade).for_each(|package| package.forget_contents());
    }

    fn open_package(&self, stored: &Stored) -> Result<Arc<Package>, AppError> {
        let package = open_package(&self.config, &self.store, stored)?;
        let mut opened = self.opened.lock();
        opened.retain(|package| package.strong_count() > 0);
        opened.push(Arc::downgrade(&package));
        Ok(package)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn sleep(&self) {
        let mut guard = self.wake.0.lock();
        if !self.is_stopping() {
            self.wake.1.wait_for(&mut guard, LOOK);
        }
    }

    /// Reads the settings anew and does what they say; if that cannot be done, everything stays.
    fn reload(&self) {
        let _changing = self.changing.lock();
        let mut resolutions = Vec::new();
        let in_use = {
            let state = self.state.lock();
            state.serving.as_ref().map(|serving| serving.fetched.stored.sha256.clone())
        };
        let mut on = |_: u64, _: Option<u64>| !self.is_stopping();
        let planned = plan(&self.config, &self.store, in_use.as_deref(), &mut resolutions, &mut on);
        let done = planned.and_then(|plan| self.activate(plan, in_use.as_deref()));
        let problem = done.err().map(|error| (notice_tree(&error), chain(&error)));
        if let Some((notice, text)) = &problem {
            match in_use {
                Some(_) => log::error!("{text}; everything goes on as it is"),
                None => {
                    log::error!("{text}");
                    if let Err(error) = self.exchange(notice.clone()) {
                        log::error!("wwwroot does not show why: {error}");
                    }
                }
            }
        }
        let mut state = self.state.lock();
        state.resolutions = resolutions;
        state.problem = problem.map(|(_, text)| text);
    }

    /// Serves what was decided, and starts the command anew if anything is new to it.
    fn activate(&self, plan: Plan, in_use: Option<&str>) -> Result<(), AppError> {
        let environment = command_environment(&self.config, &plan);
        let Plan { fetched, resolved, .. } = plan;
        let sha256 = fetched.stored.sha256.clone();
        let is_new = in_use != Some(sha256.as_str());
        let is_other = self.state.lock().environment != environment;
        if let Some(warning) = &fetched.warning {
            log::warn!("{warning}");
        }
        let package = match is_new {
            true => Some(self.open_package(&fetched.stored)?),
            false => None,
        };
        if is_new || is_other {
            self.stop_command();
        }
        if let Some(package) = &package {
            self.keep_seek_points();
            self.exchange(tree_of(package.clone()))?;
            log::info!("serving the package {sha256} of {}", fetched.stored.source);
        }
        {
            let mut state = self.state.lock();
            state.environment = environment;
            let package = package.or_else(|| state.serving.take().map(|old| old.package));
            state.serving = package.map(|package| Serving { fetched, package, resolved });
        }
        if is_new || is_other {
            self.start_command();
        }
        Ok(())
    }

    /// Resolves references anew. Only if one leads to something else, everything is decided anew.
    fn refresh(&self) {
        let found = read_settings(&self.config).map(|(raw, _)| raw);
        let Ok(raw) = found else { return };
        let config = &self.config;
        let (resolved, resolutions) = resolve(&raw, &config.vault_suffix, &*config.vaults);
        for Resolution { setting, outcome, .. } in &resolutions {
            if let Err(error) = outcome {
                log::warn!("{setting}: {}; it stays what it was", error.problem);
            }
        }
        let mut state = self.state.lock();
        let old = state.serving.as_ref().map(|serving| &serving.resolved);
        let same = old.is_some_and(|old| old.is_same(&resolved));
        // One that led somewhere and leads to nothing now: the command would get it as it is.
        let failed = resolutions.iter().any(|Resolution { setting, outcome, .. }| {
            outcome.is_err() && old.is_some_and(|old| old.get(setting) != raw.get(setting))
        });
        state.resolutions = resolutions;
        drop(state);
        if !same && !failed {
            log::info!("a reference leads to another version");
            self.reload();
        }
    }

    /// Changes the tree under the mount.
    fn exchange(&self, new: Arc<dyn Tree>) -> Result<(), AppError> {
        let caches = self.caches.lock();
        let forget = |names: &[Vec<u8>]| {
            if let Some(caches) = &*caches {
                caches.forget_names(ROOT, names);
            }
        };
        self.tree.swap(new, forget)?;
        if let Some(caches) = &*caches {
            caches.drop_inode(ROOT);
        }
        Ok(())
    }

    fn retire(&self, earlier: &mut Vec<u64>) {
        if self.tree.old_count() == 0 {
            return;
        }
        let caches = self.caches.lock().clone();
        let known = caches.as_ref().map(Caches::known).unwrap_or_default();
        self.tree.retire(&known, earlier);
        if let Some(caches) = caches {
            for (directory, names) in self.tree.old_names(&known) {
                caches.forget_names(directory, &names);
            }
        }
    }

    fn start_command(&self) {
        let mut state = self.state.lock();
        if self.config.command.is_empty() || state.serving.is_none() || self.is_stopping() {
            return;
        }
        let Config { command, wwwroot, .. } = &self.config;
        match Running::start(command, wwwroot, &state.environment) {
            Ok(running) => {
                log::info!("started process {}", running.pid());
                state.running = Some(running);
                state.starts += 1;
            }
            Err(error) => {
                let name = command.first().map(|name| name.to_string_lossy().into_owned());
                let text = format!("cannot start {}: {error}", name.unwrap_or_default());
                log::error!("{text}");
                state.last_end = Some(text);
                state.crashes += 1;
            }
        }
    }

    fn stop_command(&self) {
        let running = self.state.lock().running.take();
        if let Some(running) = running {
            running.stop(self.config.stop_patience);
        }
    }

    /// Starts a command again that has crashed, when its time has come; whether one has ended as it
    /// should.
    fn look_at_command(&self, start_at: &mut Option<Instant>) -> bool {
        // Whoever changes what is served ends the command and starts it.
        let Some(_changing) = self.changing.try_lock() else { return false };
        let mut state = self.state.lock();
        let ended = state
            .running
            .as_ref()
            .and_then(|running| running.status().map(|status| (status, running.age())));
        if let Some((status, age)) = ended {
            state.running = None;
            let text = child::describe(status);
            log::warn!("the command {text}");
            state.last_end = Some(text);
            if status.success() {
                return true;
            }
            state.crashes = if age >= HEALTHY { 1 } else { state.crashes + 1 };
        }
        if state.running.is_some() {
            *start_at = None;
            return false;
        }
        if self.config.command.is_empty() || state.serving.is_none() {
            return false;
        }
        let backoff = CRASH_BACKOFF * 2_u32.pow(state.crashes.clamp(1, 7) - 1);
        let due = *start_at.get_or_insert_with(|| Instant::now() + backoff.min(CRASH_BACKOFF_MAX));
        drop(state);
        if Instant::now() >= due {
            *start_at = None;
            self.start_command();
        }
        false
    }
}

fn package_status(serving: &Serving) -> Value {
    let Fetched { stored, warning, expires } = &serving.fetched;
    json!({
        "sha256": stored.sha256, "bytes": stored.bytes, "members": stored.members,
        "setting": stored.setting, "source": stored.source, "fetched": stored.fetched,
        "source_expires": expires, "warning": warning,
    })
}

fn read_settings(config: &Config) -> Result<(Settings, Settings), AppError> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let in_file = match &config.settings {
        Some(path) => Settings::of_file(path)?,
        None => Settings::default(),
    };
    Ok((Settings::of_environment(environment).overlaid(&in_file), in_file))
}

/// Reads settings, resolves references and gets the package. `resolutions` is what became of the
/// references, also after an error.
fn plan(
    config: &Config,
    store: &Store,
    in_use: Option<&str>,
    resolutions: &mut Vec<Resolution>,
    progress: &mut OnProgress<'_>,
) -> Result<Plan, AppError> {
    let (raw, in_file) = read_settings(config)?;
    let (resolved, found) = resolve(&raw, &config.vault_suffix, &*config.vaults);
    *resolutions = found.clone();
    for Resolution { setting, outcome, .. } in &found {
        if let Err(error) = outcome {
            log::warn!("{setting}: {}", error.problem);
        }
    }
    let request = wanted::request(&config.home, &raw, &resolved, &found)?;
    let digest = resolved.get(DIGEST).map(str::trim).filter(|text| !text.is_empty());
    if digest.is_some_and(|text| text.parse::<crate::package::Digest>().is_err()) {
        let problem = "a SHA-256 has 64 hexadecimal digits".to_owned();
        return Err(AppError::Setting { setting: DIGEST.to_owned(), problem });
    }
    let fetched = fetch::fetch(store, &config.policy, &request, digest, in_use, progress)?;
    Ok(Plan { resolved, in_file, fetched })
}

fn command_environment(config: &Config, plan: &Plan) -> Vec<(OsString, OsString)> {
    environment::of_command(std::env::vars_os(), &config.home, &plan.resolved, &plan.in_file)
}

fn open_package(config: &Config, store: &Store, stored: &Stored) -> Result<Arc<Package>, AppError> {
    let file = store.open_package(&stored.sha256)?;
    let source = Arc::new(VolumeSource::new(file)?);
    let package = Package::open(source, &config.policy.limits);
    let package = package.map_err(|error| AppError::Refused {
        source_name: stored.source.clone(),
        problem: chain(&error),
    })?;
    store.use_seek_points(&stored.sha256, &package);
    Ok(Arc::new(package))
}

fn tree_of(package: Arc<Package>) -> Arc<dyn Tree> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Arc::new(PackageTree::new(package, uid, gid))
}

/// What wwwroot shows in place of a package.
fn notice_tree(error: &AppError) -> Arc<dyn Tree> {
    let text = format!("{}\n", chain(error));
    let package = Package::open(Arc::new(notice::package(&text)), &Limits::default());
    tree_of(Arc::new(package.expect("a package of one stored member is well formed")))
}

/// What is looked at to notice changes.
#[derive(Clone, PartialEq, Eq)]
struct Watched {
    settings: Option<Fingerprint>,
    package_name: Option<Fingerprint>,
}

#[derive(Clone, PartialEq, Eq)]
struct Fingerprint {
    size: u64,
    changed: (i64, i64),
    ino: u64,
}

impl Watched {
    fn now(config: &Config) -> Self {
        let name = wanted::name_file(&config.home);
        Self {
            settings: config.settings.as_deref().and_then(Fingerprint::of),
            package_name: Fingerprint::of(&name),
        }
    }
}

impl Fingerprint {
    fn of(path: &Path) -> Option<Self> {
        let data = std::fs::metadata(path).ok()?;
        Some(Self { size: data.len(), changed: (data.mtime(), data.mtime_nsec()), ino: data.ino() })
    }
}
