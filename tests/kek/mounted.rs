//! Volumes of the peer's key, mounted by real daemons: many at once, and one whose key is taken
//! away. What the commands say, and what the daemons log, is among what is searched for secrets.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use atrest::format::config::UnverifiedConfig;
use atrest::key::{Binding, ProviderOptions, provider_from_uri};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::alone::logs;
use crate::contract::Gate;
use crate::memory_of::{Needle, daemon_of, found};
use crate::peer::Peer;

/// Exit codes of the registry (`cli::exit`).
const DENIED: i32 = 21;
const NO_CREDENTIAL: i32 = 27;
const STILL_LOCKED: i32 = 54;
/// So many daemons log everything; the logs of a hundred would take long to search.
const TALKATIVE: usize = 2;

/// Where the volumes and the commands of a case are.
struct Host {
    scratch: PathBuf,
    logs: PathBuf,
    uri: String,
    /// Arguments that lead to the key.
    keys: Vec<String>,
    /// `unlock` has one of them only.
    passphrase: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
}

/// A volume, and where it is mounted. Unmounted when dropped, however the case ends.
struct Place {
    number: usize,
    volume: PathBuf,
    mountpoint: PathBuf,
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

impl Drop for Place {
    fn drop(&mut self) {
        _ = Command::new("umount").args(["-l", "-q"]).arg(&self.mountpoint).status();
    }
}

/// Tries both.
pub fn try_all(peer: &dyn Peer) {
    let scratch = crate::alone::scratch();
    let host = Host::new(peer, &scratch);
    let places: Vec<Place> = (0..peer.row().mounts).map(|n| Place::new(&scratch, n)).collect();
    many_at_once(peer, &host, &places);
    taken_away(peer, &host, &places[0]);
}

/// As many hosts mount a volume each, all at once; each serves, and ends.
fn many_at_once(peer: &dyn Peer, host: &Host, places: &[Place]) {
    let gate = Gate::new(peer.row().daemons_at_once);
    let each = |work: &(dyn Fn(&Place) + Sync)| {
        std::thread::scope(|scope| {
            for place in places {
                let gate = &gate;
                scope.spawn(move || {
                    let _turn = gate.enter();
                    work(place);
                });
            }
        });
    };
    each(&|place| host.succeeds(place, "init", &["--kek", &host.uri]));
    each(&|place| host.succeeds(place, "mount", &[]));
    for place in places {
        let file = place.mountpoint.join("file");
        std::fs::write(&file, place.number.to_string()).expect("it is mounted");
    }
    for place in places {
        let text = std::fs::read_to_string(place.mountpoint.join("file")).expect("it serves");
        assert_eq!(text, place.number.to_string());
    }
    each(&|place| host.succeeds(place, "umount", &[]));
}

/// While the key is taken away a volume is neither mounted nor unlocked; when it is given back, it
/// is, and what was open works again.
fn taken_away(peer: &dyn Peer, host: &Host, place: &Place) {
    let Some((take, give)) = peer.row().taking() else { return };
    host.succeeds(place, "mount", &[]);
    let file = place.mountpoint.join("file");
    let needles = volume_keys(peer, place);
    let daemon = daemon_of(&place.volume);
    let looks = |when: &str| {
        let found = if is_root() { found(daemon, &needles) } else { Vec::new() };
        println!("{when}: the volume key is in {} places of the daemon's memory", found.len());
        found
    };
    assert!(!looks("mounted").is_empty() || !is_root(), "the key is not found while in use");
    host.succeeds(place, "lock", &[]);
    let left = looks("locked");
    assert!(left.is_empty(), "after the lockdown: {left:#?}");
    peer.act(take);
    assert_eq!(host.run(place, "unlock", &[]), STILL_LOCKED);
    assert!(std::fs::read(&file).is_err(), "it is served without its key");
    peer.act(give);
    host.succeeds(place, "unlock", &[]);
    assert_eq!(std::fs::read(&file).expect("it goes on"), b"0");
    host.succeeds(place, "umount", &[]);
    peer.act(take);
    let code = host.run(place, "mount", &[]);
    assert!([DENIED, NO_CREDENTIAL].contains(&code), "mounted without its key: exit {code}");
    peer.act(give);
    host.succeeds(place, "mount", &[]);
    host.succeeds(place, "umount", &[]);
}

/// The volume key, in every form in which a provider may have had it.
fn volume_keys(peer: &dyn Peer, place: &Place) -> Vec<Needle> {
    let bytes = std::fs::read(place.volume.join("atrest.json")).expect("a volume");
    let unverified = UnverifiedConfig::decode(&bytes).expect("well-formed");
    let claims = unverified.claims();
    let slot = &claims.slots[0];
    let provider = provider_from_uri(&slot.provider, &peer.options()).expect("it is allowed");
    let binding = Binding { volume_id: claims.volume_id };
    let key = provider.unwrap(&binding, &slot.kek, &slot.wrapped[0].1).expect("it is granted");
    let hex: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    // Without the last characters, which are others where padding or more bytes follow.
    let base64 = STANDARD_NO_PAD.encode(key.expose())[..40].to_owned();
    let url = URL_SAFE_NO_PAD.encode(key.expose())[..40].to_owned();
    let mut needles = vec![Needle { name: "the volume key", bytes: key.expose().to_vec() }];
    let texts = [("hexadecimal", hex), ("Base64", base64), ("Base64 for URLs", url)];
    needles.extend(texts.map(|(name, text)| Needle { name, bytes: text.into_bytes() }));
    needles
}

impl Place {
    fn new(scratch: &Path, number: usize) -> Self {
        let directory = scratch.join(format!("mounted-{number}"));
        let mountpoint = directory.join("mnt");
        std::fs::create_dir_all(&mountpoint).expect("writable");
        Self { number, volume: directory.join("volume"), mountpoint }
    }
}

impl Host {
    fn new(peer: &dyn Peer, scratch: &Path) -> Self {
        let ProviderOptions { authorization, passphrase_file, key_store, .. } = peer.options();
        let mut keys = Vec::new();
        for entry in authorization.entries() {
            keys.extend(["--allow-kek".to_owned(), entry.to_owned()]);
        }
        let path = |path: PathBuf| path.into_os_string().into_string().expect("ASCII");
        keys.extend(key_store.into_iter().flat_map(|store| ["--key-store".into(), path(store)]));
        let file = passphrase_file.into_iter();
        let passphrase: Vec<String> =
            file.flat_map(|file| ["--passphrase-file".into(), path(file)]).collect();
        keys.extend(passphrase.iter().cloned());
        let mut environment = vec![("ATREST_STATE", scratch.join("state").into_os_string())];
        let providers = peer.providers_file().map(PathBuf::into_os_string);
        environment.extend(providers.map(|file| ("ATREST_PROVIDERS", file)));
        let (scratch, logs) = (scratch.to_owned(), logs(scratch));
        Self { scratch, logs, uri: peer.uri(), keys, passphrase, environment }
    }

