//! `atrest app`, and the commands of `atrest package` that are about an app's store.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::args::{AuditArgs, CipherName, InitArgs, KeyArgs, duration};
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::package::manifest;
use super::{audit, init, keys, mount, open, place, status};
use crate::app::{
    AppError, BYTES_MAX, Config, DownloadError, Host, HostControl, KEPT, Policy, Rules, Store,
    StoreError, TIME_MAX, Vouch,
};
use crate::audit::Audit;
use crate::daemon::{self, Options, Readiness, Served as _, Service, paths};
use crate::package::Limits;

/// Where the store is, below HOME.
const STORE: &str = ".atrest/packages";
/// Where the package is mounted, below HOME.
const WWWROOT: &str = "site/wwwroot";
/// How long a daemon may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to change to another package, with ending the command.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(120);

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Serve the package that the app's settings name as its wwwroot, and run its command there
    #[command(after_help = "Examples:\n  \
        atrest app run --home /home/web --settings settings.json -- node server.js\n  \
        WEBSITE_RUN_FROM_PACKAGE=1 atrest app run --home /home/web")]
    Run(Box<AppRunArgs>),
    /// Show what an app serves: package, source, references, caches
    #[command(after_help = "Example:\n  atrest app status --json --home /home/web")]
    Status(AppStatusArgs),
}

/// Which app.
#[derive(Args, Debug)]
pub struct HomeArgs {
    /// The app's home: data/SitePackages and site/wwwroot are in it
    #[arg(long, value_name = "DIRECTORY")]
    pub home: PathBuf,
    /// Where its packages are kept; a volume, made if missing [default: HOME/.atrest/packages]
    #[arg(long, value_name = "DIRECTORY")]
    pub store: Option<PathBuf>,
}

/// `atrest app run`
#[derive(Args, Debug)]
pub struct AppRunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub home: HomeArgs,
    /// App settings: JSON or lines of NAME=VALUE; they win over the environment
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// Key-encryption key of a store that is made
    #[arg(long, value_name = "URI", default_value = "local:")]
    pub kek: String,
    /// How many packages are kept
    #[arg(long, value_name = "COUNT", default_value_t = KEPT)]
    pub keep: usize,
    /// Domain of the vaults that references call by name only
    #[arg(long, value_name = "DOMAIN", default_value = "vault.azure.net")]
    pub vault_suffix: String,
    /// Resolve references again this often (24h), at the latest
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub refresh: Duration,
    /// For downloads, trust the certificates in this PEM file instead of the host's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Allow downloads over plain http, but only from this host
    #[arg(long)]
    pub plain_http: bool,
    /// Serve only packages whose SHA-256 is in this file, as sha256sum writes it, and that is
    /// signed: FILE.minisig, by minisign
    #[arg(long, value_name = "FILE", requires = "key")]
    pub manifest: Option<PathBuf>,
    /// Public key of who signs manifests
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub key: Option<PathBuf>,
    /// Largest package, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = BYTES_MAX)]
    pub package_bytes_max: u64,
    /// Longest download, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = TIME_MAX.as_secs())]
    pub download_seconds_max: u64,
    /// How long the command may take to end before it is killed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub stop_patience: Duration,
    /// End with an error if there is no package, instead of serving a file that says why
    #[arg(long)]
    pub exit_on_failure: bool,
    /// Log to FILE, "journal", "syslog" or "stderr"
    #[arg(long, value_name = "WHERE", default_value = "stderr")]
    pub log: PathBuf,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    /// What to run in wwwroot, with the settings in its environment
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `atrest app status`
#[derive(Args, Debug)]
pub struct AppStatusArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub home: HomeArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `atrest package list`
#[derive(Args, Debug)]
pub struct PackageListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub home: HomeArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
}

/// `atrest package rollback`
#[derive(Args, Debug)]
pub struct PackageRollbackArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub home: HomeArgs,
    /// Take back that somebody went back
    #[arg(long)]
    pub undo: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
}

