//! What refusals of a transit engine mean. It says most with status 400, told apart by words only.

use std::time::Duration;

use serde::Deserialize;

use crate::key::KekErrorKind;
use crate::key::http::Reply;
use crate::key::redact::presentable;

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// `GET MOUNT/keys/KEY`.
    Read,
    /// `POST MOUNT/encrypt/KEY`.
    Encrypt,
    /// `POST MOUNT/decrypt/KEY`.
    Decrypt,
    /// `POST MOUNT/keys/KEY/rotate`.
    Rotate,
    /// A login.
    Login,
}

/// Why not, and the service's own words where the kind has no place for them.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) kind: KekErrorKind,
    pub(super) cause: Option<String>,
}

impl From<KekErrorKind> for Refusal {
    fn from(kind: KekErrorKind) -> Self {
        Self { kind, cause: None }
    }
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

/// The service's words, bounded and without what looks like a token; `None` if it was not the
/// service that answered, but something on the way.
fn words(reply: &Reply) -> Option<String> {
    let Errors { errors } = reply.json().ok()?;
    Some(presentable(errors.join("; ").as_bytes()))
}

/// Beginnings of the service's words in a status 400, and what they mean. From OpenBao 2.7 and
/// Vault, in `helper/keysutil` and `builtin/logical/transit`.
type Meaning = fn() -> KekErrorKind;
const MEANINGS: &[(&str, Meaning)] = &[
    ("message authentication failed", || KekErrorKind::Integrity),
    // Of the version: `min_decryption_version` was raised.
    ("disallowed by policy (too old)", || KekErrorKind::Disabled),
    ("soft-deleted", || KekErrorKind::Gone { recoverable: true }),
    ("encryption key not found", || KekErrorKind::Gone { recoverable: false }),
    ("version is too new", || KekErrorKind::Gone { recoverable: false }),
    ("invalid ciphertext", || KekErrorKind::Integrity),
];

/// What a reply other than success and 403 means.
pub(super) fn refusal(reply: &Reply, operation: Operation, key_id: &str) -> Refusal {
    let status = reply.status();
    let words = words(reply);
    let no_service = || KekErrorKind::Unreachable {
        reason: format!(
            "status {status}, but not from OpenBao or Vault; is the URL right, and is there a \
             proxy in between?"
        ),
    };
    let kind = match (status, &words) {
        (429, _) => KekErrorKind::Throttled { retry_after: reply.retry_after() },
        (503, Some(said)) if said.contains("sealed") => KekErrorKind::Unreachable {
            reason: "the service is sealed; unseal it (bao operator unseal)".to_owned(),
        },
        (500.., said) => KekErrorKind::Unreachable {
            reason: format!("status {status}: {}", said.as_deref().unwrap_or("no explanation")),
        },
        // Enterprise: this node has not seen yet what another has.
        (412, Some(said)) => KekErrorKind::Unreachable { reason: said.clone() },
        (_, None) => no_service(),
        (400, Some(said)) if operation == Operation::Login => {
            KekErrorKind::AuthenticationFailed { reason: said.clone() }
        }
        (400, Some(said)) => {
            let meaning = MEANINGS.iter().find(|(part, _)| said.contains(part));
            let other = || KekErrorKind::BadRequest { reason: said.clone() };
            meaning.map_or_else(other, |(_, kind)| kind())
        }
        (404, Some(said)) if said.contains("no handler for route") => match operation {
            Operation::Login => KekErrorKind::Configuration {
                problem: "the auth method is not mounted there; set auth_mount, or enable it"
                    .into(),
            },
            _ => KekErrorKind::Gone { recoverable: false },
        },
        // So a key that is not there is answered.
        (404, Some(_)) if operation != Operation::Login => {
            KekErrorKind::Gone { recoverable: false }
        }
        (_, Some(said)) => KekErrorKind::BadRequest { reason: format!("status {status}: {said}") },
    };
    let cause = match (&kind, words) {
        (KekErrorKind::Gone { .. }, Some(said)) if said.is_empty() => Some(format!(
            "there is no key {key_id}; its name is spelt otherwise, or it was deleted"
        )),
        (KekErrorKind::Gone { .. } | KekErrorKind::Disabled | KekErrorKind::Integrity, said) => {
            said
        }
        _ => None,
    };
    Refusal { kind, cause }
}

/// What a 403 means, with a token that is good for other requests (`valid`) or not. A token that
/// was revoked and a right that was taken away are answered alike; only the second is a decision
/// about the key.
pub(super) fn forbidden(reply: &Reply, operation: Operation, key_id: &str, valid: bool) -> Refusal {
    let Some(said) = words(reply) else { return refusal(reply, operation, key_id) };
    let (mount, key) = key_id.split_once("/keys/").unwrap_or(("transit", key_id));
    let (capability, path) = match operation {
        Operation::Read => ("read", key_id.to_owned()),
        Operation::Encrypt => ("update", format!("{mount}/encrypt/{key}")),
        Operation::Decrypt => ("update", format!("{mount}/decrypt/{key}")),
        Operation::Rotate => ("update", format!("{key_id}/rotate")),
        Operation::Login => ("login", String::new()),
    };
    let kind = if operation == Operation::Login {
        KekErrorKind::AuthenticationFailed { reason: format!("the login is refused: {said}") }
    } else if valid {
        let reason = format!(
            "{said}; grant it in a policy of the token: path \"{path}\" {{ capabilities = \
             [\"{capability}\"] }}"
        );
        KekErrorKind::Denied { reason }
    } else {
        let reason = format!(
            "{said}; the token has ended or was revoked: give another (token_file, BAO_TOKEN or \
             VAULT_TOKEN)"
        );
        KekErrorKind::AuthenticationFailed { reason }
    };
    kind.into()
}

/// How long before its end a token is not used any more: a tenth of its life, at most a minute.
pub(super) fn margin(life: Duration) -> Duration {
    (life / 10).min(Duration::from_secs(60))
}
