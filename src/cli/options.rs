//! The `-o` options of `atrest mount` and of /etc/fstab.

use std::path::PathBuf;

use super::args::{AuditArgs, ExpiryName, KeyArgs, MountArgs, OutageName, duration};
use super::exit::Exit;
use super::hint::Failure;
use crate::daemon::metrics::Endpoint;
use crate::daemon::{AllowOther, IoUring, OnOutage, Options, Policy};

/// What a list of options says of a volume's mount.
#[derive(Debug)]
pub struct Parsed {
    /// What it says of any mount.
    pub common: Common,
    /// For finding keys: what was typed, and what the options add.
    pub keys: KeyArgs,
    /// For how long the key is good without being asked for again.
    pub lease: Policy,
    /// Whether a key past its expiry is a key denied.
    pub expiry_denies: bool,
    /// Where uses of keys are put on record.
    pub audit: AuditArgs,
    /// Where metrics are served.
    pub metrics: Option<Endpoint>,
}

/// What a list of options says of a mount, whatever is mounted.
#[derive(Debug)]
pub struct Common {
    /// For the mount itself.
    pub mount: Options,
    /// The mount point need not be empty.
    pub nonempty: bool,
    /// Where to log, if an option says.
    pub log: Option<PathBuf>,
}

/// Options of fstab(5), mount(8) and systemd.mount(5) that are for others to read, or that say what
/// is so anyway.
const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "exec",
    "group",
    "noauto",
    "nodev",
    "nofail",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "rw",
    "user",
    "users",
];

/// Reads the options of `arguments`, for the volume at the canonical path `source`.
///
/// # Errors
/// [`Exit::Usage`] for an option that is not known or has no good value.
pub fn parse(arguments: &MountArgs, source: PathBuf) -> Result<Parsed, Failure> {
    let mut parsed = Parsed {
        common: Common::new(source, arguments.log.clone()),
        keys: arguments.keys.clone(),
        lease: Policy {
            check: arguments.kek_check,
            grace: arguments.kek_grace,
            on_outage: match arguments.on_outage {
                OutageName::Lock => OnOutage::Lock,
                OutageName::Serve => OnOutage::Serve,
            },
        },
        expiry_denies: arguments.kek_expiry == ExpiryName::Lock,
        audit: arguments.audit.clone(),
        metrics: arguments.metrics.clone(),
    };
    parsed.common.mount.read_only |= arguments.read_only;
    each(&arguments.options, |name, value| {
        parsed.common.set(name, value) || parsed.set(name, value)
    })?;
    Ok(parsed)
}

/// Reads the options of a mount that has no key.
///
/// # Errors
/// As [`parse`].
pub fn parse_common(
    options: &[String],
    source: PathBuf,
    log: Option<PathBuf>,
) -> Result<Common, Failure> {
    let mut common = Common::new(source, log);
    each(options, |name, value| common.set(name, value))?;
    Ok(common)
}

/// Calls `set` with the name and the value of every option; it returns whether it knows it.
fn each(
    options: &[String],
    mut set: impl FnMut(&str, Option<&str>) -> bool,
) -> Result<(), Failure> {
    for option in options.iter().filter(|option| !option.is_empty()) {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        if !set(name, value) {
            let message = format!("unknown mount option, or bad value: {option}");
            return Err(Failure::new(Exit::Usage, message)
                .hint("To see the options: atrest mount --help, and the manual"));
        }
    }
    Ok(())
}

impl Common {
    fn new(source: PathBuf, log: Option<PathBuf>) -> Self {
        Self { mount: Options::new(source), nonempty: false, log }
    }

    fn set(&mut self, name: &str, value: Option<&str>) -> bool {
        let Some(value) = value else { return self.switch(name) };
        match name {
            "threads" => match value.parse() {
                Ok(threads) if (1..=Options::THREADS_MAX).contains(&threads) => {
                    self.mount.threads = threads;
                }
                _ => return false,
            },
            "io_uring" => match value {
                "auto" => self.mount.io_uring = IoUring::Auto,
                "on" => self.mount.io_uring = IoUring::On,
                "off" => self.mount.io_uring = IoUring::Off,
                _ => return false,
            },
            "log" => self.log = Some(value.into()),
            name => return name == "comment" || name.starts_with("x-"),
        }
        true
    }

