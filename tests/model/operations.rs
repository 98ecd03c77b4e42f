//! What is done at random: mostly what succeeds, on few names, so that operations meet.

use atrest::fs::{Allocate, Ino, Kind, RenameFlags, Seek};

use crate::random::Random;
use crate::reference::ROOT;
use crate::world::World;

/// Largest file, so that the reference stays small: several chunks.
const FILE_BYTES_MAX: usize = 700_000;
/// Above this many inodes things are removed more often than made.
const NODES_GOAL: usize = 150;

#[derive(Clone, Debug)]
pub enum Operation {
    Make { parent: Ino, name: Vec<u8>, kind: Kind, mode: u16, umask: u32 },
    Create { parent: Ino, name: Vec<u8>, mode: u16 },
    Tmpfile { parent: Ino },
    Link { ino: Ino, parent: Ino, name: Vec<u8> },
    Remove { parent: Ino, name: Vec<u8>, directory: bool },
    Rename { from: (Ino, Vec<u8>), to: (Ino, Vec<u8>), flags: RenameFlags },
    Lookup { parent: Ino, name: Vec<u8> },
    Getattr { ino: Ino },
    Open { ino: Ino, truncate: bool },
    Close { which: usize },
    Write { ino: Ino, offset: usize, length: usize, suid: bool },
    Truncate { ino: Ino, size: usize },
    Allocate { ino: Ino, offset: usize, length: usize, what: Allocate },
    Copy { from: Ino, offset: usize, to: Ino, to_offset: usize, length: usize },
    Read { ino: Ino, offset: usize, length: usize },
    Seek { ino: Ino, offset: usize, what: Seek },
    Chmod { ino: Ino, permissions: u16 },
    Chown { ino: Ino, uid: u32, gid: u32 },
    Utimes { ino: Ino, seconds: i64 },
    SetXattr { ino: Ino, name: Vec<u8>, length: usize, create: bool, replace: bool },
    RemoveXattr { ino: Ino, name: Vec<u8> },
    List { ino: Ino, first: usize, create: Vec<u8>, remove: usize },
    Fsync { ino: Ino },
    Reopen { close: bool },
    Verify,
}

/// The next operation.
pub fn random(world: &World, random: &mut Random) -> Operation {
    let crowded = world.reference.nodes.len() > NODES_GOAL;
    match random.below(1000) {
        0..90 => namespace_grows(world, random, crowded),
        90..180 if crowded => removal(world, random),
        90..140 => removal(world, random),
        140..240 => rename(world, random),
        240..300 => Operation::Lookup { parent: directory(world, random), name: name(random) },
        300..320 => Operation::Getattr { ino: any(world, random) },
        320..380 if world.handles.len() < 12 => {
            Operation::Open { ino: file(world, random), truncate: random.once_in(6) }
        }
        320..400 => Operation::Close { which: random.below(world.handles.len()) },
        400..880 => content(world, random),
        880..960 => attributes(world, random),
        960..990 => Operation::List {
            ino: directory(world, random),
            first: random.below(6),
            create: name(random),
            remove: random.below(8),
        },
        990..998 => Operation::Fsync { ino: any(world, random) },
        998 if random.once_in(4) => Operation::Reopen { close: random.once_in(2) },
        998 => Operation::Getattr { ino: any(world, random) },
        _ => Operation::Verify,
    }
}

fn namespace_grows(world: &World, random: &mut Random, crowded: bool) -> Operation {
    if crowded && random.once_in(2) {
        return removal(world, random);
    }
    let (parent, name) = (directory(world, random), name(random));
    let mode = random.below(0o10000) as u16;
    let kinds = [Kind::File, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];
    let umask = *random.pick(&[0, 0o022, 0o077]);
    match random.below(20) {
        0..2 => Operation::Make { parent, name, kind: *random.pick(&kinds), mode, umask },
        2..6 => Operation::Make { parent, name, kind: Kind::Directory, mode, umask },
        6..8 => Operation::Make { parent, name, kind: Kind::Symlink, mode, umask },
        8..11 => Operation::Link { ino: any(world, random), parent, name },
        11 => Operation::Tmpfile { parent },
        _ => Operation::Create { parent, name, mode },
    }
}

fn removal(world: &World, random: &mut Random) -> Operation {
    let (parent, name) = existing(world, random);
    Operation::Remove { parent, name, directory: random.once_in(3) }
}

fn rename(world: &World, random: &mut Random) -> Operation {
    let from = existing(world, random);
    let to = if random.once_in(2) {
        existing(world, random)
    } else {
        (directory(world, random), name(random))
    };
    let flags = RenameFlags {
        no_replace: random.once_in(5),
        exchange: random.once_in(4),
        whiteout: random.once_in(20),
    };
    Operation::Rename { from, to, flags }
}

