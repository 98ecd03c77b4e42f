//! `atrest fsck --salvage`: copying what authenticates out of a damaged volume.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::exit::Exit;
use super::hint::{Failure, chain};
use crate::format::PAGE_BYTES;
use crate::format::record::{Inode, Timestamp};
use crate::fs::volume::ROOT;
use crate::storage::is_full;
use crate::sys::xattr;
use crate::volume::Volume;
use crate::volume::check::printable;
use crate::volume::repair::DamagedFile;

/// Piece in which contents are copied; pieces that cannot be read are tried page by page.
const PIECE_BYTES: u64 = 1 << 20;
const PAGE: u64 = PAGE_BYTES as u64;
/// The deepest directory that is copied.
const DEPTH_MAX: usize = 4096;

/// What became of a salvage.
#[derive(Debug, Default)]
pub struct Saved {
    /// Files, directories and links that were made.
    pub files: u64,
    /// Bytes of contents that were copied.
    pub bytes: u64,
    /// Bytes that could not be read; they are zeros in the copies.
    pub bytes_lost: u64,
    /// What is missing or not as it was, a line each.
    pub problems: Vec<String>,
}

/// Copies everything of `volume` that can be read into `target`, which must not exist or be empty.
///
/// # Errors
/// If `target` cannot be written to. What the volume does not give is in [`Saved`].
pub fn salvage(volume: &Volume, target: &Path) -> Result<Saved, Failure> {
    let failed = |error: &io::Error| Failure::io("write to", target, error);
    make_empty(target)?;
    let mut salvage = Salvage::new(volume);
    salvage.directory(ROOT, b"", target, 0).map_err(|error| failed(&error))?;
    Ok(salvage.saved)
}

/// Copies damaged files out of a repaired volume into `target`, each at its path, with holes where
/// contents were lost; the list of these becomes a file beside them.
///
/// # Errors
/// As [`salvage`].
pub fn salvage_damaged(
    volume: &Volume,
    files: &[DamagedFile],
    target: &Path,
) -> Result<Saved, Failure> {
    let failed = |error: &io::Error| Failure::io("write to", target, error);
    make_empty(target)?;
    let mut salvage = Salvage::new(volume);
    let mut list = "# path, first lost byte, lost bytes\n".to_owned();
    for file in files {
        let nameless = format!("/inode {}", file.ino).into_bytes();
        let path = file.path.as_ref().unwrap_or(&nameless);
        let inode = match volume.inode(file.ino) {
            Ok(Some(inode)) => inode,
            Ok(None) => continue,
            Err(error) => {
                salvage.problem(path, &chain(&error));
                continue;
            }
        };
        let relative = std::ffi::OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path));
        let copy = target.join(relative);
        let parent = copy.parent().map_or(Ok(()), fs::create_dir_all);
        parent
            .and_then(|()| salvage.inode(file.ino, &inode, path, &copy, 0))
            .map_err(|error| failed(&error))?;
        for (offset, length) in &file.ranges {
            salvage.saved.bytes_lost += length;
            list.push_str(&format!("{}\t{offset}\t{length}\n", printable(path)));
        }
    }
    write_list(target, &list).map_err(|error| failed(&error))?;
    Ok(salvage.saved)
}

/// Writes the list of lost ranges under a name that nothing has.
fn write_list(target: &Path, list: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut path = target.join("lost-ranges.txt");
    for number in 1.. {
        match fs::File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                path = target.join(format!("lost-ranges.{number}.txt"));
            }
            opened => return opened?.write_all(list.as_bytes()),
        }
    }
    unreachable!("a directory has fewer entries than there are numbers")
}

/// Makes a directory, if it is not there; it must be empty.
fn make_empty(target: &Path) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::io("write to", target, error);
    fs::create_dir_all(target).map_err(|error| failed(&error))?;
    if fs::read_dir(target).map_err(|error| failed(&error))?.next().is_some() {
        let message = format!("{} is not empty", target.display());
        return Err(
            Failure::new(Exit::Other, message).hint("What is saved needs a directory of its own.")
        );
    }
    Ok(())
}

struct Salvage<'a> {
    volume: &'a Volume,
    saved: Saved,
    /// Where inodes with several names were copied to.
    links: HashMap<u64, PathBuf>,
}

impl<'a> Salvage<'a> {
    fn new(volume: &'a Volume) -> Self {
        Self { volume, saved: Saved::default(), links: HashMap::new() }
    }
}

