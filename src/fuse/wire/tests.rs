//! The protocol byte for byte, against `include/uapi/linux/fuse.h`, and on bytes that are no
//! protocol at all.

use std::time::Duration;

use super::abi::{self, Opcode, init as flag};
use super::init::{self, Answer, Offer, Wishes};
use super::reply::{self, Attributes, Entry, Listing, Name, Statfs};
use super::request::{Body, Copy, Create, Dialect, Malformed, Request, SetTime, fixed_bytes};

const OLD: Dialect = Dialect { setxattr_ext: false, kill_suidgid: false };
const NEW: Dialect = Dialect { setxattr_ext: true, kill_suidgid: true };

/// Fields in the order in which they are sent.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// A request: `struct fuse_in_header`, then these bytes.
fn request(opcode: Opcode, body: &Bytes) -> Vec<u8> {
    let length = (abi::IN_HEADER_BYTES + body.0.len()) as u32;
    let header = Bytes::default()
        .u32(length)
        .u32(opcode as u32)
        .u64(0x11)
        .u64(0x22)
        .u32(1000)
        .u32(100)
        .u32(4242)
        .u16(0)
        .u16(0);
    header.raw(&body.0).0
}

fn new() -> Bytes {
    Bytes::default()
}

/// Every kind of request that is taken apart: its bytes, and what comes of them.
fn golden() -> Vec<(Opcode, Dialect, Bytes, Body<'static>)> {
    let create = Create { name: b"n", flags: libc::O_RDWR, mode: 0o100_644, umask: 0o22 };
    let copy = Copy { from_offset: 10, to: 77, to_offset: 20, length: 30 };
    let created = new().u32(libc::O_RDWR as u32).u32(0o100_644).u32(0o22).u32(0).raw(b"n\0");
    let copied = new().u64(1).u64(10).u64(77).u64(2).u64(20).u64(30).u64(0);
    let listed = new().u64(9).u64(8).u32(4096).u32(0).u64(0).u32(0).u32(0);
    let setxattr = |kill_sgid| Body::Setxattr {
        name: b"user.a",
        value: b"blue",
        flags: libc::XATTR_CREATE,
        kill_sgid,
    };
    vec![
        (Opcode::Lookup, OLD, new().raw(b"name\0"), Body::Lookup { name: b"name" }),
        (Opcode::Forget, OLD, new().u64(3), Body::Forget { count: 3 }),
        (Opcode::Getattr, OLD, new().u32(0).u32(0).u64(0), Body::Getattr),
        (Opcode::Readlink, OLD, new(), Body::Readlink),
        (
            Opcode::Symlink,
            OLD,
            new().raw(b"link\0to\0"),
            Body::Symlink { name: b"link", target: b"to" },
        ),
        (
            Opcode::Mknod,
            OLD,
            new().u32(0o60_600).u32(0x801).u32(0o77).u32(0).raw(b"n\0"),
            Body::Mknod { name: b"n", mode: 0o60_600, rdev: 0x801, umask: 0o77 },
        ),
        (
            Opcode::Mkdir,
            OLD,
            new().u32(0o755).u32(0o22).raw(b"d\0"),
            Body::Mkdir { name: b"d", mode: 0o755, umask: 0o22 },
        ),
        (Opcode::Unlink, OLD, new().raw(b"f\0"), Body::Unlink { name: b"f" }),
        (Opcode::Rmdir, OLD, new().raw(b"d\0"), Body::Rmdir { name: b"d" }),
        (
            Opcode::Rename,
            OLD,
            new().u64(5).raw(b"a\0b\0"),
            Body::Rename { name: b"a", new_parent: 5, new_name: b"b", flags: 0 },
        ),
        (
            Opcode::Rename2,
            OLD,
            new().u64(5).u32(2).u32(0).raw(b"a\0b\0"),
            Body::Rename { name: b"a", new_parent: 5, new_name: b"b", flags: 2 },
        ),
        (Opcode::Link, OLD, new().u64(6).raw(b"l\0"), Body::Link { ino: 6, name: b"l" }),
        (
            Opcode::Open,
            NEW,
            new().u32(libc::O_TRUNC as u32).u32(1),
            Body::Open { flags: libc::O_TRUNC, kill_suid: true },
        ),
        (
            Opcode::Read,
            OLD,
            new().u64(9).u64(1 << 40).u32(65_536).u32(2).u64(7).u32(0o100_000).u32(0),
            Body::Read { offset: 1 << 40, size: 65_536, flags: 0o100_000 },
        ),
        (
            Opcode::Write,
            OLD,
            new().u64(9).u64(8192).u32(3).u32(5).u64(0).u32(1).u32(0).raw(b"abc"),
            Body::Write { offset: 8192, data: b"abc", flags: 5 },
        ),
        (Opcode::Statfs, OLD, new(), Body::Statfs),
        (
            Opcode::Release,
            OLD,
            new().u64(9).u32(2).u32(0).u64(0),
            Body::Release { handle: 9, flags: 2 },
        ),
        (
            Opcode::Fsync,
            OLD,
            new().u64(9).u32(1).u32(0),
            Body::Fsync { handle: 9, data_only: true },
        ),
        (
            Opcode::Fsyncdir,
            OLD,
            new().u64(0).u32(0).u32(0),
            Body::Fsyncdir { handle: 0, data_only: false },
        ),
        (Opcode::Setxattr, OLD, new().u32(4).u32(1).raw(b"user.a\0blue"), setxattr(false)),
        (
            Opcode::Setxattr,
            NEW,
            new().u32(4).u32(1).u32(1).u32(0).raw(b"user.a\0blue"),
            setxattr(true),
        ),
        (
            Opcode::Getxattr,
            OLD,
            new().u32(64).u32(0).raw(b"user.a\0"),
            Body::Getxattr { name: b"user.a", size: 64 },
        ),
        (Opcode::Listxattr, OLD, new().u32(0).u32(0), Body::Listxattr { size: 0 }),
        (Opcode::Removexattr, OLD, new().raw(b"user.a\0"), Body::Removexattr { name: b"user.a" }),
        (Opcode::Readdir, OLD, listed.clone(), Body::Readdir { offset: 8, size: 4096 }),
        (Opcode::Readdirplus, OLD, listed, Body::Readdirplus { offset: 8, size: 4096 }),
        (Opcode::Create, OLD, created.clone(), Body::Create(create)),
        (Opcode::Tmpfile, OLD, created, Body::Tmpfile(create)),
        (
            Opcode::Fallocate,
            OLD,
            new().u64(9).u64(4096).u64(8192).u32(3).u32(0),
            Body::Fallocate { offset: 4096, length: 8192, mode: 3 },
        ),
        (
            Opcode::Lseek,
            OLD,
            new().u64(9).u64(5).u32(3).u32(0),
            Body::Lseek { offset: 5, whence: 3 },
        ),
        (Opcode::CopyFileRange, OLD, copied.clone(), Body::CopyFileRange(copy)),
        (Opcode::CopyFileRange64, OLD, copied, Body::CopyFileRange64(copy)),
        (Opcode::Interrupt, OLD, new().u64(0x10), Body::Interrupt),
        (Opcode::Destroy, OLD, new(), Body::Destroy),
        (Opcode::Flush, OLD, new().u64(9).u64(0).u64(0), Body::Other(Opcode::Flush)),
    ]
}

