//! Runs a script once on a simulated disk and records its operations. Then, for every prefix of the
//! recording and for every assignment of {kept, lost, torn} to what waits for a sync there, builds
//! the disk that a power cut would leave and hands it to a checker.
//!
//! All assignments if there are few, else a sample; seeds are printed. A failure prints the one
//! line that reruns just that image:
//! `ATREST_REPLAY='name crash_at=12 choice=KLT seed=7' cargo test --test crash`.
//! `ATREST_SEED=n` explores other tears and samples. Scripts must do the same operations in every
//! run; the bytes may differ.

use atrest::storage::FileId;
use atrest::storage::sim::{Change, Fate, Operation, Pending, Random, Replay, SimDisk};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How much to explore.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names the script in what is printed; no spaces.
    pub name: String,
    /// Up to so many pending changes all assignments are tried: 3^n images for each prefix.
    pub exhaustive_max: usize,
    /// Where there are more, so many assignments for each prefix are.
    pub samples: usize,
    /// So many different tears of an assignment in which something is torn.
    pub tears: usize,
    /// Of what is due at a prefix so many are drawn at most, for runs that must be short.
    pub quota: usize,
}

impl Settings {
    /// Up to 6 pending changes exhaustively, 40 samples where there are more, each with 2 tears.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), exhaustive_max: 6, samples: 40, tears: 2, quota: usize::MAX }
    }
}

/// Where the machine crashed, for the checker.
pub struct Crash<'a> {
    /// How many operations (and marks) of the script were done.
    pub at: usize,
    /// The marks that the script had made, oldest first; see [`SimDisk::mark`].
    pub marks: &'a [u64],
    /// A number drawn from the image's line: the same whenever it is checked again. For checks
    /// that are too dear for every image.
    pub lot: u64,
}

/// What was explored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Prefixes of the script.
    pub points: usize,
    /// Disks that were checked.
    pub images: usize,
}

impl Explored {
    /// Adds what another exploration looked at.
    pub fn add(&mut self, other: Self) {
        self.points += other.points;
        self.images += other.images;
    }
}

/// Seed of samples and tears: `ATREST_SEED`, else 1.
pub fn base_seed() -> u64 {
    std::env::var("ATREST_SEED").map_or(1, |seed| seed.parse().expect("ATREST_SEED is a number"))
}

/// The line that names one image, if the run is about just that.
pub fn replay_line() -> Option<String> {
    std::env::var("ATREST_REPLAY").ok()
}

/// Runs `script` on an empty disk, then `check` on every image; see the top of this file.
///
/// Panics if a check fails or panics, and if nothing was there to explore.
pub fn enumerate(
    settings: &Settings,
    script: impl FnOnce(&Arc<SimDisk>),
    check: impl Fn(&Crash, Arc<SimDisk>) -> Result<(), String>,
) -> Explored {
    let disk = Arc::new(SimDisk::new());
    script(&disk);
    let line = replay_line();
    let found = explore(settings, disk.replay(), check, line.as_deref());
    let explored = found.unwrap_or_else(|report| panic!("{report}"));
    assert!(line.is_some() || explored.images > 0, "{}: nothing was explored", settings.name);
    let Explored { points, images } = explored;
    println!("{}: {images} images at {points} points, seed {}", settings.name, base_seed());
    explored
}

/// Explores a recording, or just the image that `line` names, as `ATREST_REPLAY` would. `Err` is
/// the report of the first image whose check failed.
pub fn explore(
    settings: &Settings,
    mut replay: Replay,
    check: impl Fn(&Crash, Arc<SimDisk>) -> Result<(), String>,
    line: Option<&str>,
) -> Result<Explored, String> {
    let mut explored = Explored::default();
    let only = line.map(|line| Case::parse(&settings.name, line));
    if let Some(None) = only {
        return Ok(explored);
    }
    let only = only.flatten();
    let base_seed = base_seed();
    let mut newest = None;
    loop {
        let at = replay.position();
        let pending = replay.pending();
        let cases = match &only {
            Some(case) if case.at == at => vec![case.clone()],
            Some(_) => Vec::new(),
            None => {
                let seed = base_seed + at as u64;
                cases(settings, at, &pending, newest.and_then(|new| index_of(&pending, new)), seed)
            }
        };
        explored.points += usize::from(!cases.is_empty());
        for case in cases {
            explored.images += 1;
            run(&settings.name, &case, &replay, &pending, &check)?;
        }
        newest = match replay.step() {
            Some(Operation::Change(change)) => Some(place_of(change)),
            Some(_) => None,
            None => return Ok(explored),
        };
    }
}

