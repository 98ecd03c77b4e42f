//! wrapKey, unwrapKey, encrypt, decrypt, sign, verify.
//!
//! | State of the version | wrapKey, encrypt | sign | verify | unwrapKey, decrypt |
//! | --- | --- | --- | --- | --- |
//! | disabled | done | refused | done | refused |
//! | before `nbf`, from `exp` on | refused | refused | done | done |
//!
//! Refused is 403. Revocation is disabling: what was wrapped before a key expired must be had.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm};
use aws_lc_rs::signature as sig;
use aws_lc_rs::signature::{KeyPair as _, RsaEncoding, UnparsedPublicKey, VerificationAlgorithm};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::material::{Curve, Material, Shape};
use super::{Details, ENTRIES, Keys, decode};
use crate::crypto::{Secret, random, wrap};
use crate::sys::gcm::GcmKey;
use crate::vault::encoding::Bytes;
use crate::vault::error::ApiError;
use crate::vault::objects::{self, VersionDocument, now};
use crate::vault::request::{Reply, Request};
use crate::vault::route::{Operation, Route};

#[derive(Deserialize)]
struct Input {
    alg: String,
    /// What is wrapped, unwrapped, ...; of a signature's verification the signature.
    value: Bytes,
    digest: Option<Bytes>,
    iv: Option<Bytes>,
    aad: Option<Bytes>,
    tag: Option<Bytes>,
}

#[derive(Serialize)]
struct Output {
    kid: String,
    value: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    iv: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aad: Option<Bytes>,
}

#[derive(Serialize)]
struct Verified {
    value: bool,
}

impl Keys {
    pub(super) fn use_key(&self, request: &Request, route: &Route) -> Result<Reply, ApiError> {
        let input: Input = request.json()?;
        let (version, document) = objects::find(&self.store, route)?;
        let details = decode(document.details.clone(), &route.name)?;
        let name = format!("{}/{version}", route.name);
        check_state(route.operation, &name, &document, &details)?;
        let material = self.material(&route.name, &version, &details)?;
        if route.operation == Operation::KeyVerify {
            let value = verify(&material, &input)?;
            return Ok(Reply::json(200, &Verified { value }));
        }
        let kid = format!("{}/{version}", ENTRIES.id(request, &route.name));
        let plain = |value| Output { kid: kid.clone(), value, iv: None, tag: None, aad: None };
        let output = match (route.operation, input.alg.as_str()) {
            (Operation::KeySign, _) => plain(sign(&material, &input)?),
            (Operation::KeyEncrypt, "A256GCM") => encrypt_gcm(&material, input, kid)?,
            (Operation::KeyDecrypt, "A256GCM") => plain(decrypt_gcm(&material, &input)?),
            (Operation::KeyWrap | Operation::KeyEncrypt, _) => {
                plain(encrypt(&material, &input, route.operation)?)
            }
            _ => plain(decrypt(&material, &input, route.operation)?),
        };
        Ok(Reply::json(200, &output))
    }
}

fn check_state(
    operation: Operation,
    name: &str,
    document: &VersionDocument,
    details: &Details,
) -> Result<(), ApiError> {
    use Operation as O;
    let word = operation.permission().name();
    if !details.key_ops.iter().any(|allowed| allowed == word) {
        let message = format!("operation {word} is not among the key_ops of {name}");
        return Err(ApiError::forbidden("KeyOperationForbidden", message));
    }
    let attributes = &document.attributes;
    let needs_private = matches!(operation, O::KeyUnwrap | O::KeyDecrypt | O::KeySign);
    if !attributes.enabled && needs_private {
        let message = format!("operation {word} is not allowed on the disabled key {name}");
        return Err(ApiError::forbidden("KeyDisabled", message));
    }
    let makes_new = matches!(operation, O::KeyWrap | O::KeyEncrypt | O::KeySign);
    let now = now();
    if makes_new && attributes.nbf.is_some_and(|nbf| now < nbf) {
        let message = format!("operation {word} is not allowed yet on the key {name}");
        return Err(ApiError::forbidden("KeyNotYetValid", message));
    }
    if makes_new && attributes.exp.is_some_and(|exp| exp <= now) {
        let message = format!("operation {word} is not allowed on the expired key {name}");
        return Err(ApiError::forbidden("KeyExpired", message));
    }
    Ok(())
}

fn unsupported(alg: &str, offered: &str) -> ApiError {
    let message = match alg {
        "RSA1_5" => "RSA1_5 is not offered, because decrypting it leaks; use RSA-OAEP-256".into(),
        _ => format!("this key does not have this algorithm; it has {offered}"),
    };
    ApiError::bad_parameter(message)
}

fn oaep(alg: &str) -> Result<&'static OaepAlgorithm, ApiError> {
    match alg {
        "RSA-OAEP-256" => Ok(&OAEP_SHA256_MGF1SHA256),
        "RSA-OAEP" => Ok(&OAEP_SHA1_MGF1SHA1),
        alg => Err(unsupported(alg, "RSA-OAEP-256, RSA-OAEP")),
    }
}

