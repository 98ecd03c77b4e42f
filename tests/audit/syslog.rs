//! Copies for syslog(3), in a mount namespace where `/dev/log` is the test's. Root.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// What syslog(3) writes before a record: `LOG_AUTHPRIV`, `LOG_NOTICE` (RFC 3164, section 4.1.1).
const PRIORITY: &str = "<85>";
/// Makes a `/dev` with no log in it, or with the socket `$SOCKET`, and runs what follows there.
const WITH_LOG: &str = r#"
mount --make-rprivate /
mkdir "$WORLD/dev"
mount --rbind /dev "$WORLD/dev"
mount -t tmpfs none /dev
for device in null zero random urandom; do
    touch "/dev/$device"
    mount --bind "$WORLD/dev/$device" "/dev/$device"
done
if [ -n "$SOCKET" ]; then
    touch /dev/log
    mount --bind "$SOCKET" /dev/log
fi
exec "$@"
"#;

struct World(TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Somebody who listens where `log` leads.
    fn listener(&self) -> UnixDatagram {
        let socket = UnixDatagram::bind(self.path("socket")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
        socket
    }

    /// `atrest init` of a volume of this name, where nobody listens without a `socket`.
    fn init(&self, volume: &str, socket: Option<&Path>, audit: &[&str]) -> Output {
        fs::remove_dir(self.path("dev")).ok();
        Command::new("unshare")
            .args(["--mount", "sh", "-e", "-c", WITH_LOG, "sh"])
            .arg(env!("CARGO_BIN_EXE_atrest"))
            .args(["init", "--kek", "local:", "--key-store"])
            .arg(self.path("keys"))
            .args(audit)
            .arg(self.path(volume))
            .env("WORLD", self.0.path())
            .env("SOCKET", socket.unwrap_or(Path::new("")))
            .env("ATREST_STATE", self.path("state"))
            .output()
            .expect("unshare (util-linux) is there")
    }
}

/// The records that `socket` got, without what syslog(3) puts before them.
fn received(socket: &UnixDatagram, count: usize) -> Vec<String> {
    let mut buffer = [0; 16 * 1024];
    let mut next = || {
        let length = socket.recv(&mut buffer).expect("a record");
        let text = std::str::from_utf8(&buffer[..length]).expect("text");
        let (head, record) = text.split_once(": ").expect("a head");
        assert!(head.starts_with(PRIORITY) && head.contains(" atrest["), "{text}");
        record.trim_end().to_owned()
    };
    (0..count).map(|_| next()).collect()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Records go to syslog alone, in their chain.
#[test]
fn records_reach_syslog() {
    let world = World::new();
    let socket = world.listener();
    let strict = ["--audit", "syslog", "--audit-strict"];
    let made = world.init("volume", Some(&world.path("socket")), &strict);
    assert!(made.status.success(), "{}", text(&made));
    let records = received(&socket, 2);
    let mut before = "0".repeat(64);
    for (record, (seq, event)) in records.iter().zip([(1, "wrap"), (2, "init")]) {
        let parsed: Value = serde_json::from_str(record).expect("JSON");
        assert_eq!((&parsed["seq"], &parsed["event"]), (&seq.into(), &event.into()), "{record}");
        assert_eq!(parsed["prev"], before, "{record}");
        before = Sha256::digest(record).iter().map(|byte| format!("{byte:02x}")).collect();
    }
    socket.set_nonblocking(true).expect("it can be asked");
    assert!(socket.recv(&mut [0; 1]).is_err(), "there is a record more");
}

/// The copies of a file's records are the file's records.
#[test]
fn copies_are_the_same() {
    let world = World::new();
    let (socket, file) = (world.listener(), world.path("audit.jsonl"));
    let both = ["--audit", file.to_str().expect("a path"), "--audit", "syslog"];
    let made = world.init("volume", Some(&world.path("socket")), &both);
    assert!(made.status.success(), "{}", text(&made));
    let written = fs::read_to_string(&file).expect("the file");
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!(received(&socket, lines.len()), lines);
    assert_eq!(lines.len(), 2);
}

/// Where nobody listens, a strict log refuses, and another says so and goes on.
#[test]
fn nobody_listens() {
    let world = World::new();
    let strict = world.init("refused", None, &["--audit", "syslog", "--audit-strict"]);
    let words = text(&strict);
    assert!(!strict.status.success() && words.contains("audit log syslog cannot be written"));
    assert!(!world.path("refused").join("atrest.json").exists(), "{words}");
    let lenient = world.init("made", None, &["--audit", "syslog"]);
    let words = text(&lenient);
    assert!(lenient.status.success() && words.contains("syslog cannot be written"), "{words}");
}