/// One image: a crash point and what becomes of each change that is pending there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    at: usize,
    /// A letter for each pending change: kept, lost or torn.
    choice: String,
    /// Seed of the tears.
    seed: u64,
}

impl Case {
    fn fates(&self) -> impl Iterator<Item = Fate> + '_ {
        let mut seeds = Random::new(self.seed);
        self.choice.chars().map(move |letter| {
            let seed = seeds.next();
            match letter {
                'K' => Fate::Kept,
                'L' => Fate::Lost,
                'T' => Fate::Torn(seed),
                other => panic!("{other:?} is none of K, L and T"),
            }
        })
    }

    /// A number that depends on everything that makes the image what it is.
    fn lot(&self) -> u64 {
        let mixed = self.choice.bytes().fold(self.seed ^ self.at as u64, |mixed, letter| {
            mixed.wrapping_mul(31).wrapping_add(u64::from(letter))
        });
        Random::new(mixed).next()
    }

    /// Reads what a failure printed; `None` if it is about another script.
    fn parse(name: &str, line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let about = words.next().expect("ATREST_REPLAY starts with a name");
        let mut value = |key: &str| {
            let word = words.next().unwrap_or_else(|| panic!("ATREST_REPLAY lacks {key}"));
            word.strip_prefix(key).unwrap_or_else(|| panic!("{word} is not {key}")).to_owned()
        };
        let case = Self {
            at: value("crash_at=").parse().expect("a number"),
            choice: value("choice="),
            seed: value("seed=").parse().expect("a number"),
        };
        (about == name).then_some(case)
    }
}

/// Builds one image and checks it; `Err` is the report.
fn run(
    name: &str,
    case: &Case,
    replay: &Replay,
    pending: &[Pending],
    check: &impl Fn(&Crash, Arc<SimDisk>) -> Result<(), String>,
) -> Result<(), String> {
    let image = Arc::new(replay.after_crash(case.fates()));
    let crash = Crash { at: case.at, marks: replay.marks(), lot: case.lot() };
    let failure = match catch_unwind(AssertUnwindSafe(|| check(&crash, image))) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure)) => failure,
        Err(_) => "the check panicked, see above".to_owned(),
    };
    let Case { at, choice, seed } = case;
    let mut report = format!("{name}: {failure}\n");
    for (letter, pending) in choice.chars().zip(pending) {
        let _ = writeln!(report, "  {letter} {}", describe(pending));
    }
    let _ = writeln!(report, "  marks {:x?}", crash.marks);
    Err(format!("{report}ATREST_REPLAY='{name} crash_at={at} choice={choice} seed={seed}'"))
}

fn describe(pending: &Pending) -> String {
    match &pending.change {
        Change::Write { offset, bytes } => {
            format!("{:?} write {} bytes at {offset}", pending.file, bytes.len())
        }
        other => format!("{:?} {other:?}", pending.file),
    }
}

/// Which file a change concerns, and whether its name or its content.
fn place_of(pending: &Pending) -> (FileId, bool) {
    (pending.file, matches!(pending.change, Change::Create | Change::Delete))
}

fn index_of(pending: &[Pending], place: (FileId, bool)) -> Option<usize> {
    pending.iter().rposition(|other| place_of(other) == place)
}

/// The assignments to try at one crash point. `newest` is the change that was made just before it:
/// images in which that is lost were looked at one point earlier.
fn cases(
    settings: &Settings,
    at: usize,
    pending: &[Pending],
    newest: Option<usize>,
    seed: u64,
) -> Vec<Case> {
    let random = &mut Random::new(seed);
    let letters: Vec<&[u8]> = (0..pending.len())
        .map(|index| letters_of(pending[index].change.can_tear(), newest == Some(index)))
        .collect();
    let mut choices: Vec<String> = if pending.len() <= settings.exhaustive_max {
        product(&letters)
    } else {
        (0..settings.samples).map(|sample| sampled(&letters, sample, random)).collect()
    };
    choices.sort_unstable();
    choices.dedup();
    let mut case = |choice: &String| Case { at, choice: choice.clone(), seed: random.next() >> 32 };
    let tears = |choice: &String| if choice.contains('T') { settings.tears } else { 1 };
    let mut cases: Vec<Case> =
        choices.iter().flat_map(|c| (0..tears(c)).map(|_| case(c)).collect::<Vec<_>>()).collect();
    // A draw without replacement: those that stay are the first so many of a shuffle.
    let kept = settings.quota.min(cases.len());
    if kept < cases.len() {
        for index in 0..kept {
            let other = index + random.below((cases.len() - index) as u64) as usize;
            cases.swap(index, other);
        }
        cases.truncate(kept);
    }
    cases
}

