//! How `/dev/fuse` is opened, and handed over by the helper that mounts.
#![expect(unsafe_code, reason = "a received descriptor has no safe form")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The helper that mounts for users other than root.
pub const HELPER: &str = "fusermount3";
/// The environment variable in which the helper finds the number of its end of a socket.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Opens `/dev/fuse`.
///
/// # Errors
/// Those of open(2).
pub fn open_device() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/fuse")?.into())
}

/// Has `fusermount3` mount with these options and hand over what it opened.
///
/// # Errors
/// `NotFound` if it is not installed; what it said otherwise.
pub fn mount_by_helper(mountpoint: &Path, options: &OsStr) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    // As its standard input it gets the socket without a moment in which others could inherit it.
    let child = Command::new(HELPER)
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(mountpoint)
        .env(SOCKET_VARIABLE, "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let received = receive_descriptor(&ours);
    drop(ours);
    let output = child.wait_with_output()?;
    received.map_err(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        match said.trim() {
            "" => error,
            said => io::Error::other(said.to_owned()),
        }
    })
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut control = nix::cmsg_space!(RawFd);
    loop {
        let mut parts = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                let received = message.cmsgs()?.find_map(|control| match control {
                    ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
                    _ => None,
                });
                let descriptor = received.ok_or(io::ErrorKind::UnexpectedEof)?;
                // SAFETY: the message has just given us this descriptor, and nobody else owns it.
                return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
