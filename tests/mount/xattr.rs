//! Extended attributes of every namespace, ACLs, and file capabilities.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{XattrFlags, getxattr, listxattr, lsetxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::mounted::{Mounted, is_root};

/// Longest value, in bytes (`XATTR_SIZE_MAX`).
const VALUE_BYTES_MAX: usize = 65_536;

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; VALUE_BYTES_MAX];
    let length = getxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn create_and_replace_refuse_what_they_should() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    File::create(&path).unwrap();
    let set = |value: &str, flags| setxattr(&path, "user.x", value.as_bytes(), flags);
    assert_eq!(set("1", XattrFlags::REPLACE), Err(Errno::NODATA));
    set("1", XattrFlags::CREATE).unwrap();
    assert_eq!(set("2", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(get(&path, "user.x").unwrap(), b"1");
    set("2", XattrFlags::REPLACE).unwrap();
    assert_eq!(get(&path, "user.x").unwrap(), b"2");
    removexattr(&path, "user.x").unwrap();
    assert_eq!(removexattr(&path, "user.x"), Err(Errno::NODATA));
    assert_eq!(get(&path, "user.x"), Err(Errno::NODATA));
}

#[test]
fn values_of_every_length_up_to_64_kib() {
    let mounted = Mounted::new();
    // A plain directory may be on a filesystem with smaller ones.
    let longest = if mounted.is_atrest() { VALUE_BYTES_MAX } else { 2_000 };
    let lengths: Vec<usize> = [0, 1, 1_279, 1_280, 1_281, 2_000, 65_535, 65_536]
        .into_iter()
        .filter(|l| *l <= longest)
        .collect();
    let value =
        |length: usize| -> Vec<u8> { (0..length).map(|at| (at * 31 % 251) as u8).collect() };
    for &length in &lengths {
        let path = mounted.join(length.to_string());
        File::create(&path).unwrap();
        // The longer and the shorter value leave nothing behind.
        for length in [longest, 0, length] {
            setxattr(&path, "user.value", &value(length), XattrFlags::empty()).unwrap();
        }
    }
    mounted.remount();
    for &length in &lengths {
        let path = mounted.join(length.to_string());
        assert!(get(&path, "user.value").unwrap() == value(length), "{length} bytes");
    }
    let path = mounted.join("0");
    let too_long = setxattr(&path, "user.value", &value(65_537), XattrFlags::empty());
    assert_eq!(too_long, Err(Errno::TOOBIG));
}

#[test]
fn each_namespace_is_apart() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    File::create(&path).unwrap();
    let mut names = vec!["user.same"];
    if is_root() {
        names.extend(["security.same", "trusted.same"]);
    }
    for name in &names {
        setxattr(&path, *name, name.as_bytes(), XattrFlags::empty()).unwrap();
    }
    mounted.remount();
    let mut list = vec![0_u8; 4_096];
    let length = listxattr(&path, &mut list[..]).unwrap();
    let mut listed: Vec<&str> = list[..length]
        .split(|&byte| byte == 0)
        .map(|name| std::str::from_utf8(name).unwrap())
        .collect();
    listed.retain(|name| name.ends_with(".same"));
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(listed, names);
    for name in names {
        assert_eq!(get(&path, name).unwrap(), name.as_bytes());
    }
    let unknown = setxattr(&path, "system.same", b"1", XattrFlags::empty());
    assert_eq!(unknown, Err(Errno::OPNOTSUPP));
    // xattr(7): a symbolic link has none of a user's.
    symlink("file", mounted.join("link")).unwrap();
    let link = lsetxattr(mounted.join("link"), "user.x", b"1", XattrFlags::empty());
    assert_eq!(link, Err(Errno::PERM));
}

/// Where SELinux is off, nobody asks for the label of each file: that there is none says that there
/// are none. What was set is there.
#[test]
fn labels_are_not_asked_for_twice() {
    const LABEL: &str = "security.selinux";
    let mounted = Mounted::new();
    let is_on = fs::read_to_string("/proc/filesystems").unwrap().contains("selinuxfs");
    if is_on || !mounted.is_atrest() {
        return eprintln!("skipped: it is about SELinux being off, and about atrest");
    }
    let path = mounted.join("file");
    File::create(&path).unwrap();
    assert_eq!(get(&path, LABEL), Err(Errno::OPNOTSUPP));
    assert_eq!(get(&path, "security.other"), Err(Errno::NODATA));
    if is_root() {
        setxattr(&path, LABEL, b"a_label", XattrFlags::CREATE).unwrap();
        assert_eq!(get(&path, LABEL).unwrap(), b"a_label");
        removexattr(&path, LABEL).unwrap();
        assert_eq!(get(&path, LABEL), Err(Errno::OPNOTSUPP));
    }
}

