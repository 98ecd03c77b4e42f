//! The real directory.

use super::direct::Direct;
use super::uncached::{UNCACHED_BYTES, Uncached};
use super::{Capacity, FileId, Storage};
use crate::sys::files;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::UnlinkatFlags;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::Arc;

/// The public configuration.
const CONFIG_NAME: &str = "atrest.json";
/// Where the next configuration is written before it takes the place of the old one.
const CONFIG_TEMPORARY_NAME: &str = "atrest.json.tmp";
/// The directory of the segments.
const DATA_NAME: &str = "data";
/// `atrest.json` holds a few key slots of under 2 KiB; what is larger is not ours to parse.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Eight decimal digits are the name of a segment, 23 PiB of them.
const SEGMENT_MAX: u32 = 99_999_999;
/// What the fallback of [`Storage::allocate`] reads and writes at once.
const ZEROING_BYTES: usize = 64 * 1024;

/// A volume in a directory of the host.
///
/// The directories are opened once and everything else relative to them, so that the volume stays
/// reachable when something is mounted over its path later. Files are opened once and stay open:
/// a write-back error is reported to descriptors that were open when it happened, and closing one
/// could lose it. A volume needs one descriptor for every 256 MiB.
///
/// Nothing is followed that a hostile backing directory could put in place of a file: symbolic
/// links are refused, and so is anything that is not a regular file.
pub struct OsStorage {
    directory: File,
    data: File,
    read_only: bool,
    files: RwLock<HashMap<FileId, Arc<File>>>,
    uncached: Uncached,
    direct: Direct,
}

impl OsStorage {
    /// Lays out an empty volume at `path`, with mode 0700 if the directory is created here, and
    /// makes that durable. An existing directory must be empty, but for the `lost+found` of a
    /// fresh ext4.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, or those of the system calls.
    pub fn create(path: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                if let Some(parent) = path.parent() {
                    let parent =
                        if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                    open_directory(parent)?.sync_all()?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let directory = open_directory(path)?;
        if entries_of(&directory)?.iter().any(|(name, _)| name != b"lost+found") {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        // A volume never writes over what is still needed. Where the filesystem did the same once
        // more, a full disk could not even be freed; see `manual::defaults`.
        files::overwrite_in_place(&directory)?;
        nix::sys::stat::mkdirat(&directory, DATA_NAME, Mode::S_IRWXU)?;
        let storage = Self::from_directory(directory, false)?;
        storage.sync_directory()?;
        Ok(storage)
    }

    /// Opens the volume at `path`. The caller holds its [`super::VolumeLock`] unless `read_only`:
    /// opening for writing removes what an interrupted [`Storage::replace_config`] left behind.
    ///
    /// # Errors
    /// `NotFound` if the directory or its `data` is missing.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let storage = Self::from_directory(open_directory(path)?, read_only)?;
        if !read_only {
            storage.remove_temporary_config()?;
        }
        Ok(storage)
    }

    fn from_directory(directory: File, read_only: bool) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let data = nix::fcntl::openat(&directory, DATA_NAME, flags, Mode::empty())?.into();
        let (files, uncached, direct) = (RwLock::default(), Uncached::new(), Direct::new());
        Ok(Self { directory, data, read_only, files, uncached, direct })
    }

    /// The open file, from the cache if it is there.
    fn file(&self, file: FileId) -> io::Result<Arc<File>> {
        if let Some(open) = self.files.read().get(&file) {
            return Ok(Arc::clone(open));
        }
        // Opened under the lock, so that a deletion at the same time does not leave a file that is
        // gone in the cache.
        let mut files = self.files.write();
        if let Some(open) = files.get(&file) {
            return Ok(Arc::clone(open));
        }
        let access = if self.read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
        let (directory, name) = self.place(file)?;
        let open = Arc::new(open_regular(directory, &name, access)?);
        if matches!(file, FileId::SuperA | FileId::SuperB | FileId::Log) {
            forget_cached(&open);
        }
        files.insert(file, Arc::clone(&open));
        Ok(open)
    }

