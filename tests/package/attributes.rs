//! Names, modes, times and the tree that is made of them.

use atrest::package::{Content, Index, Package};

use super::zip::{Member, Zip, crc32, directory, field, file, link, zip};

fn only(member: Member) -> Package {
    zip(&[member]).open().unwrap()
}

fn name_of(member: Member) -> String {
    let package = only(member);
    let id = package.index().entries(Index::ROOT)[0];
    String::from_utf8(package.index().name(id).to_vec()).unwrap()
}

#[test]
fn names_in_other_characters() {
    let dos = |name: &[u8]| Member { name: name.into(), flags: 0, host: 0, ..file("x", b"") };
    assert_eq!(name_of(dos(b"M\x81ller.txt")), "Müller.txt");
    assert_eq!(name_of(dos(b"\xe1\x9c\xfe\x80\xff")), "ß£■Ç\u{a0}");
    // Programs on Unix write what the host has, without saying that it is UTF-8.
    assert_eq!(name_of(Member { host: 3, ..dos("Müller".as_bytes()) }), "Müller");
    assert_eq!(name_of(Member { host: 0, ..dos("ü".as_bytes()) }), "├╝");
    assert_eq!(name_of(Member { host: 3, ..dos(b"\x81") }), "ü");
    let mut value = vec![1];
    value.extend(crc32(b"?.txt").to_le_bytes());
    value.extend("日本.txt".as_bytes());
    let unicode = Member { extra: field(0x7075, &value), ..dos(b"?.txt") };
    assert_eq!(name_of(unicode.clone()), "?.txt", "plain ASCII needs no other name");
    value[1..5].copy_from_slice(&crc32(b"\x80.txt").to_le_bytes());
    let unicode = Member { extra: field(0x7075, &value), ..dos(b"\x80.txt") };
    assert_eq!(name_of(unicode.clone()), "日本.txt");
    let stale = Member { extra: field(0x7075, &value), ..dos(b"\x81.txt") };
    assert_eq!(name_of(stale), "ü.txt", "a field of another name does not count");
}

#[test]
fn modes() {
    let mode = |member: Member| {
        let package = only(member);
        package.index().node(package.index().entries(Index::ROOT)[0]).permissions
    };
    let with = |host, attributes| Member { host, attributes, ..file("x", b"") };
    assert_eq!(mode(with(3, 0o100600 << 16)), 0o600);
    assert_eq!(mode(with(3, 0o104755 << 16)), 0o755, "nobody gets the rights of others");
    assert_eq!(mode(with(3, 0o755 << 16)), 0o755, "a mode without a type");
    assert_eq!(mode(with(3, 0)), 0o644);
    assert_eq!(mode(with(0, 0o100600 << 16)), 0o644, "DOS has no modes");
    assert_eq!(mode(with(3, 0o177777 << 16)), 0o644, "all ones are no mode");
    let unknown = Member { host: 3, attributes: 0o177777 << 16 | 16, ..directory("d/") };
    assert_eq!(mode(unknown), 0o755, "nor of a directory");
    assert_eq!(mode(with(10, 1)), 0o444);
    assert_eq!(mode(Member { host: 0, attributes: 16, ..directory("d/") }), 0o755);
    assert_eq!(mode(Member { attributes: 0o040700 << 16, ..directory("d/") }), 0o700);
    assert_eq!(mode(link("l", "x")), 0o777);
    let of_file = Member { attributes: 0o100644 << 16, ..directory("d/") };
    assert_eq!(mode(of_file), 0o755, "a directory by its slash has not the mode of a file");
}

#[test]
fn times() {
    let time = |member: Member| {
        let package = only(member);
        let time = package.index().node(package.index().entries(Index::ROOT)[0]).mtime;
        (time.seconds, time.nanoseconds)
    };
    let plain =
        Member { date: 45 << 9 | 3 << 5 | 4, time: 13 << 11 | 14 << 5 | 7, ..file("x", b"") };
    assert_eq!(time(plain.clone()), (1_741_094_054, 0), "2025-03-04 13:14:14, taken as UTC");
    assert_eq!(time(Member { date: 0, time: 0, ..plain.clone() }), (315_532_800, 0));
    let mut value = vec![1];
    value.extend((-5_i32).to_le_bytes());
    let extended = field(0x5455, &value);
    assert_eq!(time(Member { extra: extended.clone(), ..plain.clone() }), (-5, 0));
    let mut value = vec![0, 0, 0, 0, 1, 0, 24, 0];
    value.extend((116_444_736_000_000_000_u64 + 15_000_001).to_le_bytes());
    value.extend([0; 16]);
    let ntfs = field(0x000a, &value);
    assert_eq!(time(Member { extra: ntfs.clone(), ..plain.clone() }), (1, 500_000_100));
    assert_eq!(time(Member { extra: [ntfs, extended].concat(), ..plain }), (-5, 0));
}

/// Directories that no entry speaks of are there, entries are found and sorted.
#[test]
fn the_tree() {
    let names = ["z", "b/c/d", "b/c.x", "b/c-y", "b/cc/e", "a/", "B2/x", "b/c/a"];
    let member = |name: &&str| if name.ends_with('/') { directory(name) } else { file(name, b"x") };
    let package = zip(&names.iter().map(member).collect::<Vec<_>>()).open().unwrap();
    let index = package.index();
    let listed = |path: &str| {
        let id = index.find(path.as_bytes()).unwrap();
        let names = index.entries(id).iter().map(|id| String::from_utf8_lossy(index.name(*id)));
        names.map(|name| name.into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(""), ["B2", "a", "b", "z"]);
    assert_eq!(listed("b"), ["c", "c-y", "c.x", "cc"]);
    assert_eq!(listed("b/c"), ["a", "d"]);
    assert_eq!(listed("a"), Vec::<String>::new());
    for name in names {
        let path = name.trim_end_matches('/');
        let id = index.find(path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(index.path(id), path);
    }
    assert_eq!(index.find(b"b/c/x"), None);
    assert_eq!(index.find(b"z/x"), None);
    let Content::Directory { count, directories, .. } =
        index.node(index.find(b"b").unwrap()).content
    else {
        panic!("it is a directory")
    };
    assert_eq!((count, directories), (4, 2));
    assert_eq!(index.newest(), index.node(index.find(b"z").unwrap()).mtime);
}

/// 70,000 entries, and more than the short end record can count.
#[test]
fn many_entries() {
    let member = |number: u32| Member {
        method: super::zip::STORED,
        ..file(&format!("d{}/f{number}", number % 300), &number.to_le_bytes())
    };
    let members: Vec<Member> = (0..70_000).map(member).collect();
    let archive = Zip { zip64: true, ..zip(&members) };
    // The maker's count has 16 bits; what is there decides.
    let mut bytes = archive.bytes();
    let end = bytes.len() - 22 - 20 - 56;
    for at in [24, 32] {
        bytes[end + at..end + at + 8].copy_from_slice(&70_000_u64.to_le_bytes());
    }
    let package = super::zip::open(bytes, &atrest::package::Limits::default()).unwrap();
    assert_eq!(package.index().len(), 70_000 + 300 + 1);
    assert_eq!(super::zip::read(&package, "d17/f69917"), 69_917_u32.to_le_bytes());
    package.check_headers(2).unwrap();
}
