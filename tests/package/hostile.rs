//! Archives that nobody should serve, one for each thing that is refused, with what is to be said
//! about it; and such that look hostile and are not.

use atrest::package::{Limits, Package, Progress};

use super::zip::{
    DEFLATED, Member, STORED, Zip, deflate, directory, field, file, link, open, read, zip,
};

/// The words that refuse an archive, with their causes.
fn refusal(bytes: Vec<u8>, limits: &Limits) -> Option<String> {
    let error = open(bytes, limits).err()?;
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    Some(text)
}

/// Each archive is refused when it is opened, in these words.
fn refused(cases: &[(&str, Zip, &str)]) {
    for (what, archive, expected) in cases {
        let said = refusal(archive.bytes(), &Limits::default());
        let said = said.unwrap_or_else(|| panic!("{what}: it was accepted"));
        assert!(said.contains(expected), "{what}: {said:?} is to say {expected:?}");
    }
}

/// Each archive opens, and then `check_headers`, or reading, fails in these words.
fn fails(cases: &[(&str, Zip, &str)]) {
    for (what, archive, expected) in cases {
        let package = archive.open().unwrap_or_else(|error| panic!("{what}: {error}"));
        let failed = package.verify(2, &Progress::default()).expect_err(what);
        let said = format!("{}: {}", failed[0], failed[0].error);
        assert!(said.contains(expected), "{what}: {said:?} is to say {expected:?}");
        let id = package.index().find(failed[0].path.as_bytes()).expect("named by its path");
        let read = package.read(id, 0, 1 << 20, &mut Vec::new());
        assert!(read.is_err(), "{what}: it is served");
    }
}

fn named(name: &[u8]) -> Zip {
    zip(&[Member { name: name.into(), ..file("x", b"content") }])
}

#[test]
fn names() {
    let long = [b'n'; 256];
    let deep = "d/".repeat(2047) + "xy";
    refused(&[
        ("traversal", named(b"../etc/passwd"), "leads out of its directory"),
        ("traversal inside", named(b"a/../../etc/passwd"), "leads out of its directory"),
        ("traversal that stays", named(b"a/../b"), "leads out of its directory"),
        ("dots alone", named(b".."), "leads out of its directory"),
        ("absolute", named(b"/etc/passwd"), "is absolute"),
        ("two slashes", named(b"//host/share"), "is absolute"),
        ("drive letter", named(b"C:/Windows/x"), "begins with a drive letter"),
        ("drive letter alone", named(b"c:x"), "begins with a drive letter"),
        ("backslash", named(br"..\..\x"), "holds a backslash"),
        ("backslash as divider", named(br"css\site.css"), "holds a backslash"),
        ("NUL", named(b"index.html\0.png"), "holds a NUL"),
        ("empty", named(b""), "is empty"),
        ("only a slash", named(b"/"), "is absolute"),
        ("empty part", named(b"a//b"), "has an empty part"),
        ("dot as a file", named(b"."), "is no name"),
        ("long part", named(&long), "longer than 255 bytes"),
        ("long path", named(deep.as_bytes()), "longer than 4095 bytes"),
    ]);
    let bad = Member { name: b"\xff\xfe".to_vec(), flags: 1 << 11, ..file("x", b"") };
    refused(&[("bad UTF-8", zip(&[bad]), "says that it is UTF-8, and is not")]);
    let harmless = zip(&[
        file("./a", b"1"),
        directory("./"),
        file("...", b"2"),
        file("b..c/..d", b"3"),
        file(&"ä".repeat(127), b"4"),
    ]);
    let package = harmless.open().unwrap();
    assert_eq!((read(&package, "a"), read(&package, "...")), (b"1".to_vec(), b"2".to_vec()));
    assert_eq!(read(&package, "b..c/..d"), b"3");
}

