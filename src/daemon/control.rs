//! The control socket: one JSON request per line, one JSON answer per line.
//!
//! ```text
//! {"op":"status"}                          {"ok":true,"status":{...}}
//! {"op":"sync"}                            {"ok":true}
//! {"op":"unmount"}                         {"ok":true}
//! {"op":"replace-config","config":"..."}   {"ok":false,"error":"..."}
//! {"op":"lock"}                            {"ok":true}
//! {"op":"unlock"}                          {"ok":true}
//! {"op":"roll-back","undo":false}          {"ok":true}
//! {"op":"unlock","slot":2,"passphrase_file":"..."}  {"ok":true}
//! ```

use std::fs::{DirBuilder, Permissions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::metrics::ProviderMeter;
use crate::audit::Asker;
use crate::lease::Answer;
use crate::volume::{Backlog, CacheCounts};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::{Value, json};

/// A request carries a configuration at most, which is bounded at a quarter of this.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// How long a client may take to send a request, all of it, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time. Who is one too many is told so, and asks again.
const CLIENTS_MAX: usize = 32;
const BUSY: &str = "too many ask at once";
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What the daemon asks of whatever it serves.
pub trait Served: Send + Sync {
    /// State for `atrest status --json`: an object.
    fn status_json(&self) -> Value;
    /// Returns when everything handed over so far is durable.
    ///
    /// # Errors
    /// What could not be made durable, in words.
    fn sync(&self) -> Result<(), String>;
    /// Makes everything durable, and lets go of what it has: keys, locks, files.
    ///
    /// # Errors
    /// What was lost, in words.
    fn close(&self) -> Result<(), String>;
    /// Goes back to the package before the one that is served, or takes that back.
    ///
    /// # Errors
    /// Why not, in words.
    fn roll_back(&self, undo: bool) -> Result<(), String> {
        let _ = undo;
        Err("no app runs here".to_owned())
    }
}

/// What the daemon asks of a volume besides: its keys.
pub trait VolumeControl: Served {
    /// Numbers for metrics.
    fn numbers(&self) -> Numbers;
    /// Takes a new configuration over, after verifying it.
    ///
    /// # Errors
    /// Why it is refused, in words.
    fn replace_config(&self, bytes: &[u8], by: &Asker) -> Result<(), String>;
    /// Makes the configuration say how far the audit log goes.
    fn anchor_audit(&self);
    /// Asks whoever keeps the key for it. When it is granted, and the key has a newer version, the
    /// volume key is wrapped under that.
    fn check(&self) -> Answer;
    /// Refuses callers from now on; `revoked` says why. Returns when nobody is served any more.
    fn drain(&self, revoked: bool);
    /// How many writes came since [`VolumeControl::drain`].
    fn late_writes(&self) -> u64;
    /// Makes everything durable, and wipes keys and whatever they have opened. Serves nobody then,
    /// on failure either. Of the inodes in `late` not everything came; their paths and others are
    /// looked for until `deadline`.
    ///
    /// # Errors
    /// What was lost.
    fn lock(&self, late: &[u64], deadline: Instant) -> Result<(), Lost>;
    /// Opens the volume again after [`VolumeControl::lock`], if its key is granted.
    fn reopen(&self, how: &Opening, by: &Asker) -> Answer;
}

/// What was acknowledged and could not be written.
#[derive(Debug)]
pub struct Lost {
    /// Why.
    pub error: String,
    /// The files that it may have been of, by path within the volume.
    pub files: Vec<String>,
}

/// How a volume is opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// By this key slot, which is the one that the lease is on from then on; else by the one that
    /// it is on.
    pub slot: Option<u32>,
    /// Where a passphrase is read from.
    pub passphrase_file: Option<PathBuf>,
}

/// What a volume counts. It begins again with zeros when it is unlocked.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeNumbers {
    /// Space in use, in bytes.
    pub used_bytes: u64,
    /// Space that is free, in bytes.
    pub free_bytes: u64,
    /// Files, directories and so on.
    pub inodes: u64,
    /// Nodes that were healed from their second copy.
    pub nodes_healed: u64,
    /// Nodes that do not authenticate.
    pub nodes_lost: u64,
    /// Pages that do not authenticate.
    pub pages_lost: u64,
    /// Changes that were lost in damaged nodes.
    pub changes_lost: u64,
    /// The cache of tree nodes.
    pub node_cache: CacheCounts,
    /// The cache of data keys.
    pub key_cache: CacheCounts,
    /// What waits to become durable.
    pub backlog: Backlog,
}

