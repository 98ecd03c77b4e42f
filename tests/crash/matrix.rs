//! The crash matrix: every script, every prefix of what it does to the disk, every way in which
//! what was not synced may be there or not.
//!
//! `ATREST_CRASH=full` explores ten times as much. `ATREST_CRASH_SCRIPT=name` runs the scripts
//! whose names contain that. A failure prints the line that repeats it.

use crate::check::{Dear, check};
use crate::harness::{Explored, Settings, base_seed, explore, replay_line};
use crate::script::{Op, Script, record};
use crate::seam::Seam;
use crate::{applications, bounded, scripts};
use atrest::storage::sim::Random;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Images that a run must explore at least.
const IMAGES_MIN: usize = 20_000;
const IMAGES_MIN_FULL: usize = 200_000;
/// Pairs of operations that a short run draws, and triples that a full one does.
const BOUNDED_PAIRS: usize = 150;
const BOUNDED_TRIPLES: usize = 500;
/// What is written within the end of an epoch, at most.
const NESTED_BYTES_MAX: usize = 48 << 10;
/// Failures that are printed.
const FAILURES_SHOWN: usize = 3;

/// Whether the run is a long one.
pub fn is_full() -> bool {
    std::env::var("ATREST_CRASH").is_ok_and(|size| size == "full")
}

/// A part of the matrix: scripts, and how much of each.
struct Family {
    name: &'static str,
    scripts: Vec<Script>,
    settings: Settings,
}

/// All scripts that were written by hand.
pub fn all_written() -> Vec<Script> {
    scripts::all_scripts().into_iter().chain(applications::all_scripts()).collect()
}

fn families() -> Vec<Family> {
    let full = is_full();
    let random = &mut Random::new(base_seed());
    let few = Settings { samples: 16, quota: 30, tears: 1, ..Settings::new("") };
    let fewer = Settings { samples: 8, quota: 8, ..few.clone() };
    let many = Settings { samples: 120, ..Settings::new("") };
    let (thorough, broad) = if full { (&many, &few) } else { (&few, &fewer) };
    let mut twos = bounded::of_length_two(random);
    if !full {
        shuffle(&mut twos, random);
        twos.truncate(BOUNDED_PAIRS);
    }
    let threes = if full { bounded::of_length_three(BOUNDED_TRIPLES, random) } else { Vec::new() };
    let seeds = if full { 120 } else { 30 };
    let seeds = (0..seeds).map(|number| base_seed() * 100_000 + number);
    let written = all_written();
    let ended = written.iter().flat_map(|script| with_epochs(script, random)).collect();
    let family = |name, scripts, settings: &Settings| {
        let settings = settings.clone();
        Family { name, scripts, settings }
    };
    vec![
        family("written by hand, and as applications do", written, thorough),
        family("the same with epochs ending in between", ended, broad),
        family("bounded, of one operation", bounded::of_length_one(), broad),
        family("bounded, of two operations", twos, &fewer),
        family("bounded, of three operations", threes, &fewer),
        family("random", seeds.map(|seed| bounded::random(seed, 20)).collect(), broad),
    ]
}

/// Copies of a script with an epoch that ends somewhere, or that is being made durable while
/// operations of the script go on. A number of them in a full run, else one of each kind.
fn with_epochs(script: &Script, random: &mut Random) -> Vec<Script> {
    // One thread does all, so what is done within the end of an epoch must not wait for that.
    if script.ops.len() > 40 || script.name.contains("large") || script.name.contains("log_") {
        return Vec::new();
    }
    let mut copies = Vec::new();
    for _ in 0..if is_full() { 3 } else { 1 } {
        let at = random.below(script.ops.len() as u64) as usize;
        let mut ended = script.clone();
        ended.name = format!("{}-epoch-after-{at}", script.name);
        ended.ops.insert(at + 1, Op::EpochEnd);
        copies.push(ended);
        let within = random.below(12);
        let count = (1 + random.below(3) as usize).min(script.ops.len() - at);
        let nested: Vec<Op> = script.ops[at..at + count].to_vec();
        let waits = |op: &Op| match op {
            Op::EpochEndAround(..) => true,
            Op::Fsync(_) | Op::Fdatasync(_) => false,
            op => op.is_sync(),
        };
        // So much fits into the log; more would wait for the sync of a segment that is under way.
        let synced = script.ops[..at].iter().rposition(Op::is_sync).map_or(0, |sync| sync + 1);
        let bytes: usize = script.ops[synced..at + count].iter().map(bytes_of).sum();
        if nested.iter().any(waits) || bytes > NESTED_BYTES_MAX {
            continue;
        }
        let mut around = script.clone();
        around.name = format!("{}-epoch-around-{at}-{count}-at-{within}", script.name);
        around.ops.splice(at..at + count, [Op::EpochEndAround(within, nested)]);
        copies.push(around);
    }
    copies
}

