//! Rules that random operations do not reach: ACLs, capabilities, limits, sparse files.

use atrest::crypto::Cipher;
use atrest::fs::acl;
use atrest::fs::attr::TimeOrNow;
use atrest::fs::volume::SIZE_BYTES_MAX;
use atrest::fs::{Allocate, Caller, Error, RenameFlags, Seek, SetAttr, SetXattr, Time, Tree};

use crate::backing::Backing;
use crate::reference::ROOT;

const CALLER: Caller = Caller { uid: 1000, gid: 100, umask: 0o027 };

fn errno<T>(result: Result<T, Error>) -> i32 {
    result.map_or_else(|error| error.errno(), |_| 0)
}

/// The value of an ACL attribute, from (tag, permissions, id).
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NONE: u32 = u32::MAX;

/// user::rwx user:7:r-x group::r-x mask::r-x other::---
fn default_acl() -> Vec<u8> {
    list(&[(1, 7, NONE), (2, 5, 7), (4, 5, NONE), (0x10, 5, NONE), (0x20, 0, NONE)])
}

#[test]
fn acl_and_mode_follow_each_other() {
    let mounted = Backing::new(Cipher::Aes256Gcm).open(false);
    let tree = &mounted.tree;
    let ino = tree.mknod(CALLER, ROOT, b"file", 0o100666, 0).unwrap().ino;
    assert_eq!(tree.getattr(ino).unwrap().permissions, 0o640, "the umask applies");
    tree.setxattr(ino, acl::ACCESS, &default_acl(), SetXattr::default()).unwrap();
    assert_eq!(tree.getattr(ino).unwrap().permissions, 0o750, "the mode follows the ACL");

    let set = SetAttr { permissions: Some(0o604), ..SetAttr::default() };
    assert_eq!(tree.setattr(ino, &set).unwrap().permissions, 0o604);
    let followed = list(&[(1, 6, NONE), (2, 5, 7), (4, 5, NONE), (0x10, 0, NONE), (0x20, 4, NONE)]);
    assert_eq!(tree.getxattr(ino, acl::ACCESS).unwrap(), followed, "the ACL follows the mode");

    let minimal = list(&[(1, 6, NONE), (4, 4, NONE), (0x20, 0, NONE)]);
    tree.setxattr(ino, acl::ACCESS, &minimal, SetXattr::default()).unwrap();
    assert_eq!(tree.getattr(ino).unwrap().permissions, 0o640);
    assert_eq!(errno(tree.getxattr(ino, acl::ACCESS)), libc::ENODATA, "it is the mode");
    assert_eq!(tree.listxattr(ino).unwrap(), b"");
    assert_eq!(
        errno(tree.setxattr(ino, acl::ACCESS, b"junk", SetXattr::default())),
        libc::EOPNOTSUPP
    );
    assert_eq!(errno(tree.setxattr(ino, acl::DEFAULT, &minimal, SetXattr::default())), libc::EPERM);
}

