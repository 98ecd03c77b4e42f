//! The audit log: one record for each use of a key, and for each thing that happens to a mount or
//! its key slots. Lines of JSON, chained: each names the digest of the one before, and, once the
//! volume's key is there, carries a MAC under a key that is forgotten with it. Knows nothing of
//! mounts; what happened is told to it.
//!
//! What the chain proves, and what not, is in [`crate::manual::threats`]; how the lines are made in
//! [`record`].

mod asker;
mod file;
mod record;
mod verify;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use syslog::{Facility, Formatter3164, LoggerBackend};

use crate::crypto::{ChainKey, random};
use crate::format::config::AuditAnchor;
use crate::key::VolumeKeys;
use file::{EMPTY, Found, LogFile};
use record::{Sealer, hex};

pub use asker::Asker;
pub use file::{open, put_aside};
pub use record::{Entry, Event, Kek, unhex};
pub use verify::{Finding, Report, Verifier, Where};

/// Records after which the end of the log is anchored again.
const ANCHOR_RECORDS: u64 = 256;
/// How long the end of the log may go without an anchor.
const ANCHOR_TIME: Duration = Duration::from_secs(600);
/// Records of a session before the next one begins, where the volume's key is there: who starts to
/// verify within a session makes as many steps.
const SESSION_RECORDS: u64 = 1 << 16;

/// Where records go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The file of the chain.
    pub file: Option<PathBuf>,
    /// Bytes of it before the next one begins.
    pub file_bytes_max: Option<u64>,
    /// Copies for syslog(3).
    pub syslog: bool,
    /// What cannot be recorded is not done.
    pub strict: bool,
}

/// A record that could not be written, where nothing may be done without.
#[derive(Debug, thiserror::Error)]
#[error(
    "the audit log {place} cannot be written, and --audit-strict says to do nothing without it"
)]
pub struct NotRecorded {
    place: String,
    #[source]
    source: io::Error,
}

/// How the log is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Records that this process has written.
    pub records: u64,
    /// Records that it could not write.
    pub lost: u64,
    /// What is wrong: with the newest record, or that somebody changed the log.
    pub problem: Option<String>,
}

/// The audit log of one volume, as one process writes it. Without any place to write to it takes
/// every record and does nothing.
pub struct Audit {
    host: String,
    volume: String,
    strict: bool,
    state: Mutex<State>,
}

struct State {
    file: Option<LogFile>,
    syslog: Option<Syslog>,
    /// `None` until the volume's key was there.
    session: Option<Session>,
    /// The newest record that is known here.
    newest: AuditAnchor,
    anchored: AuditAnchor,
    /// When the oldest record was written that no anchor covers.
    unanchored_since: Option<Instant>,
    health: Health,
    /// Lost records that no later one has told of.
    untold: u64,
    /// Somebody changed the log while it was not looked at.
    changed: Option<String>,
}

/// Keys of one process, from one opening of the volume.
struct Session {
    epoch: u32,
    id: [u8; 8],
    n: u64,
    key: ChainKey,
}

/// A connection to syslog(3), made anew after a failure.
#[derive(Default)]
struct Syslog(Option<syslog::Logger<LoggerBackend, Formatter3164>>);

