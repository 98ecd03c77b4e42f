//! As much of Rust's grammar as the rules need: where comments and strings are, which brace closes
//! which, and what a path starts with.

/// A file without its comments and strings; every line and column is where it was.
pub struct Code {
    pub text: String,
    /// The line on which an inline `#[cfg(test)] mod` starts, which is the last thing in a file.
    pub test_line: usize,
}

/// A function with a body.
pub struct Function {
    pub name: String,
    /// Line of its `fn`.
    pub line: usize,
    /// From its `fn` to its closing brace.
    pub lines: usize,
}

impl Code {
    pub fn new(source: &str) -> Self {
        let text = blanked(source);
        let lines: Vec<&str> = text.lines().collect();
        let starts_tests = |pair: &[&str]| {
            pair[0].trim() == "#[cfg(test)]" && text_starts_module(pair[1]) && pair[1].contains('{')
        };
        let index = lines.windows(2).position(starts_tests);
        Self { test_line: index.map_or(usize::MAX, |index| index + 1), text }
    }

    /// The code above the unit tests.
    pub fn without_tests(&self) -> String {
        let lines: Vec<&str> = self.text.lines().take(self.test_line).collect();
        lines.join("\n")
    }

    /// Whether a line starts with the macro call `call` and nothing uses what it returns.
    pub fn is_bare_statement(&self, line: usize, call: &str) -> bool {
        let start: usize = self.text.split_inclusive('\n').take(line - 1).map(str::len).sum();
        let rest = self.text[start..].trim_start_matches(' ');
        let Some(arguments) = rest.strip_prefix(call) else { return false };
        let Some(end) = closing(arguments, '(', ')') else { return false };
        arguments[end + 1..].trim_start().starts_with(';')
    }

    pub fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for (at, _) in self.text.match_indices("fn ") {
            if self.text[..at].ends_with(is_word) {
                continue;
            }
            let rest = &self.text[at + 3..];
            let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
            let Some(body) = body_of(rest) else { continue };
            let Some(end) = closing(&rest[body + 1..], '{', '}') else { continue };
            if !name.is_empty() {
                let lines = 1 + count_lines(&rest[..body + 1 + end]);
                functions.push(Function { name, line: 1 + count_lines(&self.text[..at]), lines });
            }
        }
        functions
    }
}

/// Whether `word` occurs in `line` as a whole word.
pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
    })
}

/// The line and the name of each thing that `code` takes from `root`: `root::name` and
/// `root::{name, ...}`.
pub fn named_after(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    let prefix = format!("{root}::");
    for (at, _) in code.match_indices(&prefix) {
        if code[..at].ends_with(|c| is_word(c) || c == ':') {
            continue;
        }
        let line = 1 + count_lines(&code[..at]);
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{').and_then(|group| Some(&group[..closing(group, '{', '}')?])) {
            Some(group) => named.extend(first_words(group).map(|word| (line, word))),
            None => named.push((line, rest.chars().take_while(|c| is_word(*c)).collect())),
        }
    }
    named
}

/// The first word of each member of `a::{b, c}, d::e, f`.
fn first_words(group: &str) -> impl Iterator<Item = String> {
    let mut depth = 0;
    let members = group.split(move |c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    members.map(|member| member.trim().chars().take_while(|c| is_word(*c)).collect())
}

fn text_starts_module(line: &str) -> bool {
    line.trim_start_matches("pub ").starts_with("mod ")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn count_lines(text: &str) -> usize {
    text.matches('\n').count()
}

/// Where the bracket is closed that was opened just before `text`.
fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, c)| {
        depth += i32::from(c == open) - i32::from(c == close);
        (depth < 0).then_some(at)
    })
}

/// Where the body of a function starts; a signature in a trait ends at a semicolon instead, which
/// is another than that of an array type.
fn body_of(signature: &str) -> Option<usize> {
    let mut depth = 0;
    let end = signature.char_indices().find(|(_, c)| {
        depth += i32::from("([".contains(*c)) - i32::from(")]".contains(*c));
        depth == 0 && "{;".contains(*c)
    });
    end.filter(|(_, c)| *c == '{').map(|(at, _)| at)
}

/// Replaces comments, strings and character literals by spaces.
fn blanked(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let count = skipped(rest, text.ends_with(is_word));
        if count == 0 {
            text.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            text.extend(rest[..count].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[count..];
        }
    }
    text
}

/// How many bytes of what is not code `rest` begins with.
fn skipped(rest: &str, after_word: bool) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return rest.find("*/").map_or(rest.len(), |end| end + 2);
    }
    if let Some(raw) = rest.strip_prefix('r').filter(|_| !after_word) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = 1 + hashes + 1;
            let found = rest[start..].find(&end);
            return found.map_or(rest.len(), |at| start + at + end.len());
        }
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    // A lifetime has no second quote behind its first character.
    let mut following = rest.chars().skip(1);
    if rest.starts_with('\'') && (following.next() == Some('\\') || following.next() == Some('\''))
    {
        return quoted(rest, '\'');
    }
    0
}

/// The length of a literal with escapes, its quotes included.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = rest.char_indices().skip(1).find(|(_, c)| {
        let ends = !escaped && *c == quote;
        escaped = !escaped && *c == '\\';
        ends
    });
    end.map_or(rest.len(), |(at, _)| at + 1)
}

#[test]
fn comments_and_literals_are_blanked() {
    let source = "a /* b */ 'c' \"d\\\"e\" r#\"f\"g\"# '\\'' &'h i b\"j\" // k\nl";
    let words: Vec<String> = Code::new(source).text.split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["a", "&'h", "i", "b", "l"]);
}

#[test]
fn functions_are_found_whatever_their_signature_holds() {
    let source = "trait T { fn a(&self) -> [u8; 4]; }\nfn b(x: [u8; 4]) -> [u8; 2]\n{\n}\n";
    let found = Code::new(source).functions();
    let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
    assert_eq!(found, [("b", 2, 3)]);
}
