//! Locking and unlocking a mount, by hand and by its key.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::mounted::Mounted;

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().expect("of the system"))
}

/// What everything says to a mount in this state, on what was open before and on what was not.
fn assert_all(mounted: &Mounted, open: &File, nameless: &File, expected: i32) {
    let mut buffer = [0; 5];
    let answers = [
        ("read", errno(open.read_at(&mut buffer, 0))),
        ("write", errno(nameless.write_at(b"more", 0))),
        ("fstat", errno(open.metadata())),
        ("open", errno(File::open(mounted.join("file")))),
        ("stat", errno(fs::metadata(mounted.join("file")))),
        ("list", errno(fs::read_dir(mounted.path()).and_then(|list| list.last().transpose()))),
        ("create", errno(fs::write(mounted.join("new"), "new"))),
        ("readlink", errno(fs::read_link(mounted.join("link")))),
        ("statfs", errno(rustix::fs::statfs(mounted.path()).map_err(Into::into))),
    ];
    let wrong: Vec<_> = answers.iter().filter(|(_, errno)| *errno != expected).collect();
    assert!(wrong.is_empty(), "expected {expected} of each: {wrong:?}\n{}", mounted.log_text());
}

fn command(mounted: &Mounted, name: &str) -> i32 {
    mounted.exit_code(&[name.as_ref(), mounted.path().as_os_str()])
}

fn prepared() -> (Mounted, File, File) {
    let mounted = Mounted::new();
    fs::write(mounted.join("file"), "words").unwrap();
    std::os::unix::fs::symlink("file", mounted.join("link")).unwrap();
    fs::read_link(mounted.join("link")).unwrap();
    let open = File::open(mounted.join("file")).unwrap();
    open.read_at(&mut [0; 5], 0).unwrap();
    let path = mounted.join("nameless");
    let nameless =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    nameless.write_at(&[7; 5000], 0).unwrap();
    fs::remove_file(&path).unwrap();
    (mounted, open, nameless)
}

/// Nothing is served from a locked mount, from no cache either; afterwards what was open works
/// again, what was written and not yet synced is there, and so is a file without a name.
#[test]
fn locked_by_hand() {
    let (mounted, open, nameless) = prepared();
    if !mounted.is_atrest() {
        return;
    }
    assert_all(&mounted, &open, &nameless, 0);
    for _ in 0..3 {
        assert_eq!(command(&mounted, "lock"), 0);
        assert_eq!(command(&mounted, "lock"), 0, "it is locked");
        assert_all(&mounted, &open, &nameless, libc::ENOKEY);
        assert_eq!(fs::metadata(mounted.join("missing")).unwrap_err().raw_os_error(), Some(126));
        assert_eq!(command(&mounted, "unlock"), 0);
        assert_eq!(command(&mounted, "unlock"), 0, "it is not locked");
        assert_all(&mounted, &open, &nameless, 0);
        let mut bytes = [0; 5000];
        nameless.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[..4], bytes[4999]), (&b"more"[..], 7));
        assert!(fs::metadata(mounted.join("missing")).is_err_and(|e| e.raw_os_error() == Some(2)));
    }
    drop(nameless);
    assert!(!mounted.log_text().contains("defect"), "{}", mounted.log_text());
    assert_eq!(command(&mounted, "lock"), 0);
    drop(open);
    mounted.remount();
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"words");
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 3);
}

fn wait_until(what: &str, mounted: &Mounted, is_so: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(40), "{what}: {}", mounted.log_text());
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