#[test]
fn collisions() {
    let of = |names: &[&str]| {
        let member =
            |name: &&str| if name.ends_with('/') { directory(name) } else { file(name, b"x") };
        zip(&names.iter().map(member).collect::<Vec<_>>())
    };
    refused(&[
        ("twice", of(&["a", "b", "a"]), "are there twice"),
        ("twice by a dot", of(&["d/a", "./d/./a"]), "are there twice"),
        ("directory twice", of(&["d/", "d/"]), "are there twice"),
        ("file and directory", of(&["a", "a/"]), "one is a file and the other a directory"),
        ("file and parent", of(&["a/b", "a"]), "one is a file and the other a directory"),
        ("file and grandparent", of(&["a/b/c", "x", "a"]), "one is a file and the other"),
        ("case", of(&["Index.html", "index.html"]), "differ in case only"),
        ("case of a directory", of(&["A/x", "a/y"]), "differ in case only"),
        ("case beyond ASCII", of(&["ÄRGER", "ärger"]), "differ in case only"),
    ]);
    let limits = Limits { allow_case_collisions: true, ..Limits::default() };
    let package = open(of(&["Index.html", "index.html"]).bytes(), &limits).unwrap();
    assert_eq!(package.index().len(), 3);
    // Names that sort around a directory's entries are no collisions.
    of(&["a", "a.txt", "a-b", "ab/c", "a b"]).open().unwrap();
    of(&["d.e/x", "d/x", "d-e/x", "d/"]).open().unwrap();
}

#[test]
fn overlaps() {
    let (a, b) = (file("a", &[b'x'; 5000]), file("b", b"y"));
    let twice = Member { header: Some(0), name: b"a".to_vec(), ..file("b", &[b'x'; 5000]) };
    let twice = Member { name: b"c".to_vec(), ..twice };
    // A header inside the data of another member, as in a bomb that counts its bytes many times.
    let inside = Member { header: Some(40), ..b.clone() };
    let beyond = Member { header: Some(0x7fff_0000), ..b.clone() };
    let long = Member { compressed_size: Some(100_000), size: Some(100_000), method: STORED, ..b };
    refused(&[
        ("one header for two", zip(&[a.clone(), twice]), "overlap"),
        ("inside another", zip(&[a.clone(), inside]), "overlap"),
        ("beyond the directory", zip(&[a.clone(), beyond]), "does not end before"),
        ("data beyond the directory", zip(&[a, long]), "does not end before"),
    ]);
    // Extra fields of the local header that reach into the data of the next member.
    let wide = Member { local_extra: field(0xcafe, &[0; 60]), ..file("a", b"x") };
    let wide = Member { after: Vec::new(), ..wide };
    let mut bytes = zip(&[wide, file("b", b"y")]).bytes();
    let place = bytes.windows(2).position(|pair| pair == [64, 0]).unwrap();
    bytes[place] = 96;
    let package = open(bytes, &Limits::default()).unwrap();
    let failed = package.check_headers(1).unwrap_err();
    assert_eq!((failed.path.as_str(), failed.error.to_string().contains("header")), ("a", true));
}

#[test]
fn methods() {
    let of = |method| zip(&[Member { method, ..file("x", b"content") }]);
    refused(&[
        ("bzip2", of(12), "is compressed by bzip2"),
        ("lzma", of(14), "is compressed by lzma"),
        ("zstd", of(93), "is compressed by zstd"),
        ("deflate64", of(9), "is compressed by deflate64"),
        ("unknown", of(1234), "is compressed by method 1234"),
    ]);
    let flagged = |flags| zip(&[Member { flags, ..file("x", b"content") }]);
    refused(&[
        ("encrypted", flagged(1), "is encrypted"),
        ("strongly encrypted", flagged(1 | 1 << 6), "is encrypted"),
        ("masked", flagged(1 << 13), "is encrypted"),
        ("AES", zip(&[Member { method: 99, flags: 1, ..file("x", b"c") }]), "is encrypted"),
        ("patch", flagged(1 << 5), "is a patch"),
    ]);
}

