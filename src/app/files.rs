//! Files of a volume that is used by this process, without a mount. All lie in its root.

use std::sync::Arc;

use crate::fs::volume::ROOT;
use crate::fs::{Caller, Error, Ino, RenameFlags, SetAttr, Tree};

/// Bytes written or read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// What regular files are made with.
const MODE: u32 = libc::S_IFREG | 0o600;
/// Largest small file, in bytes: what is read whole.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// The files of a volume.
#[derive(Clone)]
pub struct Files(Arc<dyn Tree>);

impl Files {
    /// Those of `tree`, which waits for [`Tree::forget`] before it discards what is removed.
    pub fn new(tree: Arc<dyn Tree>) -> Self {
        Self(tree)
    }

    /// Opens a file; `None` if there is none.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn open(&self, name: &str) -> Result<Option<File>, Error> {
        let attr = match self.0.lookup(ROOT, name.as_bytes()) {
            Err(Error::NotFound) => return Ok(None),
            found => found?,
        };
        let handle = self.0.open(attr.ino, false, false)?;
        Ok(Some(File { tree: self.0.clone(), ino: attr.ino, handle }))
    }

    /// Opens a file, and makes an empty one if there is none.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn open_or_create(&self, name: &str) -> Result<File, Error> {
        if let Some(file) = self.open(name)? {
            return Ok(file);
        }
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let caller = Caller { uid, gid, umask: 0o077 };
        let (attr, handle) = self.0.create(caller, ROOT, name.as_bytes(), MODE)?;
        Ok(File { tree: self.0.clone(), ino: attr.ino, handle })
    }

    /// Writes a file from its beginning on; what it had is gone. Flushing makes it durable.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn writer(&self, name: &str) -> Result<Writer, Error> {
        let file = self.open_or_create(name)?;
        file.set_len(0)?;
        Ok(Writer { file, offset: 0 })
    }

    /// All of a small file; `None` if there is none.
    ///
    /// # Errors
    /// Those of the volume; [`Error::TooLarge`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let length = file.len()?;
        if length > SMALL_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        let read = file.read_at(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(Some(bytes))
    }

    /// Writes a file whole: after a crash it is the old or the new one.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let fresh = format!("{name}.new");
        let file = self.open_or_create(&fresh)?;
        file.set_len(0)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        drop(file);
        self.rename(&fresh, name)
    }

    /// Gives a file another name, durably; one that has that name goes.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn rename(&self, name: &str, new: &str) -> Result<(), Error> {
        let replaced = self.0.lookup(ROOT, new.as_bytes()).ok();
        let flags = RenameFlags::default();
        self.0.rename(ROOT, name.as_bytes(), ROOT, new.as_bytes(), flags)?;
        if let Some(attr) = replaced {
            self.0.forget(attr.ino);
        }
        self.0.fsync(ROOT, 0, false)
    }

    /// Removes a file if it is there. Who has it open can go on reading.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let attr = match self.0.lookup(ROOT, name.as_bytes()) {
            Err(Error::NotFound) => return Ok(()),
            found => found?,
        };
        self.0.unlink(ROOT, name.as_bytes())?;
        self.0.forget(attr.ino);
        Ok(())
    }

    /// The names of all files.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        self.0.readdir(ROOT, 0, false, &mut |entry| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        })?;
        names.retain(|name| !matches!(name.as_str(), "." | ".."));
        Ok(names)
    }
}

/// An open file of a volume.
pub struct File {
    tree: Arc<dyn Tree>,
    ino: Ino,
    handle: u64,
}

impl File {
    /// Its length in bytes.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn len(&self) -> Result<u64, Error> {
        Ok(self.tree.getattr(self.ino)?.size)
    }

    /// Makes it this long; what is behind goes.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn set_len(&self, size: u64) -> Result<(), Error> {
        let change = SetAttr { size: Some(size), ..SetAttr::default() };
        self.tree.setattr(self.ino, &change).map(drop)
    }

    /// Reads at `offset` until `buffer` is full or the file ends; returns how much.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut chunk = Vec::new();
        let mut filled = 0;
        while filled < buffer.len() {
            let wanted = (buffer.len() - filled).min(CHUNK_BYTES);
            self.tree.read(self.ino, offset + filled as u64, wanted, false, &mut chunk)?;
            if chunk.is_empty() {
                break;
            }
            buffer[filled..filled + chunk.len()].copy_from_slice(&chunk);
            filled += chunk.len();
        }
        Ok(filled)
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut offset = offset;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.tree.write(self.ino, offset, chunk, false)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    /// Returns when it is durable.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn sync(&self) -> Result<(), Error> {
        self.tree.fsync(self.ino, self.handle, false)
    }
}

/// See [`Files::writer`].
pub struct Writer {
    file: File,
    offset: u64,
}

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write_at(self.offset, bytes).map_err(std::io::Error::other)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.sync().map_err(std::io::Error::other)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.tree.release(self.ino, self.handle);
    }
}