/// Each request is what its bytes say, in one piece and in the pieces of a ring; one byte less of
/// its fields is refused, and so is a length that is not its own.
#[test]
fn requests() {
    for (opcode, dialect, body, expected) in golden() {
        let bytes = request(opcode, &body);
        let decoded = Request::decode(&bytes, dialect).expect("it is a request");
        assert_eq!(decoded.body, expected, "{opcode:?}");
        let header = decoded.header;
        assert_eq!((header.unique, header.node, header.uid, header.gid), (0x11, 0x22, 1000, 100));

        let fixed = fixed_bytes(opcode as u32, dialect);
        let (first, rest) = body.0.split_at(fixed);
        let again = Request::assemble(header, first, rest, dialect).expect("as before");
        assert_eq!(again.body, expected, "{opcode:?}");

        if let Some((_, short)) = body.0.split_last() {
            let cut = request(opcode, &new().raw(short));
            assert!(Request::decode(&cut, dialect).is_err(), "{opcode:?} without its last byte");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Request::decode(&longer, dialect), Err(Malformed::Length));
    }
}

/// SETATTR says field by field what counts.
#[test]
fn setattr() {
    let bytes = |valid: u32| {
        let times = new().u64(-5_i64 as u64).u64(6).u64(i64::MIN as u64).u32(1).u32(2).u32(3);
        let rest = new().u32(0o755).u32(0).u32(7).u32(8).u32(0);
        let before = new().u32(valid).u32(0).u64(9).u64(1 << 33).u64(0);
        request(Opcode::Setattr, &before.raw(&times.0).raw(&rest.0))
    };
    let decoded = |valid| match Request::decode(&bytes(valid), NEW).unwrap().body {
        Body::Setattr(change) => change,
        other => panic!("{other:?}"),
    };
    assert_eq!(decoded(0), Default::default());
    let all = decoded(0b1_1100_0011_1111 & !(1 << 12) | 1 << 10 | 1 << 11);
    assert_eq!((all.mode, all.uid, all.gid), (Some(0o755), Some(7), Some(8)));
    assert_eq!(all.size, Some(1 << 33));
    assert_eq!(all.ctime, Some((i64::MIN, 3)));
    assert!(all.kill_suid);
    let given = decoded(1 << 4 | 1 << 5);
    assert_eq!(given.atime, Some(SetTime::At(-5, 1)));
    assert_eq!(given.mtime, Some(SetTime::At(6, 2)));
    let now = decoded(1 << 4 | 1 << 5 | 1 << 7 | 1 << 8);
    assert_eq!((now.atime, now.mtime), (Some(SetTime::Now), Some(SetTime::Now)));
    assert_eq!(decoded(1 << 7 | 1 << 8), Default::default(), "now, but not set");
}

