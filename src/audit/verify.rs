//! Judges a log, line by line, against the volume's keys and the anchor in its configuration.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read};
use std::sync::mpsc::{SyncSender, sync_channel};

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

/// Longer lines are no records; the rest of them is passed over.
const LINE_READ_MAX: u64 = 64 * 1024;
/// Lines that are handed from who reads them to who judges them at once, and how often before the
/// reader waits.
const BATCH_LINES: usize = 1024;
const BATCHES: usize = 4;

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

/// A line, as far as it can be looked at without those before it.
struct Looked {
    bytes: Vec<u8>,
    record: Option<Record>,
}

/// What a record says that is judged.
struct Record {
    prev: Option<[u8; 32]>,
    is_own: bool,
    has_mac: bool,
    seal: Option<Seal>,
    /// The torn line before it, if that is what it tells of.
    torn: Option<String>,
    /// What the next one has to say that it follows.
    link: AuditAnchor,
}

impl Looked {
    /// `volume`: whose records are judged.
    fn at(bytes: Vec<u8>, volume: &str) -> Self {
        let parsed = if bytes.len() <= LINE_BYTES_MAX { Line::parse(&bytes) } else { None };
        let record = parsed.map(|line| Record {
            prev: unhex(&line.prev),
            is_own: line.volume == volume,
            has_mac: line.mac.is_some(),
            seal: line.seal(),
            link: record::link(line.seq, &bytes),
            torn: if line.event == super::Event::LogTorn.name() { line.detail } else { None },
        });
        Self { bytes, record }
    }
}

type Batch = Vec<(Where, Looked)>;

/// Reads the lines of a file, and looks at each; returns the last of them, and whether it has no
/// line feed.
fn read_lines(
    file: impl Read,
    index: usize,
    volume: &str,
    batches: &SyncSender<Batch>,
) -> io::Result<(Where, bool)> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut at = Where { file: index, line: 0 };
    let mut batch = Batch::new();
    // Who judges ends after who reads.
    let send = |batch: Batch| _ = batches.send(batch);
    loop {
        let mut line = Vec::new();
        Read::take(&mut reader, LINE_READ_MAX).read_until(b'\n', &mut line)?;
        let is_whole = line.last() == Some(&b'\n');
        line.truncate(line.len() - usize::from(is_whole));
        let is_cut = !is_whole && line.len() as u64 == LINE_READ_MAX;
        if is_cut {
            reader.skip_until(b'\n')?;
        }
        let is_end = !is_whole && !is_cut;
        let is_open = is_end && !line.is_empty();
        if !is_end || is_open {
            at.line += 1;
            batch.push((at, Looked::at(line, volume)));
        }
        if is_end || batch.len() == BATCH_LINES {
            send(std::mem::take(&mut batch));
        }
        if is_end {
            return Ok((at, is_open));
        }
    }
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

    /// Judges the lines of the next file, number `index` of those that are given, while another
    /// thread reads them. Returns the last of them, and whether it has no line feed.
    ///
    /// # Errors
    /// Those of reading.
    pub fn file(&mut self, index: usize, file: impl Read + Send) -> io::Result<(Where, bool)> {
        let volume = self.volume.clone();
        let (sender, receiver) = sync_channel(BATCHES);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || read_lines(file, index, &volume, &sender));
            for (at, looked) in receiver.into_iter().flatten() {
                self.judge(at, looked);
            }
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Judges the next line, without its line feed.
    pub fn line(&mut self, at: Where, bytes: &[u8]) {
        self.judge(at, Looked::at(bytes.to_vec(), &self.volume));
    }

    fn judge(&mut self, at: Where, Looked { bytes, record }: Looked) {
        let Some(record) = record else {
            self.end_torn(None);
            self.torn = Some((at, record::torn(&bytes)));
            return;
        };
        self.end_torn(record.torn.as_deref());
        self.judge_order(at, &record);
        self.judge_author(at, &record, &bytes);
        let seq = record.link.seq;
        self.last = record.link;
        self.report.records += 1;
        self.report.last = seq;
        if self.anchor.is_some_and(|anchor| anchor.seq == seq) {
            self.anchor_seen = true;
            if self.anchor != Some(self.last) {
                self.find(at, Finding::Anchor(seq));
            }
        }
        self.report.unanchored += u64::from(self.anchor.is_none_or(|anchor| seq > anchor.seq));
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

    /// A line that was no record is fine if the next one tells of it.
    fn end_torn(&mut self, told: Option<&str>) {
        let Some((at, torn)) = self.torn.take() else { return };
        if told == Some(&*torn) {
            self.report.torn += 1;
        } else {
            self.find(at, Finding::Garbage);
        }
    }

    fn judge_order(&mut self, at: Where, record: &Record) {
        let (seq, expected) = (record.link.seq, self.last.seq.saturating_add(1));
        let follows = record.prev == Some(self.last.record);
        if std::mem::take(&mut self.is_first) {
            self.report.first = seq;
            // What the first record of a later file follows is not here.
            if seq == expected && (follows || expected > 1) {
                return;
            }
        }
        if seq > expected {
            self.find(at, Finding::Missing { from: expected, to: seq - 1 });
        } else if seq < expected {
            self.find(at, Finding::Order { found: seq, expected });
        } else if !follows {
            self.find(at, Finding::Link);
        }
    }

    fn judge_author(&mut self, at: Where, record: &Record, bytes: &[u8]) {
        if !record.is_own {
            self.report.of_others += 1;
            self.report.unproven += 1;
            return;
        }
        if !record.has_mac {
            self.report.without_key += 1;
            self.report.unproven += 1;
            return;
        }
        let Some((seal, covered)) = record.seal.as_ref().zip(record::covered(bytes)) else {
            return self.find(at, Finding::Mac);
        };
        let is_retired = seal.epoch < self.keys.epochs().next().unwrap_or(1);
        if is_retired && seal.epoch > 0 && self.report.authentic == 0 {
            self.report.of_retired_epochs += 1;
            self.report.unproven += 1;
            return;
        }
        match self.key(seal).map(|key| key.verify(covered, &seal.mac)) {
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
