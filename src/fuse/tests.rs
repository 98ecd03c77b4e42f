//! The adapter on a real mount, over a tree in memory. Each test mounts, makes system calls and
//! compares what programs see with what the tree was asked. Without `/dev/fuse`, or the right to
//! mount, they cannot run and say so.

pub(super) mod memory_tree;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

use super::{IoUring, MountError, NoRings, Options, Session, loops};
use crate::fs::{Caller, Error, SetXattr, Tree};
use crate::sys::mount;
use memory_tree::{MemoryTree, PAGE};

/// A mount that goes away with its guard.
struct Mounted {
    tree: Arc<MemoryTree>,
    directory: tempfile::TempDir,
    loops: Option<JoinHandle<()>>,
}

impl Mounted {
    /// `None`, with a word about it, where tests may not mount.
    fn new() -> Option<Self> {
        Self::with(IoUring::Auto)
    }

    /// As [`Mounted::new`], with requests that come this way.
    fn with(io_uring: IoUring) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: there is no /dev/fuse");
            return None;
        }
        let tree = MemoryTree::new();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = Options { io_uring, ..Options::new(PathBuf::from("/in/memory")) };
        let session = match Session::mount(tree.clone(), directory.path(), &options) {
            Ok(session) => session,
            Err(error) => {
                eprintln!("skipped: {error}: {:?}", std::error::Error::source(&error));
                return None;
            }
        };
        let loops = std::thread::spawn(move || session.run().expect("event loops end well"));
        Some(Self { tree, directory, loops: Some(loops) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn unmount(&mut self) {
        if let Some(loops) = self.loops.take() {
            mount::unmount(self.directory.path(), true).expect("unmounts");
            loops.join().expect("event loops do not panic");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// The mount table shows type and source; names, contents, links and listings make the round trip.
#[test]
fn files_directories_and_links() {
    let Some(mounted) = Mounted::new() else { return };
    let entry = mount::mount_at(mounted.directory.path()).unwrap().unwrap();
    assert_eq!(
        (entry.kind.as_str(), entry.source.as_path()),
        (mount::TYPE, Path::new("/in/memory"))
    );

    fs::create_dir(mounted.path("d")).unwrap();
    fs::write(mounted.path("d/f"), b"hello").unwrap();
    std::os::unix::fs::symlink("f", mounted.path("d/s")).unwrap();
    fs::hard_link(mounted.path("d/f"), mounted.path("d/h")).unwrap();
    assert_eq!(fs::read(mounted.path("d/s")).unwrap(), b"hello");
    assert_eq!(fs::metadata(mounted.path("d/h")).unwrap().nlink(), 2);
    fs::rename(mounted.path("d/h"), mounted.path("d/i")).unwrap();

    let mut names: Vec<_> = fs::read_dir(mounted.path("d"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["f", "i", "s"]);
    fs::remove_file(mounted.path("d/i")).unwrap();
    assert!(!mounted.path("d/i").exists());
}

/// Listings longer than one reply are complete, without doubles, with and without attributes.
#[test]
fn long_listings() {
    let Some(mounted) = Mounted::new() else { return };
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
    for number in 0..3000 {
        mounted.tree.add(caller, 1, format!("file{number:04}").as_bytes(), 0o100_644).unwrap();
    }
    for _ in 0..2 {
        let names: BTreeSet<_> = fs::read_dir(mounted.directory.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o644);
                entry.file_name()
            })
            .collect();
        assert_eq!(names.len(), 3000);
    }
    let asked = mounted.tree.counted("readdir");
    assert_eq!(fs::read_dir(mounted.directory.path()).unwrap().count(), 3000);
    assert_eq!(mounted.tree.counted("readdir"), asked, "the listing was cached");
}

/// A name that was looked up in vain is not asked for again.
#[test]
fn absent_names_are_cached() {
    let Some(mounted) = Mounted::new() else { return };
    for _ in 0..5 {
        assert!(!mounted.path("nothing").exists());
    }
    assert_eq!(mounted.tree.counted("lookup"), 1);
    fs::write(mounted.path("nothing"), b"x").unwrap();
    assert!(mounted.path("nothing").exists());
}

/// Data that is still dirty in the page cache is data to SEEK_DATA, and stays cached for root.
#[test]
fn seek_sees_dirty_pages() {
    let Some(mounted) = Mounted::new() else { return };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mounted.path("sparse"))
        .unwrap();
    file.set_len(64 * PAGE).unwrap();
    file.write_all_at(b"data", 16 * PAGE).unwrap();
    assert_eq!(lseek(&file, 0, Whence::SeekData).unwrap() as u64, 16 * PAGE);
    assert_eq!(lseek(&file, 16 * PAGE as i64, Whence::SeekHole).unwrap() as u64, 17 * PAGE);
    file.write_all_at(b"more", 32 * PAGE).unwrap();
    assert_eq!(lseek(&file, 17 * PAGE as i64, Whence::SeekData).unwrap() as u64, 32 * PAGE);
    let error = lseek(&file, 33 * PAGE as i64, Whence::SeekData).unwrap_err();
    assert_eq!(error, nix::errno::Errno::ENXIO);

    if nix::unistd::geteuid().is_root() {
        let reads = mounted.tree.counted("read");
        let mut page = [0; 4];
        file.read_exact_at(&mut page, 16 * PAGE).unwrap();
        assert_eq!(&page, b"data");
        assert_eq!(mounted.tree.counted("read"), reads, "the page was still cached");
    }
    file.seek(SeekFrom::Start(32 * PAGE)).unwrap();
    let mut text = [0; 4];
    file.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"more");
}

/// The road of unprivileged daemons: dirty pages are written back by notification too.
#[test]
fn notification_writes_back() {
    let Some(mut mounted) = Mounted::new() else { return };
    mounted.unmount();
    let tree = mounted.tree.clone();
    let options = Options::new(PathBuf::from("/in/memory"));
    let session = Session::mount(tree.clone(), mounted.directory.path(), &options).unwrap();
    let notifier = session.caches().shared.kernel.notifier.clone();
    let loops = std::thread::spawn(move || session.run().unwrap());
    mounted.loops = Some(loops);

    let file = File::create(mounted.path("f")).unwrap();
    file.write_all_at(&[7; 9000], 0).unwrap();
    let ino = file.metadata().unwrap().ino();
    assert!(tree.node(ino, |node| node.pages.is_empty()).unwrap(), "nothing is written yet");
    // As `lseek` does while it waits: somebody holds the file open and dirty.
    let way = super::writeback::Writeback { notifier, mountpoint: PathBuf::new(), device: 0 };
    way.write_back(ino, 0).unwrap();
    assert_eq!(tree.node(ino, |node| node.pages.len()).unwrap(), 3);
}

/// Times before the epoch, at the ends of the range and with nanoseconds come back as they were.
#[test]
fn extreme_times() {
    let Some(mounted) = Mounted::new() else { return };
    let file = File::create(mounted.path("old")).unwrap();
    for (seconds, nanoseconds) in
        [(-5, 300_000_000), (i64::MIN, 0), (-1, 999_999_999), (i64::MAX, 0), (1, 1)]
    {
        let time = nix::sys::time::TimeSpec::new(seconds, nanoseconds);
        nix::sys::stat::futimens(&file, &time, &time).unwrap();
        let stored = mounted.tree.getattr(file.metadata().unwrap().ino()).unwrap().mtime;
        assert_eq!((stored.seconds, i64::from(stored.nanoseconds)), (seconds, nanoseconds));
        let seen = file.metadata().unwrap();
        assert_eq!((seen.mtime(), seen.mtime_nsec()), (seconds, nanoseconds));
    }
    fs::write(mounted.path("alive"), b"").unwrap();
}

/// A panic in the tree is EIO for that request, and the next request is served.
#[test]
fn a_panic_is_an_error_of_one_request() {
    let Some(mounted) = Mounted::new() else { return };
    for _ in 0..4 {
        let error = fs::metadata(mounted.path("panic")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    fs::write(mounted.path("next"), b"served").unwrap();
}

/// The tree hears of an inode's end once the kernel has dropped every reference, not earlier.
#[test]
fn forgets_after_the_last_reference() {
    let Some(mounted) = Mounted::new() else { return };
    let mut file = File::create(mounted.path("open")).unwrap();
    let ino = file.metadata().unwrap().ino();
    fs::remove_file(mounted.path("open")).unwrap();
    file.write_all(b"still here").unwrap();
    file.sync_all().unwrap();
    assert!(!mounted.tree.forgotten.lock().contains(&ino));
    drop(file);
    let gone = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        mounted.tree.forgotten.lock().contains(&ino)
    });
    assert!(gone, "inode {ino} was not forgotten within 2 s of its last close");
    assert_eq!(mounted.tree.counted("release"), 1);
}

/// umask reaches the tree, writing clears set-user-ID, syncs and copies arrive as such.
#[test]
fn modes_syncs_and_copies() {
    let Some(mounted) = Mounted::new() else { return };
    let file = File::create(mounted.path("a")).unwrap();
    file.write_all_at(&[5; 10_000], 0).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    assert_eq!((mounted.tree.counted("fdatasync"), mounted.tree.counted("fsync")), (1, 1));
    fs::copy(mounted.path("a"), mounted.path("b")).unwrap();
    assert_eq!(fs::read(mounted.path("b")).unwrap(), [5; 10_000]);
    assert!(mounted.tree.counted("copy_range") > 0);

    file.set_permissions(fs::Permissions::from_mode(0o4755)).unwrap();
    nix::unistd::fchown(&file, Some(nix::unistd::Uid::from_raw(1)), None).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o755);
}

