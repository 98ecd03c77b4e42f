//! Downloading a package: https, no redirects, resumed where it broke, bounded in size and time.
//!
//! A request asks for everything from where the last one ended (`Range`), and only if it is still
//! the same file (`If-Match`); each is bounded in time, so that a connection that has come to a
//! standstill is noticed, and the next goes on. A server that knows no ranges, or does not name
//! what
//! it gives (a strong `ETag`), is read in one request. What comes is looked at before it is kept:
//! an
//! archive of another kind is refused by its first bytes.
//!
//! The query of a URL is a secret (a shared access signature): it is sent, and never shown.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::sniff::{self, Kind};
use crate::fs;
use crate::key::http::{Client, Deadline, HttpError, Request, Settings, Stream, Url, UrlError};

/// Largest package, in bytes, unless told otherwise. Azure's is 1 GB.
pub const BYTES_MAX: u64 = 8 << 30;
/// Longest time for all of it, unless told otherwise.
pub const TIME_MAX: Duration = Duration::from_secs(3600);

/// See [`Rules::request_timeout`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A request that brings less in that time counts as one that brought nothing, in bytes.
const PROGRESS_BYTES_MIN: u64 = 64 << 10;
/// How many requests in a row may bring nothing.
const ATTEMPTS_MAX: u32 = 4;
/// How often the file may change while it is downloaded.
const CHANGES_MAX: u32 = 3;
/// Wait before the second attempt if the server does not say; doubles with each.
const BACKOFF: Duration = Duration::from_millis(500);
/// Bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Where a package is. `Display` and `Debug` do not show its query.
#[derive(Clone)]
pub struct Source {
    url: Url,
    query: Zeroizing<String>,
}

impl Source {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (url, query) = Url::parse_download(text)?;
        Ok(Self { url, query })
    }

    /// When its shared access signature ends (`se`), as it is written there.
    pub fn expires(&self) -> Option<String> {
        let value = self.query.split('&').find_map(|pair| pair.strip_prefix("se="))?;
        let value = value.replace("%3A", ":").replace("%3a", ":");
        let is_time = |byte: u8| byte.is_ascii_digit() || b"-:TZ.".contains(&byte);
        (value.len() <= 40 && value.bytes().all(is_time)).then_some(value)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// How a download may go.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Largest package, in bytes.
    pub bytes_max: u64,
    /// Longest time for all of it.
    pub time_max: Duration,
    /// How long one request may take before the next goes on where it ended.
    pub request_timeout: Duration,
    /// Trust this PEM file's certificates instead of the host's.
    pub ca_file: Option<PathBuf>,
    /// Allow plain http, but only to this host.
    pub plain_http: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            bytes_max: BYTES_MAX,
            time_max: TIME_MAX,
            request_timeout: REQUEST_TIMEOUT,
            ca_file: None,
            plain_http: false,
        }
    }
}

