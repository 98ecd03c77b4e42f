//! Buffers that replies to READ and READDIR are built in: one for each event loop, kept from
//! request to request, and wiped when nobody is to be served any more.

use std::cell::OnceCell;
use std::sync::Arc;

use parking_lot::Mutex;
use zeroize::Zeroize as _;

type Buffer = Arc<Mutex<Vec<u8>>>;

thread_local! {
    /// This event loop's.
    static OWN: OnceCell<Buffer> = const { OnceCell::new() };
}

/// The buffers of all event loops of a mount.
#[derive(Default)]
pub(super) struct Replies(Mutex<Vec<Buffer>>);

impl Replies {
    /// Calls `work` with the buffer of this thread.
    pub(super) fn with_own<R>(&self, work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        OWN.with(|own| {
            let buffer = own.get_or_init(|| {
                let buffer = Buffer::default();
                self.0.lock().push(buffer.clone());
                buffer
            });
            // Nobody else wants it but who wipes.
            work(&mut buffer.lock())
        })
    }

    /// Leaves nothing of what was read in them.
    pub(super) fn wipe(&self) {
        self.0.lock().iter().for_each(|buffer| buffer.lock().zeroize());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a thread has read is gone, from the memory behind its end, too.
    #[test]
    fn wiped() {
        let replies = Replies::default();
        replies.with_own(|buffer| buffer.extend_from_slice(&[7; 5000]));
        replies.with_own(|buffer| buffer.truncate(10));
        replies.wipe();
        replies.with_own(|buffer| {
            assert!(buffer.is_empty());
            buffer.resize(buffer.capacity(), 1);
            assert!(buffer.len() >= 5000, "it is kept");
        });
    }
}
