//! `exec:PATH[?key=NAME]`: a program of the operator's that wraps and unwraps, for key services
//! that nothing here speaks to. The protocol, for who writes one:
//! [`plugins`](crate::manual::plugins).
//!
//! A plugin is run once for each request, without a shell, with an environment of its own, in a
//! session of its own, for a bounded time. It is as trusted as this program, so it must belong to
//! root or to the user, and neither it nor a directory above it may be writable by others.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::redact::{decode_secret, presentable};
use super::{Binding, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped};
use crate::crypto::Secret;
use crate::format::config::{Algorithm, KekReference, URI_BYTES_MAX};
use crate::sys::child::{Ended, Program, RunError};

/// Version of the protocol, in requests and replies.
const PROTOCOL: u32 = 1;
/// The only argument of a plugin. Interpreters and tools that are named by mistake refuse it,
/// rather than take a request for a script.
const ARGUMENT: &str = "--atrest-kek-plugin=1";
/// Longest time for one request, unless `/etc/atrest/providers.toml` has another.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest reply, in bytes.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// How much of the end of standard error is looked at, in bytes.
const ERRORS_BYTES_MAX: usize = 4096;
/// Longest path and longest name of a key, in bytes.
const PATH_BYTES_MAX: usize = 255;
const KEY_BYTES_MAX: usize = 128;
/// Longest wrapped key (`format::config`) and longest secret, in bytes.
const WRAPPED_BYTES_MAX: usize = 1024;
const SECRET_BYTES_MAX: usize = 512;
/// How often wrapping starts over because the KEK got a new version in between.
const WRAP_ATTEMPTS: usize = 3;
/// Variables that a plugin gets with the values that they have here; also those that begin with
/// [`PASSED_PREFIX`].
const PASSED: &[&str] = &["HOME", "CREDENTIALS_DIRECTORY"];
const PASSED_PREFIX: &str = "ATREST_PLUGIN_";
/// Variables with fixed values.
const FIXED: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LANG", "C.UTF-8"),
];

/// The provider of one key of one plugin.
struct ExecProvider {
    uri: String,
    path: PathBuf,
    key: String,
    timeout: Duration,
}

/// Makes the provider for `exec:PATH` or `exec:PATH?key=NAME`; [`super::Registry`] calls it.
/// Nothing is run yet.
///
/// # Errors
/// `Configuration` if `/etc/atrest/providers.toml` cannot be read, the path is not absolute and
/// plain, or the name has other characters than letters, digits and `._:/@+=-`.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    let (path, key) = parse(uri).map_err(|problem| {
        KekError::new(KekErrorKind::Configuration { problem: problem.to_owned() }, uri, "")
    })?;
    let (path, key) = (PathBuf::from(path), key.to_owned());
    let timeout = options.settings(uri)?.exec.timeout.unwrap_or(TIMEOUT);
    Ok(Arc::new(ExecProvider { uri: uri.to_owned(), path, key, timeout }))
}

/// Path and name of the key (or empty). A URI has one spelling only: what is authorised by name
/// must not be reached by another.
fn parse(uri: &str) -> Result<(&str, &str), &'static str> {
    let rest =
        uri.strip_prefix("exec:").ok_or("a plugin's URI is exec:PATH or exec:PATH?key=NAME")?;
    let (path, key) = match rest.split_once('?') {
        None => (rest, ""),
        Some((path, query)) => {
            let is_name = |name: &&str| {
                let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:/@+=-".contains(&b);
                (1..=KEY_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
            };
            let name = query.strip_prefix("key=").filter(is_name);
            (path, name.ok_or("after `?`, a plugin's URI has key= and a name, and nothing else")?)
        }
    };
    let plain = path.starts_with('/')
        && path.len() <= PATH_BYTES_MAX
        && path.bytes().all(|b| b.is_ascii_graphic() && b != b'%' && b != b'#')
        && !path[1..].split('/').any(|part| matches!(part, "" | "." | ".."));
    match plain {
        true => Ok((path, key)),
        false => Err("a plugin's path is absolute, without `..`, spaces, `%` and `#`"),
    }
}