/// When the key goes, the mount is locked within two checks and the time between them; when it
/// comes back, the mount goes on by itself.
#[test]
fn locked_by_its_key() {
    let (mounted, open, nameless) = prepared();
    if !mounted.is_atrest() {
        return;
    }
    drop((open, nameless));
    mounted.remount_with(&["--kek-check", "1s"]);
    let open = File::open(mounted.join("file")).unwrap();
    let nameless = OpenOptions::new().write(true).open(mounted.join("file")).unwrap();
    let keys = mounted.volume().with_file_name("keys");
    let away = mounted.volume().with_file_name("away");
    fs::create_dir(&away).unwrap();
    let carry = |from: &Path, to: &Path| {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    carry(&keys, &away);
    let revoked = || errno(fs::metadata(mounted.path())) == libc::EKEYREVOKED;
    wait_until("it is locked", &mounted, revoked);
    assert_all(&mounted, &open, &nameless, libc::EKEYREVOKED);
    assert_eq!(command(&mounted, "unlock"), 54, "there is no key");
    carry(&away, &keys);
    wait_until("it goes on", &mounted, || fs::metadata(mounted.path()).is_ok());
    assert_all(&mounted, &open, &nameless, 0);
}

/// Locked and unlocked again, while everybody is at it.
const CYCLES: u32 = 100;
/// Reads through a mapping that is made once; each child ends with SIGBUS when the mount is locked.
/// Says `.` for a child that did, and ends when its input does.
const MAPPING_READER: &str = "
import mmap, os, select, signal, sys
file = os.open(sys.argv[1], os.O_RDONLY)
mapping = mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ)
os.write(1, b'ready')
while not select.select([0], [], [], 0)[0]:
    child = os.fork()
    while child == 0:
        if any(mapping[at] != 3 for at in range(0, len(mapping), 4096)):
            os._exit(1)
        if select.select([0], [], [], 0)[0]:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS:
        os.write(1, b'.')
    elif status:
        sys.exit(f'a reader ended with {status}')
";

struct MappingReader(Child);

impl MappingReader {
    /// Returns when it has mapped the file.
    fn start(file: &Path) -> Self {
        let mut reader = Command::new("python3")
            .args(["-c", MAPPING_READER])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        reader.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).expect("it is ready");
        Self(reader)
    }

    /// How often it was refused.
    fn stop(mut self) -> usize {
        drop(self.0.stdin.take());
        let ended = self.0.wait_with_output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        ended.stdout.len()
    }
}

/// Readers, writers, mappings and listings that never pause neither keep a mount from being locked
/// nor lose anything by it: what was written and answered is there.
#[test]
fn locked_while_busy() {
    let (mounted, _open, _nameless) = prepared();
    if !mounted.is_atrest() {
        return;
    }
    fs::create_dir(mounted.join("many")).unwrap();
    (0..200).for_each(|n| fs::write(mounted.join(format!("many/{n}")), [1; 100]).unwrap());
    fs::write(mounted.join("large"), vec![3; 8 << 20]).unwrap();
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let mapping = MappingReader::start(&mounted.join("large"));
    std::thread::scope(|scope| {
        let busy = |work: Box<dyn Fn() + Send>| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work();
                }
            });
        };
        let many = mounted.join("many");
        busy(Box::new(move || {
            let _ = fs::read_dir(&many).map(Iterator::count);
        }));
        let large = mounted.join("large");
        busy(Box::new(move || {
            let Ok(bytes) = fs::read(&large) else { return };
            assert!(bytes.iter().all(|byte| *byte == 3));
        }));
        let counter = File::create(mounted.join("counter")).unwrap();
        let (next, answered) = (AtomicU64::new(1), &answered);
        scope.spawn({
            let stop = &stop;
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let page = vec![number as u8; 4096];
                    if counter.write_at(&page, number % 500 * 4096).is_ok()
                        && counter.sync_data().is_ok()
                    {
                        answered.store(number, Ordering::Relaxed);
                    }
                }
            }
        });
        for cycle in 0..CYCLES {
            std::thread::sleep(Duration::from_millis(u64::from(cycle % 40)));
            let begun = Instant::now();
            assert_eq!(command(&mounted, "lock"), 0, "{}", mounted.log_text());
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
            let before = answered.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            assert!(answered.load(Ordering::Relaxed) <= before + 1, "it writes while locked");
            assert_eq!(errno(fs::read(mounted.join("large"))), libc::ENOKEY);
            assert_eq!(command(&mounted, "unlock"), 0, "{}", mounted.log_text());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let refused = mapping.stop();
    assert!(refused >= 10, "the mapping was refused {refused} times");
    let last = answered.load(Ordering::Relaxed);
    assert!(last > 20, "only {last} writes");
    let mut page = vec![0; 4096];
    let counter = File::open(mounted.join("counter")).unwrap();
    counter.read_exact_at(&mut page, last % 500 * 4096).unwrap();
    assert_eq!(page, vec![last as u8; 4096]);
    assert!(!mounted.log_text().contains("error"), "{}", mounted.log_text());
}