#[test]
fn kinds() {
    let of = |attributes: u32| zip(&[Member { attributes: attributes << 16, ..file("x", b"") }]);
    refused(&[
        ("FIFO", of(0o010644), "is a device, FIFO or socket"),
        ("device", of(0o060644), "is a device, FIFO or socket"),
        ("directory by mode", of(0o040755), "is a directory by its name, or by its mode"),
        (
            "link by mode",
            zip(&[Member { attributes: 0o120777 << 16, ..directory("d/") }]),
            "is a directory by its name, or by its mode",
        ),
        (
            "directory with contents",
            zip(&[Member { content: b"x".to_vec(), ..directory("d/") }]),
            "contents",
        ),
    ]);
}

#[test]
fn sizes_that_lie() {
    let honest = file("x", &[b'x'; 1000]);
    let sized = |size| Member { size: Some(size), ..honest.clone() };
    refused(&[
        (
            "stored",
            zip(&[Member { method: STORED, size: Some(5), ..honest.clone() }]),
            "two sizes differ",
        ),
        ("larger than deflate can", zip(&[sized(1 << 20)]), "larger than its compressed size"),
        ("larger than a file", zip(&[sized(1 << 63)]), "larger than a file can be"),
        (
            "nothing of something",
            zip(&[Member { compressed: Some(vec![]), ..sized(10) }]),
            "larger than its",
        ),
        ("a CRC-32 of nothing", zip(&[Member { crc: Some(1), ..file("x", b"") }]), "is empty, and"),
    ]);
    fails(&[
        ("shorter", zip(&[sized(999)]), "has not the length that it says"),
        ("longer", zip(&[sized(1001)]), "has not the length that it says"),
        ("CRC-32", zip(&[Member { crc: Some(1), ..honest.clone() }]), "its CRC-32 is"),
        (
            "stored, CRC-32",
            zip(&[Member { crc: Some(1), method: STORED, ..honest.clone() }]),
            "its CRC-32 is",
        ),
        ("local size", zip(&[Member { local_size: Some(7), ..honest.clone() }]), "has other sizes"),
        (
            "local name",
            zip(&[Member { local_name: Some(b"y".to_vec()), ..honest.clone() }]),
            "another name",
        ),
        (
            "local method",
            zip(&[Member { local_method: Some(0), ..honest.clone() }]),
            "another method",
        ),
        (
            "no deflate",
            zip(&[Member { compressed: Some(vec![7; 50]), ..honest.clone() }]),
            "not valid deflate",
        ),
        ("cut off", zip(&[cut(&honest)]), "has not the length that it says"),
        ("more after its end", zip(&[padded(&honest)]), "has not the length that it says"),
    ]);
}

/// A member whose stream is cut off.
fn cut(member: &Member) -> Member {
    let mut data = deflate(&member.content, 6);
    data.truncate(data.len() - 1);
    Member { compressed: Some(data), ..member.clone() }
}

/// A member with something after its stream.
fn padded(member: &Member) -> Member {
    let mut data = deflate(&member.content, 6);
    data.push(0);
    Member { compressed: Some(data), ..member.clone() }
}