/// Extended attributes: value, absence, list; and a buffer that is too small.
#[test]
fn extended_attributes() {
    let Some(mounted) = Mounted::new() else { return };
    let path = mounted.path("x");
    fs::write(&path, b"").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).arg(&path).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let ino = fs::metadata(&path).unwrap().ino();
    mounted.tree.setxattr(ino, b"user.colour", b"blue", SetXattr::default()).unwrap();
    let Ok(listed) = run("getfattr", &["--absolute-names", "-d"]) else {
        eprintln!("skipped: there is no getfattr");
        return;
    };
    assert!(listed.contains("user.colour=\"blue\""), "{listed}");
    run("setfattr", &["-x", "user.colour"]).unwrap();
    let missing = mounted.tree.getxattr(ino, b"user.colour");
    assert!(matches!(missing, Err(Error::NoAttribute)));
}

/// Punching and `statvfs` reach the tree.
#[test]
fn punch_and_statfs() {
    let Some(mounted) = Mounted::new() else { return };
    let file = File::create(mounted.path("p")).unwrap();
    file.write_all_at(&[1; 4 * PAGE as usize], 0).unwrap();
    let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
        | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&file, punch, PAGE as i64, PAGE as i64).unwrap();
    let bytes = fs::read(mounted.path("p")).unwrap();
    assert_eq!(bytes[PAGE as usize..2 * PAGE as usize], [0; PAGE as usize]);
    assert_eq!(bytes[0], 1);

    let space = nix::sys::statvfs::statvfs(mounted.directory.path()).unwrap();
    assert_eq!((space.blocks(), space.blocks_free(), space.blocks_available()), (100, 60, 50));
    assert_eq!((space.name_max(), space.fragment_size()), (255, 4096));
    assert!(file.as_raw_fd() > 2);
}

