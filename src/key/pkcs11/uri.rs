//! PKCS #11 URIs (RFC 7512), read strictly: unknown attributes, attributes that are there twice
//! and characters that must be percent-encoded are refused.
//!
//! The path (`token=…;object=…`) selects a token and a key. The query (`?module-path=…`) says which
//! library to load and where the PIN is: that is for the operator to say, never for a volume.

use std::path::PathBuf;

/// The attributes of the path, in canonical order.
const PATH: [&str; 13] = [
    "token",
    "manufacturer",
    "serial",
    "model",
    "library-manufacturer",
    "library-version",
    "library-description",
    "slot-manufacturer",
    "slot-description",
    "slot-id",
    "object",
    "id",
    "type",
];
/// Those of them that are about the key; the others are about where it is.
const OF_KEY: [&str; 3] = ["object", "id", "type"];
/// Longest URI that is read, in bytes.
const BYTES_MAX: usize = 4096;
/// Longest CKA_ID, in bytes, so that it fits a slot's `key_version` in hexadecimal.
const ID_BYTES_MAX: usize = 128;

/// A PKCS #11 URI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Uri {
    /// One for each of [`PATH`].
    path: [Option<Vec<u8>>; PATH.len()],
    /// What the query says; `None` without a query.
    pub(super) query: Option<Query>,
}

/// What an operator says of how to reach the token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// `module-path`: the library.
    pub(super) module_path: Option<PathBuf>,
    /// `module-name`: the library, without directory, `lib` and `.so`.
    pub(super) module_name: Option<String>,
    /// `pin-source`: the file with the PIN.
    pub(super) pin_source: Option<PathBuf>,
}

impl Uri {
    /// Reads `pkcs11:path[?query]`.
    ///
    /// # Errors
    /// What is wrong, without the value of `pin-value`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("pkcs11:").ok_or("it does not begin with pkcs11:")?;
        if text.len() > BYTES_MAX {
            return Err(format!("it has more than {BYTES_MAX} bytes"));
        }
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let mut uri = Self::default();
        for part in path.split(';').filter(|_| !path.is_empty()) {
            uri.set(part)?;
        }
        uri.query = query.map(Query::parse).transpose()?;
        Ok(uri)
    }

    fn set(&mut self, part: &str) -> Result<(), String> {
        let (name, value) = split(part)?;
        let at = PATH.iter().position(|known| *known == name);
        let at = at.ok_or_else(|| format!("unknown attribute {name:?}; there are {PATH:?}"))?;
        // RFC 7512 section 2.3: pk11-pchar.
        let value = decode(name, value, b":[]@!$'()*+,=&")?;
        let problem = match name {
            "id" if value.is_empty() || value.len() > ID_BYTES_MAX => {
                Some(format!("has not 1 to {ID_BYTES_MAX} bytes"))
            }
            "id" => None,
            "type" if !matches!(&*value, b"private" | b"secret-key") => {
                Some("is neither private nor secret-key, and only these unwrap".to_owned())
            }
            "slot-id" => {
                match std::str::from_utf8(&value).map(|text| (text, text.parse::<u64>())) {
                    Ok((text, Ok(number))) if number.to_string() == text => None,
                    _ => Some("is not a number".to_owned()),
                }
            }
            _ if std::str::from_utf8(&value).is_err() => Some("is not UTF-8".to_owned()),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(format!("the attribute {name} {problem}"));
        }
        if self.path[at].replace(value).is_some() {
            return Err(format!("the attribute {name} is there twice"));
        }
        Ok(())
    }

    /// An attribute of the path as bytes.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let at = PATH.iter().position(|known| *known == name)?;
        self.path[at].as_deref()
    }

    /// An attribute of the path as text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.bytes(name).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The attributes that say where the key is, not which it is.
    pub(super) fn of_token(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let names = PATH.into_iter().filter(|name| !OF_KEY.contains(name));
        names.filter_map(|name| Some((name, self.text(name)?)))
    }

    /// Whether the path is empty: in an authorisation, that is about all keys.
    pub(super) fn is_general(&self) -> bool {
        self.path.iter().all(Option::is_none)
    }

    /// The one spelling of the path, without the query: what a key slot says.
    pub(super) fn canonical(&self) -> String {
        let attributes = PATH.iter().zip(&self.path).filter_map(|(name, value)| {
            let value = value.as_deref()?;
            Some(format!("{name}={}", encode(value, *name == "id")))
        });
        format!("pkcs11:{}", attributes.collect::<Vec<_>>().join(";"))
    }

    /// Whether both have the same path.
    pub(super) fn is_same_key(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for part in text.split('&') {
            let (name, value) = split(part)?;
            let twice = |was_there| match was_there {
                true => Err(format!("the attribute {name} is there twice")),
                false => Ok(()),
            };
            if name == "pin-value" {
                return Err(
                    "a PIN in a URI can be read by others and is remembered by the shell; \
                            put it into a file, and give pin-source=/PATH"
                        .to_owned(),
                );
            }
            // RFC 7512 section 2.3: pk11-qchar.
            let value = String::from_utf8(decode(name, value, b":[]@!$'()*+,=/?|")?)
                .map_err(|_| format!("the attribute {name} is not UTF-8"))?;
            match name {
                "module-path" => {
                    let path = absolute(name, &value)?;
                    twice(query.module_path.replace(path).is_some())?;
                }
                "module-name" => {
                    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
                    if value.is_empty() || !value.bytes().all(allowed) || value.starts_with('.') {
                        return Err("module-name is a name, without directories".to_owned());
                    }
                    twice(query.module_name.replace(value).is_some())?;
                }
                "pin-source" => {
                    let path = value.strip_prefix("file:").unwrap_or(&value);
                    let path = absolute(name, path.strip_prefix("//").unwrap_or(path))?;
                    twice(query.pin_source.replace(path).is_some())?;
                }
                _ => return Err(format!("unknown attribute {name:?} in the query")),
            }
        }
        Ok(query)
    }
}