    fn writable(&self, file: FileId) -> io::Result<Arc<File>> {
        self.check_writable()?;
        self.file(file)
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    /// The directory and the name of a file.
    fn place(&self, file: FileId) -> io::Result<(&File, String)> {
        Ok(match file {
            FileId::SuperA => (&self.directory, "super.a".to_owned()),
            FileId::SuperB => (&self.directory, "super.b".to_owned()),
            FileId::Log => (&self.directory, "log".to_owned()),
            FileId::Segment(number) if number <= SEGMENT_MAX => {
                (&self.data, format!("{number:08}"))
            }
            FileId::Segment(_) => return Err(io::ErrorKind::InvalidInput.into()),
        })
    }

    /// Fails unless the file that is open is still the one of that name: what was removed, renamed
    /// or replaced behind our back takes writes as ever, and would not be there for the next mount.
    fn check_in_place(&self, file: FileId, open: &File) -> io::Result<()> {
        let (directory, name) = self.place(file)?;
        let ours = nix::sys::stat::fstat(open)?;
        match fstatat(directory, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => Ok(()),
            Ok(_) => {
                let what = "was replaced by another file while it was in use; put it back";
                Err(io::Error::other(format!("{name} {what}")))
            }
            Err(Errno::ENOENT) => {
                let what = "was removed or renamed while it was in use; put it back";
                Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} {what}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn remove_temporary_config(&self) -> io::Result<()> {
        let flag = UnlinkatFlags::NoRemoveDir;
        match nix::unistd::unlinkat(&self.directory, CONFIG_TEMPORARY_NAME, flag) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_temporary_config(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut temporary = open_regular(&self.directory, CONFIG_TEMPORARY_NAME, flags)?;
        temporary.write_all(bytes)?;
        temporary.sync_all()
    }
}

impl Storage for OsStorage {
    fn create(&self, file: FileId) -> io::Result<()> {
        self.check_writable()?;
        let (directory, name) = self.place(file)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut files = self.files.write();
        files.insert(file, Arc::new(open_regular(directory, &name, flags)?));
        Ok(())
    }

    fn delete(&self, file: FileId) -> io::Result<()> {
        self.check_writable()?;
        let (directory, name) = self.place(file)?;
        let mut files = self.files.write();
        nix::unistd::unlinkat(directory, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
        files.remove(&file);
        drop(files);
        self.direct.forget(file);
        Ok(())
    }

    fn length(&self, file: FileId) -> io::Result<Option<u64>> {
        match self.file(file) {
            Ok(open) => Ok(Some(open.metadata()?.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()> {
        self.writable(file)?.set_len(bytes)
    }

    fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // Repeats short and interrupted reads.
        self.file(file)?.read_exact_at(buffer, offset)
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Repeats short and interrupted writes.
        self.writable(file)?.write_all_at(bytes, offset)
    }

    fn read_uncached_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.uncached.read_exact_at(&*self.file(file)?, buffer, offset)
    }

    fn read_directly_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let open = || {
            // Not what somebody has put in the place of the file that is open.
            self.check_in_place(file, &*self.file(file)?)?;
            let (directory, name) = self.place(file)?;
            open_regular(directory, &name, OFlag::O_RDONLY | OFlag::O_DIRECT)
        };
        if buffer.len() >= UNCACHED_BYTES && self.direct.read(file, offset, buffer, open) {
            return Ok(());
        }
        self.read_uncached_at(file, offset, buffer)
    }

    fn write_uncached_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.uncached.write_all_at(&*self.writable(file)?, bytes, offset)
    }

    fn start_writeback(&self, file: FileId, offset: u64, bytes: u64) {
        // A hint: if it fails, the sync that follows does the work and reports the error.
        if let Ok(open) = self.writable(file) {
            let _ = files::start_writeback(&*open, offset, bytes);
        }
    }

    /// fdatasync(2). It suffices: besides the data it flushes the metadata "needed to allow a
    /// subsequent data retrieval to be correctly handled", which are the length and the block
    /// map; what it leaves out, the time stamps, nobody reads.
    ///
    /// What is durable in a file without its name is lost all the same, so that fails too.
    fn sync(&self, file: FileId) -> io::Result<()> {
        let open = self.writable(file)?;
        open.sync_data()?;
        self.check_in_place(file, &open)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.check_writable()?;
        self.data.sync_all()?;
        self.directory.sync_all()
    }

    fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        let open = self.writable(file)?;
        match files::allocate(&*open, offset, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                allocate_by_writing(&open, offset, bytes)
            }
            result => result,
        }
    }

    /// Where the filesystem cannot punch, the range keeps its blocks and its content.
    fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        match files::punch(&*self.writable(file)?, offset, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn allocated(&self, file: FileId) -> io::Result<Vec<Range<u64>>> {
        match files::allocated(&*self.file(file)?) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Vec::new()),
            result => result,
        }
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        // A directory or a device with a segment's name is foreign, as any other name is.
        let entries = entries_of(&self.data)?;
        let mut numbers: Vec<u32> = entries
            .iter()
            .filter(|(_, is_file)| *is_file)
            .filter_map(|(name, _)| segment_number(name))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read_config(&self) -> io::Result<Vec<u8>> {
        let file = open_regular(&self.directory, CONFIG_NAME, OFlag::O_RDONLY)?;
        let mut bytes = Vec::new();
        file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > CONFIG_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }

    /// # Crash argument
    /// 1. The new bytes go to a file of another name and are synced there: the old ones stay.
    /// 2. rename(2) puts the new file, complete by step 1, in the old one's place atomically.
    /// 3. The directory is synced, so that the new name is durable when this returns.
    ///
    /// Swapping 1's sync with 2 would let a crash leave the new name on an empty file.
    fn replace_config(&self, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        let (old, new) = (CONFIG_TEMPORARY_NAME, CONFIG_NAME);
        let replaced = self
            .write_temporary_config(bytes)
            .and_then(|()| Ok(nix::fcntl::renameat(&self.directory, old, &self.directory, new)?));
        if let Err(error) = replaced {
            // The first error is the one to report; the next open removes what is left.
            let _ = self.remove_temporary_config();
            return Err(error);
        }
        self.directory.sync_all()
    }

    fn capacity(&self) -> io::Result<Capacity> {
        let statistics = nix::sys::statvfs::fstatvfs(&self.directory)?;
        let unit_bytes = statistics.fragment_size();
        Ok(Capacity {
            total_bytes: statistics.blocks().saturating_mul(unit_bytes),
            // Not `blocks_free`: that includes what is reserved for root.
            free_bytes: statistics.blocks_available().saturating_mul(unit_bytes),
        })
    }
}

/// Makes reads come from the disk. After a failed sync the page cache still shows what was never
/// written, as clean, and would show it to whoever opens the volume next (Rebello et al., 2020).
/// Only what leads to everything else needs this: nothing refers to the rest of what was lost.
fn forget_cached(file: &File) {
    // A filesystem in memory has no other copy, and refuses or ignores it.
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    if let Err(error) = nix::fcntl::posix_fadvise(file, 0, 0, advice) {
        log::debug!("cached pages stay: {error}");
    }
}

pub(super) fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?.into())
}

/// Opens `name` in `directory` and refuses what is not a regular file. `O_NONBLOCK` does nothing to
/// a regular file and keeps a FIFO from blocking the open.
pub(super) fn open_regular(directory: &File, name: &str, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let descriptor: OwnedFd = nix::fcntl::openat(directory, name, flags, mode)?;
    let file = File::from(descriptor);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"))
    }
}