/// Whoever may change the plugin, or put another in its place, could have the volume key.
fn check_trusted(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let look = |path: &Path| {
        std::fs::symlink_metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("there is no plugin {}", path.display()),
            _ => format!("cannot look at {}: {error}", path.display()),
        })
    };
    let real = path.canonicalize().map_err(|_| format!("there is no plugin {shown}"))?;
    if real != path {
        return Err(format!(
            "{shown} is a symbolic link, or below one; name exec:{}",
            real.display()
        ));
    }
    let user = nix::unistd::geteuid().as_raw();
    for part in path.ancestors().filter(|part| part.components().next() == Some(Component::RootDir))
    {
        let metadata = look(part)?;
        let (mode, owner, shown) = (metadata.mode(), metadata.uid(), part.display());
        if owner != 0 && owner != user {
            let whose =
                format!("belongs to user {owner}, not to root or user {user} who runs this");
            return Err(format!("{shown} {whose}; run: chown root {shown}"));
        }
        // Nobody replaces what others own in a directory with the sticky bit, such as /tmp.
        let sticky = metadata.is_dir() && mode & libc::S_ISVTX != 0;
        if mode & 0o022 != 0 && !sticky {
            let mode = mode & 0o7777;
            return Err(format!(
                "{shown} is writable by others (mode {mode:04o}); run: chmod go-w {shown}"
            ));
        }
    }
    if !look(path)?.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    if look(path)?.mode() & 0o111 == 0 {
        return Err(format!("{shown} is not executable; run: chmod u+x {shown}"));
    }
    Ok(())
}

/// What a plugin gets, as one line of JSON.
#[derive(Serialize)]
struct Request<'a> {
    protocol: u32,
    operation: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    associated_data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
}

