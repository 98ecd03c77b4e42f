//! Locks between processes' open files.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

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
