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

/// Python, for what needs several processes and signals.
const PROCESSES: &str = r"
import errno, fcntl, os, signal, struct, sys, time
path = sys.argv[1]
os.close(os.open(path, os.O_CREAT | os.O_RDWR))
def lock(fd, kind, start, length, wait=False):
    command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    fcntl.fcntl(fd, command, struct.pack('hhqqi4x', kind, 0, start, length, 0))
def blocker(fd, kind, start, length):
    flock = struct.pack('hhqqi4x', kind, 0, start, length, 0)
    kind, _, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, flock))
    return kind, start, length, pid
def refused(call, *expected):
    try: call()
    except OSError as error:
        assert error.errno in expected, error
        return
    raise AssertionError('not refused')
def child(work):
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(lambda: os.write(tell, b'r'))
            os._exit(0)
        except BaseException as error:
            print('child:', repr(error), file=sys.stderr)
            os._exit(1)
    os.close(tell)
    return pid, ready
def hold(say):
    fd = os.open(path, os.O_RDWR)
    lock(fd, fcntl.F_WRLCK, 10, 10)
    say()
    time.sleep(60)
fd = os.open(path, os.O_RDWR)
pid, ready = child(hold)
os.read(ready, 1)
refused(lambda: lock(fd, fcntl.F_RDLCK, 0, 0), errno.EAGAIN, errno.EACCES)
assert blocker(fd, fcntl.F_RDLCK, 0, 0) == (fcntl.F_WRLCK, 10, 10, pid)
lock(fd, fcntl.F_WRLCK, 0, 10)
# A signal ends the waiting.
def interrupted(*_): raise InterruptedError(errno.EINTR, 'alarm')
signal.signal(signal.SIGALRM, interrupted)
signal.setitimer(signal.ITIMER_REAL, 0.3)
refused(lambda: lock(fd, fcntl.F_WRLCK, 15, 1, wait=True), errno.EINTR)
# The end of a process is the end of its locks, and of others' waiting.
os.kill(pid, signal.SIGKILL)
lock(fd, fcntl.F_WRLCK, 15, 1, wait=True)
os.waitpid(pid, 0)
# Closing any descriptor of the file drops the locks of the process.
os.close(os.open(path, os.O_RDONLY))
pid, ready = child(lambda say: lock(os.open(path, os.O_RDWR), fcntl.F_WRLCK, 0, 0))
assert os.waitpid(pid, 0)[1] == 0
# Two that wait for each other: one is told.
lock(fd, fcntl.F_WRLCK, 0, 1)
def circle(say):
    other = os.open(path, os.O_RDWR)
    lock(other, fcntl.F_WRLCK, 1, 1)
    say()
    lock(other, fcntl.F_WRLCK, 0, 1, wait=True)
pid, ready = child(circle)
os.read(ready, 1)
time.sleep(0.3)
refused(lambda: lock(fd, fcntl.F_WRLCK, 1, 1, wait=True), errno.EDEADLK)
lock(fd, fcntl.F_UNLCK, 0, 1)
assert os.waitpid(pid, 0)[1] == 0
# flock(2): of the open file, so a child shares it, and it lives as long as one of them.
fcntl.flock(fd, fcntl.LOCK_EX)
def share(say):
    say()
    time.sleep(0.5)
pid, ready = child(share)
os.read(ready, 1)
os.close(fd)
fd = os.open(path, os.O_RDWR)
refused(lambda: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB), errno.EWOULDBLOCK)
fcntl.flock(fd, fcntl.LOCK_SH)
os.waitpid(pid, 0)
";

/// Locks between processes: conflicts and who is in the way, release at exit and at any close, the
/// end of waiting by a signal, and waiting in a circle.
#[test]
fn processes_lock_each_other_out() {
    let mounted = Mounted::new();
    let status = std::process::Command::new("python3")
        .args(["-c", PROCESSES])
        .arg(mounted.join("locked"))
        .status();
    assert!(status.expect("python3 can be run").success(), "see above");
}
