//! One record of the log: a line of JSON, and what ties it to the line before and to the volume's
//! key.
//!
//! ```text
//! {"seq":7,"time":"2026-01-31T12:00:00.123456Z",...,"prev":"<hex>","epoch":1,"session":"<hex>",
//!  "n":3,"mac":"<hex>"}
//! ```
//!
//! `prev` is the SHA-256 of the line before, without its line feed. `mac` is that of all before
//! `,"mac"`, under key `n` of the session. A record that was made before the volume's key was there
//! ends with `prev`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::asker::Asker;
use crate::crypto::{ChainKey, kdf};
use crate::format::config::AuditAnchor;

/// Longest line, in bytes: all texts at their longest, escaped, and room for more.
pub(super) const LINE_BYTES_MAX: usize = 16 * 1024;
/// Longest text in a record, in characters; what others have said is cut.
const TEXT_CHARS_MAX: usize = 512;
/// `,"mac":"` and 64 digits and `"}`.
const MAC_BYTES: usize = 8 + 64 + 2;
/// What the first record has before it.
pub(super) const NOTHING: [u8; 32] = [0; 32];

/// What is put on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A provider was asked to unwrap the volume key.
    Unwrap,
    /// A provider was asked to wrap it.
    Wrap,
    /// It was wrapped under a newer version of its key, or tried to be.
    Rewrap,
    /// A check of the lease was not granted.
    Recheck,
    /// The lease has another state.
    State,
    /// A volume was made.
    Init,
    /// A volume was mounted.
    Mount,
    /// A mount has ended.
    Unmount,
    /// A key slot was added.
    SlotAdd,
    /// A key slot was removed.
    SlotRemove,
    /// A key slot was wrapped again.
    SlotChange,
    /// The older superblock was opened.
    Superblock,
    /// What was acknowledged could not be written, and is lost.
    LostWrites,
    /// A line before, torn by a crash, is no record.
    LogTorn,
    /// The log does not end as it did when it was last written to.
    LogChanged,
    /// Records before could not be written.
    LogLost,
}

impl Event {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unwrap => "unwrap",
            Self::Wrap => "wrap",
            Self::Rewrap => "rewrap",
            Self::Recheck => "recheck",
            Self::State => "state",
            Self::Init => "init",
            Self::Mount => "mount",
            Self::Unmount => "unmount",
            Self::SlotAdd => "slot-add",
            Self::SlotRemove => "slot-remove",
            Self::SlotChange => "slot-change",
            Self::Superblock => "superblock",
            Self::LostWrites => "lost-writes",
            Self::LogTorn => "log-torn",
            Self::LogChanged => "log-changed",
            Self::LogLost => "log-lost",
        }
    }
}

/// A key in a provider.
#[derive(Clone, Debug, Default)]
pub struct Kek {
    /// Number of the key slot.
    pub slot: u32,
    /// URI of the provider.
    pub provider: String,
    /// The provider's name for the key; empty if it is not known.
    pub key: String,
    /// The version; empty if it is not known.
    pub version: String,
}

/// What happened, for whom and with which key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What.
    pub event: Event,
    /// What for: `mount`, `unlock`, `key add`, …
    pub purpose: String,
    /// For whom.
    pub asker: Asker,
    /// With which key.
    pub kek: Option<Kek>,
    /// It is about to be done; another record says what became of it.
    pub is_begun: bool,
    /// The class of the error, if it failed.
    pub error: Option<String>,
    /// More, in words.
    pub detail: Option<String>,
}

impl Entry {
    /// Something that went well.
    pub fn new(event: Event, purpose: &str, asker: &Asker) -> Self {
        let (purpose, asker) = (purpose.to_owned(), asker.clone());
        Self { event, purpose, asker, kek: None, is_begun: false, error: None, detail: None }
    }

    /// The same, with a key.
    #[must_use]
    pub fn with_kek(mut self, kek: Kek) -> Self {
        self.kek = Some(kek);
        self
    }

    /// The same, with more words.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same, but it is only about to be done.
    #[must_use]
    pub fn begun(mut self) -> Self {
        self.is_begun = true;
        self
    }

    /// The same, but it failed: a class, and words.
    #[must_use]
    pub fn failed(mut self, class: &str, words: impl Into<String>) -> Self {
        self.error = Some(class.to_owned());
        self.with_detail(words)
    }
}

