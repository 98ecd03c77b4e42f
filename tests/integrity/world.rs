//! A volume with a history, and what can be seen of it.

use crate::common::Volumes;
use atrest::crypto::Cipher;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Caller, Ino, Kind, RenameFlags, SetAttr, SetXattr, Tree};
use atrest::storage::sim::SimDisk;
use atrest::storage::{FileId, Storage};
use std::collections::BTreeMap;
use std::sync::Arc;

const ROOT: Ino = 1;
const CALLER: Caller = Caller { uid: 7, gid: 7, umask: 0 };
/// What the volumes here use of a file, in bytes: the lowest slots.
pub const SPAN: u64 = 2 << 20;

/// What is at a path: type, attributes and content, or nothing if reading it failed.
type Seen = BTreeMap<String, Option<(String, Vec<u8>)>>;

/// What came of opening a manipulated volume.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is refused, with this message.
    Refused(String),
    /// It shows a state that it has been in.
    State {
        /// Which one of [`World::states`]; the latest that fits.
        state: usize,
        /// Paths that cannot be read, with what is below them.
        unreadable: Vec<String>,
        /// A superblock was refused or had been put back, or the log had been cut: it is said.
        said: bool,
    },
}

impl Outcome {
    /// Nothing is missing and nothing was said.
    pub fn exact(state: usize) -> Self {
        Self::State { state, unreadable: Vec::new(), said: false }
    }
}

/// A volume, an older copy of it, and every state that it has been in.
pub struct World {
    volumes: Volumes,
    pub disk: Arc<SimDisk>,
    pub older: Arc<SimDisk>,
    pub older_state: usize,
    pub states: Vec<Seen>,
    /// Whether it was unmounted in order.
    pub closed: bool,
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31) ^ seed ^ (at >> 8) as u8).collect()
}

impl World {
    pub fn new(closed: bool) -> Self {
        let disk = Arc::new(SimDisk::new());
        disk.stop_recording();
        let storage: Arc<dyn Storage> = disk.clone();
        let volumes = Volumes::new(Cipher::Aes256Gcm);
        volumes.create(&storage);
        let tree = VolumeTree::new(volumes.open(&storage).expect("open"));
        let mut history = History { tree: &tree, states: Vec::new() };
        history.begin();
        tree.sync().expect("sync");
        let older = Arc::new(disk.fork());
        let older_state = history.states.len() - 1;
        history.go_on();
        let states = history.states;
        if closed {
            let volume = volumes.open(&storage).expect("what is not closed opens, too");
            volume.sync().expect("sync");
            volume.close().expect("close");
        }
        Self { volumes, disk, older, older_state, states, closed }
    }

    /// The last state.
    pub fn latest(&self) -> usize {
        self.states.len() - 1
    }

    /// A copy to do something to.
    pub fn copy(&self) -> Arc<SimDisk> {
        Arc::new(self.disk.fork())
    }

