//! Every operation on a full disk, and on one where a quota is used up: it succeeds, or says
//! ENOSPC or EDQUOT and has changed nothing. What only looks, replaces or removes succeeds.

use super::{check_space, pattern};
use crate::common::Volumes;
use atrest::crypto::Cipher;
use atrest::fs::attr::TimeOrNow;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Allocate, Caller, Error, RenameFlags, Seek, SetAttr, SetXattr, Time, Tree};
use atrest::storage::Storage;
use atrest::storage::sim::SimDisk;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

const ROOT: u64 = 1;
const DISK_BYTES: u64 = 16 << 20;
const CALLER: Caller = Caller { uid: 7, gid: 8, umask: 0o022 };
const NONE: RenameFlags = RenameFlags { no_replace: false, exchange: false, whiteout: false };
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// May be refused, or must succeed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    Refuse,
    Not,
}
use May::{Not, Refuse};

type Operation = (&'static str, May, fn(&VolumeTree) -> Result<(), Error>);

fn find(tree: &VolumeTree, path: &str) -> Result<u64, Error> {
    path.split('/').try_fold(ROOT, |ino, name| Ok(tree.lookup(ino, name.as_bytes())?.ino))
}

fn write(tree: &VolumeTree, path: &str, offset: u64, bytes: usize) -> Result<(), Error> {
    tree.write(find(tree, path)?, offset, &pattern(offset + bytes as u64, bytes), true)
}

fn set(tree: &VolumeTree, path: &str, change: SetAttr) -> Result<(), Error> {
    tree.setattr(find(tree, path)?, &change).map(drop)
}

fn xattr(tree: &VolumeTree, path: &str, name: &[u8], bytes: usize) -> Result<(), Error> {
    tree.setxattr(find(tree, path)?, name, &pattern(1, bytes), SetXattr::default())
}

fn allocate(tree: &VolumeTree, offset: u64, length: u64, what: Allocate) -> Result<(), Error> {
    tree.fallocate(find(tree, "paged")?, offset, length, what)
}

fn copy(tree: &VolumeTree, from: &str, to: &str, at: u64) -> Result<(), Error> {
    tree.copy_range(find(tree, from)?, 0, find(tree, to)?, at, 100_000).map(drop)
}

fn make(tree: &VolumeTree, name: &str) -> Result<(), Error> {
    let (attr, handle) = tree.create(CALLER, ROOT, name.as_bytes(), 0o6755)?;
    tree.release(attr.ino, handle);
    Ok(())
}

fn open(tree: &VolumeTree, name: &str, truncate: bool) -> Result<(), Error> {
    let ino = find(tree, name)?;
    let handle = tree.open(ino, truncate, true)?;
    tree.release(ino, handle);
    Ok(())
}

fn rename(tree: &VolumeTree, from: &str, to: &str, flags: RenameFlags) -> Result<(), Error> {
    tree.rename(ROOT, from.as_bytes(), ROOT, to.as_bytes(), flags)
}

fn acl() -> Vec<u8> {
    // user::rwx user:1000:rw- group::r-x mask::rwx other::r--
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, !0), (2, 6, 1000), (4, 5, !0), (0x10, 7, !0), (0x20, 4, !0)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const LOOKS: &[Operation] = &[
    ("lookup", Not, |t| find(t, "d/inner").map(drop)),
    ("getattr", Not, |t| t.getattr(find(t, "paged")?).map(drop)),
    ("readlink", Not, |t| t.readlink(find(t, "link")?).map(drop)),
    ("open", Not, |t| open(t, "paged", false)),
    ("read", Not, |t| t.read(find(t, "paged")?, 0, 500_000, true, &mut Vec::new())),
    ("readdir", Not, |t| t.readdir(ROOT, 0, true, &mut |_| true)),
    ("seek", Not, |t| t.seek(find(t, "paged")?, 0, Seek::Hole).map(drop)),
    ("statfs", Not, |t| t.statfs().map(drop)),
    ("getxattr", Not, |t| t.getxattr(find(t, "small")?, b"user.large").map(drop)),
    ("listxattr", Not, |t| t.listxattr(find(t, "small")?).map(drop)),
    ("access", Not, |t| t.accessed(find(t, "small")?, true).map(drop)),
    ("fsync", Not, |t| t.fsync(find(t, "paged")?, 0, false)),
    ("sync", Not, |t| t.sync()),
];

const MAKES: &[Operation] = &[
    ("create", Refuse, |t| make(t, "new")),
    ("create in a directory with an ACL", Refuse, |t| {
        t.create(CALLER, find(t, "d")?, b"heir", 0o666).map(drop)
    }),
    ("tmpfile", Refuse, |t| {
        let (attr, handle) = t.tmpfile(CALLER, ROOT, 0o600)?;
        t.release(attr.ino, handle);
        Ok(())
    }),
    ("mknod", Refuse, |t| t.mknod(CALLER, ROOT, b"fifo", libc::S_IFIFO | 0o600, 0).map(drop)),
    ("mkdir", Refuse, |t| t.mkdir(CALLER, ROOT, b"new-d", 0o755).map(drop)),
    ("symlink", Refuse, |t| t.symlink(CALLER, ROOT, b"new-l", &[b't'; 4000]).map(drop)),
    ("link", Refuse, |t| t.link(find(t, "paged")?, ROOT, b"new-link").map(drop)),
    ("rename", Refuse, |t| rename(t, "small", "moved", NONE)),
    ("rename back", Refuse, |t| match rename(t, "moved", "small", NONE) {
        Err(Error::NotFound) => Ok(()),
        result => result,
    }),
    ("exchange", Refuse, |t| rename(t, "small", "link", RenameFlags { exchange: true, ..NONE })),
    ("exchange back", Refuse, |t| {
        // The one before may have been refused.
        if t.readlink(find(t, "link")?).is_ok() {
            return Ok(());
        }
        rename(t, "small", "link", RenameFlags { exchange: true, ..NONE })
    }),
    ("whiteout", Refuse, |t| rename(t, "spare", "spare-2", RenameFlags { whiteout: true, ..NONE })),
    ("setxattr", Refuse, |t| xattr(t, "paged", b"user.new", 10)),
    ("setxattr of 64 KiB", Refuse, |t| xattr(t, "paged", b"trusted.new", 65_536)),
    ("setxattr that grows", Refuse, |t| xattr(t, "small", b"user.small", 60_000)),
    ("set an ACL", Refuse, |t| {
        t.setxattr(find(t, "small")?, b"system.posix_acl_access", &acl(), SetXattr::default())
    }),
];

const CONTENTS: &[Operation] = &[
    ("write that grows inline", Refuse, |t| write(t, "small", 600, 500)),
    ("write that leaves inline", Refuse, |t| write(t, "small", 2_000, 100)),
    ("write behind the end", Refuse, |t| write(t, "paged", 1 << 20, 200_000)),
    ("write far behind the end", Refuse, |t| write(t, "paged", 1 << 40, 10)),
    ("write into a hole", Refuse, |t| write(t, "sparse", 50_001, 10_000)),
    ("write over and behind the end", Refuse, |t| write(t, "paged", 290_000, 30_000)),
    ("grow", Refuse, |t| set(t, "paged", SetAttr { size: Some(1 << 41), ..SetAttr::default() })),
    ("grow what is inline", Refuse, |t| {
        set(t, "small", SetAttr { size: Some(1 << 20), ..SetAttr::default() })
    }),
    ("allocate", Refuse, |t| allocate(t, 0, 30 << 20, Allocate::Reserve { keep_size: false })),
    ("allocate a little", Refuse, |t| {
        allocate(t, 0, 400_000, Allocate::Reserve { keep_size: true })
    }),
    ("zero", Refuse, |t| allocate(t, 5_000, 8 << 20, Allocate::Zero { keep_size: false })),
    ("copy", Refuse, |t| copy(t, "paged", "sparse", 30_000)),
    ("copy over", Refuse, |t| copy(t, "paged", "other", 0)),
];

const REPLACES: &[Operation] = &[
    ("overwrite", Not, |t| write(t, "paged", 0, 200_000)),
    ("overwrite a part of a page", Not, |t| write(t, "paged", 5_001, 100)),
    ("overwrite inline", Not, |t| write(t, "small", 5, 100)),
    ("write what was allocated", Not, |t| write(t, "allocated", 8_192, 200_000)),
    ("write all that was allocated", Not, |t| write(t, "allocated", 0, 262_144)),
    ("chmod", Not, |t| set(t, "d", SetAttr { permissions: Some(0o700), ..SetAttr::default() })),
    ("chown", Not, |t| {
        set(t, "paged", SetAttr { uid: Some(5), kill_suid: true, ..SetAttr::default() })
    }),
    ("utimens", Not, |t| {
        let time = TimeOrNow::At(Time { seconds: 5, nanoseconds: 6 });
        set(t, "paged", SetAttr { atime: Some(time), mtime: Some(time), ..SetAttr::default() })
    }),
    ("setxattr that shrinks", Not, |t| xattr(t, "small", b"user.large", 100)),
    ("setxattr of the same", Not, |t| xattr(t, "small", b"user.small", 10)),
];

const REMOVES: &[Operation] = &[
    ("removexattr", Not, |t| t.removexattr(find(t, "small")?, b"user.small")),
    ("remove an ACL", Not, |t| t.removexattr(find(t, "d")?, ACL_DEFAULT)),
    ("punch", Not, |t| allocate(t, 10_001, 100_000, Allocate::Punch)),
    ("shrink", Not, |t| set(t, "paged", SetAttr { size: Some(150_001), ..SetAttr::default() })),
    ("open with truncation", Not, |t| open(t, "other", true)),
    ("rename over another", Not, |t| rename(t, "other", "spare-file", NONE)),
    ("unlink", Not, |t| t.unlink(ROOT, b"allocated")),
    ("unlink a link", Not, |t| t.unlink(ROOT, b"link")),
    ("rmdir", Not, |t| t.rmdir(ROOT, b"empty")),
];

/// All that can be seen of a tree, but for access times.
fn state(tree: &VolumeTree) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![(ROOT, String::from("/"))];
    while let Some((directory, path)) = directories.pop() {
        let mut entries = Vec::new();
        tree.readdir(directory, 0, false, &mut |entry| {
            entries.push((entry.ino, entry.name.to_vec()));
            true
        })
        .expect("a full disk is listed");
        for (ino, name) in entries.into_iter().filter(|(_, name)| name != b"..") {
            let name = format!("{path}{}", String::from_utf8_lossy(&name));
            let mut attr = tree.getattr(ino).expect("a full disk is asked");
            attr.atime = Time::default();
            let mut text = format!("{attr:?}");
            for name in tree.listxattr(ino).expect("list").split(|&byte| byte == 0) {
                if !name.is_empty() {
                    let value = tree.getxattr(ino, name).expect("value");
                    let _ = write!(text, " {name:?} {} {:?}", value.len(), &value[..4]);
                }
            }
            match attr.kind {
                atrest::fs::Kind::Directory if !name.ends_with('.') => {
                    directories.push((ino, format!("{name}/")));
                }
                atrest::fs::Kind::File => {
                    let mut content = Vec::new();
                    tree.read(ino, 0, 1 << 21, false, &mut content).expect("a full disk is read");
                    let _ = write!(text, " {:x?}", atrest::crypto::kdf::digest(&content));
                }
                _ => {}
            }
            found.insert(name, text);
        }
    }
    found
}

