//! What was typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::app::AppCommand;
use super::package::PackageCommand;
use super::vault::VaultCommand;
use crate::daemon::metrics::Endpoint;

/// Encryption at rest for Linux directories, with keys that you control.
#[derive(Debug, Parser)]
#[command(name = "atrest", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume
    #[command(after_help = "Examples:\n  atrest init /srv/vault\n  \
        atrest init /srv/vault --kek local:web --kek passphrase:\n  \
        atrest init /srv/vault --kek azure:https://NAME.vault.azure.net/keys/KEY")]
    Init(InitArgs),
    /// Mount a volume
    #[command(after_help = "Examples:\n  atrest mount /srv/vault /mnt/clear\n  \
        atrest mount /srv/vault /mnt/clear -o ro,noexec --passphrase-file /run/secrets/vault")]
    Mount(MountArgs),
    /// Unmount, and wait until everything is durable
    #[command(
        visible_alias = "unmount",
        after_help = "Examples:\n  atrest umount /mnt/clear\n  \
        atrest umount --lazy /mnt/clear"
    )]
    Umount(UmountArgs),
    /// Take the keys of a mount out of memory; it stays mounted, and refuses everything
    #[command(after_help = "Example:\n  atrest lock /mnt/clear")]
    Lock(LockArgs),
    /// Go on with a mount that was locked
    #[command(after_help = "Examples:\n  atrest unlock /mnt/clear\n  \
        atrest unlock --passphrase-file /run/secrets/vault /mnt/clear")]
    Unlock(UnlockArgs),
    /// Show the state of a volume or mount
    #[command(after_help = "Examples:\n  atrest status /mnt/clear\n  \
        atrest status --json /srv/vault")]
    Status(StatusArgs),
    /// Show what can be known of a volume without its keys, or with them
    #[command(after_help = "Examples:\n  atrest inspect /srv/vault\n  \
        atrest inspect --unlock --json /srv/vault\n  \
        atrest inspect --path /etc/passwd /srv/vault")]
    Inspect(InspectArgs),
    /// Check a volume that is not mounted, and repair it
    #[command(after_help = "Examples:\n  atrest fsck /srv/vault\n  \
        atrest fsck --repair --salvage /srv/rescued /srv/vault")]
    Fsck(FsckArgs),
    /// Manage the keys of a volume
    #[command(subcommand)]
    Key(KeyCommand),
    /// Try a key-encryption key before a volume depends on it
    #[command(subcommand)]
    Kek(KekCommand),
    /// Judge the record of what was done with a volume's keys
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Serve a ZIP package as a read-only tree
    #[command(subcommand)]
    Package(PackageCommand),
    /// Run an app from a package, as web hosts do
    #[command(subcommand)]
    App(AppCommand),
    /// Make, serve and manage a key vault of your own
    #[command(subcommand)]
    Vault(VaultCommand),
}

/// Where keys come from.
#[derive(Args, Clone, Debug, Default)]
pub struct KeySourceArgs {
    /// Allow this key-encryption key; a URI, or a prefix that ends in ":" or "/"
    #[arg(long = "allow-kek", value_name = "URI")]
    pub allow: Vec<String>,
    /// Read the passphrase from the first line of this file
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Directory of local keys, instead of the default one
    #[arg(long, value_name = "DIRECTORY")]
    pub key_store: Option<PathBuf>,
}

/// Where keys come from, and which slot opens the volume.
#[derive(Args, Clone, Debug, Default)]
pub struct KeyArgs {
    /// Open with this key slot only
    #[arg(long, value_name = "NUMBER")]
    pub slot: Option<u32>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub source: KeySourceArgs,
}

/// Where uses of keys are put on record.
#[derive(Args, Clone, Debug, Default)]
pub struct AuditArgs {
    /// Put each use of a key on record in this file, or with "syslog"; once each
    #[arg(long = "audit", value_name = "WHERE")]
    pub places: Vec<PathBuf>,
    /// Do nothing that cannot be put on record
    #[arg(long = "audit-strict")]
    pub strict: bool,
    /// Begin another file when this one has so many bytes; none is deleted
    #[arg(long = "audit-max-bytes", value_name = "BYTES")]
    pub max_bytes: Option<u64>,
}

/// Cipher of a volume's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CipherName {
    /// AES-256-GCM: contents are authenticated
    #[value(name = "aes-256-gcm")]
    Gcm,
    /// AES-256-XTS: lighter, contents are not authenticated
    #[value(name = "aes-256-xts")]
    Xts,
}