/// An access ACL takes set-group-ID away where the kernel says that whoever sets it may not have
/// it; a default ACL does not, nor does another attribute.
#[test]
fn an_acl_clears_set_group_id() {
    let mounted = Backing::new(Cipher::Aes256Gcm).open(false);
    let tree = &mounted.tree;
    let killing = SetXattr { kill_sgid: true, ..SetXattr::default() };
    let minimal = list(&[(1, 7, NONE), (4, 5, NONE), (0x20, 0, NONE)]);
    let directory = tree.mkdir(CALLER, ROOT, b"directory", 0o777).unwrap().ino;
    let set_gid = SetAttr { permissions: Some(0o2750), ..SetAttr::default() };
    let mode_after = |name: &[u8], value: &[u8], how: SetXattr| {
        tree.setattr(directory, &set_gid).unwrap();
        tree.setxattr(directory, name, value, how).unwrap();
        tree.getattr(directory).unwrap().permissions
    };
    assert_eq!(mode_after(acl::ACCESS, &default_acl(), SetXattr::default()), 0o2750);
    assert_eq!(mode_after(acl::ACCESS, &default_acl(), killing), 0o750);
    assert_eq!(mode_after(acl::ACCESS, &minimal, killing), 0o750, "it is kept as the mode alone");
    assert_eq!(mode_after(acl::DEFAULT, &default_acl(), killing), 0o2750);
    assert_eq!(mode_after(b"user.name", b"value", killing), 0o2750);
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    let mounted = Backing::new(Cipher::Aes256Gcm).open(false);
    let tree = &mounted.tree;
    let parent = tree.mkdir(CALLER, ROOT, b"dir", 0o777).unwrap().ino;
    assert_eq!(tree.getattr(parent).unwrap().permissions, 0o750);
    tree.setxattr(parent, acl::DEFAULT, &default_acl(), SetXattr::default()).unwrap();
    assert_eq!(tree.getattr(parent).unwrap().permissions, 0o750, "a default ACL grants nothing");

    let file = tree.create(CALLER, parent, b"file", 0o666).unwrap().0;
    assert_eq!(file.permissions, 0o640);
    let access = list(&[(1, 6, NONE), (2, 5, 7), (4, 5, NONE), (0x10, 4, NONE), (0x20, 0, NONE)]);
    assert_eq!(tree.getxattr(file.ino, acl::ACCESS).unwrap(), access);
    assert_eq!(errno(tree.getxattr(file.ino, acl::DEFAULT)), libc::ENODATA);

    let child = tree.mkdir(CALLER, parent, b"child", 0o777).unwrap();
    assert_eq!(child.permissions, 0o750);
    assert_eq!(tree.getxattr(child.ino, acl::ACCESS).unwrap(), default_acl());
    assert_eq!(tree.getxattr(child.ino, acl::DEFAULT).unwrap(), default_acl());

    let link = tree.symlink(CALLER, parent, b"link", b"target").unwrap();
    assert_eq!(link.permissions, 0o777);
    assert_eq!(tree.listxattr(link.ino).unwrap(), b"");
    let list = tree.listxattr(child.ino).unwrap();
    assert_eq!(list, [acl::ACCESS, b"\0", acl::DEFAULT, b"\0"].concat());

    tree.removexattr(parent, acl::DEFAULT).unwrap();
    assert_eq!(tree.create(CALLER, parent, b"plain", 0o666).unwrap().0.permissions, 0o640);
}

#[test]
fn writing_and_changing_the_owner_take_privileges_away() {
    let mounted = Backing::new(Cipher::Aes256Gcm).open(false);
    let tree = &mounted.tree;
    let capable = |name: &[u8]| {
        let ino = tree.mknod(CALLER, ROOT, name, 0o100750, 0).unwrap().ino;
        let set = SetAttr { permissions: Some(0o6755), ..SetAttr::default() };
        tree.setattr(ino, &set).unwrap();
        tree.setxattr(ino, b"security.capability", b"caps", SetXattr::default()).unwrap();
        ino
    };
    let check = |ino, what| {
        assert_eq!(tree.getattr(ino).unwrap().permissions, 0o755, "{what}");
        assert_eq!(tree.listxattr(ino).unwrap(), b"", "{what}");
    };
    let ino = capable(b"write");
    tree.write(ino, 0, b"x", false).unwrap();
    assert_eq!(tree.getattr(ino).unwrap().permissions, 0o6755, "it was not asked for");
    tree.write(ino, 0, b"x", true).unwrap();
    check(ino, "write");
    let ino = capable(b"chown");
    let set = SetAttr { uid: Some(5), kill_suid: true, ..SetAttr::default() };
    assert_eq!(tree.setattr(ino, &set).unwrap().uid, 5);
    check(ino, "chown");
    let ino = capable(b"truncate");
    let set = SetAttr { size: Some(5), kill_suid: true, ..SetAttr::default() };
    assert_eq!(tree.setattr(ino, &set).unwrap().size, 5);
    check(ino, "truncate");
    let ino = capable(b"open");
    tree.open(ino, true, true).unwrap();
    check(ino, "open");
    let ino = capable(b"fallocate");
    tree.fallocate(ino, 0, 5, Allocate::Reserve { keep_size: true }).unwrap();
    check(ino, "fallocate");
    let source = tree.mknod(CALLER, ROOT, b"source", 0o100600, 0).unwrap().ino;
    tree.write(source, 0, b"data", false).unwrap();
    let ino = capable(b"copy");
    assert_eq!(tree.copy_range(source, 0, ino, 0, 4).unwrap(), 4);
    check(ino, "copy");
}