/// What is counted of a volume and its key.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// `None` while it is locked.
    pub volume: Option<VolumeNumbers>,
    /// For how long the volume key is known to be wrapped under its present key version.
    pub key_age: Duration,
    /// Uses of the key service, successful or not, with the class of what went wrong.
    pub provider: ProviderMeter,
}

/// What can be locked by hand.
pub(super) trait Lockable: Send + Sync {
    /// See `Driver::lock`.
    fn lock(self: Arc<Self>, by: &Asker) -> Result<(), String>;
    /// See `Driver::unlock`.
    fn unlock(self: Arc<Self>, how: &Opening, by: &Asker) -> Result<(), String>;
}

/// What clients may ask for. None is a unit: fields that are not known would be let through.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Status {},
    Sync {},
    Unmount {},
    ReplaceConfig { config: String },
    Lock {},
    Unlock { slot: Option<u32>, passphrase_file: Option<PathBuf> },
    RollBack { undo: bool },
}

/// Unmounts for somebody.
type Unmount = Box<dyn Fn(&Asker) -> Result<(), String> + Send + Sync>;

/// What answers requests.
pub(super) struct Handler {
    pub(super) served: Arc<dyn Served>,
    /// Adds what the daemon knows to its status.
    pub(super) status: Box<dyn Fn(Value) -> Value + Send + Sync>,
    /// What a volume has besides, and what locks and unlocks it.
    pub(super) keyed: Option<(Arc<dyn VolumeControl>, Arc<dyn Lockable>)>,
    /// Unmounts, or says why not.
    pub(super) unmount: Unmount,
}

/// A socket that accepts clients; the file is removed when it is dropped.
pub(super) struct Server {
    path: PathBuf,
}