/// Why there is no package. `Display` says what to do, without the URL's query.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server does not give it to whoever has this URL.
    #[error("{source_url} is not accessible (status {status}): {advice}")]
    Denied {
        /// Without its query.
        source_url: String,
        /// 401, 403, 404, 409, 410.
        status: u16,
        /// What may help.
        advice: &'static str,
    },
    /// The server answers with something that no request was for.
    #[error("{source_url} answers with status {status}, which is not expected")]
    Unexpected {
        /// Without its query.
        source_url: String,
        /// The status.
        status: u16,
    },
    /// It sends the client elsewhere.
    #[error(
        "{source_url} is a redirect (status {status}), which is not followed: a signature must not \
         go elsewhere, nor a package come from there; give the URL that it leads to"
    )]
    Redirect {
        /// Without its query.
        source_url: String,
        /// The status.
        status: u16,
    },
    /// No answer, or it broke off and went on breaking off.
    #[error("cannot download {source_url}: {problem}")]
    Unreachable {
        /// Without its query.
        source_url: String,
        /// What happened last.
        problem: String,
    },
    /// This host has to be put right first.
    #[error("cannot download {source_url}: {problem}")]
    Configuration {
        /// Without its query.
        source_url: String,
        /// What, and how.
        problem: String,
    },
    /// It is larger than it may be.
    #[error(
        "{source_url} has more than {bytes_max} bytes, the largest package that is allowed; \
         to allow more: --package-bytes-max"
    )]
    TooLarge {
        /// Without its query.
        source_url: String,
        /// The limit, in bytes.
        bytes_max: u64,
    },
    /// It takes longer than it may.
    #[error(
        "{source_url} was not downloaded within {} s ({done} bytes are there); it goes on there \
         next time; to allow more: --download-seconds-max", .time_max.as_secs()
    )]
    TooSlow {
        /// Without its query.
        source_url: String,
        /// How much there is, in bytes.
        done: u64,
        /// The limit.
        time_max: Duration,
    },
    /// It is no ZIP.
    #[error("{source_url} is {kind}, not a ZIP; a package is a ZIP, whatever its name says")]
    WrongKind {
        /// Without its query.
        source_url: String,
        /// What it is.
        kind: &'static str,
    },
    /// There is nothing in it.
    #[error("{source_url} is empty")]
    Empty {
        /// Without its query.
        source_url: String,
    },
    /// It was replaced, again and again.
    #[error(
        "{source_url} changes while it is downloaded; upload packages under names of their own"
    )]
    Changing {
        /// Without its query.
        source_url: String,
    },
    /// Nobody wants it any more.
    #[error("the download of {source_url} was stopped")]
    Stopped {
        /// Without its query.
        source_url: String,
    },
    /// It cannot be kept.
    #[error("cannot keep the package: {0}")]
    Keep(#[from] fs::Error),
}

impl DownloadError {
    /// Whether it says nothing about the package or who may have it: another time may do.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TooSlow { .. })
    }
}

/// Which file a server gave, to know it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validator {
    /// A strong `ETag` (RFC 9110, section 8.8.3).
    pub etag: Option<String>,
}

/// Where a download goes.
pub trait Sink {
    /// How much of the file that `validator` names is there, in bytes.
    fn resume(&mut self) -> Result<(u64, Validator), fs::Error>;
    /// Begins anew, with the file that `validator` names.
    fn begin(&mut self, validator: &Validator) -> Result<(), fs::Error>;
    /// Takes what comes at `offset`.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), fs::Error>;
    /// So much is there, of so much; false says to stop.
    fn progress(&mut self, done: u64, total: Option<u64>) -> bool;
}

/// What a download came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the file that the caller has.
    Unchanged,
    /// All of it is in the sink.
    Complete {
        /// Its length in bytes.
        bytes: u64,
        /// How to know it again.
        validator: Validator,
    },
}

/// Downloads `source` into `sink`, unless it is the file that `known` names.
///
/// # Errors
/// [`DownloadError`]. What is in the sink then is gone on with by the next call.
pub fn download(
    source: &Source,
    rules: &Rules,
    known: &Validator,
    sink: &mut dyn Sink,
) -> Result<Outcome, DownloadError> {
    let deadline = Deadline::after(rules.time_max);
    let (done, validator) = sink.resume()?;
    let done = if validator.etag.is_some() { done } else { 0 };
    let mut download =
        Download { source, rules, deadline, sink, done, total: None, validator, whole: false };
    let (mut attempts, mut changes) = (0_u32, 0);
    loop {
        let before = download.done;
        let (problem, wait) = match download.attempt(known)? {
            Step::Finished(outcome) => return Ok(outcome),
            Step::InOneRequest => continue,
            Step::Changed => {
                changes += 1;
                if changes > CHANGES_MAX {
                    return Err(DownloadError::Changing { source_url: source.to_string() });
                }
                continue;
            }
            Step::Broken(problem, wait) => (problem, wait),
        };
        let gained = download.done.saturating_sub(before);
        attempts = if gained < PROGRESS_BYTES_MIN { attempts + 1 } else { 0 };
        let wait = wait.unwrap_or(BACKOFF * 2_u32.pow(attempts.saturating_sub(1)));
        if attempts >= ATTEMPTS_MAX || wait >= deadline.remaining() {
            let source_url = source.to_string();
            return Err(DownloadError::Unreachable { source_url, problem });
        }
        log::warn!(
            "{source}: {problem}; going on at byte {} in {} ms",
            download.done,
            wait.as_millis()
        );
        std::thread::sleep(wait);
    }
}