fn content(world: &World, random: &mut Random) -> Operation {
    let ino = file(world, random);
    let size = world.reference.nodes.get(&ino).map_or(0, |node| node.content.len());
    let offset = offset(random, size);
    let length = length(random);
    let keep_size = random.once_in(2);
    match random.below(20) {
        0..5 => Operation::Write { ino, offset, length, suid: random.once_in(3) },
        5..8 => Operation::Write { ino, offset: size.min(FILE_BYTES_MAX), length, suid: false },
        8..10 => Operation::Truncate { ino, size: offset },
        10 => Operation::Allocate { ino, offset, length, what: Allocate::Punch },
        11 => Operation::Allocate { ino, offset, length, what: Allocate::Zero { keep_size } },
        12 => Operation::Allocate { ino, offset, length, what: Allocate::Reserve { keep_size } },
        13 => {
            let to = file(world, random);
            let size = world.reference.nodes.get(&to).map_or(0, |node| node.content.len());
            let to_offset = self::offset(random, size);
            Operation::Copy { from: ino, offset, to, to_offset, length: length * 2 }
        }
        14..16 => {
            let what = if random.once_in(2) { Seek::Data } else { Seek::Hole };
            Operation::Seek { ino, offset, what }
        }
        _ => Operation::Read { ino, offset, length: length * 2 },
    }
}

fn attributes(world: &World, random: &mut Random) -> Operation {
    let ino = any(world, random);
    let xattr = format!("user.{}", random.below(5)).into_bytes();
    match random.below(10) {
        0..2 => Operation::Chmod { ino, permissions: random.below(0o10000) as u16 },
        2 => {
            let (uid, gid) = (random.below(9) as u32, random.below(9) as u32);
            Operation::Chown { ino, uid, gid }
        }
        3..5 => Operation::Utimes { ino, seconds: random.below(1 << 33) as i64 - (1 << 32) },
        5..7 => Operation::RemoveXattr { ino, name: xattr },
        _ => {
            let large = random.once_in(20);
            let length = if large { random.below(65_537) } else { random.below(300) };
            let (create, replace) = (random.once_in(4), random.once_in(4));
            Operation::SetXattr { ino, name: xattr, length, create, replace }
        }
    }
}

/// Few names, so that they meet; the longest, and bytes that are no UTF-8, among them. Rarely one
/// that is too long.
fn name(random: &mut Random) -> Vec<u8> {
    match random.below(14) {
        0 => vec![b'n'; 255],
        1 => vec![0xff, 0xfe, b' ', b'\n'],
        2 if random.once_in(8) => vec![b'n'; 256],
        other => format!("name{other}").into_bytes(),
    }
}

/// A directory, and an entry of it if it has any.
fn existing(world: &World, random: &mut Random) -> (Ino, Vec<u8>) {
    let parent = directory(world, random);
    let names = world.reference.nodes.get(&parent).map(|node| &node.names);
    match names.filter(|names| !names.is_empty() && !random.once_in(20)) {
        Some(names) => {
            let which = random.below(names.len());
            (parent, names.keys().nth(which).expect("it is below the length").clone())
        }
        None => (parent, name(random)),
    }
}

fn directory(world: &World, random: &mut Random) -> Ino {
    if random.once_in(5) {
        return ROOT;
    }
    nth(world, random, |kind| kind == Kind::Directory).unwrap_or(ROOT)
}

fn file(world: &World, random: &mut Random) -> Ino {
    if random.once_in(50) {
        return any(world, random);
    }
    nth(world, random, |kind| kind == Kind::File).unwrap_or(ROOT)
}

/// Any inode, rarely one that is gone.
fn any(world: &World, random: &mut Random) -> Ino {
    if random.once_in(50) {
        if let Some(dead) = world.reference.dead.last() {
            return *dead;
        }
    }
    nth(world, random, |_| true).unwrap_or(ROOT)
}

fn nth(world: &World, random: &mut Random, of: impl Fn(Kind) -> bool) -> Option<Ino> {
    let nodes = world.reference.nodes.iter();
    let all: Vec<Ino> = nodes.filter(|(_, node)| of(node.kind)).map(|(ino, _)| *ino).collect();
    if all.is_empty() { None } else { Some(*random.pick(&all)) }
}

/// Offsets near what matters: the start, the end, borders of pages and chunks.
fn offset(random: &mut Random, size: usize) -> usize {
    let near = match random.below(8) {
        0 => 0,
        1..3 => size,
        3 => random.below(size + 1),
        4 => random.below(8) * 4096,
        5 => random.below(3) * 256 * 1024,
        6 => 32 * 4096,
        _ => random.below(3000),
    };
    let offset = match random.below(3) {
        0 => near,
        1 => near + random.below(100),
        _ => near.saturating_sub(random.below(100)),
    };
    offset.min(FILE_BYTES_MAX)
}

fn length(random: &mut Random) -> usize {
    match random.below(40) {
        0..24 => 1 + random.below(2000),
        24..34 => 1 + random.below(10_000),
        34..38 => 4096 * (1 + random.below(8)),
        38 => 1 + random.below(100_000),
        _ => 1 + random.below(300_000),
    }
}