/// Each way in which requests come, as far as this kernel has it.
fn each_way(test: impl Fn(Mounted)) {
    if let Some(mounted) = Mounted::with(IoUring::Off) {
        test(mounted);
    }
    match loops::is_possible() {
        Ok(()) => Mounted::with(IoUring::On).into_iter().for_each(test),
        Err(reason) => eprintln!("skipped: FUSE over io_uring: {reason}"),
    }
}

/// What is written by several threads at once, in large pieces and small ones, is read as it was.
#[test]
fn contents_from_several_threads() {
    each_way(|mounted| {
        std::thread::scope(|scope| {
            for number in 0..4_u8 {
                let path = mounted.path(&format!("f{number}"));
                scope.spawn(move || {
                    let bytes: Vec<u8> =
                        (0..3_000_000_u32).map(|at| (at / 7) as u8 ^ number).collect();
                    fs::write(&path, &bytes).unwrap();
                    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
                    file.sync_all().unwrap();
                    // Past the page cache: every READ is a request.
                    advise(&file, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                    assert!(fs::read(&path).unwrap() == bytes);
                    for _ in 0..200 {
                        fs::metadata(path.with_extension("absent")).unwrap_err();
                        fs::rename(&path, path.with_extension("moved")).unwrap();
                        fs::rename(path.with_extension("moved"), &path).unwrap();
                    }
                });
            }
        });
    });
}

fn advise(file: &File, advice: PosixFadviseAdvice) {
    posix_fadvise(file, 0, 0, advice).unwrap();
}

/// As many READs wait for the disk at once as there are event loops, again and again: the spare
/// ones are called when they are needed, and everybody sleeps or ends in between.
#[test]
fn reads_wait_beside_each_other() {
    let Some(mounted) = Mounted::with(IoUring::Off) else { return };
    let readers = Options::THREADS_DEFAULT as u64;
    let path = mounted.path("file");
    fs::write(&path, vec![7; (readers * PAGE) as usize]).unwrap();
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    advise(&file, PosixFadviseAdvice::POSIX_FADV_RANDOM);
    for round in 1..=20 {
        advise(&file, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        mounted.tree.reads_wanted.store(round * readers, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for number in 0..readers {
                let file = &file;
                scope.spawn(move || {
                    file.read_exact_at(&mut [0; PAGE as usize], number * PAGE).unwrap();
                });
            }
        });
        assert_eq!(mounted.tree.counted("lonely read"), 0, "others were not served meanwhile");
    }
}

/// Many seeks at once, each of which waits on a worker thread until the kernel has written back:
/// the WRITEs find their way past the requests that wait for them.
#[test]
fn writes_pass_requests_that_wait() {
    each_way(|mounted| {
        let files: Vec<File> = (0..100)
            .map(|number| {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true);
                options.open(mounted.path(&format!("f{number}"))).unwrap()
            })
            .collect();
        std::thread::scope(|scope| {
            for file in &files {
                scope.spawn(move || {
                    for round in 1..10 {
                        file.write_all_at(b"data", round * 4 * PAGE).unwrap();
                        let found = lseek(file, 0, Whence::SeekData).unwrap();
                        assert_eq!(found as u64, 4 * PAGE);
                        file.sync_data().unwrap();
                    }
                });
            }
        });
    });
}

/// A panic is an error of one request, and everything is given back when the mount goes.
#[test]
fn defects_and_the_end() {
    each_way(|mut mounted| {
        for _ in 0..100 {
            let error = fs::metadata(mounted.path("panic")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
        mounted.unmount();
    });
}

/// Where io_uring is not to be had, who insists on it is told so, and nothing stays mounted.
#[test]
fn io_uring_that_is_demanded() {
    let Err(reason) = loops::is_possible() else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = Options { io_uring: IoUring::On, ..Options::new(PathBuf::from("/in/memory")) };
    let refused = Session::mount(MemoryTree::new(), directory.path(), &options);
    match (refused.err().expect("it is refused"), reason) {
        (MountError::NoIoUring(NoRings::Disabled), NoRings::Disabled) => {}
        (MountError::NoIoUring(NoRings::Unknown), NoRings::Unknown) => {}
        (error, reason) => panic!("{error}, where {reason}"),
    }
    assert!(mount::mount_at(directory.path()).unwrap().is_none());
}
