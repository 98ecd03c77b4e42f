//! Access tokens that the vault signs itself, and assertions of others that it believes: JSON Web
//! Tokens (RFC 7519). Pure: no I/O; the caller brings the time, in seconds since 1970.
//!
//! The vault's own are ES256 (RFC 7518, 3.4) and nothing else; a key pair costs next to nothing, so
//! rollover is cheap. A retired key verifies until what it signed has expired.

use std::collections::BTreeMap;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Lifetime of a token, in seconds, if nothing else is configured: as long as Entra ID's shortest.
pub const LIFETIME_DEFAULT: u64 = 3600;
/// The longest lifetime that can be configured (a managed identity's token in Azure: 24 h).
pub const LIFETIME_MAX: u64 = 24 * 3600;
/// How far clocks may be apart, in seconds. For assertions of others; the vault's own tokens are
/// checked by the clock that dated them, which may have been set back.
pub const SKEW_MAX: u64 = 300;
/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Longest life of an assertion with which a client proves that it has a key (RFC 7523, 3).
pub const ASSERTION_LIFETIME_MAX: u64 = 24 * 3600;
/// Signing keys that are kept; with one rollover a day and the longest lifetime two are needed.
const KEYS_MAX: usize = 16;
/// Tokens that can be revoked one by one at once; revoke the identity's instead.
pub const REVOKED_MAX: usize = 10_000;

/// What a token says. Names are those of Entra ID's access tokens for applications
/// (<https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it: this vault.
    pub iss: String,
    /// For whom: the resource, `https://vault.azure.net` or as configured.
    pub aud: String,
    /// Whom it is about: the object id.
    pub sub: String,
    /// The object id again, as Key Vault's logs name it.
    pub oid: String,
    /// The client id.
    pub appid: String,
    /// How the client proved itself: "0" not, "1" secret, "2" assertion.
    pub appidacr: String,
    /// The tenant.
    pub tid: String,
    /// Always `app`: there are no users.
    pub idtyp: String,
    /// Always `1.0`.
    pub ver: String,
    /// Issued at.
    pub iat: u64,
    /// Not before.
    pub nbf: u64,
    /// Expires at.
    pub exp: u64,
    /// Identifier of this token.
    pub jti: String,
    /// The identity's revocation epoch when it was issued.
    pub epoch: u64,
}

/// Why a token is refused. None of them says what was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of three parts, or too long, or with an extension that must be understood.
    #[error("the token is malformed")]
    Malformed,
    /// No such key, another algorithm, or the signature is wrong.
    #[error("the signature of the token is not valid")]
    Signature,
    /// Issued by someone else.
    #[error("the token was issued by another authority")]
    Issuer,
    /// Issued for something else.
    #[error("the token is for another audience")]
    Audience,
    /// About somebody else.
    #[error("the token is about another subject")]
    Subject,
    /// Too old.
    #[error("the token has expired")]
    Expired,
    /// From the future.
    #[error("the token is not valid yet")]
    NotYet,
    /// It lives longer than allowed.
    #[error("the lifetime of the token is too long")]
    Lifetime,
    /// It, or all tokens of the identity, were revoked; or the identity is gone.
    #[error("the token was revoked")]
    Revoked,
}

/// A signing key as it is stored. Wiped when dropped, and shows nothing of the key.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct StoredKey {
    /// Name of the key in tokens' headers: RFC 7638 thumbprint.
    kid: String,
    /// PKCS #8, base64.
    private: String,
    /// When it was made.
    created: u64,
    /// When another took its place.
    retired: Option<u64>,
}

struct SigningKey {
    kid: String,
    pair: EcdsaKeyPair,
    verifying: DecodingKey,
    x: String,
    y: String,
    created: u64,
    retired: Option<u64>,
}

/// The vault's signing keys, newest first. Never empty.
pub struct SigningKeys(Vec<SigningKey>);

/// What the keys are, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Thumbprint.
    pub kid: String,
    /// When it was made.
    pub created: u64,
    /// When another took its place.
    pub retired: Option<u64>,
}

