//! Forking, signals, limits and other processes.
#![expect(unsafe_code, reason = "fork(2), sigaction(2) and pidfd_open(2) have no safe wrapper")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that was; the child's id.
    Parent(i32),
    /// The new process.
    Child,
}

/// Makes a second process, which has this thread only.
///
/// # Errors
/// Those of fork(2), and `Other` if the process has several threads: locks that they hold would be
/// held for ever in the child.
pub fn fork() -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("a process with {threads} threads cannot be forked")));
    }
    // SAFETY: this is the only thread, so the child inherits no lock that somebody else holds and
    // may do what any process may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Side::Parent(child.as_raw())),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// The reading and the writing end of a pipe(2), which children that are executed do not get.
///
/// # Errors
/// Those of pipe(2).
pub fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

/// Exit code of a child that ended; 128 and its number if a signal ended it.
///
/// # Errors
/// Those of waitpid(2).
pub fn wait(child: i32) -> io::Result<i32> {
    use nix::sys::wait::{WaitStatus, waitpid};
    loop {
        match waitpid(Pid::from_raw(child), None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Leaves the session and the terminal: setsid(2), working directory `/`, and `/dev/null` as
/// standard input, output and error.
///
/// # Errors
/// Those of the calls.
pub fn leave_terminal() -> io::Result<()> {
    nix::unistd::setsid()?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Where the handler writes; -1 before [`Signals::catch`].
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(number: libc::c_int) {
    let byte = number as u8;
    let saved = Errno::last_raw();
    // SAFETY: write(2) is async-signal-safe (signal-safety(7)); `byte` lives through the call, and
    // the descriptor is never closed. A full pipe drops a signal that is pending anyway.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
    Errno::set_raw(saved);
}

/// Signals as a stream that a thread reads.
pub struct Signals(File);

impl Signals {
    /// Catches `signals` from now on, in the whole process, until it ends.
    ///
    /// # Errors
    /// Those of pipe(2) and sigaction(2).
    pub fn catch(signals: &[Signal]) -> io::Result<Self> {
        let (reader, writer) = pipe()?;
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        SIGNAL_PIPE.store(OwnedFd::from(writer).into_raw_fd(), Ordering::Relaxed);
        let handler = SigHandler::Handler(on_signal);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        for &signal in signals {
            // SAFETY: `on_signal` makes async-signal-safe calls only.
            unsafe { sigaction(signal, &action) }?;
        }
        Ok(Self(reader))
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn wait(&mut self) -> io::Result<Signal> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        Signal::try_from(i32::from(byte[0])).map_err(io::Error::from)
    }
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// A thread that can be called out of what it waits in.
#[derive(Clone, Copy, Debug)]
pub struct Interruptible(Pid);

impl Interruptible {
    /// This thread. SIGURG, which is ignored by default, does nothing from now on either, but ends
    /// calls in this process with EINTR (signal(7)).
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn here() -> io::Result<Self> {
        let handler = SigHandler::Handler(do_nothing);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, which is async-signal-safe.
        unsafe { sigaction(Signal::SIGURG, &action) }?;
        Ok(Self(nix::unistd::gettid()))
    }

    /// Calls it. Nothing happens if it waits in no call, or has ended.
    pub fn interrupt(self) {
        let (process, thread) = (nix::unistd::getpid().as_raw(), self.0.as_raw());
        // SAFETY: no memory is passed, and the signal does nothing to whatever thread of this
        // process has that number by now.
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGURG) };
    }
}

/// Keeps memory out of core dumps, and other processes of the user out of memory.
///
/// # Errors
/// Those of prctl(2).
pub fn forbid_dumps() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// Raises the limit of open files to what the system allows this process.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// A process that can be waited for though it is no child.
pub struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// Opens process `pid`; `None` if there is none.
    ///
    /// # Errors
    /// Those of pidfd_open(2), which Linux 5.3 introduced.
    pub fn open(pid: u32) -> io::Result<Option<Self>> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return match Errno::last() {
                Errno::ESRCH => Ok(None),
                errno => Err(errno.into()),
            };
        }
        let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the call has just returned this descriptor, and nobody else owns it.
        Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Waits until the process has ended; returns false if it is still there after `patience`.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut list = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut list, timeout) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl std::os::fd::AsFd for ProcessHandle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for ProcessHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pidfd {}", self.0.as_raw_fd())
    }
}

/// A process that uses a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// Its command, as in `/proc/PID/comm`.
    pub command: String,
    /// What of it: `cwd`, `root`, `exe`, `fd` or `map`.
    pub how: &'static str,
}

/// Processes with an open file, a mapping, or their working or root directory on the filesystem
/// mounted at `mountpoint`. Of other users only root sees them. No request is sent to the
/// filesystem: links in `/proc` are read, not followed.
pub fn users_of(mountpoint: &std::path::Path) -> Vec<User> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|&pid| pid != own).filter_map(|pid| user(pid, mountpoint)).collect()
}

fn user(pid: u32, mountpoint: &std::path::Path) -> Option<User> {
    let base = std::path::PathBuf::from(format!("/proc/{pid}"));
    let within = |link: std::path::PathBuf| {
        std::fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint))
    };
    let any_fd = || {
        let list = std::fs::read_dir(base.join("fd")).ok();
        list.is_some_and(|list| list.flatten().any(|entry| within(entry.path())))
    };
    let any_map = || {
        let maps = std::fs::read(base.join("maps")).unwrap_or_default();
        let maps = String::from_utf8_lossy(&maps).into_owned();
        let mut paths = maps.lines().filter_map(|line| line.split_once(" /"));
        paths.any(|(_, path)| std::path::Path::new("/").join(path).starts_with(mountpoint))
    };
    let how = ["cwd", "root", "exe"].into_iter().find(|link| within(base.join(link)));
    let how = how.or_else(|| any_fd().then_some("fd")).or_else(|| any_map().then_some("map"))?;
    let command = std::fs::read_to_string(base.join("comm")).unwrap_or_default();
    Some(User { pid, command: command.trim_end().escape_debug().to_string(), how })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that is there is waited for until it is not.
    #[test]
    fn handle_of_a_process() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let handle = ProcessHandle::open(child.id()).unwrap().expect("it runs");
        assert!(!handle.wait(Duration::from_millis(20)).unwrap());
        child.kill().unwrap();
        assert!(handle.wait(Duration::from_secs(5)).unwrap());
        let id = child.id();
        child.wait().unwrap();
        assert!(ProcessHandle::open(id).unwrap().is_none());
    }

    /// A process is found by its working directory, with its command.
    #[test]
    fn finds_users() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        assert_eq!(users_of(&path), []);
        let mut command = std::process::Command::new("sleep");
        let mut child = command.arg("60").current_dir(&path).spawn().unwrap();
        let users = users_of(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        let expected = User { pid: child.id(), command: "sleep".to_owned(), how: "cwd" };
        assert_eq!(users, [expected]);
    }

    /// A test process has several threads, and must not be forked.
    #[test]
    fn refuses_to_fork_threads() {
        assert!(fork().is_err());
    }
}
