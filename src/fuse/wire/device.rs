//! Requests and replies by read(2) and writev(2) of `/dev/fuse`.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zeroize::Zeroize as _;

use super::abi::{self, IN_HEADER_BYTES, WRITE_IN_BYTES};
use super::init::{self, Agreement, Answer, Wishes};
use super::reply;

/// Where the data of a WRITE begins in what is read.
const DATA_OFFSET: usize = IN_HEADER_BYTES + WRITE_IN_BYTES;
/// To which the data of a WRITE is aligned in memory: pages are sealed where they are.
const ALIGNMENT: usize = 4096;

/// One open connection to the kernel.
pub struct Device {
    file: OwnedFd,
}

/// Where requests are read into.
pub struct Buffer {
    memory: Vec<u8>,
    /// Where in it a request begins.
    start: usize,
    /// Up to where requests have filled it.
    used: usize,
}

/// Why the first exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The kernel's protocol is too old.
    #[error("the kernel speaks version {0}.{1} of it, and 7.31 (Linux 5.4) is the oldest here")]
    TooOld(u32, u32),
    /// What was read makes no sense.
    #[error("the kernel's first request is malformed")]
    Malformed(#[source] super::Malformed),
    /// The mount went away.
    #[error("the mount went away before it was used")]
    Gone,
    /// Reading or writing failed.
    #[error("/dev/fuse cannot be read and written")]
    Io(#[source] io::Error),
}

impl Buffer {
    /// For requests that write so many bytes at most.
    pub fn new(request_bytes: usize) -> Self {
        let length = (DATA_OFFSET + request_bytes).max(abi::READ_BUFFER_BYTES_MIN);
        // Zeroed memory from the system is not touched: what no request fills costs nothing.
        let memory = vec![0; length + ALIGNMENT];
        let address = memory.as_ptr() as usize + DATA_OFFSET;
        let start = address.next_multiple_of(ALIGNMENT) - address;
        Self { memory, start, used: 0 }
    }

    /// Leaves nothing in it of the requests that were read.
    pub fn wipe(&mut self) {
        self.memory[..self.used].zeroize();
        self.used = 0;
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Device {
    /// Takes over what was opened and mounted.
    pub fn new(file: OwnedFd) -> Self {
        Self { file }
    }

    /// Waits for the next request; `None` when the mount is gone. Calls `before` each time before
    /// it waits, and again after a signal.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn receive<'a>(
        &self,
        buffer: &'a mut Buffer,
        before: impl Fn(&mut Buffer),
    ) -> io::Result<Option<&'a [u8]>> {
        let start = buffer.start;
        loop {
            before(buffer);
            match nix::unistd::read(&self.file, &mut buffer.memory[start..]) {
                Ok(bytes) => {
                    buffer.used = buffer.used.max(start + bytes);
                    return Ok(Some(&buffer.memory[start..start + bytes]));
                }
                // ENOENT: it was taken back while it was read.
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => {}
                // ECONNABORTED: the mount went away just when a request was about to be handed out
                // (`fuse_dev_do_read`, fs/fuse/dev.c).
                Err(Errno::ENODEV | Errno::ECONNABORTED) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends a reply.
    pub(super) fn send(&self, unique: u64, error: i32, payload: &[u8]) {
        if let Err(failure) = self.write(unique, error, &[payload]) {
            match failure.raw_os_error() {
                // Nobody waits for it any more: the caller was killed, or the mount is gone.
                Some(libc::ENOENT | libc::ENODEV | libc::EPERM) => {
                    log::debug!("the kernel does not wait for reply {unique}: {failure}");
                }
                _ => log::error!("the kernel does not take reply {unique}: {failure}"),
            }
        }
    }

    fn write(&self, unique: u64, error: i32, payload: &[&[u8]]) -> io::Result<()> {
        let length = payload.iter().map(|part| part.len()).sum();
        let header = reply::header(unique, error, length);
        let mut parts = [IoSlice::new(&header), IoSlice::new(&[]), IoSlice::new(&[])];
        for (slot, part) in parts[1..].iter_mut().zip(payload) {
            *slot = IoSlice::new(part);
        }
        // The kernel takes a message whole or not at all.
        nix::sys::uio::writev(&self.file, &parts[..1 + payload.len()])?;
        Ok(())
    }

    /// Whether the mount is gone. One that was detached is not, while somebody uses it.
    pub fn is_gone(&self) -> bool {
        self.poll(PollFlags::POLLERR)
    }

    fn poll(&self, event: PollFlags) -> bool {
        let mut polled = [PollFd::new(self.file.as_fd(), event)];
        poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled[0].revents().is_some_and(|events| events.intersects(event))
    }

    /// Whether [`Device::receive`] would return at once, with a request or the end.
    pub fn is_awaited(&self) -> bool {
        self.poll(PollFlags::POLLIN | PollFlags::POLLERR)
    }

    /// The first exchange.
    ///
    /// # Errors
    /// See [`HandshakeError`].
    pub fn handshake(&self, wishes: Wishes) -> Result<Agreement, HandshakeError> {
        let mut buffer = Buffer::new(wishes.request_bytes as usize);
        loop {
            let bytes = self.receive(&mut buffer, |_| {}).map_err(HandshakeError::Io)?;
            let bytes = bytes.ok_or(HandshakeError::Gone)?;
            let (header, offer) = init::decode(bytes).map_err(HandshakeError::Malformed)?;
            let answer = |error, payload: &[u8]| {
                self.write(header.unique, error, &[payload]).map_err(HandshakeError::Io)
            };
            let Some(offer) = offer else {
                answer(-libc::EIO, &[])?;
                continue;
            };
            match init::answer(&offer, wishes) {
                Answer::Agreed(agreement) => {
                    answer(0, &agreement.encode())?;
                    return Ok(agreement);
                }
                Answer::AskAgain => answer(0, &init::encode_version())?,
                Answer::TooOld => {
                    answer(-libc::EPROTO, &[])?;
                    return Err(HandshakeError::TooOld(offer.version.0, offer.version.1));
                }
            }
        }
    }
}

/// A way to tell the kernel that what it cached is not so any more.
#[derive(Clone)]
pub struct Notifier {
    device: Arc<Device>,
}

impl Notifier {
    /// For the mount of `device`.
    pub fn new(device: Arc<Device>) -> Self {
        Self { device }
    }

    /// Has the kernel forget the attributes of `ino`, and write back and drop its pages from
    /// `offset` on, `length` bytes (0: all); with a negative offset its pages stay.
    ///
    /// # Errors
    /// ENOENT if the kernel does not know the inode.
    pub fn inval_inode(&self, ino: u64, offset: i64, length: i64) -> io::Result<()> {
        let body = reply::inval_inode(ino, offset, length);
        self.device.write(0, abi::notify::INVAL_INODE, &[&body])
    }

    /// Has the kernel look up `name` again when it is wanted next.
    ///
    /// # Errors
    /// ENOENT if the kernel does not know the name; `InvalidInput` if it can be none.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let length = u32::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let body = reply::inval_entry(parent, length);
        let terminated = [name, &[0]].concat();
        self.device.write(0, abi::notify::INVAL_ENTRY, &[&body, &terminated])
    }
}