/// What the operations work on.
fn furnish(tree: &VolumeTree) -> Result<(), Error> {
    for name in ["small", "paged", "other", "sparse", "allocated", "spare", "spare-file"] {
        make(tree, name)?;
    }
    write(tree, "small", 0, 600)?;
    write(tree, "paged", 0, 300_000)?;
    write(tree, "other", 0, 50_000)?;
    write(tree, "sparse", 200_000, 5_000)?;
    let allocated = find(tree, "allocated")?;
    tree.fallocate(allocated, 0, 262_144, Allocate::Reserve { keep_size: true })?;
    for name in ["d", "empty"] {
        tree.mkdir(CALLER, ROOT, name.as_bytes(), 0o2755)?;
    }
    tree.setxattr(find(tree, "d")?, ACL_DEFAULT, &acl(), SetXattr::default())?;
    tree.mkdir(CALLER, find(tree, "d")?, b"inner", 0o755)?;
    tree.symlink(CALLER, ROOT, b"link", b"target")?;
    xattr(tree, "small", b"user.small", 10)?;
    xattr(tree, "small", b"user.large", 30_000)?;
    tree.sync()
}

/// Takes all the space there is, down to the last inode.
fn fill(tree: &VolumeTree, disk: &SimDisk, errno: i32) {
    let (file, _) = tree.create(CALLER, ROOT, b"filler", 0o600).expect("create");
    let mut at = 0;
    for bytes in [200_000, 4096] {
        loop {
            match tree.write(file.ino, at, &pattern(at, bytes), false) {
                Ok(()) => at += bytes as u64 / 4096 * 4096,
                Err(error) => {
                    assert_eq!(error.errno(), errno, "filling: {error}");
                    break;
                }
            }
        }
        tree.sync().expect("a full disk syncs");
    }
    disk.set_capacity(disk.allocated_bytes());
    for number in 0.. {
        match tree.create(CALLER, find(tree, "empty").expect("there"), b"x", 0o600) {
            Ok((attr, handle)) => {
                tree.release(attr.ino, handle);
                let name = format!("inode-{number}");
                let moved =
                    tree.rename(find(tree, "empty").unwrap(), b"x", ROOT, name.as_bytes(), NONE);
                if moved.is_err() {
                    tree.unlink(find(tree, "empty").unwrap(), b"x").expect("unlink");
                    break;
                }
            }
            Err(error) => {
                assert_eq!(error.errno(), errno, "filling: {error}");
                break;
            }
        }
        if number % 1000 == 999 {
            tree.sync().expect("a full disk syncs");
        }
        assert!(number < 100_000, "the disk does not fill up");
    }
}

