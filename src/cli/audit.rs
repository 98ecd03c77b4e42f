//! Where uses of keys are put on record, what is put there, and `atrest audit`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::args::{AuditArgs, AuditCommand, AuditVerifyArgs};
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::{keys, place};
use crate::audit::{
    Asker, Audit, Entry, Event, Kek, NotRecorded, Options, Report, Verifier, Where,
};
use crate::daemon::{self, paths};
use crate::format::config::{AuditAnchor, Config, ConfigError, KeySlot};
use crate::key::pin::{Freshness, PinStore, check as check_pin};
use crate::key::{KekError, KeyError, Opened, SlotFailure, read_host_file};
use crate::storage::OsStorage;
use crate::volume::newest_sequence;

/// Where records go unless the command line says.
const HOST_FILE: &str = "/etc/atrest/audit.toml";
/// How long a daemon may take to say how far its log goes.
const PATIENCE: Duration = Duration::from_secs(5);
/// A configuration that is being replaced while it is looked at is looked at again.
const ATTEMPTS: u32 = 5;

/// What the host's file says.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    #[serde(default)]
    audit: Vec<PathBuf>,
    #[serde(default)]
    strict: bool,
    max_bytes: Option<u64>,
}

/// The log that the command line names, or else the host's file; of the volume with this id.
///
/// # Errors
/// [`Exit::Usage`] for places that make no sense.
pub fn open(arguments: &AuditArgs, volume_id: &str) -> Result<Arc<Audit>, Failure> {
    let options = options(arguments)?;
    Ok(Arc::new(Audit::new(options, volume_id)))
}

/// The same, of the volume in this directory, as its configuration names it.
///
/// # Errors
/// As of [`open`], and those of reading the configuration.
pub fn open_for(arguments: &AuditArgs, volume: &Path) -> Result<Arc<Audit>, Failure> {
    open(arguments, &place::config(volume)?.claims().volume_id.to_string())
}

fn options(arguments: &AuditArgs) -> Result<Options, Failure> {
    let refuse = |message: String| Failure::new(Exit::Usage, message);
    let host = if arguments.places.is_empty() { host_file()? } else { HostFile::default() };
    let mut options = Options {
        strict: arguments.strict || host.strict,
        file_bytes_max: arguments.max_bytes.or(host.max_bytes),
        ..Options::default()
    };
    for place in arguments.places.iter().chain(&host.audit) {
        if place.as_os_str() == "syslog" {
            options.syslog = true;
            continue;
        }
        let path = std::path::absolute(place);
        let path = path.map_err(|error| Failure::io("find", place, &error))?;
        if options.file.replace(path).is_some() {
            return Err(refuse("the audit log is one file, and syslog, not two files".to_owned()));
        }
    }
    if options.strict && options.file.is_none() && !options.syslog {
        return Err(refuse("--audit-strict needs a place for records: --audit".to_owned())
            .hint(format!("Or name one in {HOST_FILE}.")));
    }
    Ok(options)
}

fn host_file() -> Result<HostFile, Failure> {
    let named = std::env::var_os("ATREST_AUDIT").map(PathBuf::from);
    let path = named.as_deref().unwrap_or(Path::new(HOST_FILE));
    let refuse = |problem: String| Failure::new(Exit::Usage, problem);
    let Some(text) = read_host_file(path, named.is_none()).map_err(refuse)? else {
        return Ok(HostFile::default());
    };
    toml::from_str(&text).map_err(|error| {
        let problem = error.message().lines().next().unwrap_or_default().escape_debug().to_string();
        refuse(format!("{}: {problem}", path.display()))
    })
}

impl From<NotRecorded> for Failure {
    fn from(error: NotRecorded) -> Self {
        Self::new(Exit::AuditUnwritable, chain(&error))
            .hint("Nothing was done. Without --audit-strict it would be, and an alarm raised.")
    }
}

/// Puts on record what became of unwrapping the volume's key; its keys begin the records that carry
/// a MAC. `event` is [`Event::Unwrap`], or [`Event::Recheck`], of which what is granted is not put
/// on record.
///
/// # Errors
/// [`NotRecorded`], if the log is strict: nothing may be done with the key.
pub fn unwrapped(
    audit: &Audit,
    (event, purpose): (Event, &str),
    by: &Asker,
    result: &Result<Opened, KeyError>,
) -> Result<(), NotRecorded> {
    let entry = || Entry::new(event, purpose, by);
    let failed = |failures: &[SlotFailure]| {
        failures.iter().try_for_each(|SlotFailure { slot, error }| {
            audit.record(&of_kek_error(entry(), *slot, error))
        })
    };
    match result {
        Ok(Opened { config, keys, slot, failures, .. }) if event == Event::Unwrap => {
            audit.begin(keys, config.data().audit);
            failed(failures)?;
            let kek = config.slot(*slot).map(of_slot).unwrap_or_default();
            audit.record(&entry().with_kek(kek))
        }
        Ok(Opened { failures, .. }) => failed(failures),
        Err(KeyError::NoSlot(failures) | KeyError::Denied { failures, .. }) => failed(failures),
        Err(error) => audit.record(&of_key_error(entry(), error)),
    }
}

