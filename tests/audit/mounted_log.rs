//! What a mount and the commands put on record, and what an auditor finds.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::mounted::Mounted;

struct Log<'a> {
    mounted: &'a Mounted,
    path: PathBuf,
}

impl<'a> Log<'a> {
    /// Mounts again, with a log.
    fn of(mounted: &'a Mounted, options: &[&str]) -> Self {
        let path = mounted.volume().with_file_name("audit.jsonl");
        let mut all = vec!["--audit", path.to_str().unwrap()];
        all.extend(options);
        mounted.remount_with(&all);
        Self { mounted, path }
    }

    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `event purpose outcome error` of each record.
    fn words(&self) -> Vec<String> {
        let word = |record: &Value, name: &str| record[name].as_str().unwrap_or("-").to_owned();
        let fields = ["event", "purpose", "outcome", "error"];
        self.records()
            .iter()
            .map(|record| fields.map(|name| word(record, name)).join(" "))
            .collect()
    }

    fn verify(&self) -> i32 {
        let (volume, path) = (self.mounted.volume(), &self.path);
        self.mounted.exit_code(&[
            "audit".as_ref(),
            "verify".as_ref(),
            volume.as_ref(),
            path.as_ref(),
        ])
    }

    fn command(&self, words: &[&str]) -> i32 {
        let words: Vec<&std::ffi::OsStr> = words.iter().map(std::ffi::OsStr::new).collect();
        self.mounted.exit_code(&words)
    }
}

/// A mount's life: each use of a key and each change is there, in order, with who asked; the log is
/// whole while mounted, locked and unmounted; and its end cannot be cut off then.
#[test]
fn a_life() {
    let mounted = Mounted::new();
    let log = Log::of(&mounted, &[]);
    assert_eq!(log.verify(), 0, "{}", mounted.log_text());
    let (mount, volume) = (mounted.path().to_str().unwrap(), mounted.volume());
    let (volume, path) = (volume.to_str().unwrap(), log.path.to_str().unwrap());
    assert_eq!(log.command(&["lock", mount]), 0);
    assert_eq!(log.verify(), 0, "while it is locked: {}", mounted.log_text());
    assert_eq!(log.command(&["unlock", mount]), 0);
    let add = ["key", "add", volume, "--kek", "local:other", "--audit", path];
    assert_eq!(log.command(&add), 0, "{}", mounted.log_text());
    assert_eq!(log.command(&["key", "remove", volume, "2", "--audit", path]), 0);
    assert_eq!(log.verify(), 0, "{}", mounted.log_text());
    assert_eq!(log.command(&["umount", mount]), 0);
    assert_eq!(log.command(&["key", "verify", volume, "--audit", path]), 0);
    assert_eq!(log.command(&["key", "add", volume, "--kek", "local:third", "--audit", path]), 0);
    let expected = [
        "unwrap mount ok -",
        "mount mount ok -",
        "state draining ok -",
        "state locked (manual) ok -",
        "unwrap unlock ok -",
        "state unlocked ok -",
        "unwrap key add ok -",
        "wrap key add ok -",
        "slot-add key slots begun -",
        "slot-add key slots ok -",
        "unwrap key remove ok -",
        "slot-remove key slots begun -",
        "slot-remove key slots ok -",
        "unmount unmount ok -",
        "unwrap key verify ok -",
        "unwrap key verify ok -",
        "unwrap key add ok -",
        "wrap key add ok -",
        "slot-add key slots begun -",
        "slot-add key slots ok -",
    ];
    assert_eq!(log.words(), expected);
    let records = log.records();
    assert!(records.iter().all(|record| record["mac"].is_string()), "{records:?}");
    assert_eq!(records[3]["process"], "atrest");
    assert_ne!(records[3]["pid"], records[1]["pid"], "the command asked, not the daemon");
    assert_eq!(records[0]["provider"], "local:default");
    assert_eq!(records[0]["slot"], 1);
    let text = fs::read_to_string(&log.path).unwrap();
    // Cutting off more than the last slot change, which the configuration anchors.
    assert_eq!(log.verify(), 0, "{}", mounted.log_text());
    let shorter = text.trim_end().rsplit_once('\n').unwrap().0.to_owned() + "\n";
    fs::write(&log.path, &shorter).unwrap();
    assert_eq!(log.verify(), 61);
    fs::write(
        &log.path,
        text.replacen("\"uid\":0", "\"uid\":7", 1).replacen("\"slot\":1", "\"slot\":2", 1),
    )
    .unwrap();
    assert_eq!(log.verify(), 61);
    fs::write(&log.path, &text).unwrap();
    assert_eq!(log.verify(), 0);
}

/// An older log beside the older configuration that anchors it does not pass.
#[test]
fn replayed() {
    let mounted = Mounted::new();
    let log = Log::of(&mounted, &[]);
    let mount = mounted.path().to_str().unwrap();
    assert_eq!(log.command(&["umount", mount]), 0);
    let config = mounted.volume().join("atrest.json");
    let (old_log, old_config) = (fs::read(&log.path).unwrap(), fs::read(&config).unwrap());
    mounted.mount_again();
    let log = Log::of(&mounted, &[]);
    assert_eq!(log.command(&["umount", mount]), 0);
    assert_eq!(log.verify(), 0, "{}", mounted.log_text());
    fs::write(&log.path, &old_log).unwrap();
    assert_eq!(log.verify(), 61, "the configuration remembers more");
    fs::write(&config, &old_config).unwrap();
    assert_eq!(log.verify(), 12, "the superblock knows a newer configuration");
}