fn run(tree: &VolumeTree, operations: &[Operation], errno: i32) -> usize {
    let mut refused = 0;
    for (name, may, operation) in operations {
        let before = state(tree);
        match operation(tree) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.errno(), errno, "{name}: {error}");
                assert!(*may == Refuse, "{name} is refused: {error}");
                refused += 1;
                let after = state(tree);
                let changed = before.iter().find(|(path, text)| after.get(*path) != Some(text));
                assert_eq!(changed, None, "{name} was refused and changed something");
                assert_eq!(after.len(), before.len(), "{name} was refused and made something");
            }
        }
    }
    refused
}

#[test]
fn every_operation_on_a_full_disk() {
    for (errno, cipher) in [(libc::ENOSPC, Cipher::Aes256Gcm), (libc::EDQUOT, Cipher::Aes256Xts)] {
        let disk = Arc::new(SimDisk::new());
        disk.stop_recording();
        disk.set_capacity(DISK_BYTES);
        if errno == libc::EDQUOT {
            disk.set_quota();
        }
        let storage: Arc<dyn Storage> = disk.clone();
        let volumes = Volumes::new(cipher);
        volumes.create(&storage);
        let volume = volumes.open(&storage).expect("open");
        let tree = VolumeTree::new(volume.clone());
        furnish(&tree).expect("there is space");
        fill(&tree, &disk, errno);
        let mut refused = 0;
        for table in [LOOKS, MAKES, CONTENTS, REPLACES, LOOKS, REMOVES] {
            refused += run(&tree, table, errno);
        }
        assert!(refused >= MAKES.len() / 2 + CONTENTS.len() / 2, "only {refused} were refused");
        tree.sync().expect("a full disk syncs");
        let before = state(&tree);
        drop(tree);
        volume.close().expect("a full disk closes");
        drop(volume);
        let volume = volumes.open(&storage).expect("a full disk opens");
        let tree = VolumeTree::new(volume.clone());
        let after = state(&tree);
        let changed = before.iter().find(|(path, text)| after.get(*path) != Some(text));
        assert_eq!(changed, None, "after opening again");
        check_space(&volume);
        disk.set_capacity(4 * DISK_BYTES);
        tree.sync().expect("sync");
        tree.unlink(ROOT, b"filler").expect("unlink");
        let _ = tree.unlink(ROOT, b"new");
        assert_eq!(run(&tree, &[MAKES[0], CONTENTS[2]], errno), 0, "there is space again");
    }
}