/// Puts on record that a provider was asked to wrap the key for a slot, and what it said. A key
/// that could not be wrapped has changed nothing, so that nothing has to be refused.
///
/// # Errors
/// [`NotRecorded`], if the log is strict: what was wrapped may not be used.
pub fn wrapped(
    audit: &Audit,
    entry: Entry,
    result: Result<&KeySlot, &KeyError>,
) -> Result<(), NotRecorded> {
    match result {
        Ok(slot) => audit.record(&entry.with_kek(of_slot(slot))),
        Err(error) => {
            _ = audit.record(&of_key_error(entry, error));
            Ok(())
        }
    }
}

/// What changes between two configurations of a volume, as entries that begin.
pub fn slot_changes(old: &Config, new: &Config, purpose: &str, by: &Asker) -> Vec<Entry> {
    let entry = |event, slot| Entry::new(event, purpose, by).with_kek(of_slot(slot));
    let (before, after) = (&old.data().slots, &new.data().slots);
    let gone = before.iter().filter(|slot| new.slot(slot.id).is_none());
    let removed = gone.map(|slot| entry(Event::SlotRemove, slot));
    let there = after.iter().filter_map(|slot| match old.slot(slot.id) {
        None => Some(entry(Event::SlotAdd, slot)),
        Some(same) if same == slot => None,
        Some(_) => Some(entry(Event::SlotChange, slot)),
    });
    removed.chain(there).collect()
}

/// The key of a slot.
pub fn of_slot(slot: &KeySlot) -> Kek {
    Kek {
        slot: slot.id,
        provider: slot.provider.clone(),
        key: slot.kek.key_id.clone(),
        version: slot.kek.key_version.clone(),
    }
}

/// The same, of a slot whose provider failed.
pub fn of_kek_error(entry: Entry, slot: u32, error: &KekError) -> Entry {
    let (provider, key) = (error.provider().to_owned(), error.key().to_owned());
    entry
        .with_kek(Kek { slot, provider, key, version: String::new() })
        .failed(error.kind().class(), error.kind().to_string())
}

fn of_key_error(entry: Entry, error: &KeyError) -> Entry {
    match error {
        KeyError::Kek(error) | KeyError::CannotUnwrap(error) => of_kek_error(entry, 0, error),
        error => entry.failed(class_of(Some(error)).unwrap_or_default(), chain(error)),
    }
}

/// The class of an error, of the last slot that was tried; `None` if there is none.
pub fn class_of(error: Option<&KeyError>) -> Option<&'static str> {
    Some(match error? {
        KeyError::Kek(error) | KeyError::CannotUnwrap(error) => error.kind().class(),
        KeyError::NoSlot(failures) | KeyError::Denied { failures, .. } => {
            failures.last().map_or("no-slot", |failure| failure.error.kind().class())
        }
        KeyError::Config(ConfigError::MacMismatch(_)) => "forged",
        KeyError::Config(_) | KeyError::UnknownCipher(_) => "malformed",
        KeyError::NoSuchSlot(_) | KeyError::LastSlot(_) | KeyError::SlotsFull => "slot",
    })
}

/// Runs an audit command.
///
/// # Errors
/// [`Exit::AuditTampered`], and everything that keeps the volume's key from being had.
pub fn run(command: &AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Verify(arguments) => verify(arguments),
    }
}

