//! Private keys: making them, reading them from JSON Web Keys, setting them up.
//!
//! RSA and elliptic curves are aws-lc's: constant time, with blinding of every RSA private-key
//! operation (`crates` of pure Rust are not used for them: see the manual's `defaults`).

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{
    KeyPair as RsaKeyPair, KeyPairComponents, KeySize, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    RsaPublicKeyComponents,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::crypto::{Secret, random};
use crate::vault::encoding::{Bytes, encode};
use crate::vault::error::ApiError;

/// What is said to who asks for a key in a hardware security module.
pub const NO_HSM: &str = "this vault keeps keys in software: RSA-HSM and EC-HSM are not offered";

/// What kind of key, of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// RSA with so many bits.
    Rsa(u32),
    /// An elliptic curve.
    Ec(Curve),
    /// AES with 256 bits; `true` if it is called `oct-HSM`, which is what Key Vault's clients
    /// expect of AES keys.
    Oct(bool),
}

/// Elliptic curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    fn of(name: &str) -> Result<Self, ApiError> {
        match name {
            "P-256" => Ok(Self::P256),
            "P-384" => Ok(Self::P384),
            "P-521" => Ok(Self::P521),
            _ => Err(ApiError::bad_parameter("curves are P-256, P-384 and P-521")),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Length of a coordinate, in bytes.
    fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    pub(super) fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
            Self::P521 => &ECDSA_P521_SHA512_FIXED_SIGNING,
        }
    }
}

impl Shape {
    /// What a request asks for: `kty`, `key_size` and `crv`.
    ///
    /// # Errors
    /// 400 with what there is.
    pub fn new(kty: &str, key_size: Option<u32>, crv: Option<&str>) -> Result<Self, ApiError> {
        match kty {
            "RSA" => match key_size.unwrap_or(2048) {
                bits @ (2048 | 3072 | 4096) => Ok(Self::Rsa(bits)),
                _ => Err(ApiError::bad_parameter("RSA keys have 2048, 3072 or 4096 bits")),
            },
            "EC" => Curve::of(crv.unwrap_or("P-256")).map(Self::Ec),
            "oct" | "oct-HSM" => match key_size.unwrap_or(256) {
                256 => Ok(Self::Oct(kty == "oct-HSM")),
                _ => Err(ApiError::bad_parameter("oct keys have 256 bits")),
            },
            "RSA-HSM" | "EC-HSM" => Err(ApiError::bad_parameter(NO_HSM)),
            _ => Err(ApiError::bad_parameter("kty is RSA, EC, oct or oct-HSM")),
        }
    }

    /// What such a key can be used for.
    pub fn operations(self) -> &'static [&'static str] {
        match self {
            Self::Rsa(_) => &["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"],
            Self::Ec(_) => &["sign", "verify"],
            Self::Oct(_) => &["encrypt", "decrypt", "wrapKey", "unwrapKey"],
        }
    }

    fn oct_name(is_hsm: bool) -> &'static str {
        if is_hsm { "oct-HSM" } else { "oct" }
    }
}

/// A JSON Web Key (RFC 7517, RFC 7518 section 6) with its private part.
#[derive(Deserialize)]
pub struct Jwk {
    kty: String,
    pub key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<Bytes>,
    e: Option<Bytes>,
    d: Option<Bytes>,
    p: Option<Bytes>,
    q: Option<Bytes>,
    dp: Option<Bytes>,
    dq: Option<Bytes>,
    qi: Option<Bytes>,
    x: Option<Bytes>,
    y: Option<Bytes>,
    k: Option<Bytes>,
}

/// A private key that is set up.
pub enum Material {
    /// RSA, for both of its uses.
    Rsa {
        /// Unwraps and decrypts.
        private: OaepPrivateDecryptingKey,
        /// Wraps and encrypts.
        public: OaepPublicEncryptingKey,
        /// Signs, and knows the public key for verifying.
        pair: RsaKeyPair,
    },
    /// An elliptic curve's.
    Ec(EcdsaKeyPair, Curve),
    /// AES.
    Oct(Secret),
}

impl Material {
    /// Sets up what [`generate`] and [`import`] return; `None` if it is something else.
    pub fn set_up(shape: Shape, private: &[u8]) -> Option<Self> {
        match shape {
            Shape::Rsa(bits) => {
                let pair = RsaKeyPair::from_pkcs8(private).ok()?;
                let key = PrivateDecryptingKey::from_pkcs8(private).ok()?;
                let public = OaepPublicEncryptingKey::new(key.public_key()).ok()?;
                let private = OaepPrivateDecryptingKey::new(key).ok()?;
                let has_size = private.key_size_bits() == bits as usize;
                has_size.then_some(Self::Rsa { private, public, pair })
            }
            Shape::Ec(curve) => {
                let pair = EcdsaKeyPair::from_pkcs8(curve.signing(), private).ok()?;
                Some(Self::Ec(pair, curve))
            }
            Shape::Oct(_) => {
                let copy = |bytes: &mut [u8]| bytes.copy_from_slice(private);
                (private.len() == 32).then(|| Self::Oct(Secret::from_fn(32, copy)))
            }
        }
    }
}

/// What is stored of a private key, and its public part.
type Made = (Zeroizing<Vec<u8>>, Value);

