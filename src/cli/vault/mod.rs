//! `atrest vault`

mod callers;
mod client;
mod import;
mod objects;
mod slots;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use nix::sys::signal::Signal;

use super::args::KeyArgs;
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::keys;
use crate::daemon::{self, logging};
use crate::key::pin::PinStore;
use crate::key::{KeyError, ProviderOptions, provider_from_uri};
use crate::storage::{LockError, LockInfo};
use crate::sys::process::Signals;
use crate::vault::access::Access;
use crate::vault::audit::{AuditLog, AuditOptions, OnFailure};
use crate::vault::authority::{Authority, Guard};
use crate::vault::objects::now;
use crate::vault::server::{Acceptor, Listen, Server, Stop};
use crate::vault::{Service, Settings, Vault, VaultError};

/// Directory of the audit log in the vault's.
const AUDIT_NAME: &str = "audit";
/// How often what is due is done, and the host's memory of the vault brought up to date.
const MAINTAIN_EVERY: Duration = Duration::from_secs(60);

/// `atrest vault`
#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Make a vault
    #[command(after_help = "Examples:\n  atrest vault init /srv/keys --kek passphrase:\n  \
        atrest vault init /srv/keys --kek local: --retention-days 30")]
    Init(InitArgs),
    /// Serve a vault; ends with SIGTERM or SIGINT, with what is being answered
    #[command(after_help = "Example:\n  atrest vault serve /srv/keys --listen 0.0.0.0:443 \
        --tls-cert /etc/atrest/vault.pem --tls-key /etc/atrest/vault.key")]
    Serve(ServeArgs),
    /// Manage keys, while the vault is served or not
    #[command(subcommand)]
    Key(objects::KeyCommand),
    /// Manage secrets, while the vault is served or not
    #[command(subcommand)]
    Secret(objects::SecretCommand),
    /// Manage the keys that seal the vault
    #[command(subcommand)]
    Slot(slots::SlotCommand),
    /// Manage who may ask: service principals and managed identities
    #[command(subcommand)]
    Identity(callers::IdentityCommand),
    /// Manage what they may do
    #[command(subcommand)]
    Policy(callers::PolicyCommand),
    /// Manage from where they may ask
    #[command(subcommand)]
    Firewall(callers::FirewallCommand),
    /// Manage how often they may ask
    #[command(subcommand)]
    Limits(callers::LimitsCommand),
    /// Manage tokens
    #[command(subcommand)]
    Settings(callers::SettingsCommand),
}

/// `atrest vault init`
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Directory of the new vault; made if missing, else it must be empty
    pub directory: PathBuf,
    /// Key that seals the vault: passphrase:, local:NAME, pkcs11:, tpm2:
    #[arg(long, value_name = "URI", default_value = "local:")]
    pub kek: String,
    /// For how many days what is deleted can be recovered: 7 to 90. Cannot be changed
    #[arg(long, value_name = "DAYS", default_value_t = 90)]
    pub retention_days: u32,
    /// Let what is deleted be purged before that. Cannot be changed
    #[arg(long)]
    pub no_purge_protection: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
}

/// `atrest vault serve`
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Directory of the vault
    pub directory: PathBuf,
    /// Address and port to listen on; more than one may be given
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    pub listen: Vec<SocketAddr>,
    /// PEM file of the certificate, followed by those between it and the root
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Serve plain http; loopback addresses only
    #[arg(long, conflicts_with = "tls_cert")]
    pub insecure_loopback: bool,
    /// Serve managed identities of hosts on this address of the host (http; loopback or
    /// link-local), as 169.254.169.254:80 does in Azure
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub imds: Vec<SocketAddr>,
    /// Directory of the audit log, instead of `audit` in the vault's
    #[arg(long, value_name = "DIRECTORY")]
    pub audit: Option<PathBuf>,
    /// Answer although the audit log cannot be written
    #[arg(long)]
    pub audit_optional: bool,
    /// Serve although the vault is older than this host has seen it
    #[arg(long)]
    pub allow_rollback: bool,
    /// Log to FILE, "journal", "syslog" or "stderr"
    #[arg(long, value_name = "WHERE")]
    pub log: Option<PathBuf>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
}

