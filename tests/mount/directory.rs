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

#[test]
fn a_directory_of_50000_entries_is_listed_whole() {
    let mounted = Mounted::new();
    let directory = mounted.join("large");
    fs::create_dir(&directory).unwrap();
    let name = |index: u32| format!("entry-{index:05}");
    for index in 0..50_000 {
        // Directories' entries are the matter, not files: links are the fastest to make.
        if index % 1_000 == 0 {
            fs::write(directory.join(name(index)), index.to_string()).unwrap();
        } else {
            let first = directory.join(name(index - index % 1_000));
            fs::hard_link(first, directory.join(name(index))).unwrap();
        }
    }
    for moment in ["before", "after"] {
        let listed: BTreeSet<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected: BTreeSet<_> = (0..50_000).map(name).collect();
        assert!(listed == expected, "{} entries {moment} the remount", listed.len());
        mounted.remount();
    }
    assert_eq!(fs::read(directory.join(name(49_999))).unwrap(), b"49000");
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
}

/// Entries that come while a directory is listed may or may not be seen; those that stay are seen
/// once.
#[test]
fn a_listing_survives_additions_and_renames() {
    let mounted = Mounted::new();
    for index in 0..2_000 {
        fs::write(mounted.join(format!("stays-{index}")), "").unwrap();
        fs::write(mounted.join(format!("moves-{index}")), "").unwrap();
    }
    mounted.remount();
    let mut stays = Vec::new();
    for (count, entry) in fs::read_dir(mounted.path()).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("stays-") {
            stays.push(name);
        }
        if count < 2_000 {
            let from = mounted.join(format!("moves-{count}"));
            fs::rename(from, mounted.join(format!("moved-{count}"))).unwrap();
            fs::write(mounted.join(format!("new-{count}")), "").unwrap();
        }
    }
    let unique: BTreeSet<_> = stays.iter().collect();
    assert_eq!((stays.len(), unique.len()), (2_000, 2_000));
}
