//! The FUSE protocol: bytes of requests and replies, and the ways on which they travel. Knows
//! nothing of files.

pub mod abi;
pub mod device;
pub mod init;
pub mod reply;
pub mod request;
pub mod ring;
#[cfg(test)]
mod tests;

pub use device::{Device, Notifier};
pub use reply::{Attributes, Entry};
pub use request::{Body, Header, Malformed, Request};

use std::sync::Arc;

use ring::Home;

/// The answer to one request. Whoever drops it unanswered answers EIO.
pub struct Reply {
    unique: u64,
    to: Option<Origin>,
}

/// Where a request came from.
#[derive(Clone)]
pub enum Origin {
    /// It was read.
    Device(Arc<Device>),
    /// It is in a slot of a ring.
    Ring(Arc<Home>, usize),
}

impl Reply {
    /// For the request of that name.
    pub fn new(unique: u64, to: Origin) -> Self {
        Self { unique, to: Some(to) }
    }

    /// It is done, and there is nothing to tell.
    pub fn ok(self) {
        self.bytes(&[]);
    }

    /// It failed.
    pub fn error(mut self, errno: i32) {
        self.send(-errno.abs(), &[]);
    }

    /// What was asked for, which is not copied on its way from here to `/dev/fuse`.
    pub fn bytes(mut self, bytes: &[u8]) {
        self.send(0, bytes);
    }

    fn send(&mut self, error: i32, payload: &[u8]) {
        match self.to.take() {
            Some(Origin::Device(device)) => device.send(self.unique, error, payload),
            Some(Origin::Ring(home, slot)) => home.send(slot, self.unique, error, payload),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(-libc::EIO, &[]);
    }
}
