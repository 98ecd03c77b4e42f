//! Who asked.

use nix::unistd::{getpid, getuid};

/// The user and process that asked for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The real user.
    pub uid: u32,
    /// The process.
    pub pid: i32,
    /// Its name (`comm` of proc(5)).
    pub process: String,
}

impl Asker {
    /// This process: a command, or a daemon that acts on its own account.
    pub fn of_this_process() -> Self {
        Self::of_peer(getuid().as_raw(), getpid().as_raw())
    }

    /// The process at the other end of a socket (`SO_PEERCRED` of unix(7)). It may have ended; then
    /// it has no name.
    pub fn of_peer(uid: u32, pid: i32) -> Self {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self { uid, pid, process: name.trim_end_matches('\n').to_owned() }
    }
}
