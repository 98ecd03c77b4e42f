//! From typed errors to what the user reads: a fact, and what to do about it.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::Path;

use super::exit::Exit;
use crate::daemon::{self, MountError, NoRings};
use crate::format::config::ConfigError;
use crate::key::{KekError, KekErrorKind, KeyError, SlotFailure};
use crate::storage::LockError;

/// Why a command failed, as it is printed.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub exit: Exit,
    /// The fact: one line without a full stop.
    pub message: String,
    /// Details and advice, a line each.
    pub details: Vec<String>,
}

impl Failure {
    /// A failure without details.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), details: Vec::new() }
    }

    /// The same with one more line.
    #[must_use]
    pub fn hint(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// A failed system call on `path`.
    pub fn io(attempt: &str, path: &Path, error: &io::Error) -> Self {
        let message = format!("cannot {attempt} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::new(Exit::NoSpace, message)
            }
            io::ErrorKind::ReadOnlyFilesystem => Self::new(Exit::ReadOnly, message)
                .hint("To mount without writing: atrest mount -o ro"),
            _ => Self::new(Exit::Other, message),
        }
    }

    /// A configuration that is refused.
    pub fn config(volume: &Path, error: &ConfigError) -> Self {
        let message = format!("{}: {error}", volume.join("atrest.json").display());
        match error {
            ConfigError::UnsupportedVersion(_) => Self::new(Exit::VersionUnsupported, message)
                .hint("Use the version of atrest that made it, or a newer one."),
            ConfigError::MacMismatch(_) => Self::new(Exit::ConfigForged, message)
                .hint("Restore atrest.json from a backup, and find out who wrote to the volume."),
            ConfigError::TooLarge { .. }
            | ConfigError::NotJson { .. }
            | ConfigError::UnknownField(_)
            | ConfigError::Schema(_)
            | ConfigError::Invalid { .. }
            | ConfigError::NotCanonical => Self::new(Exit::ConfigDamaged, message)
                .hint("Restore atrest.json from a backup. Without it nothing can be read."),
        }
    }

    /// Keys that could not be had or changed.
    pub fn key(volume: &Path, error: &KeyError) -> Self {
        let place = volume.display();
        match error {
            KeyError::Config(error) => Self::config(volume, error),
            KeyError::UnknownCipher(name) => {
                Self::new(Exit::VersionUnsupported, format!("{place}: unknown cipher {name:?}"))
            }
            KeyError::NoSlot(failures) => {
                let message = format!("no key slot opens {place}");
                Self::slots(Self::new(exit_of_slots(failures), message), failures)
            }
            KeyError::Denied { failures, untried } => {
                let denied = failures.last().map_or(0, |failure| failure.slot);
                let message = format!("the key of slot {denied} of {place} was taken away");
                let failure = Self::slots(Self::new(Exit::KeyDenied, message), failures);
                let untried: Vec<_> = untried.iter().map(|id| format!("--slot {id}")).collect();
                failure
                    .hint("No other slot stands in for a key that was taken away. To use one:")
                    .hint(format!("  {}", untried.join(" or ")))
            }
            KeyError::NoSuchSlot(id) => {
                Self::new(Exit::SlotMissing, format!("{place} has no key slot {id}"))
                    .hint(format!("To see its slots: atrest key list {place}"))
            }
            KeyError::LastSlot(id) => {
                Self::new(Exit::SlotLast, format!("slot {id} is the only key slot of {place}"))
                    .hint("Nothing could open the volume again. Add another slot first:")
                    .hint(format!("  atrest key add {place} --kek URI"))
            }
            KeyError::SlotsFull => {
                Self::new(Exit::SlotsFull, format!("{place} has as many key slots as can be"))
            }
            KeyError::CannotUnwrap(error) => {
                let message = format!("the key wraps but does not unwrap: {}", kek_text(error));
                let failure = Self::new(kek_exit(error), message)
                    .hint("Nothing could be read again; nothing was changed.");
                advice(error).into_iter().fold(failure, Self::hint)
            }
            KeyError::Kek(error) => {
                let failure = Self::new(kek_exit(error), kek_text(error));
                advice(error).into_iter().fold(failure, Self::hint)
            }
        }
    }

    /// A line for each slot that did not open, and what to do about it.
    fn slots(failure: Self, failures: &[SlotFailure]) -> Self {
        failures.iter().fold(failure, |failure, SlotFailure { slot, error }| {
            let failure = failure.hint(format!("slot {slot}: {}", kek_text(error)));
            let lines = advice(error).into_iter().map(|line| format!("  {line}"));
            lines.fold(failure, Self::hint)
        })
    }

    /// A volume that somebody else has.
    pub fn lock(volume: &Path, error: &LockError) -> Self {
        let place = volume.display();
        match error {
            LockError::Held(_) => Self::new(Exit::VolumeLocked, format!("{place}: {error}"))
                .hint(format!("To see more: atrest status {place}")),
            LockError::Unsupported => Self::new(Exit::VolumeLocked, format!("{place}: {error}"))
                .hint("Two daemons on one volume would destroy it. Move it to another filesystem."),
            LockError::Io(source) => Self::io("lock", volume, source),
        }
    }

    /// A daemon that did not start, or did not end well.
    pub fn daemon(error: &daemon::Error) -> Self {
        match error {
            daemon::Error::Mount(error) => Self::mount(error),
            daemon::Error::Audit(_) => Self::new(Exit::AuditUnwritable, chain(error)),
            daemon::Error::Close(_) => Self::new(Exit::NotDurable, error.to_string())
                .hint("What was written last may be lost; the log says more."),
            daemon::Error::Process { .. } | daemon::Error::Session(_) => {
                Self::new(Exit::Other, chain(error))
            }
        }
    }

    fn mount(error: &MountError) -> Self {
        match error {
            MountError::Device(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(Exit::NoFuse, chain(error))
                    .hint("Everybody may use it on most hosts: chmod 666 /dev/fuse")
            }
            MountError::Device(_) => Self::new(Exit::NoFuse, chain(error))
                .hint("To load the kernel's module: modprobe fuse")
                .hint("In a container, give it the device: --device /dev/fuse"),
            MountError::AllowOther => Self::new(Exit::AllowOtherRefused, error.to_string())
                .hint("Leave allow_other out, or let root add a line to /etc/fuse.conf:")
                .hint("  user_allow_other"),
            MountError::Mount { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::new(
                    Exit::NoHelper,
                    "fusermount3 is not installed, and only root mounts \
                    without it",
                )
                .hint("Install the package fuse3.")
            }
            MountError::NoIoUring(NoRings::Disabled) => {
                Self::new(Exit::MountRefused, error.to_string())
                    .hint("To allow it: echo Y > /sys/module/fuse/parameters/enable_uring")
                    .hint("To do without: -o io_uring=off")
            }
            MountError::NoIoUring(_) => Self::new(Exit::MountRefused, error.to_string())
                .hint("To do without: -o io_uring=off"),
            MountError::Loops(_) | MountError::Mount { .. } | MountError::Handshake(_) => {
                Self::new(Exit::MountRefused, chain(error))
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        self.details.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// `error` and its causes, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The exit code for a KEK that failed.
pub fn kek_exit(error: &KekError) -> Exit {
    match error.kind() {
        KekErrorKind::Denied { .. } | KekErrorKind::Disabled | KekErrorKind::Gone { .. } => {
            Exit::KeyDenied
        }
        KekErrorKind::Throttled { .. } | KekErrorKind::Unreachable { .. } => Exit::KeyUnreachable,
        KekErrorKind::AuthenticationFailed { .. } => Exit::KeyUnauthenticated,
        KekErrorKind::BadRequest { .. } => Exit::KeyRefused,
        KekErrorKind::Integrity => Exit::NoSlotOpens,
        KekErrorKind::Configuration { .. } => Exit::KeyNotConfigured,
    }
}

/// Of several reasons the one that was decided by somebody, else the one that the user can do most
/// about; a wrong passphrase says least.
fn exit_of_slots(failures: &[SlotFailure]) -> Exit {
    let order = [
        Exit::KeyDenied,
        Exit::KeyNotConfigured,
        Exit::KeyUnauthenticated,
        Exit::KeyUnreachable,
        Exit::KeyRefused,
    ];
    let met = |exit: &Exit| failures.iter().any(|failure| kek_exit(&failure.error) == *exit);
    order.into_iter().find(met).unwrap_or(Exit::NoSlotOpens)
}

/// What to do about a KEK that failed, a line each; nothing where its own words say it.
pub fn advice(error: &KekError) -> Vec<String> {
    let kind = error.provider().split(':').next().unwrap_or_default();
    let is_service = matches!(kind, "azure" | "transit" | "aws");
    let text = match error.kind() {
        KekErrorKind::Denied { .. } => match kind {
            "azure" => {
                "Grant the identity the role \"Key Vault Crypto Service Encryption User\" on the \
                 key, or get, wrapKey and unwrapKey in an access policy. It may take minutes."
            }
            "transit" => {
                "Give it a policy with the capability update on transit/encrypt/KEY and \
                 transit/decrypt/KEY, and read on transit/keys/KEY."
            }
            "aws" => {
                "Allow kms:Encrypt, kms:Decrypt and kms:DescribeKey on the key, in a policy of the \
                 identity or of the key."
            }
            _ => return Vec::new(),
        },
        KekErrorKind::Disabled => "Enable the version of the key where it lives.",
        KekErrorKind::Gone { recoverable: true } => {
            "Recover the deleted key where it lives, before its retention ends."
        }
        KekErrorKind::Gone { recoverable: false } => {
            "Restore the key from a backup of where it lives. Is the name right?"
        }
        KekErrorKind::Unreachable { .. }
        | KekErrorKind::AuthenticationFailed { .. }
        | KekErrorKind::BadRequest { .. }
            if is_service =>
        {
            return vec![format!("To see which step fails: atrest kek check {}", error.provider())];
        }
        KekErrorKind::Integrity if kind != "passphrase" => {
            "The slot was changed, or its key is another one now: use another slot (--slot), or \
             restore the file with the slots from a backup."
        }
        KekErrorKind::Throttled { .. }
        | KekErrorKind::Unreachable { .. }
        | KekErrorKind::AuthenticationFailed { .. }
        | KekErrorKind::BadRequest { .. }
        | KekErrorKind::Integrity
        | KekErrorKind::Configuration { .. } => return Vec::new(),
    };
    vec![text.to_owned()]
}

/// An error of a provider with its causes, unless its own words are theirs already.
pub fn kek_text(error: &KekError) -> String {
    match error.kind() {
        KekErrorKind::Configuration { .. } => error.to_string(),
        _ if error.source().is_some() => chain(error),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Fact first, one line each for the rest.
    #[test]
    fn failures_print_fact_then_advice() {
        let failure = Failure::new(Exit::Busy, "it is busy").hint("process 1").hint("To see: x");
        assert_eq!(failure.to_string(), "error: it is busy\n  process 1\n  To see: x");
    }

    /// Whatever a key service answers, what is shown says what to do about it.
    #[test]
    fn every_answer_has_advice() {
        let reason = String::new;
        for (kind, words) in [
            (KekErrorKind::Denied { reason: reason() }, "Grant the identity the role"),
            (KekErrorKind::Disabled, "Enable the version"),
            (KekErrorKind::Gone { recoverable: true }, "Recover the deleted key"),
            (KekErrorKind::Gone { recoverable: false }, "Restore the key from a backup"),
            (KekErrorKind::Throttled { retry_after: None }, "too many requests"),
            (KekErrorKind::Throttled { retry_after: Some(Duration::from_secs(9)) }, "in 9 s"),
            (KekErrorKind::Unreachable { reason: reason() }, "atrest kek check azure:https://v"),
            (KekErrorKind::AuthenticationFailed { reason: reason() }, "atrest kek check azure:"),
            (KekErrorKind::BadRequest { reason: reason() }, "atrest kek check azure:"),
            (KekErrorKind::Integrity, "restore the file with the slots"),
            (KekErrorKind::Configuration { problem: "set x".into() }, "set x"),
        ] {
            let error = KekError::new(kind, "azure:https://v/keys/k", "");
            let shown = format!("{error} {}", advice(&error).join(" "));
            assert!(shown.contains(words), "{words}: {shown}");
        }
    }

    /// A wrong passphrase, a refusal and an outage have exit codes of their own.
    #[test]
    fn provider_errors_differ() {
        let exit = |kind| kek_exit(&KekError::new(kind, "akv:x", ""));
        assert_eq!(exit(KekErrorKind::Integrity), Exit::NoSlotOpens);
        assert_eq!(exit(KekErrorKind::Disabled), Exit::KeyDenied);
        assert_eq!(exit(KekErrorKind::Throttled { retry_after: None }), Exit::KeyUnreachable);
        let reason = String::new();
        let refused = KekErrorKind::AuthenticationFailed { reason: reason.clone() };
        assert_eq!(exit(refused), Exit::KeyUnauthenticated);
        assert_eq!(exit(KekErrorKind::BadRequest { reason }), Exit::KeyRefused);
    }

    /// Each system error that users meet has its code.
    #[test]
    fn system_errors() {
        let exit = |errno| {
            Failure::io("write", Path::new("/x"), &io::Error::from_raw_os_error(errno)).exit
        };
        assert_eq!(exit(libc::ENOSPC), Exit::NoSpace);
        assert_eq!(exit(libc::EROFS), Exit::ReadOnly);
        assert_eq!(exit(libc::EACCES), Exit::Other);
    }
}
