//! Wrapping and unwrapping with a key that stays on the token.

use cryptoki::error::Error;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use zeroize::Zeroizing;

use super::error::{Failure, is_about_data, is_unsupported, may_be_about_data};
use super::object::{self, Key, Kind};
use super::token::Connection;
use crate::crypto::{Secret, random};
use crate::format::config::Algorithm;
use crate::key::{Binding, KekErrorKind};

/// First byte of a key that AES-GCM wrapped: the form of what follows.
const GCM_FORM: u8 = 1;
/// Length of its nonce, in bytes (NIST SP 800-38D, section 8.2.2: 96 random bits).
const NONCE_BYTES: usize = 12;
/// Length of its tag, in bytes.
const TAG_BYTES: usize = 16;

/// Wraps `secrets` under `key` with the best algorithm that key and token have, the same for all.
pub(super) fn wrap(
    connection: &Connection,
    key: &Key,
    binding: &Binding,
    secrets: &[&Secret],
) -> Result<(Algorithm, Vec<Vec<u8>>), Failure> {
    let algorithms = candidates(connection, key)?;
    let mut refused = None;
    for algorithm in algorithms {
        let blobs: Result<Vec<_>, Failure> = secrets
            .iter()
            .map(|secret| {
                let blob = wrap_one(connection, key, algorithm, binding, secret)?;
                // Some tokens refuse a mechanism's parameters only when they decrypt.
                match unwrap(connection, key, algorithm, binding, &blob)?.is_same(secret) {
                    true => Ok(blob),
                    false => Err(KekErrorKind::Integrity.into()),
                }
            })
            .collect();
        match blobs {
            Ok(blobs) => return Ok((algorithm, blobs)),
            Err(error) if error.code().is_some_and(is_unsupported) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| KekErrorKind::Integrity.into()))
}

/// The algorithms that may work with `key`, the best first.
fn candidates(connection: &Connection, key: &Key) -> Result<Vec<Algorithm>, Failure> {
    let denied = |needed: &str| {
        let reason = format!("the key may not be used for this; it needs {needed}");
        Err(KekErrorKind::Denied { reason }.into())
    };
    if key.kind == Kind::Rsa {
        return match key.can_decrypt || key.can_unwrap {
            true => Ok(vec![Algorithm::RsaOaep256, Algorithm::RsaOaep]),
            false => denied("CKA_DECRYPT or CKA_UNWRAP"),
        };
    }
    let (has_gcm, _) = object::uses(connection, MechanismType::AES_GCM);
    let (encrypts, wraps) = object::uses(connection, MechanismType::AES_KEY_WRAP);
    if !has_gcm && !encrypts && !wraps {
        let reason = "the token has neither CKM_AES_GCM nor CKM_AES_KEY_WRAP".to_owned();
        return Err(KekErrorKind::BadRequest { reason }.into());
    }
    let mut algorithms = Vec::new();
    if has_gcm && key.can_encrypt && key.can_decrypt {
        algorithms.push(Algorithm::A256Gcm);
    }
    let can_encrypt = encrypts && key.can_encrypt && key.can_decrypt;
    if can_encrypt || wraps && key.can_wrap && key.can_unwrap {
        algorithms.push(Algorithm::A256Kw);
    }
    match algorithms.is_empty() {
        true => denied("CKA_ENCRYPT and CKA_DECRYPT, or CKA_WRAP and CKA_UNWRAP"),
        false => Ok(algorithms),
    }
}

/// What the key may not do of what a volume needs, by the names of its attributes.
pub(super) fn missing(connection: &Connection, key: &Key) -> Vec<String> {
    match candidates(connection, key) {
        Err(Failure::Known(KekErrorKind::Denied { .. }, _)) if key.kind == Kind::Rsa => {
            vec!["CKA_DECRYPT".to_owned()]
        }
        Err(Failure::Known(KekErrorKind::Denied { .. }, _)) => {
            let uses = [(key.can_encrypt, "CKA_ENCRYPT"), (key.can_decrypt, "CKA_DECRYPT")];
            let missing = uses.iter().filter(|(can, _)| !can);
            missing.map(|(_, name)| (*name).to_owned()).collect()
        }
        _ => Vec::new(),
    }
}

