//! Names and listing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use crate::mounted::Mounted;

#[test]
fn any_name_of_255_bytes_works_and_256_are_too_long() {
    let mounted = Mounted::new();
    let mut names: Vec<Vec<u8>> = vec![vec![b'n'; 255], b"new\nline".to_vec(), b" ".to_vec()];
    // Every byte but the separator and the end of a string; dots are names of their own.
    names.extend((1..=255).filter(|byte| ![b'/', b'.', b'n'].contains(byte)).map(|b| vec![b]));
    names.dedup();
    let unique: BTreeSet<_> = names.into_iter().collect();
    for name in &unique {
        fs::write(mounted.join(OsStr::from_bytes(name)), name).unwrap();
    }
    mounted.remount();
    let listed: BTreeSet<_> = fs::read_dir(mounted.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    assert_eq!(listed, unique);
    for name in &unique {
        assert_eq!(&fs::read(mounted.join(OsStr::from_bytes(name))).unwrap(), name);
    }
    let error = fs::write(mounted.join("n".repeat(256)), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn a_listing_survives_the_removal_of_what_it_listed() {
    let mounted = Mounted::new();
    for index in 0..5_000 {
        fs::write(mounted.join(format!("file-{index}")), "").unwrap();
    }
    mounted.remount();
    let mut removed = 0;
    for entry in fs::read_dir(mounted.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, 5_000, "each entry is listed exactly once");
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
}

#[test]
fn link_counts_of_directories_count_their_directories() {
    let mounted = Mounted::new();
    fs::create_dir_all(mounted.join("a/b")).unwrap();
    fs::create_dir_all(mounted.join("a/c")).unwrap();
    let count = |name: &str| fs::metadata(mounted.join(name)).unwrap().nlink();
    assert_eq!(count("a"), 4);
    fs::remove_dir(mounted.join("a/b")).unwrap();
    assert_eq!(count("a"), 3);
    fs::create_dir(mounted.join("d")).unwrap();
    fs::rename(mounted.join("a/c"), mounted.join("d/c")).unwrap();
    assert_eq!((count("a"), count("d")), (2, 3));
    mounted.remount();
    assert_eq!((count("a"), count("d")), (2, 3));
}

#[test]
fn a_directory_that_is_not_empty_is_not_removed() {
    let mounted = Mounted::new();
    fs::create_dir(mounted.join("d")).unwrap();
    fs::write(mounted.join("d/f"), "").unwrap();
    let error = fs::remove_dir(mounted.join("d")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
    fs::remove_file(mounted.join("d/f")).unwrap();
    fs::remove_dir(mounted.join("d")).unwrap();
}
