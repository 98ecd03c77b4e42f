//! What was acknowledged and cannot be written when a mount is locked.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::mounted::{Mounted, is_root};

/// A small filesystem in memory; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Self {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "none"]).arg(at).status();
        assert!(mounted.unwrap().success(), "root may mount a tmpfs");
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The disk below is full, and the kernel still has something to write back: locking ends in its
/// time, with the code for what is not durable, names the file by its path, and what was synced
/// before is there when the volume is unlocked.
#[test]
fn files_are_named_when_the_disk_is_full() {
    if !Mounted::new().is_atrest() {
        return;
    }
    if !is_root() {
        return eprintln!("skipped: only root may mount a small disk");
    }
    // On a busy machine the kernel may write back before the disk is full: then nothing is lost.
    assert!((0..10).any(|_| a_file_is_lost_and_named()), "the kernel never kept anything");
}

fn a_file_is_lost_and_named() -> bool {
    let mounted = Mounted::new();
    mounted.unmount();
    let volume = mounted.volume();
    fs::remove_dir_all(&volume).unwrap();
    fs::create_dir(&volume).unwrap();
    let _small = Small::mount(&volume);
    assert_eq!(mounted.exit_code(&["init".as_ref(), volume.as_ref()]), 0, "{}", mounted.log_text());
    mounted.mount_again();
    fs::create_dir(mounted.join("directory")).unwrap();
    let kept = mounted.join("directory/kept");
    fs::write(&kept, vec![1; 300_000]).unwrap();
    File::open(&kept).unwrap().sync_all().unwrap();

    let mut victim = File::create(mounted.join("directory/victim")).unwrap();
    victim.write_all(&vec![2; 12 << 20]).unwrap();
    // Somebody else takes all of the disk, to the last page.
    let mut other = File::create(volume.join("somebody-else")).unwrap();
    while other.write_all(&[0; 4096]).is_ok() {}
    let begun = Instant::now();
    let code = mounted.exit_code(&["lock".as_ref(), mounted.path().as_os_str()]);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let log = mounted.log_text();
    assert!(matches!(code, 0 | 52), "{code}: {log}");
    let is_lost = code == 52;
    assert_eq!(log.contains("may be lost: /directory/victim"), is_lost, "{log}");
    assert!(!log.contains("may be lost: /directory/kept"), "{log}");
    fs::remove_file(volume.join("somebody-else")).unwrap();
    let unlocked = mounted.exit_code(&["unlock".as_ref(), mounted.path().as_os_str()]);
    assert_eq!(unlocked, 0, "{}", mounted.log_text());
    assert!(fs::read(&kept).unwrap() == vec![1; 300_000]);
    let is_whole = || fs::read(mounted.join("directory/victim")).unwrap() == vec![2; 12 << 20];
    assert!(is_lost || is_whole(), "a lost file was not named: {log}");
    drop(victim);
    mounted.unmount();
    is_lost
}