#[test]
fn limits_are_those_that_are_documented() {
    let mounted = Backing::new(Cipher::Aes256Gcm).open(false);
    let tree = &mounted.tree;
    let ino = tree.mknod(CALLER, ROOT, b"file", 0o100600, 0).unwrap().ino;
    assert_eq!(errno(tree.write(ino, SIZE_BYTES_MAX, b"x", false)), libc::EFBIG);
    assert_eq!(errno(tree.write(ino, u64::MAX, b"x", false)), libc::EFBIG);
    let set = SetAttr { size: Some(SIZE_BYTES_MAX + 1), ..SetAttr::default() };
    assert_eq!(errno(tree.setattr(ino, &set)), libc::EFBIG);
    let set = SetAttr { size: Some(SIZE_BYTES_MAX), ..SetAttr::default() };
    assert_eq!(tree.setattr(ino, &set).unwrap().size, SIZE_BYTES_MAX);
    assert_eq!(errno(tree.fallocate(ino, 0, 0, Allocate::Punch)), libc::EINVAL);
    let reserve = Allocate::Reserve { keep_size: false };
    assert_eq!(errno(tree.fallocate(ino, SIZE_BYTES_MAX, 1, reserve)), libc::EFBIG);

    let value = vec![7; 65_536];
    tree.setxattr(ino, b"user.large", &value, SetXattr::default()).unwrap();
    assert_eq!(tree.getxattr(ino, b"user.large").unwrap(), value);
    let value = vec![7; 65_537];
    assert_eq!(errno(tree.setxattr(ino, b"user.larger", &value, SetXattr::default())), libc::E2BIG);
    for (name, refusal) in [
        (&b"system.other"[..], libc::EOPNOTSUPP),
        (b"name", libc::EOPNOTSUPP),
        (b"user.", libc::EINVAL),
    ] {
        assert_eq!(errno(tree.setxattr(ino, name, b"", SetXattr::default())), refusal, "{name:?}");
    }
    let mut errnos = (0..300).map(|number| {
        let name = format!("user.{number:0250}");
        errno(tree.setxattr(ino, name.as_bytes(), b"", SetXattr::default()))
    });
    assert_eq!(errnos.find(|errno| *errno != 0), Some(libc::ENOSPC), "more could not be listed");
    assert!(tree.listxattr(ino).unwrap().len() <= 65_536);

    assert_eq!(errno(tree.symlink(CALLER, ROOT, b"l", &[b'x'; 4096])), libc::ENAMETOOLONG);
    assert_eq!(errno(tree.symlink(CALLER, ROOT, b"l", b"")), libc::ENOENT);
    assert_eq!(errno(tree.mknod(CALLER, ROOT, b"a/b", 0o600, 0)), libc::EINVAL);
    let bad = Time { seconds: 0, nanoseconds: 1_000_000_000 };
    let set = SetAttr { atime: Some(TimeOrNow::At(bad)), ..SetAttr::default() };
    assert_eq!(errno(tree.setattr(ino, &set)), libc::EINVAL);
}

