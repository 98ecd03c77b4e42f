//! Metrics of a mount: the text is what the format says (version 0.0.4,
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>), counts are those of what was
//! done, each one is in the manual, and clients that misbehave keep nobody from an answer.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::mounted::Mounted;

const OPERATIONS: &str = include_str!("../../src/manual/operations.md");

/// A family: its type, and its samples by name and labels.
struct Family {
    kind: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':');
    first && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

/// Labels behind a brace, up to the closing one, and what follows.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label has a value");
        assert!(is_name(name) && !name.contains(':'), "{name:?}");
        let (value, rest) = rest.split_once('"').expect("a value ends");
        assert!(!value.contains('\\'), "none of ours has anything to escape: {value:?}");
        assert!(labels.insert(name.to_owned(), value.to_owned()).is_none(), "{name} twice");
        match rest.strip_prefix(',') {
            Some(more) => text = more,
            None => return (labels, rest.strip_prefix('}').expect("labels end")),
        }
    }
}

/// Reads a text strictly: each family once, HELP and TYPE before its samples, which have its name
/// and stand together, none twice.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut help, mut current) = (String::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("HELP has words");
            assert!(is_name(name) && !words.is_empty());
            help = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("TYPE has a type");
            assert_eq!(name, help, "HELP comes first");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let family = Family { kind: kind.to_owned(), samples: Vec::new() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} twice");
            current = name.to_owned();
        } else {
            let end = line.find(['{', ' ']).expect("a sample has a value");
            let (name, rest) = line.split_at(end);
            let (labels, rest) = match rest.strip_prefix('{') {
                Some(rest) => labels(rest),
                None => (BTreeMap::new(), rest),
            };
            let value = rest.strip_prefix(' ').expect("a space before the value");
            let value = value.replace("+Inf", "inf").parse().expect("a number, and nothing else");
            let family = families.get_mut(&current).expect("TYPE comes first");
            let suffixes: &[&str] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let suffix = name.strip_prefix(current.as_str()).expect("samples stand together");
            assert!(suffixes.contains(&suffix), "{name}");
            assert_eq!(labels.contains_key("le"), suffix == "_bucket", "{line}");
            let same =
                |(n, l, _): &&(String, BTreeMap<String, String>, f64)| n == name && *l == labels;
            assert!(family.samples.iter().find(same).is_none(), "{line} twice");
            family.samples.push((name.to_owned(), labels, value));
        }
    }
    families.values().filter(|family| family.kind == "histogram").for_each(check_histogram);
    families
}

/// Buckets ascend in bound and in count, and the last, infinite one has all.
fn check_histogram(family: &Family) {
    let mut last: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (name, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let le = labels.remove("le").map(|le| le.replace("+Inf", "inf").parse::<f64>().unwrap());
        let series = format!("{labels:?}");
        match le {
            Some(le) => {
                let before = last.insert(series, (le, *value)).unwrap_or((-1.0, 0.0));
                assert!(le > before.0 && *value >= before.1, "{name} {labels:?}");
            }
            None if name.ends_with("_count") => {
                assert_eq!(last[&series], (f64::INFINITY, *value), "{name} {labels:?}");
            }
            None => assert!(*value >= 0.0),
        }
    }
}

fn value(families: &BTreeMap<String, Family>, name: &str, label: Option<&str>) -> f64 {
    let found = families.values().flat_map(|family| &family.samples);
    let mut found = found.filter(|(sample, labels, _)| {
        sample == name && label.is_none_or(|label| labels.values().any(|value| value == label))
    });
    found.next().unwrap_or_else(|| panic!("there is no {name} {label:?}")).2
}

fn ask(mut stream: impl std::io::Read + std::io::Write, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a header");
    (head.to_owned(), body.to_owned())
}

struct Scraped {
    mounted: Mounted,
    socket: PathBuf,
}

impl Scraped {
    fn new(options: &[&str]) -> Self {
        let mounted = Mounted::new();
        let socket = mounted.volume().with_file_name("metrics.sock");
        let endpoint = format!("unix:{}", socket.display());
        let mut all = vec!["--metrics", &endpoint];
        all.extend(options);
        mounted.remount_with(&all);
        Self { mounted, socket }
    }

    fn text(&self) -> String {
        let (head, body) = ask(UnixStream::connect(&self.socket).unwrap(), "/metrics");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        body
    }

    fn command(&self, word: &str) -> i32 {
        self.mounted.exit_code(&[word.as_ref(), self.mounted.path().as_os_str()])
    }
}

