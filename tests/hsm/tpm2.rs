//! `tpm2:` against swtpm, a TPM in software.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use atrest::crypto::random;
use atrest::format::config::Algorithm;
use atrest::key::{
    Authorization, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped, provider_from_uri,
};

use crate::alone;
use crate::programs::output;
use crate::token::{BINDING, OTHER};

/// `scripts/peers serve`, which ends when this is dropped.
struct Peer {
    process: Child,
    tcti: String,
}

impl Peer {
    fn start(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("a directory");
        let mut process = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/peers"))
            .arg("serve")
            .arg(directory)
            .arg("swtpm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/peers runs");
        let said = BufReader::new(process.stdout.take().expect("a pipe"));
        let lines = said.lines().map(|line| line.expect("text"));
        let lines: Vec<String> = lines.take_while(|line| line != "ready").collect();
        let tcti = lines.iter().find_map(|line| line.strip_prefix("SWTPM_TCTI="));
        let tcti = tcti.expect("swtpm is needed, and did not start").to_owned();
        Self { process, tcti }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        _ = self.process.wait();
    }
}

/// A TPM of one's own, by the environment of the case.
fn tpm(scratch: &Path) -> (Vec<(&'static str, OsString)>, Peer) {
    let peer = Peer::start(&scratch.join("tpm"));
    let tcti = OsString::from(&peer.tcti);
    (vec![("ATREST_TPM2_TCTI", tcti.clone()), ("TPM2TOOLS_TCTI", tcti)], peer)
}

/// The same, with a second one.
fn two_tpms(scratch: &Path) -> (Vec<(&'static str, OsString)>, [Peer; 2]) {
    let (mut environment, first) = tpm(scratch);
    let second = Peer::start(&scratch.join("second"));
    environment[0].1 = OsString::from(&second.tcti);
    environment.push(("FIRST_TCTI", OsString::from(&first.tcti)));
    (environment, [first, second])
}

fn provider(uri: &str) -> Result<Arc<dyn KekProvider>, KekError> {
    let authorization = Authorization::default().allow("tpm2:");
    provider_from_uri(uri, &ProviderOptions { authorization, ..ProviderOptions::default() })
}

fn round_trip(provider: &dyn KekProvider) -> Wrapped {
    let secrets = [random::secret(32), random::secret(64)];
    let wrapped = provider.wrap(&BINDING, &[&secrets[0], &secrets[1]]).expect("it seals");
    assert_eq!(wrapped.kek.algorithm, Algorithm::Tpm2Seal);
    for (secret, blob) in secrets.iter().zip(&wrapped.blobs) {
        assert!(blob.len() <= 1024, "{}", blob.len());
        let opened = provider.unwrap(&BINDING, &wrapped.kek, blob).expect("it unseals");
        assert!(opened.is_same(secret));
    }
    wrapped
}

fn refused(provider: &dyn KekProvider, wrapped: &Wrapped) -> KekError {
    let result = provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]);
    result.err().expect("it is to be refused")
}

fn denied(error: &KekError) -> String {
    assert!(matches!(error.kind(), KekErrorKind::Denied { .. }), "{error:?}");
    assert!(error.is_definitive());
    error.to_string()
}

fn is_integrity(error: &KekError) {
    assert!(matches!(error.kind(), KekErrorKind::Integrity), "{error:?}");
}

fn extend(register: u8) {
    output("tpm2_pcrextend", &[&format!("{register}:sha256={}", "ab".repeat(32))]);
}

/// Nothing stays in the TPM: it has no resource manager here, and room for three objects.
fn is_empty() {
    for handles in ["handles-transient", "handles-loaded-session"] {
        assert_eq!(output("tpm2_getcap", &[handles]).trim(), "", "{handles}");
    }
}

/// What is sealed is unsealed, for the volume that it was sealed for, and leaves nothing behind.
#[test]
fn sealing() {
    alone::run("tpm2::sealing", tpm, |_| {
        let provider = provider("tpm2:pcrs=11,7").expect("a URI");
        assert_eq!(provider.uri(), "tpm2:pcrs=7,11");
        let wrapped = round_trip(&*provider);
        let error = provider.unwrap(&OTHER, &wrapped.kek, &wrapped.blobs[0]);
        is_integrity(&error.err().expect("it is another volume's"));
        let latest = provider.latest_version().expect("it answers");
        assert_eq!(latest.as_deref(), Some(wrapped.kek.key_version.as_str()));
        for _ in 0..3 {
            round_trip(&*provider);
        }
        is_empty();
        let long = provider.wrap(&BINDING, &[&random::secret(65)]);
        let error = long.expect_err("too long for a TPM");
        assert!(matches!(error.kind(), KekErrorKind::BadRequest { .. }), "{error:?}");
    });
}