/// A stored key is not one.
#[derive(Debug, thiserror::Error)]
#[error("a stored signing key is damaged")]
pub struct DamagedKey;

impl SigningKey {
    fn generate(now: u64) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .expect("aws-lc ends the process when there is no entropy");
        Self::new(pair, now, None)
    }

    fn new(pair: EcdsaKeyPair, created: u64, retired: Option<u64>) -> Self {
        // SEC 1, 2.3.3: 4, then x and y of 32 bytes each.
        let point = pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let verifying = DecodingKey::from_ec_der(point);
        // RFC 7638, 3: the required members in order of name, without spaces.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canonical.as_bytes());
        let kid = URL_SAFE_NO_PAD.encode(digest);
        Self { kid, pair, verifying, x, y, created, retired }
    }

    fn from_stored(stored: &StoredKey) -> Result<Self, DamagedKey> {
        let mut pkcs8 = STANDARD.decode(&stored.private).map_err(|_| DamagedKey)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8);
        pkcs8.zeroize();
        let key = Self::new(pair.map_err(|_| DamagedKey)?, stored.created, stored.retired);
        if key.kid == stored.kid { Ok(key) } else { Err(DamagedKey) }
    }

    fn to_stored(&self) -> StoredKey {
        let pkcs8 = self.pair.to_pkcs8v1().expect("the key is in memory");
        let (kid, created, retired) = (self.kid.clone(), self.created, self.retired);
        StoredKey { kid, private: STANDARD.encode(pkcs8.as_ref()), created, retired }
    }
}

impl SigningKeys {
    /// One new key.
    pub fn generate(now: u64) -> Self {
        Self(vec![SigningKey::generate(now)])
    }

    /// The keys that [`SigningKeys::to_stored`] gave.
    ///
    /// # Errors
    /// [`DamagedKey`] if there is none, or one is not what its name says.
    pub fn from_stored(stored: &[StoredKey]) -> Result<Self, DamagedKey> {
        let keys = stored.iter().map(SigningKey::from_stored).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(DamagedKey) } else { Ok(Self(keys)) }
    }

    /// To be stored sealed.
    pub fn to_stored(&self) -> Vec<StoredKey> {
        self.0.iter().map(SigningKey::to_stored).collect()
    }

    /// Makes a new key that signs from now on, and drops those whose last token has expired.
    pub fn roll_over(&mut self, now: u64) {
        if let Some(current) = self.0.first_mut() {
            current.retired = Some(now);
        }
        self.0.insert(0, SigningKey::generate(now));
        self.0.retain(|key| {
            key.retired.is_none_or(|at| now.saturating_sub(at) <= LIFETIME_MAX + SKEW_MAX)
        });
        self.0.truncate(KEYS_MAX);
    }

    /// Seconds since the current key was made.
    pub fn age(&self, now: u64) -> u64 {
        self.0.first().map_or(u64::MAX, |key| now.saturating_sub(key.created))
    }

    /// What there is, newest first.
    pub fn list(&self) -> Vec<KeyInfo> {
        let info = |key: &SigningKey| {
            let (created, retired) = (key.created, key.retired);
            KeyInfo { kid: key.kid.clone(), created, retired }
        };
        self.0.iter().map(info).collect()
    }

    /// The public keys, as a JWK set (RFC 7517, 5).
    pub fn jwks(&self) -> serde_json::Value {
        let jwk = |key: &SigningKey| {
            serde_json::json!({
                "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256",
                "kid": key.kid, "x": key.x, "y": key.y,
            })
        };
        serde_json::json!({ "keys": self.0.iter().map(jwk).collect::<Vec<_>>() })
    }

    /// A token, in compact form (RFC 7515, 3.1).
    pub fn sign(&self, claims: &Claims) -> String {
        let key = &self.0[0];
        let header = format!(r#"{{"typ":"JWT","alg":"ES256","kid":"{}"}}"#, key.kid);
        let claims = serde_json::to_vec(claims).expect("strings and numbers");
        let mut token =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = key.pair.sign(&SystemRandom::new(), token.as_bytes());
        let signature = signature.expect("aws-lc ends the process when there is no entropy");
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        token
    }

    /// What a token of ours says, if it is one: signature, audience and times are checked; whether
    /// it was revoked is for [`Revocations`] and the identity to say.
    ///
    /// # Errors
    /// A [`TokenError`].
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: u64,
    ) -> Result<Claims, TokenError> {
        let header = header_of(token)?;
        let kid = header.kid.ok_or(TokenError::Signature)?;
        let key = self.0.iter().find(|key| key.kid == kid).ok_or(TokenError::Signature)?;
        if header.alg != Algorithm::ES256 {
            return Err(TokenError::Signature);
        }
        let claims: Claims = decode(token, &key.verifying, Algorithm::ES256)?;
        if !audiences.contains(&claims.aud) {
            return Err(TokenError::Audience);
        }
        if claims.exp.saturating_sub(claims.iat) > LIFETIME_MAX {
            return Err(TokenError::Lifetime);
        }
        check_times(claims.nbf.max(claims.iat), claims.exp, now, 0)?;
        Ok(claims)
    }
}

