//! Keys on a token: which objects a URI means, and which of them is the newest version.

use std::time::SystemTime;

use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Date;

use super::error::Failure;
use super::token::Connection;
use super::uri::Uri;
use crate::key::KekErrorKind;

/// More keys of one label than this are not versions of one key.
const KEYS_MAX: usize = 256;
/// Smallest RSA modulus that is used, in bits (NIST SP 800-131A).
const MODULUS_BITS_MIN: usize = 2048;

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// AES, 256 bits.
    Aes,
    /// The private key of an RSA pair.
    Rsa,
}

/// A key on the token, for as long as the session lives.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) handle: ObjectHandle,
    pub(super) kind: Kind,
    pub(super) version: Version,
    /// CKA_END_DATE as `YYYYMMDD`, if it has one.
    pub(super) end: Option<[u8; 8]>,
    pub(super) can_decrypt: bool,
    pub(super) can_encrypt: bool,
    pub(super) can_unwrap: bool,
    pub(super) can_wrap: bool,
    /// Why it cannot be used, if so.
    problem: Option<String>,
}

/// Which of several keys of one label it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Version {
    /// CKA_ID.
    pub(super) id: Vec<u8>,
    /// CKA_START_DATE as `YYYYMMDD`, if it has one.
    pub(super) start: Option<[u8; 8]>,
}

impl Version {
    /// CKA_ID in hexadecimal.
    pub(super) fn name(&self) -> String {
        hex(&self.id)
    }
}

/// `bytes` in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of what [`hex`] wrote, and of nothing else.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .bytes()
        .map(|byte| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        })
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// The version of `uri`'s key that wraps now: the newest, where several keys have its label.
///
/// # Errors
/// `Gone` if there is none, `Configuration` if which is meant cannot be known, or if the one that
/// is meant cannot be used.
pub(super) fn newest(connection: &Connection, uri: &Uri) -> Result<Key, Failure> {
    let mut keys = find(connection, uri, None)?;
    let versions: Vec<_> = keys.iter().map(|key| &key.version).collect();
    match choose(&versions, &today()) {
        Ok(at) => usable(keys.swap_remove(at)),
        Err(Choice::None) => Err(KekErrorKind::Gone { recoverable: false }.into()),
        Err(Choice::Refused(problem)) => Err(Failure::configuration(problem)),
    }
}

/// The version of `uri`'s key with that CKA_ID.
///
/// # Errors
/// As [`newest`].
pub(super) fn version(connection: &Connection, uri: &Uri, id: &[u8]) -> Result<Key, Failure> {
    if uri.bytes("id").is_some_and(|wanted| wanted != id) {
        return Err(KekErrorKind::Gone { recoverable: false }.into());
    }
    let mut keys = find(connection, uri, Some(id))?;
    match keys.len() {
        0 => Err(KekErrorKind::Gone { recoverable: false }.into()),
        1 => usable(keys.remove(0)),
        _ => Err(Failure::configuration(same_id(id))),
    }
}

fn usable(key: Key) -> Result<Key, Failure> {
    match key.problem {
        Some(problem) => Err(Failure::configuration(problem)),
        None => Ok(key),
    }
}

/// The public key that belongs to the private key `key`.
///
/// # Errors
/// `Configuration` if there is not exactly one.
pub(super) fn public_key(connection: &Connection, key: &Key) -> Result<ObjectHandle, Failure> {
    let template = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(true),
        Attribute::Id(key.version.id.clone()),
    ];
    match connection.session.find_objects(&template)?[..] {
        [handle] => Ok(handle),
        ref handles => Err(Failure::configuration(format!(
            "the token has {} public keys with CKA_ID {}; wrapping needs exactly one",
            handles.len(),
            key.version.name()
        ))),
    }
}

/// All keys that `uri` fits, with `id` if there is one.
fn find(connection: &Connection, uri: &Uri, id: Option<&[u8]>) -> Result<Vec<Key>, Failure> {
    let session = &connection.session;
    let mut keys = Vec::new();
    for (name, class, key_type) in [
        ("secret-key", ObjectClass::SECRET_KEY, KeyType::AES),
        ("private", ObjectClass::PRIVATE_KEY, KeyType::RSA),
    ] {
        if uri.text("type").is_some_and(|wanted| wanted != name) {
            continue;
        }
        let mut template =
            vec![Attribute::Class(class), Attribute::KeyType(key_type), Attribute::Token(true)];
        if let Some(label) = uri.text("object") {
            template.push(Attribute::Label(label.as_bytes().to_vec()));
        }
        if let Some(id) = id.or(uri.bytes("id")) {
            template.push(Attribute::Id(id.to_vec()));
        }
        for handle in session.iter_objects(&template)? {
            if keys.len() == KEYS_MAX {
                let problem = format!("more than {KEYS_MAX} keys have this label; add id=");
                return Err(Failure::configuration(problem));
            }
            keys.push((handle?, key_type));
        }
    }
    keys.into_iter().map(|(handle, key_type)| describe(session, handle, key_type)).collect()
}