impl Audit {
    /// The log of the volume with this id. Nothing is opened before there is something to write.
    pub fn new(options: Options, volume_id: &str) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let state = State {
            file: options.file.map(|path| LogFile::new(path, options.file_bytes_max)),
            syslog: options.syslog.then(Syslog::default),
            session: None,
            newest: EMPTY,
            anchored: EMPTY,
            unanchored_since: None,
            health: Health::default(),
            untold: 0,
            changed: None,
        };
        Self {
            host: host.to_string_lossy().into_owned(),
            volume: volume_id.to_owned(),
            strict: options.strict,
            state: Mutex::new(state),
        }
    }

    /// The volume's key is there: records are MACed from now on, under keys that do not lead to
    /// those before. `anchor` is what the volume's configuration says of the log.
    pub fn begin(&self, keys: &VolumeKeys, anchor: Option<AuditAnchor>) {
        let mut state = self.state.lock();
        let mut id = [0; 8];
        random::fill(&mut id);
        let epoch = keys.current_epoch();
        let key = keys.audit_key(epoch, id).expect("the current epoch has a key");
        state.session = Some(Session { epoch, id, n: 0, key });
        if let Some(anchor) = anchor {
            state.anchored = anchor;
            if anchor.seq > state.newest.seq {
                state.newest = anchor;
            }
        }
    }

    /// Begins again, under another key, when that is due.
    pub fn renew(&self, keys: &VolumeKeys) {
        let n = self.state.lock().session.as_ref().map_or(0, |session| session.n);
        if n >= SESSION_RECORDS {
            self.begin(keys, None);
        }
    }

    /// Puts an entry on record; it is durable when this returns. What cannot be written is counted,
    /// logged, and told by the next record that can.
    ///
    /// # Errors
    /// [`NotRecorded`], only if the log is strict: what the entry is about must not be done.
    pub fn record(&self, entry: &Entry) -> Result<(), NotRecorded> {
        let mut state = self.state.lock();
        if state.file.is_none() && state.syslog.is_none() {
            return Ok(());
        }
        let place = state.place();
        let Err(source) = state.append(entry, (&self.host, &self.volume)) else { return Ok(()) };
        alarm(&format!("{place} cannot be written: {source}"));
        if self.strict { Err(NotRecorded { place, source }) } else { Ok(()) }
    }

    /// What to anchor: the newest record, if it is not anchored. With `only_due`, if it is time to.
    pub fn to_anchor(&self, only_due: bool) -> Option<AuditAnchor> {
        let state = self.state.lock();
        if state.file.is_none() || state.newest == state.anchored {
            return None;
        }
        let many = state.newest.seq.abs_diff(state.anchored.seq) >= ANCHOR_RECORDS;
        let long = state.unanchored_since.is_some_and(|since| since.elapsed() >= ANCHOR_TIME);
        (many || long || !only_due).then_some(state.newest)
    }

    /// The configuration that is durable says `anchor`.
    pub fn anchored(&self, anchor: AuditAnchor) {
        let mut state = self.state.lock();
        state.anchored = anchor;
        state.unanchored_since = None;
    }

    /// How the log is.
    pub fn health(&self) -> Health {
        self.state.lock().health.clone()
    }

    /// For `atrest status`; `None` if there is no log.
    pub fn status(&self) -> Option<Value> {
        let state = self.state.lock();
        if state.file.is_none() && state.syslog.is_none() {
            return None;
        }
        let health = &state.health;
        let (seq, digest) = (state.newest.seq, hex(&state.newest.record));
        Some(json!({
            "log": state.place(), "records": health.records, "lost": health.lost,
            "seq": seq, "record": digest, "problem": health.problem,
        }))
    }
}

impl State {
    fn place(&self) -> String {
        let file = self.file.as_ref().map(|file| file.path().display().to_string());
        let syslog = self.syslog.as_ref().map(|_| "syslog".to_owned());
        file.into_iter().chain(syslog).collect::<Vec<_>>().join(" and ")
    }

    fn append(&mut self, entry: &Entry, who: (&str, &str)) -> io::Result<()> {
        let (untold, newest) = (self.untold, self.newest);
        let mut written = Vec::new();
        let mut changed = None;
        let result = match &mut self.file {
            None => Ok(compose(entry, who, untold, &Found::after(newest), &mut self.session)),
            Some(file) => {
                let session = &mut self.session;
                file.append(newest, |found| {
                    changed.clone_from(&found.changed);
                    let (lines, newest) = compose(entry, who, untold, found, session);
                    written = lines.concat();
                    (written.clone(), newest)
                })
                .map(|newest| (Vec::new(), newest))
            }
        };
        let result = match result {
            Ok((lines, newest)) => {
                if self.file.is_none() {
                    written = lines.concat();
                }
                self.newest = newest;
                Ok(())
            }
            Err(error) => {
                // A copy is better than nothing.
                written =
                    compose(entry, who, 0, &Found::after(newest), &mut self.session).0.concat();
                Err(error)
            }
        };
        let copied = self.syslog.as_mut().map_or(Ok(()), |syslog| syslog.send(&written));
        self.note(result.and(copied), changed)
    }

