//! What is accepted, and that everything else is not, by name.

use serde_json::json;

use super::*;
use crate::vault::request::random_id;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://vault.test/tenant/v2.0";

fn audiences() -> Vec<String> {
    vec!["https://vault.azure.net".into()]
}

fn claims() -> Claims {
    Claims {
        iss: ISSUER.into(),
        aud: "https://vault.azure.net".into(),
        sub: "oid".into(),
        oid: "oid".into(),
        appid: "appid".into(),
        appidacr: "1".into(),
        tid: "tenant".into(),
        idtyp: "app".into(),
        ver: "1.0".into(),
        iat: NOW,
        nbf: NOW,
        exp: NOW + LIFETIME_DEFAULT,
        jti: random_id(),
        epoch: 3,
    }
}

fn check(keys: &SigningKeys, claims: &Claims, now: u64) -> Result<Claims, TokenError> {
    keys.verify(&keys.sign(claims), &audiences(), now)
}

/// What was signed comes back, until it expires, and each claim that is wrong is named.
#[test]
fn own_tokens() {
    let keys = SigningKeys::generate(NOW);
    let claims_once = claims();
    assert_eq!(check(&keys, &claims_once, NOW), Ok(claims_once));
    assert!(check(&keys, &claims(), NOW + LIFETIME_DEFAULT - 1).is_ok());
    let exp = check(&keys, &claims(), NOW + LIFETIME_DEFAULT);
    assert_eq!(exp, Err(TokenError::Expired));
    assert!(check(&keys, &claims(), NOW - SKEW_MAX).is_ok(), "the clock was set back a little");
    assert_eq!(check(&keys, &claims(), NOW - SKEW_MAX - 1), Err(TokenError::NotYet));
    type Change = fn(&mut Claims);
    let changes: [(Change, TokenError); 3] = [
        (|c| c.aud = "https://storage.azure.com".into(), TokenError::Audience),
        (|c| c.exp = NOW + LIFETIME_MAX + 1, TokenError::Lifetime),
        (|c| c.nbf = NOW + SKEW_MAX + 1, TokenError::NotYet),
    ];
    for (change, expected) in changes {
        let mut changed = claims();
        change(&mut changed);
        assert_eq!(check(&keys, &changed, NOW), Err(expected));
    }
}

/// Every bit of a token matters, other algorithms and other keys do not pass.
#[test]
fn forgeries() {
    let keys = SigningKeys::generate(NOW);
    let token = keys.sign(&claims());
    let verify = |token: &str| keys.verify(token, &audiences(), NOW);
    assert!(verify(&token).is_ok());
    for position in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).expect("ASCII");
        assert!(verify(&changed).is_err(), "at {position}");
        assert!(verify(&token[..position]).is_err(), "cut at {position}");
    }
    let other = SigningKeys::generate(NOW);
    assert_eq!(verify(&other.sign(&claims())), Err(TokenError::Signature));
    let parts: Vec<_> = token.split('.').collect();
    let kid = &keys.0[0].kid;
    let with_header = |header: serde_json::Value| {
        format!("{}.{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), parts[1], parts[2])
    };
    for (header, expected) in [
        (json!({"alg": "none", "kid": kid}), TokenError::Malformed),
        (json!({"alg": "HS256", "kid": kid}), TokenError::Signature),
        (json!({"alg": "RS256", "kid": kid}), TokenError::Signature),
        (json!({"alg": "ES256"}), TokenError::Signature),
        (json!({"alg": "ES256", "kid": kid, "crit": ["b64"], "b64": false}), TokenError::Malformed),
        (json!([]), TokenError::Malformed),
    ] {
        assert_eq!(verify(&with_header(header.clone())), Err(expected), "{header}");
    }
    for malformed in ["", ".", "..", "a.b.c.d", &format!("{token}."), &"a".repeat(20_000)] {
        assert_eq!(verify(malformed), Err(TokenError::Malformed), "{malformed:.20}");
    }
    let unsigned = format!("{}.{}.", parts[0], parts[1]);
    assert_eq!(verify(&unsigned), Err(TokenError::Signature));
}

