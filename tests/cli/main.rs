//! Transcripts of the built binary: what is typed, exit code, standard output and error.
//!
//! A transcript is a text file. `$ atrest ...` runs the binary; what follows up to the next blank
//! line is `exit N` and every line of output behind `out| ` or `err| `. `@ ...` prepares something
//! (see `Scenario::prepare`), and `#` is a comment. `$T` is the scenario's own directory, a
//! volume's id is `$ID`. `ATREST_TRANSCRIPTS=write` writes what the binary says into the files,
//! for review.

mod damage;
mod dumps;
mod importing;
mod mounting;
mod package;
mod rotating;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use atrest::crypto::Cipher;
use atrest::format::VolumeId;
use atrest::fs::volume::make_root;
use atrest::key::{ProviderOptions, VolumeKeys, passphrase, provider_from_uri};
use atrest::storage::{LockInfo, OsStorage, VolumeLock};
use atrest::volume::{OpenOptions, Volume};

const ID: [u8; 16] = *b"\x0a\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

/// One scenario: its directory, and what lives as long as it.
struct Scenario {
    directory: tempfile::TempDir,
    locks: Vec<VolumeLock>,
}

#[test]
fn transcripts() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/transcripts");
    let mut files: Vec<PathBuf> =
        fs::read_dir(base).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "transcripts were not found");
    let mut wrong = Vec::new();
    for file in files {
        let expected = fs::read_to_string(&file).unwrap();
        let actual = play(&expected);
        if actual == expected {
            continue;
        }
        if std::env::var_os("ATREST_TRANSCRIPTS").is_some_and(|mode| mode == "write") {
            fs::write(&file, &actual).unwrap();
        }
        wrong.push(format!("{}: expected\n{expected}\nbut this is so\n{actual}", file.display()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The transcript with the answers that the binary gives.
fn play(script: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut scenario = Scenario { directory, locks: Vec::new() };
    let mut actual = String::new();
    let mut answering = false;
    for line in script.lines() {
        if answering && !line.is_empty() {
            continue;
        }
        answering = false;
        let _ = writeln!(actual, "{line}");
        if let Some(command) = line.strip_prefix("$ ") {
            actual.push_str(&scenario.run(command));
            answering = true;
        } else if let Some(directive) = line.strip_prefix("@ ") {
            scenario.prepare(directive);
        }
    }
    actual
}

impl Scenario {
    fn root(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap()
    }

    /// `volume NAME`: an empty volume with one passphrase slot, which the file `correct` opens; the
    /// file `wrong` holds another passphrase. `lock NAME`: it is mounted elsewhere. `mkdir`,
    /// `file NAME TEXT`, `private NAME TEXT` (a file that nobody else can read), `edit NAME A B`
    /// (replace text in a file), `break NAME OFFSET` (flip a bit).
    fn prepare(&mut self, directive: &str) {
        let mut words = directive.splitn(3, ' ');
        let (verb, name) = (words.next().unwrap(), words.next().unwrap_or_default());
        let (path, rest) = (self.root().join(name), words.next().unwrap_or_default());
        match verb {
            "mkdir" => fs::create_dir_all(path).unwrap(),
            "file" => fs::write(path, rest.to_owned() + "\n").unwrap(),
            "private" => private_file(&path, format!("{rest}\n").as_bytes()),
            "edit" => {
                let (from, to) = rest.split_once(' ').unwrap();
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.contains(from), "{from} is not in {}", path.display());
                fs::write(&path, text.replacen(from, to, 1)).unwrap();
            }
            "break" => {
                let mut bytes = fs::read(&path).unwrap();
                bytes[rest.parse::<usize>().unwrap()] ^= 1;
                fs::write(&path, bytes).unwrap();
            }
            "volume" => self.make_volume(&path),
            "remove" if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            "remove" => fs::remove_file(path).unwrap(),
            "lock" => {
                let info = LockInfo {
                    host: "elsewhere".to_owned(),
                    pid: 4711,
                    mountpoint: Some("/mnt/clear".to_owned()),
                    since: "2026-01-31T12:00:00Z".to_owned(),
                    command: "mount".to_owned(),
                };
                self.locks.push(VolumeLock::acquire(&path, &info).unwrap());
            }
            verb => panic!("{verb}?"),
        }
    }

    fn make_volume(&self, path: &Path) {
        let secret = self.root().join("correct");
        private_file(&secret, b"correct\n");
        private_file(&self.root().join("wrong"), b"wrong\n");
        let options = ProviderOptions {
            passphrase_file: Some(secret),
            passphrase_cost: passphrase::Cost { memory_kib: 8 * 1024, passes: 1, lanes: 1 },
            ..ProviderOptions::default()
        };
        let provider = provider_from_uri("passphrase:", &options).unwrap();
        let (id, cipher) = (VolumeId(ID), Cipher::Aes256Gcm);
        let (config, keys) = VolumeKeys::create(id, cipher, &*provider).unwrap();
        let storage = OsStorage::create(path).unwrap();
        Volume::create(&storage, &keys, id, config.bytes(), 256 << 10).unwrap();
        let (storage, keys, options) = (Arc::new(storage), Arc::new(keys), OpenOptions::default());
        let opened = Volume::open(storage, keys, id, cipher, config.bytes(), &options);
        let (volume, _) = opened.unwrap();
        make_root(&volume, 0, 0, 0o755).unwrap();
        volume.close().unwrap();
    }

    fn run(&self, command: &str) -> String {
        let root = self.root();
        let root = root.to_str().expect("temporary directories have plain names");
        let words = command.split(' ').map(|word| word.replace("$T", root));
        let mut words = words.collect::<Vec<_>>().into_iter();
        assert_eq!(words.next().as_deref(), Some("atrest"));
        let output = Command::new(env!("CARGO_BIN_EXE_atrest"))
            .args(words)
            .env("ATREST_STATE", format!("{root}/state"))
            .env("COLUMNS", "100")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        render(&output, root)
    }
}

/// The line with what differs from run to run made the same: versions of keys, allocated bytes,
/// free space, process ids, how long something took.
fn volatile(line: &str) -> String {
    if let Some((before, after)) = line.split_once(" ms  ") {
        let before = before.trim_end_matches(|byte: char| byte == '.' || byte.is_ascii_digit());
        return volatile(&format!("{}  ... ms {after}", before.trim_end()));
    }
    let table = [
        ("key_version ", ','),
        ("\"key_version\": \"", '"'),
        ("bytes_on_disk: ", ' '),
        ("total_bytes: ", ' '),
        (", version ", '\n'),
        ("\"ms\": ", ','),
    ];
    for (name, end) in table {
        if let Some((before, after)) = line.split_once(name) {
            let rest = after.find(end).map_or("", |at| &after[at..]);
            return format!("{before}{name}...{rest}");
        }
    }
    line.to_owned()
}

/// Identifiers that are drawn, 32 digits of hexadecimal, are left out.
fn without_ids(line: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric();
    let mut kept = String::new();
    for (at, character) in line.char_indices() {
        let begins = at == 0 || !line[..at].ends_with(is_word);
        let word = line[at..].split(|c| !is_word(c)).next().unwrap_or_default();
        let inside = line[..at].rsplit(|c| !is_word(c)).next().unwrap_or_default();
        let whole = format!("{inside}{word}");
        let inside = is_word(character);
        match inside && whole.len() == 32 && whole.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true if begins => kept.push_str("..."),
            true => {}
            false => kept.push(character),
        }
    }
    kept
}

fn private_file(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.unwrap().write_all(bytes).unwrap();
}

fn render(output: &Output, root: &str) -> String {
    let id: String = ID.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut text = format!("exit {}\n", output.status.code().expect("it was not killed"));
    for (prefix, bytes) in [("out", &output.stdout), ("err", &output.stderr)] {
        for line in String::from_utf8_lossy(bytes).lines() {
            let line = without_ids(&volatile(&line.replace(root, "$T").replace(&id, "$ID")));
            let _ = writeln!(text, "{}", format!("{prefix}| {line}").trim_end());
        }
    }
    text
}
