//! ACLs as the kernel hands them over, well and badly formed, and what users may do with them.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{XattrFlags, getxattr, lsetxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::mounted::{Mounted, is_root};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NOBODY: u32 = u32::MAX;

/// The bytes of acl(5)'s list as in `linux/posix_acl_xattr.h`.
fn list(version: u32, entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = version.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 4096];
    let length = getxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

const USER: (u16, u16, u32) = (1, 7, NOBODY);
const NAMED: (u16, u16, u32) = (2, 6, 1234);
const GROUP: (u16, u16, u32) = (4, 5, NOBODY);
const MASK: (u16, u16, u32) = (0x10, 7, NOBODY);
const OTHER: (u16, u16, u32) = (0x20, 4, NOBODY);

#[test]
fn malformed_lists_are_refused_and_change_nothing() {
    let mounted = Mounted::new();
    let path = mounted.join("d");
    fs::create_dir(&path).unwrap();
    let good = list(2, &[USER, NAMED, GROUP, MASK, OTHER]);
    setxattr(&path, ACCESS, &good, XattrFlags::empty()).unwrap();
    let mode = fs::metadata(&path).unwrap().mode();
    let bad = [
        ("half an entry", good[..good.len() - 3].to_vec()),
        ("no header", vec![2, 0]),
        ("no owner", list(2, &[GROUP, OTHER])),
        ("no mask", list(2, &[USER, NAMED, GROUP, OTHER])),
        ("two owners", list(2, &[USER, USER, GROUP, OTHER])),
        ("order", list(2, &[OTHER, USER, GROUP])),
        ("permissions", list(2, &[(1, 15, NOBODY), GROUP, OTHER])),
        ("tag", list(2, &[USER, GROUP, (0x55, 7, NOBODY), OTHER])),
    ];
    for (what, bytes) in bad {
        for name in [ACCESS, DEFAULT] {
            let set = setxattr(&path, name, &bytes, XattrFlags::empty());
            assert_eq!(set, Err(Errno::INVAL), "{name}: {what}");
        }
    }
    let version = setxattr(&path, ACCESS, &list(9, &[USER, GROUP, OTHER]), XattrFlags::empty());
    assert_eq!(version, Err(Errno::OPNOTSUPP));
    mounted.remount();
    assert_eq!(get(&path, ACCESS).unwrap(), good);
    assert_eq!(get(&path, DEFAULT), Err(Errno::NODATA));
    assert_eq!(fs::metadata(&path).unwrap().mode(), mode);
}

#[test]
fn lists_go_with_the_mode_and_are_refused_where_they_mean_nothing() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    File::create(&path).unwrap();
    // No more than the mode says: the mode is all that is kept.
    setxattr(&path, ACCESS, &list(2, &[USER, GROUP, OTHER]), XattrFlags::empty()).unwrap();
    assert_eq!(get(&path, ACCESS), Err(Errno::NODATA));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o754);
    let full = list(2, &[USER, NAMED, GROUP, MASK, OTHER]);
    setxattr(&path, ACCESS, &full, XattrFlags::empty()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o610)).unwrap();
    let masked = list(2, &[(1, 6, NOBODY), NAMED, GROUP, (0x10, 1, NOBODY), (0x20, 0, NOBODY)]);
    mounted.remount();
    assert_eq!(get(&path, ACCESS).unwrap(), masked, "chmod sets owner, mask and others");
    removexattr(&path, ACCESS).unwrap();
    assert_eq!(get(&path, ACCESS), Err(Errno::NODATA));
    assert_eq!(setxattr(&path, DEFAULT, &full, XattrFlags::empty()), Err(Errno::ACCESS));
    symlink("file", mounted.join("link")).unwrap();
    let link = lsetxattr(mounted.join("link"), ACCESS, &full, XattrFlags::empty());
    assert_eq!(link, Err(Errno::OPNOTSUPP));
}

