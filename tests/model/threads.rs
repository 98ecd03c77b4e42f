//! Several threads at once: no deadlock, and afterwards entries, links and sizes agree.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use atrest::crypto::Cipher;
use atrest::fs::{Caller, Ino, Kind, RenameFlags, Tree};

use crate::backing::{Backing, Mounted};
use crate::random::{Random, Replay, operations as count, seed};
use crate::reference::ROOT;

const THREADS: usize = 6;
const SHARED: usize = 5;
const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// Each thread works in a directory of its own, and all move directories between shared ones, one
/// of which lies below another, so that some moves would make a loop.
#[test]
fn threads_leave_a_consistent_tree() {
    let seed = seed();
    println!("ATREST_SEED={seed}");
    let _replay = Replay { seed, operation: 0 };
    let backing = Backing::new(Cipher::Aes256Gcm);
    let mounted = backing.open(true);
    let tree = &mounted.tree;
    let make = |parent, name: &str| {
        tree.mkdir(CALLER, parent, name.as_bytes(), 0o755).expect("a new name").ino
    };
    let own: Vec<Ino> = (0..THREADS).map(|thread| make(ROOT, &format!("own{thread}"))).collect();
    let mut shared: Vec<Ino> = vec![ROOT];
    for at in 0..SHARED {
        shared.push(make(shared[at / 2], &format!("shared{at}")));
    }
    let each = count(60_000) / THREADS;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = own
            .iter()
            .enumerate()
            .map(|(thread, own)| {
                let (mounted, shared) = (&mounted, &shared);
                scope.spawn(move || {
                    let mut random = Random::new(seed + thread as u64);
                    (0..each).for_each(|_| step(mounted, *own, shared, &mut random));
                })
            })
            .collect();
        scope.spawn(|| watch(&done));
        let panicked = workers.into_iter().map(|worker| worker.join()).any(|end| end.is_err());
        done.store(true, Ordering::Relaxed);
        assert!(!panicked, "a worker panicked");
    });
    check(&mounted);
    mounted.close();
    check(&backing.open(true));
}

/// A file is replaced by renaming over and over: whoever looks finds the old or the new one, never
/// none, and what it finds can be opened unless it was replaced meanwhile.
#[test]
fn a_replaced_name_is_never_absent() {
    let backing = Backing::new(Cipher::Aes256Gcm);
    let mounted = backing.open(false);
    let tree = &mounted.tree;
    tree.mknod(CALLER, ROOT, b"target", 0o644, 0).expect("a new name");
    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let found = tree.lookup(ROOT, b"target").expect("there always is one");
                    match tree.open(found.ino, false, false) {
                        Ok(handle) => {
                            let mut buffer = Vec::new();
                            tree.read(found.ino, 0, 1, false, &mut buffer).expect("it is open");
                            tree.release(found.ino, handle);
                        }
                        Err(error) => assert_eq!(error.errno(), libc::ESTALE),
                    }
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _done = SetOnDrop(&done);
        for _ in 0..count(60_000) / 3 {
            tree.mknod(CALLER, ROOT, b"temporary", 0o644, 0).expect("the name is free");
            tree.rename(ROOT, b"temporary", ROOT, b"target", RenameFlags::default())
                .expect("it was just made");
        }
    });
    assert!(seen.into_inner() > 100, "nobody looked");
    check(&mounted);
}