/// What it answers: exactly one of the two. Borrows from the reply, which is wiped; owned strings
/// would not be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply<'a> {
    protocol: u32,
    #[serde(borrow)]
    ok: Option<Success<'a>>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Success<'a> {
    key_id: Option<String>,
    key_version: Option<String>,
    value: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    class: Class,
    message: String,
    recoverable: Option<bool>,
    /// In seconds.
    retry_after: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Class {
    Denied,
    Disabled,
    Gone,
    Throttled,
    Unreachable,
    Authentication,
    BadRequest,
    Integrity,
    Configuration,
}

/// A key and version that a plugin named.
#[derive(PartialEq, Eq)]
struct Named {
    key_id: String,
    key_version: String,
}

impl ExecProvider {
    /// Runs the plugin with one request, and gives what `take` makes of its success.
    fn ask<T>(
        &self,
        request: &Request<'_>,
        take: impl FnOnce(&Success<'_>) -> Option<T>,
    ) -> Result<T, KekError> {
        check_trusted(&self.path)
            .map_err(|problem| self.error(request, KekErrorKind::Configuration { problem }))?;
        let room = URI_BYTES_MAX * 4 + WRAPPED_BYTES_MAX * 2;
        let mut input = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer(&mut *input, request).expect("writing to memory succeeds");
        input.push(b'\n');
        let environment = environment();
        let program = Program {
            path: &self.path,
            arguments: &[OsStr::new(ARGUMENT)],
            environment: &environment,
            timeout: self.timeout,
            output_bytes_max: REPLY_BYTES_MAX,
            errors_bytes_max: ERRORS_BYTES_MAX,
        };
        let ended = program.run(&input).map_err(|error| self.did_not_run(request, error))?;
        self.read(request, &ended, take)
    }

    fn read<T>(
        &self,
        request: &Request<'_>,
        ended: &Ended,
        take: impl FnOnce(&Success<'_>) -> Option<T>,
    ) -> Result<T, KekError> {
        let no_answer = |what: String| {
            let reason = format!("the plugin {what}{}", said(&ended.errors));
            self.error(request, KekErrorKind::Unreachable { reason })
        };
        // The parser's own words could quote the reply.
        let reply: Reply<'_> = serde_json::from_slice(&ended.output).map_err(|error| {
            no_answer(match (ended.output.is_empty(), ended.status.success()) {
                (true, true) => "ended without an answer".to_owned(),
                (true, false) => format!("ended {} without an answer", how(ended.status)),
                _ => format!(
                    "did not answer as the protocol says (line {}, column {})",
                    error.line(),
                    error.column()
                ),
            })
        })?;
        let refused =
            |what: &str| no_answer(format!("did not answer as the protocol says ({what})"));
        match reply {
            Reply { protocol, .. } if protocol != PROTOCOL => {
                Err(refused("another version of the protocol"))
            }
            Reply { ok: Some(success), error: None, .. } => {
                if !ended.status.success() {
                    return Err(no_answer(format!("answered, but ended {}", how(ended.status))));
                }
                take(&success).ok_or_else(|| refused("a field is missing, of no use or too long"))
            }
            Reply { ok: None, error: Some(failure), .. } => {
                let kind = failure.kind().ok_or_else(|| refused("a field of another class"))?;
                let message = presentable(failure.message.as_bytes());
                Err(self.error(request, kind).caused_by(message))
            }
            _ => Err(refused("not exactly one of `ok` and `error`")),
        }
    }

    fn did_not_run(&self, request: &Request<'_>, error: RunError) -> KekError {
        let kind = match error {
            RunError::Start(error) => KekErrorKind::Configuration {
                problem: format!("cannot run {}: {error}", self.path.display()),
            },
            RunError::TimedOut(errors) => {
                let seconds = self.timeout.as_secs_f32();
                let reason = format!("the plugin took more than {seconds} s{}", said(&errors));
                KekErrorKind::Unreachable { reason }
            }
            RunError::TooLong => KekErrorKind::Unreachable {
                reason: format!("the plugin answered with more than {REPLY_BYTES_MAX} bytes"),
            },
            RunError::Io(error) => KekErrorKind::Unreachable { reason: error.to_string() },
        };
        self.error(request, kind)
    }

    fn error(&self, request: &Request<'_>, kind: KekErrorKind) -> KekError {
        let about = match (request.key_id, request.key_version) {
            (Some(id), Some(version)) => format!("{id}/{version}"),
            _ => String::new(),
        };
        KekError::new(kind, &self.uri, &about)
    }

    fn request<'a>(&'a self, operation: &'static str) -> Request<'a> {
        Request {
            protocol: PROTOCOL,
            operation,
            key: &self.key,
            key_id: None,
            key_version: None,
            associated_data: None,
            value: None,
        }
    }

    fn wrap_one(
        &self,
        associated_data: &str,
        secret: &Secret,
    ) -> Result<(Named, Vec<u8>), KekError> {
        let value = Zeroizing::new(STANDARD.encode(secret.expose()));
        let request = Request {
            associated_data: Some(associated_data),
            value: Some(&value),
            ..self.request("wrap")
        };
        self.ask(&request, |success| {
            let blob = STANDARD.decode(success.value?).ok()?;
            let fits = (1..=WRAPPED_BYTES_MAX).contains(&blob.len());
            fits.then_some(()).and_then(|()| Some((success.named()?, blob)))
        })
    }

    fn describe(&self, operation: &'static str) -> Result<Named, KekError> {
        let request = self.request(operation);
        self.ask(&request, |success| success.named().filter(|_| success.value.is_none()))
    }
}

impl KekProvider for ExecProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::Plugin]
    }

    fn wrap(&self, binding: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let associated_data = binding.associated_data();
        for _ in 0..WRAP_ATTEMPTS {
            let wrapped = secrets.iter().map(|secret| self.wrap_one(&associated_data, secret));
            let wrapped: Vec<_> = wrapped.collect::<Result<_, _>>()?;
            if wrapped.windows(2).any(|pair| pair[0].0 != pair[1].0) {
                continue;
            }
            let (names, blobs): (Vec<_>, Vec<_>) = wrapped.into_iter().unzip();
            let Some(Named { key_id, key_version }) = names.into_iter().next() else { break };
            let kek = KekReference {
                key_id,
                key_version,
                algorithm: Algorithm::Plugin,
                parameters: None,
            };
            return Ok(Wrapped { kek, blobs });
        }
        let reason = "the plugin names another version of the key each time".to_owned();
        Err(KekError::new(KekErrorKind::Unreachable { reason }, &self.uri, ""))
    }

    fn unwrap(
        &self,
        binding: &Binding,
        kek: &KekReference,
        wrapped: &[u8],
    ) -> Result<Secret, KekError> {
        let associated_data = binding.associated_data();
        let value = STANDARD.encode(wrapped);
        let request = Request {
            key_id: Some(&kek.key_id),
            key_version: Some(&kek.key_version),
            associated_data: Some(&associated_data),
            value: Some(&value),
            ..self.request("unwrap")
        };
        self.ask(&request, |success| {
            let alone = success.key_id.is_none() && success.key_version.is_none();
            let secret = decode_secret(&STANDARD, success.value?, SECRET_BYTES_MAX)?;
            alone.then_some(secret)
        })
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        self.describe("describe").map(|named| Some(named.key_version))
    }

    fn create_version(&self) -> Result<String, KekError> {
        self.describe("create-version").map(|named| named.key_version)
    }
}