/// A default ACL takes the place of the umask, whatever is created; without one the umask rules.
#[test]
fn what_is_created_inherits_and_the_umask_has_no_say() {
    let mounted = Mounted::new();
    let (with, without) = (mounted.join("with"), mounted.join("without"));
    fs::create_dir(&with).unwrap();
    fs::create_dir(&without).unwrap();
    let default = list(2, &[USER, NAMED, GROUP, MASK, (0x20, 6, NOBODY)]);
    setxattr(&with, DEFAULT, &default, XattrFlags::empty()).unwrap();
    let script = "umask 077; touch $0/file; mkdir $0/d; mkfifo $0/fifo; ln -s t $0/link";
    for directory in [&with, &without] {
        let status = Command::new("sh").args(["-c", script]).arg(directory).status().unwrap();
        assert!(status.success());
    }
    mounted.remount();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&with.join("file")), mode(&without.join("file"))), (0o666, 0o600));
    assert_eq!((mode(&with.join("d")), mode(&without.join("d"))), (0o776, 0o700));
    assert_eq!((mode(&with.join("fifo")), mode(&without.join("fifo"))), (0o666, 0o600));
    assert_eq!(get(&with.join("d"), DEFAULT).unwrap(), default);
    assert_eq!(get(&with.join("file"), DEFAULT), Err(Errno::NODATA));
    let inherited = list(2, &[(1, 6, NOBODY), NAMED, GROUP, (0x10, 6, NOBODY), (0x20, 6, NOBODY)]);
    assert_eq!(get(&with.join("file"), ACCESS).unwrap(), inherited);
}

/// Sticky and set-group-ID directories, and who is let in by an ACL alone.
#[test]
fn users_may_what_modes_and_lists_say() {
    let mounted = Mounted::new();
    if !is_root() {
        eprintln!("skipped: only root becomes other users");
        return;
    }
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for above in mounted.path().ancestors().take_while(|path| path.starts_with("/tmp/")) {
        open(above, 0o755);
    }
    let (sticky, shared, secret) = (mounted.join("sticky"), mounted.join("g"), mounted.join("s"));
    for path in [&sticky, &shared] {
        fs::create_dir(path).unwrap();
    }
    open(&sticky, 0o1777);
    std::os::unix::fs::chown(&shared, None, Some(4321)).unwrap();
    open(&shared, 0o2777);
    fs::write(&secret, "secret").unwrap();
    open(&secret, 0o600);
    let readable = list(
        2,
        &[(1, 6, NOBODY), (2, 4, 1234), (4, 0, NOBODY), (0x10, 4, NOBODY), (0x20, 0, NOBODY)],
    );
    setxattr(&secret, ACCESS, &readable, XattrFlags::empty()).unwrap();
    mounted.remount();
    let as_user = |uid: &str, script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", uid, "--regid", uid, "--clear-groups", "sh", "-c", script]);
        command.current_dir(mounted.path()).stderr(std::process::Stdio::null());
        command.status().expect("setpriv (util-linux)").success()
    };
    assert!(as_user("1234", "echo 1 > sticky/mine && mkdir g/sub && echo 2 > g/file"));
    assert!(!as_user("1235", "rm -f sticky/mine"), "it is another's in a sticky directory");
    assert!(!as_user("1235", "mv sticky/mine sticky/yours"));
    assert!(as_user("1234", "mv sticky/mine sticky/ours && rm sticky/ours"));
    assert!(as_user("1234", "cat s") && !as_user("1235", "cat s"), "who is named may read");
    assert!(!as_user("1234", "echo x >> s"));
    let of = |name: &str| fs::metadata(mounted.join(name)).unwrap();
    assert_eq!((of("g/sub").gid(), of("g/sub").mode() & 0o2000), (4321, 0o2000));
    assert_eq!((of("g/file").gid(), of("g/file").uid()), (4321, 1234));
    // chmod(2): who is not in the group may not keep set-group-ID. The kernel says so from 5.14 on.
    let file = mounted.join("g/file");
    open(&file, 0o2755);
    setxattr(&file, ACCESS, &readable, XattrFlags::empty()).unwrap();
    assert_eq!(of("g/file").mode() & 0o2000, 0o2000, "root may keep it");
    assert!(as_user("1234", "setfacl -m u:99:r g/file"));
    if tells_of_groups() {
        assert_eq!(of("g/file").mode() & 0o2000, 0, "its owner is not in the group");
    } else {
        eprintln!("skipped: this kernel does not say who sets an ACL");
    }
}

/// Whether the kernel sends `FUSE_SETXATTR_ACL_KILL_SGID`.
fn tells_of_groups() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a version");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>());
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or_default();
    (next(), next()) >= (5, 14)
}
