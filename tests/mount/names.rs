//! Names that are odd, too long, or none.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::mounted::Mounted;

/// Each of 253 values, as the first, a middle and the last byte of a name of 255 bytes.
#[test]
fn every_byte_stands_everywhere_in_a_name() {
    let mounted = Mounted::new();
    let mut names = BTreeSet::new();
    for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
        for at in [0, 127, 254] {
            let mut name = vec![b'n'; 255];
            name[at] = byte;
            names.insert(name);
        }
    }
    for name in &names {
        File::create(mounted.join(OsStr::from_bytes(name))).unwrap();
    }
    mounted.remount();
    let listed: BTreeSet<_> = fs::read_dir(mounted.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    assert!(listed == names);
    for name in &names {
        fs::remove_file(mounted.join(OsStr::from_bytes(name))).unwrap();
    }
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
}

/// `.`, `..`, nothing, and one byte too many, where a new name or an old one is wanted.
#[test]
fn what_is_no_name_is_refused() {
    let mounted = Mounted::new();
    fs::create_dir(mounted.join("d")).unwrap();
    fs::write(mounted.join("f"), "").unwrap();
    let long = "n".repeat(256);
    let errno = |result: io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    let at = |name: &str| format!("{}/d/{name}", mounted.path().display());
    // Rust's own functions would take a final dot away.
    let c = |name: &str| std::ffi::CString::new(at(name)).unwrap();
    let mkdir = |name: &str| nix::unistd::mkdir(&*c(name), nix::sys::stat::Mode::S_IRWXU);
    let unlink = |name: &str| nix::unistd::unlink(&*c(name));
    let rmdir = |name: &str| {
        nix::unistd::unlinkat(AT_FDCWD, &*c(name), nix::unistd::UnlinkatFlags::RemoveDir)
    };
    let rename = |from: &str, to: &str| {
        renameat2(AT_FDCWD, &*c(from), AT_FDCWD, &*c(to), RenameFlags::empty())
    };
    use nix::errno::Errno;
    assert_eq!(mkdir("."), Err(Errno::EEXIST));
    assert_eq!(mkdir(".."), Err(Errno::EEXIST));
    assert_eq!(mkdir(&long), Err(Errno::ENAMETOOLONG));
    assert_eq!(unlink("."), Err(Errno::EISDIR));
    assert_eq!(unlink(&long), Err(Errno::ENAMETOOLONG));
    assert_eq!(rmdir("."), Err(Errno::EINVAL));
    assert_eq!(rmdir(".."), Err(Errno::ENOTEMPTY));
    assert_eq!(rmdir(&long), Err(Errno::ENAMETOOLONG));
    assert_eq!(rename(".", "x"), Err(Errno::EBUSY));
    assert_eq!(rename("..", "x"), Err(Errno::EBUSY));
    assert_eq!(rename("../f", "."), Err(Errno::EBUSY));
    assert_eq!(rename("../f", &long), Err(Errno::ENAMETOOLONG));
    assert_eq!(rename(&long, "x"), Err(Errno::ENAMETOOLONG));
    let path = mounted.join("d").join(&long);
    assert_eq!(errno(File::create(&path).map(drop)), libc::ENAMETOOLONG);
    assert_eq!(errno(symlink("t", &path)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::hard_link(mounted.join("f"), &path)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(&path).map(drop)), libc::ENAMETOOLONG);
    assert_eq!(errno(symlink("", mounted.join("empty"))), libc::ENOENT);
    assert_eq!(errno(File::create(mounted.join("f/below")).map(drop)), libc::ENOTDIR);
    assert_eq!(fs::read_dir(mounted.join("d")).unwrap().count(), 0);
}

/// As many components as a path may have, and a path at its limit.
#[test]
fn deep_trees_are_walked() {
    let mounted = Mounted::new();
    let mut directory = File::open(mounted.path()).unwrap();
    for _ in 0..300 {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        mkdirat(&directory, "deep-directory", Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory = openat(&directory, "deep-directory", flags, Mode::empty()).unwrap().into();
    }
    drop(directory);
    mounted.remount();
    let deep = mounted.join(vec!["deep-directory"; 200].join("/"));
    assert!(deep.is_dir());
    fs::remove_dir_all(mounted.join("deep-directory")).unwrap();
}