/// Inodes are forgotten as many times as each says; a count that promises more is refused.
#[test]
fn batches_of_forgets() {
    let body = new().u32(2).u32(0).u64(5).u64(1).u64(6).u64(u64::MAX);
    let bytes = request(Opcode::BatchForget, &body);
    let Body::BatchForget { list } = Request::decode(&bytes, OLD).unwrap().body else {
        panic!("another request");
    };
    assert_eq!(list.iter().collect::<Vec<_>>(), [(5, 1), (6, u64::MAX)]);
    for count in [3, u32::MAX] {
        let bytes = request(Opcode::BatchForget, &new().u32(count).u32(0).raw(&[0; 40]));
        assert_eq!(Request::decode(&bytes, OLD), Err(Malformed::Length));
    }
}

/// Replies are the structs of the header file, field by field.
#[test]
fn replies() {
    let attributes = Attributes {
        ino: 1,
        size: 2,
        blocks: 3,
        atime: (-4, 5),
        mtime: (6, 7),
        ctime: (8, 9),
        mode: 10,
        links: 11,
        uid: 12,
        gid: 13,
        rdev: 14,
        block_bytes: 15,
    };
    let attr = new()
        .u64(1)
        .u64(2)
        .u64(3)
        .u64(-4_i64 as u64)
        .u64(6)
        .u64(8)
        .u32(5)
        .u32(7)
        .u32(9)
        .u32(10)
        .u32(11)
        .u32(12)
        .u32(13)
        .u32(14)
        .u32(15)
        .u32(0);
    assert_eq!(attr.0.len(), 88, "struct fuse_attr");
    let ttl = Duration::new(100, 200);
    let entry = Entry { ttl, attributes };
    let entry_out = new().u64(1).u64(0).u64(100).u64(100).u32(200).u32(200).raw(&attr.0);
    assert_eq!(reply::entry(&entry).to_vec(), entry_out.0);
    let attr_out = new().u64(100).u32(200).u32(0).raw(&attr.0);
    assert_eq!(reply::attr(ttl, &attributes).to_vec(), attr_out.0);
    let open_out = new().u64(77).u32(2).u32(0);
    assert_eq!(reply::open(77, 2).to_vec(), open_out.0);
    assert_eq!(reply::created(&entry, 77, 2).to_vec(), entry_out.raw(&open_out.0).0);
    assert_eq!(reply::size(5).to_vec(), new().u32(5).u32(0).0);
    assert_eq!(reply::offset(5).to_vec(), new().u64(5).0);
    assert_eq!(reply::header(9, -2, 8).to_vec(), new().u32(24).u32(-2_i32 as u32).u64(9).0);
    let inval = new().u64(1).u64(-1_i64 as u64).u64(0);
    assert_eq!(reply::inval_inode(1, -1, 0).to_vec(), inval.0);
    assert_eq!(reply::inval_entry(1, 4).to_vec(), new().u64(1).u32(4).u32(0).0);
    let space = Statfs {
        blocks: 1,
        blocks_free: 2,
        blocks_available: 3,
        files: 4,
        files_free: 5,
        block_bytes: 4096,
        name_bytes_max: 255,
    };
    let numbers = new().u64(1).u64(2).u64(3).u64(4).u64(5).u32(4096).u32(255).u32(4096);
    assert_eq!(reply::statfs(&space).to_vec(), numbers.raw(&[0; 28]).0);
}