/// After a rollover the new key signs, what the old one signed is good until it has expired, and
/// then the key goes. Stored keys are the same keys; the JWK set has them all.
#[test]
fn rollover() {
    let mut keys = SigningKeys::generate(NOW);
    let old = keys.sign(&claims());
    keys.roll_over(NOW + 10);
    assert_eq!(keys.age(NOW + 25), 15);
    let new = keys.sign(&claims());
    assert_ne!(old.split('.').next(), new.split('.').next());
    let stored = serde_json::to_string(&keys.to_stored()).expect("strings");
    let stored: Vec<StoredKey> = serde_json::from_str(&stored).expect("the same");
    let mut again = SigningKeys::from_stored(&stored).expect("not damaged");
    for token in [&old, &new, &again.sign(&claims())] {
        for keys in [&keys, &again] {
            assert!(keys.verify(token, &audiences(), NOW + 20).is_ok());
        }
    }
    let jwks: JwkSet = serde_json::from_value(again.jwks()).expect("a JWK set");
    let kids: Vec<_> = jwks.keys.iter().filter_map(|key| key.common.key_id.clone()).collect();
    assert_eq!(kids, again.list().into_iter().map(|key| key.kid).collect::<Vec<_>>());
    let published = jwks.keys.iter().find(|key| {
        new.starts_with(&URL_SAFE_NO_PAD.encode(format!(
            r#"{{"typ":"JWT","alg":"ES256","kid":"{}"}}"#,
            key.common.key_id.as_deref().unwrap_or_default()
        )))
    });
    let published = DecodingKey::from_jwk(published.expect("it is published")).expect("a key");
    assert!(decode::<Claims>(&new, &published, Algorithm::ES256).is_ok(), "clients can verify");
    again.roll_over(NOW + 10 + LIFETIME_MAX + SKEW_MAX + 1);
    assert_eq!(again.list().len(), 2, "the first one is gone");
    let result = again.verify(&old, &audiences(), NOW + 20);
    assert_eq!(result, Err(TokenError::Signature));
    assert!(SigningKeys::from_stored(&[]).is_err());
    let text = serde_json::to_string(&keys.to_stored()).expect("strings");
    for (from, to) in [("\"kid\":\"", "\"kid\":\"x"), ("\"private\":\"", "\"private\":\"x")] {
        let damaged: Vec<StoredKey> =
            serde_json::from_str(&text.replacen(from, to, 1)).expect("it parses");
        assert!(SigningKeys::from_stored(&damaged).is_err());
    }
}

/// A revoked token is remembered until it has expired, and no longer; the list is bounded.
#[test]
fn revocations() {
    let mut revocations = Revocations::default();
    let (one, other) = (claims(), claims());
    assert!(revocations.revoke(&one, NOW));
    assert!(revocations.contains(&one) && !revocations.contains(&other));
    let later = Claims { exp: one.exp + 10_000, ..claims() };
    assert!(revocations.revoke(&later, one.exp + SKEW_MAX + 1));
    assert!(!revocations.contains(&one) && revocations.contains(&later));
    for _ in 1..REVOKED_MAX {
        assert!(revocations.revoke(&claims(), NOW));
    }
    assert!(!revocations.revoke(&claims(), NOW), "full, and says so");
}

/// An issuer of its own, as a Kubernetes cluster or a build service is one.
pub(in crate::vault) struct Issuer(SigningKeys);

impl Issuer {
    pub(in crate::vault) fn new(now: u64) -> Self {
        Self(SigningKeys::generate(now))
    }

    pub(in crate::vault) fn jwks_json(&self) -> String {
        self.0.jwks().to_string()
    }

    fn jwks(&self) -> JwkSet {
        serde_json::from_value(self.0.jwks()).expect("a JWK set")
    }

    pub(in crate::vault) fn sign(&self, claims: serde_json::Value) -> String {
        let header = json!({"alg": "ES256", "kid": self.0.0[0].kid}).to_string();
        let text = [header, claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let signature = self.0.0[0].pair.sign(&SystemRandom::new(), text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.expect("randomness")))
    }
}

pub(in crate::vault) const EXPECTED: Expected<'static> = Expected {
    issuer: "https://cluster.test",
    subject: "system:serviceaccount:web:shop",
    audiences: &["api://AzureADTokenExchange"],
};

fn assertion() -> serde_json::Value {
    assertion_at(NOW)
}

pub(in crate::vault) fn assertion_at(now: u64) -> serde_json::Value {
    json!({
        "iss": EXPECTED.issuer, "sub": EXPECTED.subject, "aud": [EXPECTED.audiences[0], "x"],
        "iat": now, "nbf": now, "exp": now + 600, "kubernetes.io": {"namespace": "web"},
    })
}

