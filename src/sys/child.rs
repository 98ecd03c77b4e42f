//! Running a program with bounded input, output and time.
#![expect(unsafe_code, reason = "what a child does between fork(2) and execve(2) has no safe form")]

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use zeroize::{Zeroize as _, Zeroizing};

use super::process::ProcessHandle;

/// Most that is read from a pipe once the child has ended: it holds no more, by default four times.
const LAST_READS_MAX: usize = 64;
/// Bytes read at once.
const CHUNK_BYTES: usize = 4096;
/// How long a killed child may take to end before it is left to a thread.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// A program, and how much it may take.
#[derive(Debug)]
pub struct Program<'a> {
    /// The file; no `PATH` is searched and no shell is involved.
    pub path: &'a Path,
    /// Its arguments after the name.
    pub arguments: &'a [&'a OsStr],
    /// All of its environment.
    pub environment: &'a [(OsString, OsString)],
    /// Longest time from start to end.
    pub timeout: Duration,
    /// Longest standard output, in bytes.
    pub output_bytes_max: usize,
    /// How much of the end of standard error is kept, in bytes.
    pub errors_bytes_max: usize,
}

/// A program that ended by itself. Both buffers are wiped when dropped.
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: Zeroizing<Vec<u8>>,
    /// The end of its standard error.
    pub errors: Zeroizing<Vec<u8>>,
}

/// Standard output, and the end of standard error.
type Streams = (Zeroizing<Vec<u8>>, Zeroizing<Vec<u8>>);

/// Why there is no [`Ended`]. The program does not run any more.
pub enum RunError {
    /// It could not be started.
    Start(io::Error),
    /// It took longer than it may, and was killed. With the end of its standard error.
    TimedOut(Zeroizing<Vec<u8>>),
    /// It wrote more than it may, and was killed.
    TooLong,
    /// A system call failed.
    Io(io::Error),
}

impl fmt::Debug for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => write!(f, "Start({error:?})"),
            Self::TimedOut(_) => f.write_str("TimedOut"),
            Self::TooLong => f.write_str("TooLong"),
            Self::Io(error) => write!(f, "Io({error:?})"),
        }
    }
}

impl Program<'_> {
    /// Runs it: working directory `/`, a session of its own without a terminal, no core dumps, and
    /// no descriptors but the three, which are pipes. `input` is written to it; that it may close
    /// its standard input early is not an error. It has ended when its first process has; what
    /// that left behind in its process group is killed.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run(&self, input: &[u8]) -> Result<Ended, RunError> {
        let deadline = Instant::now() + self.timeout;
        let mut command = Command::new(self.path);
        command
            .args(self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: `confine` makes system calls only; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(confine) };
        let child = command.spawn().map_err(RunError::Start)?;
        let mut running = Running { child: Some(child) };
        let (output, errors) = self.talk(&mut running, input, deadline)?;
        let status = running.end().map_err(RunError::Io)?;
        Ok(Ended { status, output, errors })
    }

    /// Writes and reads until the process has ended.
    fn talk(
        &self,
        running: &mut Running,
        mut input: &[u8],
        deadline: Instant,
    ) -> Result<Streams, RunError> {
        let child = running.child.as_mut().expect("it was just started");
        let pid = child.id();
        let handle = ProcessHandle::open(pid).map_err(RunError::Io)?;
        let handle = handle.ok_or_else(|| RunError::Io(Errno::ESRCH.into()))?;
        let mut stdin = child.stdin.take();
        let mut stdout = child.stdout.take();
        let mut stderr = child.stderr.take();
        for fd in [stdin.as_ref().map(AsFd::as_fd), as_fd(&stdout), as_fd(&stderr)] {
            set_nonblocking(fd.expect("all three are pipes")).map_err(RunError::Io)?;
        }
        // Room for everything, because a buffer that moves leaves copies.
        let mut output = Zeroizing::new(Vec::with_capacity(self.output_bytes_max + CHUNK_BYTES));
        let mut errors = Zeroizing::new(Vec::with_capacity(self.errors_bytes_max + CHUNK_BYTES));
        loop {
            let fds = [as_fd(&stdin), as_fd(&stdout), as_fd(&stderr)];
            if wait(handle.as_fd(), fds, deadline).map_err(RunError::Io)? {
                break;
            }
            if Instant::now() >= deadline {
                return Err(RunError::TimedOut(errors));
            }
            if stdin.as_mut().is_some_and(|pipe| !write_some(pipe, &mut input)) {
                stdin = None;
            }
            read_some(&mut stdout, &mut output).map_err(RunError::Io)?;
            self.check(&output)?;
            read_some(&mut stderr, &mut errors).map_err(RunError::Io)?;
            self.keep_end(&mut errors);
        }
        // Nobody of the group writes any more after this.
        _ = killpg(Pid::from_raw(pid as libc::pid_t), Signal::SIGKILL);
        for _ in 0..LAST_READS_MAX {
            let more = read_some(&mut stdout, &mut output).map_err(RunError::Io)?;
            self.check(&output)?;
            let more_errors = read_some(&mut stderr, &mut errors).map_err(RunError::Io)?;
            self.keep_end(&mut errors);
            if !more && !more_errors {
                break;
            }
        }
        Ok((output, errors))
    }

    fn check(&self, output: &[u8]) -> Result<(), RunError> {
        if output.len() > self.output_bytes_max { Err(RunError::TooLong) } else { Ok(()) }
    }

    fn keep_end(&self, errors: &mut Zeroizing<Vec<u8>>) {
        let excess = errors.len().saturating_sub(self.errors_bytes_max);
        errors.drain(..excess);
    }
}