#[test]
fn acls_are_kept_change_the_mode_and_are_inherited() {
    let mounted = Mounted::new();
    let directory = mounted.join("d");
    fs::create_dir(&directory).unwrap();
    run("setfacl", &["-m", "u:1234:rwx,d:u:1234:rw,d:g:4321:r,d:o:-"], &directory);
    fs::write(directory.join("file"), "").unwrap();
    fs::create_dir(directory.join("sub")).unwrap();
    mounted.remount();
    let of = |path: &Path| run("getfacl", &["-cnp"], path);
    assert!(of(&directory).contains("user:1234:rwx"), "{}", of(&directory));
    let file = of(&directory.join("file"));
    assert!(file.contains("user:1234:rw-") && file.contains("group:4321:r--"), "{file}");
    // The class of the group is the mask, and "others" come from the default, not from umask.
    assert_eq!(fs::metadata(directory.join("file")).unwrap().mode() & 0o777, 0o660);
    assert!(of(&directory.join("sub")).contains("default:user:1234:rw-"));
    // chmod(1) changes the mask, not the entry.
    run("chmod", &["g=r"], &directory.join("file"));
    assert!(of(&directory.join("file")).contains("mask::r--"));
    run("setfacl", &["-b", "-k"], &directory);
    mounted.remount();
    assert!(!of(&directory).contains("1234"), "{}", of(&directory));
}

#[test]
fn writing_drops_capabilities() {
    let mounted = Mounted::new();
    if !is_root() {
        eprintln!("skipped: only root sets capabilities");
        return;
    }
    let path = mounted.join("program");
    fs::write(&path, "#!/bin/true\n").unwrap();
    // struct vfs_cap_data, revision 2: cap_net_raw, permitted and effective.
    let mut capability = [0_u8; 20];
    capability[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
    setxattr(&path, "security.capability", &capability, XattrFlags::empty()).unwrap();
    mounted.remount();
    assert_eq!(get(&path, "security.capability").unwrap().len(), 20);
    fs::write(&path, "changed").unwrap();
    assert_eq!(get(&path, "security.capability"), Err(Errno::NODATA));
}

/// Names at their limit, lists at theirs, and buffers that are too small.
#[test]
fn names_and_lists_have_limits() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    File::create(&path).unwrap();
    let longest = format!("user.{}", "n".repeat(250));
    setxattr(&path, &longest, b"value", XattrFlags::empty()).unwrap();
    let longer = setxattr(&path, format!("{longest}n"), b"value", XattrFlags::empty());
    assert_eq!(longer, Err(Errno::RANGE));
    assert_eq!(setxattr(&path, "user.", b"1", XattrFlags::empty()), Err(Errno::INVAL));
    assert_eq!(setxattr(&path, "nothing", b"1", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
    setxattr(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
    mounted.remount();
    assert_eq!(get(&path, &longest).unwrap(), b"value");
    assert_eq!(get(&path, "user.empty").unwrap(), b"");
    let mut short = [0_u8; 4];
    assert_eq!(getxattr(&path, &longest, &mut short[..]), Err(Errno::RANGE));
    assert_eq!(listxattr(&path, &mut short[..]), Err(Errno::RANGE));
    if !mounted.is_atrest() {
        // Others have room for fewer.
        return;
    }
    let mut count = 0;
    let refused = loop {
        let name = format!("user.{count:0>250}");
        if let Err(error) = setxattr(&path, &name, b"", XattrFlags::empty()) {
            break error;
        }
        count += 1;
    };
    assert_eq!(refused, Errno::NOSPC);
    assert!((254..=256).contains(&count), "{count} names fill a list of 64 KiB");
    let mut list = vec![0_u8; 65_536];
    listxattr(&path, &mut list[..]).expect("what could be set can be listed");
}

/// xattr(7): `user.` is for files and directories, `trusted.` for root alone.
#[test]
fn namespaces_are_for_whom_they_are() {
    let mounted = Mounted::new();
    if !is_root() {
        eprintln!("skipped: only root makes devices and becomes other users");
        return;
    }
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let fifo = mounted.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    mknod(&mounted.join("device"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
    for name in ["fifo", "device"] {
        let path = mounted.join(name);
        let user = setxattr(&path, "user.x", b"1", XattrFlags::empty());
        assert_eq!(user, Err(Errno::PERM), "{name}");
        setxattr(&path, "trusted.x", b"1", XattrFlags::empty()).unwrap();
    }
    let path = mounted.join("file");
    fs::write(&path, "contents").unwrap();
    for name in ["user.seen", "trusted.hidden", "security.seen"] {
        setxattr(&path, name, b"1", XattrFlags::empty()).unwrap();
    }
    for above in mounted.path().ancestors().take_while(|path| path.starts_with("/tmp/")) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(above, fs::Permissions::from_mode(0o755)).unwrap();
    }
    mounted.remount();
    let as_user = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1234", "--regid=1234", "--clear-groups", "getfattr"]);
        let output = command.args(arguments).arg(&path).output().expect("setpriv");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed = as_user(&["-m", "-", "--absolute-names"]);
    assert!(listed.contains("user.seen") && !listed.contains("hidden"), "{listed}");
    assert!(!as_user(&["-n", "trusted.hidden", "--absolute-names"]).contains("hidden"));
    assert_eq!(get(&path, "trusted.hidden").unwrap(), b"1");
}
