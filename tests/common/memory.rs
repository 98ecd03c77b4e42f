//! What a process has in its memory. Only root may look.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use atrest::storage::{Holder, VolumeLock};

/// Memory is read in parts of so many bytes.
const PART_BYTES: usize = 4 << 20;

/// What must not be found, with a name for messages.
pub struct Needle {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

/// Which needles are in the memory of a process, and where. The text of a needle's search is in
/// this process, not in that one.
pub fn found(process: u32, needles: &[Needle]) -> Vec<String> {
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut found = Vec::new();
    let mut part = vec![0; PART_BYTES];
    for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with('r')) {
        let (range, _) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [mut at, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        while at < to {
            let wanted = (to - at).min(PART_BYTES as u64) as usize;
            // What cannot be read (vvar) is the kernel's.
            let Ok(got) = memory.read_at(&mut part[..wanted], at) else { break };
            let bytes = &part[..got];
            for needle in needles {
                let first = needle.bytes[0];
                let mut rest = bytes;
                while let Some(next) = rest.iter().position(|byte| *byte == first) {
                    if rest[next..].starts_with(&needle.bytes) {
                        found.push(format!("{} in {line}", needle.name));
                    }
                    rest = &rest[next + 1..];
                }
            }
            if got < wanted || at + got as u64 == to {
                break;
            }
            // One that lies across the border is found the next time.
            at += got as u64 - 64;
        }
    }
    found
}

/// The process that serves a volume.
pub fn daemon_of(volume: &Path) -> u32 {
    match VolumeLock::holder(volume).unwrap() {
        Holder::Known(info) => info.pid,
        _ => panic!("nobody has the volume"),
    }
}