/// A listing holds whole records, each at a multiple of 8, and no more than fits.
#[test]
fn listings() {
    let mut buffer = vec![1, 2, 3];
    let mut list = Listing::new(&mut buffer, 72);
    let name = |name| Name { ino: 5, cookie: 6, kind: libc::DT_REG, name };
    assert!(list.push(&name(b"abc")));
    assert!(list.push(&name(b"12345678")));
    assert!(!list.push(&name(b"x")), "32 and 32 of 72 bytes are used");
    let first = new().u64(5).u64(6).u32(3).u32(8).raw(b"abc\0\0\0\0\0");
    let both = first.u64(5).u64(6).u32(8).u32(8).raw(b"12345678");
    assert_eq!(list.bytes(), both.0);

    let entry = Entry { ttl: Duration::ZERO, attributes: Attributes::default() };
    let mut list = Listing::new(&mut buffer, 160);
    assert!(list.push_with(&entry, &name(b"abcdefgh")));
    assert!(!list.push_with(&entry, &name(b"")));
    let record = new().u64(5).u64(6).u32(8).u32(8).raw(b"abcdefgh");
    assert_eq!(list.bytes(), new().raw(&reply::entry(&entry)).raw(&record.0).0);
}

const WISHES: Wishes = Wishes {
    flags: flag::WRITEBACK_CACHE | flag::SETXATTR_EXT | 1 << 41,
    request_bytes: 1 << 20,
    readahead_bytes: 1 << 20,
    background_max: 64,
    page_bytes: 4096,
};

fn offer(minor: u32, low: u64, high: u32) -> Vec<u8> {
    let fields = new().u32(7).u32(minor).u32(131_072).u32(low as u32);
    let fields = if minor < 36 { fields } else { fields.u32(high).raw(&[0; 44]) };
    request(Opcode::Init, &fields)
}

