//! Where log lines go: a file, standard error, the journal or syslog.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use syslog::{Facility, Formatter3164, LoggerBackend};

use crate::audit;

const JOURNAL: &str = "/run/systemd/journal/socket";
/// A log line longer than this is cut: an error chain may quote what an attacker wrote.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// Where to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// A file that is appended to, and opened anew at SIGHUP.
    File(PathBuf),
    /// The systemd journal.
    Journal,
    /// `/dev/log`
    Syslog,
}

/// Sends log lines to a [`Target`].
pub struct Logger {
    target: Target,
    sink: Mutex<Sink>,
}

enum Sink {
    Stderr,
    File(File),
    Journal(UnixDatagram),
    Syslog(Box<syslog::Logger<LoggerBackend, Formatter3164>>),
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts logging. Panics of any thread are logged from now on, too.
///
/// # Errors
/// Those of opening the target; the file's directory is created. A second call is an error.
pub fn start(target: Target, level: LevelFilter) -> io::Result<()> {
    let sink = Mutex::new(open(&target)?);
    if LOGGER.set(Logger { target, sink }).is_err() {
        return Err(io::Error::other("logging has started already"));
    }
    if let Some(logger) = LOGGER.get() {
        log::set_logger(logger).map_err(io::Error::other)?;
        log::set_max_level(level);
    }
    let inner = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        log::error!("defect: {info}\n{backtrace}");
        inner(info);
    }));
    Ok(())
}

/// Opens a log file anew, after logrotate(8) has moved it away.
pub fn reopen() {
    let Some(logger) = LOGGER.get() else { return };
    match open(&logger.target) {
        Ok(sink) => *logger.sink.lock() = sink,
        Err(error) => log::error!("cannot open the log again: {error}"),
    }
}

fn open(target: &Target) -> io::Result<Sink> {
    match target {
        Target::Stderr => Ok(Sink::Stderr),
        Target::File(path) => open_file(path).map(Sink::File),
        Target::Journal => {
            let socket = UnixDatagram::unbound()?;
            socket.connect(JOURNAL)?;
            Ok(Sink::Journal(socket))
        }
        Target::Syslog => {
            audit::syslog(Facility::LOG_DAEMON).map(|logger| Sink::Syslog(Box::new(logger)))
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Whether a record is logged, whatever level was asked for. The libraries of the network and of
/// tokens dump what they send and receive at trace level, keys and credentials among it: of them
/// only warnings are shown.
pub fn is_shown(metadata: &Metadata) -> bool {
    let crate_name = metadata.target().split("::").next().unwrap_or_default();
    match crate_name {
        "atrest" => true,
        _ => metadata.level() <= Level::Warn,
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        is_shown(metadata)
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = printable(&record.args().to_string());
        // What cannot be logged cannot be told anywhere else either.
        let _ = self.sink.lock().write(record.level(), &message);
    }

    fn flush(&self) {}
}

impl Sink {
    fn write(&mut self, level: Level, message: &str) -> io::Result<()> {
        match self {
            Self::Stderr => writeln!(io::stderr(), "{}", line(level, message)),
            Self::File(file) => file.write_all((line(level, message) + "\n").as_bytes()),
            Self::Journal(socket) => {
                socket.send(journal_entry(level, message).as_bytes()).map(drop)
            }
            Self::Syslog(logger) => {
                let sent = match level {
                    Level::Error => logger.err(message),
                    Level::Warn => logger.warning(message),
                    Level::Info => logger.info(message),
                    Level::Debug | Level::Trace => logger.debug(message),
                };
                sent.map_err(|error| io::Error::other(error.to_string()))
            }
        }
    }
}

/// `2026-01-31T12:00:00.123456Z error message`
fn line(level: Level, message: &str) -> String {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ");
    format!("{now} {} {message}", level.as_str().to_ascii_lowercase())
}

/// The native protocol of the journal, for fields without newlines.
fn journal_entry(level: Level, message: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=atrest\nMESSAGE={message}\n")
}

/// One line without control characters, so that a name on the mount cannot forge a second line.
fn printable(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for character in message.chars() {
        if text.len() > LINE_BYTES_MAX {
            text.push('…');
            break;
        }
        match character {
            '\n' => text.push_str("\\n"),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neither a line feed nor an escape sequence in a message reaches the log as such.
    #[test]
    fn messages_stay_one_line() {
        assert_eq!(printable("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert!(printable(&"x".repeat(100_000)).len() < LINE_BYTES_MAX + 16);
        assert_eq!(journal_entry(Level::Warn, &printable("a\nX=1")).lines().count(), 3);
    }

    /// A log file is private, appended to, and no symbolic link is followed to it.
    #[test]
    fn log_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log/x.log");
        for text in ["first", "second"] {
            let Ok(mut sink) = open(&Target::File(path.clone())) else { panic!("not opened") };
            sink.write(Level::Error, text).unwrap();
        }
        let lines = std::fs::read_to_string(&path).unwrap();
        let ends: Vec<_> = lines.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(ends, ["error first", "error second"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(open_file(&link).is_err());
    }
}
