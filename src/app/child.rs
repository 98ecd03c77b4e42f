//! The command that runs in wwwroot: a process group of its own, so that all of it ends together.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};

/// How long a group that was killed may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A command that was started.
pub struct Running {
    pid: Pid,
    started: Instant,
    ended: Arc<(Mutex<Option<ExitStatus>>, Condvar)>,
}

impl Running {
    /// Starts `command` in `directory` with this environment and no other, with an empty standard
    /// input.
    ///
    /// # Errors
    /// Those of fork(2) and execve(2).
    pub fn start(
        command: &[OsString],
        directory: &Path,
        environment: &[(OsString, OsString)],
    ) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(directory)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pid = Pid::from_raw(child.id() as libc::pid_t);
        let ended = Arc::new((Mutex::new(None), Condvar::new()));
        let waiter = ended.clone();
        let thread = std::thread::Builder::new().name("atrest-command".to_owned());
        thread.spawn(move || {
            let status = child.wait().unwrap_or_default();
            // What it left behind in its group must not keep files or ports.
            let _ = killpg(pid, Signal::SIGKILL);
            *waiter.0.lock() = Some(status);
            waiter.1.notify_all();
        })?;
        Ok(Self { pid, started: Instant::now(), ended })
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// How it ended; `None` while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.ended.0.lock()
    }

    /// Sends a signal to all of its group.
    pub fn signal(&self, signal: Signal) {
        if self.status().is_none() {
            let _ = killpg(self.pid, signal);
        }
    }

    /// Has it end, and kills it if it has not after `patience`.
    pub fn stop(&self, patience: Duration) {
        self.signal(Signal::SIGTERM);
        if !self.wait(patience) {
            log::warn!("process {} does not end; killing it", self.pid);
            self.signal(Signal::SIGKILL);
            self.wait(KILL_PATIENCE);
        }
    }

    fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut status = self.ended.0.lock();
        while status.is_none() {
            if self.ended.1.wait_until(&mut status, deadline).timed_out() {
                return status.is_some();
            }
        }
        true
    }
}

/// `ended with status 3`, `was killed by SIGKILL`
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> Running {
        let command = ["/bin/sh", "-c", script].map(OsString::from);
        Running::start(&command, Path::new("/"), &[]).expect("a shell")
    }

    /// A command that ends says how; one that ignores SIGTERM is killed, with what it started.
    #[test]
    fn ends() {
        let running = start("exit 3");
        assert!(running.wait(Duration::from_secs(10)));
        assert_eq!(describe(running.status().expect("it ended")), "ended with status 3");
        let running = start("trap '' TERM; sleep 100 & wait; sleep 100");
        std::thread::sleep(Duration::from_millis(200));
        running.stop(Duration::from_millis(300));
        assert_eq!(describe(running.status().expect("it ended")), "was killed by SIGKILL");
        let left = std::fs::read_dir("/proc").expect("/proc").filter(|entry| {
            let stat = entry.as_ref().expect("an entry").path().join("stat");
            let stat = std::fs::read_to_string(stat).unwrap_or_default();
            // `PID (NAME) STATE PARENT GROUP …`; Z is one that nobody has waited for.
            let fields = stat.rsplit(')').next().unwrap_or_default();
            let fields: Vec<_> = fields.split_whitespace().collect();
            fields.get(2) == Some(&running.pid.to_string().as_str()) && fields[0] != "Z"
        });
        assert_eq!(left.count(), 0, "nobody of the group is left");
    }
}