/// Bytes of whole pages that an operation writes, at most.
fn bytes_of(op: &Op) -> usize {
    match op {
        Op::Write { length, .. } | Op::Append { length, .. } => length + 8_192,
        Op::WriteKilling { length, .. } | Op::WriteOpen { length, .. } => length + 8_192,
        Op::Copy { length, .. } => *length as usize + 8_192,
        _ => 8_192,
    }
}

fn shuffle(scripts: &mut [Script], random: &mut Random) {
    for last in (1..scripts.len()).rev() {
        scripts.swap(last, random.below(last as u64 + 1) as usize);
    }
}

/// Runs a script and checks its images.
fn explore_script(
    script: &Script,
    settings: &Settings,
    line: Option<&str>,
) -> Result<Explored, String> {
    let recording = record(script, Seam::new)?;
    let settings = Settings { name: script.name.clone(), ..settings.clone() };
    let replay = recording.replay.clone();
    let dear =
        if line.is_some() { Dear { again: 1, go_on: 1, nested: 1 } } else { Dear::default() };
    explore(&settings, replay, |crash, image| check(&recording, dear, crash, image), line)
}

/// Has scripts explored on all processors; what was explored, and the reports of those that failed.
pub fn on_all_processors(
    scripts: &[Script],
    explore: &(dyn Fn(&Script) -> Result<Explored, String> + Sync),
) -> (Explored, Vec<String>) {
    let verbose = std::env::var_os("ATREST_CRASH_VERBOSE").is_some();
    let next = AtomicUsize::new(0);
    let results = Mutex::new((Explored::default(), Vec::new()));
    let work = || {
        while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            let found = explore(script);
            if verbose {
                println!("{}: {found:?}, {} ms", script.name, started.elapsed().as_millis());
            }
            let mut results = results.lock().expect("nobody panics with it");
            match found {
                Ok(explored) => results.0.add(explored),
                Err(report) => results.1.push(report),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    results.into_inner().expect("nobody panicked with it")
}

#[test]
fn every_image_is_a_state_that_was() {
    let line = replay_line();
    let only = std::env::var("ATREST_CRASH_SCRIPT").ok();
    let mut total = Explored::default();
    let mut failures = Vec::new();
    for mut family in families() {
        family.scripts.retain(|script| {
            only.as_ref().is_none_or(|only| script.name.contains(only.as_str()))
                && line.as_ref().is_none_or(|line| line.split(' ').next() == Some(&script.name))
        });
        let started = Instant::now();
        let explore = |script: &Script| explore_script(script, &family.settings, line.as_deref());
        let (explored, failed) = on_all_processors(&family.scripts, &explore);
        let Explored { points, images } = explored;
        println!(
            "{}: {} scripts, {images} images at {points} points, {:.0} s",
            family.name,
            family.scripts.len(),
            started.elapsed().as_secs_f32()
        );
        total.add(explored);
        failures.extend(failed);
    }
    for failure in failures.iter().take(FAILURES_SHOWN) {
        println!("{failure}\n");
    }
    assert!(failures.is_empty(), "{} scripts failed, see above", failures.len());
    println!("{} images, seed {}", total.images, base_seed());
    let wanted = match (&line, &only) {
        (Some(_), _) => 0,
        (None, Some(_)) => 1,
        (None, None) if is_full() => IMAGES_MIN_FULL,
        (None, None) => IMAGES_MIN,
    };
    assert!(total.images >= wanted, "{} images are fewer than {wanted}", total.images);
}
