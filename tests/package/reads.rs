//! Every byte that is read is the right one: anywhere, in any order, by several threads, whatever
//! the stream of deflate looks like and however little memory there is.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atrest::package::{Limits, NodeId, Package, Source};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::zip::{Member, STORED, deflate, file, open, zip};

const MIB: usize = 1 << 20;

/// Text of random words: compresses about as text does.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|_| (0..random.random_range(2..9)).map(|_| random.random_range(b'a'..=b'z')).collect())
        .collect();
    let mut text = Vec::with_capacity(length + 10);
    while text.len() < length {
        text.extend(&words[random.random_range(0..words.len())]);
        text.push(b' ');
    }
    text.truncate(length);
    text
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Deflate with what programs do in the middle of a stream: flushes, and other levels.
fn flushed(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(6));
    for chunk in content.chunks(77_777) {
        encoder.write_all(chunk).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// Streams of all kinds, each with its content.
fn streams() -> Vec<(&'static str, Member, Vec<u8>)> {
    let (words, mixed) = (text(6 * MIB + 12_345, 1), {
        let mut mixed = text(2 * MIB, 2);
        mixed.extend(noise(2 * MIB, 3));
        mixed.extend(vec![b'0'; 2 * MIB]);
        mixed.extend(text(MIB + 1, 4));
        mixed
    });
    let of = |name, content: &Vec<u8>, compressed: Vec<u8>| {
        (name, Member { compressed: Some(compressed), ..file(name, content) }, content.clone())
    };
    vec![
        of("text", &words, deflate(&words, 6)),
        of("best", &words, deflate(&words, 9)),
        of("fast", &words, deflate(&words, 1)),
        of("blocks that are stored", &words, deflate(&words, 0)),
        of("flushes", &words, flushed(&words)),
        of("mixed", &mixed, deflate(&mixed, 6)),
        ("stored", Member { method: STORED, ..file("stored", &mixed) }, mixed.clone()),
        of("one block", &words[..100_000].to_vec(), deflate(&words[..100_000], 6)),
    ]
}

fn small_cache() -> Limits {
    Limits { cache_bytes: 256 << 10, ..Limits::default() }
}

fn check(package: &Package, id: NodeId, content: &[u8], offset: usize, length: usize) {
    let mut buffer = b"kept".to_vec();
    package.read(id, offset as u64, length, &mut buffer).unwrap();
    let expected = content.get(offset..).unwrap_or_default();
    let expected = &expected[..length.min(expected.len())];
    assert!(buffer[4..] == *expected, "at {offset}, {length} bytes: other bytes");
    assert_eq!(&buffer[..4], b"kept");
}

/// Random places and lengths, also across the end, with much memory and with next to none.
#[test]
fn anywhere() {
    for (name, member, content) in streams() {
        for limits in [Limits::default(), small_cache()] {
            let package = open(zip(std::slice::from_ref(&member)).bytes(), &limits).unwrap();
            let id = package.index().find(name.as_bytes()).unwrap();
            let mut random = StdRng::seed_from_u64(7);
            for _ in 0..60 {
                let offset = random.random_range(0..content.len() + 1000);
                let length = [1, 4096, 100_000, 3 * MIB][random.random_range(0..4)];
                check(&package, id, &content, offset, length);
            }
            check(&package, id, &content, 0, content.len());
            check(&package, id, &content, content.len() - 1, 10);
            check(&package, id, &content, content.len(), 10);
        }
    }
}

/// From front to back, in requests of any size, every byte is decompressed once.
#[test]
fn in_order() {
    for (name, member, content) in streams() {
        let package = open(zip(&[member]).bytes(), &small_cache()).unwrap();
        let id = package.index().find(name.as_bytes()).unwrap();
        let mut random = StdRng::seed_from_u64(8);
        let mut offset = 0;
        while offset < content.len() {
            let length = [4096, 128 << 10, MIB][random.random_range(0..3)];
            check(&package, id, &content, offset, length);
            offset += length;
        }
        let inflated = package.statistics().inflated_bytes;
        let most = if name == "stored" { 0 } else { content.len() as u64 };
        assert!(inflated <= most, "{name}: {inflated} bytes were decompressed for {most}");
    }
}

/// After a pass there is a seek point near every place, and no more is decompressed than to there.
#[test]
fn near_a_seek_point() {
    let content = text(24 * MIB, 5);
    let limits = Limits { cache_bytes: 8 << 20, ..Limits::default() };
    let package = open(zip(&[file("x", &content)]).bytes(), &limits).unwrap();
    let id = package.index().find(b"x").unwrap();
    assert_eq!(package.distance(id, 20 * MIB as u64), 20 * MIB as u64);
    check(&package, id, &content, content.len() - 10, 10);
    assert!(package.statistics().points >= 20, "{:?}", package.statistics());
    let mut random = StdRng::seed_from_u64(9);
    for _ in 0..50 {
        let offset = random.random_range(0..content.len() - 10);
        let before = package.statistics().inflated_bytes;
        check(&package, id, &content, offset, 10);
        let inflated = package.statistics().inflated_bytes - before;
        assert!(inflated < 2 * MIB as u64, "{inflated} bytes for 10 at {offset}");
    }
    let memory = package.statistics().memory_bytes;
    assert!(memory <= 10 << 20, "{memory} bytes of memory where 8 MiB are allowed");
}

/// Seek points are thinned out rather than take more memory than there is for them.
#[test]
fn seek_points_are_bounded() {
    let content = text(40 * MIB, 6);
    let limits = Limits { cache_bytes: 1 << 20, ..Limits::default() };
    let package = open(zip(&[file("x", &content)]).bytes(), &limits).unwrap();
    let id = package.index().find(b"x").unwrap();
    check(&package, id, &content, content.len() - 10, 10);
    let points = package.statistics().points;
    assert!((3..=8).contains(&points), "{points} seek points in a quarter of 1 MiB");
    for offset in (0..content.len()).step_by(7 * MIB) {
        check(&package, id, &content, offset, 100);
    }
}

/// Threads that read the same member everywhere, and others that read it in order.
#[test]
fn by_several_threads() {
    let content = text(10 * MIB, 10);
    for limits in [Limits::default(), small_cache()] {
        let package = open(zip(&[file("x", &content)]).bytes(), &limits).unwrap();
        let id = package.index().find(b"x").unwrap();
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let (package, content) = (&package, &content);
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed);
                    for step in 0..40 {
                        let offset = match seed % 2 {
                            0 => random.random_range(0..content.len()),
                            _ => (step * 256) << 10,
                        };
                        check(package, id, content, offset, 256 << 10);
                    }
                });
            }
        });
    }
}

