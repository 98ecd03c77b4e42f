//! What a vault asks for in its 401 reply, and whether it may.
//!
//! The reply names the resource that a token has to be for. A token for another resource would open
//! that one to whoever the vault is, so the resource must be one that the vault belongs to.

use crate::key::http::Url;

/// Longest header that is read, in bytes.
const HEADER_BYTES_MAX: usize = 2048;

/// `Bearer authorization="https://login.microsoftonline.com/TENANT", resource="https://…"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Where the vault says that tokens are had, with the tenant as its path; if it is a URL.
    pub authorization: Option<Url>,
    /// What the token has to be for.
    pub resource: Url,
}

impl Challenge {
    /// Reads a `WWW-Authenticate` header (RFC 9110, section 11.6.1) of one `Bearer` challenge.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(header: &str) -> Result<Self, &'static str> {
        if header.len() > HEADER_BYTES_MAX {
            return Err("it is too long");
        }
        let (scheme, rest) = header.trim().split_once(' ').ok_or("it has no parameters")?;
        if !scheme.eq_ignore_ascii_case("Bearer") {
            return Err("it does not ask for a Bearer token");
        }
        let (mut authorization, mut resource) = (None, None);
        let mut rest = rest.trim_start();
        while !rest.is_empty() {
            let (name, value, behind) = parameter(rest)?;
            rest = behind;
            let target = match name.to_ascii_lowercase().as_str() {
                "authorization" | "authorization_uri" => &mut authorization,
                "resource" | "scope" => &mut resource,
                _ => continue,
            };
            match target {
                Some(earlier) if *earlier != value => return Err("it says a parameter twice"),
                _ => *target = Some(value),
            }
        }
        let resource = resource.ok_or("it names no resource")?;
        let resource = resource.strip_suffix("/.default").unwrap_or(resource);
        let resource = Url::parse(resource).map_err(|_| "its resource is not a URL")?;
        if !resource.is_https() || !resource.path().is_empty() {
            return Err("its resource is not https://HOST");
        }
        let authorization = authorization.and_then(|text| Url::parse(text).ok());
        Ok(Self { authorization, resource })
    }

    /// Whether a token for this resource may go to `vault`: it is the one that this host's settings
    /// name (`configured`), or the vault itself, or a domain of at least two labels that the vault
    /// is in.
    pub fn is_for(&self, vault: &Url, configured: Option<&Url>) -> bool {
        if let Some(configured) = configured {
            return self.resource.is_same_origin(configured);
        }
        let domain = self.resource.host();
        let below = vault.host().strip_suffix(domain).is_some_and(|name| name.ends_with('.'));
        self.resource.is_same_origin(vault) || (below && domain.contains('.'))
    }
}

