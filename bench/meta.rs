//! Creates, stats and unlinks files with several threads at once, as mdtest does.
//!
//! `meta DIRECTORY THREADS FILES BYTES`: each thread has a directory of its own in DIRECTORY and makes
//! its part of FILES files of BYTES bytes in it (create, write, close), then all of them are looked
//! at, then removed. All threads start a phase together, and it ends with the last of them. Prints a
//! line for each phase: `create`, `stat`, `unlink` and how many a second. `bench/run` uses it.
//!
//! `meta fill DIRECTORY FIRST COUNT BYTES` only makes files, 1,000 in each directory, by their
//! numbers: how a volume grows.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::Instant;

/// How many files `fill` makes in each directory.
const FILES_PER_DIRECTORY: u64 = 1000;

/// What is done to each file.
type Operation<'a> = dyn Fn(&Path) -> io::Result<()> + Sync + 'a;

const USAGE: &str = "usage: meta DIRECTORY THREADS FILES BYTES\n       \
                     meta fill DIRECTORY FIRST COUNT BYTES";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["fill", directory, first, count, bytes] => parse([first, count, bytes])
            .map(|[first, count, bytes]| fill(Path::new(directory), first, count, bytes)),
        [directory, threads, files, bytes] => parse([threads, files, bytes])
            .filter(|&[threads, ..]| threads > 0)
            .map(|[threads, files, bytes]| measure(Path::new(directory), threads, files, bytes)),
        _ => None,
    };
    match done {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(words: [&&str; 3]) -> Option<[u64; 3]> {
    let mut numbers = [0; 3];
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = word.parse().ok()?;
    }
    Some(numbers)
}

/// All phases, and what they say.
fn measure(directory: &Path, threads: u64, files: u64, bytes: u64) -> io::Result<()> {
    let each = files.div_ceil(threads);
    for thread in 0..threads {
        fs::create_dir(directory.join(format!("thread-{thread}")))?;
    }
    let content = vec![0x5a; bytes as usize];
    let create = |path: &Path| write_new(path, &content);
    let stat = |path: &Path| fs::metadata(path).map(drop);
    let unlink = |path: &Path| fs::remove_file(path);
    let phases: [(&str, &Operation); 3] =
        [("create", &create), ("stat", &stat), ("unlink", &unlink)];
    for (name, operation) in phases {
        let seconds = phase(directory, threads, each, operation)?;
        println!("{name} {:.3}", (each * threads) as f64 / seconds);
    }
    Ok(())
}

/// Does one operation on all files, by all threads; returns the seconds from when the first starts to
/// when the last has done. The threads look at the clock themselves: on a busy machine this one may
/// wake up when they have done.
fn phase(directory: &Path, threads: u64, each: u64, operation: &Operation) -> io::Result<f64> {
    let together = Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let own = directory.join(format!("thread-{thread}"));
                // Names are made before the clock runs.
                let paths: Vec<PathBuf> = (0..each).map(|i| own.join(format!("f{i:07}"))).collect();
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    let start = Instant::now();
                    paths.iter().try_for_each(|path| operation(path))?;
                    io::Result::Ok((start, Instant::now()))
                })
            })
            .collect();
        let mut span: Option<(Instant, Instant)> = None;
        for worker in workers {
            let (start, end) =
                worker.join().map_err(|_| io::Error::other("a thread panicked"))??;
            span = Some(span.map_or((start, end), |(s, e)| (s.min(start), e.max(end))));
        }
        Ok(span.map_or(0.0, |(start, end)| (end - start).as_secs_f64()))
    })
}

/// Makes the files of those numbers.
fn fill(directory: &Path, first: u64, count: u64, bytes: u64) -> io::Result<()> {
    let content = vec![0x5a; bytes as usize];
    for number in first..first + count {
        let parent = directory.join(format!("d{:06}", number / FILES_PER_DIRECTORY));
        if number == first || number % FILES_PER_DIRECTORY == 0 {
            fs::create_dir_all(&parent)?;
        }
        write_new(&parent.join(format!("f{number:09}")), &content)?;
    }
    Ok(())
}

/// A new file with a content.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(named)?;
    file.write_all(content).map_err(named)
}