/// The fields of a line, in their order.
#[derive(Serialize, Deserialize)]
pub(super) struct Line<'a> {
    pub(super) seq: u64,
    #[serde(borrow)]
    pub(super) time: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) host: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) volume: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) event: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) purpose: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) outcome: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
    pub(super) uid: u32,
    pub(super) pid: i32,
    #[serde(borrow)]
    pub(super) process: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) slot: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_version: Option<String>,
    #[serde(borrow)]
    pub(super) prev: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<u32>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) n: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) mac: Option<Cow<'a, str>>,
}

impl<'a> Line<'a> {
    /// What a line says, if it is a record.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let line: Self = serde_json::from_slice(bytes).ok()?;
        let keyed = [line.epoch.is_some(), line.session.is_some(), line.n.is_some()];
        (line.seq >= 1 && keyed.iter().all(|part| *part == line.mac.is_some())).then_some(line)
    }

    /// Who MACed it: key epoch, session, number of the key in it, and the MAC.
    pub(super) fn seal(&self) -> Option<Seal> {
        let (session, mac) = (self.session.as_ref()?, self.mac.as_ref()?);
        let (session, mac) = (unhex(session)?, unhex(mac)?);
        Some(Seal { epoch: self.epoch?, session, n: self.n?, mac })
    }
}

/// What a keyed record ends with.
pub(super) struct Seal {
    pub(super) epoch: u32,
    pub(super) session: [u8; 8],
    pub(super) n: u64,
    pub(super) mac: [u8; 32],
}

/// A key for one record.
pub(super) struct Sealer<'a> {
    pub(super) epoch: u32,
    pub(super) session: [u8; 8],
    pub(super) n: u64,
    pub(super) key: &'a ChainKey,
}

/// The line of an entry that follows `prev`, without a line feed.
pub(super) fn encode(
    entry: &Entry,
    (host, volume): (&str, &str),
    prev: AuditAnchor,
    sealer: Option<&Sealer<'_>>,
) -> Vec<u8> {
    let kek = entry.kek.as_ref();
    let some = |text: fn(&Kek) -> &String| {
        kek.map(text).filter(|text| !text.is_empty()).map(|text| cut(text))
    };
    let outcome = match (&entry.error, entry.is_begun) {
        (Some(_), _) => "failed",
        (None, true) => "begun",
        (None, false) => "ok",
    };
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let line = Line {
        seq: prev.seq.saturating_add(1),
        time: time.into(),
        host: host.into(),
        volume: volume.into(),
        event: entry.event.name().into(),
        purpose: cut(&entry.purpose).into(),
        outcome: outcome.into(),
        error: entry.error.as_deref().map(cut),
        detail: entry.detail.as_deref().map(cut),
        uid: entry.asker.uid,
        pid: entry.asker.pid,
        process: cut(&entry.asker.process).into(),
        slot: kek.map(|kek| kek.slot),
        provider: some(|kek| &kek.provider),
        key: some(|kek| &kek.key),
        key_version: some(|kek| &kek.version),
        prev: hex(&prev.record).into(),
        epoch: sealer.map(|sealer| sealer.epoch),
        session: sealer.map(|sealer| hex(&sealer.session).into()),
        n: sealer.map(|sealer| sealer.n),
        mac: None,
    };
    let mut bytes = serde_json::to_vec(&line).expect("strings and numbers are JSON");
    if let Some(sealer) = sealer {
        bytes.pop();
        let mac = hex(&sealer.key.mac(&bytes));
        bytes.extend_from_slice(format!(",\"mac\":\"{mac}\"}}").as_bytes());
    }
    bytes
}

/// What the MAC of a line covers; `None` if the line does not end with one.
pub(super) fn covered(line: &[u8]) -> Option<&[u8]> {
    let (covered, end) = line.split_at(line.len().checked_sub(MAC_BYTES)?);
    (end.starts_with(b",\"mac\":\"") && end.ends_with(b"\"}")).then_some(covered)
}

/// What the record after a line says that it follows.
pub(super) fn link(seq: u64, line: &[u8]) -> AuditAnchor {
    AuditAnchor { seq, record: kdf::digest(line) }
}

/// How a record says which torn line it ends.
pub(super) fn torn(bytes: &[u8]) -> String {
    format!("{} bytes, SHA-256 {}", bytes.len(), hex(&kdf::digest(bytes)))
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// The reverse of [`hex`]; other spellings are refused.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits: &[u8] = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}