/// An assertion of a known issuer about the right subject is believed; each difference is named.
#[test]
fn assertions() {
    let issuer = Issuer::new(NOW);
    let keys = issuer.jwks();
    let verify = |claims: serde_json::Value, now| {
        verify_assertion(&issuer.sign(claims), &keys, EXPECTED, now).map(|a| a.sub)
    };
    assert_eq!(verify(assertion(), NOW), Ok(EXPECTED.subject.into()));
    assert_eq!(verify(assertion(), NOW + 600 + SKEW_MAX), Err(TokenError::Expired));
    assert!(verify(assertion(), NOW + 600 + SKEW_MAX - 1).is_ok(), "clocks differ");
    for (name, value, expected) in [
        ("iss", json!("https://cluster.test/"), TokenError::Issuer),
        ("sub", json!("system:serviceaccount:web:other"), TokenError::Subject),
        ("aud", json!("https://kubernetes.default.svc"), TokenError::Audience),
        ("aud", json!([]), TokenError::Audience),
        ("nbf", json!(NOW + SKEW_MAX + 1), TokenError::NotYet),
        ("exp", json!(NOW + 2 * ASSERTION_LIFETIME_MAX), TokenError::Lifetime),
        ("exp", json!(null), TokenError::Malformed),
        ("exp", json!("never"), TokenError::Malformed),
        ("exp", json!(-1), TokenError::Malformed),
        ("exp", json!(1e300), TokenError::Malformed),
        ("sub", json!(["a"]), TokenError::Malformed),
    ] {
        let mut claims = assertion();
        claims[name] = value.clone();
        let result = verify(claims, NOW);
        // What does not parse does not verify either.
        let expected =
            if expected == TokenError::Malformed { TokenError::Signature } else { expected };
        assert_eq!(result, Err(expected), "{name}: {value}");
    }
    let mut claims = assertion();
    claims["aud"] = json!(EXPECTED.audiences[0]);
    assert!(verify(claims, NOW).is_ok(), "one audience may be a string");
    let mut claims = assertion();
    claims["exp"] = json!(NOW as f64 + 600.5);
    assert!(verify(claims, NOW).is_ok(), "times may have fractions");
    let token = issuer.sign(assertion());
    let claimed = claimed_of(&token).expect("it has both");
    assert_eq!(claimed, (EXPECTED.issuer.to_owned(), EXPECTED.subject.to_owned()));
    let other = Issuer::new(NOW).jwks();
    let result = verify_assertion(&token, &other, EXPECTED, NOW).map(|a| a.sub);
    assert_eq!(result, Err(TokenError::Signature));
}

/// A key set decides what its keys are for: not for encryption, not for another algorithm, and a
/// public key is never the secret of an HMAC.
#[test]
fn key_sets() {
    let issuer = Issuer::new(NOW);
    let token = issuer.sign(assertion());
    let verify = |keys: &JwkSet, token: &str| {
        verify_assertion(token, keys, EXPECTED, NOW).map(|assertion| assertion.sub)
    };
    let set = |change: fn(&mut serde_json::Value)| -> JwkSet {
        let mut keys = issuer.0.jwks();
        change(&mut keys["keys"][0]);
        serde_json::from_value(keys).expect("a JWK set")
    };
    assert!(verify(&set(|_| ()), &token).is_ok());
    assert!(verify(&set(|key| key["kid"] = json!(null)), &token).is_ok(), "the only key");
    for change in [
        (|key| key["use"] = json!("enc")) as fn(&mut serde_json::Value),
        |key| key["alg"] = json!("ES384"),
        |key| key["kid"] = json!("other"),
    ] {
        assert_eq!(verify(&set(change), &token), Err(TokenError::Signature));
    }
    let x = issuer.0.0[0].x.clone();
    let octets = json!({"keys": [{"kty": "oct", "k": x, "kid": issuer.0.0[0].kid}]});
    let octets: JwkSet = serde_json::from_value(octets).expect("a JWK set");
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let parts: Vec<_> = token.split('.').collect();
    let hmac = format!("{header}.{}.{}", parts[1], parts[2]);
    assert_eq!(verify(&octets, &hmac), Err(TokenError::Signature));
    assert_eq!(verify(&octets, &token), Err(TokenError::Signature));
}
