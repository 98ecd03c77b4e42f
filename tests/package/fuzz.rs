//! Archives that are changed at random: whatever they are, nobody panics, hangs, or takes more
//! memory than allowed, and what is served is what an independent decompressor makes of it.
//!
//! `ATREST_FUZZ_SECONDS=60` goes on for longer than the five seconds of an ordinary run, and
//! `ATREST_FUZZ_SEED=N` runs the one archive that a failure names.

use std::io::{ErrorKind, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use atrest::package::{Content, Limits, Package, Progress};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::zip::{Member, STORED, Zip, directory, field, file, link, open, zip};

/// Values that fields of a ZIP go wrong with.
const INTERESTING: [u32; 10] =
    [0, 1, 8, 0xff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];

fn limits() -> Limits {
    Limits {
        entries_max: 1000,
        directory_bytes_max: 1 << 20,
        total_bytes_max: 8 << 20,
        cache_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// A sound archive with a bit of everything.
fn base(random: &mut StdRng) -> Zip {
    let content = |random: &mut StdRng| {
        let length = [0, 1, 100, 5000, 400_000][random.random_range(0..5)];
        let alphabet = random.random_range(1..=64_u8);
        (0..length).map(|_| b'0' + random.random_range(0..alphabet)).collect::<Vec<u8>>()
    };
    let mut members = vec![directory("d/"), link("d/l", "../f0")];
    for number in 0..random.random_range(1..6) {
        let mut member = file(&format!("f{number}"), &content(random));
        member.flags |= [0, 8][random.random_range(0..2)];
        if random.random_bool(0.3) {
            member.method = STORED;
        }
        if random.random_bool(0.3) {
            member.extra = field(0x5455, &[1, 2, 3, 4, 5]);
        }
        if random.random_bool(0.2) {
            member = Member { name: format!("d/ü{number}").into(), ..member };
        }
        members.push(member);
    }
    let comment = vec![b'c'; [0, 0, 30][random.random_range(0..3)]];
    Zip { comment, zip64: random.random_bool(0.3), ..zip(&members) }
}

/// Changes a few bytes, mostly in headers, which are what a parser believes.
fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    let signatures: Vec<usize> =
        bytes.windows(2).enumerate().filter(|(_, pair)| pair == b"PK").map(|(at, _)| at).collect();
    for _ in 0..random.random_range(1..5) {
        if bytes.is_empty() {
            return;
        }
        let near = match signatures.is_empty() || random.random_bool(0.2) {
            true => random.random_range(0..bytes.len()),
            false => {
                signatures[random.random_range(0..signatures.len())] + random.random_range(0..64)
            }
        };
        let at = near.min(bytes.len() - 1);
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 | 3 => {
                let value = INTERESTING[random.random_range(0..INTERESTING.len())].to_le_bytes();
                let width = [1, 2, 4][random.random_range(0..3)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            4 => bytes.truncate(at),
            5 => {
                let length = random.random_range(0..200).min(bytes.len() - at);
                let copied = bytes[at..at + length].to_vec();
                let to = random.random_range(0..bytes.len());
                bytes.splice(to..to, copied);
            }
            _ => {
                let length = random.random_range(0..50).min(bytes.len() - at);
                bytes.drain(at..at + length);
            }
        }
    }
}

/// Opens an archive, and reads all of it in two ways.
fn digest(bytes: &[u8]) -> bool {
    let Ok(package) = open(bytes.to_vec(), &limits()) else { return false };
    let _ = package.check_headers(1);
    let failed = package.verify(1, &Progress::default()).err().unwrap_or_default();
    for id in 0..package.index().len() as u32 {
        let path = package.index().path(id);
        let Content::File(data) = package.index().node(id).content else { continue };
        let whole = read(&package, id, data.size, usize::MAX >> 1);
        let parts = read(&package, id, data.size, 50_000);
        let is_failed = failed.iter().any(|failed| failed.path == path);
        // Of nothing there is nothing to read, whatever the local header says.
        let is_unreadable = is_failed && data.size > 0;
        assert_eq!(whole.is_none(), is_unreadable, "{path}: reading and verifying differ");
        let Some(whole) = whole else { continue };
        assert!(parts.is_some_and(|parts| parts == whole), "{path}: parts differ from the whole");
        assert_eq!(super::zip::crc32(&whole), data.crc, "{path}");
        assert_eq!(whole.len() as u64, data.size, "{path}");
        // A file of nothing may be served though its stream is no stream.
        if data.deflated && !is_failed {
            // The name may have any length; the local header says it.
            let header = &bytes[data.header as usize..];
            let lengths = [header[26], header[27], header[28], header[29]];
            let [name, extra] = [[lengths[0], lengths[1]], [lengths[2], lengths[3]]]
                .map(|length| usize::from(u16::from_le_bytes(length)));
            let stream = &header[30 + name + extra..][..data.compressed as usize];
            let mut other = Vec::new();
            // A stream that has given all of the file, and is right so far, may lack its end mark.
            let ended = flate2::read::DeflateDecoder::new(stream).read_to_end(&mut other);
            let is_only_unended =
                ended.is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof);
            assert!(is_only_unended || other.len() == whole.len(), "{path}: it is not sound");
            assert!(other == whole, "{path}: another decompressor makes something else of it");
        }
    }
    true
}

/// All of a file, in pieces of this size; `None` if it is damaged.
fn read(package: &Package, id: u32, size: u64, piece: usize) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let mut offset = 0;
    loop {
        package.read(id, offset, piece, &mut all).ok()?;
        offset = offset.saturating_add(piece as u64);
        if offset >= size {
            return Some(all);
        }
    }
}

fn run(seed: u64) -> bool {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bytes = base(&mut random).bytes();
    assert!(digest(&bytes), "seed {seed}: a sound archive is refused");
    let mut served = false;
    for _ in 0..20 {
        let mut changed = bytes.clone();
        mutate(&mut changed, &mut random);
        served |= digest(&changed);
    }
    // Several changes on one another get further into what is behind the first check.
    for _ in 0..5 {
        mutate(&mut bytes, &mut random);
        served |= digest(&bytes);
    }
    served
}

/// What this thread has had of a processor; others on the machine do not count.
fn cpu_time() -> Duration {
    // Nanoseconds on a processor, nanoseconds waiting for one, turns (Linux, sched-stats.rst).
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

#[test]
fn changed_archives() {
    let variable =
        |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = variable("ATREST_FUZZ_SEED") {
        run(seed);
        return;
    }
    let time = Duration::from_secs(variable("ATREST_FUZZ_SECONDS").unwrap_or(5));
    let (start, first) = (Instant::now(), rand::random::<u32>());
    let (mut runs, mut served) = (0_u64, 0_u64);
    while start.elapsed() < time {
        let seed = u64::from(first) + runs;
        let began = cpu_time();
        let result = catch_unwind(AssertUnwindSafe(|| run(seed)));
        let replay = format!("to run it again: ATREST_FUZZ_SEED={seed}");
        let Ok(is_served) = result else { panic!("seed {seed}: see above; {replay}") };
        assert!(cpu_time() - began < Duration::from_secs(20), "seed {seed} takes long; {replay}");
        runs += 1;
        served += u64::from(is_served);
    }
    println!("{runs} seeds from {first}, of 25 archives each; {served} with some that are served");
    assert!(runs >= 3 && served > 0, "{runs} runs, {served} with archives that are served");
}