/// Runs an app command.
///
/// # Errors
/// Everything that keeps an app from being served.
pub fn run(command: &AppCommand) -> Result<u8, Failure> {
    match command {
        AppCommand::Run(arguments) => run_app(arguments)?,
        AppCommand::Status(arguments) => app_status(arguments)?,
    }
    Ok(0)
}

/// Where everything of an app is.
struct Places {
    home: PathBuf,
    store: PathBuf,
    wwwroot: PathBuf,
}

impl HomeArgs {
    fn store(&self) -> PathBuf {
        self.store.clone().unwrap_or_else(|| self.home.join(STORE))
    }

    /// Finds them, and makes the directories that are missing.
    fn prepare(&self) -> Result<Places, Failure> {
        let unusable = |attempt: &str, path: &Path, error: &std::io::Error| {
            let message = format!("cannot {attempt} {}: {error}", path.display());
            Failure::new(Exit::HomeUnusable, message)
                .hint("HOME must be a directory that this user may write to.")
        };
        let home = &self.home;
        let home = home.canonicalize().map_err(|error| unusable("use HOME", home, &error))?;
        let store = self.store();
        let wwwroot = home.join(WWWROOT);
        for path in [&store, &wwwroot] {
            let made = std::fs::create_dir_all(path);
            made.map_err(|error| unusable("make the directory", path, &error))?;
        }
        let writable = nix::unistd::access(&store, nix::unistd::AccessFlags::W_OK);
        writable.map_err(|error| unusable("write to", &store, &error.into()))?;
        let store = store.canonicalize().map_err(|error| unusable("use", &store, &error))?;
        let wwwroot = mount::check_mountpoint(&wwwroot, (&store, "package store"), false);
        let wwwroot = wwwroot.map_err(|failure| match failure.exit {
            Exit::MountpointNotEmpty => Failure { details: Vec::new(), ..failure }
                .hint("A package is served there, and nothing else. Move what is in it away."),
            _ => failure,
        })?;
        Ok(Places { home, store, wwwroot })
    }
}

fn run_app(arguments: &AppRunArgs) -> Result<(), Failure> {
    let places = arguments.home.prepare()?;
    mount::check_fuse()?;
    make_store(&places.store, arguments)?;
    let id = place::config(&places.store)?.claims().volume_id.to_string();
    mount::start_log(Some(arguments.log.clone()), arguments.log_level, true, &id)?;
    daemon::raise_limits();
    let audit = audit::open(&AuditArgs::default(), &id)?;
    let opened = open_store(&places, &arguments.keys, "app", &audit)?;
    opened.control.start();
    let prepared = prepare_host(arguments, &places, &opened);
    let (host, failure) = match prepared {
        Ok((host, failure)) if failure.is_none() || !arguments.exit_on_failure => (host, failure),
        Ok((_, failure)) => {
            close(&opened)?;
            return Err(failure.expect("the arm before takes what has none"));
        }
        Err(failure) => {
            close(&opened)?;
            return Err(failure);
        }
    };
    if let Some(failure) = &failure {
        log::error!("{failure}");
        log::error!("wwwroot shows this until the settings lead to a package");
    }
    let control = Arc::new(HostControl::new(opened.control.clone(), host.clone()));
    let mut options = Options::new(places.store.clone());
    options.read_only = true;
    let service = Service {
        tree: host.tree().clone(),
        served: control.clone(),
        keyed: Some(daemon::Keyed {
            volume: control,
            lease: daemon::Policy::default(),
            audit,
            metrics: None,
        }),
        id,
        mountpoint: places.wwwroot,
        options,
        companion: Some(host.clone()),
    };
    let served = daemon::serve(service, Readiness::foreground());
    served.map_err(|error| Failure::daemon(&error))?;
    match failure {
        Some(failure) if !host.is_serving() => Err(failure),
        _ => Ok(()),
    }
}

fn make_store(store: &Path, arguments: &AppRunArgs) -> Result<(), Failure> {
    let has_entries = store.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if has_entries {
        return Ok(());
    }
    let made = init::make(&InitArgs {
        volume: store.to_owned(),
        kek: vec![arguments.kek.clone()],
        cipher: CipherName::Gcm,
        keys: arguments.keys.source.clone(),
        audit: AuditArgs::default(),
    });
    made.map(drop)
}

