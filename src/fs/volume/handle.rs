//! Which inodes are open, so that an inode without a name lives as long as it is open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::fs::Ino;

/// Open handles of all inodes.
///
/// An inode whose last name goes is discarded exactly once: at once if it is not open
/// ([`Handles::nameless`] says so), else by whoever closes it last ([`Handles::close`] says so).
#[derive(Default)]
pub(super) struct Handles {
    last: AtomicU64,
    open: Mutex<HashMap<Ino, Open>>,
}

#[derive(Default)]
struct Open {
    count: u64,
    /// Its last name is gone: discard at the last close.
    nameless: bool,
}

impl Handles {
    /// Counts one more handle of the inode and returns its number.
    pub fn open(&self, ino: Ino) -> u64 {
        self.open.lock().entry(ino).or_default().count += 1;
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts one handle less; `true` says that the caller must discard the inode.
    #[must_use]
    pub fn close(&self, ino: Ino) -> bool {
        let mut open = self.open.lock();
        let Some(state) = open.get_mut(&ino) else { return false };
        state.count -= 1;
        if state.count > 0 {
            return false;
        }
        let nameless = state.nameless;
        open.remove(&ino);
        nameless
    }

    /// The last name of the inode is gone; `true` says that it is not open and the caller must
    /// discard it. Called with the inode locked, as [`Handles::named`] is.
    #[must_use]
    pub fn nameless(&self, ino: Ino) -> bool {
        match self.open.lock().get_mut(&ino) {
            Some(state) => {
                state.nameless = true;
                false
            }
            None => true,
        }
    }

    /// An open inode without a name was given one.
    pub fn named(&self, ino: Ino) {
        if let Some(state) = self.open.lock().get_mut(&ino) {
            state.nameless = false;
        }
    }

    /// Whether the inode has no name and lives because it is open.
    pub fn is_nameless(&self, ino: Ino) -> bool {
        self.open.lock().get(&ino).is_some_and(|state| state.nameless)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_close_discards_what_has_no_name() {
        let handles = Handles::default();
        assert_ne!(handles.open(7), handles.open(7));
        assert!(!handles.nameless(7));
        assert!(!handles.close(7));
        assert!(handles.close(7));
        assert!(handles.nameless(7), "it is closed by now");
        assert!(!handles.close(7), "an unknown handle discards nothing");
    }

    #[test]
    fn a_name_takes_the_sentence_back() {
        let handles = Handles::default();
        handles.open(7);
        assert!(!handles.nameless(7));
        assert!(handles.is_nameless(7));
        handles.named(7);
        assert!(!handles.close(7));
    }
}
