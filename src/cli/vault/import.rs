//! A private key from a file, as the vault takes it: a JSON Web Key (RFC 7517). RSA keys in PEM,
//! as PKCS #8 (RFC 5958) or PKCS #1 (RFC 8017), are made one.

use std::path::Path;

use pkcs8::{PrivateKeyInfoRef, SecretDocument};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::cli::exit::Exit;
use crate::cli::hint::Failure;
use crate::vault::encoding::{Bytes, to_json};

/// What the label of a private key in PEM ends with (RFC 7468).
const PRIVATE_KEY: &str = "PRIVATE KEY";
/// How OpenSSL says that a PKCS #1 key is encrypted (RFC 1421, section 4.6.1.1).
const ENCRYPTED_HEADER: &str = "Proc-Type: 4,ENCRYPTED";

/// An RSA private key as a JSON Web Key (RFC 7518, section 6.3).
#[derive(Serialize)]
struct RsaJwk {
    kty: &'static str,
    n: Bytes,
    e: Bytes,
    d: Bytes,
    p: Bytes,
    q: Bytes,
    dp: Bytes,
    dq: Bytes,
    qi: Bytes,
}

/// The body of a request that imports the key in `text`, which was read from `file`.
///
/// # Errors
/// What the file is instead, and what to do.
pub fn body(file: &Path, text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
    #[derive(Serialize)]
    struct Body {
        key: RsaJwk,
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok() {
        let mut body = Zeroizing::new(Vec::with_capacity(text.len() + 16));
        body.extend_from_slice(b"{\"key\":");
        body.extend_from_slice(text);
        body.push(b'}');
        return Ok(body);
    }
    let refuse = |what: &str| Failure::new(Exit::Usage, format!("{} {what}", file.display()));
    let text = std::str::from_utf8(text).unwrap_or_default();
    let (label, block) = private_block(text).ok_or_else(|| {
        refuse("has no private key").hint("It may be a JSON Web Key, or an RSA key in PEM.")
    })?;
    if label == "ENCRYPTED PRIVATE KEY" || block.contains(ENCRYPTED_HEADER) {
        let file = file.display();
        return Err(refuse("is encrypted")
            .hint("Decrypt it into a file that nobody else can read, and remove that afterwards:")
            .hint(format!("  (umask 077; openssl pkey -in {file} -out {file}.plain)")));
    }
    let (_, document) =
        SecretDocument::from_pem(block).map_err(|_| refuse("is not well-formed PEM"))?;
    let key = match label {
        "RSA PRIVATE KEY" => pkcs1(document.as_bytes()),
        PRIVATE_KEY => {
            let info = PrivateKeyInfoRef::try_from(document.as_bytes());
            let info = info.ok().filter(|info| info.algorithm.oid == pkcs1::ALGORITHM_OID);
            info.and_then(|info| pkcs1(info.private_key.as_bytes()))
        }
        _ => None,
    };
    let key = key.ok_or_else(|| {
        refuse("has no RSA key").hint("Keys of other kinds are imported as JSON Web Keys.")
    })?;
    Ok(to_json(&Body { key }))
}

/// The label and the text of the first private key.
fn private_block(text: &str) -> Option<(&str, &str)> {
    const BEGIN: &str = "-----BEGIN ";
    text.match_indices(BEGIN).find_map(|(start, _)| {
        let (label, _) = text[start + BEGIN.len()..].split_once("-----")?;
        let end_line = format!("-----END {label}-----");
        let end = start + text[start..].find(&end_line)? + end_line.len();
        label.ends_with(PRIVATE_KEY).then_some((label, &text[start..end]))
    })
}

/// The parts of an `RSAPrivateKey` with two primes.
fn pkcs1(der: &[u8]) -> Option<RsaJwk> {
    let key = pkcs1::RsaPrivateKey::try_from(der).ok()?;
    let part = |number: pkcs1::UintRef<'_>| Bytes::copy(number.as_bytes());
    Some(RsaJwk {
        kty: "RSA",
        n: part(key.modulus),
        e: part(key.public_exponent),
        d: part(key.private_exponent),
        p: part(key.prime1),
        q: part(key.prime2),
        dp: part(key.exponent1),
        dq: part(key.exponent2),
        qi: part(key.coefficient),
    })
}
