//! The directory below a mount is changed while it is in use: an error for who must know, a line in
//! the log, never a hang, and what the next mount makes of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::mounted::Mounted;

/// Writes and syncs until that fails: superblocks are written in turn and once in an epoch.
fn sync_until_refused(path: &Path) -> io::Error {
    for byte in 0..100 {
        let synced = File::create(path)
            .and_then(|mut file| file.write_all(&[byte; 1_000_000]).and_then(|()| file.sync_all()));
        if let Err(error) = synced {
            return error;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("fsync believes in files that are gone");
}

fn unmount(mounted: &Mounted) -> i32 {
    mounted.exit_code(&["umount".as_ref(), mounted.path().as_os_str()])
}

/// `atrest umount` keeps mounted what it cannot make durable; umount(2) does not.
fn unmount_what_is_lost(mounted: &Mounted) {
    assert_ne!(unmount(mounted), 0, "what could not be kept is said");
    let done = Command::new("fusermount3").arg("-u").arg(mounted.path()).status();
    assert!(done.unwrap().success(), "fusermount3");
}

/// `fsync` is not answered with yes for what the next mount would not find.
#[test]
fn a_superblock_or_segment_that_is_removed_fails_the_next_sync() {
    for name in ["super.a", "super.b", "log", "data/00000000", "data/00000002"] {
        let mounted = Mounted::new();
        if !mounted.is_atrest() {
            return;
        }
        let kept = mounted.join("kept");
        fs::write(&kept, vec![7; 300_000]).unwrap();
        File::open(&kept).unwrap().sync_all().unwrap();
        let (place, aside) = (mounted.volume().join(name), mounted.volume().join("aside"));
        fs::rename(&place, &aside).unwrap();
        let error = sync_until_refused(&mounted.join("file"));
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
        let said = mounted.log_text();
        let base = name.rsplit('/').next().unwrap();
        assert!(said.contains(base) && said.contains("put it back"), "{name}: {said}");
        // Reading goes on; writing does not, and says so.
        assert!(fs::read(&kept).unwrap() == vec![7; 300_000]);
        assert_eq!(
            fs::write(mounted.join("new"), "x").unwrap_err().raw_os_error(),
            Some(libc::EIO)
        );
        fs::rename(&aside, &place).unwrap();
        unmount_what_is_lost(&mounted);
        mounted.mount_again();
        assert!(fs::read(&kept).unwrap() == vec![7; 300_000], "{name}");
        fs::write(mounted.join("new"), "x").unwrap();
        mounted.remount();
        assert_eq!(fs::read(mounted.join("new")).unwrap(), b"x");
    }
}

/// One superblock is enough; a segment of contents takes along what was in it, and says so.
#[test]
fn the_next_mount_makes_do_with_what_is_left() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    fs::write(mounted.join("large"), vec![7; 300_000]).unwrap();
    fs::write(mounted.join("small"), "inline").unwrap();
    mounted.remount();
    let volume = mounted.volume();
    fs::remove_file(volume.join("super.a")).unwrap();
    fs::remove_file(volume.join("data/00000002")).unwrap();
    // Opened before, so still readable, as any file that was removed.
    assert_eq!(fs::read(mounted.join("small")).unwrap(), b"inline");
    sync_until_refused(&mounted.join("other"));
    unmount_what_is_lost(&mounted);
    mounted.mount_again();
    assert_eq!(fs::read(mounted.join("small")).unwrap(), b"inline");
    let lost = fs::read(mounted.join("large")).unwrap_err();
    assert_eq!(lost.raw_os_error(), Some(libc::EIO));
    assert!(mounted.log_text().contains("large"), "the log names what is lost");
    fs::write(mounted.join("large"), "again").unwrap();
    mounted.remount();
    assert_eq!(fs::read(mounted.join("large")).unwrap(), b"again");
}

#[test]
fn foreign_files_are_left_alone() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let volume = mounted.volume();
    let foreign = ["notes.txt", "data/notes.txt", "data/1", "data/0000000x", "data/.hidden"];
    for name in foreign {
        fs::write(volume.join(name), name).unwrap();
    }
    fs::create_dir(volume.join("data/00000019")).unwrap();
    fs::create_dir(volume.join("lost+found")).unwrap();
    fs::write(mounted.join("file"), vec![1; 200_000]).unwrap();
    File::open(mounted.join("file")).unwrap().sync_all().unwrap();
    mounted.remount();
    assert!(fs::read(mounted.join("file")).unwrap() == vec![1; 200_000]);
    for name in foreign {
        assert_eq!(fs::read(volume.join(name)).unwrap(), name.as_bytes());
    }
}

/// A place that a new segment needs is taken by something that is no file.
#[test]
fn a_directory_in_place_of_a_segment_is_an_error() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let taken = mounted.volume().join("data/00000003");
    fs::create_dir(&taken).unwrap();
    let file = File::create(mounted.join("file")).unwrap();
    // More than one segment holds.
    let refused = fallocate(&file, FallocateFlags::empty(), 0, 300 << 20).unwrap_err();
    assert_eq!(refused, nix::errno::Errno::EIO);
    assert!(
        mounted.log_text().contains("not a regular file")
            || mounted.log_text().contains("directory")
    );
    file.write_all_at(b"small", 0).unwrap();
    file.sync_all().unwrap();
    fs::remove_dir(&taken).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 300 << 20).unwrap();
}

#[test]
fn a_volume_that_moves_is_served_on() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let (here, there) = (mounted.volume(), mounted.volume().with_extension("moved"));
    fs::rename(&here, &there).unwrap();
    fs::write(mounted.join("file"), vec![3; 100_000]).unwrap();
    File::open(mounted.join("file")).unwrap().sync_all().unwrap();
    fs::rename(&there, &here).unwrap();
    mounted.remount();
    assert!(fs::read(mounted.join("file")).unwrap() == vec![3; 100_000]);
}

#[test]
fn everything_removed_is_an_error_and_no_hang() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    fs::write(mounted.join("file"), vec![3; 100_000]).unwrap();
    File::open(mounted.join("file")).unwrap().sync_all().unwrap();
    fs::remove_dir_all(mounted.volume()).unwrap();
    let error = sync_until_refused(&mounted.join("other"));
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(fs::read(mounted.join("file")).unwrap() == vec![3; 100_000]);
    let file = File::create(mounted.join("new"));
    assert_eq!(file.unwrap_err().raw_os_error(), Some(libc::EIO));
    // Without the volume there is no asking its daemon, but it says it too.
    unmount(&mounted);
    assert!(mounted.log_text().contains("writing stopped"), "{}", mounted.log_text());
}

/// The configuration is read at mounting only; one that is not the volume's is refused then.
#[test]
fn another_configuration_is_refused_at_the_next_mount() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let config = mounted.volume().join("atrest.json");
    let ours = fs::read(&config).unwrap();
    fs::write(&config, b"{}").unwrap();
    fs::write(mounted.join("file"), "contents").unwrap();
    File::open(mounted.join("file")).unwrap().sync_all().unwrap();
    assert_eq!(unmount(&mounted), 0);
    let code = mounted.exit_code(&[
        "mount".as_ref(),
        mounted.volume().as_os_str(),
        mounted.path().as_os_str(),
    ]);
    assert_ne!(code, 0);
    fs::write(&config, &ours).unwrap();
    mounted.mount_again();
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"contents");
}