fn split(part: &str) -> Result<(&str, &str), String> {
    part.split_once('=').ok_or_else(|| "an attribute has no value (name=value)".to_owned())
}

fn absolute(name: &str, value: &str) -> Result<PathBuf, String> {
    match PathBuf::from(value) {
        path if path.is_absolute() => Ok(path),
        _ => Err(format!("{name} has to be the absolute path of a file")),
    }
}

/// Percent-decoding (RFC 3986 section 2.1); `also` may stand beside the unreserved characters.
fn decode(name: &str, value: &str, also: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(format!("in {name}, a percent sign needs two hexadecimal digits"));
                };
                bytes.push((high << 4 | low) as u8);
            }
            byte if is_unreserved(byte) || also.contains(&byte) => bytes.push(byte),
            byte => {
                let shown = char::from(byte).escape_default();
                return Err(format!("in {name}, '{shown}' has to be written %{byte:02X}"));
            }
        }
    }
    if name != "id" && bytes.contains(&0) {
        return Err(format!("the attribute {name} contains a zero byte"));
    }
    Ok(bytes)
}

fn encode(value: &[u8], everything: bool) -> String {
    let encode = |byte: &u8| match is_unreserved(*byte) && !everything {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    value.iter().map(encode).collect()
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values come back decoded, and every spelling has one canonical form.
    #[test]
    fn spellings() {
        let text = "pkcs11:object=vol%20key;token=The%20HSM;id=%01%aB;type=secret-key;slot-id=7";
        let uri = Uri::parse(text).expect("it is one");
        assert_eq!(uri.text("token"), Some("The HSM"));
        assert_eq!(uri.bytes("id"), Some(&[1, 0xab][..]));
        let places: Vec<_> = uri.of_token().collect();
        assert_eq!(places, [("token", "The HSM"), ("slot-id", "7")]);
        let canonical = "pkcs11:token=The%20HSM;slot-id=7;object=vol%20key;id=%01%AB;\
                         type=secret-key";
        assert_eq!(uri.canonical(), canonical);
        assert_eq!(Uri::parse(canonical), Ok(uri));
        let lenient = Uri::parse("pkcs11:object=a+b,(c)[d]:e@f!g$h'i*j&k=l").expect("pk11-pchar");
        assert_eq!(lenient.text("object"), Some("a+b,(c)[d]:e@f!g$h'i*j&k=l"));
        assert_eq!(Uri::parse(&lenient.canonical()), Ok(lenient));
    }

    /// What the operator says of the module and the PIN.
    #[test]
    fn queries() {
        let text = "pkcs11:object=k?module-path=/usr/lib/x.so&pin-source=file:/run/pin%20of";
        let query = Uri::parse(text).expect("it is one").query.expect("it has one");
        assert_eq!(query.module_path, Some(PathBuf::from("/usr/lib/x.so")));
        assert_eq!(query.pin_source, Some(PathBuf::from("/run/pin of")));
        for source in ["pin-source=/a/b", "pin-source=file:/a/b", "pin-source=file:///a/b"] {
            let uri = Uri::parse(&format!("pkcs11:?{source}&module-name=softhsm2"));
            let uri = uri.expect("it is one");
            assert!(uri.is_general());
            let query = uri.query.expect("it has one");
            assert_eq!(query.pin_source, Some(PathBuf::from("/a/b")), "{source}");
            assert_eq!(query.module_name.as_deref(), Some("softhsm2"));
        }
    }

    /// Each way of being wrong is refused, with what is wrong.
    #[test]
    fn refusals() {
        let long_id = format!("pkcs11:id={}", "%00".repeat(129));
        let long = format!("pkcs11:object={}", "x".repeat(BYTES_MAX));
        for (text, part) in [
            ("pkcs12:object=k", "begin with"),
            (&long, "more than"),
            ("pkcs11:object", "no value"),
            ("pkcs11:object=k;", "no value"),
            ("pkcs11:object=a;object=b", "twice"),
            ("pkcs11:objekt=a", "unknown attribute"),
            ("pkcs11:x-vendor=a", "unknown attribute"),
            ("pkcs11:object=a b", "written %20"),
            ("pkcs11:object=a/b", "written %2F"),
            ("pkcs11:object=\u{e9}", "written %C3"),
            ("pkcs11:object=%e", "two hexadecimal"),
            ("pkcs11:object=%+1", "two hexadecimal"),
            ("pkcs11:object=%ff", "not UTF-8"),
            ("pkcs11:object=a%00b", "zero byte"),
            ("pkcs11:id=", "1 to 128"),
            (&long_id, "1 to 128"),
            ("pkcs11:type=public", "neither private"),
            ("pkcs11:slot-id=x", "not a number"),
            ("pkcs11:slot-id=07", "not a number"),
            ("pkcs11:object=a#b", "written %23"),
            ("pkcs11:object=a?", "no value"),
            ("pkcs11:?module-path=x.so", "absolute"),
            ("pkcs11:?module-path=/a&module-path=/b", "twice"),
            ("pkcs11:?module-name=../x", "without directories"),
            ("pkcs11:?pin-source=|cat", "absolute"),
            ("pkcs11:?pin-source=https://host/pin", "absolute"),
            ("pkcs11:?pin-source=file://host/pin", "absolute"),
            ("pkcs11:?x-more=1", "unknown attribute"),
        ] {
            let problem = Uri::parse(text).expect_err(text);
            assert!(problem.contains(part), "{text}: {problem}");
        }
        let problem = Uri::parse("pkcs11:object=k?pin-value=271828").expect_err("a PIN");
        assert!(problem.contains("pin-source=") && !problem.contains("271828"), "{problem}");
    }
}