/// How one request ended.
enum Step {
    Finished(Outcome),
    /// The server knows no ranges: ask again, for all of it.
    InOneRequest,
    /// It is another file now: begin anew.
    Changed,
    /// It is to be gone on with, perhaps after so long.
    Broken(String, Option<Duration>),
}

struct Download<'a> {
    source: &'a Source,
    rules: &'a Rules,
    deadline: Deadline,
    sink: &'a mut dyn Sink,
    done: u64,
    total: Option<u64>,
    validator: Validator,
    /// Whether it is read in one request.
    whole: bool,
}

impl Download<'_> {
    fn url(&self) -> String {
        self.source.to_string()
    }

    fn too_slow(&self) -> DownloadError {
        let (source_url, done) = (self.url(), self.done);
        DownloadError::TooSlow { source_url, done, time_max: self.rules.time_max }
    }

    fn failed(&self, error: HttpError) -> Result<Step, DownloadError> {
        let source_url = self.url();
        match error {
            HttpError::Configuration { problem } => {
                Err(DownloadError::Configuration { source_url, problem })
            }
            HttpError::Redirect { status, .. } => {
                Err(DownloadError::Redirect { source_url, status })
            }
            _ if self.deadline.remaining().is_zero() => Err(self.too_slow()),
            // A minute later it is the same.
            error @ (HttpError::NameUnknown { .. } | HttpError::Tls { .. }) => {
                Err(DownloadError::Unreachable { source_url, problem: error.to_string() })
            }
            other => Ok(Step::Broken(other.to_string(), None)),
        }
    }

    /// One request, and all that it brings.
    fn attempt(&mut self, known: &Validator) -> Result<Step, DownloadError> {
        let left = self.deadline.remaining();
        let timeout = if self.whole { left } else { left.min(self.rules.request_timeout) };
        let settings = Settings {
            ca_file: self.rules.ca_file.clone(),
            plain_http: self.rules.plain_http,
            request_timeout: timeout.max(Duration::from_millis(1)),
            ..Settings::default()
        };
        let client = match Client::new(settings) {
            Ok(client) => client,
            Err(error) => return self.failed(error),
        };
        let range = format!("bytes={}-", self.done);
        let mut request =
            Request::get(&self.source.url).secret_query(&self.source.query).header("Accept", "*/*");
        if !self.whole {
            request = request.header("Range", &range);
        }
        let etag = self.validator.etag.clone().unwrap_or_default();
        if self.done > 0 {
            request = request.header("If-Match", &etag);
        } else if let Some(etag) = &known.etag {
            request = request.header("If-None-Match", etag);
        }
        let stream = match client.open(&request) {
            Ok(stream) => stream,
            Err(error) => return self.failed(error),
        };
        self.take(stream, known)
    }

    /// What an answer means.
    fn take(&mut self, mut stream: Stream, known: &Validator) -> Result<Step, DownloadError> {
        match stream.status() {
            304 if self.done == 0 && known.etag.is_some() => Ok(Step::Finished(Outcome::Unchanged)),
            206 if !self.whole => match self.check_range(&stream)? {
                Some(step) => Ok(step),
                None => self.copy(&mut stream),
            },
            200 if !self.whole => {
                (self.whole, self.done) = (true, 0);
                Ok(Step::InOneRequest)
            }
            200 => {
                self.done = 0;
                self.total = stream.header("content-length").and_then(|text| text.parse().ok());
                self.begin(&stream)?;
                self.copy(&mut stream)
            }
            412 if self.done > 0 => Ok(self.anew()),
            416 if self.done > 0 => Ok(self.anew()),
            416 => Err(DownloadError::Empty { source_url: self.url() }),
            status @ (408 | 429 | 500..=599) => {
                let problem = format!("the server answers with status {status}");
                Ok(Step::Broken(problem, stream.retry_after()))
            }
            status => Err(self.refused(status)),
        }
    }

    fn refused(&self, status: u16) -> DownloadError {
        let source_url = self.url();
        let advice = match status {
            401 | 403 => {
                "its signature may be wrong, over, not yet valid, without read permission, or \
                 revoked; make a new URL and set WEBSITE_RUN_FROM_PACKAGE to it"
            }
            404 | 410 => "there is nothing there; check account, container and name",
            409 => "it may be archived, or not public",
            _ => return DownloadError::Unexpected { source_url, status },
        };
        DownloadError::Denied { source_url, status, advice }
    }

    fn anew(&mut self) -> Step {
        (self.done, self.total, self.validator) = (0, None, Validator::default());
        Step::Changed
    }

    /// Whether a part is the one that was asked for; `None` if it is.
    fn check_range(&mut self, stream: &Stream) -> Result<Option<Step>, DownloadError> {
        let found = stream.header("content-range");
        // A part of nothing, which there is no proper way to say.
        if self.done == 0 && found.is_some_and(|range| range.trim().ends_with("/0")) {
            return Err(DownloadError::Empty { source_url: self.url() });
        }
        let found = found.and_then(parse_range);
        let Some((first, total)) = found.filter(|(first, _)| *first == self.done) else {
            let problem = "the server answers with another part than was asked for".to_owned();
            return Ok(Some(Step::Broken(problem, None)));
        };
        if self.done > 0 && self.total.is_some_and(|known| known != total) {
            return Ok(Some(self.anew()));
        }
        self.total = Some(total);
        if first == 0 {
            self.begin(stream)?;
            if self.validator.etag.is_none() {
                self.whole = true;
                return Ok(Some(Step::InOneRequest));
            }
        } else if self.validator.etag != strong_etag(stream) {
            return Ok(Some(self.anew()));
        }
        Ok(None)
    }

    fn begin(&mut self, stream: &Stream) -> Result<(), DownloadError> {
        self.validator = Validator { etag: strong_etag(stream) };
        if self.total.is_some_and(|total| total > self.rules.bytes_max) {
            return Err(self.too_large());
        }
        if self.total == Some(0) {
            return Err(DownloadError::Empty { source_url: self.url() });
        }
        Ok(self.sink.begin(&self.validator)?)
    }

    fn too_large(&self) -> DownloadError {
        let bytes_max = self.rules.bytes_max;
        DownloadError::TooLarge { source_url: self.url(), bytes_max }
    }

    /// Reads the body into the sink.
    fn copy(&mut self, stream: &mut Stream) -> Result<Step, DownloadError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut filled = 0;
        loop {
            let (count, problem) = match stream.read(&mut buffer[filled..]) {
                Ok(count) => (count, None),
                Err(error) => (0, Some(error)),
            };
            filled += count;
            // The first bytes are looked at together.
            if self.done == 0 && count > 0 && filled < sniff::HEAD_BYTES {
                continue;
            }
            if self.done == 0 && filled > 0 {
                self.check_kind(&buffer[..filled])?;
            }
            if self.done + filled as u64 > self.total.unwrap_or(u64::MAX).min(self.rules.bytes_max)
            {
                return Err(self.too_large());
            }
            self.sink.write(self.done, &buffer[..filled])?;
            self.done += filled as u64;
            filled = 0;
            if !self.sink.progress(self.done, self.total) {
                return Err(DownloadError::Stopped { source_url: self.url() });
            }
            if let Some(error) = problem {
                return self.failed(error);
            }
            if self.deadline.remaining().is_zero() {
                return Err(self.too_slow());
            }
            if count == 0 {
                break;
            }
        }
        match self.total {
            Some(total) if self.done < total => {
                Ok(Step::Broken("the connection ended too early".to_owned(), None))
            }
            _ if self.done == 0 => Err(DownloadError::Empty { source_url: self.url() }),
            _ => {
                let validator = self.validator.clone();
                Ok(Step::Finished(Outcome::Complete { bytes: self.done, validator }))
            }
        }
    }

    fn check_kind(&self, head: &[u8]) -> Result<(), DownloadError> {
        match sniff::kind_of(head) {
            Kind::MaybeZip => Ok(()),
            Kind::Other(kind) => Err(DownloadError::WrongKind { source_url: self.url(), kind }),
        }
    }
}

/// `bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4): the first byte, and the length of the whole.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last + 1 == total).then_some((first, total))
}

fn strong_etag(stream: &Stream) -> Option<String> {
    let etag = stream.header("etag")?.trim();
    let is_plain = etag.len() <= 256 && etag.bytes().all(|byte| byte.is_ascii_graphic());
    (etag.starts_with('"') && is_plain).then(|| etag.to_owned())
}

#[cfg(test)]
mod tests;
