//! What happens to the file: torn lines, garbage, rotation, several writers, places that cannot be
//! written.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use atrest::audit::{Audit, Finding, Options, put_aside};

use crate::world::{World, entry, findings};

fn append(world: &World, bytes: &[u8]) {
    let mut file = std::fs::File::options().append(true).open(world.path()).unwrap();
    file.write_all(bytes).unwrap();
}

/// Wherever a crash tears the last line, the next record ends it, and says so.
#[test]
fn torn() {
    let world = World::new();
    world.opened().record(&entry("one")).unwrap();
    let first = world.bytes().len();
    world.opened().record(&entry("two")).unwrap();
    let whole = world.bytes();
    for length in first..=whole.len() {
        std::fs::write(world.path(), &whole[..length]).unwrap();
        let report = world.judge(None, &[&world.bytes()]);
        assert_eq!(findings(&report), [], "{length}, before the next record");
        world.opened().record(&entry("three")).unwrap();
        let report = world.judge(None, &[&world.bytes()]);
        assert_eq!(findings(&report), [], "{length} of {}", whole.len());
        let is_torn = length > first && length < whole.len() - 1;
        assert_eq!(report.torn, u64::from(is_torn), "{length}");
    }
}

/// Lines that are no records, of any length, are found; the log goes on behind them.
#[test]
fn garbage() {
    for garbage in
        [&b"\n"[..], b"{}\n", b"\xff\xfe\n", &[b'x'; 300_000], b"{\"seq\":1}\n{\"seq\":2}\n"]
    {
        let world = World::new();
        let audit = world.opened();
        audit.record(&entry("one")).unwrap();
        append(&world, garbage);
        audit.record(&entry("two")).unwrap();
        let report = world.judge(None, &[&world.bytes()]);
        assert!(report.authentic >= 2, "{report:?}");
        // One line that a crash may have left is accounted for by the record behind it.
        let lines = garbage.split(|byte| *byte == b'\n').count();
        if garbage.len() > 1000 || lines > 2 {
            assert_ne!(findings(&report), [], "{} bytes", garbage.len());
            assert!(audit.health().problem.is_some());
        } else {
            assert_eq!((findings(&report), report.torn), (vec![], 1));
        }
    }
}

/// Several processes append to one file, and none loses the thread.
#[test]
fn several_writers() {
    let world = World::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let audit = world.opened();
                (0..50).for_each(|n| audit.record(&entry(&n.to_string())).unwrap());
                assert_eq!(audit.health().problem, None);
            });
        }
    });
    let report = world.judge(None, &[&world.bytes()]);
    assert_eq!((findings(&report), report.authentic), (vec![], 200));
}

/// By its size, or renamed by somebody else: the chain goes on in the next file, also when another
/// process writes it.
#[test]
fn put_aside_and_gone_on() {
    let world = World::new();
    let options = Options { file_bytes_max: Some(3000), ..world.options() };
    let audit = Audit::new(options.clone(), &world.id);
    audit.begin(&world.keys, None);
    let beside = Audit::new(options, &world.id);
    beside.begin(&world.keys, None);
    for n in 0..20 {
        let writer = if n % 3 == 0 { &beside } else { &audit };
        writer.record(&entry(&n.to_string())).unwrap();
    }
    put_aside(&world.path(), u32::MAX).unwrap();
    audit.record(&entry("behind a rename")).unwrap();
    put_aside(&world.path(), u32::MAX).unwrap();
    world.opened().record(&entry("of a process that starts with no file")).unwrap();
    let numbered = |n: u32| world.directory.path().join(format!("audit.jsonl.{n}"));
    let count = (1..).take_while(|n| numbered(*n).exists()).count() as u32;
    assert!(count >= 4, "{count} files");
    let mut files: Vec<_> =
        (1..=count).rev().map(|n| std::fs::read(numbered(n)).unwrap()).collect();
    files.push(world.bytes());
    let borrowed: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let anchor = audit.to_anchor(false);
    let report = world.judge(anchor, &borrowed);
    assert_eq!((findings(&report), report.authentic), (vec![], 22));
    let without = [&borrowed[..1], &borrowed[2..]].concat();
    assert_ne!(findings(&world.judge(anchor, &without)), [], "a file is missing");
    let turned: Vec<_> = borrowed.iter().rev().copied().collect();
    assert_ne!(findings(&world.judge(anchor, &turned)), []);
    assert_eq!(audit.health().problem, None);
}