/// The names in a directory, but for `.` and `..`, and whether each is a regular file.
fn entries_of(directory: &File) -> io::Result<Vec<(Vec<u8>, bool)>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // A descriptor of its own, because the position in a directory belongs to the open file.
    let mut listing = Dir::openat(directory, ".", flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_file = match entry.file_type() {
            Some(kind) => kind == Type::File,
            // Not every filesystem says so in the directory (readdir(3), DT_UNKNOWN).
            None => {
                let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
            }
        };
        entries.push((name.to_bytes().to_vec(), is_file));
    }
    Ok(entries)
}

/// The number of a segment's file name; `None` for every other name, canonical ones only.
fn segment_number(name: &[u8]) -> Option<u32> {
    if name.len() != 8 || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// What [`Storage::allocate`] does where the filesystem has no fallocate(2): blocks of zeros are
/// written where zeros are read. Data stays. The range must not be written to at the same time.
fn allocate_by_writing(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROING_BYTES];
    let mut buffer = vec![0; ZEROING_BYTES];
    let end = offset.checked_add(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    let mut at = offset - offset % super::BLOCK_BYTES as u64;
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROING_BYTES);
        let present = read_up_to(file, at, &mut buffer[..step])?;
        let blocks = buffer[..step].chunks(super::BLOCK_BYTES);
        for (index, block) in blocks.enumerate() {
            let start = index * super::BLOCK_BYTES;
            let known = &block[..present.saturating_sub(start).min(block.len())];
            if known == &zeros[..known.len()] {
                file.write_all_at(&zeros[..block.len()], at + start as u64)?;
            }
        }
        at += step as u64;
    }
    // A block with data in it that ends behind the file's end was not written above.
    if file.metadata()?.len() < end {
        file.set_len(end)?;
    }
    Ok(())
}