fn open_store(
    places: &Places,
    keys: &KeyArgs,
    command: &'static str,
    audit: &Arc<Audit>,
) -> Result<open::OpenVolume, Failure> {
    let how = open::How {
        command,
        mountpoint: Some(&places.wwwroot),
        read_only: false,
        allow_rollback: false,
        audit,
    };
    open::open(&places.store, &keys::provider_options(keys), how)
}

fn close(opened: &open::OpenVolume) -> Result<(), Failure> {
    opened.control.close().map_err(|error| Failure::new(Exit::NotDurable, error))
}

/// The host, and why it serves no package if it serves none.
fn prepare_host(
    arguments: &AppRunArgs,
    places: &Places,
    opened: &open::OpenVolume,
) -> Result<(Arc<Host>, Option<Failure>), Failure> {
    let store = Store::open(opened.tree.clone(), arguments.keep);
    let store = store.map_err(|error| failure_of(&error.into()))?;
    let settings = match &arguments.settings {
        Some(path) => Some(
            std::path::absolute(path)
                .map_err(|error| Failure::io("read the settings", path, &error))?,
        ),
        None => None,
    };
    let config = Config {
        home: places.home.clone(),
        wwwroot: places.wwwroot.clone(),
        settings,
        command: arguments.command.clone(),
        vault_suffix: arguments.vault_suffix.clone(),
        vaults: Arc::new(keys::provider_options(&arguments.keys)),
        policy: Policy {
            rules: Rules {
                bytes_max: arguments.package_bytes_max,
                time_max: Duration::from_secs(arguments.download_seconds_max),
                ca_file: arguments.ca_file.clone(),
                plain_http: arguments.plain_http,
                ..Rules::default()
            },
            limits: Limits::default(),
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            vouch: manifest_of(arguments),
        },
        refresh: arguments.refresh,
        stop_patience: arguments.stop_patience,
    };
    let bar = progress_bar();
    let mut on = |done: u64, total: Option<u64>| {
        bar.set_length(total.unwrap_or(done));
        bar.set_position(done);
        true
    };
    let prepared = Host::prepare(config, store, &mut on);
    bar.finish_and_clear();
    let (host, error) = prepared.map_err(|error| failure_of(&error))?;
    Ok((host, error.map(|error| failure_of(&error))))
}

/// A manifest, and whose signature it must have.
#[derive(Debug)]
struct SignedManifest {
    manifest: PathBuf,
    key: PathBuf,
}

impl Vouch for SignedManifest {
    fn digest(&self, name: &str) -> Result<String, String> {
        let digest = manifest::digest(&self.manifest, &self.key, Path::new(name));
        digest.map(|digest| digest.to_string()).map_err(|failure| {
            let Failure { message, details, .. } = failure;
            [vec![message], details].concat().join(": ")
        })
    }
}

fn manifest_of(arguments: &AppRunArgs) -> Option<Arc<dyn Vouch>> {
    let (manifest, key) = (arguments.manifest.clone()?, arguments.key.clone()?);
    Some(Arc::new(SignedManifest { manifest, key }))
}

/// Bytes of a package that have come; shown on a terminal only.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("a template");
    ProgressBar::new(0).with_style(style)
}

/// What the exit code is, and what to do that the error does not say.
fn failure_of(error: &AppError) -> Failure {
    let message = chain(error);
    match error {
        AppError::Settings(_) => Failure::new(Exit::SettingsMalformed, message).hint(
            "Settings are one JSON object, the list that Azure exports, or NAME=VALUE lines.",
        ),
        AppError::Setting { .. } => Failure::new(Exit::SettingRefused, message),
        AppError::Reference { .. } => Failure::new(Exit::ReferenceUnresolved, message),
        AppError::Download(DownloadError::WrongKind { .. } | DownloadError::Empty { .. })
        | AppError::Refused { .. } => Failure::new(Exit::PackageRefused, message),
        AppError::Download(DownloadError::Denied { .. }) => {
            Failure::new(Exit::PackageDenied, message)
        }
        AppError::Download(DownloadError::Keep(crate::fs::Error::NoSpace)) => {
            Failure::new(Exit::NoSpace, message)
        }
        AppError::Download(_) => Failure::new(Exit::PackageUnavailable, message),
        AppError::File { .. } => Failure::new(Exit::PackageUnavailable, message),
        AppError::Store(StoreError::Rollback(_)) => Failure::new(Exit::PackageUnavailable, message),
        AppError::Store(StoreError::Volume(crate::fs::Error::NoSpace)) => {
            Failure::new(Exit::NoSpace, message)
        }
        AppError::Store(_) => Failure::new(Exit::Other, message),
    }
}