/// The key goes, which is on record although the records' MACs come from it; so is a
/// mount that is refused.
#[test]
fn denied() {
    let mounted = Mounted::new();
    let log = Log::of(&mounted, &["--kek-check", "1s"]);
    let keys = mounted.volume().with_file_name("keys");
    let key = keys.join("default.json");
    let away = mounted.volume().with_file_name("away.json");
    fs::rename(&key, &away).unwrap();
    let wait = |event: &str| {
        let there = || log.words().iter().any(|words| words.starts_with(event));
        assert!(
            (0..600).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                there()
            }),
            "{event}: {:?}",
            log.words()
        );
    };
    wait("state locked (revoked)");
    assert_eq!(log.command(&["unlock", mounted.path().to_str().unwrap()]), 54);
    fs::rename(&away, &key).unwrap();
    wait("state unlocked");
    assert_eq!(log.verify(), 0, "{}", mounted.log_text());
    let words = log.words().join("\n");
    for expected in ["recheck check failed gone", "unwrap unlock failed gone", "state degraded ok"]
    {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    assert!(log.records().iter().all(|record| record["mac"].is_string()), "while locked, too");
    assert_eq!(log.command(&["umount", mounted.path().to_str().unwrap()]), 0);
    fs::rename(&key, &away).unwrap();
    let (volume, path) = (mounted.volume(), log.path.to_str().unwrap());
    let mount =
        ["mount", "--audit", path, volume.to_str().unwrap(), mounted.path().to_str().unwrap()];
    assert_eq!(log.command(&mount), 21);
    assert!(log.records().last().unwrap().get("mac").is_none(), "there was no key");
    fs::rename(&away, &key).unwrap();
    assert_eq!(log.verify(), 0, "{}", mounted.log_text());
    mounted.mount_again();
}

fn strict_refuses(mounted: &Mounted, log: &Path) {
    let volume = mounted.volume();
    let (volume, log) = (volume.to_str().unwrap(), log.to_str().unwrap());
    let command = |words: &[&str]| {
        let words: Vec<&std::ffi::OsStr> = words.iter().map(std::ffi::OsStr::new).collect();
        mounted.exit_code(&words)
    };
    let mount = mounted.path().to_str().unwrap();
    assert_eq!(command(&["umount", mount]), 0);
    let before = fs::read(mounted.volume().join("atrest.json")).unwrap();
    assert_eq!(command(&["mount", "--audit-strict", "--audit", log, volume, mount]), 60);
    let add = ["key", "add", volume, "--kek", "local:other", "--audit-strict", "--audit", log];
    assert_eq!(command(&add), 60);
    assert_eq!(fs::read(mounted.volume().join("atrest.json")).unwrap(), before);
    assert_eq!(command(&["mount", "--audit-strict", volume, mount]), 2, "no place for records");
    mounted.mount_again();
}

/// Without a log that can be written the mount goes on and raises an alarm; a strict one is
/// refused, and so is a change of keys.
#[test]
fn unwritable() {
    let mounted = Mounted::new();
    let place = mounted.volume().with_file_name("a-directory");
    fs::create_dir(&place).unwrap();
    mounted.remount_with(&["--audit", place.to_str().unwrap()]);
    fs::write(mounted.join("file"), "served").unwrap();
    assert!(mounted.log_text().contains("audit: "), "{}", mounted.log_text());
    let before = mounted.log_text().len();
    assert_eq!(mounted.exit_code(&["status".as_ref(), mounted.path().as_os_str()]), 0);
    let status = mounted.log_text().split_off(before);
    assert!(status.contains("problem the log cannot be written"), "{status}");
    strict_refuses(&mounted, &place);
}

/// A log on a full disk; when there is room again, the log goes on and says what it misses. A
/// strict mount does not come back from a lock then.
#[test]
fn full() {
    if !crate::mounted::is_root() {
        panic!("a small filesystem takes root");
    }
    let mounted = Mounted::new();
    let small = mounted.volume().with_file_name("small");
    fs::create_dir(&small).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &small, Some("tmpfs"), flags, Some("size=64k")).unwrap();
    let unmount = Unmount(small.clone());
    let log = small.join("audit.jsonl");
    mounted.remount_with(&["--audit-strict", "--audit", log.to_str().unwrap()]);
    let command = |word: &str| mounted.exit_code(&[word.as_ref(), mounted.path().as_os_str()]);
    let fill = small.join("fill");
    drop(fs::write(&fill, vec![7; 128 << 10]));
    // The log has a block to end, first.
    let refused = (0..30).any(|_| {
        assert_eq!(command("lock"), 0, "locking is never refused");
        command("unlock") == 54
    });
    assert!(refused, "{}", mounted.log_text());
    assert!(fs::metadata(mounted.join("x")).is_err_and(|e| e.raw_os_error() == Some(libc::ENOKEY)));
    fs::remove_file(&fill).unwrap();
    assert_eq!(command("unlock"), 0, "{}", mounted.log_text());
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("log-lost"), "{text}");
    let volume = mounted.volume();
    let verify = ["audit".as_ref(), "verify".as_ref(), volume.as_os_str(), log.as_os_str()];
    assert_eq!(mounted.exit_code(&verify), 0, "{}", mounted.log_text());
    mounted.remount();
    drop(unmount);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