    fn note(&mut self, result: io::Result<()>, changed: Option<String>) -> io::Result<()> {
        if let Some(changed) = changed {
            let changed = format!("somebody changed the log: {changed}");
            alarm(&changed);
            self.changed = Some(changed);
        }
        match &result {
            Ok(()) => {
                self.health.records += 1;
                self.untold = 0;
                self.unanchored_since.get_or_insert_with(Instant::now);
                self.health.problem.clone_from(&self.changed);
            }
            Err(error) => {
                self.health.lost += 1;
                self.untold += 1;
                self.health.problem = Some(format!("the log cannot be written: {error}"));
            }
        }
        result
    }
}

impl Found {
    /// A log that ends as it should.
    fn after(last: AuditAnchor) -> Self {
        Self { last, torn: None, changed: None }
    }
}

/// Tells the operator: in the log of a daemon, or on the standard error of a command.
fn alarm(what: &str) {
    if log::max_level() == log::LevelFilter::Off {
        eprintln!("warning: audit: {what}");
    } else {
        log::error!("audit: {what}");
    }
}

/// The lines of an entry, and before it of what has to be told of the log itself, each with its
/// line feed; and what the next one follows.
fn compose(
    entry: &Entry,
    who: (&str, &str),
    untold: u64,
    found: &Found,
    session: &mut Option<Session>,
) -> (Vec<Vec<u8>>, AuditAnchor) {
    let own = |event| Entry::new(event, "audit", &Asker::of_this_process());
    let torn = found.torn.as_ref().map(|torn| own(Event::LogTorn).with_detail(torn));
    let changed = found.changed.as_ref().map(|what| own(Event::LogChanged).failed("changed", what));
    let lost = (untold > 0)
        .then(|| own(Event::LogLost).failed("unwritable", format!("{untold} records before")));
    let mut last = found.last;
    let mut lines = Vec::new();
    for entry in torn.iter().chain(&changed).chain(&lost).chain([entry]) {
        let sealer = session.as_ref().map(|Session { epoch, id, n, key }| Sealer {
            epoch: *epoch,
            session: *id,
            n: *n,
            key,
        });
        let mut line = record::encode(entry, who, last, sealer.as_ref());
        last = record::link(last.seq.saturating_add(1), &line);
        if let Some(Session { n, key, .. }) = session {
            key.advance();
            *n += 1;
        }
        line.push(b'\n');
        lines.push(line);
    }
    (lines, last)
}

impl Syslog {
    fn send(&mut self, lines: &[u8]) -> io::Result<()> {
        for line in String::from_utf8_lossy(lines).lines() {
            let mut logger = match self.0.take() {
                Some(logger) => logger,
                None => syslog(Facility::LOG_AUTHPRIV)?,
            };
            logger.notice(line).map_err(|error| io::Error::other(error.to_string()))?;
            self.0 = Some(logger);
        }
        Ok(())
    }
}

/// A connection to `/dev/log`.
///
/// # Errors
/// Nobody listens there.
pub fn syslog(facility: Facility) -> io::Result<syslog::Logger<LoggerBackend, Formatter3164>> {
    let process = "atrest".to_owned();
    let formatter = Formatter3164 { facility, hostname: None, process, pid: std::process::id() };
    syslog::unix(formatter).map_err(|error| io::Error::other(error.to_string()))
}
