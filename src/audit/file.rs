//! The file of the log: private, appended to under a lock that several processes share, synced, and
//! put aside under another name by its size or by logrotate(8).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::record::{self, LINE_BYTES_MAX, Line, NOTHING};
use crate::format::config::AuditAnchor;

/// How long others may hold the lock: they append a record.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// How often the file may be renamed while it is being opened.
const RENAMES_MAX: u32 = 16;
/// How far from its end a file is looked at.
const TAIL_BYTES_MAX: u64 = 4 * LINE_BYTES_MAX as u64;

/// A log that has no record yet.
pub(super) const EMPTY: AuditAnchor = AuditAnchor { seq: 0, record: NOTHING };

/// See the [module](self).
pub(super) struct LogFile {
    path: PathBuf,
    /// Bytes of a file before the next one begins.
    bytes_max: Option<u64>,
    /// The file that was written to last; it may have another name now.
    file: Option<File>,
}

/// What the next record follows, and what is strange about it.
pub(super) struct Found {
    /// The newest record.
    pub(super) last: AuditAnchor,
    /// A line behind it that is no record, as [`record::torn`] describes it.
    pub(super) torn: Option<String>,
    /// The log is not as it was left.
    pub(super) changed: Option<String>,
}

/// The end of a file.
struct Tail {
    bytes: u64,
    /// The newest record; `None` if the last two lines are none.
    last: Option<AuditAnchor>,
    /// The last line, if it is no record.
    torn: Option<String>,
    /// The last line has no line feed.
    is_open: bool,
}

impl LogFile {
    pub(super) fn new(path: PathBuf, bytes_max: Option<u64>) -> Self {
        Self { path, bytes_max, file: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the lines that `lines` makes, all or none, and returns when they are durable, what
    /// `lines` says is the newest record then. `known` is a record that was written before.
    ///
    /// # Errors
    /// Those of the file system; `TimedOut` if somebody keeps the file locked.
    pub(super) fn append(
        &mut self,
        known: AuditAnchor,
        lines: impl FnOnce(&Found) -> (Vec<u8>, AuditAnchor),
    ) -> io::Result<AuditAnchor> {
        let (file, aside) = self.lock()?;
        let tail = tail(&file)?;
        let found = self.judge(&tail, aside.as_ref(), known);
        let (lines, newest) = lines(&found);
        let bytes = [if tail.is_open { &b"\n"[..] } else { b"" }, &lines].concat();
        write(&file, &bytes, tail.bytes)?;
        // What was written is there; another file begins with the next record.
        if self.bytes_max.is_some_and(|most| tail.bytes + bytes.len() as u64 >= most) {
            if let Err(error) = put_aside(&self.path, u32::MAX) {
                super::alarm(&format!("the log cannot be put aside: {error}"));
            }
        }
        self.file = file.unlock().ok();
        Ok(newest)
    }

    /// The file at the path, locked; and the end of the one that was there before, if this process
    /// wrote to that.
    fn lock(&mut self) -> io::Result<(Flock<File>, Option<Tail>)> {
        let mut aside = None;
        for _ in 0..RENAMES_MAX {
            let file = match self.file.take() {
                Some(file) => file,
                None => open(&self.path)?,
            };
            let file = lock(file)?;
            let (ours, there) = (file.metadata()?, std::fs::symlink_metadata(&self.path));
            match there {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok((file, aside));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => aside = Some(tail(&file)?),
            }
        }
        Err(io::Error::other("somebody renames the file all the time"))
    }

    fn judge(&self, tail: &Tail, aside: Option<&Tail>, known: AuditAnchor) -> Found {
        let before;
        let end = match (tail.bytes, aside) {
            (0, Some(aside)) => aside,
            (0, None) => {
                before = self.tail_before();
                before.as_ref().unwrap_or(tail)
            }
            _ => tail,
        };
        let last = end.last.unwrap_or(EMPTY);
        let torn = end.torn.clone();
        let same = last.seq > known.seq || last == known;
        let changed = match () {
            () if end.bytes > 0 && end.last.is_none() => Some("it does not end with a record"),
            () if same => None,
            () if last.seq == known.seq => Some("its last record is another one"),
            () => Some("records at its end are missing"),
        };
        let changed = changed.map(|what| {
            format!("{what}: it ends with record {}, known is record {}", last.seq, known.seq)
        });
        // To go on with what was known leaves the gap in the log, for all to see.
        Found { last: if same { last } else { known }, torn, changed }
    }

    /// The end of the file before this one, if it has the name that it gets here.
    fn tail_before(&self) -> Option<Tail> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(numbered(&self.path, 1)).ok()?;
        file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        tail(&file).ok().filter(|tail| tail.bytes > 0)
    }
}

/// Opens a log to append to; it is made if missing, private, with its directory.
///
/// # Errors
/// Those of the file system; a directory, a symbolic link or a device is refused.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let file = options.create(true).open(path)?;
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
            file
        }
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// Renames `path` to `path.1`, that to `path.2`, and so on; of more than `files_max` files, the
/// current one included, the oldest goes.
///
/// # Errors
/// Those of the file system.
pub fn put_aside(path: &Path, files_max: u32) -> io::Result<()> {
    let taken = |number: u32| numbered(path, number).symlink_metadata().is_ok();
    let most = files_max.max(2) - 1;
    let free = (1..most).find(|number| !taken(*number)).unwrap_or(most);
    for number in (0..free).rev() {
        match std::fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn lock(mut file: File) -> io::Result<Flock<File>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((same, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => {
                file = same;
                std::thread::sleep(PAUSE);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "somebody keeps it locked"));
            }
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

/// All or nothing: what was written of `bytes` before a failure is cut off again.
fn write(mut file: &File, bytes: &[u8], length: u64) -> io::Result<()> {
    file.write_all(bytes).and_then(|()| file.sync_data()).inspect_err(|_| {
        // If even this fails, the line is torn, and the next record says so.
        _ = file.set_len(length).and_then(|()| file.sync_data());
    })
}

fn tail(mut file: &File) -> io::Result<Tail> {
    let bytes = file.metadata()?.len();
    let from = bytes.saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut end)?;
    let is_open = end.last().is_some_and(|last| *last != b'\n');
    let text = end.strip_suffix(b"\n").unwrap_or(&end);
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // The first begins before what was read.
    if from > 0 {
        lines.remove(0);
    }
    let last = |line: &&[u8]| Line::parse(line).map(|parsed| record::link(parsed.seq, line));
    let mut tail = Tail { bytes, last: None, torn: None, is_open };
    if bytes > 0 {
        tail.last = lines.last().and_then(last);
        if tail.last.is_none() {
            tail.torn = lines.pop().map(record::torn);
            tail.last = lines.last().and_then(last);
        }
    }
    Ok(tail)
}
