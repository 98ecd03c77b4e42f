//! Judges a log, line by line, against the volume's keys and the anchor in its configuration.

use std::collections::HashMap;

use super::file::EMPTY;
use super::record::{self, LINE_BYTES_MAX, Line, Seal, unhex};
use crate::crypto::ChainKey;
use crate::format::config::AuditAnchor;
use crate::key::VolumeKeys;

/// Findings that are kept; more are counted.
pub const FINDINGS_MAX: usize = 1000;
/// Steps of session keys that are made for records that do not name the next one: enough for any
/// log that was written, and seconds for one that is made up.
const STEPS_MAX: u64 = 1 << 24;

/// A line of one of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// Number of the file, in the order that they were given in, from 0.
    pub file: usize,
    /// Number of the line, from 1.
    pub line: u64,
}

/// Something that nobody who only wrote records can have done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A line is no record.
    #[error("this line is no record")]
    Garbage,
    /// Records are missing before this one.
    #[error("records {from} to {to} are missing before this one")]
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// The number is one that has been, or the order is another.
    #[error("this is record {found}, and record {expected} belongs here")]
    Order {
        /// Its number.
        found: u64,
        /// The next number.
        expected: u64,
    },
    /// It follows another record than the one before it.
    #[error("this record follows another one than stands before it: one of them was changed")]
    Link,
    /// Its MAC does not verify.
    #[error("this record was changed, or made by somebody without the volume's key")]
    Mac,
    /// It names a key epoch, session or number that the volume's keys do not lead to.
    #[error("this record names a key that the volume cannot have given it")]
    Key,
    /// The newest records are gone.
    #[error("the log ends with record {last}, and record {anchored} was written")]
    Truncated {
        /// Its last record.
        last: u64,
        /// The record in the anchor.
        anchored: u64,
    },
    /// The record in the anchor is another one.
    #[error("record {0} is not the one that the volume's configuration remembers")]
    Anchor(u64),
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Records in all.
    pub records: u64,
    /// Number of the first.
    pub first: u64,
    /// Number of the last.
    pub last: u64,
    /// Those whose MAC verifies.
    pub authentic: u64,
    /// Those that were made before the key was there.
    pub without_key: u64,
    /// Those of other volumes; only their order was judged.
    pub of_others: u64,
    /// Those under a key epoch that was rotated away; only their order was judged.
    pub of_retired_epochs: u64,
    /// Lines torn by a crash, and ended by the next record.
    pub torn: u64,
    /// Records behind the last authentic one: nothing speaks for them yet.
    pub unproven: u64,
    /// Records behind the anchored one: if later ones were cut off, nobody can know.
    pub unanchored: u64,
    /// What is wrong, in order.
    pub findings: Vec<(Where, Finding)>,
    /// How many findings there are, those included that are not kept.
    pub findings_count: u64,
}

/// See the [module](self).
pub struct Verifier<'a> {
    keys: &'a VolumeKeys,
    volume: String,
    anchor: Option<AuditAnchor>,
    last: AuditAnchor,
    is_first: bool,
    sessions: HashMap<(u32, [u8; 8]), (u64, ChainKey)>,
    steps_left: u64,
    /// A line that is no record, which the next one may account for.
    torn: Option<(Where, String)>,
    anchor_seen: bool,
    report: Report,
}

impl<'a> Verifier<'a> {
    /// A log that begins with record `first`, and goes as far as `anchor` at least.
    pub fn new(keys: &'a VolumeKeys, anchor: Option<AuditAnchor>, first: u64) -> Self {
        Self {
            keys,
            volume: keys.volume_id().to_string(),
            anchor,
            last: AuditAnchor { seq: first.saturating_sub(1), ..EMPTY },
            is_first: true,
            sessions: HashMap::new(),
            steps_left: STEPS_MAX,
            torn: None,
            anchor_seen: false,
            report: Report::default(),
        }
    }

