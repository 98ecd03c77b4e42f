//! Names of members: which characters they are written in, and which are refused.

use std::borrow::Cow;

use super::limits::Limits;
use super::record::{Central, extra, field, flag, u32_at};
use crate::sys::inflate::crc32;

/// The upper half of code page 437, which names are written in that say nothing else (APPNOTE.TXT
/// 6.3.10, appendix D).
const CODE_PAGE_437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";
/// Systems whose programs write names as the host has them, which is UTF-8 by now.
const HOSTS_WITH_UTF8: [u8; 2] = [3, 19];

/// The name in UTF-8.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(super) fn decode<'a>(entry: &Central<'a>) -> Result<Cow<'a, str>, &'static str> {
    if entry.name.is_ascii() {
        return text(entry.name);
    }
    if entry.flags & flag::UTF8 != 0 {
        return text(entry.name);
    }
    if let Some(path) = unicode_path(entry) {
        return text(path);
    }
    match std::str::from_utf8(entry.name) {
        Ok(name) if HOSTS_WITH_UTF8.contains(&entry.host) => Ok(name.into()),
        _ => Ok(entry.name.iter().map(|byte| from_code_page_437(*byte)).collect()),
    }
}

fn text(name: &[u8]) -> Result<Cow<'_, str>, &'static str> {
    std::str::from_utf8(name).map(Cow::from).map_err(|_| "says that it is UTF-8, and is not")
}

/// The name in an Info-ZIP Unicode Path field (section 4.6.9), if that is of this name.
fn unicode_path<'a>(entry: &Central<'a>) -> Option<&'a [u8]> {
    let value = field(entry.extra, extra::UNICODE_PATH)?;
    let (head, path) = value.split_at_checked(5)?;
    (head[0] == 1 && u32_at(head, 1) == crc32(0, entry.name)).then_some(path)
}

fn from_code_page_437(byte: u8) -> char {
    match byte.checked_sub(0x80) {
        None => byte.into(),
        Some(upper) => CODE_PAGE_437.chars().nth(upper.into()).expect("it has 128 characters"),
    }
}

/// Checks a path, and appends it to `paths` without what says nothing: "." and the slash at the
/// end. Returns whether that slash was there, which says that it is a directory.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(super) fn append(path: &str, paths: &mut Vec<u8>) -> Result<bool, &'static str> {
    let start = paths.len();
    if path.is_empty() {
        return Err("is empty");
    }
    if path.starts_with('/') {
        return Err("is absolute");
    }
    if let [letter, b':', ..] = path.as_bytes() {
        if letter.is_ascii_alphabetic() {
            return Err("begins with a drive letter");
        }
    }
    let (inner, is_directory) = match path.strip_suffix('/') {
        Some(inner) => (inner, true),
        None => (path, false),
    };
    for part in inner.split('/') {
        match part {
            "" => return Err("has an empty part"),
            ".." => return Err("leads out of its directory"),
            "." => continue,
            _ if part.len() > Limits::NAME_BYTES_MAX => {
                return Err("has a part that is longer than 255 bytes");
            }
            _ if part.contains('\0') => return Err("holds a NUL"),
            _ if part.contains('\\') => {
                return Err("holds a backslash: parts of names are divided by slashes");
            }
            _ => {}
        }
        if paths.len() > start {
            paths.push(b'/');
        }
        paths.extend_from_slice(part.as_bytes());
    }
    match paths.len() - start {
        0 if is_directory => Ok(true),
        0 => Err("is no name"),
        length if length > Limits::PATH_BYTES_MAX => Err("is longer than 4095 bytes"),
        _ => Ok(is_directory),
    }
}