#[test]
fn bombs() {
    let zeros = file("zeros", &vec![0; 32 << 20]);
    refused(&[(
        "ratio",
        zip(std::slice::from_ref(&zeros)),
        "times its compressed size; 250 times is allowed",
    )]);
    let small = file("zeros", &vec![0; 1 << 20]);
    let limits = Limits { total_bytes_max: 3 << 20, ..Limits::default() };
    let many = |count: usize| {
        let member = |number| Member { name: format!("{number}").into(), ..small.clone() };
        zip(&(0..count).map(member).collect::<Vec<_>>()).bytes()
    };
    let said = refusal(many(4), &limits).unwrap();
    assert!(said.contains("4194304 bytes together; 3145728 are allowed"), "{said}");
    assert!(open(many(3), &limits).is_ok());
    let limits = Limits { ratio_max: 1100, ..Limits::default() };
    assert!(open(zip(&[zeros]).bytes(), &limits).is_ok());
    let limits = Limits { entries_max: 2, ..Limits::default() };
    let said = refusal(many(3), &limits).unwrap();
    assert!(said.contains("it has 3 entries; 2 are allowed"), "{said}");
    // Directories that are only implied count as well.
    let said = refusal(zip(&[file("a/b/c", b"")]).bytes(), &limits).unwrap();
    assert!(said.contains("it has 3 entries; 2 are allowed"), "{said}");
    let limits = Limits { directory_bytes_max: 100, ..Limits::default() };
    let said = refusal(many(3), &limits).unwrap();
    assert!(said.contains("its central directory has 141 bytes; 100 are allowed"), "{said}");
}

#[test]
fn ends() {
    let sound = zip(&[file("a", b"1"), file("b", b"2")]);
    let bytes = sound.bytes();
    for length in 0..bytes.len() {
        let said = refusal(bytes[..length].to_vec(), &Limits::default());
        assert!(said.is_some(), "cut at {length}");
    }
    let trailing = [&bytes[..], b"x"].concat();
    let said = refusal(trailing, &Limits::default()).unwrap();
    assert!(said.contains("incomplete"), "{said}");
    refused(&[
        ("more entries", Zip { entries: Some(1), ..sound.clone() }, "more entries than it says"),
        ("fewer entries", Zip { entries: Some(3), ..sound.clone() }, "fewer entries than it says"),
        (
            "count modulo 65536",
            Zip { entries: Some(2_u16.wrapping_add(1)), ..sound.clone() },
            "entries",
        ),
        (
            "directory too long",
            Zip { directory_bytes: Some(1 << 20), ..sound.clone() },
            "does not fit",
        ),
        (
            "directory too short",
            Zip { directory_bytes: Some(50), ..sound.clone() },
            "stand before it",
        ),
        ("several files", Zip { disk: 1, ..sound.clone() }, "of several files"),
        ("entry in another file", zip(&[Member { disk: 3, ..file("a", b"") }]), "in another file"),
    ]);
    let package = Zip { zip64: true, ..sound }.open().unwrap();
    assert_eq!(read(&package, "b"), b"2");
}

#[test]
fn comments_and_prefixes() {
    let sound = zip(&[file("a", b"inner")]);
    let commented = |comment: &[u8]| Zip { comment: comment.into(), ..sound.clone() };
    assert_eq!(read(&commented(&[b'c'; 0xffff]).open().unwrap(), "a"), b"inner");
    // An end record as a comment: one that says nothing sensible, and one with an archive.
    let mut nonsense = zip(&[]).bytes();
    nonsense[16] = 77;
    assert_eq!(read(&commented(&nonsense).open().unwrap(), "a"), b"inner");
    let length = sound.bytes().len();
    let mut other = zip(&[file("a", b"other")]).bytes();
    let shifted = Zip { prefix: vec![0; length], ..zip(&[file("a", b"other")]) }.bytes();
    other.copy_from_slice(&shifted[length..]);
    refused(&[("two archives", commented(&other), "as two different archives")]);
    // What stands before an archive is counted by its offsets, or it is refused.
    let prefixed = Zip { prefix: b"#!/bin/sh\nexec unzip\n".to_vec(), ..sound };
    assert_eq!(read(&prefixed.open().unwrap(), "a"), b"inner");
    let without = Zip { offsets_without_prefix: true, ..prefixed };
    refused(&[
        ("prefix", without.clone(), "21 bytes stand before it that its offsets do not count"),
        ("prefix, ZIP64", Zip { zip64: true, ..without }, "not where it should be"),
    ]);
}