/// Runs a vault command.
///
/// # Errors
/// A vault that cannot be made, opened or served, and what it answers.
pub fn run(command: &VaultCommand) -> Result<(), Failure> {
    match command {
        VaultCommand::Init(arguments) => init(arguments),
        VaultCommand::Serve(arguments) => serve(arguments),
        VaultCommand::Key(command) => objects::key(command),
        VaultCommand::Secret(command) => objects::secret(command),
        VaultCommand::Slot(command) => slots::run(command),
        VaultCommand::Identity(command) => callers::identity(command),
        VaultCommand::Policy(command) => callers::policy(command),
        VaultCommand::Firewall(command) => callers::firewall(command),
        VaultCommand::Limits(command) => callers::limits(command),
        VaultCommand::Settings(command) => callers::settings(command),
    }
}

/// The guards of a vault, from what is in its store.
fn access(directory: &Path, vault: &Vault, audit: AuditOptions) -> Result<Access, Failure> {
    let log = AuditLog::open(audit.clone())
        .map_err(|error| Failure::io("open the audit log in", &audit.directory, &error))?;
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let name = absolute.file_name().unwrap_or_default().to_string_lossy();
    let authority = Authority::open(vault.store.clone(), &name, log)
        .map_err(|error| failure(directory, &error.into()))?;
    Ok(Guard(Arc::new(authority)).access())
}

/// Where and how `serve` keeps the audit log.
fn audit_options(arguments: &ServeArgs) -> AuditOptions {
    let own = || arguments.directory.join(AUDIT_NAME);
    let mut options = AuditOptions::new(arguments.audit.clone().unwrap_or_else(own));
    if arguments.audit_optional {
        options.on_failure = OnFailure::Serve;
    }
    options
}

fn init(arguments: &InitArgs) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let options = ProviderOptions {
        create_local_key: true,
        ..keys::provider_options_with(&arguments.keys, &[&arguments.kek])
    };
    let provider = provider_from_uri(&arguments.kek, &options)
        .map_err(|error| Failure::key(directory, &KeyError::Kek(error)))?;
    let settings = Settings {
        retention_days: arguments.retention_days,
        purge_protection: !arguments.no_purge_protection,
    };
    let id = Vault::create(directory, &*provider, &settings, pins(directory)?)
        .map_err(|error| failure(directory, &error))?;
    println!("made vault {id} in {}", directory.display());
    println!("Sealed by {}. Without it nothing can be read again.", arguments.kek);
    Ok(())
}

fn serve(arguments: &ServeArgs) -> Result<(), Failure> {
    let directory = &arguments.directory;
    daemon::raise_limits();
    logging::start(log_target(arguments.log.as_deref()), arguments.log_level)
        .map_err(|error| Failure::io("open the log of", directory, &error))?;
    let mut listen = listeners(arguments)?;
    listen.extend(arguments.imds.iter().map(|address| Listen::Metadata(*address)));
    let vault = open(directory, &arguments.keys, "vault serve", arguments.allow_rollback)?;
    let vault = Arc::new(vault);
    let access = access(directory, &vault, audit_options(arguments))?;
    let service = Arc::new(Service::new(vault.store.clone(), access));
    let server = Server::bind(service.clone(), listen, directory)
        .map_err(|error| Failure::new(Exit::Other, chain(&error)))?;
    let stop = Stop::new();
    stop_at_signal(&stop).map_err(|error| Failure::io("catch signals for", directory, &error))?;
    for address in server.addresses() {
        log::info!("serving {} on {address}", directory.display());
    }
    daemon::notify_service_manager("READY=1");
    let upkeep = maintain_regularly(vault.clone(), service, stop.clone())
        .map_err(|error| Failure::io("start a thread for", directory, &error))?;
    server.run(&stop);
    // The thread ends with `stop`, which has been said; its panics are logged.
    let _ = upkeep.join();
    vault.remember().map_err(|error| failure(directory, &error))?;
    log::info!("ended");
    Ok(())
}

fn log_target(place: Option<&Path>) -> logging::Target {
    match place.map(|path| (path, path.to_str())) {
        None | Some((_, Some("stderr"))) => logging::Target::Stderr,
        Some((_, Some("journal"))) => logging::Target::Journal,
        Some((_, Some("syslog"))) => logging::Target::Syslog,
        Some((path, _)) => logging::Target::File(path.to_owned()),
    }
}