fn wrap_one(
    connection: &Connection,
    key: &Key,
    algorithm: Algorithm,
    binding: &Binding,
    secret: &Secret,
) -> Result<Vec<u8>, Failure> {
    let session = &connection.session;
    match algorithm {
        Algorithm::A256Gcm => {
            let mut nonce = [0; NONCE_BYTES];
            random::fill(&mut nonce);
            let aad = binding.associated_data();
            let parameters = GcmParams::new(&mut nonce, aad.as_bytes(), tag_bits())?;
            let sealed =
                session.encrypt(&Mechanism::AesGcm(parameters), key.handle, secret.expose())?;
            if sealed.len() != secret.len() + TAG_BYTES {
                let reason = "the token's AES-GCM gives another length than it has".to_owned();
                return Err(KekErrorKind::BadRequest { reason }.into());
            }
            // Some tokens draw the nonce themselves and write it over the one that they are given.
            Ok([&[GCM_FORM][..], &nonce, &sealed].concat())
        }
        Algorithm::A256Kw if encrypts_by_key_wrap(connection, key) => {
            Ok(session.encrypt(&Mechanism::AesKeyWrap, key.handle, secret.expose())?)
        }
        Algorithm::A256Kw => {
            let value = import(connection, secret)?;
            let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, key.handle, value);
            session.destroy_object(value)?;
            Ok(wrapped?)
        }
        Algorithm::RsaOaep256 | Algorithm::RsaOaep => {
            let public = object::public_key(connection, key)?;
            Ok(session.encrypt(&oaep(algorithm), public, secret.expose())?)
        }
        Algorithm::Tpm2Seal | Algorithm::Plugin => Err(not_ours(algorithm)),
    }
}

/// Unwraps `blob`, which `algorithm` wrapped under `key` for `binding`.
///
/// # Errors
/// `Integrity` if it was wrapped under another key, for another volume, or changed.
pub(super) fn unwrap(
    connection: &Connection,
    key: &Key,
    algorithm: Algorithm,
    binding: &Binding,
    blob: &[u8],
) -> Result<Secret, Failure> {
    let fits = match algorithm {
        Algorithm::A256Gcm | Algorithm::A256Kw => key.kind == Kind::Aes,
        Algorithm::RsaOaep256 | Algorithm::RsaOaep => key.kind == Kind::Rsa,
        Algorithm::Tpm2Seal | Algorithm::Plugin => false,
    };
    if !fits {
        return Err(not_ours(algorithm));
    }
    match open(connection, key, algorithm, binding, blob) {
        Err(Failure::Token(error)) => Err(classify(connection, key, algorithm, binding, error)),
        result => result,
    }
}

fn open(
    connection: &Connection,
    key: &Key,
    algorithm: Algorithm,
    binding: &Binding,
    blob: &[u8],
) -> Result<Secret, Failure> {
    match algorithm {
        Algorithm::A256Gcm => {
            let Some((&GCM_FORM, rest)) = blob.split_first() else { return integrity() };
            let Some((nonce, sealed)) = rest.split_first_chunk::<NONCE_BYTES>() else {
                return integrity();
            };
            if sealed.len() < TAG_BYTES {
                return integrity();
            }
            let (mut nonce, aad) = (*nonce, binding.associated_data());
            let parameters = GcmParams::new(&mut nonce, aad.as_bytes(), tag_bits())?;
            decrypt(connection, key, &Mechanism::AesGcm(parameters), sealed)
        }
        Algorithm::A256Kw if encrypts_by_key_wrap(connection, key) => {
            decrypt(connection, key, &Mechanism::AesKeyWrap, blob)
        }
        Algorithm::A256Kw => export(connection, key, &Mechanism::AesKeyWrap, blob),
        _ if key.can_decrypt => decrypt(connection, key, &oaep(algorithm), blob),
        _ => export(connection, key, &oaep(algorithm), blob),
    }
}

