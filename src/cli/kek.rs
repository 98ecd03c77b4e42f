//! `atrest kek`, and what is said of the condition of a key.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::args::{KekCheckArgs, KekCommand};
use super::exit::Exit;
use super::hint::{Failure, advice, kek_exit, kek_text};
use super::keys;
use crate::crypto::random;
use crate::format::VolumeId;
use crate::key::http::Proxy;
use crate::key::{
    Binding, Health, KekError, KekErrorKind, KekProvider, Wrapped, provider_from_uri,
};

/// How long resolving and connecting may take, each.
const NETWORK_PATIENCE: Duration = Duration::from_secs(5);
/// A key that expires sooner is warned of.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of the secret that is wrapped: those of a volume key.
const SECRET_BYTES: usize = 32;

/// Runs a `kek` command.
///
/// # Errors
/// A key that a volume could not depend on.
pub fn run(command: &KekCommand) -> Result<(), Failure> {
    match command {
        KekCommand::Check(arguments) => check(arguments),
    }
}

/// One thing that was tried.
struct Step {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

enum Outcome {
    /// It worked; what is worth knowing about it.
    Done(String),
    /// It did not, and the volume would still open.
    Noted(String),
    /// It did not.
    Failed { exit: Exit, error: String, advice: Vec<String> },
}

fn check(arguments: &KekCheckArgs) -> Result<(), Failure> {
    let uri = &arguments.uri;
    let mut report = Report { steps: Vec::new(), warnings: Vec::new() };
    // Whatever went wrong is in the report.
    let _ = report.try_key(arguments);
    let failed = report.steps.iter().find(|step| matches!(step.outcome, Outcome::Failed { .. }));
    if arguments.json {
        let steps: Value = report.steps.iter().map(Step::json).collect();
        let ok = failed.is_none();
        let warnings = &report.warnings;
        println!("{:#}", json!({ "uri": uri, "ok": ok, "steps": steps, "warnings": warnings }));
    } else {
        report.steps.iter().for_each(Step::print);
        report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    let Some(Step { name, outcome: Outcome::Failed { exit, error, advice }, .. }) = failed else {
        if !arguments.json {
            println!("A volume can depend on this key.");
        }
        return Ok(());
    };
    let failure = Failure::new(*exit, format!("{uri} is of no use to a volume: {name} failed"));
    let lines = std::iter::once(error).chain(advice);
    Err(lines.fold(failure, |failure, line| failure.hint(line)))
}

/// What was tried so far, and what is to be warned of.
struct Report {
    steps: Vec<Step>,
    warnings: Vec<String>,
}

impl Report {
    /// Tries everything in order, up to the first thing that must work and does not: `None`.
    fn try_key(&mut self, arguments: &KekCheckArgs) -> Option<()> {
        let uri = &arguments.uri;
        let options = keys::source_options(&arguments.keys, None, &[uri]);
        let provider = self.step(
            "configure",
            |_| "understood, and authorised by the command line".to_owned(),
            || provider_from_uri(uri, &options).map_err(Trouble::Kek),
        )?;
        // The provider was made, so its settings can be read.
        let settings = options.settings(uri).unwrap_or_default();
        match endpoint(uri) {
            Some((host, port)) if !is_proxied(&settings.http.proxy) => {
                self.try_network(host, port)?;
            }
            _ => {}
        }
        self.try_health(uri, &*provider)?;
        let mut id = [0; 16];
        random::fill(&mut id);
        let binding = Binding { volume_id: VolumeId(id) };
        let secret = random::secret(SECRET_BYTES);
        let Wrapped { kek, blobs } = self.step(
            "wrap",
            |wrapped: &Wrapped| {
                let kek = &wrapped.kek;
                let algorithm = json!(kek.algorithm);
                let algorithm = algorithm.as_str().unwrap_or_default();
                format!("{algorithm}, key {}, version {}", kek.key_id, kek.key_version)
            },
            || provider.wrap(&binding, &[&secret]).map_err(Trouble::Kek),
        )?;
        let unwrapped = self.step(
            "unwrap",
            |_| "the same secret came out".to_owned(),
            || {
                let blob = blobs.first().map(Vec::as_slice).unwrap_or_default();
                match provider.unwrap(&binding, &kek, blob) {
                    Ok(out) if out.is_same(&secret) => Ok(()),
                    Ok(_) => Err(Trouble::Kek(KekError::new(
                        KekErrorKind::Integrity,
                        uri,
                        &kek.key_version,
                    ))),
                    Err(error) => Err(Trouble::Kek(error)),
                }
            },
        );
        unwrapped?;
        self.step(
            "newest version",
            |version: &Option<String>| version.clone().unwrap_or_else(|| "no versions".to_owned()),
            || provider.latest_version().map_err(Trouble::Kek),
        )?;
        Some(())
    }

    /// Resolves and connects, so that a name, a network and a service are told apart.
    fn try_network(&mut self, host: &str, port: u16) -> Option<()> {
        let addresses = self.step(
            "resolve",
            |addresses: &Vec<SocketAddr>| {
                let shown = addresses.iter().map(|address| address.ip().to_string());
                shown.collect::<Vec<_>>().join(", ")
            },
            || resolve(host, port).map_err(|error| Trouble::Network(host.to_owned(), error)),
        )?;
        let address = *addresses.first()?;
        self.step(
            "connect",
            |_| address.to_string(),
            || {
                TcpStream::connect_timeout(&address, NETWORK_PATIENCE)
                    .map(drop)
                    .map_err(|error| Trouble::Network(address.to_string(), error))
            },
        )
    }

    /// Reads the key. Not to be granted that is no failure: nothing but warnings needs it.
    fn try_health(&mut self, uri: &str, provider: &dyn KekProvider) -> Option<()> {
        let begun = Instant::now();
        let health = provider.health();
        self.warnings = warnings(uri, &health);
        let outcome = match health {
            Ok(health) => {
                let words = health_words(&health);
                let nothing = "the provider does not say".to_owned();
                Outcome::Done(if words.is_empty() { nothing } else { words.join(", ") })
            }
            Err(error) if matches!(error.kind(), KekErrorKind::Denied { .. }) => {
                Outcome::Noted(format!("{}; only warnings need it", kek_text(&error)))
            }
            Err(error) => Trouble::Kek(error).into_outcome(),
        };
        let failed = matches!(outcome, Outcome::Failed { .. });
        self.steps.push(Step { name: "read the key", took: begun.elapsed(), outcome });
        if failed { None } else { Some(()) }
    }

    fn step<T>(
        &mut self,
        name: &'static str,
        detail: impl FnOnce(&T) -> String,
        attempt: impl FnOnce() -> Result<T, Trouble>,
    ) -> Option<T> {
        let begun = Instant::now();
        let result = attempt();
        let took = begun.elapsed();
        let (outcome, value) = match result {
            Ok(value) => (Outcome::Done(detail(&value)), Some(value)),
            Err(trouble) => (trouble.into_outcome(), None),
        };
        self.steps.push(Step { name, took, outcome });
        value
    }
}

/// Why a step failed.
enum Trouble {
    Kek(KekError),
    /// Of a host or address.
    Network(String, io::Error),
}

impl Trouble {
    fn into_outcome(self) -> Outcome {
        match self {
            Self::Kek(error) => Outcome::Failed {
                exit: kek_exit(&error),
                error: kek_text(&error),
                advice: advice(&error),
            },
            Self::Network(place, error) => Outcome::Failed {
                exit: Exit::KeyUnreachable,
                error: format!("{place}: {error}"),
                advice: vec![
                    "Look at the name, DNS, routes and firewalls between this host and it. A name \
                     that does not exist may be a vault that was deleted."
                        .to_owned(),
                    "If only a proxy leads there, set HTTPS_PROXY.".to_owned(),
                ],
            },
        }
    }
}

impl Step {
    fn milliseconds(&self) -> f64 {
        (self.took.as_secs_f64() * 1e4).round() / 10.0
    }

    fn print(&self) {
        let (mark, text) = match &self.outcome {
            Outcome::Done(text) => ("ok", text),
            Outcome::Noted(text) => ("note", text),
            Outcome::Failed { error, .. } => ("FAILED", error),
        };
        println!("{mark:<6} {:<14} {:>8.1} ms  {text}", self.name, self.milliseconds());
    }

    fn json(&self) -> Value {
        let mut step = json!({ "step": self.name, "ms": self.milliseconds() });
        match &self.outcome {
            Outcome::Done(text) => {
                step["ok"] = json!(true);
                step["detail"] = json!(text);
            }
            Outcome::Noted(text) => {
                step["ok"] = json!(true);
                step["note"] = json!(text);
            }
            Outcome::Failed { error, advice, exit } => {
                step["ok"] = json!(false);
                step["error"] = json!(error);
                step["advice"] = json!(advice);
                step["exit"] = json!(*exit as u8);
            }
        }
        step
    }
}

/// Host and port of a URI with a URL behind the provider's kind.
fn endpoint(uri: &str) -> Option<(&str, u16)> {
    let (_, url) = uri.split_once(':')?;
    let (port, rest) = match url.split_once("://")? {
        ("https", rest) => (443, rest),
        ("http", rest) => (80, rest),
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let (host, explicit) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    };
    let port = explicit.map_or(Ok(port), str::parse).ok()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port)).filter(|(host, _)| !host.is_empty())
}

