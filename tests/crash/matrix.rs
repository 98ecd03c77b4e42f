//! The crash matrix: every script, every prefix of what it does to the disk, every way in which
//! what was not synced may be there or not.
//!
//! `ATREST_CRASH=full` explores ten times as much. `ATREST_CRASH_SCRIPT=name` runs the scripts
//! whose names contain that. A failure prints the line that repeats it.

use crate::check::{Dear, check};
use crate::harness::{Explored, Settings, base_seed, explore, replay_line};
use crate::script::{Recording, Script, record};
use crate::scripts;
use crate::seam::Seam;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Images that a run must explore at least.
const IMAGES_MIN: usize = 20_000;
const IMAGES_MIN_FULL: usize = 200_000;
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

fn families() -> Vec<Family> {
    let few = Settings { samples: 24, quota: 60, tears: 1, ..Settings::new("") };
    let many = Settings { samples: 120, ..Settings::new("") };
    let settings = if is_full() { many } else { few };
    vec![Family { name: "written by hand", scripts: scripts::all_scripts(), settings }]
}

/// Runs a script and checks its images.
pub fn explore_script(
    script: &Script,
    settings: &Settings,
    line: Option<&str>,
) -> Result<Explored, String> {
    let recording = record(script, Seam::new)?;
    explore_recording(script, &recording, settings, line)
}

fn explore_recording(
    script: &Script,
    recording: &Recording,
    settings: &Settings,
    line: Option<&str>,
) -> Result<Explored, String> {
    let settings = Settings { name: script.name.clone(), ..settings.clone() };
    let replay = recording.replay.clone();
    let dear =
        if line.is_some() { Dear { again: 1, go_on: 1, nested: 1 } } else { Dear::default() };
    explore(&settings, replay, |crash, image| check(recording, dear, crash, image), line)
}

/// Runs scripts on all processors; what each explored, and the reports of those that failed.
fn run(family: &Family, line: Option<&str>) -> (Explored, Vec<String>) {
    let next = AtomicUsize::new(0);
    let results = Mutex::new((Explored::default(), Vec::new()));
    let work = || {
        while let Some(script) = family.scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            let found = explore_script(script, &family.settings, line);
            let mut results = results.lock().expect("nobody panics with it");
            match found {
                Ok(explored) => {
                    results.0.add(explored);
                    if std::env::var_os("ATREST_CRASH_VERBOSE").is_some() {
                        let Explored { points, images } = explored;
                        let milliseconds = started.elapsed().as_millis();
                        println!(
                            "{}: {images} images at {points} points, {milliseconds} ms",
                            script.name
                        );
                    }
                }
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
        let (explored, failed) = run(&family, line.as_deref());
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
