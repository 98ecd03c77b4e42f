//! `atrest fsck`

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use super::args::FsckArgs;
use super::exit::Exit;
use super::hint::Failure;
use super::{keys, open, place, salvage};
use crate::volume::Volume;
use crate::volume::check::{CheckOptions, CheckReport, FINDINGS_MAX, Progress, Severity, Stage};

/// Checks a volume that is not mounted, prints what is wrong, and returns the exit code. Writes
/// nothing to the volume.
///
/// # Errors
/// Everything that keeps the volume from being opened, or what can be saved from being saved.
pub fn run(arguments: &FsckArgs) -> Result<u8, Failure> {
    let path = place::volume(&arguments.volume)?;
    let options = keys::provider_options(&arguments.keys);
    let how =
        open::How { command: "fsck", mountpoint: None, read_only: true, allow_rollback: true };
    let opened = open::open(&path, &options, how).map_err(|failure| match failure.exit {
        // What opening advises is this command.
        Exit::VolumeDamaged => Failure::new(failure.exit, failure.message)
            .hint("Nothing in it can be read without that: restore it from a backup."),
        _ => failure,
    })?;
    let volume = opened.control.volume();
    let report = check(volume, CheckOptions { deep: arguments.deep });
    if arguments.json {
        let text = serde_json::to_string_pretty(&report);
        println!("{}", text.expect("a report has string keys only"));
    } else {
        print(&path, &report);
    }
    if let Some(target) = &arguments.salvage {
        let saved = salvage::salvage(volume, target)?;
        saved.problems.iter().for_each(|problem| eprintln!("{problem}"));
        eprintln!(
            "saved {} files, {} bytes; {} problems, {} bytes could not be read",
            saved.files,
            saved.bytes,
            saved.problems.len(),
            saved.bytes_lost
        );
    }
    if report.is_clean() {
        return Ok(0);
    }
    eprintln!("{}", verdict(&path, arguments, &report));
    Ok(Exit::DamageFound as u8)
}

/// Checks, with a bar on a terminal.
fn check(volume: &Volume, options: CheckOptions) -> CheckReport {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {bar:30} {percent}% {elapsed}, {eta} left");
    bar.set_style(style.expect("a constant template"));
    let report = volume.check(options, &|Progress { stage, done, total }| {
        bar.set_message(match stage {
            Stage::Metadata => "metadata",
            Stage::Contents => "contents",
            Stage::Paths => "paths",
        });
        bar.set_length(total.max(done));
        bar.set_position(done);
    });
    bar.finish_and_clear();
    report
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
fn verdict(path: &Path, arguments: &FsckArgs, report: &CheckReport) -> Failure {
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
            "Contradictions are a defect of the program or of memory, not of the disk: copy what \
             is there to a new volume, and report them.",
        );
    }
    if healable > 0 {
        failure = failure.hint("Damaged copies are restored when the volume is mounted and read.");
    }
    failure
}
