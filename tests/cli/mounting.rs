//! A volume's day: init, mount, write, busy, unmount, mount again; and a daemon told to end.
//! Needs `/dev/fuse` and the right to mount; without them it says so and passes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Takes a mount away whatever happens, so that a failed test leaves none behind.
pub struct Guard<'a>(pub &'a Path);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", "-q"]).arg(self.0).status();
    }
}

pub fn atrest(base: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atrest"))
        .args(arguments)
        .current_dir(base)
        .env("ATREST_STATE", base.join("state"))
        .env("XDG_STATE_HOME", base.join("state"))
        .env("XDG_RUNTIME_DIR", base)
        .output()
        .expect("the binary runs")
}

pub fn code(output: &Output) -> i32 {
    let code = output.status.code().expect("it was not killed");
    eprintln!("exit {code}: {}", String::from_utf8_lossy(&output.stderr));
    code
}

const MOUNT: [&str; 9] =
    ["mount", "v", "m", "--key-store", "keys", "--log", "log", "--log-level", "debug"];

#[test]
fn mount_write_unmount() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().canonicalize().unwrap();
    let mountpoint = base.join("m");
    fs::create_dir(&mountpoint).unwrap();
    let init = ["init", "v", "--kek", "local:test", "--key-store", "keys"];
    assert_eq!(code(&atrest(&base, &init)), 0);
    let guard = Guard(&mountpoint);
    match code(&atrest(&base, &MOUNT)) {
        0 => {}
        36..=38 => return eprintln!("skipped: this machine does not let tests mount"),
        code => panic!("mount: exit {code}"),
    }
    fs::write(mountpoint.join("f"), b"kept").unwrap();
    assert_eq!(code(&atrest(&base, &MOUNT)), 33, "a second mount at one place");

    let status = atrest(&base, &["status", "--json", "m"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["mounted"], true);
    assert_eq!(status["mountpoint"], mountpoint.to_str().unwrap());
    assert_eq!(status["volume"], base.join("v").to_str().unwrap());
    assert!(status["sequence"].is_u64(), "the daemon answered");

    let add = ["key", "add", "v", "--kek", "local:more", "--key-store", "keys"];
    assert_eq!(code(&atrest(&base, &add)), 0, "the daemon takes a new slot over");

    let open = fs::File::open(mountpoint.join("f")).unwrap();
    let refused = atrest(&base, &["umount", "m"]);
    assert_eq!(code(&refused), 51);
    let holder = format!("process {}:", std::process::id());
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&holder), "it says who");
    drop(open);
    assert_eq!(code(&atrest(&base, &["umount", "m"])), 0);
    assert_eq!(code(&atrest(&base, &["umount", "m"])), 50);
    assert!(!mountpoint.join("f").exists());

    assert_eq!(code(&atrest(&base, &MOUNT)), 0, "unmounting waits, so the lock is free");
    assert_eq!(fs::read(mountpoint.join("f")).unwrap(), b"kept");
    end_by_signal(&base, &mountpoint);
    drop(guard);
}

/// SIGTERM unmounts: the daemon ends, the log says so, and the volume is free.
fn end_by_signal(base: &Path, mountpoint: &Path) {
    let status = atrest(base, &["status", "--json", "m"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = i32::try_from(status["pid"].as_u64().expect("the daemon's id")).unwrap();
    fs::rename(base.join("log"), base.join("log.1")).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !base.join("log").exists() {
        assert!(Instant::now() < deadline, "SIGHUP did not open the log anew");
        std::thread::sleep(Duration::from_millis(10));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    while nix::sys::signal::kill(pid, None).is_ok() {
        assert!(Instant::now() < deadline, "SIGTERM did not end the daemon");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!mountpoint.join("f").exists());
    let log = fs::read_to_string(base.join("log")).unwrap();
    assert!(log.contains("unmounting") && log.contains("info closed"), "{log}");
}