    /// Judges the next line, without its line feed.
    pub fn line(&mut self, at: Where, bytes: &[u8]) {
        let parsed = if bytes.len() <= LINE_BYTES_MAX { Line::parse(bytes) } else { None };
        let Some(line) = parsed else {
            self.end_torn(None);
            self.torn = Some((at, record::torn(bytes)));
            return;
        };
        self.end_torn(Some(&line));
        self.judge_order(at, &line);
        self.judge_author(at, &line, bytes);
        self.last = record::link(line.seq, bytes);
        self.report.records += 1;
        self.report.last = line.seq;
        if self.anchor.is_some_and(|anchor| anchor.seq == line.seq) {
            self.anchor_seen = true;
            if self.anchor != Some(self.last) {
                self.find(at, Finding::Anchor(line.seq));
            }
        }
        self.report.unanchored += u64::from(self.anchor.is_none_or(|anchor| line.seq > anchor.seq));
    }

    /// What was found. `is_open`: the last line has no line feed.
    pub fn finish(mut self, at: Where, is_open: bool) -> Report {
        match self.torn.take() {
            // A crash; or an end that was cut off, which the anchor tells.
            Some(_) if is_open => self.report.torn += 1,
            Some((at, _)) => self.find(at, Finding::Garbage),
            None => {}
        }
        if let Some(AuditAnchor { seq: anchored, .. }) = self.anchor {
            let last = self.last.seq;
            if last < anchored {
                self.find(at, Finding::Truncated { last, anchored });
            } else if !self.anchor_seen && self.report.first <= anchored {
                self.find(at, Finding::Anchor(anchored));
            }
        }
        self.report
    }

    /// A line that was no record is fine if this one says so.
    fn end_torn(&mut self, line: Option<&Line<'_>>) {
        let Some((at, torn)) = self.torn.take() else { return };
        let is_told = |line: &Line<'_>| {
            line.event == super::Event::LogTorn.name() && line.detail.as_ref() == Some(&torn)
        };
        if line.is_some_and(is_told) {
            self.report.torn += 1;
        } else {
            self.find(at, Finding::Garbage);
        }
    }

    fn judge_order(&mut self, at: Where, line: &Line<'_>) {
        let expected = self.last.seq.saturating_add(1);
        let follows = unhex(&line.prev) == Some(self.last.record);
        if std::mem::take(&mut self.is_first) {
            self.report.first = line.seq;
            // What the first record of a later file follows is not here.
            if line.seq == expected && (follows || expected > 1) {
                return;
            }
        }
        if line.seq > expected {
            self.find(at, Finding::Missing { from: expected, to: line.seq - 1 });
        } else if line.seq < expected {
            self.find(at, Finding::Order { found: line.seq, expected });
        } else if !follows {
            self.find(at, Finding::Link);
        }
    }

    fn judge_author(&mut self, at: Where, line: &Line<'_>, bytes: &[u8]) {
        if line.volume != self.volume {
            self.report.of_others += 1;
            self.report.unproven += 1;
            return;
        }
        if line.mac.is_none() {
            self.report.without_key += 1;
            self.report.unproven += 1;
            return;
        }
        let Some((seal, covered)) = line.seal().zip(record::covered(bytes)) else {
            return self.find(at, Finding::Mac);
        };
        let is_retired = seal.epoch < self.keys.epochs().next().unwrap_or(1);
        if is_retired && seal.epoch > 0 && self.report.authentic == 0 {
            self.report.of_retired_epochs += 1;
            self.report.unproven += 1;
            return;
        }
        match self.key(&seal).map(|key| key.verify(covered, &seal.mac)) {
            None => self.find(at, Finding::Key),
            Some(false) => self.find(at, Finding::Mac),
            Some(true) => {
                self.report.authentic += 1;
                self.report.unproven = 0;
                let (n, key) = self.sessions.get_mut(&(seal.epoch, seal.session)).expect("used");
                key.advance();
                *n += 1;
            }
        }
    }

    /// The key of a record; it is not one that was used before.
    fn key(&mut self, seal: &Seal) -> Option<&ChainKey> {
        use std::collections::hash_map::Entry::{Occupied, Vacant};
        let (n, key) = match self.sessions.entry((seal.epoch, seal.session)) {
            Occupied(known) => known.into_mut(),
            Vacant(new) => new.insert((0, self.keys.audit_key(seal.epoch, seal.session)?)),
        };
        // Numbers are left out where a record could not be written.
        let steps = seal.n.checked_sub(*n)?;
        self.steps_left = self.steps_left.checked_sub(steps)?;
        (0..steps).for_each(|_| key.advance());
        *n = seal.n;
        Some(key)
    }

    fn find(&mut self, at: Where, finding: Finding) {
        self.report.findings_count += 1;
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push((at, finding));
        }
    }
}