/// `atrest init`
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Directory of the new volume; made if missing, else it must be empty
    pub volume: PathBuf,
    /// Key-encryption key: passphrase:, local:NAME, or the URI of a key service. Given again: one
    /// more key slot, tried after those before
    #[arg(long, value_name = "URI", default_value = "local:")]
    pub kek: Vec<String>,
    /// Cipher of the contents
    #[arg(long, value_enum, default_value = "aes-256-gcm")]
    pub cipher: CipherName,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeySourceArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest mount`
#[derive(Args, Debug)]
pub struct MountArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Empty directory where its contents appear
    pub mountpoint: PathBuf,
    /// Mount options, comma-separated; see the manual
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Write nothing, like -o ro: for a volume that is damaged or on a read-only disk
    #[arg(long)]
    pub read_only: bool,
    /// Do not fork; end when it is unmounted
    #[arg(short, long)]
    pub foreground: bool,
    /// Log to FILE, "journal", "syslog" or "stderr"
    #[arg(long, visible_alias = "log-file", value_name = "WHERE")]
    pub log: Option<PathBuf>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
    /// Ask for the key again this often (30s, 5m)
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub kek_check: Duration,
    /// How long to serve while the key service does not answer (0s, 24h)
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub kek_grace: Duration,
    /// What to do then: lock, or serve until the key is denied
    #[arg(long, value_enum, default_value = "lock")]
    pub on_outage: OutageName,
    /// What to do when the key has expired: lock, or serve as long as its service unwraps
    #[arg(long, value_enum, default_value = "lock")]
    pub kek_expiry: ExpiryName,
    /// Serve metrics for Prometheus at unix:PATH or tcp:127.0.0.1:PORT
    #[arg(long, value_name = "WHERE")]
    pub metrics: Option<Endpoint>,
    /// Mount although the volume is older than this host has seen it
    #[arg(long)]
    pub allow_rollback: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest umount`
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Mount point, or directory of the volume
    pub path: PathBuf,
    /// Disappear now, and end when the last user is gone
    #[arg(short, long)]
    pub lazy: bool,
}

/// `atrest lock`
#[derive(Args, Debug)]
pub struct LockArgs {
    /// Mount point, or directory of the volume
    pub path: PathBuf,
}

/// `atrest unlock`
#[derive(Args, Debug)]
pub struct UnlockArgs {
    /// Mount point, or directory of the volume
    pub path: PathBuf,
    /// Open it with this key slot, which the lease is on from then on
    #[arg(long, value_name = "NUMBER")]
    pub slot: Option<u32>,
    /// Have the daemon read the passphrase from the first line of this file
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// `atrest status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Mount point, or directory of the volume; without it: everything that is mounted
    pub path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `atrest inspect`
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Open it with its keys, and show what they show
    #[arg(long)]
    pub unlock: bool,
    /// Open it with its keys, and show what is stored about this path in it
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest fsck`
#[derive(Args, Debug)]
pub struct FsckArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Verify every page of every file, not only metadata
    #[arg(long)]
    pub deep: bool,
    /// Repair what is damaged; without it, what that would do is only said. Implies --deep
    #[arg(long)]
    pub repair: bool,
    /// Copy what authenticates into this new directory; with --repair, before it, of damaged
    /// files only
    #[arg(long, value_name = "DIRECTORY")]
    pub salvage: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest key`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List key slots
    List(KeyListArgs),
    /// Add a key slot
    #[command(after_help = "Example:\n  atrest key add /srv/vault --kek local:backup")]
    Add(KeyAddArgs),
    /// Remove a key slot
    #[command(after_help = "Example:\n  atrest key remove /srv/vault 2")]
    Remove(KeyRemoveArgs),
    /// Wrap the volume key under newer or other key-encryption keys, or a new passphrase
    #[command(after_help = "Examples:\n  atrest key rotate /srv/vault\n  \
        atrest key rotate /srv/vault --slot 1 --to azure:https://NAME.vault.azure.net/keys/KEY\n  \
        atrest key rotate /srv/vault --slot 2 --new-passphrase-file FILE")]
    Rotate(KeyRotateArgs),
    /// Try every key slot: does it unwrap, can it be wrapped again, is its key in good condition
    Verify(KeyVerifyArgs),
}

/// `atrest key list`
#[derive(Args, Debug)]
pub struct KeyListArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `atrest key add`
#[derive(Args, Debug)]
pub struct KeyAddArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// The key-encryption key to add
    #[arg(long, value_name = "URI")]
    pub kek: String,
    /// Read the passphrase of the new slot from the first line of this file
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest key remove`
#[derive(Args, Debug)]
pub struct KeyRemoveArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Number of the slot
    pub remove: u32,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest key rotate`