/// Every byte of what was sealed counts, and so does its length.
#[test]
fn tampering() {
    alone::run("tpm2::tampering", tpm, |_| {
        let provider = provider("tpm2:").expect("a URI");
        let wrapped = round_trip(&*provider);
        let blob = &wrapped.blobs[0];
        for at in (0..blob.len()).filter(|at| *at < 24 || at % 3 == 0) {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            let result = provider.unwrap(&BINDING, &wrapped.kek, &changed);
            is_integrity(&result.err().unwrap_or_else(|| panic!("byte {at} was changed")));
        }
        for length in [0, 1, 12, blob.len() - 1] {
            let result = provider.unwrap(&BINDING, &wrapped.kek, &blob[..length]);
            is_integrity(&result.err().expect("it was cut off"));
        }
        is_empty();
    });
}

/// When a register changes, what was sealed to it is denied, and the message names the register and
/// what to do; sealed anew, it opens. Other registers do not matter.
#[test]
fn changed_registers() {
    alone::run("tpm2::changed_registers", tpm, |_| {
        let provider = provider("tpm2:pcrs=7,11,14").expect("a URI");
        let wrapped = round_trip(&*provider);
        extend(8);
        assert!(provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).is_ok());
        extend(11);
        let text = denied(&refused(&*provider, &wrapped));
        assert!(text.contains("PCR 7,11,14") && text.contains("register 11 has changed"), "{text}");
        assert!(text.contains("key rotate"), "{text}");
        // A slot that claims the policy of today does not open by that.
        let mut forged = Wrapped { kek: wrapped.kek.clone(), blobs: wrapped.blobs.clone() };
        forged.kek.key_version =
            provider.latest_version().expect("it answers").expect("policies are versions");
        assert_ne!(forged.kek.key_version, wrapped.kek.key_version);
        denied(&refused(&*provider, &forged));
        is_empty();
        round_trip(&*provider);
    });
}

/// Failing does not lock the TPM, and registers that come back are as good as before.
#[test]
fn no_lockout() {
    alone::run("tpm2::no_lockout", tpm, |_| {
        let provider = provider("tpm2:pcrs=16").expect("a URI");
        let wrapped = round_trip(&*provider);
        extend(16);
        let mut forged = Wrapped { kek: wrapped.kek.clone(), blobs: wrapped.blobs.clone() };
        forged.kek.key_version =
            provider.latest_version().expect("it answers").expect("policies are versions");
        for _ in 0..40 {
            denied(&refused(&*provider, &forged));
        }
        output("tpm2_pcrreset", &["16"]);
        assert!(provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).is_ok());
    });
}

/// Another TPM does not unseal it, nor does the same one after it was cleared.
#[test]
fn another_tpm() {
    alone::run("tpm2::another_tpm", two_tpms, |_| {
        let first = std::env::var("FIRST_TCTI").expect("text");
        let sealed = alone_with(&first);
        let second = provider("tpm2:").expect("a URI");
        round_trip(&*second);
        is_integrity(&refused(&*second, &sealed));
        // The storage key's name is only a claim: without it, the TPM itself refuses.
        let mut claimed = Wrapped { kek: sealed.kek.clone(), blobs: sealed.blobs.clone() };
        let own = second.wrap(&BINDING, &[&random::secret(32)]).expect("it seals");
        claimed.kek = own.kek.clone();
        is_integrity(&refused(&*second, &claimed));
        let second_tcti = std::env::var("ATREST_TPM2_TCTI").expect("text");
        output("tpm2_clear", &["-T", &second_tcti]);
        is_integrity(&refused(&*second, &own));
    });
}

/// Seals something in another TPM, in another process: the environment is the process's.
fn alone_with(tcti: &str) -> Wrapped {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["tpm2::seal_for_another", "--exact", "--nocapture", "--test-threads=1"])
        .env("ATREST_TPM2_TCTI", tcti)
        .env("SEAL_FOR_ANOTHER", "1")
        .output()
        .expect("this program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("sealed ")).expect("it sealed");
    let mut words = line.split(' ').map(str::to_owned);
    let mut next = || words.next().expect("three words");
    let (key_id, key_version, hex) = (next(), next(), next());
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    let blob = (0..hex.len()).step_by(2).map(digit).collect();
    let algorithm = Algorithm::Tpm2Seal;
    let kek =
        atrest::format::config::KekReference { key_id, key_version, algorithm, parameters: None };
    Wrapped { kek, blobs: vec![blob] }
}

/// Not a case by itself: what [`alone_with`] runs.
#[test]
fn seal_for_another() {
    if std::env::var_os("SEAL_FOR_ANOTHER").is_some() {
        let wrapped = round_trip(&*provider("tpm2:").expect("a URI"));
        let hex: String = wrapped.blobs[0].iter().map(|byte| format!("{byte:02x}")).collect();
        println!("\nsealed {} {} {hex}", wrapped.kek.key_id, wrapped.kek.key_version);
    }
}