fn describe(session: &Session, handle: ObjectHandle, key_type: KeyType) -> Result<Key, Failure> {
    let kind = if key_type == KeyType::AES { Kind::Aes } else { Kind::Rsa };
    let mut key = Key {
        handle,
        kind,
        version: Version::default(),
        end: None,
        can_decrypt: false,
        can_encrypt: false,
        can_unwrap: false,
        can_wrap: false,
        problem: None,
    };
    let mut bits = None;
    let wanted = [
        AttributeType::Id,
        AttributeType::Decrypt,
        AttributeType::Unwrap,
        if kind == Kind::Aes { AttributeType::ValueLen } else { AttributeType::Modulus },
    ];
    let more = [AttributeType::Encrypt, AttributeType::Wrap];
    let more = if kind == Kind::Aes { &more[..] } else { &[] };
    for attribute in session.get_attributes(handle, &[&wanted, more].concat())? {
        match attribute {
            Attribute::Id(id) => key.version.id = id,
            Attribute::Decrypt(can) => key.can_decrypt = can,
            Attribute::Unwrap(can) => key.can_unwrap = can,
            Attribute::Encrypt(can) => key.can_encrypt = can,
            Attribute::Wrap(can) => key.can_wrap = can,
            Attribute::ValueLen(bytes) => bits = usize::try_from(*bytes).ok().map(|n| n * 8),
            Attribute::Modulus(modulus) => bits = Some(modulus_bits(&modulus)),
            _ => {}
        }
    }
    // Apart from the others: tokens that do not keep dates answer with whatever they like.
    for attribute in [AttributeType::StartDate, AttributeType::EndDate] {
        match session.get_attributes(handle, &[attribute]).as_deref() {
            Ok([Attribute::StartDate(date)]) => key.version.start = digits(date),
            Ok([Attribute::EndDate(date)]) => key.end = digits(date),
            _ => {}
        }
    }
    key.problem = match (kind, bits) {
        (Kind::Aes, Some(bits)) if bits != 256 => {
            Some(format!("an AES key of {bits} bits; 256 are wanted"))
        }
        (Kind::Rsa, Some(bits)) if bits < MODULUS_BITS_MIN => {
            Some(format!("an RSA key of {bits} bits; at least {MODULUS_BITS_MIN} are wanted"))
        }
        _ if key.version.id.is_empty() => {
            Some("a key without CKA_ID; give it one, it is the version".to_owned())
        }
        _ => None,
    };
    Ok(key)
}

fn modulus_bits(modulus: &[u8]) -> usize {
    let leading = modulus.iter().take_while(|byte| **byte == 0).count();
    let rest = &modulus[leading..];
    rest.first().map_or(0, |first| rest.len() * 8 - first.leading_zeros() as usize)
}

fn digits(date: &Date) -> Option<[u8; 8]> {
    let mut text = [0; 8];
    text[..4].copy_from_slice(&date.year);
    text[4..6].copy_from_slice(&date.month);
    text[6..].copy_from_slice(&date.day);
    text.iter().all(u8::is_ascii_digit).then_some(text)
}

/// Today, UTC, as `YYYYMMDD`.
pub(super) fn today() -> [u8; 8] {
    let text = jiff::Timestamp::now().strftime("%Y%m%d").to_string();
    text.as_bytes().try_into().expect("years have four digits until 9999")
}

/// The begin of that day, UTC, or of one so many days later; `None` if there is no such day.
pub(super) fn midnight(date: [u8; 8], days_later: i64) -> Option<SystemTime> {
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<i16>().ok();
    let [month, day] = [&date[4..6], &date[6..]].map(|digits| number(digits).map(|n| n as i8));
    let date = jiff::civil::Date::new(number(&date[..4])?, month?, day?).ok()?;
    let date = date.checked_add(jiff::Span::new().days(days_later)).ok()?;
    Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().into())
}

/// Why no key was chosen.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    None,
    Refused(String),
}