/// What kernels from 5.10 on offer, and what they are told: no flag that they did not offer, and
/// the upper half only to those that know of it.
#[test]
fn agreements() {
    let agree = |bytes: &[u8]| {
        let (_, offer) = init::decode(bytes).unwrap();
        match init::answer(&offer.expect("an offer"), WISHES) {
            Answer::Agreed(agreement) => agreement,
            other => panic!("{other:?}"),
        }
    };
    let old = agree(&offer(32, flag::WRITEBACK_CACHE | flag::MAX_PAGES | flag::POSIX_ACL, 0));
    assert_eq!(old.flags, flag::WRITEBACK_CACHE | flag::MAX_PAGES);
    assert_eq!((old.minor, old.dialect()), (32, OLD));
    let new_flags = flag::EXT | flag::SETXATTR_EXT | flag::HANDLE_KILLPRIV_V2 | flag::MAX_PAGES;
    let recent = agree(&offer(99, new_flags, 1 << 9 | 1 << 8));
    assert_eq!(recent.flags, flag::EXT | flag::SETXATTR_EXT | flag::MAX_PAGES | 1 << 41);
    assert_eq!(recent.minor, abi::MINOR);
    assert!(recent.dialect().setxattr_ext && !recent.dialect().kill_suidgid);
    let expected = new()
        .u32(7)
        .u32(45)
        .u32(131_072)
        .u32((flag::EXT | flag::SETXATTR_EXT | flag::MAX_PAGES) as u32)
        .u16(64)
        .u16(48)
        .u32(1 << 20)
        .u32(1)
        .u16(256)
        .u16(0)
        .u32(1 << 9)
        .raw(&[0; 28]);
    assert_eq!(recent.encode().to_vec(), expected.0);
    // A kernel that does not know of the upper half sends something else there.
    let deaf = agree(&offer(36, flag::MAX_PAGES, u32::MAX));
    assert_eq!(deaf.flags, flag::MAX_PAGES);
}

/// Versions that are too old are refused, and newer protocols told ours.
#[test]
fn versions() {
    let answer =
        |version| init::answer(&Offer { version, readahead_bytes: 0, flags: u64::MAX }, WISHES);
    assert_eq!(answer((8, 0)), Answer::AskAgain);
    assert_eq!(answer((6, 50)), Answer::TooOld);
    assert_eq!(answer((7, 30)), Answer::TooOld);
    assert!(matches!(answer((7, 31)), Answer::Agreed(_)));
    assert_eq!(init::encode_version()[..8].to_vec(), new().u32(7).u32(45).0);
    let (_, future) = init::decode(&request(Opcode::Init, &new().u32(8).u32(1))).unwrap();
    assert_eq!(future.map(|offer| offer.version), Some((8, 1)));
}

/// Whatever bytes come, they become a request or a refusal. Random ones, and golden ones that were
/// changed; `ATREST_SEED` repeats a run.
#[test]
fn any_bytes() {
    let seed = std::env::var("ATREST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("ATREST_SEED={seed}");
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    use rand::RngExt as _;
    let golden: Vec<Vec<u8>> =
        golden().iter().map(|(opcode, _, body, _)| request(*opcode, body)).collect();
    let mut decoded = 0;
    for round in 0..200_000_u32 {
        let mut bytes = match round % 2 {
            0 => golden[random.random_range(0..golden.len())].clone(),
            _ => {
                let opcode = Opcode::ALL[random.random_range(0..Opcode::ALL.len())];
                let body = (0..random.random_range(0..160)).map(|_| random.random());
                request(opcode, &new().raw(&body.collect::<Vec<u8>>()))
            }
        };
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        if random.random_range(0..4) == 0 {
            bytes.truncate(random.random_range(0..=bytes.len()));
        }
        if bytes.len() >= 4 && random.random() {
            let length = (bytes.len() as u32).to_ne_bytes();
            bytes[..4].copy_from_slice(&length);
        }
        for dialect in [OLD, NEW] {
            if let Ok(request) = Request::decode(&bytes, dialect) {
                decoded += 1;
                if let Body::BatchForget { list } = request.body {
                    assert!(list.iter().count() <= bytes.len());
                }
            }
        }
        let _ = init::decode(&bytes);
    }
    assert!(decoded > 50_000, "only {decoded} of 400,000 were requests: the fuzzer is blunt");
}
