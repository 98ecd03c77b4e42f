//! The FUSE protocol: bytes of requests and replies, and the ways on which they travel. Knows
//! nothing of files.

pub mod abi;
pub mod device;
pub mod init;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;

pub use device::{Device, Notifier};
pub use reply::{Attributes, Entry};
pub use request::{Body, Header, Malformed, Request};

use std::sync::Arc;

/// The answer to one request. Whoever drops it unanswered answers EIO.
pub struct Reply {
    unique: u64,
    to: Option<Arc<Device>>,
}

impl Reply {
    /// For the request of that name, which was read from `to`.
    pub fn new(unique: u64, to: &Arc<Device>) -> Self {
        Self { unique, to: Some(to.clone()) }
    }

    /// It is done, and there is nothing to tell.
    pub fn ok(self) {
        self.bytes(&[]);
    }

    /// It failed.
    pub fn error(mut self, errno: i32) {
        self.send(-errno.abs(), &[]);
    }

    /// What was asked for, which is not copied on its way to the kernel.
    pub fn bytes(mut self, bytes: &[u8]) {
        self.send(0, bytes);
    }

    fn send(&mut self, error: i32, payload: &[u8]) {
        let Some(device) = self.to.take() else { return };
        device.send(self.unique, error, payload);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(-libc::EIO, &[]);
    }
}
