//! Which kind of archive something is, by its first bytes: a package is a ZIP, whatever its name or
//! `Content-Type` says.

/// How many of the first bytes [`kind_of`] looks at: `ustar` is at 257.
pub const HEAD_BYTES: usize = 512;

/// What the first bytes of a file tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ZIP, or something that a ZIP may have before it: its end decides.
    MaybeZip,
    /// Something else, with its name and what to do.
    Other(&'static str),
}

/// Offset, first bytes, and what begins with them.
const MAGIC: &[(usize, &[u8], &str)] = &[
    (0, b"\x1f\x8b", "a GZIP file (.gz, .tgz)"),
    (257, b"ustar", "a TAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"\xfd7zXZ\x00", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"MSCF", "a cabinet file"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<!doctype", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<?xml", "an XML document"),
    (0, b"{", "a JSON document"),
];

/// What a file is that begins with `head`: its first [`HEAD_BYTES`] bytes, or all if it is shorter.
pub fn kind_of(head: &[u8]) -> Kind {
    // A BOM before text.
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let found = MAGIC.iter().find(|(offset, magic, _)| {
        let bytes = if *offset == 0 { text } else { head };
        bytes.get(*offset..).is_some_and(|rest| rest.starts_with(magic))
    });
    found.map_or(Kind::MaybeZip, |(_, _, name)| Kind::Other(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind is named; a ZIP, an empty ZIP and a program in front of one may be one.
    #[test]
    fn kinds() {
        let mut tar = vec![b'a'; HEAD_BYTES];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, word) in [
            (b"\x1f\x8b\x08\x00".as_slice(), "GZIP"),
            (&tar, "TAR"),
            (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z"),
            (b"Rar!\x1a\x07\x01\x00", "RAR"),
            (b"Rar!\x1a\x07\x00", "RAR"),
            (b"\xfd7zXZ\x00\x00", "xz"),
            (b"\x28\xb5\x2f\xfd\x04", "Zstandard"),
            (b"BZh91AY", "bzip2"),
            (b"\xef\xbb\xbf<?xml version", "XML"),
            (b"<!DOCTYPE html>", "HTML"),
        ] {
            let kind = kind_of(head);
            assert!(matches!(kind, Kind::Other(name) if name.contains(word)), "{word}: {kind:?}");
        }
        for head in [b"PK\x03\x04".as_slice(), b"PK\x05\x06", b"#!/bin/sh\n", b"\x7fELF", b""] {
            assert_eq!(kind_of(head), Kind::MaybeZip);
        }
    }
}
