//! What others say, made fit to be shown: bounded, one line, and without what could be a secret.

use base64::Engine;
use zeroize::Zeroizing;

use crate::crypto::Secret;

/// Longest text that is shown, in characters; of a longer one the beginning and the end are.
const SHOWN_MAX: usize = 400;
const SHOWN_BEGINNING: usize = 120;
/// Characters of a run of base64 or hexadecimal digits that could be a key: 16 bytes have 22 and
/// 32.
const BASE64_RUN: usize = 22;
const HEX_RUN: usize = 32;
/// Bytes written as `\x00` in one word that could be a key.
const ESCAPED_BYTES: usize = 4;

/// Text of a service or plugin as it may be shown. Control and format characters become `?`; words
/// that look like key material, tokens or wrapped keys become `[hidden]`. That is a second line of
/// defence: who writes a secret in words of its own is not stopped.
pub(super) fn presentable(text: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(text) else {
        return format!("({} bytes that are not text)", text.len());
    };
    let words = text.split_whitespace().map(|word| match looks_secret(word) {
        true => "[hidden]".to_owned(),
        false => word.chars().map(|c| if is_plain(c) { c } else { '?' }).collect(),
    });
    let line = words.collect::<Vec<String>>().join(" ");
    let count = line.chars().count();
    if count <= SHOWN_MAX {
        return line;
    }
    let beginning: String = line.chars().take(SHOWN_BEGINNING).collect();
    let end: String = line.chars().skip(count - (SHOWN_MAX - SHOWN_BEGINNING)).collect();
    format!("{beginning} [...] {end}")
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || c.is_ascii_graphic()
}

fn looks_secret(word: &str) -> bool {
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let mixed = |run: &str| {
        run.len() >= BASE64_RUN
            && run.contains(|c: char| c.is_ascii_digit())
            && run.contains(|c: char| c.is_ascii_uppercase())
            && run.contains(|c: char| c.is_ascii_lowercase())
    };
    word.split(|c| !is_base64(c)).any(mixed)
        || word.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() >= HEX_RUN)
        || word.matches("\\x").count() >= ESCAPED_BYTES
}

/// The secret that `text` says in base64, of 1 to `bytes_max` bytes; leaves no copy of it.
pub(super) fn decode_secret(engine: &impl Engine, text: &str, bytes_max: usize) -> Option<Secret> {
    if text.len() > bytes_max.div_ceil(3) * 4 {
        return None;
    }
    // The decoder estimates its output in whole groups of three bytes.
    let mut decoded = Zeroizing::new(vec![0; bytes_max.div_ceil(3) * 3 + 3]);
    let length = engine.decode_slice(text, &mut decoded).ok()?;
    let bytes = (1..=bytes_max).contains(&length).then(|| &decoded[..length])?;
    Some(Secret::from_fn(length, |target| target.copy_from_slice(bytes)))
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;
    use crate::crypto::random;

    /// Words stay, and so do paths and identifiers; lines become one, and what moves the cursor or
    /// turns the writing round is taken out.
    #[test]
    fn shows_words() {
        for (text, shown) in [
            ("", ""),
            ("  two\n\n\tlines\r\n", "two lines"),
            ("clear\u{1b}[2Jed \u{202e}x \u{7}", "clear?[2Jed ?x ?"),
            ("schlüssel für größe", "schlüssel für größe"),
            (
                "File \"/usr/lib/python3.11/site-packages/cryptography/hazmat/keywrap.py\", line 9",
                "File \"/usr/lib/python3.11/site-packages/cryptography/hazmat/keywrap.py\", line 9",
            ),
            (
                "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
                "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            ),
        ] {
            assert_eq!(presentable(text.as_bytes()), shown);
        }
        assert_eq!(presentable(b"\xff\xfe"), "(2 bytes that are not text)");
        let long = presentable(format!("begin {} end", "word ".repeat(10_000)).as_bytes());
        assert!(long.chars().count() < SHOWN_MAX + 10, "{} characters", long.chars().count());
        assert!(long.starts_with("begin word") && long.ends_with("word end"), "{long}");
    }

    /// Random keys of 16 and 32 bytes are hidden however they are usually written.
    #[test]
    fn hides_keys() {
        for length in [16, 32] {
            for _ in 0..200 {
                let key = random::secret(length);
                let hex: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
                let escaped: String =
                    key.expose().iter().map(|byte| format!("\\x{byte:02x}")).collect();
                let base64 = STANDARD.encode(key.expose());
                let unpadded = URL_SAFE_NO_PAD.encode(key.expose());
                // One in several hundred has no digit, or no letter of one case.
                let usual = |text: &str| {
                    text.contains(|c: char| c.is_ascii_digit())
                        && text.contains(|c: char| c.is_ascii_uppercase())
                        && text.contains(|c: char| c.is_ascii_lowercase())
                };
                for written in [hex.to_uppercase(), hex, escaped, base64, unpadded] {
                    if !written.contains("\\x") && written.len() < 60 && !usual(&written) {
                        continue;
                    }
                    let shown = presentable(format!("key=\"{written}\" is bad").as_bytes());
                    assert_eq!(shown, "[hidden] is bad");
                }
            }
        }
    }

    /// Every length up to the bound is decoded to the same bytes, and nothing else is.
    #[test]
    fn decodes() {
        for length in 1..=64 {
            let key = random::secret(length);
            let text = STANDARD.encode(key.expose());
            assert!(decode_secret(&STANDARD, &text, 64).is_some_and(|found| found.is_same(&key)));
            assert!(decode_secret(&STANDARD, &text, length - 1).is_none());
            assert!(decode_secret(&STANDARD, &text[1..], 64).is_none());
        }
        for text in ["", "=", "AA", "A A=", "AAA\u{e9}", &"A".repeat(100_000)] {
            assert!(decode_secret(&STANDARD, text, 64).is_none(), "{text:.20}");
        }
    }
}
