//! App settings: names and values, from a file and the environment.
//!
//! A file is JSON, either one object (`{"NAME": "VALUE"}`) or the list that Azure's tools export
//! (`[{"name": …, "value": …, "slotSetting": …}]`), or lines of `NAME=VALUE`, where the value is
//! all up to the end of the line, and lines that are empty or begin with `#` say nothing. What a
//! file says wins over the environment: that cannot be changed while a program runs.
//!
//! Values may be secrets: no message quotes one.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

/// Largest file of settings, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Values by name. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Settings(BTreeMap<String, Zeroizing<String>>);

/// Why a file of settings is refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("cannot read the settings {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not what a file of settings is.
    #[error("{}:{line}:{column}: {problem}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In bytes, from 1; 0 if it is the line as a whole.
        column: usize,
        /// What is wrong, and how to write it.
        problem: String,
    },
}

impl Settings {
    /// Those of a file.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn of_file(path: &Path) -> Result<Self, SettingsError> {
        let failed = |source| SettingsError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            let problem = format!("it has more than {FILE_BYTES_MAX} bytes");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, problem)));
        }
        parse(&bytes).map_err(|Problem { line, column, problem }| SettingsError::Malformed {
            path: path.to_owned(),
            line,
            column,
            problem,
        })
    }

    /// Those of an environment; what is not UTF-8 is left out.
    pub fn of_environment(variables: impl Iterator<Item = (String, String)>) -> Self {
        Self(variables.map(|(name, value)| (name, Zeroizing::new(value))).collect())
    }

    /// These, and over them those of `over`.
    #[must_use]
    pub fn overlaid(mut self, over: &Self) -> Self {
        self.0.extend(over.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        self
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.as_str())
    }

    /// Sets a value.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), Zeroizing::new(value.to_owned()));
    }

    /// All names and values, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether both have the same values.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

struct Problem {
    line: usize,
    column: usize,
    problem: String,
}

fn parse(bytes: &[u8]) -> Result<Settings, Problem> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Problem { line, column, problem: "this is not UTF-8".to_owned() }
    })?;
    match text.trim_start().as_bytes().first() {
        Some(b'{' | b'[') => parse_json(text),
        _ => parse_lines(text),
    }
}

fn parse_lines(text: &str) -> Result<Settings, Problem> {
    let mut values = BTreeMap::new();
    for (line, content) in (1..).zip(text.lines()) {
        let refuse = |column, problem: &str| Problem { line, column, problem: problem.to_owned() };
        if content.trim().is_empty() || content.trim_start().starts_with('#') {
            continue;
        }
        let Some((name, value)) = content.split_once('=') else {
            let problem = "there is no = behind the name; write NAME=VALUE, or one JSON object";
            return Err(refuse(content.len() + 1, problem));
        };
        check_name(name).map_err(|(at, problem)| refuse(at + 1, problem))?;
        check_value(value).map_err(|problem| refuse(name.len() + 2, problem))?;
        if values.insert(name.to_owned(), Zeroizing::new(value.to_owned())).is_some() {
            return Err(refuse(1, &format!("{name} is there twice")));
        }
    }
    Ok(Settings(values))
}

/// What is wrong with a name, and at which byte.
fn check_name(name: &str) -> Result<(), (usize, &'static str)> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    if name.is_empty() {
        return Err((0, "the name is missing; write NAME=VALUE"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err((NAME_BYTES_MAX, "the name is too long"));
    }
    match name.bytes().position(|byte| !allowed(byte)) {
        Some(at) => Err((at, "names have letters, digits and _ - . : only")),
        None => Ok(()),
    }
}

fn check_value(value: &str) -> Result<(), &'static str> {
    if value.contains('\0') { Err("a value has no NUL bytes") } else { Ok(()) }
}

fn parse_json(text: &str) -> Result<Settings, Problem> {
    let document: Document = serde_json::from_str(text).map_err(|error| {
        let problem = match error.classify() {
            serde_json::error::Category::Eof => "it ends too early; is a bracket missing?".into(),
            serde_json::error::Category::Data => words_of(&error.to_string()),
            _ => "this is not JSON; look for a comma, quote or bracket that is missing".to_owned(),
        };
        Problem { line: error.line(), column: error.column(), problem }
    })?;
    Ok(Settings(document.0))
}

/// The words of the visitors below, of serde's message around them: that has the place behind them,
/// and may quote a value before them.
fn words_of(message: &str) -> String {
    let words = message.rsplit_once(" at line ").map_or(message, |(words, _)| words);
    match words.rsplit_once(", expected ") {
        Some((_, expected)) => format!("this is to be {expected}"),
        None => words.to_owned(),
    }
}

/// All of a JSON file.
struct Document(BTreeMap<String, Zeroizing<String>>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor).map(Self)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = BTreeMap<String, Zeroizing<String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of settings, or a list of them")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let Text(value) = map.next_value()?;
            insert(&mut values, name, value)?;
        }
        Ok(values)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut values = BTreeMap::new();
        while let Some(Exported { name, value }) = list.next_element()? {
            insert(&mut values, name, value)?;
        }
        Ok(values)
    }
}