fn encrypt(material: &Material, input: &Input, operation: Operation) -> Result<Bytes, ApiError> {
    match material {
        Material::Rsa { public, .. } => {
            let algorithm = oaep(&input.alg)?;
            let most = public.max_plaintext_size(algorithm);
            if input.value.len() > most {
                let message = format!("with this key and algorithm, up to {most} bytes fit");
                return Err(ApiError::bad_parameter(message));
            }
            let mut output = Zeroizing::new(vec![0; public.ciphertext_size()]);
            let length = public
                .encrypt(algorithm, &input.value, &mut output, None)
                .map_err(|_| failed())?
                .len();
            output.truncate(length);
            Ok(Bytes(output))
        }
        Material::Oct(key) if input.alg == "A256KW" && operation == Operation::KeyWrap => {
            if input.value.len() < 16 || input.value.len() % 8 != 0 || input.value.len() > 4096 {
                let message = "A256KW wraps 16 to 4096 bytes, in multiples of 8";
                return Err(ApiError::bad_parameter(message));
            }
            let copy = |bytes: &mut [u8]| bytes.copy_from_slice(&input.value);
            let secret = Secret::from_fn(input.value.len(), copy);
            Ok(Bytes(Zeroizing::new(wrap::wrap(key, &secret))))
        }
        Material::Oct(_) => Err(unsupported(&input.alg, "A256KW to wrap and A256GCM to encrypt")),
        Material::Ec(..) => Err(unsupported(&input.alg, "none that encrypts")),
    }
}

/// Whatever is wrong with the ciphertext is one error, in one time as far as the library goes.
fn undecipherable() -> ApiError {
    ApiError::bad_parameter("the value was not made with this key and algorithm, or was changed")
}

fn failed() -> ApiError {
    log::error!("the cryptographic library failed");
    ApiError::internal()
}

fn decrypt(material: &Material, input: &Input, operation: Operation) -> Result<Bytes, ApiError> {
    match material {
        Material::Rsa { private, .. } => {
            let algorithm = oaep(&input.alg)?;
            let mut output = Zeroizing::new(vec![0; private.min_output_size()]);
            let length = private
                .decrypt(algorithm, &input.value, &mut output, None)
                .map_err(|_| undecipherable())?
                .len();
            output.truncate(length);
            Ok(Bytes(output))
        }
        Material::Oct(key) if input.alg == "A256KW" && operation == Operation::KeyUnwrap => {
            let secret = wrap::unwrap(key, &input.value).map_err(|_| undecipherable())?;
            Ok(Bytes::copy(secret.expose()))
        }
        Material::Oct(_) => Err(unsupported(&input.alg, "A256KW to wrap and A256GCM to encrypt")),
        Material::Ec(..) => Err(unsupported(&input.alg, "none that decrypts")),
    }
}

fn gcm(material: &Material, alg: &str) -> Result<GcmKey, ApiError> {
    match material {
        Material::Oct(key) => {
            Ok(GcmKey::new(key.expose().try_into().expect("AES keys here have 256 bits")))
        }
        _ => Err(unsupported(alg, "RSA-OAEP-256, RSA-OAEP")),
    }
}

/// The vault draws the nonce: one of the client's could be used twice.
fn encrypt_gcm(material: &Material, input: Input, kid: String) -> Result<Output, ApiError> {
    let key = gcm(material, &input.alg)?;
    if input.iv.is_some_and(|iv| !iv.is_empty()) {
        return Err(ApiError::bad_parameter("the vault draws the iv itself"));
    }
    let mut nonce = [0; 12];
    random::fill(&mut nonce);
    let mut sealed = Zeroizing::new(vec![0; input.value.len()]);
    let aad = input.aad.as_deref().unwrap_or(&[]);
    let tag = key.seal(&nonce, aad, &input.value, &mut sealed);
    Ok(Output {
        kid,
        value: Bytes(sealed),
        iv: Some(Bytes::copy(&nonce)),
        tag: Some(Bytes::copy(&tag)),
        aad: input.aad,
    })
}

fn decrypt_gcm(material: &Material, input: &Input) -> Result<Bytes, ApiError> {
    let key = gcm(material, &input.alg)?;
    let (Some(iv), Some(tag)) = (&input.iv, &input.tag) else {
        return Err(ApiError::bad_parameter("A256GCM needs iv and tag"));
    };
    let (Ok(nonce), Ok(tag)) = ((&iv[..]).try_into(), (&tag[..]).try_into()) else {
        return Err(undecipherable());
    };
    let mut plain = Zeroizing::new(vec![0; input.value.len()]);
    let aad = input.aad.as_deref().unwrap_or(&[]);
    match key.open(nonce, aad, tag, &input.value, &mut plain) {
        true => Ok(Bytes(plain)),
        false => Err(undecipherable()),
    }
}