/// Whether a proxy stands between this host and the service: it resolves and connects then.
fn is_proxied(proxy: &Proxy) -> bool {
    match proxy {
        Proxy::None => return false,
        Proxy::Url(_) => return true,
        Proxy::Environment => {}
    }
    let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    names.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// getaddrinfo(3) takes no time-out, so it runs on a thread that is left behind if need be.
fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let (sender, receiver) = mpsc::channel();
    let name = host.to_owned();
    std::thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        // Nobody listens any more after a time-out.
        let _ = sender.send(found);
    });
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer from name servers");
    let addresses = receiver.recv_timeout(NETWORK_PATIENCE).map_err(late)??;
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Prints what is to be warned of before a volume depends on the key.
pub fn warn(provider: &dyn KekProvider) {
    let warnings = warnings(provider.uri(), &provider.health());
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}

/// What of a key's condition endangers the volume, in words.
pub fn warnings(uri: &str, health: &Result<Health, KekError>) -> Vec<String> {
    let health = match health {
        Ok(health) => health,
        Err(error) => {
            let words = kek_text(error);
            return vec![format!("cannot tell whether the key could be lost: {words}")];
        }
    };
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(format!("{uri}: {text}"));
    if health.enabled == Some(false) {
        warn("the key is disabled: nothing opens with it until it is enabled".to_owned());
    }
    if health.recoverable == Some(false) {
        warn("a deleted key cannot be brought back: switch soft deletion on".to_owned());
    }
    if health.purge_protected == Some(false) {
        warn(
            "the key can be purged, and the volume lost with it: switch purge protection of its \
             vault on"
                .to_owned(),
        );
    }
    let now = SystemTime::now();
    if let Some(from) = health.not_before.filter(|from| *from > now) {
        warn(format!("the key is not valid before {}", stamp(from)));
    }
    match health.expires {
        Some(end) if end <= now => warn(format!(
            "the key expired at {}: it wraps nothing any more; make a new version, and run: atrest \
             key rotate",
            stamp(end)
        )),
        Some(end) if end <= now + EXPIRY_WARNING => warn(format!(
            "the key expires at {}: make a new version before, and run: atrest key rotate",
            stamp(end)
        )),
        _ => {}
    }
    if !health.operations_missing.is_empty() {
        let missing = health.operations_missing.join(", ");
        warn(format!("the key does not allow {missing}: add it to its permitted operations"));
    }
    warnings
}

