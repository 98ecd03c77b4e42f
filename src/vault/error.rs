//! Error replies in the shape of Key Vault.

use serde_json::json;
use std::time::Duration;

use super::request::Reply;
use super::store::StoreError;

/// Why a request is not done: an HTTP status, Key Vault's codes, and words for people.
///
/// ```json
/// {"error":{"code":"Forbidden","message":"...","innererror":{"code":"KeyDisabled"}}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// `error.code`
    pub code: &'static str,
    /// `error.innererror.code`
    pub inner: Option<&'static str>,
    /// `error.message`: never a secret, never what only a log should have.
    pub message: String,
    /// Value of `WWW-Authenticate`.
    pub challenge: Option<String>,
    /// Value of `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error without an inner code.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, code, inner: None, message, challenge: None, retry_after: None }
    }

    /// The same with an inner code.
    #[must_use]
    pub fn with_inner(mut self, inner: &'static str) -> Self {
        self.inner = Some(inner);
        self
    }

    /// 400 `BadParameter`
    pub fn bad_parameter(message: impl Into<String>) -> Self {
        Self::new(400, "BadParameter", message)
    }

    /// 403 `Forbidden` with an inner code.
    pub fn forbidden(inner: &'static str, message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message).with_inner(inner)
    }

    /// 404 with `KeyNotFound` or `SecretNotFound`.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(404, code, message)
    }

    /// 409 `Conflict` with an inner code.
    pub fn conflict(inner: &'static str, message: impl Into<String>) -> Self {
        Self::new(409, "Conflict", message).with_inner(inner)
    }

    /// 429 `Throttled`
    pub fn throttled(wait: Duration) -> Self {
        let seconds = wait.as_secs().max(1);
        let message = format!("too many requests; try again in {seconds} s");
        let wait = Some(Duration::from_secs(seconds));
        Self { retry_after: wait, ..Self::new(429, "Throttled", message) }
    }

    /// 500: the cause is in the log, under the request's id.
    pub fn internal() -> Self {
        Self::new(500, "InternalServerError", "the vault failed; its log says why")
    }

    /// The reply.
    pub fn reply(&self) -> Reply {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(inner) = self.inner {
            error["innererror"] = json!({ "code": inner });
        }
        let mut reply = Reply::json(self.status, &json!({ "error": error }));
        if let Some(challenge) = &self.challenge {
            reply = reply.header("www-authenticate", challenge.clone());
        }
        if let Some(wait) = self.retry_after {
            reply = reply.header("retry-after", wait.as_secs().to_string());
        }
        reply
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::new(507, "VaultFull", error.to_string()),
            StoreError::TooLarge => Self::new(413, "RequestTooLarge", error.to_string()),
            error => {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    text.push_str(&format!(": {error}"));
                    cause = error.source();
                }
                log::error!("{text}");
                Self::internal()
            }
        }
    }
}