impl Salvage<'_> {
    /// Copies the content of a directory; `path` is its path in the volume.
    fn directory(&mut self, ino: u64, path: &[u8], target: &Path, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            self.problem(path, "too deep");
            return Ok(());
        }
        let (names, whole) = self.volume.names_in(ino);
        if !whole {
            self.problem(path, "some of its names may be missing");
        }
        for (name, ino) in names {
            let path = [path, b"/", &name].concat();
            // A name that is none could lead out of the target.
            let is_sound = !name.is_empty() && name != b"." && name != b".." && {
                !name.contains(&b'/') && !name.contains(&0)
            };
            if !is_sound {
                self.problem(&path, "not copied: no name may be like this");
                continue;
            }
            let target = target.join(std::ffi::OsStr::from_bytes(&name));
            match self.volume.inode(ino) {
                Ok(Some(inode)) => match self.inode(ino, &inode, &path, &target, depth) {
                    // Nothing more can be saved; anything else concerns this name only.
                    Err(error) if is_full(&error) => return Err(error),
                    Err(error) => self.problem(&path, &format!("not copied: {error}")),
                    Ok(()) => {}
                },
                Ok(None) => self.problem(&path, "its inode does not exist"),
                Err(error) => self.problem(&path, &chain(&error)),
            }
        }
        Ok(())
    }

    fn inode(
        &mut self,
        ino: u64,
        inode: &Inode,
        path: &[u8],
        target: &Path,
        depth: usize,
    ) -> io::Result<()> {
        if let Some(first) = self.links.get(&ino) {
            return fs::hard_link(first, target);
        }
        match inode.mode & libc::S_IFMT {
            libc::S_IFDIR => {
                fs::create_dir(target)?;
                self.directory(ino, path, target, depth + 1)?;
            }
            libc::S_IFREG => self.file(ino, inode.size, path, target)?,
            libc::S_IFLNK => match self.volume.inline(ino) {
                Ok(link) => {
                    std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&link), target)?;
                }
                Err(error) => {
                    self.problem(path, &chain(&error));
                    return Ok(());
                }
            },
            _ => {
                self.problem(path, "not copied: a device, FIFO or socket");
                return Ok(());
            }
        }
        self.saved.files += 1;
        self.attributes(ino, inode, path, target);
        if inode.links > 1 && inode.mode & libc::S_IFMT != libc::S_IFDIR {
            self.links.insert(ino, target.to_owned());
        }
        Ok(())
    }

    fn file(&mut self, ino: u64, size: u64, path: &[u8], target: &Path) -> io::Result<()> {
        let mut options = fs::File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(target)?;
        file.set_len(size)?;
        let mut buffer = Vec::new();
        let (mut at, mut lost) = (0, 0);
        while at < size {
            // Where data starts cannot be known if the map is damaged: then pages are tried.
            at = match self.volume.seek(ino, at, true) {
                Ok(Some(data)) => data,
                Ok(None) => break,
                Err(_) => at,
            };
            let piece = PIECE_BYTES.min(size - at);
            let end = at + piece;
            let mut step = piece;
            while at < end {
                let length = step.min(end - at);
                if self.volume.read(ino, at, length as usize, &mut buffer).is_ok() {
                    file.write_all_at(&buffer, at)?;
                    self.saved.bytes += buffer.len() as u64;
                } else if length > PAGE {
                    step = PAGE - at % PAGE;
                    continue;
                } else {
                    lost += length;
                }
                at += length;
                step = PAGE;
            }
        }
        if lost > 0 {
            self.saved.bytes_lost += lost;
            self.problem(path, &format!("{lost} of {size} bytes cannot be read, and are zeros"));
        }
        Ok(())
    }

    /// Owner, mode, times and extended attributes, as far as this user may set them.
    fn attributes(&mut self, ino: u64, inode: &Inode, path: &[u8], target: &Path) {
        let is_link = inode.mode & libc::S_IFMT == libc::S_IFLNK;
        if nix::unistd::geteuid().is_root() {
            let owner = std::os::unix::fs::lchown(target, Some(inode.uid), Some(inode.gid));
            self.note(path, "its owner", owner);
        }
        if is_link {
            return;
        }
        if inode.has_xattrs {
            self.xattrs(ino, path, target);
        }
        let mode = fs::Permissions::from_mode(inode.mode & 0o7777);
        self.note(path, "its mode", fs::set_permissions(target, mode));
        self.note(path, "its time", set_times(target, inode));
    }

    fn xattrs(&mut self, ino: u64, path: &[u8], target: &Path) {
        let names = match self.volume.xattr_names(ino) {
            Ok(names) => names,
            Err(error) => return self.problem(path, &chain(&error)),
        };
        for name in names {
            let what = format!("attribute {}", printable(&name));
            let Ok(c_name) = CString::new(name.clone()) else { continue };
            match self.volume.xattr(ino, &name) {
                Ok(value) => {
                    let set = xattr::set(target, &c_name, &value.unwrap_or_default());
                    self.note(path, &what, set);
                }
                Err(error) => self.problem(path, &format!("{what}: {}", chain(&error))),
            }
        }
    }

    fn note(&mut self, path: &[u8], what: &str, result: io::Result<()>) {
        if let Err(error) = result {
            self.problem(path, &format!("{what} was not set: {error}"));
        }
    }

    fn problem(&mut self, path: &[u8], what: &str) {
        let path = if path.is_empty() { b"/" } else { path };
        self.saved.problems.push(format!("{}: {what}", printable(path)));
    }
}

fn set_times(target: &Path, inode: &Inode) -> io::Result<()> {
    let time = |stamp: Timestamp| {
        let seconds = Duration::from_secs(stamp.seconds.unsigned_abs());
        let whole = if stamp.seconds < 0 {
            UNIX_EPOCH.checked_sub(seconds)
        } else {
            UNIX_EPOCH.checked_add(seconds)
        };
        let time =
            whole.and_then(|t| t.checked_add(Duration::from_nanos(stamp.nanoseconds.into())));
        time.unwrap_or(UNIX_EPOCH)
    };
    let times =
        fs::FileTimes::new().set_accessed(time(inode.atime)).set_modified(time(inode.mtime));
    fs::File::open(target)?.set_times(times)
}
