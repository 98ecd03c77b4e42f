//! Which inodes are open, so that an inode without a name lives as long as it is in use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::fs::Ino;

/// Open handles of all inodes.
///
/// An inode whose last name goes is discarded exactly once: at once if it is not in use
/// ([`Handles::nameless`] says so), else by whoever closes it last ([`Handles::close`] says so).
/// Where there is a kernel above, it is in use until that has dropped its last reference too
/// ([`Handles::forget`] says so): a directory is held without being opened, by a shell that works
/// in it, and so is what `O_PATH` opened.
#[derive(Default)]
pub(super) struct Handles {
    last: AtomicU64,
    open: Mutex<HashMap<Ino, Open>>,
    until_forgotten: AtomicBool,
}

#[derive(Default)]
struct Open {
    count: u64,
    /// Its last name is gone: discard when it is no longer in use.
    nameless: bool,
    /// The kernel has dropped its last reference; its last RELEASE may still be on the way.
    forgotten: bool,
}

impl Handles {
    /// Says that somebody above holds every inode that loses its last name, and calls
    /// [`Handles::forget`] for each.
    pub fn wait_for_forget(&self) {
        self.until_forgotten.store(true, Ordering::Relaxed);
    }

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
        if nameless && self.until_forgotten.load(Ordering::Relaxed) && !state.forgotten {
            return false;
        }
        open.remove(&ino);
        nameless
    }

    /// The kernel holds the inode no longer; `true` says that the caller must discard it.
    #[must_use]
    pub fn forget(&self, ino: Ino) -> bool {
        let mut open = self.open.lock();
        let Some(state) = open.get_mut(&ino).filter(|state| state.nameless) else { return false };
        state.forgotten = true;
        if state.count > 0 {
            return false;
        }
        open.remove(&ino);
        true
    }

    /// The last name of the inode is gone; `true` says that it is not in use and the caller must
    /// discard it. Called with the inode locked, as [`Handles::named`] is.
    #[must_use]
    pub fn nameless(&self, ino: Ino) -> bool {
        let mut open = self.open.lock();
        if self.until_forgotten.load(Ordering::Relaxed) {
            open.entry(ino).or_default().nameless = true;
            return false;
        }
        match open.get_mut(&ino) {
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

    /// Whether the inode has no name and lives because it is in use.
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
    fn the_last_of_close_and_forget_discards() {
        let handles = Handles::default();
        handles.wait_for_forget();
        assert!(!handles.nameless(7), "the kernel holds it");
        assert!(handles.is_nameless(7));
        assert!(handles.forget(7));
        assert!(!handles.forget(7), "once");
        for close_first in [true, false] {
            handles.open(8);
            assert!(!handles.nameless(8));
            let (close, forget) = if close_first {
                (handles.close(8), handles.forget(8))
            } else {
                let forget = handles.forget(8);
                (handles.close(8), forget)
            };
            assert_eq!((close, forget), (!close_first, close_first));
        }
        handles.open(9);
        assert!(!handles.forget(9), "it has a name");
        assert!(!handles.close(9));
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
