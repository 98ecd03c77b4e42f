//! The matrix bites: a list of deliberate defects, of the storage and of the engine, each of which
//! has to be caught by a script that is named beside it.

use crate::check::{Dear, check};
use crate::failing::record_failing;
use crate::harness::{Settings, explore};
use crate::matrix::all_written;
use crate::script::{Script, record};
use crate::seam::{Class, FailSync, Seam, Wrong};
use atrest::storage::sim::{Fate, SimDisk};
use std::sync::Arc;

/// Syncs of a script that are made to fail, one after the other, at most.
const SYNCS_MAX: u64 = 12;

/// Explores a script with something wrong; `Err` says how it was caught.
fn explore_wrong(script: &Script, seam: impl FnOnce(Arc<SimDisk>) -> Seam) -> Result<(), String> {
    let recording = record(script, seam)?;
    let settings = Settings { samples: 40, quota: 40, tears: 1, ..Settings::new(&*script.name) };
    let dear = Dear { again: 2, go_on: 4, nested: 40 };
    let replay = recording.replay.clone();
    explore(&settings, replay, |crash, image| check(&recording, dear, crash, image), None)?;
    Ok(())
}

/// Explores a script of which each sync in turn fails, with something wrong beside.
fn explore_failing(
    script: &Script,
    seam: impl Fn(Arc<SimDisk>, FailSync) -> Seam,
) -> Result<(), String> {
    for after in 0..SYNCS_MAX {
        let fail = FailSync { after, fate: Fate::Lost };
        let Some(recording) = record_failing(script, |disk| seam(disk, fail))? else { break };
        let settings =
            Settings { samples: 20, quota: 20, tears: 1, ..Settings::new(&*script.name) };
        let replay = recording.replay.clone();
        let dear = Dear { again: 4, go_on: 0, nested: 0 };
        explore(&settings, replay, |crash, image| check(&recording, dear, crash, image), None)?;
    }
    Ok(())
}

fn script(name: &str) -> Script {
    let found = all_written().into_iter().find(|script| script.name == name);
    found.unwrap_or_else(|| panic!("there is no script {name}"))
}

/// Explores each script until one catches it; the first line of how.
fn caught(names: &[&str], explore: impl Fn(&Script) -> Result<(), String>) -> Option<String> {
    names.iter().find_map(|name| {
        let report = explore(&script(name)).err()?;
        let line = report.lines().next().unwrap_or_default();
        Some(format!("{name}: {}", line.chars().take(160).collect::<String>()))
    })
}

/// Says what caught each defect, and fails if one was not.
fn judge(caught: Vec<(String, Option<String>)>) {
    for (defect, how) in &caught {
        println!("{defect}: {}", how.as_deref().unwrap_or("NOT CAUGHT"));
    }
    let missed: Vec<&String> =
        caught.iter().filter(|(_, how)| how.is_none()).map(|(defect, _)| defect).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// What the storage may do wrongly, and which scripts catch it.
fn wrongs() -> Vec<(Wrong, &'static [&'static str])> {
    let data = &["overwrite_across_pages_and_chunks", "two_files_race_for_freed_slots"];
    let epochs = &["two_files_race_for_freed_slots", "unlink_and_reuse_of_space"];
    let logged = &["append", "create_write_fsync"];
    vec![
        (Wrong::NoSync(Class::Data), data),
        (Wrong::NoSync(Class::NodeA), epochs),
        (Wrong::NoSync(Class::NodeB), epochs),
        (Wrong::NoSync(Class::Superblock), epochs),
        (Wrong::NoSync(Class::Log), logged),
        (Wrong::NoDirectorySync, &["segment_is_emptied"]),
        (Wrong::SyncBehindSuperblock(Class::Data), data),
        (Wrong::SyncBehindSuperblock(Class::NodeA), epochs),
        (Wrong::SyncBehindSuperblock(Class::NodeB), epochs),
        (Wrong::DropWrite(Class::NodeA, 2), epochs),
        (Wrong::DropWrite(Class::Data, 3), data),
        (Wrong::DropWrite(Class::Superblock, 2), epochs),
        (Wrong::HalfWrite(Class::NodeB, 2), epochs),
        (Wrong::HalfWrite(Class::Log, 4), logged),
        (Wrong::WriteBehindSync(Class::Log), logged),
        (Wrong::WriteBehindSync(Class::Superblock), epochs),
        (Wrong::ConfigBehindSuperblock, &["key_rotation"]),
        (Wrong::NoConfig, &["key_rotation"]),
    ]
}