/// Of the vault's files there are only so many.
#[test]
fn the_oldest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    for n in 0..6 {
        std::fs::write(&path, n.to_string()).unwrap();
        put_aside(&path, 3).unwrap();
    }
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!((read("log.1"), read("log.2")), ("5".into(), "4".into()));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}

/// Somebody cuts the log off, or takes it away, while a process writes to it: that is noticed with
/// the next record, and stays in the log for good.
#[test]
fn changed_meanwhile() {
    let world = World::new();
    let audit = world.opened();
    (0..3).for_each(|n| audit.record(&entry(&n.to_string())).unwrap());
    let bytes = world.bytes();
    let cut = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    std::fs::write(world.path(), &bytes[..cut]).unwrap();
    audit.record(&entry("four")).unwrap();
    assert!(audit.health().problem.is_some_and(|problem| problem.contains("changed")));
    let report = world.judge(audit.to_anchor(false), &[&world.bytes()]);
    assert_eq!(findings(&report), [Finding::Missing { from: 2, to: 3 }]);
    std::fs::remove_file(world.path()).unwrap();
    audit.record(&entry("five")).unwrap();
    assert_ne!(findings(&world.judge(audit.to_anchor(false), &[&world.bytes()])), []);
    // The same, of a process that knows the end by the anchor only.
    let anchor = audit.to_anchor(false);
    std::fs::write(world.path(), &bytes).unwrap();
    let next = world.process();
    next.begin(&world.keys, anchor);
    next.record(&entry("six")).unwrap();
    assert!(next.health().problem.is_some());
    assert_ne!(findings(&world.judge(anchor, &[&world.bytes()])), []);
}

/// Where no log can be: strict refuses, else it is counted and told by the first record that can be
/// written. The file is private; no link is followed to it.
#[test]
fn unwritable() {
    type Make = fn(&std::path::Path);
    let makes: [(&str, Make); 4] = [
        ("a directory", |path| std::fs::create_dir(path).unwrap()),
        ("a link", |path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap()),
        ("a pipe", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ("a device", |path| std::os::unix::fs::symlink("/dev/full", path).unwrap()),
    ];
    for (what, make) in makes {
        let world = World::new();
        make(&world.path());
        let strict = Audit::new(Options { strict: true, ..world.options() }, &world.id);
        strict.begin(&world.keys, None);
        assert!(strict.record(&entry("refused")).is_err(), "{what}");
        let audit = world.opened();
        (0..2).for_each(|_| audit.record(&entry("lost")).unwrap());
        assert_eq!(audit.health().lost, 2);
        assert!(audit.health().problem.is_some(), "{what}");
        let path = world.path();
        std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path)).unwrap();
        audit.record(&entry("written")).unwrap();
        assert_eq!(audit.health().problem, None);
        let text = String::from_utf8(world.bytes()).unwrap();
        assert!(text.contains("\"log-lost\"") && text.contains("2 records before"), "{text}");
        assert_eq!(findings(&world.judge(None, &[text.as_bytes()])), []);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

/// Somebody keeps the file locked: the record is lost after a while, and nobody waits for ever.
#[test]
fn kept_locked() {
    let world = World::new();
    let audit = world.opened();
    audit.record(&entry("one")).unwrap();
    let file = std::fs::File::open(world.path()).unwrap();
    let locked = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let begun = std::time::Instant::now();
    audit.record(&entry("two")).unwrap();
    assert!(begun.elapsed().as_secs() < 10 && audit.health().lost == 1);
    drop(locked);
    audit.record(&entry("three")).unwrap();
    assert_eq!(findings(&world.judge(None, &[&world.bytes()])), []);
}