/// Between fork(2) and execve(2).
fn confine() -> io::Result<()> {
    nix::unistd::setsid()?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` lives through the call, which only reads it.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    // Descriptors that some library opened without O_CLOEXEC. Linux 5.11 introduced the flag;
    // before, nothing is lost but this second line of defence.
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: no memory is passed, and descriptors are closed by the execve(2) that follows only.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) };
    Ok(())
}

/// A child that is killed, with its group, and waited for when this is dropped.
struct Running {
    child: Option<Child>,
}

impl Running {
    /// Kills what is left of the group, and gives the status of the first process.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let mut child = self.child.take().expect("ended once");
        // The first process is not waited for yet, so its number means no other group.
        _ = killpg(Pid::from_raw(child.id() as libc::pid_t), Signal::SIGKILL);
        let handle = ProcessHandle::open(child.id()).ok().flatten();
        if handle.is_some_and(|handle| !handle.wait(KILL_PATIENCE).unwrap_or(true)) {
            // It is in a system call that does not end; nobody waits with it.
            std::thread::spawn(move || child.wait());
            return Ok(ExitStatus::from_raw(Signal::SIGKILL as i32));
        }
        child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.is_some() {
            _ = self.end();
        }
    }
}

fn as_fd<T: AsFd>(pipe: &Option<T>) -> Option<BorrowedFd<'_>> {
    pipe.as_ref().map(AsFd::as_fd)
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Waits until the process has ended (then true), a pipe is ready, or `deadline`.
fn wait(
    process: BorrowedFd<'_>,
    [stdin, stdout, stderr]: [Option<BorrowedFd<'_>>; 3],
    deadline: Instant,
) -> io::Result<bool> {
    let mut list = vec![PollFd::new(process, PollFlags::POLLIN)];
    list.extend(stdin.map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
    list.extend([stdout, stderr].into_iter().flatten().map(|fd| {
        // A pipe whose last writer is gone is reported for ever, until it is read to its end.
        PollFd::new(fd, PollFlags::POLLIN)
    }));
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up, so that the deadline has passed when nothing happened.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
    match poll(&mut list, timeout.unwrap_or(PollTimeout::MAX)) {
        Ok(_) => Ok(list[0].any().unwrap_or(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes what fits; false when all is written, or nobody reads it.
fn write_some(pipe: &mut impl Write, input: &mut &[u8]) -> bool {
    match pipe.write(input) {
        Ok(count) => {
            *input = &input[count..];
            !input.is_empty()
        }
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        }
    }
}

/// Appends what is there, at most [`CHUNK_BYTES`]; drops the pipe at its end. Whether there may be
/// more.
fn read_some(pipe: &mut Option<impl Read>, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let Some(open) = pipe.as_mut() else { return Ok(false) };
    let mut chunk = [0; CHUNK_BYTES];
    let result = open.read(&mut chunk);
    let more = match result {
        Ok(0) => {
            *pipe = None;
            Ok(false)
        }
        Ok(count) => {
            buffer.extend_from_slice(&chunk[..count]);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error),
    };
    chunk.zeroize();
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration, input: &[u8]) -> Result<Ended, RunError> {
        let program = Program {
            path: Path::new("/bin/sh"),
            arguments: &[OsStr::new("-c"), OsStr::new(script)],
            environment: &[("GIVEN".into(), "1".into())],
            timeout,
            output_bytes_max: 100_000,
            errors_bytes_max: 100,
        };
        program.run(input)
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(300);

    /// Input that no pipe holds goes in while as much comes out; both arrive whole.
    #[test]
    fn input_and_output() {
        let input: Vec<_> = (0..99_000).map(|index| (index % 251) as u8).collect();
        let ended = shell("cat; echo done >&2; exit 3", LONG, &input).expect("it ends");
        assert!(*ended.output == input, "{} bytes came back", ended.output.len());
        assert_eq!(ended.errors.as_slice(), b"done\n");
        assert_eq!(ended.status.code(), Some(3));
    }

    /// Who does not read, closes everything or dies by a signal is no error of ours.
    #[test]
    fn ends_early() {
        let input = vec![b'x'; 1 << 20];
        let ended = shell("exec <&- ; echo hello", LONG, &input).expect("it ends");
        assert_eq!(ended.output.as_slice(), b"hello\n");
        let ended = shell("exec >&- 2>&- <&-; sleep 0.1", LONG, &input).expect("it ends");
        assert!(ended.output.is_empty() && ended.status.success());
        let ended = shell("kill -9 $$", LONG, &input).expect("it ends");
        assert_eq!(ended.status.signal(), Some(9));
    }

    /// Too long or too much ends it, and everything that it has started.
    #[test]
    fn is_bounded() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("alive");
        let child = format!("(sleep 1; touch {}) & wait", file.display());
        let start = Instant::now();
        let error = shell(&format!("echo why >&2; {child}"), SHORT, b"").err();
        assert!(matches!(error, Some(RunError::TimedOut(ref e)) if e.as_slice() == b"why\n"));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        let error = shell("exec cat /dev/zero", LONG, b"").err();
        assert!(matches!(error, Some(RunError::TooLong)), "{error:?}");
        let ended = shell("yes | head -c 1000000 >&2; echo end >&2", LONG, b"").expect("it ends");
        assert!(ended.errors.len() == 100 && ended.errors.ends_with(b"y\nend\n"));
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!file.exists(), "the child's child went on");
    }

    /// What it leaves in the background neither keeps the call waiting nor stays.
    #[test]
    fn leaves_nothing_behind() {
        let start = Instant::now();
        let ended = shell("sleep 60 & echo $!", LONG, b"").expect("it ends");
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid: u32 = String::from_utf8_lossy(&ended.output).trim().parse().expect("a number");
        // Killed, and soon waited for by whoever adopts orphans.
        let gone = ProcessHandle::open(pid).expect("readable");
        assert!(gone.is_none_or(|handle| handle.wait(Duration::from_secs(5)).expect("pollable")));
    }

    /// Nothing is inherited: no variable, descriptor, terminal, directory or core dump.
    #[test]
    fn is_confined() {
        let leak = std::fs::File::open("/dev/null").expect("it exists");
        fcntl(&leak, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("it is open");
        // Not through a pipe, of which the shell would have an end open.
        let script = "ls /proc/$$/fd; pwd; ulimit -c; env | grep -v '^PWD\\|^_'; \
                      ps -o tty= -p $$ 2>/dev/null | tr -d ' '";
        let ended = shell(script, LONG, b"").expect("it ends");
        let output = String::from_utf8_lossy(&ended.output).into_owned();
        assert_eq!(output, "0\n1\n2\n/\n0\nGIVEN=1\n?\n");
    }

    /// What cannot be started says so.
    #[test]
    fn cannot_start() {
        let program = Program {
            path: Path::new("/nowhere/program"),
            arguments: &[],
            environment: &[],
            timeout: LONG,
            output_bytes_max: 1,
            errors_bytes_max: 1,
        };
        assert!(matches!(program.run(b"").err(), Some(RunError::Start(_))));
    }
}
