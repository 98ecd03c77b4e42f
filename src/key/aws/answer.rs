//! What refusals of AWS KMS mean.

use serde::Deserialize;

use crate::key::KekErrorKind;
use crate::key::http::Reply;
use crate::key::redact::presentable;

/// A refusal: the name of the exception, and its words.
#[derive(Debug)]
pub(super) struct Exception {
    name: String,
    words: String,
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "__type")]
    kind: Option<String>,
    #[serde(alias = "Message")]
    message: Option<String>,
}

impl Exception {
    /// `None` if it was not AWS that answered, but something on the way.
    pub(super) fn of(reply: &Reply) -> Option<Self> {
        let body: Body = reply.json().ok()?;
        let header = reply.header("x-amzn-errortype").map(str::to_owned);
        let kind = body.kind.or(header)?;
        // `com.amazonaws.kms#NotFoundException`, or `NotFoundException:http://...`.
        let name = kind.rsplit('#').next().unwrap_or_default();
        let name = presentable(name.split(':').next().unwrap_or_default().as_bytes());
        let words = presentable(body.message.unwrap_or_default().as_bytes());
        (!name.is_empty()).then_some(Self { name, words })
    }

    /// Whether other credentials could be taken, or these be had anew.
    pub(super) fn is_about_credentials(&self) -> bool {
        CREDENTIALS.contains(&self.name.as_str())
    }

    /// Whether the same request may do better in a moment.
    pub(super) fn is_busy(&self) -> bool {
        BUSY.contains(&self.name.as_str())
    }

    /// Its kind, for the operation `permission` on `key`; and its words, where the kind has no
    /// place for them.
    pub(super) fn kind(&self, permission: &str, key: &str) -> (KekErrorKind, Option<String>) {
        let Self { name, words } = self;
        let said = format!("{name}: {words}");
        let pending = words.contains("pending deletion") || words.contains("PendingDeletion");
        let kind = match name.as_str() {
            "DisabledException" => KekErrorKind::Disabled,
            "NotFoundException" => KekErrorKind::Gone { recoverable: false },
            // Scheduled for deletion, or its imported material is gone: both can be undone.
            "KMSInvalidStateException" if pending || words.contains("pending import") => {
                KekErrorKind::Gone { recoverable: true }
            }
            "KMSInvalidStateException" if words.contains("is disabled") => KekErrorKind::Disabled,
            "KMSInvalidStateException" => KekErrorKind::Unreachable { reason: said.clone() },
            "AccessDeniedException" | "AccessDenied" => KekErrorKind::Denied {
                reason: format!(
                    "{words}; allow {permission} on {key} in the key's or role's policy"
                ),
            },
            "InvalidCiphertextException" | "IncorrectKeyException" => KekErrorKind::Integrity,
            _ if self.is_busy() => KekErrorKind::Throttled { retry_after: None },
            // A clock that is wrong is called a bad signature.
            _ if self.is_about_credentials() && words.contains("Signature expired")
                || words.contains("Signature not yet current") =>
            {
                let reason = format!("{said}; set this host's clock");
                KekErrorKind::AuthenticationFailed { reason }
            }
            _ if self.is_about_credentials() => {
                KekErrorKind::AuthenticationFailed { reason: said.clone() }
            }
            "KMSInternalException"
            | "DependencyTimeoutException"
            | "KeyUnavailableException"
            | "InternalFailure"
            | "ServiceUnavailable" => KekErrorKind::Unreachable { reason: said.clone() },
            _ => KekErrorKind::BadRequest { reason: said.clone() },
        };
        let has_place = !matches!(
            kind,
            KekErrorKind::Disabled
                | KekErrorKind::Gone { .. }
                | KekErrorKind::Integrity
                | KekErrorKind::Throttled { .. }
        );
        (kind, (!has_place).then_some(said))
    }
}

const BUSY: &[&str] = &[
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "SlowDown",
];

const CREDENTIALS: &[&str] = &[
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];
