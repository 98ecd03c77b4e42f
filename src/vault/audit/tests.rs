//! Lines are whole, durable before `record` returns, rotated, and missing ones are counted.

use super::*;

fn event() -> Event<'static> {
    Event {
        operation: "KeyUnwrap",
        api_version: Some("7.4"),
        status: 200,
        duration: Duration::from_millis(2),
        address: Some("::ffff:192.0.2.1".parse().expect("an address")),
        correlation_id: "c",
        application_id: Some("app"),
        object_id: Some("oid"),
        id: Some("https://v/keys/k/1"),
        method: "POST",
        path: "/keys/k/1/unwrapkey",
        base: "https://v",
        client: Some("agent"),
        ..Event::default()
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("it is there");
    assert!(text.is_empty() || text.ends_with('\n'), "no line is torn");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The shape that readers of Key Vault's logs know.
#[test]
fn shape() {
    let now = jiff::Timestamp::from_second(1_800_000_000).expect("a time");
    let value = line(&event(), now);
    for (pointer, expected) in [
        ("/time", json!("2027-01-15T08:00:00.000000Z")),
        ("/operationName", json!("KeyUnwrap")),
        ("/operationVersion", json!("7.4")),
        ("/resultType", json!("Success")),
        ("/resultSignature", json!("OK")),
        ("/durationMs", json!(2.0)),
        ("/callerIpAddress", json!("192.0.2.1")),
        ("/correlationId", json!("c")),
        ("/identity/claim/appid", json!("app")),
        ("/identity/claim/oid", json!("oid")),
        ("/properties/id", json!("https://v/keys/k/1")),
        ("/properties/httpStatusCode", json!(200)),
        ("/properties/requestUri", json!("https://v/keys/k/1/unwrapkey?api-version=7.4")),
    ] {
        assert_eq!(value.pointer(pointer), Some(&expected), "{pointer}");
    }
    let failed = Event { status: 403, error: Some(("Forbidden", Some("KeyDisabled"))), ..event() };
    let value = line(&failed, now);
    assert_eq!(value["resultType"], "Failure");
    assert_eq!(value["resultDescription"], "Forbidden: KeyDisabled");
    let long = "x\n".repeat(10_000);
    let text = line(&Event { path: &long, client: Some(&long), ..event() }, now).to_string();
    assert!(text.len() < 4 * TEXT_CHARS_MAX + 1000 && !text.contains('\n'), "{}", text.len());
}

/// Many at once: every line is there when `record` has returned, once, in files of bounded size,
/// the oldest of which go.
#[test]
fn rotation() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = AuditOptions::new(directory.path().join("deep/audit"));
    (options.file_bytes_max, options.files_max) = (20_000, 4);
    let log = AuditLog::open(options.clone()).expect("it is made");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..100 {
                    let id = format!("{thread}-{n}");
                    log.record(&Event { correlation_id: &id, ..event() }).expect("written");
                }
            });
        }
    });
    log.record(&Event { correlation_id: "last", ..event() }).expect("written");
    let current = options.directory.join(FILE_NAME);
    let last = lines(&current).pop().expect("a line");
    assert_eq!(last["correlationId"], "last", "durable before it returns");
    let mut names: Vec<_> = std::fs::read_dir(&options.directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    assert_eq!(names.len(), 4, "{names:?}");
    let mut ids = std::collections::BTreeSet::new();
    for name in &names {
        assert!(std::fs::metadata(name).expect("a file").len() <= 20_000);
        for line in lines(name) {
            assert!(ids.insert(line["correlationId"].to_string()), "a line is there twice");
        }
    }
    assert!(ids.len() > 60);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&current).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// What a crash tore is ended, and what is there is kept.
#[test]
fn torn_lines() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(FILE_NAME);
    std::fs::write(&path, "{\"a\":1}\n{\"b\":").expect("writable");
    let log = AuditLog::open(AuditOptions::new(directory.path().into())).expect("it opens");
    log.record(&event()).expect("written");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[1], lines.len()), ("{\"a\":1}", "{\"b\":", 3));
    assert!(serde_json::from_str::<Value>(lines[2]).is_ok());
}

/// When nothing can be written, nothing is answered, or all is and counted, as configured; and
/// when it can be again, the log says how many lines are missing. The disk is made to fail by
/// rotating into a directory that is gone.
#[test]
fn failures() {
    for on_failure in [OnFailure::Refuse, OnFailure::Serve] {
        let directory = tempfile::tempdir().expect("a directory");
        let own = directory.path().join("audit");
        let mut options = AuditOptions { on_failure, ..AuditOptions::new(own.clone()) };
        options.file_bytes_max = 1;
        let log = AuditLog::open(options).expect("it is made");
        log.record(&event()).expect("written");
        std::fs::remove_dir_all(&own).expect("it is there");
        for _ in 0..3 {
            assert_eq!(log.record(&event()).is_err(), on_failure == OnFailure::Refuse);
        }
        std::fs::create_dir(&own).expect("writable");
        log.record(&Event { correlation_id: "again", ..event() }).expect("written");
        let lines = lines(&own.join(FILE_NAME));
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["operationName"], "VaultAuditLost");
        assert_eq!(lines[0]["properties"]["lines"], 3);
        assert_eq!(lines[1]["correlationId"], "again");
    }
}

/// A full disk leaves no half line: /dev/full takes nothing, a file of a limited file system is
/// asked for in the suites; here the limit of a file's size (setrlimit(2)) would end the process.
#[test]
fn full() {
    let full = std::fs::OpenOptions::new().append(true).open("/dev/full").expect("Linux has it");
    let mut files = Files {
        options: AuditOptions::new("/nonexistent".into()),
        current: Some(Current { file: full, bytes: 0 }),
    };
    let error = files.append(0, b"line\n").expect_err("there is no space");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(files.append(0, b"line\n").is_err(), "the next one opens it anew");
}
