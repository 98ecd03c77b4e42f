//! Every way to tamper with a log is found, as far back as its last anchor.

use atrest::audit::Finding;
use atrest::format::config::AuditAnchor;

use crate::world::{World, entry, findings, judge};

/// A log with every kind of record: before the key was there, of two sessions, of another process
/// beside, of another volume, and while the keys are wiped; and its end.
fn written(world: &World) -> (Vec<Vec<u8>>, AuditAnchor) {
    let early = world.process();
    early.record(&entry("no key yet").failed("denied", "no")).unwrap();
    early.record(&entry("no key yet")).unwrap();
    let daemon = world.opened();
    daemon.record(&entry("one")).unwrap();
    daemon.record(&entry("a \"quoted\" \u{1b}[31m line\nfeed")).unwrap();
    let command = world.opened();
    command.record(&entry("beside")).unwrap();
    daemon.record(&entry("two")).unwrap();
    let other = World { directory: tempfile::tempdir().unwrap(), ..World::new() };
    let stranger = atrest::audit::Audit::new(world.options(), &other.id);
    stranger.begin(&other.keys, None);
    stranger.record(&entry("of another volume")).unwrap();
    daemon.record(&entry("locked")).unwrap();
    daemon.begin(&world.keys, None);
    daemon.record(&entry("unlocked")).unwrap();
    let bytes = world.bytes();
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    (lines, daemon.to_anchor(false).unwrap())
}

fn judged(world: &World, anchor: Option<AuditAnchor>, lines: &[Vec<u8>]) -> Vec<Finding> {
    findings(&world.judge(anchor, &[&lines.concat()]))
}

/// A log that nobody touched is found whole.
#[test]
fn whole() {
    let world = World::new();
    let (lines, anchor) = written(&world);
    let report = world.judge(Some(anchor), &[&lines.concat()]);
    assert_eq!(findings(&report), []);
    let counts = [report.records, report.authentic, report.without_key, report.of_others];
    assert_eq!(counts, [9, 6, 2, 1]);
    assert_eq!([report.first, report.last, report.unproven, report.unanchored], [1, 9, 0, 0]);
    for line in &lines {
        let text = std::str::from_utf8(line).unwrap();
        assert!(!text.trim_end_matches('\n').contains(char::is_control), "{text:?}");
    }
}

/// One bit, anywhere: in each field of each record. Without an anchor the MAC of the newest record
/// says so of it and of all before it.
#[test]
fn each_byte() {
    let world = World::new();
    let (lines, anchor) = written(&world);
    let bytes = lines.concat();
    for at in 0..bytes.len() {
        for bit in [0, 5] {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            for anchor in [Some(anchor), None] {
                let report = world.judge(anchor, &[&changed]);
                // The line feed at the end says nothing; a newest record that says that it is of
                // another volume is one that nothing speaks for, and counted as such.
                let is_found = report.findings_count > 0
                    || at + 1 == bytes.len()
                    || (anchor.is_none() && report.unproven > 0);
                assert!(is_found, "byte {at}, bit {bit}, anchor {anchor:?}");
            }
        }
    }
}

/// Whole records, and any number of them: removed, repeated, exchanged, made up.
#[test]
fn each_record() {
    let world = World::new();
    let (lines, anchor) = written(&world);
    let count = lines.len();
    for from in 0..count {
        for to in from + 1..=count {
            let rest = [&lines[..from], &lines[to..]].concat();
            assert_ne!(judged(&world, Some(anchor), &rest), [], "without {from} to {to}");
            let again = [&lines[..to], &lines[from..to], &lines[to..]].concat();
            assert_ne!(judged(&world, Some(anchor), &again), [], "{from} to {to} twice");
            if to < count {
                let mut exchanged = lines.clone();
                exchanged.swap(from, to);
                assert_ne!(judged(&world, Some(anchor), &exchanged), [], "{from} for {to}");
            }
        }
        // Without a key and with all that is known, somebody can make this, and its order is right.
        let line = String::from_utf8(lines[from].clone()).unwrap();
        let keyless =
            format!("{}}}\n", line.split(",\"epoch\"").next().unwrap().trim_end_matches("}\n"));
        let changed = keyless.replace("mount", "mournt");
        let made_up = [&lines[..from], &[changed.into_bytes()][..], &lines[from + 1..]].concat();
        assert_ne!(judged(&world, Some(anchor), &made_up), [], "{from} made up");
    }
}