impl Success<'_> {
    /// Key and version, if they are what a slot can hold.
    fn named(&self) -> Option<Named> {
        let is_text = |text: &&String| {
            (1..=URI_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        let key_id = self.key_id.as_ref().filter(is_text)?.clone();
        let key_version = self.key_version.as_ref().filter(is_text)?.clone();
        Some(Named { key_id, key_version })
    }
}

impl Failure {
    /// `None` if it has a field that is not of its class.
    fn kind(&self) -> Option<KekErrorKind> {
        let reason = presentable(self.message.as_bytes());
        let misplaced = (self.recoverable.is_some() && self.class != Class::Gone)
            || (self.retry_after.is_some() && self.class != Class::Throttled);
        let kind = match self.class {
            Class::Denied => KekErrorKind::Denied { reason },
            Class::Disabled => KekErrorKind::Disabled,
            Class::Gone => KekErrorKind::Gone { recoverable: self.recoverable.unwrap_or(false) },
            Class::Throttled => KekErrorKind::Throttled {
                retry_after: self.retry_after.map(|seconds| Duration::from_secs(seconds.into())),
            },
            Class::Unreachable => KekErrorKind::Unreachable { reason },
            Class::Authentication => KekErrorKind::AuthenticationFailed { reason },
            Class::BadRequest => KekErrorKind::BadRequest { reason },
            Class::Integrity => KekErrorKind::Integrity,
            Class::Configuration => KekErrorKind::Configuration { problem: reason },
        };
        (!misplaced).then_some(kind)
    }
}

/// All of a plugin's environment.
fn environment() -> Vec<(OsString, OsString)> {
    let passed = |name: &OsString| {
        let name = name.to_str().unwrap_or("");
        PASSED.contains(&name) || name.starts_with(PASSED_PREFIX)
    };
    let fixed = FIXED.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    fixed.chain(std::env::vars_os().filter(|(name, _)| passed(name))).collect()
}

/// What a plugin wrote to its standard error, to be put behind what happened.
fn said(errors: &[u8]) -> String {
    match presentable(errors) {
        text if text.is_empty() => text,
        text => format!("; it said: {text}"),
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, signal) => format!("by signal {}", signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