impl Server {
    /// Listens at `path` and serves each client on a thread.
    pub(super) fn start(path: &Path, handler: Handler) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        // The volume's lock is ours, so a socket that is there is left over from a dead daemon.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let handler = Arc::new(handler);
        let thread = std::thread::Builder::new().name("atrest-control".to_owned());
        thread.spawn(move || accept(&listener, &handler))?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn accept(listener: &UnixListener, handler: &Arc<Handler>) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("control socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
            clients.fetch_sub(1, Ordering::Relaxed);
            // It fits into the socket's buffer, or is not waited for.
            let busy = json!({ "ok": false, "busy": true, "error": BUSY });
            let _ = stream.set_nonblocking(true).and_then(|()| answer(&stream, &busy));
            continue;
        }
        let (handler, count) = (handler.clone(), clients.clone());
        let thread = std::thread::Builder::new().name("atrest-client".to_owned());
        let spawned = thread.spawn(move || {
            let serve = std::panic::AssertUnwindSafe(|| serve(&stream, &handler));
            if let Ok(Err(error)) = std::panic::catch_unwind(serve) {
                log::debug!("control socket: a client went away: {error}");
            }
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(stream: &UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() != geteuid().as_raw() && peer.uid() != 0 {
        log::warn!("control socket: refused process {} of user {}", peer.pid(), peer.uid());
        return answer(stream, &refusal("only the user who mounted, and root, may ask"));
    }
    let by = Asker::of_peer(peer.uid(), peer.pid());
    let mut requests = Requests { stream, read: Vec::new() };
    loop {
        match requests.next() {
            Ok(Some(line)) => answer(stream, &reply(&line, handler, &by))?,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return answer(stream, &refusal("the request is too long"));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The lines that a client sends, each within its time however slowly it comes.
struct Requests<'a> {
    stream: &'a UnixStream,
    /// What was read and not yet asked for.
    read: Vec<u8>,
}

impl Requests<'_> {
    /// The next one; `None` when the client has said everything.
    ///
    /// # Errors
    /// `InvalidData` if it is too long; `WouldBlock` if it takes too long; those of the socket.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + PATIENCE;
        let mut part = [0; 16 * 1024];
        let mut searched = 0;
        loop {
            let end = self.read[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| searched + end) {
                return Ok(Some(self.read.drain(..=end).collect()));
            }
            searched = self.read.len();
            if searched > REQUEST_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match (&mut &*self.stream).read(&mut part)? {
                0 if self.read.is_empty() => return Ok(None),
                0 => return Ok(Some(std::mem::take(&mut self.read))),
                count => self.read.extend_from_slice(&part[..count]),
            }
        }
    }
}

fn reply(line: &[u8], handler: &Handler, by: &Asker) -> Value {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return refusal(&format!("the request is not understood: {error}")),
    };
    let result = match (request, &handler.keyed) {
        (Request::Status {}, _) => {
            let status = (handler.status)(handler.served.status_json());
            return json!({ "ok": true, "status": status });
        }
        (Request::Sync {}, _) => handler.served.sync(),
        (Request::Unmount {}, _) => (handler.unmount)(by),
        (Request::RollBack { undo }, _) => handler.served.roll_back(undo),
        (_, None) => Err("what is mounted here has no key of its own".to_owned()),
        (Request::Lock {}, Some((_, lease))) => lease.clone().lock(by),
        (Request::Unlock { slot, passphrase_file }, Some((_, lease))) => {
            lease.clone().unlock(&Opening { slot, passphrase_file }, by)
        }
        (Request::ReplaceConfig { config }, Some((volume, _))) => {
            volume.replace_config(config.as_bytes(), by)
        }
    };
    match result {
        Ok(()) => json!({ "ok": true }),
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &str) -> Value {
    json!({ "ok": false, "error": error })
}

fn answer(mut stream: &UnixStream, value: &Value) -> io::Result<()> {
    stream.write_all(format!("{value}\n").as_bytes())
}

/// Asks a running daemon and waits for its answer.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if no daemon listens at `socket`; `WouldBlock` if others keep
/// it too busy; `Other` with the daemon's words if it refuses.
pub fn ask(socket: &Path, request: &Value, patience: Duration) -> io::Result<Value> {
    let deadline = Instant::now() + patience.min(PATIENCE + BUSY_PAUSE);
    loop {
        let value = ask_once(socket, request, patience)?;
        if value["ok"] == Value::Bool(true) {
            return Ok(value);
        }
        if value["busy"] != Value::Bool(true) {
            let reason = value["error"].as_str().unwrap_or("no reason is given");
            return Err(io::Error::other(reason.to_owned()));
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, BUSY));
        }
        std::thread::sleep(BUSY_PAUSE);
    }
}

fn ask_once(socket: &Path, request: &Value, patience: Duration) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Who is one too many is answered before it has asked.
    let sent = stream.write_all(format!("{request}\n").as_bytes());
    let mut line = String::new();
    let read = BufReader::new(&stream).take(REQUEST_BYTES_MAX as u64).read_line(&mut line);
    if line.is_empty() {
        sent?;
        read?;
        let gone = "it hung up without an answer";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, gone));
    }
    serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    impl Served for Fake {
        fn status_json(&self) -> Value {
            json!({ "sequence": 7 })
        }

        fn sync(&self) -> Result<(), String> {
            Err("the disk is gone".to_owned())
        }

        fn close(&self) -> Result<(), String> {
            Ok(())
        }
    }

    impl VolumeControl for Fake {
        fn numbers(&self) -> Numbers {
            Numbers::default()
        }

        fn anchor_audit(&self) {}

        fn replace_config(&self, bytes: &[u8], _: &Asker) -> Result<(), String> {
            if bytes == b"new" { Ok(()) } else { Err("refused".to_owned()) }
        }

        fn check(&self) -> Answer {
            Answer::Granted
        }

        fn drain(&self, _: bool) {}

        fn late_writes(&self) -> u64 {
            0
        }

        fn lock(&self, _: &[u64], _: Instant) -> Result<(), Lost> {
            Ok(())
        }

        fn reopen(&self, _: &Opening, _: &Asker) -> Answer {
            Answer::Granted
        }
    }

    impl Lockable for Fake {
        fn lock(self: Arc<Self>, _: &Asker) -> Result<(), String> {
            Ok(())
        }

        fn unlock(self: Arc<Self>, how: &Opening, _: &Asker) -> Result<(), String> {
            if *how == Opening::default() { Ok(()) } else { Err(format!("not by {how:?}")) }
        }
    }

    fn server(directory: &Path, keyed: bool) -> (Server, PathBuf) {
        let path = directory.join("run/x.sock");
        let handler = Handler {
            served: Arc::new(Fake),
            status: Box::new(|mut status| {
                status["pid"] = json!(1);
                status
            }),
            keyed: keyed.then(|| (Arc::new(Fake) as _, Arc::new(Fake) as _)),
            unmount: Box::new(|_| Err("busy".to_owned())),
        };
        (Server::start(&path, handler).unwrap(), path)
    }

    /// Each request gets its answer; a refusal carries the volume's words.
    #[test]
    fn answers() {
        let directory = tempfile::tempdir().unwrap();
        let (server, path) = server(directory.path(), true);
        let ask = |request| super::ask(&path, &request, PATIENCE);
        let status = ask(json!({ "op": "status" })).unwrap();
        assert_eq!(status["status"], json!({ "sequence": 7, "pid": 1 }));
        ask(json!({ "op": "replace-config", "config": "new" })).unwrap();
        assert_eq!(ask(json!({ "op": "sync" })).unwrap_err().to_string(), "the disk is gone");
        assert_eq!(ask(json!({ "op": "unmount" })).unwrap_err().to_string(), "busy");
        ask(json!({ "op": "lock" })).unwrap();
        ask(json!({ "op": "unlock" })).unwrap();
        let wrong = ask(json!({ "op": "unlock", "slot": 2, "passphrase_file": "/x" })).unwrap_err();
        let expected = r#"not by Opening { slot: Some(2), passphrase_file: Some("/x") }"#;
        assert_eq!(wrong.to_string(), expected);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(server);
        assert!(!path.exists());
    }

    /// What has no key is not locked, and says so.
    #[test]
    fn without_keys() {
        let directory = tempfile::tempdir().unwrap();
        let (_server, path) = server(directory.path(), false);
        super::ask(&path, &json!({ "op": "status" }), PATIENCE).unwrap();
        for request in ["lock", "unlock"] {
            let refused = super::ask(&path, &json!({ "op": request }), PATIENCE).unwrap_err();
            assert_eq!(refused.to_string(), "what is mounted here has no key of its own");
        }
    }

    /// Clients that say nothing, too little, or no end of a line, and more of them than are served:
    /// whoever asks in order is answered once they have had their time, and is told why not before.
    #[test]
    fn floods() {
        let directory = tempfile::tempdir().unwrap();
        let (_server, path) = server(directory.path(), true);
        let begun = Instant::now();
        let mut flood: Vec<UnixStream> = (0..CLIENTS_MAX * 3)
            .filter_map(|n| {
                let mut stream = UnixStream::connect(&path).ok()?;
                let _ = stream.write_all([&b""[..], b"{", b"{\"op\":\"status\"}"][n % 3]);
                Some(stream)
            })
            .collect();
        let status = json!({ "op": "status" });
        let busy = super::ask(&path, &status, Duration::from_millis(1500)).unwrap_err();
        assert_eq!((busy.kind(), &*busy.to_string()), (io::ErrorKind::WouldBlock, BUSY));
        // A byte now and then buys nobody more time.
        while begun.elapsed() < PATIENCE - Duration::from_secs(1) {
            flood.iter_mut().for_each(|stream| drop(stream.write(b" ")));
            std::thread::sleep(Duration::from_millis(200));
        }
        super::ask(&path, &status, PATIENCE).expect("the flood had its time");
        assert!(begun.elapsed() < PATIENCE * 2, "{:?}", begun.elapsed());
        drop(flood);
        (0..200).for_each(|_| drop(UnixStream::connect(&path)));
        super::ask(&path, &status, PATIENCE).expect("those who hung up are gone");
    }

    /// A line without an end is not collected for ever.
    #[test]
    fn an_endless_line() {
        let directory = tempfile::tempdir().unwrap();
        let (_server, path) = server(directory.path(), true);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let part = [b'x'; 64 * 1024];
        let mut sent = 0;
        while sent < 64 << 20 {
            match stream.write(&part) {
                Ok(count) => sent += count,
                Err(_) => break,
            }
        }
        assert!(sent < 8 * REQUEST_BYTES_MAX, "it took {sent} bytes");
        super::ask(&path, &json!({ "op": "status" }), PATIENCE).unwrap();
    }

    /// Malformed, unknown and oversized requests are refused with a reason, and the server goes on.
    #[test]
    fn refuses_what_it_does_not_understand() {
        let directory = tempfile::tempdir().unwrap();
        let (_server, path) = server(directory.path(), true);
        let long = "x".repeat(REQUEST_BYTES_MAX + 1);
        let cases =
            ["", "{}", "[1", "{\"op\":\"x\"}", "{\"op\":\"lock\",\"more\":1}", "\u{0}", &long];
        for case in cases {
            let mut stream = UnixStream::connect(&path).unwrap();
            // The server may hang up before it has read all of a request that is too long.
            let _ = stream.write_all(case.as_bytes());
            let _ = stream.write_all(b"\n");
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            if case.len() < 100 {
                let value: Value = serde_json::from_str(&line).expect(case);
                assert_eq!(value["ok"], json!(false), "{case}");
            }
        }
        super::ask(&path, &json!({ "op": "status" }), PATIENCE).unwrap();
    }
}