/// Which of `versions` is the newest: the latest CKA_START_DATE that is not after `today`;
/// of the same day, that with the higher CKA_ID. A key without a date is older than any with one,
/// and there may be only one of that sort: which of two is meant is not guessed.
fn choose(versions: &[&Version], today: &[u8; 8]) -> Result<usize, Choice> {
    if versions.len() == 1 {
        return Ok(0);
    }
    let has_begun = |at: &usize| versions[*at].start.is_none_or(|start| start <= *today);
    let mut order: Vec<usize> = (0..versions.len()).filter(has_begun).collect();
    // CKA_ID as a number: the longer one is higher.
    order.sort_by_key(|at| (versions[*at].start, versions[*at].id.len(), &versions[*at].id));
    let Some(newest) = order.pop() else { return Err(Choice::None) };
    let Some(second) = order.last() else { return Ok(newest) };
    if versions[*second].id == versions[newest].id {
        return Err(Choice::Refused(same_id(&versions[newest].id)));
    }
    if versions[newest].start.is_none() {
        let names: Vec<_> = versions.iter().map(|version| version.name()).collect();
        return Err(Choice::Refused(format!(
            "several keys have this label, with CKA_ID {}; add id=%.. of one to the URI, or give \
             the newer ones a CKA_START_DATE",
            names.join(", ")
        )));
    }
    Ok(newest)
}

fn same_id(id: &[u8]) -> String {
    format!("several keys have CKA_ID {}; give each its own, or add type= to the URI", hex(id))
}

/// Whether the token has `mechanism` for encryption and decryption; for wrapping and unwrapping.
pub(super) fn uses(connection: &Connection, mechanism: MechanismType) -> (bool, bool) {
    match connection.pkcs11.get_mechanism_info(connection.slot, mechanism) {
        Ok(info) => (info.encrypt() && info.decrypt(), info.wrap() && info.unwrap()),
        Err(_) => (false, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(id: &[u8], start: Option<&[u8; 8]>) -> Version {
        Version { id: id.to_vec(), start: start.copied() }
    }

    /// The newest by date, then by CKA_ID; what is ambiguous is refused.
    #[test]
    fn newest_key() {
        let chosen = |versions: &[Version]| {
            let versions: Vec<_> = versions.iter().collect();
            choose(&versions, b"20260615").map(|at| versions[at].id.clone())
        };
        let (old, new, later) = (Some(b"20250101"), Some(b"20260615"), Some(b"20270101"));
        assert_eq!(chosen(&[]), Err(Choice::None));
        assert_eq!(chosen(&[version(&[1], None)]), Ok(vec![1]));
        assert_eq!(chosen(&[version(&[1], later)]), Ok(vec![1]), "the only one");
        assert_eq!(chosen(&[version(&[9], None), version(&[1], old)]), Ok(vec![1]));
        assert_eq!(chosen(&[version(&[1], new), version(&[9], old)]), Ok(vec![1]));
        assert_eq!(chosen(&[version(&[2], new), version(&[1], later)]), Ok(vec![2]));
        let same_day = [version(&[1, 0], new), version(&[9], new)];
        assert_eq!(chosen(&same_day), Ok(vec![1, 0]), "256 is more than 9");
        let undated = [version(&[1], None), version(&[2], None)];
        assert!(matches!(chosen(&undated), Err(Choice::Refused(why)) if why.contains("01, 02")));
        let same_id = [version(&[1], new), version(&[1], old)];
        assert!(matches!(chosen(&same_id), Err(Choice::Refused(why)) if why.contains("its own")));
    }

    /// Versions have one spelling.
    #[test]
    fn hexadecimal() {
        assert_eq!(unhex(&hex(&[0, 0xab, 0xff])), Some(vec![0, 0xab, 0xff]));
        assert_eq!(unhex(""), Some(vec![]));
        for bad in ["0", "AB", "0x", " 0"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
        assert_eq!(modulus_bits(&[0, 0x80, 0]), 16);
        assert_eq!(modulus_bits(&[]), 0);
    }

    /// Days of the token's calendar, and what is none.
    #[test]
    fn dates() {
        let seconds = |date, later| {
            let time = midnight(date, later)?.duration_since(SystemTime::UNIX_EPOCH);
            time.ok().map(|time| time.as_secs())
        };
        assert_eq!(seconds(*b"19700102", 0), Some(86_400));
        assert_eq!(seconds(*b"19691231", 1), Some(0));
        assert_eq!(midnight(*b"20260230", 0), None);
        assert_eq!(midnight(*b"00000000", 0), None);
    }
}
