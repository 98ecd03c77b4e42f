//! How long judging an audit log takes: what `atrest audit verify` does with each line.
//!
//! `cargo bench --bench audit [-- DIRECTORY [RECORDS]]`. A log of 1,000,000 records (or as many as
//! are said) is written, each synced, in DIRECTORY (default: /dev/shm, where that costs nothing),
//! and judged three times.

use std::path::PathBuf;
use std::time::Instant;

use atrest::audit::{Asker, Audit, Entry, Event, Kek, Options, Verifier};
use atrest::crypto::Cipher;
use common::Volumes;

// The tests use more of it.
#[allow(dead_code)]
#[path = "../../tests/common/mod.rs"]
mod common;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let base = arguments.first().map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let records: u64 = arguments.get(1).map_or(1_000_000, |n| n.parse().expect("a number"));
    let directory = tempfile::tempdir_in(base).expect("a directory");
    let path = directory.path().join("audit.jsonl");
    let volumes = Volumes::new(Cipher::Aes256Gcm);
    let file = Some(path.clone());
    let options = Options { file, ..Options::default() };
    let audit = Audit::new(options, &volumes.id.to_string());
    audit.begin(&volumes.keys, None);
    let entry = entry();
    let begun = Instant::now();
    for _ in 0..records {
        audit.record(&entry).expect("it is recorded");
    }
    println!("{records} records written in {:.2} s", begun.elapsed().as_secs_f64());
    let bytes = std::fs::read(&path).expect("the log");
    for _ in 0..3 {
        let begun = Instant::now();
        let mut verifier = Verifier::new(&volumes.keys, None, 1);
        let (at, is_open) = verifier.file(0, &*bytes).expect("memory can be read");
        let report = verifier.finish(at, is_open);
        assert_eq!((report.findings_count, report.authentic), (0, records));
        let seconds = begun.elapsed().as_secs_f64();
        println!("{} MB judged in {seconds:.2} s", bytes.len() / 1_000_000);
    }
}

fn entry() -> Entry {
    let kek = Kek {
        slot: 1,
        provider: "azure".into(),
        key: "https://name.vault.azure.net/keys/volume".into(),
        version: "8d261dfaffdcd34b07731ee7529ddc5f".into(),
    };
    Entry::new(Event::Unwrap, "mount", &Asker::of_this_process()).with_kek(kek)
}