/// Reads until the buffer or the file ends; says how many bytes.
fn read_up_to(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const SEGMENT: FileId = FileId::Segment(0);

    fn volume() -> (tempfile::TempDir, OsStorage) {
        let directory = tempfile::tempdir().unwrap();
        let storage = OsStorage::create(&directory.path().join("volume")).unwrap();
        (directory, storage)
    }

    #[test]
    fn create_lays_out_a_private_directory_and_refuses_one_that_is_in_use() {
        let (directory, _) = volume();
        let path = directory.path().join("volume");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(path.join("data")).unwrap().count(), 0);
        let again = OsStorage::create(&path).map(drop).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::DirectoryNotEmpty);
        let empty = directory.path().join("empty");
        std::fs::create_dir_all(empty.join("lost+found")).unwrap();
        OsStorage::create(&empty).unwrap();
    }

    #[test]
    fn what_is_written_is_there_after_opening_again() {
        let (directory, storage) = volume();
        for file in [FileId::SuperA, FileId::SuperB, FileId::Log, SEGMENT, FileId::Segment(12)] {
            assert_eq!(storage.length(file).unwrap(), None);
            storage.create(file).unwrap();
            let again = storage.create(file).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
            storage.write_at(file, 10, format!("{file:?}").as_bytes()).unwrap();
            storage.start_writeback(file, 0, 4096);
            storage.sync(file).unwrap();
        }
        storage.sync_directory().unwrap();
        let data = directory.path().join("volume/data");
        assert!(data.join("00000012").exists());
        std::fs::write(data.join("1"), "not a segment").unwrap();
        std::fs::write(data.join("+0000001"), "not a segment").unwrap();
        drop(storage);
        let storage = OsStorage::open(&directory.path().join("volume"), true).unwrap();
        assert_eq!(storage.segments().unwrap(), [0, 12]);
        assert_eq!(storage.length(FileId::Segment(12)).unwrap(), Some(21));
        let mut bytes = [0; 13];
        storage.read_at(FileId::Segment(12), 8, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0Segment(12)");
        let past = storage.read_at(FileId::Segment(12), 9, &mut bytes).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn volume_stays_reachable_when_its_path_leads_elsewhere() {
        let (directory, storage) = volume();
        std::fs::rename(directory.path().join("volume"), directory.path().join("moved")).unwrap();
        std::fs::create_dir(directory.path().join("volume")).unwrap();
        storage.create(SEGMENT).unwrap();
        storage.replace_config(b"{}").unwrap();
        assert!(directory.path().join("moved/data/00000000").exists());
        assert!(directory.path().join("moved/atrest.json").exists());
    }

    #[test]
    fn deleted_file_is_gone_and_can_be_made_anew() {
        let (_directory, storage) = volume();
        storage.create(SEGMENT).unwrap();
        storage.write_at(SEGMENT, 0, b"old").unwrap();
        storage.delete(SEGMENT).unwrap();
        assert_eq!(storage.length(SEGMENT).unwrap(), None);
        let gone = storage.read_at(SEGMENT, 0, &mut [0]).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        storage.create(SEGMENT).unwrap();
        assert_eq!(storage.length(SEGMENT).unwrap(), Some(0));
    }

    #[test]
    fn read_only_storage_changes_nothing() {
        let (directory, storage) = volume();
        storage.create(SEGMENT).unwrap();
        let path = directory.path().join("volume");
        std::fs::write(path.join(CONFIG_TEMPORARY_NAME), "half").unwrap();
        let storage = OsStorage::open(&path, true).unwrap();
        let refused = [
            storage.create(FileId::Log),
            storage.delete(SEGMENT),
            storage.set_length(SEGMENT, 1),
            storage.write_at(SEGMENT, 0, b"x"),
            storage.sync(SEGMENT),
            storage.sync_directory(),
            storage.allocate(SEGMENT, 0, 1),
            storage.punch(SEGMENT, 0, 1),
            storage.replace_config(b"{}"),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        assert!(path.join(CONFIG_TEMPORARY_NAME).exists());
    }

    #[test]
    fn config_is_replaced_whole_and_leftovers_are_removed() {
        let (directory, storage) = volume();
        assert_eq!(storage.read_config().unwrap_err().kind(), io::ErrorKind::NotFound);
        storage.replace_config(b"first, and longer").unwrap();
        storage.replace_config(b"second").unwrap();
        assert_eq!(storage.read_config().unwrap(), b"second");
        let path = directory.path().join("volume");
        assert!(!path.join(CONFIG_TEMPORARY_NAME).exists());
        std::fs::write(path.join(CONFIG_TEMPORARY_NAME), "half").unwrap();
        let storage = OsStorage::open(&path, false).unwrap();
        assert!(!path.join(CONFIG_TEMPORARY_NAME).exists());
        assert_eq!(storage.read_config().unwrap(), b"second");
        storage.replace_config(&vec![b' '; CONFIG_BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(storage.read_config().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_sync_is_not_believed_if_the_file_is_not_in_its_place() {
        let (directory, storage) = volume();
        let file = FileId::Segment(3);
        storage.create(file).unwrap();
        storage.write_at(file, 0, b"contents").unwrap();
        storage.sync(file).unwrap();
        let data = directory.path().join("volume/data");
        let (place, elsewhere) = (data.join("00000003"), data.join("elsewhere"));
        std::fs::rename(&place, &elsewhere).unwrap();
        assert_eq!(storage.sync(file).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&place, "another").unwrap();
        assert!(storage.sync(file).unwrap_err().to_string().contains("replaced"));
        std::fs::rename(&elsewhere, &place).unwrap();
        storage.sync(file).unwrap();
        // Where the volume is does not matter.
        std::fs::rename(directory.path().join("volume"), directory.path().join("moved")).unwrap();
        storage.sync(file).unwrap();
    }

    #[test]
    fn links_and_pipes_in_place_of_files_are_refused() {
        let (directory, storage) = volume();
        let path = directory.path().join("volume");
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, path.join("log")).unwrap();
        symlink(&victim, path.join(CONFIG_TEMPORARY_NAME)).unwrap();
        nix::unistd::mkfifo(&path.join("super.a"), Mode::S_IRWXU).unwrap();
        assert!(storage.write_at(FileId::Log, 0, b"x").is_err());
        assert!(storage.replace_config(b"x").is_err());
        let pipe = storage.read_at(FileId::SuperA, 0, &mut [0]).unwrap_err();
        assert_eq!(pipe.kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        std::fs::remove_dir(path.join("data")).unwrap();
        symlink(directory.path(), path.join("data")).unwrap();
        assert!(OsStorage::open(&path, false).is_err());
    }

    #[test]
    fn allocating_takes_blocks_and_punching_gives_them_back() {
        let (directory, storage) = volume();
        storage.create(SEGMENT).unwrap();
        storage.write_at(SEGMENT, 0, b"kept").unwrap();
        storage.allocate(SEGMENT, 0, 1 << 20).unwrap();
        let path = directory.path().join("volume/data/00000000");
        let allocated_bytes = || std::fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(storage.length(SEGMENT).unwrap(), Some(1 << 20));
        assert!(allocated_bytes() >= 1 << 20);
        storage.write_at(SEGMENT, 8192, b"punched").unwrap();
        storage.punch(SEGMENT, 8192, (1 << 20) - 8192).unwrap();
        let mut bytes = [1; 8199];
        storage.read_at(SEGMENT, 0, &mut bytes).unwrap();
        assert_eq!(&bytes[..4], b"kept");
        assert!(bytes[4..].iter().all(|byte| *byte == 0));
        assert!(allocated_bytes() <= 64 * 1024);
        assert_eq!(storage.length(SEGMENT).unwrap(), Some(1 << 20));
    }

    #[test]
    fn allocating_by_writing_fills_holes_and_keeps_data() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"early", 5000).unwrap();
        file.write_all_at(b"late", 200_000).unwrap();
        // Neither end is on a block's boundary.
        allocate_by_writing(&file, 100, 300_000).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= 300_000);
        assert_eq!(file.metadata().unwrap().len(), 300_100);
        let mut bytes = vec![0; 300_100];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[5000..5005], b"early");
        assert_eq!(&bytes[200_000..200_004], b"late");
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 9);

        // The last bytes of one block hold data, and the range ends early in the next.
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"data", 8100).unwrap();
        allocate_by_writing(&file, 4000, 4292).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= 12_288);
    }

    #[test]
    fn capacity_is_that_of_the_filesystem() {
        let (_directory, storage) = volume();
        let capacity = storage.capacity().unwrap();
        assert!(capacity.free_bytes > 0);
        assert!(capacity.free_bytes <= capacity.total_bytes);
    }

    #[test]
    fn what_is_no_file_is_no_segment_whatever_its_name() {
        let (directory, storage) = volume();
        storage.create(SEGMENT).unwrap();
        let data = directory.path().join("volume").join(DATA_NAME);
        std::fs::create_dir(data.join("00000019")).unwrap();
        std::os::unix::fs::symlink("00000019", data.join("00000020")).unwrap();
        nix::unistd::mkfifo(&data.join("00000021"), Mode::S_IRUSR).unwrap();
        let FileId::Segment(number) = SEGMENT else { unreachable!("a segment") };
        assert_eq!(storage.segments().unwrap(), [number]);
    }

    #[test]
    fn segments_without_a_name_of_eight_digits_are_refused() {
        let (_directory, storage) = volume();
        let refused = storage.create(FileId::Segment(SEGMENT_MAX + 1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