/// Draws a private key.
///
/// # Errors
/// 500 if the library fails.
pub fn generate(shape: Shape) -> Result<Made, ApiError> {
    let failed = |_| {
        log::error!("the cryptographic library could not make a key");
        ApiError::internal()
    };
    match shape {
        Shape::Rsa(bits) => {
            let size = match bits {
                2048 => KeySize::Rsa2048,
                3072 => KeySize::Rsa3072,
                _ => KeySize::Rsa4096,
            };
            rsa_parts(&RsaKeyPair::generate(size).map_err(failed)?).map_err(failed)
        }
        Shape::Ec(curve) => {
            ec_parts(&EcdsaKeyPair::generate(curve.signing()).map_err(failed)?, curve)
                .map_err(failed)
        }
        Shape::Oct(is_hsm) => {
            let mut key = Zeroizing::new(vec![0; 32]);
            random::fill(&mut key);
            Ok((key, json!({ "kty": Shape::oct_name(is_hsm) })))
        }
    }
}

/// Takes a private key from a JSON Web Key.
///
/// # Errors
/// 400 if it is none, or not of a kind and size that [`generate`] makes.
pub fn import(jwk: &Jwk) -> Result<(Shape, Zeroizing<Vec<u8>>, Value), ApiError> {
    let bad = |_| ApiError::bad_parameter("the parts of the key do not make a key");
    match jwk.kty.as_str() {
        "RSA" => {
            let pair = import_rsa(jwk)?;
            let bits = u32::try_from(pair.public_modulus_len() * 8).unwrap_or(0);
            let shape = Shape::new("RSA", Some(bits), None)?;
            let (private, public) = rsa_parts(&pair).map_err(bad)?;
            // Only what can be set up is stored.
            Material::set_up(shape, &private).ok_or(aws_lc_rs::error::Unspecified).map_err(bad)?;
            Ok((shape, private, public))
        }
        "EC" => {
            let curve = Curve::of(jwk.crv.as_deref().unwrap_or_default())?;
            let (d, x, y) = (part(&jwk.d, "d")?, part(&jwk.x, "x")?, part(&jwk.y, "y")?);
            let mut point = vec![4];
            [x, y].iter().try_for_each(|coordinate| {
                let padding = curve.bytes().checked_sub(coordinate.len())?;
                point.extend(std::iter::repeat_n(0, padding));
                point.extend_from_slice(coordinate);
                Some(())
            });
            let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.signing(), d, &point);
            let pair = pair.map_err(|_| aws_lc_rs::error::Unspecified).map_err(bad)?;
            let (private, public) = ec_parts(&pair, curve).map_err(bad)?;
            Ok((Shape::Ec(curve), private, public))
        }
        "oct" | "oct-HSM" => {
            let key = part(&jwk.k, "k")?;
            let bits = u32::try_from(key.len() * 8).unwrap_or(0);
            let shape = Shape::new(&jwk.kty, Some(bits), None)?;
            Ok((shape, key.0.clone(), json!({ "kty": jwk.kty })))
        }
        other => Shape::new(other, None, None).and(Err(ApiError::bad_parameter("unknown kty"))),
    }
}

fn import_rsa(jwk: &Jwk) -> Result<RsaKeyPair, ApiError> {
    let e = part(&jwk.e, "e")?;
    if e.iter().skip_while(|byte| **byte == 0).ne(&[1, 0, 1]) {
        return Err(ApiError::bad_parameter("the public exponent of RSA keys is 65537 here"));
    }
    let n = part(&jwk.n, "n")?;
    let bits = n.iter().skip_while(|byte| **byte == 0).count() * 8;
    Shape::new("RSA", u32::try_from(bits).ok(), None)?;
    let components = KeyPairComponents {
        public_key: RsaPublicKeyComponents { n: &n[..], e: &e[..] },
        d: &part(&jwk.d, "d")?[..],
        p: &part(&jwk.p, "p")?[..],
        q: &part(&jwk.q, "q")?[..],
        dP: &part(&jwk.dp, "dp")?[..],
        dQ: &part(&jwk.dq, "dq")?[..],
        qInv: &part(&jwk.qi, "qi")?[..],
    };
    RsaKeyPair::from_components(&components)
        .map_err(|_| ApiError::bad_parameter("the parts of the key do not make an RSA key"))
}

fn part<'a>(part: &'a Option<Bytes>, name: &str) -> Result<&'a Bytes, ApiError> {
    let missing = || ApiError::bad_parameter(format!("the key has no {name}"));
    part.as_ref().filter(|bytes| bytes.len() <= 1024).ok_or_else(missing)
}

fn rsa_parts(pair: &RsaKeyPair) -> Result<Made, aws_lc_rs::error::Unspecified> {
    let private = Zeroizing::new(pair.as_der()?.as_ref().to_vec());
    let public = pair.public_key();
    let (n, e) = (public.modulus(), public.exponent());
    let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
    Ok((private, json!({ "kty": "RSA", "n": encode(n).as_str(), "e": encode(e).as_str() })))
}

fn ec_parts(pair: &EcdsaKeyPair, curve: Curve) -> Result<Made, aws_lc_rs::error::Unspecified> {
    let private = Zeroizing::new(pair.to_pkcs8v1()?.as_ref().to_vec());
    // An uncompressed point: 4, x, y (SEC 1 section 2.3.3).
    let point = pair.public_key().as_ref().get(1..).ok_or(aws_lc_rs::error::Unspecified)?;
    let (x, y) = point.split_at_checked(curve.bytes()).ok_or(aws_lc_rs::error::Unspecified)?;
    let (x, y) = (encode(x), encode(y));
    let public = json!({ "kty": "EC", "crv": curve.name(), "x": x.as_str(), "y": y.as_str() });
    Ok((private, public))
}
