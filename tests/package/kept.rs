//! Seek points that one mount leaves for the next: what is read with them is right, it is near, and
//! points that are damaged or of another package make reading slow and not wrong.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atrest::package::{Limits, NodeId, Package, Source};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::zip::{file, open, zip};

const MIB: usize = 1 << 20;
const BYTES: usize = 6 * MIB;

/// Text of numbers, nowhere the same.
fn content(seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut text = Vec::with_capacity(BYTES + 20);
    while text.len() < BYTES {
        write!(text, "{} ", random.random::<u32>() >> 12).unwrap();
    }
    text.truncate(BYTES);
    text
}

fn archive(contents: &[Vec<u8>]) -> Vec<u8> {
    let member = |(number, content): (usize, &Vec<u8>)| file(&format!("x{number}"), content);
    zip(&contents.iter().enumerate().map(member).collect::<Vec<_>>()).bytes()
}

fn member(package: &Package, number: usize) -> NodeId {
    package.index().find(format!("x{number}").as_bytes()).unwrap()
}

/// What a package writes into.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The seek points that it keeps now.
fn keep(package: &Package) -> Option<Vec<u8>> {
    let written = Shared::default();
    let sink = written.clone();
    let is_kept = package.keep_seek_points(|| Ok(Box::new(sink))).unwrap();
    let bytes = std::mem::take(&mut *written.0.lock());
    is_kept.then_some(bytes)
}

/// Reads everywhere; returns the most that was decompressed for one read.
fn read_everywhere(package: &Package, number: usize, content: &[u8]) -> u64 {
    let mut random = StdRng::seed_from_u64(3);
    let mut most = 0;
    for _ in 0..30 {
        let before = package.statistics().inflated_bytes;
        let offset = random.random_range(0..content.len() - 1000);
        let mut found = Vec::new();
        package.read(member(package, number), offset as u64, 1000, &mut found).unwrap();
        assert!(found == content[offset..offset + 1000], "other bytes at {offset}");
        most = most.max(package.statistics().inflated_bytes - before);
    }
    most
}

/// A package whose points were kept, and these.
fn kept(contents: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let bytes = archive(contents);
    let package = open(bytes.clone(), &Limits::default()).unwrap();
    assert!(keep(&package).is_none(), "nothing was read, and there are points");
    for number in 0..contents.len() {
        package.read(member(&package, number), BYTES as u64 - 10, 10, &mut Vec::new()).unwrap();
    }
    let points = keep(&package).expect("there are points");
    (bytes, points)
}

#[test]
fn the_next_mount_has_them() {
    let contents = [content(1), content(2)];
    let (bytes, points) = kept(&contents);
    let package = open(bytes.clone(), &Limits::default()).unwrap();
    assert_eq!(package.distance(member(&package, 0), BYTES as u64 - 10), BYTES as u64 - 10);
    package.use_seek_points(Arc::new(points.clone())).unwrap();
    assert!(package.distance(member(&package, 0), BYTES as u64 - 10) < 2 * MIB as u64);
    let inflated = read_everywhere(&package, 0, &contents[0]);
    assert!(inflated < 2 * MIB as u64, "{inflated} bytes were decompressed for one read");
    assert!(keep(&package).is_none(), "there is nothing new to keep");

    // What one mount adds does not lose what another has kept.
    let half = open(bytes.clone(), &Limits::default()).unwrap();
    half.read(member(&half, 1), BYTES as u64 / 2, 10, &mut Vec::new()).unwrap();
    let first = keep(&half).unwrap();
    let next = open(bytes.clone(), &Limits::default()).unwrap();
    next.use_seek_points(Arc::new(first)).unwrap();
    next.read(member(&next, 0), BYTES as u64 - 10, 10, &mut Vec::new()).unwrap();
    next.read(member(&next, 1), BYTES as u64 - 10, 10, &mut Vec::new()).unwrap();
    assert!(keep(&next).unwrap() == points, "points that were kept in two steps are others");
}

#[test]
fn of_another_package() {
    let (_, points) = kept(&[content(1)]);
    let (bytes, _) = kept(&[content(4)]);
    let package = open(bytes, &Limits::default()).unwrap();
    let refused = package.use_seek_points(Arc::new(points)).unwrap_err();
    assert!(refused.to_string().contains("another package"), "{refused}");
}

/// Any byte of the table changed, or the file cut off: it is refused, or reading does without; what
/// is read is right, or an error, never something else. Windows are the volume's to authenticate.
#[test]
fn damaged() {
    let contents = [content(1)];
    let (bytes, points) = kept(&contents);
    let table = u64::from_le_bytes(points[48..56].try_into().unwrap()) as usize;
    let package = || open(bytes.clone(), &Limits::default()).unwrap();
    let mut refused = 0;
    for at in 0..56 + table {
        let mut changed = points.clone();
        changed[at] ^= 1 << (at % 8);
        let package = package();
        if package.use_seek_points(Arc::new(changed)).is_err() {
            refused += 1;
            continue;
        }
        let mut found = Vec::new();
        let offset = BYTES - 3 * MIB;
        let read = package.read(member(&package, 0), offset as u64, 1000, &mut found);
        assert!(read.is_err() || found.len() == 1000, "byte {at}");
    }
    assert!(refused > 56, "{refused} of {} changes were noticed", 56 + table);
    for length in [0, 10, 55, 60, 56 + table - 1, points.len() - 1] {
        assert!(
            package().use_seek_points(Arc::new(points[..length].to_vec())).is_err(),
            "{length}"
        );
    }
}

/// Bytes that cannot be read any more after some time, as those of a volume that is locked.
struct Locking {
    bytes: Vec<u8>,
    locked: AtomicBool,
}

impl Source for Locking {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.locked.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the volume is locked")),
            false => self.bytes.read_exact_at(buffer, offset),
        }
    }
}

/// The package is read all the same, from its beginning.
#[test]
fn gone_while_it_is_mounted() {
    let contents = [content(1)];
    let (bytes, points) = kept(&contents);
    let package = open(bytes, &Limits::default()).unwrap();
    let source = Arc::new(Locking { bytes: points, locked: AtomicBool::new(false) });
    package.use_seek_points(source.clone()).unwrap();
    source.locked.store(true, Ordering::Relaxed);
    assert!(read_everywhere(&package, 0, &contents[0]) > 0);
}