    /// Runs a command about a volume, and returns its exit code. What it says goes to a file: a
    /// daemon that inherited a pipe would keep it open.
    fn run(&self, place: &Place, command: &str, arguments: &[&str]) -> i32 {
        let said = self.logs.join(format!("{}-{command}.txt", place.number));
        let said = File::options().create(true).append(true).open(said).expect("writable");
        let mut process = Command::new(env!("CARGO_BIN_EXE_atrest"));
        process.arg(command);
        match command {
            "init" => _ = process.arg(&place.volume).args(self.without_authorisation()),
            "mount" => {
                let level = if place.number < TALKATIVE { "trace" } else { "info" };
                process.args([&place.volume, &place.mountpoint]).args(&self.keys);
                process.args(["--log-level", level, "--log"]).arg(self.log(place));
            }
            "unlock" => _ = process.arg(&place.mountpoint).args(&self.passphrase),
            _ => _ = process.arg(&place.mountpoint),
        }
        let status = process
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.scratch)
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("open"))
            .stderr(said)
            .status()
            .expect("the program runs");
        status.code().expect("it was not killed")
    }

    /// What is to be said where `--kek` authorises.
    fn without_authorisation(&self) -> impl Iterator<Item = &String> {
        let pairs = self.keys.chunks_exact(2).filter(|pair| pair[0] != "--allow-kek");
        pairs.flatten()
    }

    fn log(&self, place: &Place) -> PathBuf {
        self.logs.join(format!("{}-daemon.log", place.number))
    }

    fn succeeds(&self, place: &Place, command: &str, arguments: &[&str]) {
        let code = self.run(place, command, arguments);
        let said = self.logs.join(format!("{}-{command}.txt", place.number));
        let said = std::fs::read_to_string(said).expect("text");
        assert_eq!(code, 0, "{command} of volume {}: {said}", place.number);
    }
}