/// No TPM, one that is switched off, a TCTI that makes no sense: each says what to do.
#[test]
fn absent() {
    let cases = [
        ("device:/dev/no-such-tpm", "this host has no TPM"),
        ("swtpm:host=127.0.0.1,port=1", "no answer"),
        ("libevil.so", "does not say how to reach a TPM"),
    ];
    for (tcti, _) in cases {
        let prepare = |_: &Path| (vec![("ATREST_TPM2_TCTI", OsString::from(tcti))], ());
        alone::run("tpm2::absent", prepare, |_| {
            // In a process of its own the loop is at its first case; the environment says which.
            let tcti = std::env::var("ATREST_TPM2_TCTI").expect("text");
            let (_, part) = cases.iter().find(|(known, _)| *known == tcti).expect("a case");
            let error = provider("tpm2:").expect("a URI").latest_version().expect_err("none");
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.is_definitive(), "{error:?}");
            println!("test result: ok. 1 passed");
            std::process::exit(0);
        });
    }
}

/// A TPM that others have filled, and an owner with a password, are told from a lost key.
#[test]
fn obstacles() {
    alone::run("tpm2::obstacles", tpm, |scratch| {
        let provider = provider("tpm2:").expect("a URI");
        let wrapped = round_trip(&*provider);
        for number in 0..3 {
            let context = scratch.join(format!("{number}.ctx"));
            let context = context.to_str().expect("ASCII");
            output("tpm2_createprimary", &["-C", "n", "-G", "ecc", "-c", context]);
        }
        let error = refused(&*provider, &wrapped);
        assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("no room left"), "{error}");
        output("tpm2_flushcontext", &["-t"]);
        assert!(provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).is_ok());
        output("tpm2_changeauth", &["-c", "owner", "secret"]);
        let error = refused(&*provider, &wrapped);
        assert!(matches!(error.kind(), KekErrorKind::AuthenticationFailed { .. }), "{error:?}");
        assert!(error.to_string().contains("tpm2_changeauth"), "{error}");
        output("tpm2_changeauth", &["-c", "owner", "-p", "secret"]);
        assert!(provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).is_ok());
    });
}

/// Who listens on the bus sees neither what is sealed nor what is unsealed. That the tap works is
/// shown by a tool that does not encrypt.
#[test]
fn nothing_on_the_bus() {
    let prepare = |scratch: &Path| {
        let (mut environment, peer) = tpm(scratch);
        environment.push(("REAL_TCTI", OsString::from(&peer.tcti)));
        // A port for the tap, which the case listens on itself.
        let port = tap_port();
        environment[0].1 = format!("swtpm:host=127.0.0.1,port={port}").into();
        environment.push(("TAP_PORT", port.to_string().into()));
        (environment, peer)
    };
    alone::run("tpm2::nothing_on_the_bus", prepare, |scratch| {
        let number = |text: &str| text.rsplit('=').next().and_then(|n| n.parse::<u16>().ok());
        let real = number(&std::env::var("REAL_TCTI").expect("text")).expect("a port");
        let tap = number(&std::env::var("TAP_PORT").expect("text")).expect("a port");
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        for offset in [0, 1] {
            listen(tap + offset, real + offset, heard.clone());
        }
        let contains = |bytes: &[u8]| {
            heard.lock().expect("not poisoned").windows(bytes.len()).any(|part| part == bytes)
        };
        let provider = provider("tpm2:").expect("a URI");
        let secret = random::secret(32);
        let wrapped = provider.wrap(&BINDING, &[&secret]).expect("it seals");
        let opened = provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]);
        assert!(opened.expect("it unseals").is_same(&secret));
        assert!(heard.lock().expect("not poisoned").len() > 1000, "the tap heard something");
        let public = &wrapped.blobs[0][14..40];
        assert!(contains(public), "it heard what is public");
        assert!(!contains(&secret.expose()[..8]) && !contains(&secret.expose()[24..]));
        let plain = scratch.join("plain");
        std::fs::write(&plain, b"in the clear on the bus").expect("writable");
        let parent = scratch.join("parent.ctx");
        let [plain, parent] = [&plain, &parent].map(|path| path.to_str().expect("ASCII"));
        let through = format!("swtpm:host=127.0.0.1,port={tap}");
        output("tpm2_createprimary", &["-T", &through, "-Q", "-C", "o", "-c", parent]);
        output("tpm2_create", &["-T", &through, "-Q", "-C", parent, "-i", plain]);
        assert!(contains(b"in the clear on the bus"), "the tap hears what is not encrypted");
    });
}

/// Two free ports that follow each other.
fn tap_port() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = first.local_addr().expect("bound").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

/// Passes on what comes to `port`, and what comes back, and writes both down.
fn listen(port: u16, to: u16, heard: Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("it was free");
    let pass = |mut from: TcpStream, mut to: TcpStream, heard: Arc<Mutex<Vec<u8>>>| {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                heard.lock().expect("not poisoned").extend_from_slice(&buffer[..count]);
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            _ = to.shutdown(std::net::Shutdown::Write);
        })
    };
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("a client");
            let server = TcpStream::connect(("127.0.0.1", to)).expect("swtpm listens");
            let back = (server.try_clone().expect("open"), client.try_clone().expect("open"));
            pass(client, server, heard.clone());
            pass(back.0, back.1, heard.clone());
        }
    });
}