/// Tokens that were revoked one by one, until they expire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations(BTreeMap<String, u64>);

impl Revocations {
    /// Revokes a token; returns whether there was room. Those that have expired are forgotten.
    #[must_use]
    pub fn revoke(&mut self, claims: &Claims, now: u64) -> bool {
        self.0.retain(|_, exp| now <= *exp + SKEW_MAX);
        if self.0.len() >= REVOKED_MAX {
            return false;
        }
        self.0.insert(claims.jti.clone(), claims.exp);
        true
    }

    /// Whether it was revoked.
    pub fn contains(&self, claims: &Claims) -> bool {
        self.0.contains_key(&claims.jti)
    }
}

/// What an assertion of another issuer, or of a client with a key of its own, must say.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// `iss`.
    pub issuer: &'a str,
    /// `sub`.
    pub subject: &'a str,
    /// One of these must be (in) `aud`.
    pub audiences: &'a [&'a str],
}

/// What is read of an assertion.
#[derive(Debug, Deserialize)]
pub struct Assertion {
    /// Issuer.
    pub iss: String,
    /// Subject.
    pub sub: String,
    /// Audience, or several.
    pub aud: Audience,
    /// Expires at.
    #[serde(deserialize_with = "numeric_date")]
    pub exp: u64,
    /// Not before.
    #[serde(default, deserialize_with = "numeric_date")]
    pub nbf: u64,
    /// Issued at.
    #[serde(default, deserialize_with = "numeric_date")]
    pub iat: u64,
}

/// Seconds since 1970, maybe with a fraction (RFC 7519, 2), which is dropped.
fn numeric_date<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    // 2^53: up to there a double is exact.
    match (0.0..9_007_199_254_740_992.0).contains(&seconds) {
        true => Ok(seconds as u64),
        false => Err(serde::de::Error::custom("no time")),
    }
}

