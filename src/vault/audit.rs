//! The audit log: one line of JSON for each request, in the shape of Key Vault's `AuditEvent`
//! (<https://learn.microsoft.com/azure/key-vault/general/logging>), in a file of its own that is
//! rotated by size.
//!
//! A reply goes out when its line is durable. One thread writes and syncs what has come meanwhile,
//! together; so no reply waits for a disk longer than [`PATIENCE`]. When the line cannot be written
//! (disk full, disk failing, disk silent), the reply is withheld: nothing is done for anybody that
//! is not on record. [`OnFailure::Serve`] is for who prefers answers to records. In both cases the
//! first line that can be written again says how many are missing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use crate::audit;

/// Name of the current file; older ones have `.1`, `.2` and so on after it.
pub const FILE_NAME: &str = "audit.jsonl";
/// How long a reply waits for its line.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Lines that wait to be written, in bytes, before more are refused.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// Longest text that a caller may leave in a line, in characters.
const TEXT_CHARS_MAX: usize = 512;

/// What happens when a line cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The reply is withheld.
    #[default]
    Refuse,
    /// The reply goes out; the line is lost, and counted.
    Serve,
}

/// Where and how much.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// Directory of the files; made if missing.
    pub directory: PathBuf,
    /// Bytes of a file before the next one begins.
    pub file_bytes_max: u64,
    /// Files that are kept, the current one included.
    pub files_max: u32,
    /// What happens when a line cannot be written.
    pub on_failure: OnFailure,
}

impl AuditOptions {
    /// A gibibyte in 16 files.
    pub fn new(directory: PathBuf) -> Self {
        let on_failure = OnFailure::default();
        Self { directory, file_bytes_max: 64 << 20, files_max: 16, on_failure }
    }
}

/// One request and what became of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Event<'a> {
    /// As in Key Vault: `KeyUnwrap`; our own begin with `Vault`.
    pub operation: &'a str,
    /// `api-version`.
    pub api_version: Option<&'a str>,
    /// HTTP status.
    pub status: u16,
    /// Codes of the error, the outer and the inner one.
    pub error: Option<(&'a str, Option<&'a str>)>,
    /// How long it took.
    pub duration: Duration,
    /// From where; `None` for the operator.
    pub address: Option<IpAddr>,
    /// The request's id.
    pub correlation_id: &'a str,
    /// `appid` of the caller.
    pub application_id: Option<&'a str>,
    /// `oid` of the caller.
    pub object_id: Option<&'a str>,
    /// What the caller is, where it has no identity: `operator`.
    pub caller: Option<&'a str>,
    /// Identifier of the key or secret.
    pub id: Option<&'a str>,
    /// Method and path; never a query.
    pub method: &'a str,
    /// Path, without the query.
    pub path: &'a str,
    /// Host that was asked, `https://NAME`.
    pub base: &'a str,
    /// `User-Agent`.
    pub client: Option<&'a str>,
}

/// The log. Dropping it writes what is waiting.
pub struct AuditLog {
    shared: Arc<Shared>,
    on_failure: OnFailure,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the log ends.
    filled: Condvar,
    /// Something was written, or was not.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines ever accepted, and settled: the difference is waiting or being written.
    accepted: u64,
    settled: u64,
    /// Ranges of lines that were not written, with the reason; the recent ones.
    failed: VecDeque<(u64, u64, Arc<io::Error>)>,
    /// Lines that are missing in the file and not yet said to be.
    lost: u64,
    ended: bool,
}