/// The first `name="value"` or `name=value` of `text`, and what is behind it and its comma.
fn parameter(text: &str) -> Result<(&str, &str, &str), &'static str> {
    const MALFORMED: &str = "it is malformed";
    let (name, rest) = text.split_once('=').ok_or(MALFORMED)?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(MALFORMED);
    }
    let (value, behind) = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or(MALFORMED)?,
        None => rest.split_at(rest.find([',', ' ']).unwrap_or(rest.len())),
    };
    if value.contains(['\\', '"']) || value.is_empty() && !rest.starts_with('"') {
        return Err(MALFORMED);
    }
    let behind = behind.trim_start();
    match behind.strip_prefix(',') {
        Some(more) if !more.trim().is_empty() => Ok((name, value, more.trim_start())),
        None if behind.is_empty() => Ok((name, value, "")),
        _ => Err(MALFORMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
    }

    /// What the services say, and what the SDKs' own servers say.
    #[test]
    fn forms() {
        let login = "https://login.windows.net/11111111-2222-3333-4444-555555555555";
        let both =
            format!("Bearer authorization=\"{login}\", resource=\"https://vault.azure.net\"");
        let challenge = Challenge::parse(&both).expect(&both);
        assert_eq!(challenge.authorization, Some(url(login)));
        assert_eq!(challenge.resource, url("https://vault.azure.net"));
        for header in [
            "bearer resource=https://vault.azure.net",
            "Bearer scope=\"https://vault.azure.net/.default\",authorization=\"x\"",
            "Bearer error=\"invalid_token\", resource=\"https://vault.azure.net\"",
            "Bearer resource=\"https://vault.azure.net\", claims=\"e30=\"",
        ] {
            assert_eq!(Challenge::parse(header).expect(header).resource, challenge.resource);
        }
    }

    /// Whatever is not one clear challenge is refused.
    #[test]
    fn refused() {
        for (header, words) in [
            ("", "no parameters"),
            ("Bearer", "no parameters"),
            ("Basic realm=\"x\"", "Bearer"),
            ("PoP nonce=\"x\", Bearer resource=\"https://vault.azure.net\"", "Bearer"),
            ("Bearer authorization=\"https://login\"", "no resource"),
            ("Bearer resource=\"vault.azure.net\"", "not a URL"),
            ("Bearer resource=\"https://vault.azure.net@evil\"", "not a URL"),
            ("Bearer resource=\"http://vault.azure.net\"", "not https"),
            ("Bearer resource=\"https://vault.azure.net/x\"", "not https"),
            ("Bearer resource=\"https://vault.azure.net", "malformed"),
            ("Bearer resource=\"https://vault.azure.net\",", "malformed"),
            ("Bearer resource=\"https://vault.azure.net\" x", "malformed"),
            ("Bearer resource", "malformed"),
            ("Bearer =x", "malformed"),
            ("Bearer resource=", "malformed"),
            ("Bearer resource=\"https://a.b\\\"\"", "malformed"),
            ("Bearer resource=\"https://a.net\", resource=\"https://b.net\"", "twice"),
            ("Bearer resource=\"https://a.net\", scope=\"https://b.net/.default\"", "twice"),
        ] {
            let error = Challenge::parse(header).expect_err(header);
            assert!(error.contains(words), "{header}: {error}");
        }
        let long = format!("Bearer x=\"{}\"", "x".repeat(HEADER_BYTES_MAX));
        assert!(Challenge::parse(&long).is_err());
    }

    /// A token goes to whom it is for, and to nobody who merely names it.
    #[test]
    fn resources() {
        for (vault, resource, configured, expected) in [
            ("https://v.vault.azure.net", "https://vault.azure.net", None, true),
            ("https://h.managedhsm.azure.net", "https://managedhsm.azure.net", None, true),
            ("https://v.vault.azure.cn", "https://vault.azure.cn", None, true),
            ("https://v.vault.azure.net", "https://storage.azure.com", None, false),
            ("https://v.vault.azure.net", "https://t.azure.net", None, false),
            ("https://v.vault.azure.net", "https://net", None, false),
            ("https://vvault.azure.net", "https://vault.azure.net", None, false),
            ("https://vault.azure.net.evil", "https://vault.azure.net", None, false),
            ("https://kv.example:8443", "https://kv.example:8443", None, true),
            ("https://kv.example:8443", "https://kv.example", None, false),
            ("https://kv.example:8443", "https://vault.azure.net", None, false),
            (
                "https://kv.example:8443",
                "https://vault.azure.net",
                Some("https://vault.azure.net"),
                true,
            ),
            (
                "https://v.vault.azure.net",
                "https://vault.azure.net",
                Some("https://kv.example"),
                false,
            ),
        ] {
            let header = format!("Bearer resource=\"{resource}\"");
            let challenge = Challenge::parse(&header).expect("a challenge");
            let configured = configured.map(url);
            assert_eq!(
                challenge.is_for(&url(vault), configured.as_ref()),
                expected,
                "{vault} {resource} {configured:?}"
            );
        }
    }
}
