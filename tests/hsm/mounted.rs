//! A volume whose key is on a token, mounted by the real daemon, which forks before it opens it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::alone;
use crate::programs::write_private;
use crate::token::{self, PIN, Token};

/// Runs `atrest`, with what it says in a file: a daemon that inherited a pipe would keep it open.
fn atrest(scratch: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let log = scratch.join("said");
    let open = || std::fs::File::create(&log).expect("writable");
    let status = Command::new(env!("CARGO_BIN_EXE_atrest"))
        .args(arguments)
        .env("ATREST_KEYSTORE", scratch.join("keys"))
        .env("ATREST_STATE", scratch.join("state"))
        .env("ATREST_PROVIDERS", scratch.join("providers.toml"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(open())
        .stderr(std::fs::File::options().append(true).open(&log).expect("writable"))
        .status()
        .expect("atrest runs");
    let stdout = std::fs::read(&log).expect("readable");
    let text = String::from_utf8_lossy(&stdout);
    assert!(!text.contains(PIN), "{text}");
    Output { status, stdout, stderr: Vec::new() }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

fn fails(output: &Output, code: i32, part: &str) {
    let text = text(output);
    assert!(output.status.code() == Some(code) && text.contains(part), "{code} {part}: {text}");
}

/// Made, mounted, unmounted and mounted again: by what was typed, by a mount option, by the
/// environment and by the administrator's file; and refused where it should be.
#[test]
fn volume() {
    alone::run("mounted::volume", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let (volume, mount) = (scratch.join("volume"), scratch.join("mnt"));
        std::fs::create_dir(&mount).expect("a directory");
        let providers = scratch.join("providers.toml");
        write_private(&providers, "");
        let [volume, mount_point] = [&volume, &mount].map(|path| path.to_str().expect("ASCII"));
        let (plain, typed) =
            ("pkcs11:token=kek;object=volume", token.uri("object=volume;token=kek"));
        let run = |arguments: &[&str]| atrest(scratch, arguments, &[]);
        let log = scratch.join("log");
        let log = log.to_str().expect("ASCII");
        let mounting = ["mount", "--log", log, volume, mount_point];
        let round = |what: &str, arguments: &[&str], environment: &[(&str, &str)]| {
            let output = atrest(scratch, &[&mounting[..], arguments].concat(), environment);
            succeeds(&output);
            let file = mount.join("file");
            if what != "first" {
                assert_eq!(
                    std::fs::read_to_string(&file).expect("it is there"),
                    "a secret",
                    "{what}"
                );
            }
            std::fs::write(&file, "a secret").expect("writable");
            // Beside the daemon, another process uses the token.
            let verify = [&["key", "verify", volume], arguments].concat();
            if !arguments.contains(&"-o") {
                assert!(
                    succeeds(&atrest(scratch, &verify, environment)).contains(": unwraps, wraps"),
                    "{what}"
                );
            }
            succeeds(&run(&["umount", mount_point]));
        };
        succeeds(&run(&["init", volume, "--kek", &typed]));
        let config = std::fs::read_to_string(scratch.join("volume/atrest.json")).expect("readable");
        assert!(config.contains(&format!("\"{plain}\"")), "{config}");
        assert!(!config.contains("softhsm") && !config.contains("pin"), "{config}");
        assert!(config.contains("A256GCM"), "{config}");
        fails(&run(&mounting), 23, "does not authorise");
        round("first", &["--allow-kek", &typed], &[]);
        round("option", &["-o", &format!("allow-kek={typed}")], &[]);
        let pin = scratch.join("pin");
        let pin = pin.to_str().expect("ASCII");
        let module = token.module.to_str().expect("ASCII");
        let environment = [("ATREST_PKCS11_MODULE", module), ("ATREST_PKCS11_PIN_FILE", pin)];
        round("environment", &["--allow-kek", plain], &environment);
        let entry = format!(
            "[[provider]]\nuri = \"{plain}\"\nmodule = \"{module}\"\npin_file = \"{pin}\"\n"
        );
        write_private(&providers, &entry);
        round("file", &[], &[]);
        write_private(Path::new(pin), "0000");
        fails(&run(&mounting), 27, "refused the PIN");
        write_private(Path::new(pin), PIN);
        token.tool(&["--delete-object", "--type", "secrkey", "--id", "01"]);
        fails(&run(&mounting), 21, "does not exist");
        let log = std::fs::read_to_string(log).expect("readable");
        assert!(log.contains("slot 1 opened") && !log.contains(PIN), "{log}");
    });
}
