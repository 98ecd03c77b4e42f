//! One mount's life as a process: fork, signals, readiness, logging, control socket, unmount.

mod control;
mod lease;
pub mod logging;
pub mod metrics;
pub mod paths;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::audit::{Asker, Audit, Entry, Event, NotRecorded};
use crate::fs::Tree;
use crate::fuse::Session;
use crate::sys::mount;
use crate::sys::process::{self, Side, Signals};

pub use crate::fuse::{AllowOther, Caches, IoUring, MountError, NoRings, Options};
pub use crate::lease::{Answer, OnOutage, Policy};
pub use control::{Lost, Numbers, Opening, Served, VolumeControl, VolumeNumbers, ask};
use lease::Driver;

/// What a [`Companion`] is told of.
const SIGNALS_HANDED_ON: [Signal; 3] = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT];

/// Why a daemon could not start, or did not end well. `Display` says what was attempted; the cause
/// is in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A system call of the process's own housekeeping failed.
    #[error("cannot {attempt}")]
    Process {
        /// What was attempted.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The mount could not be put on record.
    #[error(transparent)]
    Audit(#[from] NotRecorded),
    /// The connection to the kernel broke while mounted.
    #[error("the connection to the kernel broke")]
    Session(#[source] io::Error),
    /// The last sync failed: what it covers may be lost.
    #[error("the volume was not closed properly: {0}")]
    Close(String),
}

/// Tells whoever waits that the mount is usable.
#[derive(Debug)]
pub struct Readiness {
    /// Where the waiting parent reads; `None` in the foreground.
    pipe: Option<File>,
}

/// Which process goes on after [`detach`].
#[derive(Debug)]
pub enum Detached {
    /// The one that was called: it ends with this exit code.
    Parent(u8),
    /// The daemon to be. It still has the terminal, for passphrases and errors.
    Child(Readiness),
}

/// Forks. The parent waits until the child is ready or has ended, whose exit code is then its own.
/// Call it before any thread is started.
///
/// # Errors
/// Those of pipe(2) and fork(2).
pub fn detach() -> Result<Detached, Error> {
    let failed = |attempt| move |source| Error::Process { attempt, source };
    let (reader, writer) = process::pipe().map_err(failed("make a pipe"))?;
    match process::fork().map_err(failed("start the daemon"))? {
        Side::Child => Ok(Detached::Child(Readiness { pipe: Some(writer) })),
        Side::Parent(child) => {
            drop(writer);
            await_readiness(reader, child)
                .map(Detached::Parent)
                .map_err(failed("wait for the daemon"))
        }
    }
}

fn await_readiness(mut reader: File, child: i32) -> io::Result<u8> {
    let mut byte = [0];
    if reader.read(&mut byte)? == 1 {
        return Ok(0);
    }
    Ok(u8::try_from(process::wait(child)?).unwrap_or(u8::MAX))
}

impl Readiness {
    /// For a daemon that stays in the foreground.
    pub fn foreground() -> Self {
        Self { pipe: None }
    }

    /// Leaves the terminal, if this process was forked, and tells parent and service manager.
    fn ready(self) {
        if let Some(mut pipe) = self.pipe {
            if let Err(error) = process::leave_terminal() {
                log::warn!("cannot leave the terminal: {error}");
            }
            // A parent that is gone does not wait.
            let _ = pipe.write_all(&[1]);
        }
        notify_service_manager("READY=1");
    }
}

/// sd_notify(3). Nobody listening is no error.
pub fn notify_service_manager(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> io::Result<()> {
        let address = address.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        let address = match address.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
    };
    if let Err(error) = send() {
        log::warn!("cannot notify the service manager: {error}");
    }
}

/// What a daemon serves, and where.
pub struct Service {
    /// The filesystem.
    pub tree: Arc<dyn Tree>,
    /// What is below it.
    pub served: Arc<dyn Served>,
    /// What it has besides if it is a volume.
    pub keyed: Option<Keyed>,
    /// The name of its control socket: a volume's id in hex, or [`paths::mount_id`].
    pub id: String,
    /// Where to mount: a canonical path.
    pub mountpoint: PathBuf,
    /// How to mount.
    pub options: Options,
    /// What lives with the mount, if anything does.
    pub companion: Option<Arc<dyn Companion>>,
}

/// What a volume has besides.
pub struct Keyed {
    /// The volume and its keys.
    pub volume: Arc<dyn VolumeControl>,
    /// For how long the key is good without being asked for again.
    pub lease: Policy,
    /// What the mount is put on record with.
    pub audit: Arc<Audit>,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<metrics::Endpoint>,
}

/// What lives with a mount: begins when it answers, and ends before it goes.
pub trait Companion: Send + Sync {
    /// Called when the mount answers. When it returns without having been told to, the mount is
    /// taken away.
    fn run(&self, caches: Caches);
    /// The process got this signal, which is not one that ends it.
    fn signal(&self, signal: Signal);
    /// Has [`Companion::run`] return soon; returns when nothing uses the mount any more. May be
    /// called several times.
    fn stop(&self);
}

/// Raises the limit of open files: each segment of a volume and each connection is one.
pub fn raise_limits() {
    if let Err(error) = process::raise_open_files() {
        log::debug!("cannot raise the limit of open files: {error}");
    }
}

/// Mounts, says so, and serves until the mount is gone; then closes the volume. Returns when
/// everything is durable.
///
/// # Errors
/// See [`Error`]. The volume is closed on every path.
pub fn serve(service: Service, readiness: Readiness) -> Result<(), Error> {
    let below = service.served.clone();
    let audit = service.keyed.as_ref().map(|keyed| keyed.audit.clone());
    let unmounter = Arc::new(Mutex::new(Asker::of_this_process()));
    let served = serve_until_unmounted(service, readiness, &unmounter);
    notify_service_manager("STOPPING=1");
    let by = unmounter.lock().clone();
    // Nothing of this can be refused.
    let record = |entry: &Entry| audit.iter().for_each(|audit| drop(audit.record(entry)));
    record(&Entry::new(Event::Unmount, "unmount", &by));
    let closed = below.close();
    if let Err(error) = &closed {
        log::error!("it was not closed properly: {error}");
        record(&Entry::new(Event::LostWrites, "unmount", &by).failed("lost", error));
    } else {
        log::info!("closed");
    }
    served.and(closed.map_err(Error::Close))
}

/// `unmounter` is who asks for the mount to end, if somebody does.
fn serve_until_unmounted(
    service: Service,
    readiness: Readiness,
    unmounter: &Arc<Mutex<Asker>>,
) -> Result<(), Error> {
    let Service { tree, served, keyed, id, mountpoint, options, companion } = service;
    let failed = |attempt| move |source| Error::Process { attempt, source };
    let mut caught = vec![Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    if companion.is_some() {
        caught.extend(SIGNALS_HANDED_ON);
    }
    let signals = Signals::catch(&caught).map_err(failed("catch signals"))?;
    let session = Session::mount(tree, &mountpoint, &options)?;
    log::info!("mounted {} at {}", options.source.display(), mountpoint.display());
    if let Some(keyed) = &keyed {
        put_on_record(keyed, &mountpoint)?;
    }

    let leased = keyed.map(|keyed| Leased::start(keyed, session.caches()));
    let transport = session.transport();
    log::info!("requests come by {transport}");
    let known = Known { id: &id, mountpoint: &mountpoint, options: &options, transport };
    let _control = start_control(served, leased.as_ref(), &known, unmounter.clone());
    let checker = match leased.as_ref().map(|leased| leased.driver.clone()) {
        Some(driver) => {
            let thread = std::thread::Builder::new().name("atrest-lease".to_owned());
            Some(thread.spawn(move || driver.run()).map_err(failed("start a thread"))?)
        }
        None => None,
    };
    watch_signals(signals, mountpoint.clone(), companion.clone())
        .map_err(failed("start a thread"))?;
    // The first answer proves that the mount works: only then is it announced.
    let probe = std::thread::Builder::new().name("atrest-ready".to_owned());
    let (living, caches) = (companion.clone(), session.caches().clone());
    let probed = probe.spawn(move || match std::fs::metadata(&mountpoint) {
        Ok(_) => {
            readiness.ready();
            if let Some(companion) = living {
                companion.run(caches);
                companion.stop();
                unmount_at_last(&mountpoint);
            }
        }
        Err(error) => {
            log::error!("the mount does not answer: {error}");
            unmount_at_last(&mountpoint);
        }
    });
    probed.map_err(failed("start a thread"))?;
    let served = session.run().map_err(Error::Session);
    companion.iter().for_each(|companion| companion.stop());
    if let (Some(leased), Some(checker)) = (&leased, checker) {
        leased.driver.stop();
        // A check waits for an answer at most; what it does then must not meet the closing.
        let _ = checker.join();
    }
    served
}

fn watch_signals(
    mut signals: Signals,
    mountpoint: PathBuf,
    companion: Option<Arc<dyn Companion>>,
) -> io::Result<()> {
    let watch = std::thread::Builder::new().name("atrest-signals".to_owned());
    let watched = watch.spawn(move || {
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGHUP {
                logging::reopen();
            }
            match (signal, &companion) {
                (Signal::SIGTERM | Signal::SIGINT, _) => {
                    log::info!("{signal}: unmounting");
                    companion.iter().for_each(|companion| companion.stop());
                    unmount_at_last(&mountpoint);
                }
                (signal, Some(companion)) => companion.signal(signal),
                _ => {}
            }
        }
    });
    watched.map(drop)
}

/// Puts the mount on record.
///
/// # Errors
/// It could not be, and nothing may be done without: the mount is gone again.
fn put_on_record(keyed: &Keyed, mountpoint: &Path) -> Result<(), Error> {
    let place = mountpoint.display().to_string();
    let mounted = Entry::new(Event::Mount, "mount", &Asker::of_this_process()).with_detail(place);
    if let Err(error) = keyed.audit.record(&mounted) {
        unmount_at_last(mountpoint);
        return Err(error.into());
    }
    keyed.volume.anchor_audit();
    Ok(())
}

/// A volume with the driver of its lease, and what tells of both.
struct Leased {
    volume: Arc<dyn VolumeControl>,
    driver: Arc<Driver>,
    audit: Arc<Audit>,
    /// Ends when it is dropped.
    _metrics: Option<metrics::Server>,
}

impl Leased {
    fn start(keyed: Keyed, caches: &Caches) -> Self {
        let Keyed { volume, lease, audit, metrics } = keyed;
        let driver = Driver::new(lease, volume.clone(), caches.clone(), audit.clone());
        let metrics = metrics.and_then(|endpoint| {
            let source = metrics::Source::new(volume.clone(), driver.clone(), audit.clone());
            let started = metrics::Server::start(endpoint, source);
            started.inspect_err(|error| log::error!("no metrics: {error}")).ok()
        });
        Self { volume, driver, audit, _metrics: metrics }
    }
}

/// What is mounted, and where.
struct Known<'a> {
    id: &'a str,
    mountpoint: &'a Path,
    options: &'a Options,
    transport: &'a str,
}

/// The control socket is a convenience: a mount without it serves as well.
fn start_control(
    served: Arc<dyn Served>,
    leased: Option<&Leased>,
    known: &Known<'_>,
    unmounter: Arc<Mutex<Asker>>,
) -> Option<control::Server> {
    let Known { id, mountpoint, options, transport } = *known;
    let place = mountpoint.to_owned();
    let mut known = json!({
        "mounted": true,
        "mountpoint": mountpoint.to_string_lossy(),
        "read_only": options.read_only,
        "transport": transport,
        "since": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "pid": std::process::id(),
    });
    if leased.is_some() {
        let of_volume = json!({ "volume": options.source.to_string_lossy(), "volume_id": id });
        known = merge(of_volume, known);
    }
    let state = leased.map(|leased| (leased.driver.clone(), leased.audit.clone()));
    let handler = control::Handler {
        served,
        status: Box::new(move |status| {
            let status = merge(known.clone(), status);
            let Some((lease, audit)) = &state else { return status };
            let status = merge(status, lease.status());
            match audit.status() {
                Some(audit) => merge(status, json!({ "audit": audit })),
                None => status,
            }
        }),
        keyed: leased.map(|leased| (leased.volume.clone(), leased.driver.clone() as _)),
        unmount: Box::new(move |by| {
            // Before: the mount may be gone, and put on record, when this returns.
            let before = std::mem::replace(&mut *unmounter.lock(), by.clone());
            mount::unmount(&place, false).map_err(|error| {
                *unmounter.lock() = before;
                match error.raw_os_error() {
                    Some(libc::EBUSY) => busy_text(&place),
                    _ => error.to_string(),
                }
            })
        }),
    };
    let started = paths::control_socket(id).and_then(|path| control::Server::start(&path, handler));
    started.inspect_err(|error| log::warn!("no control socket: {error}")).ok()
}

/// The fields of both objects; those of `over` win.
fn merge(mut under: Value, over: Value) -> Value {
    if let (Value::Object(under), Value::Object(over)) = (&mut under, over) {
        under.extend(over);
    }
    under
}

/// Unmounts because the daemon is told to end: if somebody uses the mount, it disappears from the
/// tree at once, and the daemon ends with the last user.
fn unmount_at_last(mountpoint: &Path) {
    match mount::unmount(mountpoint, false) {
        Ok(()) => return,
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            log::warn!("{}; detaching, and ending with the last of them", busy_text(mountpoint));
        }
        Err(error) => log::warn!("cannot unmount {}: {error}", mountpoint.display()),
    }
    if let Err(error) = mount::unmount(mountpoint, true) {
        log::error!("cannot detach {}: {error}", mountpoint.display());
    }
}

/// `busy: used by 12 (bash, cwd)`
fn busy_text(mountpoint: &Path) -> String {
    let users = process::users_of(mountpoint);
    let list: Vec<String> =
        users.iter().map(|user| format!("{} ({}, {})", user.pid, user.command, user.how)).collect();
    if list.is_empty() {
        return format!("{} is busy", mountpoint.display());
    }
    format!("{} is busy: used by {}", mountpoint.display(), list.join(", "))
}
