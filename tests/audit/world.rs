//! A log in a directory of its own, and the keys of its volume.

use std::path::PathBuf;
use std::sync::Arc;

use atrest::audit::{Asker, Audit, Entry, Event, Finding, Kek, Options, Report, Verifier, Where};
use atrest::crypto::Cipher;
use atrest::format::config::AuditAnchor;
use atrest::key::VolumeKeys;
use tempfile::TempDir;

use crate::common::Volumes;

pub struct World {
    pub directory: TempDir,
    pub keys: Arc<VolumeKeys>,
    pub id: String,
}

impl World {
    pub fn new() -> Self {
        let volumes = Volumes::new(Cipher::Aes256Gcm);
        let directory = tempfile::tempdir().unwrap();
        Self { directory, keys: volumes.keys, id: volumes.id.to_string() }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("audit.jsonl")
    }

    pub fn options(&self) -> Options {
        Options { file: Some(self.path()), ..Options::default() }
    }

    /// A process that has no key yet.
    pub fn process(&self) -> Audit {
        Audit::new(self.options(), &self.id)
    }

    /// A process that has the key.
    pub fn opened(&self) -> Audit {
        let audit = self.process();
        audit.begin(&self.keys, None);
        audit
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    pub fn judge(&self, anchor: Option<AuditAnchor>, files: &[&[u8]]) -> Report {
        judge(&self.keys, anchor, files)
    }
}

pub fn entry(detail: &str) -> Entry {
    let kek = Kek { slot: 3, provider: "test:memory".into(), key: "k".into(), version: "1".into() };
    Entry::new(Event::Unwrap, "mount", &Asker::of_this_process()).with_kek(kek).with_detail(detail)
}

pub fn judge(keys: &VolumeKeys, anchor: Option<AuditAnchor>, files: &[&[u8]]) -> Report {
    let mut verifier = Verifier::new(keys, anchor, 1);
    let (mut at, mut is_open) = (Where::default(), false);
    for (file, bytes) in files.iter().enumerate() {
        at = Where { file, line: 0 };
        is_open = false;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            at.line += 1;
            is_open = line.last() != Some(&b'\n');
            verifier.line(at, line.strip_suffix(b"\n").unwrap_or(line));
        }
    }
    verifier.finish(at, is_open)
}

pub fn findings(report: &Report) -> Vec<Finding> {
    report.findings.iter().map(|(_, finding)| finding.clone()).collect()
}
