//! What service managers and programs are told of a mount: sd_notify(3), the control socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use atrest::daemon::paths;
use atrest::storage::VolumeLock;
use serde_json::{Value, json};

use crate::mounted::{Mounted, is_root};

const PATIENCE: Duration = Duration::from_secs(30);

/// Asks as the manual says that one asks.
fn ask(socket: &PathBuf, request: &str) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{request}: {error}: {line:?}"))
}

/// What somebody uses whom nobody can name is unmounted when that passes, and is busy when not.
#[test]
fn busy_for_a_moment() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() || !is_root() {
        return eprintln!("skipped: only root may mount something below a mount of atrest");
    }
    let below = mounted.join("below");
    std::fs::create_dir(&below).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).arg(&below).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    };
    let unmount = || mounted.exit_code(&["umount".as_ref(), mounted.path().as_os_str()]);
    run("mount", &["-t", "tmpfs", "tmpfs"]);
    assert_eq!(unmount(), 51, "it is still there");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            run("umount", &[]);
        });
        assert_eq!(unmount(), 0, "it is gone by then: {}", mounted.log_text());
    });
}

/// A mount in the foreground says when it is ready, each state of its lease, and that it ends; it
/// is asked with every request of the protocol.
#[test]
fn told_and_asked() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    mounted.unmount();
    let address = mounted.volume().with_file_name("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).expect("it tells");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut daemon = mounted.foreground(("NOTIFY_SOCKET", address.as_os_str()));
    assert_eq!(told(), "READY=1");
    assert!(VolumeLock::holder(&mounted.volume()).is_ok());
    let config = std::fs::read_to_string(mounted.volume().join("atrest.json")).unwrap();
    let parsed: Value = serde_json::from_str(&config).unwrap();
    let socket = paths::control_socket(parsed["volume_id"].as_str().unwrap()).unwrap();
    let done = json!({ "ok": true });

    let status = ask(&socket, r#"{"op":"status"}"#);
    assert_eq!((&status["ok"], &status["status"]["state"]), (&json!(true), &json!("unlocked")));
    for field in ["since_s", "last_good_s", "next_check_in_s"] {
        assert!(status["status"]["lease"][field].is_u64(), "{field}: {status}");
    }
    assert_eq!(ask(&socket, r#"{"op":"sync"}"#), done);
    assert_eq!(ask(&socket, r#"{"op":"lock"}"#), done);
    assert_eq!(told(), "STATUS=locking by hand");
    assert_eq!(told(), "STATUS=locked by hand");
    let status = ask(&socket, r#"{"op":"status"}"#);
    assert_eq!(status["status"]["state"], json!("locked (manual)"));
    assert_eq!(status["status"]["lease"]["next_check_in_s"], Value::Null);
    let refused = ask(&socket, r#"{"op":"unlock","slot":7,"passphrase_file":null}"#);
    assert_eq!(refused, json!({ "ok": false, "error": "the volume has no key slot 7" }));
    assert_eq!(ask(&socket, r#"{"op":"unlock"}"#), done);
    assert_eq!(told(), "STATUS=unlocked");
    let again = ask(&socket, &json!({ "op": "replace-config", "config": config }).to_string());
    assert_eq!(again["ok"], json!(false), "it has that one: {again}");
    let refused = ask(&socket, r#"{"op":"roll-back","undo":false}"#);
    assert_eq!(refused, json!({ "ok": false, "error": "no app runs here" }));
    for garbage in ["", "null", "{\"op\":7}", "{\"op\":\"lock\",\"x\":1}", "\u{1}\u{2}"] {
        assert_eq!(ask(&socket, garbage)["ok"], json!(false), "{garbage:?}");
    }
    assert_eq!(ask(&socket, r#"{"op":"unmount"}"#), done);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", mounted.log_text());
    assert!(!socket.exists());
}
