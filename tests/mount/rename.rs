//! Rename: replacing, refusing to, exchanging, moving directories.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::mounted::{Mounted, is_root};

fn rename_with(mounted: &Mounted, from: &str, to: &str, flags: RenameFlags) -> nix::Result<()> {
    renameat2(AT_FDCWD, &mounted.join(from), AT_FDCWD, &mounted.join(to), flags)
}

/// The way editors save: the old name never shows anything but a whole file.
#[test]
fn a_file_renamed_over_another_replaces_it_whole() {
    let mounted = Mounted::new();
    fs::write(mounted.join("file"), vec![b'o'; 300_000]).unwrap();
    let mut held = fs::File::open(mounted.join("file")).unwrap();
    fs::write(mounted.join("file.new"), vec![b'n'; 200_000]).unwrap();
    fs::rename(mounted.join("file.new"), mounted.join("file")).unwrap();
    assert!(fs::read(mounted.join("file")).unwrap() == vec![b'n'; 200_000]);
    let mut old = Vec::new();
    std::io::Read::read_to_end(&mut held, &mut old).unwrap();
    assert!(old == vec![b'o'; 300_000], "who had it open keeps the old contents");
    drop(held);
    mounted.remount();
    assert!(fs::read(mounted.join("file")).unwrap() == vec![b'n'; 200_000]);
    assert!(!mounted.join("file.new").exists());
}

#[test]
fn noreplace_refuses_and_exchange_swaps() {
    let mounted = Mounted::new();
    fs::write(mounted.join("a"), "a").unwrap();
    fs::create_dir(mounted.join("d")).unwrap();
    fs::write(mounted.join("d/b"), "b").unwrap();
    let refused = rename_with(&mounted, "a", "d/b", RenameFlags::RENAME_NOREPLACE);
    assert_eq!(refused, Err(nix::errno::Errno::EEXIST));
    rename_with(&mounted, "a", "d/b", RenameFlags::RENAME_EXCHANGE).unwrap();
    mounted.remount();
    assert_eq!(fs::read(mounted.join("a")).unwrap(), b"b");
    assert_eq!(fs::read(mounted.join("d/b")).unwrap(), b"a");
}

#[test]
fn a_directory_moves_with_all_below_it_but_not_into_itself() {
    let mounted = Mounted::new();
    fs::create_dir_all(mounted.join("a/b/c")).unwrap();
    fs::write(mounted.join("a/b/c/f"), "contents").unwrap();
    fs::create_dir(mounted.join("z")).unwrap();
    let inode = fs::metadata(mounted.join("a/b/c/f")).unwrap().ino();
    let refused = fs::rename(mounted.join("a"), mounted.join("a/b/a")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    fs::rename(mounted.join("a/b"), mounted.join("z/moved")).unwrap();
    mounted.remount();
    assert_eq!(fs::read(mounted.join("z/moved/c/f")).unwrap(), b"contents");
    assert_eq!(fs::metadata(mounted.join("z/moved/c/f")).unwrap().ino(), inode);
    assert_eq!(fs::read_dir(mounted.join("a")).unwrap().count(), 0);
}

#[test]
fn renaming_to_another_link_of_the_same_file_does_nothing() {
    let mounted = Mounted::new();
    fs::write(mounted.join("one"), "contents").unwrap();
    fs::hard_link(mounted.join("one"), mounted.join("two")).unwrap();
    fs::rename(mounted.join("one"), mounted.join("two")).unwrap();
    assert!(mounted.join("one").exists() && mounted.join("two").exists());
}

#[test]
fn directories_are_exchanged_with_files_and_with_each_other() {
    let mounted = Mounted::new();
    fs::create_dir_all(mounted.join("a/d/inner")).unwrap();
    fs::create_dir(mounted.join("b")).unwrap();
    fs::write(mounted.join("b/f"), "f").unwrap();
    rename_with(&mounted, "a/d", "b/f", RenameFlags::RENAME_EXCHANGE).unwrap();
    let links = |name: &str| fs::metadata(mounted.join(name)).unwrap().nlink();
    assert_eq!((links("a"), links("b")), (2, 3));
    let below = rename_with(&mounted, "b", "b/f/inner", RenameFlags::RENAME_EXCHANGE);
    assert_eq!(below, Err(nix::errno::Errno::EINVAL));
    mounted.remount();
    assert_eq!(fs::read(mounted.join("a/d")).unwrap(), b"f");
    assert!(mounted.join("b/f/inner").is_dir());
    assert_eq!((links("a"), links("b")), (2, 3));
    // ".." went with it: a walk up ends in the new parent.
    let parent = fs::metadata(mounted.join("b/f/..")).unwrap().ino();
    assert_eq!(parent, fs::metadata(mounted.join("b")).unwrap().ino());
}

/// What overlayfs asks for when it moves a file that a lower layer has too.
#[test]
fn a_whiteout_takes_the_old_name() {
    let mounted = Mounted::new();
    if !is_root() {
        eprintln!("skipped: only root makes whiteouts");
        return;
    }
    fs::write(mounted.join("a"), "a").unwrap();
    rename_with(&mounted, "a", "b", RenameFlags::RENAME_WHITEOUT).unwrap();
    mounted.remount();
    let left = fs::symlink_metadata(mounted.join("a")).unwrap();
    assert!(left.file_type().is_char_device() && left.rdev() == 0);
    assert_eq!(fs::read(mounted.join("b")).unwrap(), b"a");
    fs::remove_file(mounted.join("a")).unwrap();
}

#[test]
fn only_an_empty_directory_is_replaced_and_only_by_a_directory() {
    let mounted = Mounted::new();
    for name in ["new", "empty", "full", "full/inner"] {
        fs::create_dir(mounted.join(name)).unwrap();
    }
    fs::write(mounted.join("file"), "").unwrap();
    let errno = |from: &str, to: &str| {
        fs::rename(mounted.join(from), mounted.join(to)).unwrap_err().raw_os_error().unwrap()
    };
    assert_eq!(errno("new", "full"), libc::ENOTEMPTY);
    assert_eq!(errno("file", "empty"), libc::EISDIR);
    assert_eq!(errno("new", "file"), libc::ENOTDIR);
    fs::rename(mounted.join("new"), mounted.join("empty")).unwrap();
    mounted.remount();
    assert!(mounted.join("empty").is_dir() && !mounted.join("new").exists());
}
