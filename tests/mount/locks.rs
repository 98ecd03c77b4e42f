//! Locks between processes' open files.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

use crate::mounted::Mounted;

#[test]
fn an_exclusive_lock_excludes() {
    let mounted = Mounted::new();
    let path = mounted.join("locked");
    File::create(&path).unwrap();
    let open = || File::open(&path).unwrap();
    let first = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
    let second = Flock::lock(open(), FlockArg::LockSharedNonblock);
    assert_eq!(second.unwrap_err().1, nix::errno::Errno::EWOULDBLOCK);
    drop(first);
    Flock::lock(open(), FlockArg::LockSharedNonblock).unwrap();
}

/// Locks on ranges: apart they do not meet, and the lock of an open file goes with it.
#[test]
fn ranges_are_locked_apart() {
    let mounted = Mounted::new();
    let path = mounted.join("locked");
    std::fs::write(&path, "0123456789").unwrap();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let (first, second) = (open(), open());
    let lock = |file: &File, kind: i32, start: i64, length: i64| {
        let range = libc::flock {
            l_type: kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: length,
            l_pid: 0,
        };
        fcntl(file, FcntlArg::F_OFD_SETLK(&range)).map(drop)
    };
    lock(&first, libc::F_WRLCK, 0, 5).unwrap();
    assert_eq!(lock(&second, libc::F_RDLCK, 4, 2), Err(Errno::EAGAIN));
    lock(&second, libc::F_WRLCK, 5, 5).unwrap();
    assert_eq!(lock(&first, libc::F_WRLCK, 9, 1), Err(Errno::EAGAIN));
    lock(&first, libc::F_UNLCK, 0, 5).unwrap();
    lock(&second, libc::F_RDLCK, 0, 5).unwrap();
    drop(second);
    lock(&first, libc::F_WRLCK, 0, 0).unwrap();
}
