//! Keys change while a volume is mounted and its files are written and verified.
//! Needs `/dev/fuse` and the right to mount; without them it says so and passes.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::mounting::{Guard, atrest, code};

const STORE: [&str; 2] = ["--key-store", "keys"];

/// A running command that is expected to succeed.
fn succeeds(base: &Path, arguments: &[&str]) -> String {
    let output = atrest(base, &[arguments, &STORE].concat());
    assert_eq!(code(&output), 0, "{arguments:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn status(base: &Path) -> serde_json::Value {
    let output = atrest(base, &["status", "--json", "m"]);
    assert_eq!(code(&output), 0);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Writes files and reads what it wrote before, until it is told to end; returns how many.
fn write_and_verify(directory: &Path, end: &AtomicBool) -> usize {
    let content = |number: usize| format!("{number} ").repeat(3000);
    let mut written = 0;
    while !end.load(Ordering::Relaxed) || written < 10 {
        let path = directory.join(format!("file-{written}"));
        fs::write(&path, content(written)).expect("the volume is writable");
        fs::File::open(&path).and_then(|file| file.sync_all()).expect("it can be made durable");
        let earlier = written / 2;
        let read = fs::read_to_string(directory.join(format!("file-{earlier}")));
        assert_eq!(read.expect("it is readable"), content(earlier));
        written += 1;
    }
    written
}

/// Add, rotate to a new version, rotate to another key, remove: each while mounted, none lost.
#[test]
fn keys_change_while_mounted() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().canonicalize().unwrap();
    let mountpoint = base.join("m");
    fs::create_dir(&mountpoint).unwrap();
    succeeds(&base, &["init", "v", "--kek", "local:first"]);
    let mount = ["mount", "v", "m", "--key-store", "keys", "--log", "log"];
    let guard = Guard(&mountpoint);
    match code(&atrest(&base, &mount)) {
        0 => {}
        36..=38 => return eprintln!("skipped: this machine does not let tests mount"),
        code => panic!("mount: exit {code}"),
    }
    assert_eq!(status(&base)["key_in_use"]["provider"], "local:first");
    let end = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_and_verify(&mountpoint, &end));
        change_keys(&base);
        end.store(true, Ordering::Relaxed);
        writer.join().expect("every file was as it was written")
    });
    let in_use = status(&base)["key_in_use"].clone();
    assert_eq!((&in_use["slot"], &in_use["removed"]), (&1.into(), &true.into()));
    assert_eq!(code(&atrest(&base, &["umount", "m"])), 0);

    // Only the slot that is left opens it.
    let first = fs::remove_file(base.join("keys/first.json"));
    first.expect("the key is there, and not needed any more");
    assert_eq!(code(&atrest(&base, &mount)), 0);
    let in_use = status(&base)["key_in_use"].clone();
    assert_eq!((&in_use["slot"], &in_use["provider"]), (&2.into(), &"local:third".into()));
    for number in 0..written {
        let read = fs::read_to_string(mountpoint.join(format!("file-{number}")));
        assert_eq!(read.unwrap(), format!("{number} ").repeat(3000));
    }
    assert_eq!(code(&atrest(&base, &["umount", "m"])), 0);
    drop(guard);
}

fn change_keys(base: &Path) {
    succeeds(base, &["key", "add", "v", "--kek", "local:second"]);
    let rotated = succeeds(base, &["key", "rotate", "v", "--new-version"]);
    assert!(rotated.contains("slot 1: local:first: rotated to 2"), "{rotated}");
    assert_eq!(status(base)["key_in_use"]["key_version"], "2");
    let moved = succeeds(base, &["key", "rotate", "v", "--slot", "2", "--to", "local:third"]);
    assert!(moved.contains("rotated slot 2: local:third"), "{moved}");
    let checked = succeeds(base, &["key", "verify", "v", "--json"]);
    let checked: serde_json::Value = serde_json::from_str(&checked).expect("JSON");
    for (slot, provider) in [(0, "local:first"), (1, "local:third")] {
        assert_eq!(checked["slots"][slot]["provider"], provider);
        assert_eq!(checked["slots"][slot]["ok"], true);
        assert_eq!(checked["slots"][slot]["wrap"]["ok"], true);
    }
    add_at_once(base);
    succeeds(base, &["key", "remove", "v", "1", "--slot", "2"]);
}

/// Of several that add a slot at once, whoever is told that it is there finds it there.
fn add_at_once(base: &Path) {
    let added = std::thread::scope(|scope| {
        let add = |name: String| {
            let output = atrest(base, &[&["key", "add", "v", "--kek", &name][..], &STORE].concat());
            let done = output.status.code() == Some(0);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(done || said.contains("run it again"), "{said}");
            done.then_some(name)
        };
        let threads: Vec<_> =
            (0..6).map(|n| scope.spawn(move || add(format!("local:at-once-{n}")))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(!added.is_empty());
    let slots = status(base)["slots"].clone();
    let slots = slots.as_array().expect("a list");
    assert_eq!(slots.len(), 2 + added.len(), "a slot was lost: {added:?} {slots:?}");
    for slot in slots {
        if added.iter().any(|name| *name == slot["provider"]) {
            succeeds(base, &["key", "remove", "v", &slot["slot"].to_string()]);
        }
    }
}