/// An end that is cut off is missed as far as the anchor goes, and not further: what is not
/// anchored is counted.
#[test]
fn cut_off() {
    let world = World::new();
    let (lines, anchor) = written(&world);
    for kept in 0..lines.len() {
        let findings = judged(&world, Some(anchor), &lines[..kept]);
        let cut = Finding::Truncated { last: kept as u64, anchored: 9 };
        assert_eq!(findings, [cut], "{kept} of {}", lines.len());
        let report = world.judge(None, &[&lines[..kept].concat()]);
        assert_eq!((report.findings_count, report.unanchored), (0, kept as u64));
    }
}

/// Two true logs of one volume make no third; nor does an older one pass for the newer.
#[test]
fn spliced() {
    let world = World::new();
    let (lines, anchor) = written(&world);
    std::fs::remove_file(world.path()).unwrap();
    let (others, other_anchor) = written(&world);
    for at in 0..=lines.len() {
        for (head, tail) in [(&lines, &others), (&others, &lines)] {
            let spliced = [&head[..at], &tail[at..]].concat();
            for anchor in [anchor, other_anchor] {
                let own = if anchor == other_anchor { &others } else { &lines };
                let is_whole = spliced == *own;
                let findings = judged(&world, Some(anchor), &spliced);
                assert_eq!(findings.is_empty(), is_whole, "{at}: {findings:?}");
            }
        }
    }
    let stranger = World::new();
    let report = judge(&stranger.keys, None, &[&lines.concat()]);
    assert_eq!((report.authentic, report.of_others + report.unproven), (0, 18));
}

/// Numbers that no session can have come to are refused, and soon.
#[test]
fn made_up_numbers() {
    let world = World::new();
    let (lines, _) = written(&world);
    let line = String::from_utf8(lines[2].clone()).unwrap();
    let far = line.replace("\"n\":0", &format!("\"n\":{}", u64::MAX));
    let begun = std::time::Instant::now();
    assert_eq!(judged(&world, None, &[far.into_bytes()]).last(), Some(&Finding::Key));
    assert!(begun.elapsed().as_secs() < 5);
    let epoch = line.replace("\"epoch\":1", "\"epoch\":7");
    assert_eq!(judged(&world, None, &[epoch.into_bytes()]).last(), Some(&Finding::Key));
}

/// A long log is judged in the time of reading it; `ATREST_AUDIT_RECORDS=1000000` makes it longer,
/// and `--nocapture` shows the time.
#[test]
fn long() {
    let world = World::new();
    let variable = std::env::var("ATREST_AUDIT_RECORDS").ok();
    let count: u64 = variable.map_or(20_000, |text| text.parse().expect("a number"));
    let mut key = world.keys.audit_key(1, [0; 8]).unwrap();
    let mut verifier = atrest::audit::Verifier::new(&world.keys, None, 1);
    let (mut prev, mut took) = ([0; 32], std::time::Duration::ZERO);
    for seq in 1..=count {
        let hex: String = prev.iter().map(|byte| format!("{byte:02x}")).collect();
        let (id, n) = (&world.id, seq - 1);
        let text = format!(
            "{{\"seq\":{seq},\"time\":\"2026-01-31T12:00:00.123456Z\",\"host\":\"h\",\
             \"volume\":\"{id}\",\
             \"event\":\"recheck\",\"purpose\":\"check\",\"outcome\":\"failed\",\"error\":\"gone\",\
             \"uid\":0,\"pid\":1,\"process\":\"atrest\",\"slot\":1,\"provider\":\"local:default\",\
             \"prev\":\"{hex}\",\"epoch\":1,\"session\":\"0000000000000000\",\"n\":{n}"
        );
        let mac: String = key.mac(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        key.advance();
        let line = format!("{text},\"mac\":\"{mac}\"}}");
        prev = atrest::crypto::kdf::digest(line.as_bytes());
        let begun = std::time::Instant::now();
        verifier.line(atrest::audit::Where { file: 0, line: seq }, line.as_bytes());
        took += begun.elapsed();
    }
    let report = verifier.finish(atrest::audit::Where::default(), false);
    assert_eq!((findings(&report), report.authentic), (vec![], count));
    println!("{count} records in {took:?}");
}
