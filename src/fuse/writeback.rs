//! Making the kernel write dirty pages back before SEEK_DATA and SEEK_HOLE are answered.
//!
//! `fuse_file_llseek` (fs/fuse/file.c) sends LSEEK without flushing first, unlike fallocate and
//! copy_file_range, while a fresh page of the writeback cache is still a hole to us.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use super::wire::Notifier;
use crate::fs::{Error, Ino};
use crate::sys::{file_handle, mount};

/// A way to the page cache of one mount. Call it from worker threads only: event loops must be free
/// to take the WRITEs that it causes.
pub(super) struct Writeback {
    pub(super) notifier: Notifier,
    pub(super) mountpoint: PathBuf,
    /// `st_dev` of the mount.
    pub(super) device: u64,
}

impl Writeback {
    /// Returns when the kernel has written back what is dirty in `ino` at and after `offset`.
    ///
    /// The caller of lseek holds the inode's lock meanwhile; neither road below takes it.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel cannot be made to: no answer is better than a wrong one.
    pub(super) fn write_back(&self, ino: Ino, offset: u64) -> Result<(), Error> {
        if let Ok(Ok(())) = self.through_mount(ino, offset) {
            return Ok(());
        }
        self.by_notification(ino, offset).map_err(|source| Error::Io {
            what: "the kernel does not write dirty pages back".to_owned(),
            source: Some(Box::new(source)),
        })
    }

    /// As [`Writeback::write_back`], of all of `ino`; says whether something could not be written.
    /// The kernel tries that once only.
    pub(super) fn loses(&self, ino: Ino) -> bool {
        match self.through_mount(ino, 0) {
            Ok(written) => written.is_err(),
            // Of an inode that the kernel does not know yet, or any more, nothing is dirty. It may
            // be counted here already: that is done before a CREATE is answered.
            Err(_) => self
                .by_notification(ino, 0)
                .is_err_and(|error| error.raw_os_error() != Some(libc::ENOENT)),
        }
    }

    /// Makes the kernel ask for the attributes of `ino` when they are wanted next. Its pages stay.
    /// May be called from event loops: the kernel takes no lock that a request holds
    /// (`fuse_reverse_inval_inode` with a negative offset).
    pub(super) fn forget_attributes(&self, ino: Ino) {
        // An inode that the kernel does not know has no attributes to forget.
        let _ = self.notifier.inval_inode(ino, -1, 0);
    }

    /// Makes the kernel look a name up again when it is wanted next.
    pub(super) fn forget_name(&self, parent: Ino, name: &[u8]) {
        // It may not have kept it.
        let _ = self.notifier.inval_entry(parent, name);
    }

    /// Makes the kernel write back what is dirty in `ino`, drop its pages, in mappings too, and ask
    /// for its attributes when they are wanted next; with them goes the right to pass through a
    /// directory without asking (`fuse_permission` in fs/fuse/dir.c).
    pub(super) fn drop_inode(&self, ino: Ino) {
        // The kernel may have forgotten it by now.
        let _ = self.notifier.inval_inode(ino, 0, 0);
    }

    /// The kind road, for root: the pages are written in large requests and stay cached. The
    /// descriptors live for the call only, for they make the mount busy.
    /// The outer error says that there is no such road.
    fn through_mount(&self, ino: Ino, offset: u64) -> std::io::Result<std::io::Result<()>> {
        let root = mount::open_root(&self.mountpoint, self.device)?;
        let file = file_handle::open_inode(root.as_fd(), ino)?;
        Ok(file_handle::write_back(&file, offset, 0))
    }

    /// The road for everybody: `invalidate_inode_pages2_range` writes page by page, and drops them.
    fn by_notification(&self, ino: Ino, offset: u64) -> std::io::Result<()> {
        let offset = i64::try_from(offset).map_err(std::io::Error::other)?;
        self.notifier.inval_inode(ino, offset, 0)
    }
}