/// The control socket of an app's daemon.
fn socket(home: &HomeArgs) -> Result<PathBuf, Failure> {
    let store = place::volume(&home.store())?;
    let id = place::config(&store)?.claims().volume_id.to_string();
    paths::control_socket(&id).map_err(|error| Failure::io("find", &store, &error))
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

fn app_status(arguments: &AppStatusArgs) -> Result<(), Failure> {
    let home = arguments.home.home.display();
    let socket = socket(&arguments.home)?;
    let answer = daemon::ask(&socket, &json!({ "op": "status" }), PATIENCE);
    let answer = answer.map_err(|error| match is_absent(&error) {
        true => Failure::new(Exit::NotMounted, format!("no app runs in {home}"))
            .hint(format!("To run it: atrest app run --home {home}")),
        false => Failure::new(Exit::DaemonSilent, format!("the app in {home}: {error}")),
    })?;
    let Value::Object(app) = &answer["status"]["app"] else {
        return Err(Failure::new(Exit::NotMounted, format!("what runs in {home} is no app")));
    };
    status::print(app, arguments.json);
    Ok(())
}

/// `atrest package list`
///
/// # Errors
/// The store cannot be opened.
pub fn list(arguments: &PackageListArgs) -> Result<(), Failure> {
    let answer = daemon::ask(&socket(&arguments.home)?, &json!({ "op": "status" }), PATIENCE);
    let packages = match answer {
        Ok(answer) => answer["status"]["app"]["packages"].clone(),
        Err(error) if is_absent(&error) => {
            json!(with_store(&arguments.home, &arguments.keys, |store| Ok(store.packages()))?)
        }
        Err(error) => return Err(Failure::new(Exit::DaemonSilent, error.to_string())),
    };
    let table = Map::from_iter([("packages".to_owned(), packages)]);
    status::print(&table, arguments.json);
    Ok(())
}

/// `atrest package rollback`
///
/// # Errors
/// There is nothing to go back to; the store cannot be opened.
pub fn rollback(arguments: &PackageRollbackArgs) -> Result<(), Failure> {
    let request = json!({ "op": "roll-back", "undo": arguments.undo });
    let refused = |problem: String| Failure::new(Exit::PackageUnavailable, problem);
    match daemon::ask(&socket(&arguments.home)?, &request, ROLLBACK_PATIENCE) {
        Ok(_) => {}
        Err(error) if is_absent(&error) => {
            with_store(&arguments.home, &arguments.keys, |store| {
                let changed = match arguments.undo {
                    true => store.undo_rollback(),
                    false => store.roll_back_newest(),
                };
                changed.map_err(|error| refused(error.to_string()))
            })?;
        }
        Err(error) => return Err(refused(error.to_string())),
    }
    println!("{}", if arguments.undo { "went forward again" } else { "went back" });
    Ok(())
}

/// Calls `work` with the store of an app that does not run.
fn with_store<R>(
    home: &HomeArgs,
    keys: &KeyArgs,
    work: impl FnOnce(&Store) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let path = place::volume(&home.store())?;
    let audit = audit::open_for(&AuditArgs::default(), &path)?;
    let how = open::How {
        command: "package",
        mountpoint: None,
        read_only: false,
        allow_rollback: false,
        audit: &audit,
    };
    let opened = open::open(&path, &keys::provider_options(keys), how)?;
    let store = Store::open(opened.tree.clone(), KEPT);
    let result = store.map_err(|error| failure_of(&error.into())).and_then(|store| work(&store));
    let closed = close(&opened);
    let result = result?;
    closed?;
    Ok(result)
}