/// A key's condition in a few words; none for what the provider does not say.
pub fn health_words(health: &Health) -> Vec<String> {
    let mut words = Vec::new();
    words.extend(health.version.as_ref().map(|version| format!("version {version}")));
    let mut say = |fact: Option<bool>, yes: &str, no: &str| {
        words.extend(fact.map(|fact| if fact { yes } else { no }.to_owned()));
    };
    say(health.enabled, "enabled", "disabled");
    say(health.recoverable, "recoverable when deleted", "not recoverable when deleted");
    say(health.purge_protected, "protected from purging", "can be purged");
    words.extend(health.expires.map(|end| format!("expires {}", stamp(end))));
    words
}

/// The same for scripts.
pub fn health_json(health: &Result<Health, KekError>) -> Value {
    match health {
        Ok(health) => json!({
            "version": health.version,
            "enabled": health.enabled,
            "not_before": health.not_before.map(stamp),
            "expires": health.expires.map(stamp),
            "recoverable": health.recoverable,
            "purge_protected": health.purge_protected,
            "operations_missing": health.operations_missing,
        }),
        Err(error) => json!({ "error": kek_text(error) }),
    }
}

/// RFC 3339, to the second; what a calendar has no name for is the last moment that it has.
fn stamp(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::MAX);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a URI leads, if it leads anywhere over the network.
    #[test]
    fn endpoints() {
        for (uri, expected) in [
            ("azure:https://n.vault.azure.net/keys/k", Some(("n.vault.azure.net", 443))),
            ("transit:https://h:8200/v1/transit/keys/k", Some(("h", 8200))),
            ("azure:https://[::1]:9/keys/k", Some(("::1", 9))),
            ("azure:https://[::1]/keys/k", Some(("::1", 443))),
            ("azure:https://h:99999/keys/k", None),
            ("azure:https:///keys/k", None),
            ("azure:ftp://h/k", None),
            ("pkcs11:token=kek;object=k", None),
            ("local:", None),
            ("aws:arn:aws:kms:eu-west-1:111122223333:key/1", None),
            ("", None),
        ] {
            assert_eq!(endpoint(uri), expected, "{uri}");
        }
    }

    /// Everything that endangers a volume is said, and nothing of a key that is well.
    #[test]
    fn what_is_warned_of() {
        let day = Duration::from_secs(24 * 3600);
        let now = SystemTime::now();
        let well = Health {
            enabled: Some(true),
            recoverable: Some(true),
            purge_protected: Some(true),
            expires: Some(now + 400 * day),
            not_before: Some(now - day),
            ..Health::default()
        };
        assert_eq!(warnings("azure:x", &Ok(well.clone())), Vec::<String>::new());
        assert_eq!(warnings("local:", &Ok(Health::default())), Vec::<String>::new());
        for (health, said) in [
            (Health { enabled: Some(false), ..well.clone() }, "disabled"),
            (Health { recoverable: Some(false), ..well.clone() }, "soft deletion"),
            (Health { purge_protected: Some(false), ..well.clone() }, "purge protection"),
            (Health { expires: Some(now + 20 * day), ..well.clone() }, "expires at"),
            (Health { expires: Some(now - day), ..well.clone() }, "expired at"),
            (Health { not_before: Some(now + day), ..well.clone() }, "not valid before"),
            (Health { operations_missing: vec!["wrapKey".into()], ..well.clone() }, "wrapKey"),
        ] {
            let warnings = warnings("azure:x", &Ok(health));
            assert!(warnings.len() == 1 && warnings[0].contains(said), "{said}: {warnings:?}");
        }
        let denied = KekErrorKind::Denied { reason: "keys/get".to_owned() };
        let unknown = warnings("azure:x", &Err(KekError::new(denied, "azure:x", "")));
        assert!(unknown.len() == 1 && unknown[0].contains("cannot tell"), "{unknown:?}");
    }

    /// Times far away do not panic.
    #[test]
    fn stamps() {
        assert_eq!(stamp(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60);
        assert!(stamp(far).starts_with("9999-"));
    }
}