/// What was done is what is counted; the text is right while it is unlocked and while it is locked.
#[test]
fn counts() {
    let scraped = Scraped::new(&[]);
    fs::write(scraped.mounted.join("file"), vec![7; 300_000]).unwrap();
    fs::File::open(scraped.mounted.join("file")).unwrap().sync_all().unwrap();
    assert!(fs::metadata(scraped.mounted.join("missing")).is_err());
    let families = parse(&scraped.text());
    let get = |name: &str, label: Option<&str>| value(&families, name, label);
    assert!(get("atrest_written_bytes_total", None) >= 300_000.0);
    assert!(get("atrest_operation_seconds_count", Some("create")) >= 1.0);
    assert!(get("atrest_operation_seconds_count", Some("fsync")) >= 1.0);
    assert!(get("atrest_operation_seconds_sum", Some("write")) > 0.0);
    assert_eq!(get("atrest_lease_state", Some("unlocked")), 1.0);
    assert_eq!(get("atrest_lease_state", Some("locked (manual)")), 0.0);
    assert!(get("atrest_lease_last_good_age_seconds", None) < 60.0);
    assert!(get("atrest_used_bytes", None) > 0.0 && get("atrest_inodes", None) >= 2.0);
    assert_eq!(get("atrest_authentication_failures_total", Some("page_lost")), 0.0);
    assert_eq!(get("atrest_audit_alarm", None), 0.0);
    // Both endings of the word "lock": locked, and again unlocked after one more use of the key.
    assert_eq!(scraped.command("lock"), 0);
    let locked = parse(&scraped.text());
    assert_eq!(value(&locked, "atrest_lease_state", Some("locked (manual)")), 1.0);
    assert!(!locked.contains_key("atrest_used_bytes"), "nothing is known of what is locked");
    assert_eq!(scraped.command("unlock"), 0);
    assert_eq!(fs::read(scraped.mounted.join("file")).unwrap().len(), 300_000);
    let unlocked = parse(&scraped.text());
    assert!(value(&unlocked, "atrest_provider_seconds_count", None) >= 1.0);
    assert!(value(&unlocked, "atrest_read_bytes_total", None) >= 300_000.0);
    let misses = value(&unlocked, "atrest_cache_misses_total", Some("data_key"));
    assert!(misses >= 1.0);
    let socket = scraped.socket.clone();
    assert_eq!(scraped.command("umount"), 0);
    assert!(!socket.exists(), "the socket goes with the mount");
}

/// What was opened, read and closed before is so again without asking for its attributes, where
/// nothing is written.
#[test]
fn read_only_mounts_ask_once() {
    let scraped = Scraped::new(&[]);
    let path = scraped.mounted.join("file");
    fs::write(&path, "as it is").unwrap();
    let endpoint = format!("unix:{}", scraped.socket.display());
    scraped.mounted.remount_with(&["--read-only", "--metrics", &endpoint]);
    let getattrs = || {
        let families = parse(&scraped.text());
        value(&families, "atrest_operation_seconds_count", Some("getattr"))
    };
    let read = || {
        let file = fs::File::open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8);
        assert_eq!(std::io::read_to_string(file).unwrap(), "as it is");
    };
    read();
    let before = getattrs();
    (0..20).for_each(|_| read());
    assert_eq!(getattrs(), before);
}

/// A key that is gone, and an audit log that cannot be written, are seen.
#[test]
fn alarms() {
    let scraped = Scraped::new(&["--kek-check", "1s", "--audit", "/proc/no/audit"]);
    let key = scraped.mounted.volume().with_file_name("keys").join("default.json");
    let away = scraped.mounted.volume().with_file_name("away.json");
    fs::rename(&key, &away).unwrap();
    let begun = Instant::now();
    let families = loop {
        let families = parse(&scraped.text());
        if value(&families, "atrest_lease_state", Some("locked (revoked)")) == 1.0 {
            break families;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", scraped.mounted.log_text());
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(value(&families, "atrest_provider_failures_total", Some("gone")) >= 2.0);
    assert_eq!(value(&families, "atrest_audit_alarm", None), 1.0);
    assert!(value(&families, "atrest_audit_records_lost_total", None) >= 2.0);
    fs::rename(&away, &key).unwrap();
    assert_eq!(scraped.command("unlock"), 0);
}

/// The manual names every metric with its labels, and none that is not there.
#[test]
fn documented() {
    let scraped = Scraped::new(&[]);
    let families = parse(&scraped.text());
    let rows = OPERATIONS.lines().filter_map(|line| line.strip_prefix("| `atrest_"));
    let named: Vec<String> =
        rows.map(|row| format!("atrest_{}", row.split(['`', '{']).next().unwrap())).collect();
    let real: Vec<String> = families.keys().cloned().collect();
    let mut sorted = named.clone();
    sorted.sort();
    assert_eq!(sorted, real);
}

/// Whoever sends nothing, garbage, a header without end or asks for something else gets no more
/// than that; there are few connections, and slow ones are cut off.
#[test]
fn clients_that_misbehave() {
    let mounted = Mounted::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    mounted.remount_with(&["-o", &format!("metrics=tcp:{free}")]);
    let connect = || TcpStream::connect(free).unwrap();
    assert!(ask(connect(), "/").0.starts_with("HTTP/1.1 404 "));
    let mut garbage = connect();
    garbage.write_all(b"\0\xff\r\n\r\n").unwrap();
    let mut long = connect();
    let _ =
        long.write_all(format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(1 << 20)).as_bytes());
    let mut silent: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
    let begun = Instant::now();
    // A client of those that are too many is hung up on; the others when their time is over.
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    parse(&ask(connect(), "/metrics").1);
    let address = "tcp:0.0.0.0:9480";
    let (volume, mount) = (mounted.volume(), mounted.path().as_os_str());
    let arguments =
        ["mount".as_ref(), "--metrics".as_ref(), address.as_ref(), volume.as_ref(), mount];
    assert_eq!(mounted.exit_code(&arguments), 2, "to this host only");
    assert!(mounted.log_text().contains("to this host only"));
}