/// Whether AES key wrap goes by C_Encrypt and C_Decrypt, which need no object for the secret; some
/// tokens have only C_WrapKey and C_UnwrapKey. What comes out is the same.
fn encrypts_by_key_wrap(connection: &Connection, key: &Key) -> bool {
    key.can_encrypt && key.can_decrypt && object::uses(connection, MechanismType::AES_KEY_WRAP).0
}

/// What `error`, said of an unwrapping, means: where it may be about the blob or about anything,
/// the key is tried on a secret of our own, and if that comes back, it was about the blob.
fn classify(
    connection: &Connection,
    key: &Key,
    algorithm: Algorithm,
    binding: &Binding,
    error: Error,
) -> Failure {
    let works = || {
        let probe = random::secret(32);
        let blob = wrap_one(connection, key, algorithm, binding, &probe)?;
        Ok::<_, Failure>(open(connection, key, algorithm, binding, &blob)?.is_same(&probe))
    };
    let is_integrity = match error {
        Error::Pkcs11(code, _) if is_about_data(code) => true,
        Error::Pkcs11(code, _) if may_be_about_data(code) => works().unwrap_or(false),
        _ => false,
    };
    match is_integrity {
        true => Failure::from(KekErrorKind::Integrity).caused_by(error),
        false => error.into(),
    }
}

fn decrypt(
    connection: &Connection,
    key: &Key,
    mechanism: &Mechanism,
    sealed: &[u8],
) -> Result<Secret, Failure> {
    let opened = Zeroizing::new(connection.session.decrypt(mechanism, key.handle, sealed)?);
    Ok(Secret::from_fn(opened.len(), |bytes| bytes.copy_from_slice(&opened)))
}

/// Puts a secret on the token as an object of this session, because C_WrapKey takes only objects.
fn import(connection: &Connection, secret: &Secret) -> Result<ObjectHandle, Failure> {
    let mut template = session_secret();
    template.push(Attribute::Value(secret.expose().to_vec()));
    let made = connection.session.create_object(&template);
    wipe(template);
    Ok(made?)
}

/// Unwraps into an object of this session, and takes the value out of it.
fn export(
    connection: &Connection,
    key: &Key,
    mechanism: &Mechanism,
    blob: &[u8],
) -> Result<Secret, Failure> {
    let session = &connection.session;
    let object = session.unwrap_key(mechanism, key.handle, blob, &session_secret())?;
    let attributes = session.get_attributes(object, &[AttributeType::Value]);
    session.destroy_object(object)?;
    let attributes = attributes?;
    let secret = match attributes.first() {
        Some(Attribute::Value(value)) if !value.is_empty() => {
            Some(Secret::from_fn(value.len(), |bytes| bytes.copy_from_slice(value)))
        }
        _ => None,
    };
    wipe(attributes);
    secret.ok_or_else(|| {
        let reason = "the token does not give out what it unwrapped".to_owned();
        KekErrorKind::Denied { reason }.into()
    })
}

/// A secret that lives as long as the session, and may leave the token: it is on its way out.
fn session_secret() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn wipe(attributes: Vec<Attribute>) {
    for attribute in attributes {
        if let Attribute::Value(value) = attribute {
            drop(Zeroizing::new(value));
        }
    }
}

/// RSAES-OAEP (RFC 8017 section 7.1) with an empty label, and one hash for the label and MGF1.
fn oaep(algorithm: Algorithm) -> Mechanism<'static> {
    let (hash, mask) = match algorithm {
        Algorithm::RsaOaep => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        _ => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
}

fn tag_bits() -> cryptoki::types::Ulong {
    cryptoki::types::Ulong::new(TAG_BYTES as u64 * 8)
}

fn integrity() -> Result<Secret, Failure> {
    Err(KekErrorKind::Integrity.into())
}

fn not_ours(algorithm: Algorithm) -> Failure {
    let reason = format!("the key is not of the kind that {algorithm:?} takes");
    KekErrorKind::BadRequest { reason }.into()
}