/// Two threads move `/1/one` to `/2/two/below` and `/2/two` to `/1/one/below`: never both, or they
/// would be cut off from the root. The moves have no directory in common, so that only the order of
/// all such moves keeps them apart.
#[test]
fn directories_do_not_move_into_each_other() {
    let backing = Backing::new(Cipher::Aes256Gcm);
    let mounted = backing.open(false);
    let tree = &mounted.tree;
    let make = |parent, name: &[u8]| tree.mkdir(CALLER, parent, name, 0o755).expect("new").ino;
    let homes = [make(ROOT, b"1"), make(ROOT, b"2")];
    let tops = [make(homes[0], b"one"), make(homes[1], b"two")];
    let belows = [make(tops[0], b"below"), make(tops[1], b"below")];
    let moved = AtomicUsize::new(0);
    let shuttle = |name: &[u8], own: usize, other: usize| {
        let none = RenameFlags::default();
        for _ in 0..count(60_000) / 2 {
            match tree.rename(homes[own], name, belows[other], name, none) {
                Ok(()) => {
                    let above = tree.lookup(tops[other], b"..").expect("it has a parent");
                    assert_eq!(above.ino, homes[other], "both were moved");
                    tree.rename(belows[other], name, homes[own], name, none).expect("it is there");
                    moved.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => assert_eq!(error.errno(), libc::EINVAL, "{error:?}"),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| shuttle(b"one", 0, 1));
        scope.spawn(|| shuttle(b"two", 1, 0));
    });
    assert!(moved.into_inner() > 100, "nothing was moved");
    check(&mounted);
}

/// So that threads that wait for the end end also when the test panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A deadlock must fail the test, not hang it.
fn watch(done: &AtomicBool) {
    let start = Instant::now();
    while !done.load(Ordering::Relaxed) {
        if start.elapsed() > Duration::from_secs(120) {
            eprintln!("threads made no end in 120 s: deadlock");
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One operation; in shared places it may fail in the ways that others can make it fail.
fn step(mounted: &Mounted, own: Ino, shared: &[Ino], random: &mut Random) {
    let tree = &mounted.tree;
    let name = format!("name{}", random.below(8)).into_bytes();
    let other = format!("name{}", random.below(8)).into_bytes();
    let (here, there) = (*random.pick(shared), *random.pick(shared));
    let flags =
        RenameFlags { no_replace: random.once_in(6), exchange: random.once_in(4), whiteout: false };
    let flags = if flags.exchange { RenameFlags { no_replace: false, ..flags } } else { flags };
    let outcome = match random.below(12) {
        0 => tree.mkdir(CALLER, here, &name, 0o755).map(|_| ()),
        1 => tree.rmdir(here, &name),
        2 => tree.mknod(CALLER, here, &name, 0o644, 0).map(|_| ()),
        3 => tree.unlink(here, &name),
        4..6 => tree.rename(here, &name, there, &other, flags),
        6 => {
            // The shared directories themselves move too; their names stay.
            let at = 1 + random.below(SHARED);
            let label = format!("shared{}", at - 1).into_bytes();
            tree.rename(here, &label, there, &label, RenameFlags::default())
        }
        7 => match tree.lookup(here, &name) {
            Ok(attr) if attr.kind == Kind::File => tree.link(attr.ino, there, &other).map(|_| ()),
            other => other.map(|_| ()),
        },
        8 => tree.sync(),
        _ => return in_own(mounted, own, &name, &other, random),
    };
    if let Err(error) = outcome {
        let allowed = [
            libc::ENOENT,
            libc::EEXIST,
            libc::ENOTEMPTY,
            libc::EISDIR,
            libc::ENOTDIR,
            libc::EINVAL,
            libc::ESTALE,
        ];
        assert!(allowed.contains(&error.errno()), "{error:?}");
    }
}

/// What nobody else disturbs must do exactly what it should.
fn in_own(mounted: &Mounted, own: Ino, name: &[u8], other: &[u8], random: &mut Random) {
    let tree = &mounted.tree;
    let length = 1 + random.below(9000);
    let data = random.bytes(length);
    match tree.lookup(own, name) {
        Err(error) => {
            assert_eq!(error.errno(), libc::ENOENT);
            let (attr, handle) = tree.create(CALLER, own, name, 0o644).expect("a free name");
            tree.write(attr.ino, 10, &data, false).expect("a new file");
            tree.release(attr.ino, handle);
        }
        Ok(attr) if random.once_in(2) => {
            let handle = tree.open(attr.ino, false, false).expect("it exists");
            tree.unlink(own, name).expect("it exists");
            let mut buffer = Vec::new();
            tree.read(attr.ino, 0, attr.size as usize, false, &mut buffer).expect("it is open");
            assert_eq!(buffer.len() as u64, attr.size);
            assert!(buffer[..10].iter().all(|byte| *byte == 0), "nothing was written there");
            tree.release(attr.ino, handle);
            let gone = tree.getattr(attr.ino).map_err(|error| error.errno());
            assert_eq!(gone, Err(libc::ESTALE));
        }
        Ok(attr) => {
            tree.rename(own, name, own, other, RenameFlags::default()).expect("it exists");
            assert_eq!(tree.lookup(own, other).expect("it was renamed").ino, attr.ino);
        }
    }
}

/// Walks the tree from the root: links and sizes are those that the entries say, every directory is
/// reached once, and as many inodes are in use as there are.
fn check(mounted: &Mounted) {
    let tree = &mounted.tree;
    let mut links: BTreeMap<Ino, u32> = BTreeMap::from([(ROOT, 2)]);
    let mut unvisited = vec![(ROOT, ROOT)];
    while let Some((ino, parent)) = unvisited.pop() {
        let mut entries = 0;
        let visited = tree.readdir(ino, 0, true, &mut |entry| {
            match entry.name {
                b"." => assert_eq!(entry.ino, ino),
                b".." => assert_eq!(entry.ino, parent),
                name => {
                    entries += 1;
                    let found = tree.lookup(ino, name).expect("it is listed");
                    assert_eq!(Some(found), entry.attr);
                    *links.entry(entry.ino).or_default() += 1;
                    if entry.kind == Kind::Directory {
                        assert_eq!(links[&entry.ino], 1, "a directory has one name");
                        *links.get_mut(&entry.ino).expect("counted above") += 1;
                        *links.get_mut(&ino).expect("it was reached") += 1;
                        unvisited.push((entry.ino, ino));
                    }
                }
            }
            true
        });
        visited.expect("a directory can be listed");
        assert_eq!(tree.getattr(ino).expect("it exists").size, entries, "size of inode {ino}");
    }
    for (ino, links) in &links {
        assert_eq!(tree.getattr(*ino).expect("it exists").links, *links, "links of inode {ino}");
    }
    let stat = tree.statfs().expect("statfs");
    assert_eq!(stat.files - stat.files_free, links.len() as u64, "inodes in use");
}