#[derive(Args, Debug)]
pub struct KeyRotateArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Rotate this slot only, and always
    #[arg(long, visible_alias = "rotate-slot", value_name = "NUMBER")]
    pub slot: Option<u32>,
    /// Wrap the slot under this key-encryption key instead of its own
    #[arg(long, value_name = "URI", requires = "slot", conflicts_with = "new_version")]
    pub to: Option<String>,
    /// Open the volume with this key slot only
    #[arg(long, value_name = "NUMBER")]
    pub open_slot: Option<u32>,
    /// Make a new version of each key first
    #[arg(long)]
    pub new_version: bool,
    /// Read the new passphrase from the first line of this file
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeySourceArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest key verify`
#[derive(Args, Debug)]
pub struct KeyVerifyArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest audit`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Find what was edited, removed, put elsewhere or cut off
    #[command(after_help = "Example:\n  \
        atrest audit verify /srv/vault /var/log/atrest/audit.jsonl.1 /var/log/atrest/audit.jsonl")]
    Verify(AuditVerifyArgs),
}

/// `atrest audit verify`
#[derive(Args, Debug)]
pub struct AuditVerifyArgs {
    /// Directory of the volume
    pub volume: PathBuf,
    /// The files of the log, the oldest first
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// The number of the first record, where older files are kept elsewhere
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "1",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub first: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub audit: AuditArgs,
}

/// `atrest kek`
#[derive(Debug, Subcommand)]
pub enum KekCommand {
    /// Resolve, connect, authenticate, wrap and unwrap, and say what is missing
    #[command(after_help = "Example:\n  \
        atrest kek check azure:https://NAME.vault.azure.net/keys/KEY")]
    Check(KekCheckArgs),
}

/// `atrest kek check`
#[derive(Args, Debug)]
pub struct KekCheckArgs {
    /// The key-encryption key
    pub uri: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeySourceArgs,
}

/// What a mount does when nobody answers for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutageName {
    /// Lock when the grace is over
    Lock,
    /// Serve for as long as nobody denies the key
    Serve,
}

/// What a mount does with a key past its expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExpiryName {
    /// Lock, as if it were denied
    Lock,
    /// Serve for as long as the service unwraps
    Serve,
}

/// `90s`, `5m`, `1h 30m`; at most ten years, which no lease outlives.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|_| "not a time; write it like 30s, 5m or 24h".to_owned())?;
    let time = Duration::try_from(parsed).map_err(|_| "it is negative".to_owned())?;
    let most = Duration::from_secs(10 * 366 * 24 * 3600);
    if time <= most { Ok(time) } else { Err("it is longer than ten years".to_owned()) }
}

/// The arguments as `atrest` would be given them, if the program was started by mount(8) or
/// umount(8) as their helper: `mount.TYPE SOURCE TARGET [-sfnv] [-N NAMESPACE] [-o OPTIONS]`.
/// `None`: nothing is to be done (`-f`, a dry run).
pub fn from_helper(arguments: Vec<OsString>) -> Option<Vec<OsString>> {
    let program = arguments.first().map(PathBuf::from).unwrap_or_default();
    let command = match program.file_name().and_then(|name| name.to_str()) {
        Some("mount.atrest" | "mount.fuse.atrest") => "mount",
        Some("umount.atrest" | "umount.fuse.atrest") => "umount",
        _ => return Some(arguments),
    };
    let mut translated: Vec<OsString> = vec!["atrest".into(), command.into()];
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        match text.strip_prefix('-') {
            Some("o") => translated.extend([argument].into_iter().chain(rest.next())),
            Some("N" | "t") => drop(rest.next()),
            Some(flags) if !flags.is_empty() => {
                if flags.contains('f') && command == "mount" {
                    return None;
                }
                if flags.contains('l') && command == "umount" {
                    translated.push("--lazy".into());
                }
            }
            _ => translated.push(argument),
        }
    }
    Some(translated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn helper(line: &str) -> Option<String> {
        let arguments = line.split(' ').map(OsString::from).collect();
        let translated = from_helper(arguments)?;
        Some(translated.join(" ".as_ref()).into_string().expect("ASCII"))
    }

    /// clap's own checks of the definitions.
    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    /// What mount(8) and umount(8) pass to their helpers.
    #[test]
    fn helpers_of_mount() {
        let translated = helper("/sbin/mount.fuse.atrest /srv/v /mnt -n -o rw,noauto -N 5");
        assert_eq!(translated.as_deref(), Some("atrest mount /srv/v /mnt -o rw,noauto"));
        assert_eq!(helper("/sbin/mount.atrest /srv/v /mnt -sfv"), None);
        let translated = helper("/sbin/umount.fuse.atrest /mnt -l -t fuse.atrest");
        assert_eq!(translated.as_deref(), Some("atrest umount /mnt --lazy"));
        assert_eq!(helper("atrest mount -f a b").as_deref(), Some("atrest mount -f a b"));
    }
}
