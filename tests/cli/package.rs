//! A mounted package with directories that can be written to: what is written is kept, or thrown
//! away; everything else cannot be changed. Needs `/dev/fuse` and the right to mount; without them
//! it says so and passes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::mounting::{Guard, atrest, code};

const MARKER: &str = "marker-that-no-disk-shall-have";

/// A ZIP of stored members: names and contents. A name with "/" at its end is a directory.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let header = out.len() as u32;
        let mut fixed = vec![10, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x54];
        fixed.extend(crc.sum().to_le_bytes());
        fixed.extend((content.len() as u32).to_le_bytes());
        fixed.extend((content.len() as u32).to_le_bytes());
        fixed.extend((name.len() as u16).to_le_bytes());
        fixed.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&fixed);
        out.extend(name.bytes());
        out.extend(*content);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&fixed);
        directory.extend([0; 10]);
        directory.extend(header.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (start, count) = (out.len() as u32, members.len() as u16);
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

struct Site {
    _directory: tempfile::TempDir,
    base: PathBuf,
    mountpoint: PathBuf,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let (mountpoint, temporary) = (base.join("m"), base.join("tmp"));
        fs::create_dir(&mountpoint).unwrap();
        fs::create_dir(temporary).unwrap();
        let members: &[(&str, &[u8])] = &[
            ("index.html", b"page"),
            ("App_Data/", b""),
            ("App_Data/start.txt", b"from the package"),
            ("App_Data/deep/er/more.txt", b"more"),
            ("static/site.css", b"css"),
        ];
        fs::write(base.join("site.zip"), archive(members)).unwrap();
        Self { _directory: directory, base, mountpoint }
    }

    fn atrest(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_atrest"))
            .args(arguments)
            .current_dir(&self.base)
            .env("ATREST_STATE", self.base.join("pins"))
            .env("XDG_STATE_HOME", self.base.join("pins"))
            .env("XDG_RUNTIME_DIR", &self.base)
            .env("TMPDIR", self.base.join("tmp"))
            .output()
            .expect("the binary runs")
    }

    fn mount(&self, more: &[&str]) -> i32 {
        let mut arguments = vec!["package", "mount", "site.zip", "m", "--log", "log"];
        arguments.extend(["--key-store", "keys"]);
        arguments.extend(more);
        code(&self.atrest(&arguments))
    }

    fn unmount(&self) {
        assert_eq!(code(&self.atrest(&["umount", "m"])), 0);
    }

    fn path(&self, path: &str) -> PathBuf {
        self.mountpoint.join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn refused<T: std::fmt::Debug>(what: &str, result: io::Result<T>) {
    let error = result.expect_err(what);
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what}: {error}");
}

/// Every call that changes something, on the package.
fn nothing_else_changes(site: &Site) {
    let page = site.path("index.html");
    refused("write", OpenOptions::new().write(true).open(&page));
    refused("append", OpenOptions::new().append(true).open(&page));
    refused("truncate", File::create(&page));
    refused("create", File::create_new(site.path("new")));
    refused("create below", File::create_new(site.path("static/new")));
    refused("mkdir", fs::create_dir(site.path("new")));
    refused("symlink", symlink("x", site.path("new")));
    refused("unlink", fs::remove_file(&page));
    refused("rmdir", fs::remove_dir(site.path("static")));
    refused("rmdir of what is writable", fs::remove_dir(site.path("App_Data/../App_Data")));
    refused("chmod", fs::set_permissions(&page, fs::Permissions::from_mode(0o600)));
    refused("utimes", File::open(&page).unwrap().set_modified(std::time::SystemTime::now()));
    refused("rename", fs::rename(&page, site.path("other.html")));
    refused("rename into", fs::rename(&page, site.path("App_Data/page.html")));
    refused("rename out of", fs::rename(site.path("App_Data/start.txt"), site.path("start.txt")));
    refused("rename of it", fs::rename(site.path("App_Data"), site.path("Data")));
    let linked = fs::hard_link(&page, site.path("App_Data/page.html")).unwrap_err();
    assert_eq!(linked.raw_os_error(), Some(libc::EXDEV), "{linked}");
    assert_eq!(site.read("index.html"), "page");
}

/// What an app does in its own directory.
fn use_it(site: &Site) {
    assert_eq!(site.read("App_Data/start.txt"), "from the package");
    assert_eq!(site.read("App_Data/deep/er/more.txt"), "more");
    let mut start = OpenOptions::new().append(true).open(site.path("App_Data/start.txt")).unwrap();
    start.write_all(b", and more").unwrap();
    start.sync_all().unwrap();
    assert_eq!(site.read("App_Data/start.txt"), "from the package, and more");
    fs::remove_file(site.path("App_Data/deep/er/more.txt")).unwrap();
    fs::remove_dir(site.path("App_Data/deep/er")).unwrap();
    let big = File::create_new(site.path("App_Data/big")).unwrap();
    for number in 0..64 {
        big.write_all_at(MARKER.as_bytes(), number << 16).unwrap();
    }
    fs::rename(site.path("App_Data/big"), site.path("App_Data/large")).unwrap();
    fs::copy(site.path("index.html"), site.path("App_Data/copy.html")).unwrap();
    fs::set_permissions(site.path("App_Data/large"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(site.path("logs/app.log"), b"started").unwrap();
    // From one writable directory to the other.
    fs::rename(site.path("App_Data/copy.html"), site.path("logs/copy.html")).unwrap();
    fs::hard_link(site.path("logs/copy.html"), site.path("App_Data/linked.html")).unwrap();
    let parent = fs::metadata(site.path("App_Data/..")).unwrap().ino();
    assert_eq!(parent, fs::metadata(&site.mountpoint).unwrap().ino());
}

/// What it finds again.
fn it_is_there(site: &Site) {
    assert_eq!(site.names("."), ["App_Data", "index.html", "logs", "static"]);
    assert_eq!(site.names("App_Data"), ["deep", "large", "linked.html", "start.txt"]);
    assert_eq!(site.names("App_Data/deep"), [""; 0]);
    assert_eq!(site.read("App_Data/start.txt"), "from the package, and more");
    assert_eq!(site.read("logs/copy.html"), "page");
    assert_eq!(site.read("logs/app.log"), "started");
    let large = fs::metadata(site.path("App_Data/large")).unwrap();
    assert_eq!((large.mode() & 0o777, large.len()), (0o640, (63 << 16) + MARKER.len() as u64));
    assert_eq!(fs::metadata(site.path("logs/copy.html")).unwrap().nlink(), 2);
}

/// No file below a directory has the marker in it.
fn nothing_lies_in_the_open(directory: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += nothing_lies_in_the_open(&path);
            continue;
        }
        files += 1;
        let grep = Command::new("grep").args(["-a", "-q", "-F", MARKER]).arg(&path).status();
        assert_eq!(grep.unwrap().code(), Some(1), "{}: it is there in the clear", path.display());
    }
    files
}

const WRITABLE: [&str; 4] = ["--writable", "App_Data", "--writable", "./logs/"];

#[test]
fn written_and_kept() {
    let site = Site::new();
    let guard = Guard(&site.mountpoint);
    let options = [&WRITABLE[..], &["--state", "state"]].concat();
    match site.mount(&options) {
        0 => {}
        36..=38 => return eprintln!("skipped: this machine does not let tests mount"),
        code => panic!("mount: exit {code}"),
    }
    assert_eq!(site.names("."), ["App_Data", "index.html", "logs", "static"]);
    assert_eq!(fs::metadata(&site.mountpoint).unwrap().nlink(), 5);
    nothing_else_changes(&site);
    use_it(&site);
    it_is_there(&site);
    let status = site.atrest(&["status", "--json", "m"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["kind"], "package", "{status}");
    assert_eq!(status["writable"], serde_json::json!(["App_Data", "./logs/"]));
    assert_eq!(status["writable_kept"], true);
    site.unmount();
    assert!(nothing_lies_in_the_open(&site.base.join("state")) > 3);

    // The next mount, of a newer package: what the app has written stays what it is.
    let members: &[(&str, &[u8])] = &[("index.html", b"new"), ("App_Data/start.txt", b"newer")];
    fs::write(site.base.join("new.zip"), archive(members)).unwrap();
    fs::rename(site.base.join("new.zip"), site.base.join("site.zip")).unwrap();
    assert_eq!(site.mount(&options), 0);
    assert_eq!(site.read("index.html"), "new");
    assert_eq!(site.read("App_Data/start.txt"), "from the package, and more");
    assert_eq!(site.read("logs/copy.html"), "page");
    // Its key can be taken away, and given back, as any volume's.
    assert_eq!(code(&site.atrest(&["lock", "m"])), 0);
    assert!(fs::read(site.path("logs/copy.html")).is_err());
    assert_eq!(site.read("index.html"), "new");
    assert_eq!(code(&site.atrest(&["unlock", "m"])), 0);
    assert_eq!(site.read("logs/copy.html"), "page");
    site.unmount();
    drop(guard);
    assert_eq!(code(&atrest(&site.base, &["fsck", "state", "--key-store", "keys"])), 0);
}

#[test]
fn written_and_thrown_away() {
    let site = Site::new();
    let guard = Guard(&site.mountpoint);
    for _ in 0..2 {
        match site.mount(&WRITABLE) {
            0 => {}
            36..=38 => return eprintln!("skipped: this machine does not let tests mount"),
            code => panic!("mount: exit {code}"),
        }
        nothing_else_changes(&site);
        use_it(&site);
        it_is_there(&site);
        assert!(nothing_lies_in_the_open(&site.base.join("tmp")) > 3);
        site.unmount();
        assert_eq!(fs::read_dir(site.base.join("tmp")).unwrap().count(), 0, "something is left");
    }
    drop(guard);
}

/// Paths that cannot be written to, in words, before anything is mounted; and nothing is left.
#[test]
fn what_cannot_be_writable() {
    let site = Site::new();
    let _guard = Guard(&site.mountpoint);
    for (paths, words) in [
        (&["index.html"][..], "leads to something that is no directory"),
        (&["index.html/x"], "leads to something that is no directory"),
        (&["no/such"], "is in a directory that the package has not"),
        (&["."], "is all of the package"),
        (&["/App_Data"], "is not a path inside of the package"),
        (&["static/../App_Data"], "is not a path inside of the package"),
        (&["App_Data", "App_Data/deep"], "is inside of another that is named"),
        (&["App_Data", "App_Data"], "is named twice"),
    ] {
        let writable: Vec<&str> = paths.iter().flat_map(|path| ["--writable", path]).collect();
        let arguments = [&["package", "mount", "site.zip", "m"][..], &writable].concat();
        let output = site.atrest(&arguments);
        if (36..=38).contains(&code(&output)) {
            return eprintln!("skipped: this machine does not let tests mount");
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{paths:?}");
        assert!(said.contains("--writable") && said.contains(words), "{paths:?}: {said}");
        assert_eq!(fs::read_dir(site.base.join("tmp")).unwrap().count(), 0, "something is left");
    }
}

/// A member is near at the next mount where it was read in this one.
#[test]
fn seek_points_are_kept() {
    let site = Site::new();
    let guard = Guard(&site.mountpoint);
    let content: Vec<u8> = (0..2_500_000_u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_string().into_bytes())
        .collect();
    fs::create_dir(site.base.join("in")).unwrap();
    fs::write(site.base.join("in/large"), &content).unwrap();
    let mut zip = Vec::new();
    {
        let mut encoder = flate2::write::DeflateEncoder::new(&mut zip, flate2::Compression::new(6));
        encoder.write_all(&content).unwrap();
        encoder.finish().unwrap();
    }
    fs::write(site.base.join("site.zip"), deflated("large", &content, &zip)).unwrap();
    let inflated = |site: &Site| {
        let status = site.atrest(&["status", "--json", "m"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["cache"]["inflated_bytes"].as_u64().unwrap()
    };
    let mut found = Vec::new();
    for _ in 0..2 {
        match site.mount(&["--state", "state"]) {
            0 => {}
            36..=38 => return eprintln!("skipped: this machine does not let tests mount"),
            code => panic!("mount: exit {code}"),
        }
        let file = File::open(site.path("large")).unwrap();
        let mut end = [0; 100];
        let offset = content.len() - 100;
        file.read_exact_at(&mut end, offset as u64).unwrap();
        assert_eq!(end, content[offset..]);
        drop(file);
        found.push(inflated(&site));
        refused("write", File::create(site.path("new")));
        site.unmount();
    }
    drop(guard);
    assert_eq!(found[0], content.len() as u64, "the first mount reads all of it");
    assert!(found[1] < 3 << 20, "the second mount decompresses {} bytes", found[1]);
}

/// A ZIP of one deflated member.
fn deflated(name: &str, content: &[u8], stream: &[u8]) -> Vec<u8> {
    let mut bytes = archive(&[(name, stream)]);
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let central = bytes.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    // From the method on: behind signature, version and flags.
    for at in [8, central + 10] {
        bytes[at] = 8;
        bytes[at + 6..at + 10].copy_from_slice(&crc.sum().to_le_bytes());
        bytes[at + 14..at + 18].copy_from_slice(&(content.len() as u32).to_le_bytes());
    }
    bytes
}
