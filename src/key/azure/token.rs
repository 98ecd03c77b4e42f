//! Tokens: what a token endpoint replies, and how long that is good for.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::KekErrorKind;
use crate::key::http::Reply;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 32 * 1024;
/// A token is renewed so long before it ends, or at half of its life if that is shorter: clocks
/// differ, and requests take time.
const RENEWAL_MARGIN: Duration = Duration::from_secs(300);
/// Longest life of a token that is believed.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A token, ready to be sent; wiped when dropped, and never shown.
pub(super) struct Token {
    header: Zeroizing<String>,
    renew_at: Instant,
}

#[derive(Deserialize)]
struct TokenReply<'a> {
    #[serde(borrow)]
    access_token: &'a str,
    #[serde(borrow, default)]
    token_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    expires_in: Option<Seconds<'a>>,
    #[serde(borrow, default)]
    expires_on: Option<Seconds<'a>>,
}

#[derive(Deserialize)]
struct ErrorReply<'a> {
    #[serde(borrow)]
    error: Cow<'a, str>,
    #[serde(borrow, default)]
    error_description: Option<Cow<'a, str>>,
}

/// A number, or the same as text: metadata services send text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds<'a> {
    Number(u64),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

impl Seconds<'_> {
    fn value(&self) -> Option<Duration> {
        match self {
            Self::Number(number) => Some(Duration::from_secs(*number)),
            Self::Text(text) => text.parse().ok().map(Duration::from_secs),
        }
    }
}

impl Token {
    /// The token of a reply of status 200.
    ///
    /// # Errors
    /// What is wrong with the reply.
    pub fn parse(reply: &Reply) -> Result<Self, String> {
        let parsed: TokenReply = reply.json().map_err(|error| error.to_string())?;
        let token = parsed.access_token;
        if !(1..=TOKEN_BYTES_MAX).contains(&token.len())
            || !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err("the token endpoint's token has characters that tokens do not have".into());
        }
        if parsed.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("Bearer")) {
            return Err("the token endpoint gives another kind of token than Bearer".into());
        }
        let from_now = parsed.expires_in.as_ref().and_then(Seconds::value);
        let until = || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let end = parsed.expires_on.as_ref().and_then(Seconds::value)?;
            Some(end.saturating_sub(now))
        };
        // Without a life it is good for this once.
        let life = from_now.or_else(until).unwrap_or_default().min(LIFE_MAX);
        let renew_at = Instant::now() + life - RENEWAL_MARGIN.min(life / 2);
        let mut header = Zeroizing::new(String::with_capacity("Bearer ".len() + token.len()));
        header.push_str("Bearer ");
        header.push_str(token);
        Ok(Self { header, renew_at })
    }

    /// For the header `Authorization`.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// Whether it is time for a new one.
    pub fn is_stale(&self) -> bool {
        Instant::now() >= self.renew_at
    }
}

/// What an error reply of a token endpoint means. Its description names tenants, and is used for
/// its number only.
pub(super) fn refusal(reply: &Reply, who: &str) -> KekErrorKind {
    let status = reply.status();
    if status == 429 {
        return KekErrorKind::Throttled { retry_after: reply.retry_after() };
    }
    let parsed: Option<ErrorReply> = reply.json().ok();
    let clean = |text: &str| -> String {
        let is_code = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        text.chars().take_while(is_code).take(64).collect()
    };
    let Some(parsed) = parsed.filter(|_| (400..500).contains(&status)) else {
        let reason = format!("{who}: the token endpoint failed with status {status}");
        return KekErrorKind::Unreachable { reason };
    };
    let description = parsed.error_description.unwrap_or_default();
    let number = match description.starts_with("AADSTS") {
        true => clean(&description),
        false => String::new(),
    };
    let said = format!("{} {number}", clean(&parsed.error)).trim_end().to_owned();
    if said == "temporarily_unavailable" {
        return KekErrorKind::Unreachable { reason: format!("{who}: {said}") };
    }
    let advice = match number.as_str() {
        "AADSTS7000215" => "the client secret is wrong; give the secret's value, not its id",
        "AADSTS7000222" => "the client secret has expired; make a new one for the application",
        "AADSTS700016" => "the application is not known in the tenant, or was deleted",
        "AADSTS90002" | "AADSTS900023" => "the tenant does not exist; check the tenant id",
        "AADSTS700024" => "the assertion is not valid at this time; set this host's clock",
        "AADSTS700027" => "the application does not know the certificate; upload it there",
        "AADSTS70021" | "AADSTS700213" => {
            "no federated credential of the application fits the token; check its issuer, subject \
             and audience"
        }
        _ => match parsed.error.as_ref() {
            "invalid_client" | "unauthorized_client" => {
                "check the client id, and the secret, certificate or token that goes with it"
            }
            "invalid_request" | "identity_not_found" if who.contains("managed") => {
                "assign a managed identity to this machine; if it is a user-assigned one, give its \
                 client_id (or AZURE_CLIENT_ID)"
            }
            _ => "check tenant, client id and credential",
        },
    };
    KekErrorKind::AuthenticationFailed { reason: format!("{who} gets no token ({said}): {advice}") }
}
