//! Event loops: on `/dev/fuse`, and on rings.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::watch::Pace;
use super::wire::device::Buffer;
use super::wire::ring::Home;
use super::wire::{Device, Header, Origin, reply};
use super::{Adapter, REQUEST_BYTES, Shared};
use crate::sys::uring::{self, Event, Ring};

/// Slots of a queue to begin with: one is with the kernel while another is answered.
const SLOTS: usize = 4;
/// Slots of all queues to begin with, if one for each queue is no more: each may take as much
/// memory as the longest request.
const SLOTS_OF_ALL: usize = 32;
/// Most slots of a queue. Requests that wait on worker threads keep theirs, and a queue without any
/// would not get the WRITEs that some of them wait for.
const SLOTS_MAX: usize = 4096;

/// Why requests do not come by io_uring. `Display` is for `atrest status` and for errors.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoRings {
    /// It was not wanted.
    #[error("io_uring=off")]
    Off,
    /// The kernel does not know of it.
    #[error("this kernel does not offer it: Linux 6.14 is the first")]
    Unknown,
    /// The kernel's administrator has not allowed it.
    #[error("/sys/module/fuse/parameters/enable_uring is N")]
    Disabled,
    /// The kernel does not offer it to this mount.
    #[error("the kernel does not offer it to this mount")]
    NotOffered,
    /// Rings cannot be made.
    #[error("no ring can be made: {0}")]
    Refused(Arc<io::Error>),
}

/// Whether requests could come by io_uring.
///
/// # Errors
/// Why not.
pub fn is_possible() -> Result<(), NoRings> {
    match uring::is_enabled() {
        None => Err(NoRings::Unknown),
        Some(false) => Err(NoRings::Disabled),
        Some(true) => Ok(()),
    }
}

/// The rings of a mount, before they are used.
pub struct Rings {
    rings: Vec<Ring>,
    queues: u16,
    /// Of each queue, to begin with.
    slots: usize,
    payload_bytes: usize,
}

/// One of them, and the queues that it serves.
pub struct Share {
    ring: Ring,
    queues: Vec<u16>,
    slots: usize,
    payload_bytes: usize,
    /// The processor on which its thread stays: that of its only queue.
    processor: Option<u16>,
}

impl Rings {
    /// A ring for each processor that there is now.
    ///
    /// # Errors
    /// Why there are none.
    pub fn new(device: &Device) -> Result<Self, NoRings> {
        is_possible()?;
        let refused = |error| NoRings::Refused(Arc::new(error));
        let queues = uring::processors().map_err(refused)?;
        let here = std::thread::available_parallelism().map_err(refused)?.get();
        let threads = here.min(usize::from(queues)).max(1);
        let slots = (SLOTS_OF_ALL / usize::from(queues.max(1))).clamp(1, SLOTS);
        let commands = usize::from(queues).div_ceil(threads) * slots + 1;
        let commands = u32::try_from(commands.next_power_of_two()).unwrap_or(u32::MAX);
        let rings: io::Result<Vec<Ring>> =
            (0..threads).map(|_| Ring::new(device, commands)).collect();
        Ok(Self { rings: rings.map_err(refused)?, queues, slots, payload_bytes: 0 })
    }

    /// For requests and replies of so many bytes.
    pub fn of(self, payload_bytes: usize) -> Self {
        Self { payload_bytes, ..self }
    }

    /// How many queues there are.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Each ring with its queues. The kernel sends nothing before every queue has a slot.
    pub fn into_each(self) -> impl Iterator<Item = Share> {
        let Self { rings, queues, slots, payload_bytes } = self;
        let threads = rings.len();
        rings.into_iter().enumerate().map(move |(number, ring)| {
            let own: Vec<u16> = (0..queues).skip(number).step_by(threads).collect();
            let processor = own.first().copied().filter(|_| own.len() == 1);
            Share { ring, queues: own, slots, payload_bytes, processor }
        })
    }
}

/// An event loop on a device.
///
/// # Errors
/// The connection broke.
pub fn serve(adapter: &Adapter, device: &Arc<Device>) -> io::Result<()> {
    let served = serve_until_gone(adapter, device);
    // However it ended: nobody sleeps who might have been called.
    adapter.shared.watch.end();
    served
}

fn serve_until_gone(adapter: &Adapter, device: &Arc<Device>) -> io::Result<()> {
    let mut buffer = Buffer::new(REQUEST_BYTES as usize);
    let Shared { requests, watch, .. } = &*adapter.shared;
    let place = requests.join()?;
    let mut pace = Pace::new();
    loop {
        let watching = watch.join(device, &mut pace, || place.wipe_if_asked(&mut buffer))?;
        pace.look_out(watch, device);
        let request = device.receive(&mut buffer, |buffer| place.wipe_if_asked(buffer))?;
        drop(watching);
        let Some(request) = request else { return Ok(()) };
        if let Ok(header) = Header::decode(request) {
            pace.received(watch, &header);
        }
        contain(|| adapter.answer(request, device));
    }
}

