//! `atrest fsck`

use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::FsckArgs;
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::open::Unlocked;
use super::{audit, keys, open, place, salvage};
use crate::storage::Shadow;
use crate::volume::Volume;
use crate::volume::check::{CheckOptions, CheckReport, FINDINGS_MAX, Progress, Severity, Stage};
use crate::volume::repair::{RepairError, RepairOptions, RepairReport};

/// Checks a volume that is not mounted, prints what is wrong and what a repair would do about it,
/// or repairs it, and returns the exit code. Writes to the volume only with `--repair`.
///
/// # Errors
/// Everything that keeps the volume from being opened, what can be saved from being saved, or the
/// volume from being repaired.
pub fn run(arguments: &FsckArgs) -> Result<u8, Failure> {
    let path = place::volume(&arguments.volume)?;
    let options = keys::provider_options(&arguments.keys);
    let audit = audit::open_for(&arguments.audit, &path)?;
    let unlocked =
        open::unlock(&path, &options, ("fsck", &audit), arguments.repair).map_err(hopeless)?;
    let volume = unlocked.open(unlocked.storage.clone(), false).map_err(hopeless)?;
    let deep = arguments.deep || arguments.repair;
    let report = with_bar(|progress| volume.check(CheckOptions { deep }, progress));
    if !arguments.json {
        print(&path, &report);
    }
    if report.is_clean() {
        print_json(arguments, &report, None);
        save_all(arguments, &volume)?;
        return Ok(0);
    }
    if arguments.repair {
        drop(volume);
        return repair(&path, arguments, &unlocked, &report);
    }
    let shadow = Arc::new(Shadow::new(unlocked.storage.clone()));
    let shadowed = unlocked.open(shadow, true).map_err(hopeless)?;
    let planned =
        with_bar(|progress| shadowed.repair(RepairOptions { deep }, progress, &mut |_, _| false));
    print_json(arguments, &report, planned.as_ref().ok());
    match &planned {
        Ok(plan) if !arguments.json => print_plan(plan),
        Ok(_) => {}
        Err(error) => eprintln!("{}", unrepaired(&path, error)),
    }
    save_all(arguments, &volume)?;
    eprintln!("{}", verdict(&path, arguments, &report, planned.is_ok()));
    Ok(Exit::DamageFound as u8)
}

/// Repairs a damaged volume, after saving what is asked for, and checks it once more.
fn repair(
    path: &Path,
    arguments: &FsckArgs,
    unlocked: &Unlocked,
    found: &CheckReport,
) -> Result<u8, Failure> {
    let volume = unlocked.open(unlocked.storage.clone(), true).map_err(hopeless)?;
    let mut failed = None;
    let repaired = with_bar(|progress| {
        volume.repair(RepairOptions { deep: true }, progress, &mut |plan, repaired| {
            if !arguments.json {
                println!("Repairing changes this:");
                plan.actions.iter().for_each(|action| println!("  {action}"));
            }
            failed = save_damaged(arguments, plan, repaired).err();
            failed.is_none()
        })
    });
    if let Some(failure) = failed {
        return Err(failure.hint("Nothing was repaired: what is damaged is to be saved first."));
    }
    let repaired = repaired.map_err(|error| unrepaired(path, &error))?;
    print_json(arguments, found, Some(&repaired));
    drop(volume);
    let volume = unlocked.open(unlocked.storage.clone(), false).map_err(hopeless)?;
    // Contents were read when the repair was tried out, before it was made.
    let after = with_bar(|progress| volume.check(CheckOptions { deep: false }, progress));
    if !after.is_clean() {
        after.findings.iter().for_each(|finding| eprintln!("{finding}"));
        let message = format!("{} is still damaged after the repair", path.display());
        return Err(Failure::new(Exit::DamageFound, message).hint("This is a defect: report it."));
    }
    let lost = repaired.damaged_files().len();
    eprintln!("{} is repaired and sound; files that lost content: {lost}", path.display());
    Ok(Exit::DamageRepaired as u8)
}

/// What opening advises is this command.
fn hopeless(failure: Failure) -> Failure {
    match failure.exit {
        Exit::VolumeDamaged => Failure::new(failure.exit, failure.message)
            .hint("Nothing in it can be read without that: restore it from a backup."),
        _ => failure,
    }
}

/// Why a volume is not repaired.
fn unrepaired(path: &Path, error: &RepairError) -> Failure {
    let message = format!("{} cannot be repaired: {}", path.display(), chain(error));
    match error {
        _ if error.is_no_space() => Failure::new(Exit::NoSpace, message)
            .hint("Its metadata is written anew before the old is given up: make room for that."),
        RepairError::Failed(_) => Failure::new(Exit::VolumeDamaged, message)
            .hint("It is as it was. Copy what can be read, or restore it from a backup."),
        RepairError::NotSound(check) => {
            let first = check.findings.iter().take(10).map(ToString::to_string);
            first.fold(Failure::new(Exit::DamageFound, message), Failure::hint)
        }
    }
}