/// A signature algorithm: its digest, how RSA signs and verifies with it, or a curve's.
struct Signature {
    name: &'static str,
    digest: &'static digest::Algorithm,
    rsa: Option<&'static dyn RsaEncoding>,
    verification: &'static dyn VerificationAlgorithm,
    shape: fn(Shape) -> bool,
}

/// Of RFC 7518 section 3.1. The value to sign is the digest.
static SIGNATURES: [Signature; 9] = {
    const fn rsa(
        name: &'static str,
        digest: &'static digest::Algorithm,
        rsa: &'static dyn RsaEncoding,
        verification: &'static dyn VerificationAlgorithm,
    ) -> Signature {
        fn is_rsa(shape: Shape) -> bool {
            matches!(shape, Shape::Rsa(_))
        }
        Signature { name, digest, rsa: Some(rsa), verification, shape: is_rsa }
    }
    const fn ec(
        name: &'static str,
        digest: &'static digest::Algorithm,
        verification: &'static dyn VerificationAlgorithm,
        shape: fn(Shape) -> bool,
    ) -> Signature {
        Signature { name, digest, rsa: None, verification, shape }
    }
    use digest::{SHA256, SHA384, SHA512};
    [
        rsa("RS256", &SHA256, &sig::RSA_PKCS1_SHA256, &sig::RSA_PKCS1_2048_8192_SHA256),
        rsa("RS384", &SHA384, &sig::RSA_PKCS1_SHA384, &sig::RSA_PKCS1_2048_8192_SHA384),
        rsa("RS512", &SHA512, &sig::RSA_PKCS1_SHA512, &sig::RSA_PKCS1_2048_8192_SHA512),
        rsa("PS256", &SHA256, &sig::RSA_PSS_SHA256, &sig::RSA_PSS_2048_8192_SHA256),
        rsa("PS384", &SHA384, &sig::RSA_PSS_SHA384, &sig::RSA_PSS_2048_8192_SHA384),
        rsa("PS512", &SHA512, &sig::RSA_PSS_SHA512, &sig::RSA_PSS_2048_8192_SHA512),
        ec("ES256", &SHA256, &sig::ECDSA_P256_SHA256_FIXED, |s| s == Shape::Ec(Curve::P256)),
        ec("ES384", &SHA384, &sig::ECDSA_P384_SHA384_FIXED, |s| s == Shape::Ec(Curve::P384)),
        ec("ES512", &SHA512, &sig::ECDSA_P521_SHA512_FIXED, |s| s == Shape::Ec(Curve::P521)),
    ]
};

fn signature(material: &Material, alg: &str) -> Result<&'static Signature, ApiError> {
    let shape = match material {
        Material::Rsa { .. } => Shape::Rsa(0),
        Material::Ec(_, curve) => Shape::Ec(*curve),
        Material::Oct(_) => Shape::Oct(true),
    };
    let mut offered = SIGNATURES.iter().filter(|signature| (signature.shape)(shape));
    let found = offered.clone().find(|signature| signature.name == alg);
    found.ok_or_else(|| {
        let names: Vec<&str> = offered.by_ref().map(|signature| signature.name).collect();
        unsupported(alg, &format!("these to sign: {}", names.join(", ")))
    })
}

fn import_digest(signature: &Signature, value: &[u8]) -> Result<Digest, ApiError> {
    Digest::import_less_safe(value, signature.digest).map_err(|_| {
        let bytes = signature.digest.output_len();
        let name = signature.name;
        ApiError::bad_parameter(format!("{name} signs a digest of {bytes} bytes"))
    })
}

fn sign(material: &Material, input: &Input) -> Result<Bytes, ApiError> {
    let signature = signature(material, &input.alg)?;
    let digest = import_digest(signature, &input.value)?;
    match (material, signature.rsa) {
        (Material::Rsa { pair, .. }, Some(encoding)) => {
            let mut output = vec![0; pair.public_modulus_len()];
            pair.sign_digest(encoding, &digest, &mut output).map_err(|_| failed())?;
            Ok(Bytes(Zeroizing::new(output)))
        }
        (Material::Ec(pair, _), _) => {
            let signature = pair.sign_digest(&digest).map_err(|_| failed())?;
            Ok(Bytes::copy(signature.as_ref()))
        }
        _ => Err(failed()),
    }
}

fn verify(material: &Material, input: &Input) -> Result<bool, ApiError> {
    let signature = signature(material, &input.alg)?;
    let digest = input.digest.as_ref();
    let digest = digest.ok_or_else(|| ApiError::bad_parameter("the digest is missing"))?;
    let digest = import_digest(signature, digest)?;
    let public = match material {
        Material::Rsa { pair, .. } => pair.public_key().as_ref(),
        Material::Ec(pair, _) => pair.public_key().as_ref(),
        Material::Oct(_) => return Err(failed()),
    };
    let public = UnparsedPublicKey::new(signature.verification, public);
    let verified: Result<(), Unspecified> = public.verify_digest(&digest, &input.value);
    Ok(verified.is_ok())
}