/// A defect ends the request that it hits, which fails, and no other.
fn contain(work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        log::error!("a defect stopped a request, which failed; see above");
    }
}

/// An event loop on a ring: until the kernel has given back every slot.
///
/// # Errors
/// The ring broke.
pub fn serve_ring(adapter: &Adapter, share: Share) -> io::Result<()> {
    let Share { mut ring, queues, slots, payload_bytes, processor } = share;
    if let Some(processor) = processor {
        if let Err(error) = uring::stay_on(processor) {
            log::debug!("a ring's thread does not stay on processor {processor}: {error}");
        }
    }
    let home = Arc::new(Home::here(ring.waker()));
    let mut live = 0;
    for &queue in &queues {
        for _ in 0..slots {
            ring.register(queue, payload_bytes)?;
            live += 1;
        }
    }
    ring.listen()?;
    let mut events = Vec::new();
    while live > 0 {
        ring.wait(&mut events)?;
        for event in &events {
            match *event {
                Event::Request(slot) => {
                    if read_in_place(adapter, &mut ring, slot)? {
                        continue;
                    }
                    answer(adapter, &ring, &home, slot);
                    if home.commit_own(&mut ring)? == 0 {
                        live += grow(&mut ring, slot, payload_bytes)?;
                    }
                }
                Event::Woken => {
                    ring.listen()?;
                    home.commit_others(&mut ring)?;
                }
                Event::Gone(slot, libc::EINTR | libc::EAGAIN) => ring.register_again(slot)?,
                Event::Gone(_, errno) => {
                    if errno != libc::ENOTCONN {
                        log::warn!(
                            "the kernel gave a slot back: {}",
                            io::Error::from_raw_os_error(errno)
                        );
                    }
                    live -= 1;
                }
            }
        }
    }
    Ok(())
}

/// Answers a READ without a copy on the way; whether it was one.
///
/// # Errors
/// The ring broke.
fn read_in_place(adapter: &Adapter, ring: &mut Ring, slot: usize) -> io::Result<bool> {
    let asked = ring.request(slot).and_then(|arrived| adapter.read_in_slot(arrived));
    let (Some((unique, asked)), Some(buffer)) = (asked, ring.payload(slot)) else {
        return Ok(false);
    };
    let Some(result) = adapter.read_into(&asked, buffer) else { return Ok(false) };
    let (error, length) = match result {
        Ok(length) => (0, length),
        Err(errno) => (-errno.0, 0),
    };
    let length = u32::try_from(length).unwrap_or(0);
    ring.commit(slot, &reply::header(unique, error, length as usize), length)?;
    Ok(true)
}

fn answer(adapter: &Adapter, ring: &Ring, home: &Arc<Home>, slot: usize) {
    if let Some(arrived) = ring.request(slot) {
        contain(|| adapter.answer_slot(arrived, Origin::Ring(home.clone(), slot)));
    }
}

/// The request in `slot` keeps it for a while: its queue gets another one, if it has none left.
/// Returns how many were made.
fn grow(ring: &mut Ring, slot: usize, payload_bytes: usize) -> io::Result<usize> {
    let Some(queue) = ring.queue(slot) else { return Ok(0) };
    if ring.waiting(queue) > 0 || slot >= SLOTS_MAX {
        return Ok(0);
    }
    ring.register(queue, payload_bytes).map(|_| 1)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::fuse::Options;
    use crate::fuse::tests::memory_tree::MemoryTree;
    use crate::fuse::watch::Watch;
    use crate::fuse::wire::Notifier;
    use crate::fuse::wire::request::Dialect;
    use crate::fuse::writeback::Writeback;

    /// A connection that breaks is an error, and ends loops that sleep, too.
    #[test]
    fn a_broken_connection_ends_all_loops() {
        // This end of a pipe cannot be read.
        let (_reader, file) = nix::unistd::pipe().unwrap();
        let device = Arc::new(Device::new(file));
        let kernel = Writeback {
            notifier: Notifier::new(device.clone()),
            mountpoint: PathBuf::new(),
            device: 0,
        };
        let watch = Watch::new().unwrap().of(2);
        let options = Options::new(PathBuf::new());
        let tree = MemoryTree::new();
        let adapter = Adapter::new(tree, kernel, watch, Dialect::default(), &options, false);
        let watch = &adapter.shared.watch;
        std::thread::scope(|scope| {
            let awake = watch.join(&device, &mut Pace::new(), || {}).unwrap();
            let sleeper = scope.spawn(|| {
                let silent = std::os::unix::net::UnixStream::pair().unwrap();
                let device = Device::new(silent.0.into());
                watch.join(&device, &mut Pace::new(), || {}).map(drop)
            });
            let deadline = Instant::now() + Duration::from_secs(20);
            while !watch.any_sleeps() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(watch.any_sleeps());
            drop(awake);
            let error = serve(&adapter, &device).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
            let deadline = Instant::now() + Duration::from_secs(20);
            while !sleeper.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            let is_awake = sleeper.is_finished();
            watch.end();
            assert!(is_awake);
            assert!(sleeper.join().unwrap().is_ok());
        });
    }
}
