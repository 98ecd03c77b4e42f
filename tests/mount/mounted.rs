//! A volume of one test: made, mounted, and unmounted again whatever happens.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A mounted volume; dropping it unmounts, and fails the test if that does not work.
pub struct Mounted {
    scratch: TempDir,
    mount: PathBuf,
    is_atrest: bool,
}

impl Mounted {
    /// A fresh volume with the local key store.
    pub fn new() -> Self {
        if let Some(directory) = std::env::var_os("ATREST_TEST_DIRECTORY") {
            let scratch = TempDir::new_in(directory).expect("the directory can be written to");
            let mount = scratch.path().to_path_buf();
            return Self { scratch, mount, is_atrest: false };
        }
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        let scratch = TempDir::with_prefix("atrest-mount-test.").expect("a temporary directory");
        let mount = scratch.path().join("mnt");
        for (name, mode) in [("mnt", 0o755), ("keys", 0o700), ("state", 0o700)] {
            // A key store that others can read is refused.
            let made = DirBuilder::new().mode(mode).create(scratch.path().join(name));
            made.expect("a directory");
        }
        let mounted = Self { scratch, mount, is_atrest: true };
        mounted.atrest(&["init".as_ref(), mounted.volume().as_ref()]);
        mounted.start(&[]);
        mounted
    }

    /// The directory to work in.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Whether this is a volume of ours, and not a directory to try the tests on.
    pub fn is_atrest(&self) -> bool {
        self.is_atrest
    }

    /// A path below it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount.join(name)
    }

    /// Unmounts and mounts again: what is seen afterwards comes from the disk.
    pub fn remount(&self) {
        self.remount_with(&[]);
    }

    /// As [`Mounted::remount`], with options for `atrest mount`.
    pub fn remount_with(&self, options: &[&str]) {
        if self.is_atrest {
            self.atrest(&["umount".as_ref(), self.mount.as_os_str()]);
            self.start(options);
        }
    }

    /// Unmounts; [`Mounted::mount_again`] mounts.
    pub fn unmount(&self) {
        self.atrest(&["umount".as_ref(), self.mount.as_os_str()]);
    }

    /// `atrest mount` in the foreground, with something in its environment; not waited for.
    pub fn foreground(&self, variable: (&str, &std::ffi::OsStr)) -> std::process::Child {
        let (volume, log) = (self.volume(), self.log());
        self.command()
            .args(["mount", "--foreground", "--log"])
            .args([&log, &volume, &self.mount])
            .env(variable.0, variable.1)
            .spawn()
            .expect("atrest runs")
    }

    /// Mounts what was unmounted in another way than by [`Mounted::remount`], once its daemon has
    /// ended.
    pub fn mount_again(&self) {
        assert!(!self.is_mounted(), "it is still mounted");
        let (volume, log) = (self.volume(), self.log());
        let place = self.mount.as_os_str();
        let arguments =
            ["mount".as_ref(), "--log".as_ref(), log.as_os_str(), volume.as_ref(), place];
        let mounted = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            self.run(&arguments).success()
        });
        assert!(mounted && self.is_mounted(), "{}", self.log_text());
    }

    /// The directory of ciphertext.
    pub fn volume(&self) -> PathBuf {
        self.scratch.path().join("volume")
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("atrest.log")
    }

    /// What the daemon and the commands said so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs `atrest`, and says with which code it ends.
    pub fn exit_code(&self, arguments: &[&std::ffi::OsStr]) -> i32 {
        self.run(arguments).code().expect("atrest is not killed")
    }

    fn start(&self, options: &[&str]) {
        let (volume, log) = (self.volume(), self.log());
        let place = self.mount.as_os_str();
        let mut arguments: Vec<&std::ffi::OsStr> =
            vec!["mount".as_ref(), "--log".as_ref(), log.as_ref(), volume.as_ref(), place];
        arguments.extend(options.iter().map(std::ffi::OsStr::new));
        self.atrest(&arguments);
        assert!(self.is_mounted(), "`atrest mount` returned before the mount was usable");
    }

    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("procfs");
        let wanted = self.mount.to_str().expect("a temporary path in UTF-8");
        mounts.lines().any(|line| line.split(' ').nth(4) == Some(wanted))
    }

    fn atrest(&self, arguments: &[&std::ffi::OsStr]) {
        let status = self.run(arguments);
        assert!(status.success(), "atrest {arguments:?}: {status}\n{}", self.log_text());
    }

    fn run(&self, arguments: &[&std::ffi::OsStr]) -> std::process::ExitStatus {
        self.command().args(arguments).status().expect("atrest runs")
    }

    /// `atrest`, which says what it does into the log.
    pub fn command(&self) -> Command {
        // Not captured: a daemon that inherited a pipe would keep it open.
        let log = self.log();
        let open = || std::fs::File::options().create(true).append(true).open(&log);
        let mut command = Command::new(env!("CARGO_BIN_EXE_atrest"));
        command
            .env("ATREST_KEYSTORE", self.scratch.path().join("keys"))
            .env("ATREST_STATE", self.scratch.path().join("state"))
            .stdin(Stdio::null())
            .stdout(open().expect("a log"))
            .stderr(open().expect("a log"));
        command
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.is_atrest || !self.is_mounted() {
            return;
        }
        let unmounted = Command::new(env!("CARGO_BIN_EXE_atrest"))
            .arg("umount")
            .arg(&self.mount)
            .env("ATREST_KEYSTORE", self.scratch.path().join("keys"))
            .env("ATREST_STATE", self.scratch.path().join("state"))
            .stdin(Stdio::null())
            .status();
        if unmounted.is_ok_and(|status| status.success()) && !self.is_mounted() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let defect = log.lines().find(|line| line.contains("panicked"));
            if let (Some(defect), false) = (defect, std::thread::panicking()) {
                panic!("the daemon panicked: {defect}");
            }
            return;
        }
        // Nothing may be left, not even by a test that fails.
        let _ = Command::new("fusermount3").arg("-uz").arg(&self.mount).status();
        if !std::thread::panicking() {
            panic!("{} could not be unmounted", self.mount.display());
        }
    }
}

/// Whether these tests may do what only root may.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
