//! What a vault's error replies mean: the one place that decides it.
//!
//! Codes are the service's; its messages are for people, name tenants and objects, and are not
//! repeated. A status alone decides nothing: a proxy on the way says 403 and 404, too, and that
//! must not look like a key that was taken away.

use std::borrow::Cow;

use serde::Deserialize;

use super::KekErrorKind;
use crate::key::http::Reply;

/// What was asked of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Its attributes.
    Get,
    /// The value of a secret.
    GetSecret,
    /// `wrapKey`.
    Wrap,
    /// `unwrapKey`.
    Unwrap,
}

impl Operation {
    /// As permissions and `key_ops` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get | Self::GetSecret => "get",
            Self::Wrap => "wrapKey",
            Self::Unwrap => "unwrapKey",
        }
    }

    /// As the path calls it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Get | Self::GetSecret => "",
            Self::Wrap => "wrapkey",
            Self::Unwrap => "unwrapkey",
        }
    }
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    error: Outer<'a>,
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    // Both spellings are sent.
    #[serde(borrow, default, alias = "innererror", alias = "innerError")]
    inner: Option<Inner<'a>>,
}

#[derive(Deserialize)]
struct Inner<'a> {
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
}

/// The codes of a reply that is a vault's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Codes {
    /// `Forbidden`, `KeyNotFound`, …
    pub outer: String,
    /// `KeyDisabled`, …, or empty.
    pub inner: String,
}

impl Codes {
    /// Those of `reply`; `None` if it is not a vault's.
    pub fn of(reply: &Reply) -> Option<Self> {
        let document: Document = reply.json().ok()?;
        let clean = |text: &str| -> String {
            text.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
        };
        let inner = document.error.inner.and_then(|inner| inner.code);
        Some(Self {
            outer: clean(&document.error.code),
            inner: inner.map(|code| clean(&code)).unwrap_or_default(),
        })
    }

    /// The more exact one.
    fn best(&self) -> &str {
        if self.inner.is_empty() { &self.outer } else { &self.inner }
    }
}

/// What the error `reply` to `operation` means. 401 is the caller's to answer first, and whether a
/// key that is not there can be recovered is its to find out.
pub(super) fn kind(reply: &Reply, operation: Operation, is_hsm: bool) -> KekErrorKind {
    let status = reply.status();
    if status == 429 {
        return KekErrorKind::Throttled { retry_after: reply.retry_after() };
    }
    let id = reply.request_id().map(|id| format!(" (request {id})")).unwrap_or_default();
    let Some(codes) = Codes::of(reply) else {
        return KekErrorKind::Unreachable {
            reason: format!(
                "status {status}, but not from a key vault; check the URL, and proxies on the \
                 way{id}"
            ),
        };
    };
    let said = format!("{status} {}{id}", codes.best());
    match status {
        401 => KekErrorKind::AuthenticationFailed {
            reason: format!(
                "the vault does not accept the token ({said}); is the identity of the tenant that \
                 the vault belongs to, and is this host's clock right?"
            ),
        },
        403 => forbidden(&codes, &said, operation, is_hsm),
        404 if matches!(codes.outer.as_str(), "KeyNotFound" | "SecretNotFound") => {
            KekErrorKind::Gone { recoverable: false }
        }
        409 => conflict(&codes, &said),
        400 if operation == Operation::Unwrap && codes.outer == "BadParameter" => {
            // The request is well formed, so it is the wrapped key that is not this key's.
            KekErrorKind::Integrity
        }
        400..=499 => KekErrorKind::BadRequest { reason: said },
        _ => KekErrorKind::Unreachable { reason: format!("the vault failed: {said}") },
    }
}

fn forbidden(codes: &Codes, said: &str, operation: Operation, is_hsm: bool) -> KekErrorKind {
    match codes.inner.as_str() {
        "KeyDisabled" | "SecretDisabled" => KekErrorKind::Disabled,
        "ForbiddenByFirewall" | "ForbiddenByConnection" => KekErrorKind::Unreachable {
            reason: format!(
                "the vault's network rules keep this host out ({said}); allow its address or \
                 subnet, or use the private endpoint"
            ),
        },
        "KeyOperationForbidden" => KekErrorKind::Denied {
            reason: format!(
                "the key does not allow {} ({said}); add wrapKey and unwrapKey to its \
                 key_ops",
                operation.name()
            ),
        },
        "KeyExpired" | "KeyNotYetValid" => KekErrorKind::Denied {
            reason: format!(
                "the key is outside of its time of validity ({said}); change exp and nbf, or make \
                 a new version"
            ),
        },
        _ if operation == Operation::GetSecret => KekErrorKind::Denied {
            reason: format!(
                "it may not get the secret ({said}); give it the role \"Key Vault Secrets User\" \
                 on the secret, or get on secrets in the access policy; a grant takes some minutes"
            ),
        },
        _ => {
            let operation = operation.name();
            let role = match is_hsm {
                true => "\"Managed HSM Crypto Service Encryption User\"",
                false => "\"Key Vault Crypto Service Encryption User\"",
            };
            KekErrorKind::Denied {
                reason: format!(
                    "the identity may not {operation} ({said}); give it the role {role} on the \
                     key, or get, wrapKey and unwrapKey in the access policy; a grant takes some \
                     minutes"
                ),
            }
        }
    }
}

fn conflict(codes: &Codes, said: &str) -> KekErrorKind {
    match codes.best() {
        "ObjectIsDeletedButRecoverable" | "ObjectIsBeingDeleted" => {
            KekErrorKind::Gone { recoverable: true }
        }
        _ => KekErrorKind::Unreachable {
            reason: format!("the key is about to change ({said}); try again in a minute"),
        },
    }
}
