//! Base64url without padding (RFC 4648 section 5), and JSON in buffers that are wiped.

use std::fmt;
use std::io;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Writes no padding, and takes what has some.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Bytes that are base64url in JSON; wiped when dropped, and not shown.
#[derive(Clone, Default)]
pub struct Bytes(pub Zeroizing<Vec<u8>>);

impl Bytes {
    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(BytesVisitor)
    }
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64url")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        decode(text).map(Bytes).ok_or_else(|| E::custom("not base64url"))
    }
}

/// Text that is wiped when dropped, and not shown.
#[derive(Clone)]
pub struct Text(pub Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// `bytes` as base64url.
pub fn encode(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(ENGINE.encode(bytes))
}

/// The bytes of `text`, if it is base64url.
pub fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    ENGINE.decode(text).ok().map(Zeroizing::new)
}

/// `value` as JSON, in a buffer that did not grow: no copy is left behind.
pub fn to_json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("it is plain data");
    let mut bytes = Zeroizing::new(Vec::with_capacity(count.0));
    serde_json::to_writer(&mut *bytes, value).expect("it is plain data");
    bytes
}

struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