fn verify(arguments: &AuditVerifyArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let audit = open_for(&arguments.audit, &volume)?;
    let options = keys::provider_options(&arguments.keys);
    let mut opened = keys::unlock(&volume, &options, &audit, "audit verify")?;
    // Between these two looks a running daemon may have replaced it.
    for attempt in 1.. {
        match check_config(&volume, &opened) {
            Ok(()) => break,
            Err(_) if attempt < ATTEMPTS => {
                std::thread::sleep(Duration::from_millis(200));
                let bytes = place::config_bytes(&volume)?;
                let config = opened.keys.verify_config(&bytes);
                opened.config = config.map_err(|error| Failure::key(&volume, &error))?;
            }
            Err(failure) => return Err(failure),
        }
    }
    let anchor = newest(opened.config.data().audit, told_by_daemon(&opened));
    let mut verifier = Verifier::new(&opened.keys, anchor, arguments.first);
    let mut end = (Where::default(), false);
    for (index, path) in arguments.files.iter().enumerate() {
        end = File::open(path)
            .and_then(|file| verifier.file(index, file))
            .map_err(|error| Failure::io("read the audit log", path, &error))?;
    }
    let report = verifier.finish(end.0, end.1);
    print(arguments, &report);
    match report.findings_count {
        0 => Ok(()),
        count => Err(Failure::new(
            Exit::AuditTampered,
            format!("the audit log of {} was tampered with: {count} findings", volume.display()),
        )),
    }
}

/// Whether the configuration is the newest that was there, as far as the volume and this host know:
/// an older one would vouch for an older log.
fn check_config(volume: &Path, opened: &Opened) -> Result<(), Failure> {
    let storage = OsStorage::open(volume, true)
        .map_err(|error| Failure::io("open the volume", volume, &error))?;
    let data = opened.config.data();
    let sequence = newest_sequence(&storage, &opened.keys, data.volume_id, opened.config.bytes())
        .map_err(|error| super::open::refused(volume, &error))?;
    let pins = PinStore::of_this_user();
    let seen = pins.and_then(|pins| pins.load(data.volume_id));
    let seen = seen.map_err(|error| Failure::new(Exit::Other, chain(&error)))?;
    match check_pin(seen, &opened.keys.pins(), sequence, data.generation) {
        Freshness::Fresh | Freshness::Absent => Ok(()),
        Freshness::Replaced | Freshness::RolledBack { .. } => Err(Failure::new(
            Exit::RolledBack,
            format!("{} is older than this host has seen it, or another", volume.display()),
        )
        .hint("Its configuration cannot say how far the audit log went.")),
    }
}

/// What a daemon that has the volume mounted has written last.
fn told_by_daemon(opened: &Opened) -> Option<AuditAnchor> {
    let socket = paths::control_socket(&opened.config.data().volume_id.to_string()).ok()?;
    let answer = daemon::ask(&socket, &json!({ "op": "status" }), PATIENCE).ok()?;
    let audit = &answer["status"]["audit"];
    let record = crate::audit::unhex(audit["record"].as_str()?)?;
    let seq = audit["seq"].as_u64().filter(|seq| *seq > 0)?;
    Some(AuditAnchor { seq, record })
}

fn newest(one: Option<AuditAnchor>, other: Option<AuditAnchor>) -> Option<AuditAnchor> {
    one.into_iter().chain(other).max_by_key(|anchor| anchor.seq)
}

fn print(arguments: &AuditVerifyArgs, report: &Report) {
    let place = |at: &Where| match arguments.files.get(at.file) {
        Some(file) => format!("{}:{}", file.display(), at.line),
        None => format!("line {}", at.line),
    };
    if arguments.json {
        let findings = report.findings.iter();
        let findings: Vec<_> = findings
            .map(|(at, finding)| json!({ "at": place(at), "finding": finding.to_string() }))
            .collect();
        let Report { records, first, last, authentic, without_key, of_others, .. } = report;
        let Report { of_retired_epochs, torn, unproven, unanchored, findings_count, .. } = report;
        let value = json!({
            "records": records, "first": first, "last": last, "authentic": authentic,
            "without_key": without_key, "of_others": of_others,
            "of_retired_epochs": of_retired_epochs, "torn": torn, "unproven": unproven,
            "unanchored": unanchored, "findings_count": findings_count, "findings": findings,
        });
        return println!("{value:#}");
    }
    for (at, finding) in &report.findings {
        println!("{}: {finding}", place(at));
    }
    println!("records {} to {}: {} authentic", report.first, report.last, report.authentic);
    for (count, what) in [
        (report.without_key, "made before the volume's key was there"),
        (report.of_others, "of other volumes: their order is judged, not what they say"),
        (report.of_retired_epochs, "under key epochs that are gone: their order is judged"),
        (report.torn, "lines torn by a crash, and ended by the record behind them"),
        (report.unproven, "at the end without a MAC behind them: nothing speaks for them yet"),
        (report.unanchored, "behind the anchor: if more were cut off, nobody can know"),
    ] {
        if count > 0 {
            println!("  {count} {what}");
        }
    }
}