#[test]
fn holes_take_no_space_and_are_found() {
    const GIB: u64 = 1 << 30;
    let mounted = Backing::new(Cipher::Aes256Gcm).open(false);
    let tree = &mounted.tree;
    let ino = tree.mknod(CALLER, ROOT, b"sparse", 0o100600, 0).unwrap().ino;
    tree.setattr(ino, &SetAttr { size: Some(4 * GIB), ..SetAttr::default() }).unwrap();
    assert_eq!(tree.getattr(ino).unwrap().blocks, 0);
    assert_eq!(errno(tree.seek(ino, 0, Seek::Data)), libc::ENXIO);
    tree.write(ino, GIB, &[7; 8192], false).unwrap();
    assert_eq!(tree.getattr(ino).unwrap().blocks, 16);
    assert_eq!(tree.seek(ino, 5, Seek::Data).unwrap(), GIB);
    assert_eq!(tree.seek(ino, GIB + 100, Seek::Data).unwrap(), GIB + 100);
    assert_eq!(tree.seek(ino, GIB + 100, Seek::Hole).unwrap(), GIB + 8192);
    assert_eq!(tree.seek(ino, 5, Seek::Hole).unwrap(), 5);
    assert_eq!(errno(tree.seek(ino, 4 * GIB, Seek::Hole)), libc::ENXIO);

    let copy = tree.mknod(CALLER, ROOT, b"copy", 0o100600, 0).unwrap().ino;
    assert_eq!(tree.copy_range(ino, 0, copy, 0, 8 * GIB).unwrap(), 4 * GIB);
    let attr = tree.getattr(copy).unwrap();
    assert_eq!((attr.size, attr.blocks), (4 * GIB, 16), "holes are copied as holes");
    assert_eq!(tree.seek(copy, 0, Seek::Data).unwrap(), GIB);

    tree.fallocate(ino, GIB + 4096, 4 * GIB, Allocate::Punch).unwrap();
    assert_eq!(tree.getattr(ino).unwrap().size, 4 * GIB);
    assert_eq!(tree.getattr(ino).unwrap().blocks, 8);
    assert_eq!(tree.seek(ino, GIB, Seek::Hole).unwrap(), GIB + 4096);
}

#[test]
fn a_directory_does_not_move_below_itself() {
    let mounted = Backing::new(Cipher::Aes256Gcm).open(false);
    let tree = &mounted.tree;
    let a = tree.mkdir(CALLER, ROOT, b"a", 0o755).unwrap().ino;
    let b = tree.mkdir(CALLER, a, b"b", 0o755).unwrap().ino;
    let none = RenameFlags::default();
    let exchange = RenameFlags { exchange: true, ..none };
    assert_eq!(errno(tree.rename(ROOT, b"a", b, b"c", none)), libc::EINVAL);
    assert_eq!(errno(tree.rename(ROOT, b"a", a, b"c", none)), libc::EINVAL);
    assert_eq!(errno(tree.rename(ROOT, b"a", a, b"b", exchange)), libc::EINVAL);
    assert_eq!(errno(tree.rename(a, b"b", ROOT, b"a", exchange)), libc::EINVAL);
    assert_eq!(errno(tree.rename(a, b"b", ROOT, b"a", none)), libc::ENOTEMPTY);
    assert_eq!(tree.lookup(b, b"..").unwrap().ino, a);
    assert_eq!(tree.getattr(ROOT).unwrap().links, 3);
}

#[test]
fn a_file_without_a_name_can_be_given_one() {
    let backing = Backing::new(Cipher::Aes256Gcm);
    let mounted = backing.open(false);
    let tree = &mounted.tree;
    let (kept, handle) = tree.tmpfile(CALLER, ROOT, 0o600).unwrap();
    let (lost, _left_open) = tree.tmpfile(CALLER, ROOT, 0o600).unwrap();
    tree.write(kept.ino, 0, b"kept", false).unwrap();
    assert_eq!(kept.links, 0);
    assert_eq!(tree.link(kept.ino, ROOT, b"kept").unwrap().links, 1);
    tree.release(kept.ino, handle);
    tree.sync().unwrap();
    drop(mounted);
    let mounted = backing.open(false);
    assert_eq!(mounted.tree.lookup(ROOT, b"kept").unwrap().size, 4);
    assert_eq!(errno(mounted.tree.getattr(lost.ino)), libc::ESTALE);
}
