//! An application's certificate: it signs that it is the application (RFC 7523, section 2.2).

use std::time::SystemTime;

use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::{digest, rand, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use zeroize::Zeroizing;

use crate::crypto::random;

/// How long an assertion is good for, in seconds.
const LIFE_SECONDS: u64 = 600;
/// Clocks may differ by this much, in seconds.
const SKEW_SECONDS: u64 = 60;

/// A JSON web token that says that the bearer is `client_id`, for `audience`, signed with the RSA
/// key in `pem` (PS256), which has the certificate as well.
///
/// # Errors
/// What is wrong with `pem`.
pub(super) fn assertion(
    pem: &[u8],
    client_id: &str,
    audience: &str,
) -> Result<Zeroizing<String>, String> {
    let certificate = CertificateDer::from_pem_slice(pem)
        .map_err(|_| "it has no certificate (-----BEGIN CERTIFICATE-----)".to_owned())?;
    let key = PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| "it has no private key without a passphrase".to_owned())?;
    let pair = match &key {
        PrivateKeyDer::Pkcs8(key) => KeyPair::from_pkcs8(key.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(key) => KeyPair::from_der(key.secret_pkcs1_der()),
        _ => return Err("its key is not an RSA key".to_owned()),
    };
    let pair = pair.map_err(|_| "its key is not an RSA key of 2048 to 8192 bits".to_owned())?;
    let thumbprint = digest::digest(&digest::SHA256, &certificate);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = now.as_secs();
    let mut id = [0; 16];
    random::fill(&mut id);
    let header = json!({
        "alg": "PS256",
        "typ": "JWT",
        "x5t#S256": URL_SAFE_NO_PAD.encode(thumbprint.as_ref()),
    });
    let claims = json!({
        "aud": audience,
        "iss": client_id,
        "sub": client_id,
        "jti": URL_SAFE_NO_PAD.encode(id),
        "iat": now,
        "nbf": now.saturating_sub(SKEW_SECONDS),
        "exp": now + LIFE_SECONDS,
    });
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let mut mark = vec![0; pair.public_modulus_len()];
    let random = rand::SystemRandom::new();
    pair.sign(&signature::RSA_PSS_SHA256, &random, signed.as_bytes(), &mut mark)
        .map_err(|_| "its key does not sign".to_owned())?;
    Ok(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mark))))
}
