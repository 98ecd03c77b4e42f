//! Memory with keys in it is not left behind: no core file, and no other process of the user may
//! look into it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::mounting::{Guard, atrest, code};

const PROGRAM: &str = env!("CARGO_BIN_EXE_atrest");

/// A daemon, a vault that is served, and a command that runs for a moment only, when they are
/// aborted: none leaves a core file behind where another program would.
#[test]
fn no_core_file() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().canonicalize().unwrap();
    fs::create_dir(base.join("m")).unwrap();
    if !dumps_core(&base, "sleep 100", || true) {
        return eprintln!("skipped: this machine writes no core files that can be looked for");
    }
    let keys = ["--key-store", "keys"];
    assert_eq!(
        code(&atrest(&base, &[&["init", "v", "--kek", "local:first"], &keys[..]].concat())),
        0
    );
    assert_eq!(code(&atrest(&base, &[&["vault", "init", "served"], &keys[..]].concat())), 0);
    let mountpoint = base.join("m");
    let guard = Guard(&mountpoint);
    let mounted = || {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table.contains(mountpoint.to_str().unwrap())
    };
    let served = || base.join("served/admin.sock").exists();
    // It waits for its key's plugin, which says when it is asked.
    let (plugin, asked) = (base.join("plugin"), base.join("asked"));
    fs::write(&plugin, format!("#!/bin/sh\ntouch {}\nsleep 20\n", asked.display())).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o700)).unwrap();
    let waits = || asked.exists();
    let cases: [(&str, &dyn Fn() -> bool); 3] = [
        ("mount --foreground v m --key-store keys --log log", &mounted),
        ("vault serve served --listen 127.0.0.1:0 --insecure-loopback --key-store keys", &served),
        (&format!("kek check exec:{}", plugin.display()), &waits),
    ];
    for (arguments, is_ready) in cases {
        let command = format!("{PROGRAM} {arguments}");
        assert!(!dumps_core(&base, &command, is_ready), "{arguments}: keys are in a core file");
    }
    drop(guard);
}

/// Runs a command with core files allowed, aborts it once it is ready, and says whether it left
/// one.
fn dumps_core(base: &Path, command: &str, is_ready: impl Fn() -> bool) -> bool {
    let cores = || {
        let entries = fs::read_dir(base).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("core")).collect::<Vec<_>>()
    };
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -c unlimited && exec {command}")])
        .current_dir(base)
        .env("ATREST_STATE", base.join("state"))
        .env("XDG_RUNTIME_DIR", base)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // `exec` takes a moment, too.
    std::thread::sleep(Duration::from_millis(300));
    while !is_ready() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "{command} is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Some(status) = child.try_wait().unwrap() {
        assert!(matches!(status.code(), Some(36..=38)), "{command} ended: {status}");
        eprintln!("skipped: this machine does not let tests mount");
        return false;
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGABRT).unwrap();
    child.wait().unwrap();
    let found = cores();
    for name in &found {
        fs::remove_file(base.join(name)).unwrap();
    }
    !found.is_empty()
}

/// Whatever the command, its memory is closed to other processes of its user: the kernel gives
/// what is in /proc of such a process to root (proc(5), `PR_SET_DUMPABLE`). The command waits for
/// a secret's value.
#[test]
fn closed_to_others() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("atrest");
    fs::copy(PROGRAM, &program).unwrap();
    let program = program.to_str().unwrap();
    let set = [program, "vault", "secret", "set", "/nonexistent", "name"];
    for (command, is_closed) in [(&set[..], true), (&["sleep", "100"], false)] {
        let as_nobody: &[&str] = match nix::unistd::geteuid().is_root() {
            true => &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
            false => &[],
        };
        let words = [as_nobody, command].concat();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .spawn()
            .expect("it runs");
        let process = format!("/proc/{}", child.id());
        let memory = format!("{process}/mem");
        let runs = |name: &str| fs::read_to_string(format!("{process}/comm")).unwrap() == name;
        let name = format!("{}\n", Path::new(command[0]).file_name().unwrap().to_str().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_as_expected =
            || runs(&name) && (fs::metadata(&memory).unwrap().uid() == 0) == is_closed;
        while !is_as_expected() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let found = is_as_expected();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found, "{command:?}: its memory is open to others, or this test is wrong");
    }
}
