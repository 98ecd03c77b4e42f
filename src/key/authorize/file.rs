//! Reads `/etc/atrest/providers.toml`, which must not be others' to write.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;

use super::settings::{EndpointSettings, Keys, RawKeys};
use super::{KINDS_NEVER_WHOLE, permits};
use crate::key::file::read_bounded;
use crate::key::http::{Url, printable};
use crate::key::pkcs11;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: usize = 256 * 1024;

/// What the file says.
#[derive(Default)]
pub(super) struct Document {
    /// In the order of the file.
    entries: Vec<Entry>,
}

struct Entry {
    pattern: String,
    settings: EndpointSettings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    allow: Vec<toml::Spanned<String>>,
    #[serde(default)]
    provider: Vec<toml::Spanned<RawKeys>>,
}

impl Document {
    /// Whether an entry allows `uri`.
    pub(super) fn permits(&self, uri: &str) -> bool {
        self.entries.iter().any(|entry| permits(&entry.pattern, uri))
    }

    /// What the longest entry that allows `uri` says.
    pub(super) fn settings(&self, uri: &str) -> Option<&EndpointSettings> {
        let matching = self.entries.iter().filter(|entry| permits(&entry.pattern, uri));
        matching.max_by_key(|entry| entry.pattern.len()).map(|entry| &entry.settings)
    }
}

/// Reads `path`; nothing is allowed if it is `optional` and not there.
///
/// # Errors
/// In words, with line and column.
pub(super) fn read(path: &Path, optional: bool) -> Result<Document, String> {
    let Some(text) = read_text(path, optional)? else { return Ok(Document::default()) };
    parse(&text).map_err(|(span, problem)| {
        let (line, column) = position(&text, span.start);
        format!("{}, line {line}, column {column}: {problem}", path.display())
    })
}

/// The text of a file of the host's administrator, which nobody else can change; `None` if it is
/// `optional` and not there.
///
/// # Errors
/// In words.
pub fn read_text(path: &Path, optional: bool) -> Result<Option<String>, String> {
    let place = path.display();
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot open {place}: {error}")),
    };
    let looked = |error| format!("cannot look at {place}: {error}");
    let metadata = file.metadata().map_err(looked)?;
    if !metadata.is_file() {
        return Err(format!("{place} is not a regular file"));
    }
    check_writers(path, &metadata)?;
    // Who can rename in its directory can replace it.
    let real = path.canonicalize().map_err(looked)?;
    if let Some(directory) = real.parent() {
        check_writers(directory, &directory.metadata().map_err(looked)?)?;
    }
    let bytes = read_bounded(&mut file, path, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{place} is not UTF-8"))?;
    Ok(Some(text.to_owned()))
}

/// Only root and this process's user may be able to change it.
fn check_writers(path: &Path, metadata: &Metadata) -> Result<(), String> {
    let (place, owner, mode) = (path.display(), metadata.uid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(format!("{place} belongs to user {owner}; run: chown root {place}"));
    }
    // In a sticky directory others can add files, but not replace this one.
    let sticky = metadata.is_dir() && mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        return Err(format!("{place} can be changed by others; run: chmod go-w {place}"));
    }
    Ok(())
}

/// An error has the bytes that it is about.
pub(super) fn parse(text: &str) -> Result<Document, (Range<usize>, String)> {
    let raw: Raw = toml::from_str(text).map_err(|error| {
        // The first line of the message only: others repeat the file, which may have a password.
        let message = error.message().lines().next().unwrap_or_default();
        (error.span().unwrap_or_default(), printable(message))
    })?;
    let mut entries = Vec::new();
    for pattern in raw.allow {
        let span = pattern.span();
        let pattern = pattern.into_inner();
        check_pattern(&pattern).map_err(|problem| (span, problem))?;
        entries.push(Entry { pattern, settings: EndpointSettings::default() });
    }
    for table in raw.provider {
        let whole = table.span();
        let mut keys = table.into_inner();
        let uri = keys.take_uri();
        let uri = uri.ok_or_else(|| (whole.clone(), "the provider has no uri".to_owned()))?;
        let span = uri.span();
        let pattern = uri.into_inner();
        check_pattern(&pattern).map_err(|problem| (span.clone(), problem))?;
        if entries.iter().any(|entry| entry.pattern == pattern) {
            return Err((span, "this uri is there twice".to_owned()));
        }
        let kind = pattern.split_once(':').map_or("", |(kind, _)| kind).to_owned();
        let settings =
            Keys { kind, raw: keys }.settings().map_err(|problem| (whole.clone(), problem))?;
        entries.push(Entry { pattern, settings });
    }
    Ok(Document { entries })
}

/// Refuses what allows nothing, or not what it seems to.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let shown = printable(pattern);
    let Some((kind, rest)) = pattern.split_once(':') else {
        return Err(format!("{shown:?} is not KIND:REST, as in azure:https://HOST/keys/KEY"));
    };
    let is_kind = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if kind.is_empty() || !kind.bytes().all(is_kind) {
        return Err(format!("{shown:?} does not begin with the kind of a provider"));
    }
    if rest.is_empty() && KINDS_NEVER_WHOLE.contains(&kind) {
        return Err(format!("{kind}: would allow every program; name one: {kind}:/PATH"));
    }
    if kind == "pkcs11" && !rest.is_empty() {
        return match pkcs11::canonical(pattern) {
            Some(canonical) if canonical == pattern => Ok(()),
            Some(canonical) => Err(format!(
                "write {shown:?} as key slots do, {canonical:?}; module and pin_file are keys of \
                 [[provider]]"
            )),
            None => Err(format!("{shown:?} is not a PKCS #11 URI (RFC 7512)")),
        };
    }
    if rest.contains("://") {
        Url::parse(rest).map_err(|error| format!("{shown:?} is {error}"))?;
    }
    Ok(())
}

/// Line and column, from 1, of a byte.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