    fn switch(&mut self, name: &str) -> bool {
        match name {
            "ro" => self.mount.read_only = true,
            "suid" => self.mount.suid = true,
            "dev" => self.mount.dev = true,
            "noexec" => self.mount.exec = false,
            "noatime" => self.mount.atime = false,
            "sync" => self.mount.sync = true,
            "allow_other" => self.mount.allow_other = AllowOther::Yes,
            "noallow_other" => self.mount.allow_other = AllowOther::No,
            "nonempty" => self.nonempty = true,
            name => return IGNORED.contains(&name) || name.starts_with("x-"),
        }
        true
    }
}

impl Parsed {
    fn set(&mut self, name: &str, value: Option<&str>) -> bool {
        let Some(value) = value else {
            self.audit.strict |= name == "audit-strict";
            return name == "audit-strict";
        };
        match name {
            "slot" => match value.parse() {
                Ok(slot) => self.keys.slot = Some(slot),
                Err(_) => return false,
            },
            "passphrase-file" => self.keys.source.passphrase_file = Some(value.into()),
            "key-store" => self.keys.source.key_store = Some(value.into()),
            "allow-kek" => self.keys.source.allow.push(value.to_owned()),
            "kek-check" => match duration(value) {
                Ok(time) => self.lease.check = time,
                Err(_) => return false,
            },
            "kek-grace" => match duration(value) {
                Ok(time) => self.lease.grace = time,
                Err(_) => return false,
            },
            "on-outage" => match value {
                "lock" => self.lease.on_outage = OnOutage::Lock,
                "serve" => self.lease.on_outage = OnOutage::Serve,
                _ => return false,
            },
            "kek-expiry" => match value {
                "lock" => self.expiry_denies = true,
                "serve" => self.expiry_denies = false,
                _ => return false,
            },
            "metrics" => match value.parse() {
                Ok(endpoint) => self.metrics = Some(endpoint),
                Err(_) => return false,
            },
            "audit" => self.audit.places.push(value.into()),
            "audit-max-bytes" => match value.parse() {
                Ok(bytes) => self.audit.max_bytes = Some(bytes),
                Err(_) => return false,
            },
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser as _;

    fn parsed(options: &str) -> Result<Parsed, Failure> {
        let cli = Cli::parse_from(["atrest", "mount", "/v", "/m", "-o", options]);
        let Command::Mount(arguments) = cli.command else { unreachable!("it says mount") };
        parse(&arguments, PathBuf::from("/v"))
    }

    /// A line of fstab with everything that others read.
    #[test]
    fn fstab_line() {
        let line = "rw,noauto,user,_netdev,x-systemd.automount,x-systemd.requires=a,nofail,ro";
        let parsed = parsed(line).unwrap();
        assert!(parsed.common.mount.read_only);
        assert!(!parsed.common.mount.suid && !parsed.common.mount.dev && parsed.common.mount.exec);
    }

    /// Options that are ours, and their bounds.
    #[test]
    fn own_options() {
        let parsed_ok = parsed("threads=4,noexec,allow_other,slot=2,allow-kek=akv:x/").unwrap();
        assert_eq!(parsed_ok.common.mount.threads, 4);
        assert!(!parsed_ok.common.mount.exec);
        assert_eq!(parsed_ok.common.mount.allow_other, AllowOther::Yes);
        assert_eq!(parsed_ok.keys.slot, Some(2));
        assert_eq!(parsed_ok.keys.source.allow, ["akv:x/"]);
        let io_uring = |options| parsed(options).unwrap().common.mount.io_uring;
        assert_eq!((io_uring("ro"), io_uring("io_uring=auto")), (IoUring::Off, IoUring::Auto));
        assert_eq!(
            (io_uring("io_uring=on"), io_uring("io_uring=off")),
            (IoUring::On, IoUring::Off)
        );
        for bad in [
            "io_uring",
            "io_uring=yes",
            "threads=0",
            "threads=65",
            "threads=x",
            "slot=-1",
            "mystery",
            "a=b",
        ] {
            assert_eq!(parsed(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
