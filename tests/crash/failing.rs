//! Syncs that fail: each sync of a script in turn, with everything that it should have made durable
//! kept, lost or torn. The operation that needed it says so; what was acknowledged before is there
//! after every crash, and nothing is acknowledged afterwards that is not.

use crate::check::{Dear, check};
use crate::harness::{Explored, Settings, explore, replay_line};
use crate::matrix::{is_full, on_all_processors};
use crate::script::{Op, Recording, Script, record};
use crate::seam::{FailSync, Seam};
use crate::{applications, scripts};
use atrest::storage::sim::Fate;

/// Images that a run must explore at least.
const IMAGES_MIN: usize = 2_000;

/// Runs a script with a sync that fails; `None` if there are not so many syncs.
///
/// # Errors
/// If the operation that needed it reports nothing.
pub fn record_failing(
    script: &Script,
    seam: impl FnOnce(std::sync::Arc<atrest::storage::sim::SimDisk>) -> Seam,
) -> Result<Option<Recording>, String> {
    let script = Script { may_fail: true, ..script.clone() };
    let recording = record(&script, seam)?;
    let Some(step) = recording.fault_at else { return Ok(None) };
    match recording.steps.get(step) {
        Some(step) if step.error.is_none() => Err(format!(
            "{}: {:?} says that it succeeded, but its sync failed",
            script.name, step.op
        )),
        _ => Ok(Some(recording)),
    }
}

/// Every sync of a script fails once, with one fate of three, or with each.
pub fn explore_failing(
    script: &Script,
    settings: &Settings,
    fates: &[Fate],
    line: Option<&str>,
) -> Result<Explored, String> {
    let mut explored = Explored::default();
    for after in 0.. {
        let of_turn = [fates[after as usize % fates.len()]];
        let fates = if is_full() { fates } else { &of_turn };
        for (number, &fate) in fates.iter().enumerate() {
            let fail = FailSync { after, fate };
            let Some(recording) = record_failing(script, |disk| Seam::failing(disk, fail))? else {
                return Ok(explored);
            };
            let name = format!("{}-sync-{after}-fails-{number}", script.name);
            let settings = Settings { name, ..settings.clone() };
            let dear = Dear { nested: 0, ..Dear::default() };
            let replay = recording.replay.clone();
            let checked = explore(
                &settings,
                replay,
                |crash, image| check(&recording, dear, crash, image),
                line,
            );
            explored.add(checked?);
        }
    }
    Ok(explored)
}

#[test]
fn nothing_is_lost_or_acknowledged_after_a_failed_sync() {
    let line = replay_line();
    let mut all = scripts::all_scripts();
    all.extend(applications::all_scripts());
    // What is done while an epoch ends does not answer for the syncs of that.
    let nested = |script: &Script| script.ops.iter().any(|op| matches!(op, Op::EpochEndAround(..)));
    all.retain(|script| script.ops.len() < 40 && !script.name.contains("large") && !nested(script));
    let settings = Settings { samples: 4, quota: 2, tears: 1, ..Settings::new("") };
    let settings = if is_full() { Settings { quota: 12, ..settings } } else { settings };
    let fates = [Fate::Lost, Fate::Torn(7), Fate::Kept];
    let (explored, failures) = on_all_processors(&all, &|script| {
        explore_failing(script, &settings, &fates, line.as_deref())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    println!("failed syncs: {} images at {} points", explored.images, explored.points);
    assert!(line.is_some() || explored.images >= IMAGES_MIN, "{explored:?}");
}
