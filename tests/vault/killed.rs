//! The server is killed while it changes what it keeps, again and again: whatever it has
//! acknowledged is there afterwards, and what it has not is there whole or not at all.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atrest::vault::server::SOCKET_NAME;
use serde_json::{Value, json};

/// Kills of a run.
const ROUNDS: u64 = 12;
/// Threads that set a secret each, to the next number.
const SETTERS: usize = 3;

struct Served {
    directory: PathBuf,
    process: Child,
}

fn atrest(place: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atrest"));
    command.arg("vault").args(arguments).current_dir(place).stdin(Stdio::null());
    command.env("ATREST_STATE", place.join("state")).args(["--key-store", "keys"]);
    command
}

impl Served {
    fn start(place: &Path) -> Self {
        let serve = ["serve", "vault", "--listen", "127.0.0.1:0", "--insecure-loopback"];
        let log = ["--log", "log"];
        let process = atrest(place, &[&serve[..], &log].concat()).spawn().expect("it runs");
        let mut served = Self { directory: place.join("vault"), process };
        let deadline = Instant::now() + Duration::from_secs(30);
        while served.ask("GET", "/keys", &Value::Null).is_err() {
            let ended = served.process.try_wait().expect("a child");
            let log = || std::fs::read_to_string(place.join("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        served
    }

    /// The reply's status and body; an error if the server is gone before the end of it.
    fn ask(&self, method: &str, path: &str, body: &Value) -> io::Result<(u16, Value)> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = UnixStream::connect(self.directory.join(SOCKET_NAME))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path}?api-version=7.4 HTTP/1.1\r\nHost: localhost\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let (head, body) = reply.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.get(9..12).and_then(|text| text.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body)? };
        Ok((status, body))
    }

    fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("a child");
    }
}

/// What was acknowledged.
#[derive(Default)]
struct Known {
    /// Of each setter, the number that its secret was set to last.
    numbers: [u64; SETTERS],
    /// How often a key was deleted or recovered: it is there while that is even.
    flips: u64,
    /// How many keys were made, deleted and purged.
    purged: u64,
}

/// Goes on with `step` until the server is gone.
fn until_killed(count: &mut u64, step: impl Fn(u64) -> io::Result<()>) {
    while step(*count + 1).is_ok() {
        *count += 1;
    }
}

fn expect(status: u16, reply: (u16, Value)) {
    assert_eq!(reply.0, status, "{}", reply.1);
}

/// Changes things from several threads, until the server is killed after `life`.
fn work(served: Served, known: &mut Known, life: Duration) {
    let server = &served;
    let ask = |method: &str, path: &str, body: &Value| server.ask(method, path, body);
    let Known { numbers, flips, purged } = known;
    std::thread::scope(|scope| {
        for (thread, number) in numbers.iter_mut().enumerate() {
            let path = format!("/secrets/setter-{thread}");
            scope.spawn(move || {
                until_killed(number, |next| {
                    let value = json!({ "value": value_of(next) });
                    ask("PUT", &path, &value).map(|reply| expect(200, reply))
                });
            });
        }
        scope.spawn(move || {
            until_killed(flips, |next| {
                let (method, path) = match next % 2 {
                    1 => ("DELETE", "/keys/flip"),
                    _ => ("POST", "/deletedkeys/flip/recover"),
                };
                ask(method, path, &Value::Null).map(|reply| expect(200, reply))
            });
        });
        scope.spawn(move || {
            // Each purge writes the whole store anew.
            until_killed(purged, |next| {
                let name = format!("gone-{next}");
                let oct = json!({ "kty": "oct" });
                expect(200, ask("POST", &format!("/keys/{name}/create"), &oct)?);
                expect(200, ask("DELETE", &format!("/keys/{name}"), &Value::Null)?);
                expect(204, ask("DELETE", &format!("/deletedkeys/{name}"), &Value::Null)?);
                Ok(())
            });
        });
        std::thread::sleep(life);
        let pid = i32::try_from(server.process.id()).expect("a pid");
        let kill = nix::sys::signal::Signal::SIGKILL;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), kill).expect("it runs");
    });
    served.kill();
}

/// Some longer than a block of the store.
fn value_of(number: u64) -> String {
    format!("{number} ").repeat(1 + (number % 7) as usize * 300)
}

/// Compares what is there with what was acknowledged. One change of each thread may have been done
/// although nobody was told: from then on it counts as done.
fn verify(served: &Served, known: &mut Known) {
    let ask = |method: &str, path: &str| {
        served.ask(method, path, &Value::Null).expect("nobody kills it now")
    };
    for (thread, number) in known.numbers.iter_mut().enumerate() {
        let (status, found) = ask("GET", &format!("/secrets/setter-{thread}"));
        let text = found["value"].as_str().unwrap_or_default();
        let value = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        assert!((*number..=*number + 1).contains(&value), "{status}: {value}, not {number}");
        assert!(value == 0 || text == value_of(value), "a value is not whole");
        *number = value;
    }
    let is_there = ask("GET", "/keys/flip").0 == 200;
    let is_deleted = ask("GET", "/deletedkeys/flip").0 == 200;
    assert!(is_there != is_deleted, "it is there: {is_there}, and deleted: {is_deleted}");
    known.flips += u64::from(is_there != (known.flips % 2 == 0));
    for purged in 1..=known.purged {
        let name = format!("gone-{purged}");
        assert_eq!(ask("GET", &format!("/keys/{name}")).0, 404);
        assert_eq!(ask("GET", &format!("/deletedkeys/{name}")).0, 404);
    }
    // What the one that nobody was told of has left behind is in the way of the next.
    known.purged += 1;
    let name = format!("gone-{}", known.purged);
    ask("DELETE", &format!("/keys/{name}"));
    ask("DELETE", &format!("/deletedkeys/{name}"));
}

/// What a kill may lose is only what nobody was told of; nor is it missing in the audit log.
#[test]
fn killed() {
    let place = tempfile::tempdir().expect("a directory");
    let init = ["init", "vault", "--no-purge-protection", "--retention-days", "7"];
    let made = atrest(place.path(), &init).output().expect("it runs");
    assert!(made.status.success(), "{made:?}");
    let mut known = Known::default();
    let served = Served::start(place.path());
    let oct = json!({ "kty": "oct" });
    expect(200, served.ask("POST", "/keys/flip/create", &oct).expect("it is served"));
    served.kill();
    for round in 0..ROUNDS {
        let served = Served::start(place.path());
        work(served, &mut known, Duration::from_millis(50 + round * 37 % 400));
        let served = Served::start(place.path());
        verify(&served, &mut known);
        served.kill();
    }
    let acknowledged: u64 = known.numbers.iter().sum();
    assert!(acknowledged > 5 * ROUNDS && known.flips > ROUNDS, "it was hardly used");
    let log = std::fs::read_to_string(place.path().join("vault/audit/audit.jsonl"));
    let log = log.expect("it is there");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let set = lines.filter(|line| line["operationName"] == "SecretSet");
    let recorded = set.filter(|line| line["resultType"] == "Success").count() as u64;
    assert!(recorded + SETTERS as u64 * ROUNDS >= acknowledged, "{recorded}, not {acknowledged}");
}