#[test]
fn storage_that_does_wrong_is_caught() {
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    for (wrong, names) in wrongs() {
        let explore = |script: &Script| explore_wrong(script, |d| Seam::doing_wrong(d, wrong));
        found.push((format!("{wrong:?}"), caught(names, explore)));
    }
    let names = ["append", "overwrite_across_pages_and_chunks"];
    let hiding = |script: &Script| explore_failing(script, Seam::hiding);
    found.push(("HideFailure".into(), caught(&names, hiding)));
    judge(found);
}

/// The same explorations find nothing where nothing is wrong.
#[test]
fn nothing_wrong_is_not_caught() {
    let mut names: Vec<&str> = wrongs().into_iter().flat_map(|(_, names)| names).copied().collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        explore_wrong(&script(name), Seam::new).unwrap_or_else(|report| panic!("{report}"));
    }
}

#[cfg(not(feature = "defects"))]
#[test]
fn defects_of_the_engine_are_caught() {
    println!("skipped: built without the feature defects; `--all-features` has it");
}

#[cfg(feature = "defects")]
mod engine {
    use super::*;
    use atrest::defect::{self, Defect};

    /// What the engine may do wrongly, and which scripts catch it.
    fn defects() -> Vec<(Defect, &'static [&'static str])> {
        let epochs = &["two_files_race_for_freed_slots", "unlink_and_reuse_of_space"];
        let logged = &["append", "create_write_fsync"];
        let large = &["overwrite_across_pages_and_chunks", "fsync_of_much_beside_little"];
        let names = &["rename_over", "link_and_unlink"];
        let around = &["fsync_while_an_epoch_ends", "fsync_while_an_epoch_begins_to_end"];
        vec![
            (Defect::OverwriteNewest, epochs),
            (Defect::SuperblockFirst, epochs),
            (Defect::OpenOlder, epochs),
            (Defect::ReuseAfterOneEpoch, epochs),
            (Defect::ForgetCounters, names),
            (Defect::ForgetDelta, epochs),
            (Defect::NoAnnouncement, &["key_rotation"]),
            (Defect::AnnounceOnce, &["key_rotation"]),
            (Defect::StaleLogStart, epochs),
            (Defect::ChangeNotLogged, names),
            (Defect::SplitChange, names),
            (Defect::SizeBeforeContent, logged),
            (Defect::MarkBeforePages, large),
            (Defect::NoImages, logged),
            (Defect::OnlyLastPages, large),
            (Defect::NoFlush, logged),
            (Defect::IgnoreGap, &["log_overflows", "log_goes_round"]),
            (Defect::SealForgetsPages, around),
            (Defect::StopAtSealed, around),
            (Defect::BelievePages, logged),
            (Defect::KeepImages, logged),
            (Defect::ReplayedFree, logged),
            (Defect::ReplayedUnsynced, logged),
        ]
    }

    /// Defects are set for a thread.
    fn with<T>(defect: Defect, run: impl FnOnce() -> T) -> T {
        defect::set(Some(defect));
        let result = run();
        defect::set(None);
        result
    }

    #[test]
    fn defects_of_the_engine_are_caught() {
        let mut found: Vec<(String, Option<String>)> = Vec::new();
        for (defect, names) in defects() {
            let explore = |script: &Script| with(defect, || explore_wrong(script, Seam::new));
            found.push((format!("{defect:?}"), caught(names, explore)));
        }
        let names = ["overwrite_across_pages_and_chunks", "append"];
        let failing =
            |script: &Script| with(Defect::NoPoison, || explore_failing(script, Seam::failing));
        found.push(("NoPoison".into(), caught(&names, failing)));
        let storage = wrongs().len() + 1;
        assert!(found.len() + storage >= 25, "{} defects", found.len() + storage);
        judge(found);
    }
}