fn save_all(arguments: &FsckArgs, volume: &Volume) -> Result<(), Failure> {
    // With a repair, only damaged files are saved, and there is none.
    let Some(target) = arguments.salvage.as_ref().filter(|_| !arguments.repair) else {
        return Ok(());
    };
    say_saved(&salvage::salvage(volume, target)?);
    Ok(())
}

fn save_damaged(
    arguments: &FsckArgs,
    plan: &RepairReport,
    repaired: &Volume,
) -> Result<(), Failure> {
    let Some(target) = &arguments.salvage else { return Ok(()) };
    say_saved(&salvage::salvage_damaged(repaired, &plan.damaged_files(), target)?);
    Ok(())
}

fn say_saved(saved: &salvage::Saved) {
    saved.problems.iter().for_each(|problem| eprintln!("{problem}"));
    eprintln!(
        "saved {} files, {} bytes; {} problems, {} bytes could not be read",
        saved.files,
        saved.bytes,
        saved.problems.len(),
        saved.bytes_lost
    );
}

/// Does something that reports its progress, with a bar on a terminal.
fn with_bar<T>(work: impl FnOnce(&dyn Fn(Progress)) -> T) -> T {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {bar:30} {percent}% {elapsed}, {eta} left");
    bar.set_style(style.expect("a constant template"));
    let done = work(&|Progress { stage, done, total }| {
        bar.set_message(match stage {
            Stage::Metadata => "metadata",
            Stage::Contents => "contents",
            Stage::Paths => "paths",
        });
        bar.set_length(total.max(done));
        bar.set_position(done);
    });
    bar.finish_and_clear();
    done
}

/// The check's members, and those of a repair as one more.
fn print_json(arguments: &FsckArgs, report: &CheckReport, repair: Option<&RepairReport>) {
    if !arguments.json {
        return;
    }
    let text = match repair {
        None => serde_json::to_string_pretty(report),
        Some(repair) => {
            let mut all = json!(report);
            if let Value::Object(members) = &mut all {
                members.insert("repair".into(), json!(repair));
            }
            serde_json::to_string_pretty(&all)
        }
    };
    println!("{}", text.expect("a report has string keys only"));
}

fn print_plan(plan: &RepairReport) {
    println!("--repair would change this:");
    plan.actions.iter().for_each(|action| println!("  {action}"));
    if !plan.deep {
        println!("  and contents that do not authenticate: --deep finds them");
    }
}

fn print(path: &Path, report: &CheckReport) {
    let place = path.display();
    let CheckReport { inodes, directories, nodes, pages, pages_read, .. } = report;
    println!("{place}: {inodes} inodes, {directories} of them directories; {nodes} tree nodes");
    if report.deep {
        println!("{place}: {pages} pages of contents, {pages_read} read");
    } else {
        println!("{place}: {pages} pages of contents, not read (--deep reads them)");
    }
    if !report.unmounted_in_order {
        println!("{place}: it was not unmounted in order; that does no harm");
    }
    report.findings.iter().for_each(|finding| println!("{finding}"));
    if report.findings_omitted > 0 {
        println!("{} more findings; {FINDINGS_MAX} are shown", report.findings_omitted);
    }
    if report.is_clean() {
        println!("{place}: no damage found");
    }
}

/// What was found, and what to do about it.
fn verdict(path: &Path, arguments: &FsckArgs, report: &CheckReport, repairable: bool) -> Failure {
    let place = path.display();
    let count = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
    let (lost, inconsistent) = (count(Severity::Lost), count(Severity::Inconsistent));
    let healable = count(Severity::Healable);
    let message = format!(
        "{place} is damaged; losses: {lost}, contradictions: {inconsistent}, damaged copies of \
         something whole: {healable}"
    );
    let mut failure = Failure::new(Exit::DamageFound, message);
    if lost > 0 {
        failure = failure
            .hint("What is lost gives an I/O error; everything else can be read and written.")
            .hint("Restore the files named above from a backup.");
        if arguments.salvage.is_none() {
            failure = failure
                .hint(format!("To copy what is whole: atrest fsck --salvage DIRECTORY {place}"));
        }
    }
    if inconsistent > 0 {
        failure = failure.hint(
            "Contradictions are a defect of the program or of memory, not of the disk: please \
             report them.",
        );
    }
    if healable > 0 {
        failure = failure.hint("Damaged copies are restored when the volume is mounted and read.");
    }
    if repairable {
        failure = failure.hint(format!("To make it sound again: atrest fsck --repair {place}"));
    }
    failure
}