/// By hand another key slot may open a volume: one that is there, and with its passphrase. A slot
/// or a passphrase that is wrong changes nothing, and is said.
#[test]
fn unlocked_by_another_slot() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let file = |name: &str, text: &str| {
        let path = mounted.volume().with_file_name(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let (right, wrong) = (file("right", "correct horse\n"), file("wrong", "battery staple\n"));
    let run = |arguments: &[&str], files: &[(&str, &Path)]| {
        let mut command = mounted.command();
        command.args(arguments);
        for (option, file) in files {
            command.arg(option).arg(file);
        }
        command.status().unwrap().code().unwrap()
    };
    let volume = mounted.volume();
    let added = ["key", "add", volume.to_str().unwrap(), "--kek", "passphrase:"];
    assert_eq!(run(&added, &[("--new-passphrase-file", &right)]), 0, "{}", mounted.log_text());
    fs::write(mounted.join("file"), "words").unwrap();
    assert_eq!(command(&mounted, "lock"), 0);
    let place = mounted.path().to_str().unwrap();
    let by_slot = |slot: &str, passphrase: Option<&Path>| {
        let files = passphrase.map(|file| ("--passphrase-file", file));
        run(&["unlock", place, "--slot", slot], files.as_slice())
    };
    for (slot, passphrase, said) in [
        ("9", None, "the volume has no key slot 9"),
        ("2", Some(&*wrong), "this key or passphrase did not wrap the volume key"),
        ("2", None, "slot 2: passphrase:: "),
    ] {
        assert_eq!(by_slot(slot, passphrase), 54);
        let log = mounted.log_text();
        assert!(log.contains(said), "{said:?} is not said: {log}");
        assert_eq!(errno(fs::read(mounted.join("file"))), libc::ENOKEY);
    }
    assert_eq!(by_slot("2", Some(&right)), 0, "{}", mounted.log_text());
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"words");
    assert_eq!(run(&["status", place], &[]), 0);
    let log = mounted.log_text();
    let in_use = log.lines().find(|line| line.starts_with("key_in_use: "));
    assert!(in_use.is_some_and(|line| line.ends_with(", slot 2")), "{log}");
    // The lease is on that slot: its own key may go.
    assert_eq!(command(&mounted, "lock"), 0);
    assert_eq!(command(&mounted, "unlock"), 54, "the daemon does not keep passphrases");
    assert_eq!(by_slot("1", None), 0);
}

/// Who locks and who unmounts at the same time do not get into each other's way: what was written
/// is there.
#[test]
fn locked_while_it_is_unmounted() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    for round in 0..10_u32 {
        fs::write(mounted.join(format!("file-{round}")), vec![5; 200_000]).unwrap();
        let spawn = |name: &str| mounted.command().arg(name).arg(mounted.path()).spawn().unwrap();
        let mut lock = spawn("lock");
        std::thread::sleep(Duration::from_millis(u64::from(round) * 7));
        let mut umount = spawn("umount");
        let (lock, umount) = (lock.wait().unwrap(), umount.wait().unwrap());
        assert!(umount.success(), "round {round}: {umount}, {lock}: {}", mounted.log_text());
        // Nobody to ask, an answer that the end cut off, or a refusal.
        assert!([0, 50, 52, 53].contains(&lock.code().unwrap()), "round {round}: {lock}");
        mounted.mount_again();
        for before in 0..=round {
            let content = fs::read(mounted.join(format!("file-{before}"))).unwrap();
            assert!(content == vec![5; 200_000], "round {round}: file {before}");
        }
    }
    let log = mounted.log_text();
    assert!(!log.contains("defect") && !log.contains(" error "), "{log}");
}