/// Two threads that read ahead for each other, as the kernel's requests come, decompress nothing
/// twice.
#[test]
fn requests_out_of_order() {
    let content = text(16 * MIB, 11);
    let bytes = zip(&[file("x", &content)]).bytes();
    // One may begin at a seek point less than a quarter of a MiB before its request. On a busy
    // machine one may also be so late that the other has passed it: the median tells.
    let mut extra = [0; 5].map(|_| decompressed_twice(bytes.clone(), &content));
    extra.sort_unstable();
    assert!(extra[2] <= 16 * (256 << 10), "{extra:?} bytes were decompressed twice");
}

fn decompressed_twice(bytes: Vec<u8>, content: &[u8]) -> u64 {
    let package = open(bytes, &Limits::default()).unwrap();
    let id = package.index().find(b"x").unwrap();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let offset = next.fetch_add(MIB as u64, Ordering::Relaxed) as usize;
                    if offset >= content.len() {
                        return;
                    }
                    check(&package, id, content, offset, MIB);
                }
            });
        }
    });
    package.statistics().inflated_bytes.saturating_sub(content.len() as u64)
}

/// A wrong CRC-32 is found when all of a member was read, in whatever order; then it is served no
/// more.
#[test]
fn checked_on_the_way() {
    for method in [8, STORED] {
        let content = text(3 * MIB, 12);
        let member = Member { crc: Some(5), method, ..file("x", &content) };
        let package = open(zip(&[member]).bytes(), &Limits::default()).unwrap();
        let id = package.index().find(b"x").unwrap();
        let order = if method == STORED { [0, 2, 1] } else { [0, 1, 2] };
        for (number, part) in order.into_iter().enumerate() {
            let read = package.read(id, part * MIB as u64, MIB, &mut Vec::new());
            assert_eq!(read.is_err(), number == 2, "part {part}");
        }
        assert!(package.read(id, 0, 1, &mut Vec::new()).is_err());
    }
}

/// A source that fails now and then.
struct Failing {
    bytes: Vec<u8>,
    left: AtomicU64,
}

impl Source for Failing {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.left.store(u64::MAX, Ordering::Relaxed);
            return Err(std::io::Error::other("the disk is gone"));
        }
        self.bytes.read_exact_at(buffer, offset)
    }
}

/// A read that fails because the disk did is right the next time.
#[test]
fn a_source_that_fails_once() {
    let content = text(3 * MIB, 13);
    let bytes = zip(&[file("x", &content)]).bytes();
    for failing in 0..12 {
        let source = Arc::new(Failing { bytes: bytes.clone(), left: AtomicU64::new(u64::MAX) });
        let package = Package::open(source.clone(), &Limits::default()).unwrap();
        let id = package.index().find(b"x").unwrap();
        source.left.store(failing, Ordering::Relaxed);
        let failed = (0..3)
            .filter(|part| package.read(id, part * MIB as u64, MIB, &mut Vec::new()).is_err());
        assert_eq!(failed.count(), 1, "read {failing} of the source fails");
        check(&package, id, &content, 0, content.len());
    }
}