fn listeners(arguments: &ServeArgs) -> Result<Vec<Listen>, Failure> {
    let usage = |text: &str| Failure::new(Exit::Usage, text);
    match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(certificate), Some(key)) => {
            let acceptor = Acceptor::new(certificate, key)
                .map_err(|error| Failure::new(Exit::Other, chain(&error)))?;
            let tls = |address: &SocketAddr| Listen::Tls(*address, acceptor.clone());
            Ok(arguments.listen.iter().map(tls).collect())
        }
        _ if arguments.insecure_loopback => {
            Ok(arguments.listen.iter().map(|address| Listen::Plain(*address)).collect())
        }
        _ => Err(usage("a vault is served with TLS: give --tls-cert and --tls-key")
            .hint("To try it out without, on loopback only: --insecure-loopback")),
    }
}

fn stop_at_signal(stop: &Stop) -> std::io::Result<()> {
    let mut signals = Signals::catch(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])?;
    let stop = stop.clone();
    let thread = std::thread::Builder::new().name("atrest-signals".to_owned());
    thread.spawn(move || {
        while let Ok(signal) = signals.wait() {
            match signal {
                Signal::SIGHUP => logging::reopen(),
                signal => {
                    log::info!("{signal}: ending");
                    stop.stop();
                }
            }
        }
    })?;
    Ok(())
}

/// Rotates and purges what is due, and has the host remember the newest change, once a minute.
fn maintain_regularly(
    vault: Arc<Vault>,
    service: Arc<Service>,
    stop: Stop,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("atrest-upkeep".to_owned());
    thread.spawn(move || {
        let mut known = vault.store.sequence();
        loop {
            service.maintain(now());
            let sequence = vault.store.sequence();
            if sequence != known {
                match vault.remember() {
                    Ok(()) => known = sequence,
                    Err(error) => log::warn!("{}", chain(&error)),
                }
            }
            if stop.wait(MAINTAIN_EVERY) {
                return;
            }
        }
    })
}

/// Opens a vault that is not served.
fn open(
    directory: &Path,
    keys: &KeyArgs,
    command: &str,
    allow_rollback: bool,
) -> Result<Vault, Failure> {
    let options = keys::provider_options(keys);
    Vault::open(directory, &options, pins(directory)?, command, allow_rollback)
        .map_err(|error| failure(directory, &error))
}

fn pins(directory: &Path) -> Result<PinStore, Failure> {
    PinStore::of_this_user().map_err(|error| failure(directory, &error.into()))
}

fn failure(directory: &Path, error: &VaultError) -> Failure {
    let place = directory.display();
    match error {
        VaultError::Key(KeyError::NoSuchSlot(id)) => {
            Failure::new(Exit::SlotMissing, format!("{place} has no key slot {id}"))
                .hint(format!("To see its slots: atrest vault slot list {place}"))
        }
        VaultError::Key(KeyError::LastSlot(id)) => {
            Failure::new(Exit::SlotLast, format!("slot {id} is the only key slot of {place}"))
                .hint("Nothing could open the vault again. Add another slot first:")
                .hint(format!("  atrest vault slot add {place} --kek URI"))
        }
        VaultError::Lock(LockError::Held(by)) => {
            let by = by.as_ref().map_or_else(|| "another process".to_owned(), LockInfo::to_string);
            Failure::new(Exit::VolumeLocked, format!("{place}: the vault is in use by {by}")).hint(
                "Keys, secrets and callers are managed while it is served, key slots are not.",
            )
        }
        VaultError::Key(error) => Failure::key(directory, error),
        VaultError::Lock(error) => Failure::lock(directory, error),
        VaultError::Io { attempt, path, source } => Failure::io(attempt, path, source),
        VaultError::NotAVault(_) => Failure::new(Exit::ConfigMissing, error.to_string())
            .hint(format!("To make one: atrest vault init {place}")),
        VaultError::NotEmpty(_) => Failure::new(Exit::VolumeNotEmpty, error.to_string())
            .hint("A vault needs a directory of its own."),
        VaultError::RolledBack => Failure::new(Exit::RolledBack, error.to_string())
            .hint("If you restored a backup: give --allow-rollback once. What was purged, disabled")
            .hint("or revoked since then is not any more."),
        VaultError::Store(_) => Failure::new(Exit::VolumeDamaged, chain(error))
            .hint("Restore the vault's directory from a backup."),
        VaultError::OpenToOthers(_) | VaultError::Pin(_) | VaultError::Retention(_) => {
            Failure::new(Exit::Other, chain(error))
        }
    }
}