fn insert<E: de::Error>(
    values: &mut BTreeMap<String, Zeroizing<String>>,
    name: String,
    value: Zeroizing<String>,
) -> Result<(), E> {
    check_name(&name).map_err(|(_, problem)| E::custom(problem))?;
    check_value(&value).map_err(E::custom)?;
    if values.contains_key(&name) {
        return Err(E::custom(format_args!("{name} is there twice")));
    }
    values.insert(name, value);
    Ok(())
}

/// A text, and nothing else.
struct Text(Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Self)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Zeroizing<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in double quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Zeroizing::new(text.to_owned()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Err(E::custom("null is no value; write \"\", or leave the setting out"))
    }
}

/// One of an exported list.
struct Exported {
    name: String,
    value: Zeroizing<String>,
}

impl<'de> Deserialize<'de> for Exported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ExportedVisitor)
    }
}

struct ExportedVisitor;

impl<'de> Visitor<'de> for ExportedVisitor {
    type Value = Exported;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with name and value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Exported, A::Error> {
        let (mut name, mut value) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "name" => name = Some(map.next_value::<Text>()?.0.to_string()),
                "value" => value = Some(map.next_value::<Text>()?.0),
                "slotSetting" => drop(map.next_value::<de::IgnoredAny>()?),
                _ => {
                    let problem = "a setting of a list has name, value and slotSetting only";
                    return Err(de::Error::custom(problem));
                }
            }
        }
        match (name, value) {
            (Some(name), Some(value)) => Ok(Exported { name, value }),
            _ => Err(de::Error::custom("a setting of a list has a name and a value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, (usize, usize, String)> {
        parse(text.as_bytes()).map_err(|error| (error.line, error.column, error.problem))
    }

    /// The same two settings in every form.
    #[test]
    fn forms() {
        for text in [
            r#"{"A": "1", "Logging:Level": "x=y"}"#,
            r#"[{"name": "A", "slotSetting": false, "value": "1"},
                {"value": "x=y", "name": "Logging:Level"}]"#,
            "A=1\n\n# a comment\n  # another\nLogging:Level=x=y\n",
            "\u{feff}A=1\r\nLogging:Level=x=y\r\n",
        ] {
            let settings = read(text).expect(text);
            let found: Vec<_> = settings.iter().collect();
            assert_eq!(found, [("A", "1"), ("Logging:Level", "x=y")], "{text}");
        }
        assert!(read("").expect("nothing").iter().next().is_none());
    }

    /// Every refusal says where, and quotes no value.
    #[test]
    fn refusals() {
        let mut wrong = Vec::new();
        for (text, line, column, words) in [
            ("A=1\nB", 2, 2, "no ="),
            ("A=1\n=s3cret", 2, 1, "name is missing"),
            ("A B=s3cret", 1, 2, "letters, digits"),
            ("A=1\nA=s3cret", 2, 1, "twice"),
            ("A=\0s3cret", 1, 3, "NUL"),
            ("{\"A\": \"s3cret\"", 1, 14, "ends too early"),
            ("{\n  \"A\": s3cret\n}", 2, 8, "not JSON"),
            ("{\n  \"A\": 5\n}", 2, 8, "text in double quotes"),
            ("{\"A\": {\"s3cret\": 1}}", 1, 7, "text in double quotes"),
            ("{\"A\": [\"s3cret\"]}", 1, 7, "text in double quotes"),
            ("{\"A\": null}", 1, 10, "null"),
            ("{\"A\": \"s3cret\", \"A\": \"x\"}", 1, 25, "twice"),
            ("[{\"name\": \"A\"}]", 1, 14, "a name and a value"),
            ("[{\"name\": \"A\", \"kind\": \"s3cret\"}]", 1, 21, "slotSetting only"),
            ("[\"s3cret\"]", 1, 9, "an object with name"),
        ] {
            let (at_line, at_column, problem) = read(text).expect_err(text);
            assert!(problem.contains(words), "{text:?}: {problem}");
            assert!(!problem.contains("s3cret"), "{text:?}: {problem}");
            if (at_line, at_column) != (line, column) {
                wrong.push((text, at_line, at_column));
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
        let Err(problem) = parse(b"A=1\nB=\xff") else { panic!("it is not UTF-8") };
        assert_eq!((problem.line, problem.column), (2, 3));
    }

    /// A file wins over the environment, and nothing shows a value.
    #[test]
    fn layers() {
        let pairs = [("A", "1"), ("B", "s3cret")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let settings = Settings::of_environment(pairs.into_iter());
        let settings = settings.overlaid(&read("A=2\nC=3").expect("settings"));
        let found: Vec<_> = settings.iter().collect();
        assert_eq!(found, [("A", "2"), ("B", "s3cret"), ("C", "3")]);
        assert_eq!(format!("{settings:?}"), r#"{"A", "B", "C"}"#);
    }
}