#[test]
fn other_formats() {
    let cases: [(&[u8], &str); 5] = [
        (b"\x1f\x8b\x08\0", "a GZIP file"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7z archive"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (b"hsqs", "a SquashFS image"),
        (b"<html>not found</html>", "it has no end of central directory"),
    ];
    for (start, expected) in cases {
        let mut bytes = start.to_vec();
        bytes.resize(1000, 0);
        let said = refusal(bytes, &Limits::default()).unwrap();
        assert!(said.contains(expected), "{said:?} is to say {expected:?}");
    }
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refusal(tar, &Limits::default()).unwrap().contains("a TAR archive"));
    assert!(refusal(Vec::new(), &Limits::default()).is_some());
}

#[test]
fn links() {
    let with = |target: &str| zip(&[file("d/e/file", b"x"), link("d/link", target)]);
    refused(&[
        ("absolute", with("/etc/passwd"), "leads out of the package"),
        ("up", with("../../etc"), "leads out of the package"),
        ("up and back", with("../../d/e/file"), "leads out of the package"),
        ("up beyond what is missing", with("no/../../../x"), "leads out of the package"),
        ("nowhere", with(""), "leads nowhere"),
        ("NUL", with("a\0b"), "holds a NUL"),
        ("long", with(&"x".repeat(4096)), "longer than 4095 bytes"),
        (
            "through another link",
            zip(&[file("d/e/f", b""), link("d/up", ".."), link("x", "d/up/..")]),
            "leads out of the package",
        ),
        (
            "through a chain",
            zip(&[link("a/b/c", "../.."), link("a/q", "b/c/a/b/c/.."), file("z", b"")]),
            "leads out of the package",
        ),
        ("target that is damaged", zip(&[Member { crc: Some(9), ..link("x", "y") }]), "CRC-32"),
    ]);
    let package = with("e/file").open().unwrap();
    let id = package.index().find(b"d/link").unwrap();
    assert_eq!(package.index().target(id), Some(&b"e/file"[..]));
    with("../d/e/../e/file").open().unwrap();
    with("e/missing").open().unwrap();
    // Loops are the kernel's to refuse, with ELOOP.
    zip(&[link("a", "b"), link("b", "a"), link("c", "c/..")]).open().unwrap();
}

/// Links that lead through links ask for more steps than a package may.
#[test]
fn links_without_end() {
    let mut members: Vec<Member> =
        (0..40).map(|n| link(&format!("l{n}"), &long_way(n + 1))).collect();
    members.push(directory("l40/"));
    members.extend((0..3000).map(|n| link(&format!("x{n}"), &long_way(0))));
    let said = refusal(zip(&members).bytes(), &Limits::default()).unwrap();
    assert!(said.contains("too many that lead through others"), "{said}");
}

fn long_way(to: u32) -> String {
    "./".repeat(1900) + &format!("l{to}")
}

/// Data descriptors, extra fields, gaps and directories that deflate writes are all usual.
#[test]
fn usual_things() {
    let described = Member { flags: 8, ..file("described", &[b'd'; 10_000]) };
    let aligned = Member { local_extra: vec![0; 3], extra: vec![0; 2], ..file("aligned", b"a") };
    let gap = Member { after: vec![0xaa; 100], ..file("gap", b"g") };
    let empty_deflated = Member { method: DEFLATED, ..directory("d/") };
    let package =
        zip(&[described, aligned, gap, empty_deflated, file("none", b"")]).open().unwrap();
    package.check_headers(1).unwrap();
    package.verify(1, &Progress::default()).unwrap();
    assert_eq!(read(&package, "described"), [b'd'; 10_000]);
    assert_eq!((read(&package, "none"), read(&package, "gap")), (Vec::new(), b"g".to_vec()));
    let nothing: Package = zip(&[]).open().unwrap();
    assert_eq!(nothing.index().len(), 1);
}