/// `aud` is a string or an array of strings (RFC 7519, 4.1.3).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Audience {
    fn contains(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

/// Issuer and subject that an assertion claims, unverified: to find the keys to verify it with.
///
/// # Errors
/// `Malformed`.
pub fn claimed_of(assertion: &str) -> Result<(String, String), TokenError> {
    #[derive(Deserialize)]
    struct Claimed {
        iss: String,
        sub: String,
    }
    header_of(assertion)?;
    let claims = jsonwebtoken::dangerous::insecure_decode::<Claimed>(assertion);
    let claims = claims.map_err(|_| TokenError::Malformed)?.claims;
    Ok((claims.iss, claims.sub))
}

/// The algorithms that are believed of others. No HMAC: a public key must not pass for a secret.
const ASSERTION_ALGORITHMS: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Verifies an assertion by one of `keys`: the one that it names, or any if it names none.
///
/// # Errors
/// A [`TokenError`].
pub fn verify_assertion(
    assertion: &str,
    keys: &JwkSet,
    expected: Expected<'_>,
    now: u64,
) -> Result<Assertion, TokenError> {
    let header = header_of(assertion)?;
    if !ASSERTION_ALGORITHMS.contains(&header.alg) {
        return Err(TokenError::Signature);
    }
    let candidates = keys.keys.iter().filter(|key| match (&header.kid, &key.common.key_id) {
        (Some(wanted), Some(id)) => wanted == id,
        _ => true,
    });
    let verified = candidates.take(8).find_map(|key| {
        let key = usable(key, header.alg)?;
        decode::<Assertion>(assertion, &key, header.alg).ok()
    });
    let verified = verified.ok_or(TokenError::Signature)?;
    check_assertion(verified, expected, now)
}

/// Verifies an assertion by one public key in DER (RSA: RFC 8017 or RFC 5280), for clients that
/// have registered a certificate.
///
/// # Errors
/// A [`TokenError`].
pub fn verify_assertion_rsa(
    assertion: &str,
    public_key: &[u8],
    expected: Expected<'_>,
    now: u64,
) -> Result<Assertion, TokenError> {
    let header = header_of(assertion)?;
    if !matches!(header.alg, Algorithm::RS256 | Algorithm::PS256) {
        return Err(TokenError::Signature);
    }
    let verified = decode(assertion, &DecodingKey::from_rsa_der(public_key), header.alg)?;
    check_assertion(verified, expected, now)
}

/// The key, if the set allows it for this algorithm.
fn usable(key: &Jwk, algorithm: Algorithm) -> Option<DecodingKey> {
    let named = key.common.key_algorithm.map(|known| known.to_string());
    if named.is_some_and(|named| named != format!("{algorithm:?}")) {
        return None;
    }
    if matches!(key.common.public_key_use, Some(jsonwebtoken::jwk::PublicKeyUse::Encryption)) {
        return None;
    }
    // A family that does not fit is refused by `decode`.
    DecodingKey::from_jwk(key).ok()
}

fn check_assertion(
    assertion: Assertion,
    expected: Expected<'_>,
    now: u64,
) -> Result<Assertion, TokenError> {
    if assertion.iss != expected.issuer {
        return Err(TokenError::Issuer);
    }
    if assertion.sub != expected.subject {
        return Err(TokenError::Subject);
    }
    if !expected.audiences.iter().any(|wanted| assertion.aud.contains(wanted)) {
        return Err(TokenError::Audience);
    }
    let from = assertion.nbf.max(assertion.iat);
    check_times(from, assertion.exp, now, SKEW_MAX)?;
    if assertion.exp.saturating_sub(now) > ASSERTION_LIFETIME_MAX + SKEW_MAX {
        return Err(TokenError::Lifetime);
    }
    Ok(assertion)
}

/// Expiry is exact but for `skew`; what was issued later than now is taken up to [`SKEW_MAX`].
fn check_times(from: u64, exp: u64, now: u64, skew: u64) -> Result<(), TokenError> {
    if now >= exp.saturating_add(skew) {
        return Err(TokenError::Expired);
    }
    if from > now.saturating_add(SKEW_MAX) {
        return Err(TokenError::NotYet);
    }
    Ok(())
}

/// The header, if there is nothing in it that would have to be understood (RFC 7515, 4.1.11).
fn header_of(token: &str) -> Result<jsonwebtoken::Header, TokenError> {
    if token.len() > TOKEN_BYTES_MAX || token.bytes().filter(|b| *b == b'.').count() != 2 {
        return Err(TokenError::Malformed);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
    match header.crit {
        Some(_) => Err(TokenError::Malformed),
        None => Ok(header),
    }
}

/// Verifies the signature and nothing else.
fn decode<T: serde::de::DeserializeOwned>(
    token: &str,
    key: &DecodingKey,
    algorithm: Algorithm,
) -> Result<T, TokenError> {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    match jsonwebtoken::decode(token, key, &validation) {
        Ok(data) => Ok(data.claims),
        Err(error) => Err(match error.kind() {
            jsonwebtoken::errors::ErrorKind::Json(_) => TokenError::Malformed,
            _ => TokenError::Signature,
        }),
    }
}

#[cfg(test)]
pub(super) mod tests;