    /// Opens a disk and finds out which state it shows.
    ///
    /// # Panics
    /// If it shows something that it has never been.
    pub fn open(&self, disk: &Arc<SimDisk>) -> Outcome {
        let storage: Arc<dyn Storage> = Arc::new(disk.fork());
        let (volume, report) = match self.volumes.open_reported(&storage) {
            Ok(opened) => opened,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let seen = look(&VolumeTree::new(volume));
        let said = !report.refused.is_empty() || report.superblock_replayed || report.log_damaged;
        for (state, expected) in self.states.iter().enumerate().rev() {
            if let Some(unreadable) = fits(&seen, expected) {
                return Outcome::State { state, unreadable, said };
            }
        }
        let names: Vec<_> = seen.keys().collect();
        panic!("what is seen has never been so: {names:?}");
    }

    /// Why a volume is refused together with another configuration.
    pub fn open_with_config(
        &self,
        storage: &Arc<dyn Storage>,
        config: &[u8],
    ) -> Result<(), String> {
        let volumes = Volumes { config: config.to_vec(), ..self.volumes.clone() };
        volumes.open(storage).map(drop).map_err(|error| error.to_string())
    }

    /// Copies a file of the older copy, or the lack of it, into `disk`.
    pub fn put_back(&self, disk: &SimDisk, file: FileId) {
        move_file((&self.older, file), (disk, file));
    }

    /// Slots of a segment that hold something and differ from the older copy, and do there, too.
    pub fn changed_slots(&self, segment: u32) -> Vec<u64> {
        let file = FileId::Segment(segment);
        let slots = (0..SPAN / 4096).map(|slot| slot * 4096);
        let differ = |offset: &u64| {
            let (new, old) = (read(&self.disk, file, *offset), read(&self.older, file, *offset));
            new != old && old != [0; 4096]
        };
        slots.filter(differ).collect()
    }
}

/// A slot's bytes.
pub fn read(disk: &SimDisk, file: FileId, offset: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    if disk.length(file).expect("length").unwrap_or(0) >= offset + 4096 {
        disk.read_at(file, offset, &mut bytes).expect("within the file");
    }
    bytes
}

/// Makes one file what another one is.
pub fn move_file((from, source): (&SimDisk, FileId), (to, target): (&SimDisk, FileId)) {
    if to.length(target).expect("length").is_some() {
        to.delete(target).expect("delete");
    }
    let Some(length) = from.length(source).expect("length") else { return };
    to.create(target).expect("create");
    to.set_length(target, length).expect("length");
    for offset in (0..length.min(SPAN)).step_by(4096) {
        to.write_at(target, offset, &read(from, source, offset)).expect("write");
    }
}

/// The paths of `state` that cannot be read, if everything else is as it says.
fn fits(seen: &Seen, state: &Seen) -> Option<Vec<String>> {
    let unreadable: Vec<String> =
        seen.iter().filter(|(_, at)| at.is_none()).map(|(path, _)| path.clone()).collect();
    let below = |path: &str| {
        unreadable.iter().any(|lost| path == lost || path.starts_with(&format!("{lost}/")))
    };
    let same = state.iter().all(|(path, at)| below(path) || seen.get(path) == Some(at));
    let more = seen.iter().any(|(path, at)| at.is_some() && !state.contains_key(path));
    (same && !more).then_some(unreadable)
}

fn look(tree: &VolumeTree) -> Seen {
    let mut seen = Seen::new();
    if look_below(tree, ROOT, "", &mut seen).is_err() {
        seen.insert(String::new(), None);
    }
    seen
}

fn look_below(
    tree: &VolumeTree,
    dir: Ino,
    path: &str,
    seen: &mut Seen,
) -> Result<(), atrest::fs::Error> {
    let mut names = Vec::new();
    tree.readdir(dir, 0, false, &mut |entry| {
        if entry.name != b"." && entry.name != b".." {
            names.push(String::from_utf8(entry.name.to_vec()).expect("our names are UTF-8"));
        }
        true
    })?;
    for name in names {
        let path = format!("{path}/{name}");
        let at = look_at(tree, dir, &name);
        if let Ok((ino, Kind::Directory, _)) = at {
            if look_below(tree, ino, &path, seen).is_err() {
                seen.insert(path, None);
                continue;
            }
        }
        seen.insert(
            path,
            at.ok().map(|(_, kind, (line, content))| (format!("{kind:?} {line}"), content)),
        );
    }
    Ok(())
}

type Found = (Ino, Kind, (String, Vec<u8>));

fn look_at(tree: &VolumeTree, dir: Ino, name: &str) -> Result<Found, atrest::fs::Error> {
    let attr = tree.lookup(dir, name.as_bytes())?;
    let mut content = Vec::new();
    match attr.kind {
        Kind::File => tree.read(attr.ino, 0, attr.size as usize, false, &mut content)?,
        Kind::Symlink => content = tree.readlink(attr.ino)?,
        _ => {}
    }
    for name in tree.listxattr(attr.ino)?.split(|&byte| byte == 0).filter(|n| !n.is_empty()) {
        content.extend(tree.getxattr(attr.ino, name)?);
    }
    let line = format!("{:o} {} {} {:?}", attr.permissions, attr.links, attr.size, attr.mtime);
    Ok((attr.ino, attr.kind, (line, content)))
}

/// What happens to the volume.
struct History<'a> {
    tree: &'a VolumeTree,
    states: Vec<Seen>,
}

impl History<'_> {
    fn file(&mut self, parent: Ino, name: &str, content: &[u8]) -> Ino {
        let created = self.tree.create(CALLER, parent, name.as_bytes(), 0o644).expect("create");
        self.tree.release(created.0.ino, created.1);
        self.note();
        if !content.is_empty() {
            self.tree.write(created.0.ino, 0, content, false).expect("write");
            self.note();
        }
        created.0.ino
    }

    /// Every change is a state that may be found.
    fn note(&mut self) {
        self.states.push(look(self.tree));
    }

    fn begin(&mut self) {
        self.note();
        let dir = self.tree.mkdir(CALLER, ROOT, b"dir", 0o755).expect("mkdir").ino;
        self.note();
        self.file(ROOT, "inline", &pattern(1, 900));
        let pages = self.file(ROOT, "pages", &pattern(2, 40_000));
        self.file(dir, "large", &pattern(3, 300_000));
        self.tree.sync().expect("sync");
        for index in 0..60 {
            self.file(dir, &format!("a file with a rather long name, number {index}"), &[]);
        }
        self.tree.symlink(CALLER, dir, b"link", b"../pages").expect("symlink");
        self.note();
        self.tree
            .setxattr(pages, b"user.key", &pattern(4, 3000), SetXattr::default())
            .expect("xattr");
        self.note();
    }

    fn go_on(&mut self) {
        let find =
            |dir, name: &str| self.tree.lookup(dir, name.as_bytes()).expect("it is there").ino;
        let dir = find(ROOT, "dir");
        let (pages, inline, large) =
            (find(ROOT, "pages"), find(ROOT, "inline"), find(dir, "large"));
        // Several epochs, so that slots are given to other pages and nodes.
        for round in 10..16u8 {
            self.tree.write(pages, 4096, &pattern(round, 12_288), false).expect("write");
            self.note();
            self.tree.write(large, 65_536, &pattern(round, 100_000), false).expect("write");
            self.note();
            self.tree.write(inline, 10, &pattern(round, 500), false).expect("write");
            self.note();
            let mode =
                SetAttr { permissions: Some(0o600 | u16::from(round)), ..SetAttr::default() };
            self.tree.setattr(pages, &mode).expect("chmod");
            self.note();
            self.tree.sync().expect("sync");
        }
        // The log has these only.
        let new = self.file(ROOT, "new", &pattern(20, 9_000));
        self.tree.fsync(new, 0, false).expect("fsync");
        let plain = RenameFlags::default();
        self.tree.rename(ROOT, b"new", dir, b"large", plain).expect("rename");
        self.note();
        self.tree.write(pages, 0, &pattern(21, 200_000), false).expect("write");
        self.note();
        self.tree.fsync(pages, 0, false).expect("fsync");
    }
}
