//! A volume that is mounted read-only: everything can be read, and nothing changed.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::{XattrFlags, setxattr};

use crate::mounted::Mounted;

#[test]
fn every_change_is_refused() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    fs::create_dir(mounted.join("d")).unwrap();
    fs::write(mounted.join("d/f"), "contents").unwrap();
    fs::create_dir(mounted.join("empty")).unwrap();
    mounted.remount_with(&["-o", "ro"]);
    let (file, new) = (mounted.join("d/f"), mounted.join("new"));
    assert_eq!(fs::read(&file).unwrap(), b"contents");
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 2);
    let attempts: [(&str, io::Result<()>); 11] = [
        ("open for writing", File::options().write(true).open(&file).map(drop)),
        ("create", File::create(&new).map(drop)),
        ("mkdir", fs::create_dir(&new)),
        ("symlink", symlink("target", &new)),
        ("link", fs::hard_link(&file, &new)),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(mounted.join("empty"))),
        ("rename", fs::rename(&file, &new)),
        ("chmod", fs::set_permissions(&file, Permissions::from_mode(0o600))),
        ("chown", std::os::unix::fs::chown(&file, Some(1), None)),
        ("setxattr", setxattr(&file, "user.x", b"1", XattrFlags::empty()).map_err(Into::into)),
    ];
    for (what, result) in attempts {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS), "{what}");
    }
    // Who only reads holds the volume until its process has ended, for which nobody waits.
    assert_eq!(mounted.exit_code(&["umount".as_ref(), mounted.path().as_os_str()]), 0);
    mounted.mount_again();
    fs::write(&file, "changed").unwrap();
}
