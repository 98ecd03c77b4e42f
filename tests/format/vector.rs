//! Reading vectors.

use std::collections::BTreeMap;
use std::path::Path;

/// A vector: its file name without extension, its fields, and its body, if it has one.
pub struct Vector {
    pub name: String,
    /// What follows the line `# body`, byte for byte.
    pub body: String,
    fields: BTreeMap<String, String>,
}

impl Vector {
    /// All vectors of the folder `kind`, in order of name; there must be `count`.
    pub fn load(kind: &str, count: usize) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/vectors").join(kind);
        let mut vectors: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| Self::parse(&entry.expect("the folder is readable").path()))
            .collect();
        vectors.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(vectors.len(), count, "vectors of {kind} came or went: adjust the count");
        vectors
    }

    fn parse(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a vector is text");
        let mut fields = BTreeMap::<String, String>::new();
        let mut last = String::new();
        let body_at = text.find("\n\n#").map_or(text.len(), |at| at + 3);
        let (head, body) = text.split_at(body_at);
        let body = body.split_once('\n').map_or(String::new(), |(_, body)| body.to_owned());
        for line in head.trim_end_matches('#').lines().filter(|line| !line.is_empty()) {
            if let Some(more) = line.strip_prefix("  ") {
                fields.get_mut(&last).expect("a field is continued").push_str(more);
                continue;
            }
            let (field, value) = line.split_once(':').expect("a line is `field: value`");
            last = field.to_owned();
            let earlier = fields.insert(last.clone(), value.trim_start().to_owned());
            assert!(earlier.is_none(), "{}: {field} twice", path.display());
        }
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let vector = Self { name, body, fields };
        assert!(!vector.text("comment").is_empty(), "{}: say why", path.display());
        vector
    }

    /// A field as text.
    pub fn text(&self, field: &str) -> &str {
        self.fields.get(field).unwrap_or_else(|| panic!("{}: no {field}", self.name))
    }

    /// A field as bytes.
    pub fn bytes(&self, field: &str) -> Vec<u8> {
        let text = self.text(field);
        assert_eq!(text.len() % 2, 0, "{}: {field}", self.name);
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
            .collect()
    }

    /// Whether the vector must succeed.
    pub fn expects_ok(&self) -> bool {
        self.text("expect") == "ok"
    }
}