impl AuditLog {
    /// Opens the log, or makes it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(options: AuditOptions) -> io::Result<Self> {
        let on_failure = options.on_failure;
        let files = Files::open(options)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            settled: Condvar::new(),
        });
        let of_thread = shared.clone();
        let writer = std::thread::Builder::new()
            .name("atrest-audit".into())
            .spawn(move || write_all(&of_thread, files))?;
        Ok(Self { shared, on_failure, writer: Some(writer) })
    }

    /// Records an event; returns when it is durable.
    ///
    /// # Errors
    /// If it is not, for whatever reason: the reply is to be withheld. Never with
    /// [`OnFailure::Serve`].
    pub fn record(&self, event: &Event<'_>) -> io::Result<()> {
        let mut line = line(event, jiff::Timestamp::now()).to_string();
        line.push('\n');
        match (self.append(line.as_bytes()), self.on_failure) {
            (Err(error), OnFailure::Serve) => {
                log::error!("an audit line is lost: {error}");
                Ok(())
            }
            (result, _) => result,
        }
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock();
        if state.waiting.len() + line.len() > WAITING_BYTES_MAX {
            state.lost += 1;
            return Err(io::Error::other("more audit lines are waiting than can be kept"));
        }
        state.waiting.extend_from_slice(line);
        state.accepted += 1;
        let own = state.accepted;
        self.shared.filled.notify_one();
        while state.settled < own {
            if self.shared.settled.wait_until(&mut state, deadline).timed_out() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let failed = state.failed.iter().find(|(first, last, _)| (*first..=*last).contains(&own));
        match failed {
            Some((_, _, error)) => Err(io::Error::new(error.kind(), error.clone())),
            None => Ok(()),
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.filled.notify_one();
        // A thread that has panicked has said so.
        _ = self.writer.take().map(JoinHandle::join);
    }
}

/// The writer's life: takes what is waiting, writes and syncs it, says so.
fn write_all(shared: &Shared, mut files: Files) {
    let mut batch = Vec::new();
    loop {
        let mut state = shared.state.lock();
        while state.waiting.is_empty() {
            if state.ended {
                return;
            }
            shared.filled.wait(&mut state);
        }
        std::mem::swap(&mut batch, &mut state.waiting);
        let (first, last, lost) = (state.settled + 1, state.accepted, state.lost);
        drop(state);
        let result = files.append(lost, &batch);
        batch.clear();
        let mut state = shared.state.lock();
        state.settled = last;
        match result {
            Ok(()) => state.lost -= lost,
            Err(error) => {
                log::error!("the audit log cannot be written: {error}");
                state.lost += last - first + 1;
                state.failed.push_back((first, last, Arc::new(error)));
                // Whoever waited for an older range has long been told.
                if state.failed.len() > 1000 {
                    state.failed.pop_front();
                }
            }
        }
        drop(state);
        shared.settled.notify_all();
    }
}

/// The files: the current one, and those before it.
struct Files {
    options: AuditOptions,
    /// `None` after a failure: then the next line opens another file.
    current: Option<Current>,
}

struct Current {
    file: File,
    bytes: u64,
}

impl Files {
    fn open(options: AuditOptions) -> io::Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&options.directory)?;
        let current = Some(Current::open(&options.directory)?);
        Ok(Self { options, current })
    }

    /// Makes `lines` durable, after a line about `lost` ones. All or nothing: what was written of
    /// them before a failure is cut off again.
    fn append(&mut self, lost: u64, lines: &[u8]) -> io::Result<()> {
        let mut text = Vec::new();
        if lost > 0 {
            let time = time(jiff::Timestamp::now());
            let line = json!({
                "time": time, "category": "AuditEvent", "operationName": "VaultAuditLost",
                "resultType": "Failure", "properties": { "lines": lost },
            });
            text = format!("{line}\n").into_bytes();
        }
        text.extend_from_slice(lines);
        let added = text.len() as u64;
        let full = |current: &Current| {
            current.bytes > 0 && current.bytes + added > self.options.file_bytes_max
        };
        if self.current.as_ref().is_some_and(full) {
            self.rotate()?;
        }
        let mut current = match self.current.take() {
            Some(current) => current,
            None => Current::open(&self.options.directory)?,
        };
        match current.file.write_all(&text).and_then(|()| current.file.sync_data()) {
            Ok(()) => {
                current.bytes += added;
                self.current = Some(current);
                Ok(())
            }
            Err(error) => {
                // A descriptor whose sync failed has lost track of what is on the disk: the next
                // line opens it anew. If even cutting fails, that ends the torn line.
                _ = current.file.set_len(current.bytes).and_then(|()| current.file.sync_data());
                Err(error)
            }
        }
    }

    /// Each file becomes the one before; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        self.current = None;
        audit::put_aside(&self.options.directory.join(FILE_NAME), self.options.files_max)?;
        self.current = Some(Current::open(&self.options.directory)?);
        Ok(())
    }
}

impl Current {
    fn open(directory: &Path) -> io::Result<Self> {
        let mut file = audit::open(&directory.join(FILE_NAME))?;
        let mut bytes = file.seek(SeekFrom::End(0))?;
        if bytes > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            // A line that was being written at a crash stays, and ends.
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Self { file, bytes })
    }
}

fn time(now: jiff::Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// What a caller has chosen, cut to what a log should have.
fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// An event as Key Vault would log it.
fn line(event: &Event<'_>, now: jiff::Timestamp) -> Value {
    let success = event.status < 400;
    let signature = match event.status {
        200..300 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        429 => "Too Many Requests",
        500.. => "Server Error",
        _ => "Failed",
    };
    let description = event.error.map(|(code, inner)| match inner {
        Some(inner) => format!("{code}: {inner}"),
        None => code.to_owned(),
    });
    let mut uri = format!("{}{}", event.base, cut(event.path));
    if let Some(version) = event.api_version {
        uri.push_str(&format!("?api-version={}", cut(version)));
    }
    let mut claims = serde_json::Map::new();
    if let Some(object_id) = event.object_id {
        let name = "http://schemas.microsoft.com/identity/claims/objectidentifier";
        claims.insert(name.to_owned(), json!(object_id));
        claims.insert("oid".to_owned(), json!(object_id));
    }
    if let Some(application_id) = event.application_id {
        claims.insert("appid".to_owned(), json!(application_id));
    }
    if let Some(caller) = event.caller {
        claims.insert("caller".to_owned(), json!(caller));
    }
    json!({
        "time": time(now),
        "category": "AuditEvent",
        "operationName": event.operation,
        "operationVersion": event.api_version.map(cut),
        "resultType": if success { "Success" } else { "Failure" },
        "resultSignature": signature,
        "resultDescription": description,
        "durationMs": event.duration.as_secs_f64() * 1000.0,
        "callerIpAddress": event.address.map(|address| address.to_canonical().to_string()),
        "correlationId": cut(event.correlation_id),
        "identity": { "claim": claims },
        "properties": {
            "id": event.id,
            "httpStatusCode": event.status,
            "httpMethod": event.method,
            "requestUri": uri,
            "clientInfo": event.client.map(cut),
        },
    })
}

#[cfg(test)]
mod tests;
