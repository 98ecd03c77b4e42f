//! What has lost its last name and is still in use.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use rustix::fs::{Mode, OFlags, fstat, openat};

use crate::mounted::Mounted;

#[test]
fn a_removed_directory_is_still_there_for_who_has_it_open() {
    let mounted = Mounted::new();
    let path = mounted.join("d");
    fs::create_dir(&path).unwrap();
    let directory = File::open(&path).unwrap();
    let ino = directory.metadata().unwrap().ino();
    fs::remove_dir(&path).unwrap();
    let removed = directory.metadata().expect("it can still be asked about");
    assert_eq!((removed.ino(), removed.nlink()), (ino, 0));
    let created = openat(directory.as_fd(), "f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
    assert_eq!(created.unwrap_err(), rustix::io::Errno::NOENT);
    drop(directory);
    mounted.remount();
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
}

#[test]
fn a_removed_file_can_be_asked_through_a_path_descriptor() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, "contents").unwrap();
    let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!((held.metadata().unwrap().nlink(), held.metadata().unwrap().len()), (0, 8));
    use std::os::fd::AsRawFd;
    let again = fs::read(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap();
    assert_eq!(again, b"contents");
}

#[test]
fn everything_works_on_an_open_file_without_a_name() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    // Replaced by a rename, which takes the name as well as unlink does.
    fs::write(mounted.join("other"), "other").unwrap();
    fs::rename(mounted.join("other"), &path).unwrap();
    file.write_all_at(&[7; 50_000], 10_000).unwrap();
    file.sync_all().unwrap();
    file.set_len(30_000).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    rustix::fs::fsetxattr(&file, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let mut read = vec![1; 30_000];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read[..10_000].iter().all(|b| *b == 0) && read[10_000..].iter().all(|b| *b == 7));
    let stat = fstat(&file).unwrap();
    assert_eq!((stat.st_nlink, stat.st_mode & 0o777), (0, 0o600));
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"other");
}

/// Deleting gives the space back at once for what is not open, and at the last close for what is.
#[test]
fn the_space_of_what_was_deleted_comes_back() {
    let mounted = Mounted::new();
    let used = || {
        let info = nix::sys::statvfs::statvfs(mounted.path()).unwrap();
        info.files() - info.files_free()
    };
    let before = used();
    let mut file = File::create(mounted.join("file")).unwrap();
    file.write_all(&vec![1; 2_000_000]).unwrap();
    if mounted.is_atrest() {
        assert_eq!(used(), before + 1);
    }
    fs::remove_file(mounted.join("file")).unwrap();
    drop(file);
    let gone = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        used() == before
    });
    assert!(gone || !mounted.is_atrest(), "{} inodes instead of {before}", used());
}

/// An open file in the root that never had a name; `None`, with a word about it, on kernels before
/// 6.2, which do not ask FUSE for one.
fn without_a_name(mounted: &Mounted, flags: i32) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | flags);
    match options.open(mounted.path()) {
        Ok(file) => Some(file),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            eprintln!("skipped: this kernel has no O_TMPFILE for FUSE");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// `O_TMPFILE`, and a name afterwards.
#[test]
fn a_file_that_never_had_a_name_gets_one() {
    let mounted = Mounted::new();
    let Some(file) = without_a_name(&mounted, 0) else { return };
    file.write_all_at(&[7; 50_000], 10_000).unwrap();
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
    let stat = fstat(&file).unwrap();
    assert_eq!((stat.st_nlink, stat.st_size), (0, 60_000));
    let link = |name: &str| {
        use std::os::fd::AsRawFd;
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (here, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
        rustix::fs::linkat(here, open.as_str(), here, mounted.join(name), flags)
    };
    link("named").unwrap();
    link("again").unwrap();
    assert_eq!(fstat(&file).unwrap().st_nlink, 2);
    file.sync_all().unwrap();
    drop(file);
    mounted.remount();
    let bytes = fs::read(mounted.join("named")).unwrap();
    assert!(bytes[..10_000].iter().all(|b| *b == 0) && bytes[10_000..].iter().all(|b| *b == 7));
    assert_eq!(fs::metadata(mounted.join("again")).unwrap().permissions().mode() & 0o777, 0o640);
}

/// With `O_EXCL` it never gets one, and without one it goes with its last handle.
#[test]
fn a_file_that_never_had_a_name_goes_with_its_handle() {
    let mounted = Mounted::new();
    let used = || {
        let info = nix::sys::statvfs::statvfs(mounted.path()).unwrap();
        info.files() - info.files_free()
    };
    let before = used();
    let Some(mut file) = without_a_name(&mounted, libc::O_EXCL) else { return };
    file.write_all(&[1; 100_000]).unwrap();
    file.sync_all().unwrap();
    use std::os::fd::AsRawFd;
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let (here, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
    let refused = rustix::fs::linkat(here, open.as_str(), here, mounted.join("named"), flags);
    assert_eq!(refused, Err(rustix::io::Errno::NOENT));
    drop(file);
    let gone = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        used() == before
    });
    assert!(gone || !mounted.is_atrest(), "{} inodes instead of {before}", used());
    mounted.remount();
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
}