fn letters_of(can_tear: bool, newest: bool) -> &'static [u8] {
    match (can_tear, newest) {
        (true, false) => b"KLT",
        (true, true) => b"KT",
        (false, false) => b"KL",
        (false, true) => b"K",
    }
}

/// All strings with one of the letters of each place in that place.
fn product(letters: &[&[u8]]) -> Vec<String> {
    letters.iter().fold(vec![String::new()], |strings, letters| {
        let longer = |string: &String| {
            letters.iter().map(move |l| format!("{string}{}", char::from(*l))).collect::<Vec<_>>()
        };
        strings.iter().flat_map(longer).collect()
    })
}

/// One assignment out of many. Defects show where one thing is missing that others rely on, or is
/// there before what it relies on, so the samples lean to such images: all alike, one unlike the
/// rest, an ordered prefix, or each drawn on its own.
fn sampled(letters: &[&[u8]], sample: usize, random: &mut Random) -> String {
    let count = letters.len();
    let wanted: Vec<u8> = match sample {
        0 => vec![b'K'; count],
        1 => vec![b'L'; count],
        2 => vec![b'T'; count],
        _ => {
            let pivot = random.below(count as u64) as usize;
            let odd = b"LT"[random.below(2) as usize];
            match random.below(4) {
                0 => (0..count).map(|index| if index == pivot { odd } else { b'K' }).collect(),
                1 => (0..count).map(|index| if index == pivot { b'K' } else { b'L' }).collect(),
                2 => (0..count).map(|index| if index <= pivot { b'K' } else { odd }).collect(),
                _ => (0..count).map(|_| b"KLT"[random.below(3) as usize]).collect(),
            }
        }
    };
    let possible = |(wanted, letters): (u8, &&[u8])| {
        char::from(if letters.contains(&wanted) { wanted } else { letters[0] })
    };
    wanted.into_iter().zip(letters).map(possible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(count: usize) -> Vec<Pending> {
        let write = |offset| Change::Write { offset, bytes: Arc::from([1_u8]) };
        (0..count as u64)
            .map(|offset| Pending { file: FileId::Log, change: write(offset) })
            .collect()
    }

    #[test]
    fn few_changes_are_combined_in_all_ways_and_each_once() {
        let settings = Settings { tears: 1, ..Settings::new("few") };
        assert_eq!(cases(&settings, 0, &pending(0), None, 1).len(), 1);
        assert_eq!(cases(&settings, 0, &pending(4), None, 1).len(), 81);
        assert_eq!(cases(&settings, 0, &pending(4), Some(3), 1).len(), 54);
        let mut with_name = pending(2);
        with_name[0].change = Change::Create;
        assert_eq!(cases(&settings, 0, &with_name, None, 1).len(), 6);
        let twice = Settings::new("twice");
        assert_eq!(cases(&twice, 0, &pending(1), None, 1).len(), 4);
        let few = Settings { quota: 10, ..Settings::new("quota") };
        assert_eq!(cases(&few, 0, &pending(1), None, 1).len(), 4);
        let drawn = cases(&few, 0, &pending(4), None, 1);
        let distinct: std::collections::BTreeSet<_> = drawn.iter().map(Case::lot).collect();
        assert_eq!((drawn.len(), distinct.len()), (10, 10));
    }

    #[test]
    fn samples_of_many_changes_differ_and_repeat_with_their_seed() {
        let settings = Settings::new("many");
        let sampled = cases(&settings, 0, &pending(30), None, 1);
        assert!(sampled.len() > settings.samples / 2);
        assert_eq!(sampled, cases(&settings, 0, &pending(30), None, 1));
        assert_ne!(sampled, cases(&settings, 0, &pending(30), None, 2));
    }

    #[test]
    fn printed_line_leads_to_the_same_case() {
        let case = Case { at: 12, choice: "KLT".to_owned(), seed: 7 };
        let line = "toy crash_at=12 choice=KLT seed=7";
        assert_eq!(Case::parse("toy", line).as_ref(), Some(&case));
        assert_eq!(Case::parse("other", line), None);
        assert_eq!(case.fates().collect::<Vec<_>>(), case.fates().collect::<Vec<_>>());
    }
}
