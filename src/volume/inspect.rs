//! Looking into a volume: what anybody sees of it, and what its keys show.

use super::Volume;
use crate::format::config::{ConfigError, UnverifiedConfig};
use crate::format::map::PageMap;
use crate::format::node::Node;
use crate::format::record::{Inode, Table};
use crate::format::superblock::{HEADER_BYTES, Header, Superblock};
use crate::format::{CHUNK_BYTES, PAGE_BYTES, RUN_PAGES, SEGMENT_SLOTS};
use crate::space::Class;
use crate::storage::{FileId, Storage};
use crate::tree::{self, Place, Visitor};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;

/// Bytes of a node that records can fill.
const NODE_BYTES: u64 = PAGE_BYTES as u64;

/// What an outsider sees of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct PublicView {
    /// Identity of the volume, hexadecimal.
    pub volume_id: String,
    /// How contents are sealed.
    pub cipher: String,
    /// How often `atrest.json` was changed.
    pub generation: u64,
    /// Live epochs of the volume key.
    pub key_epochs: Vec<u32>,
    /// Key slots.
    pub key_slots: Vec<PublicSlot>,
    /// `super.a` and `super.b`.
    pub superblocks: Vec<PublicSuperblock>,
    /// Segments: number and length.
    pub segments: Vec<PublicSegment>,
    /// Length of everything, in bytes; holes in segments included.
    pub total_bytes: u64,
}

/// A key slot, as `atrest.json` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct PublicSlot {
    /// Its number.
    pub id: u32,
    /// Provider of the key-encryption key.
    pub provider: String,
    /// The provider's name for the key.
    pub key_id: String,
    /// And for its version.
    pub key_version: String,
    /// How the volume key is wrapped.
    pub algorithm: crate::format::config::Algorithm,
}

/// A superblock, as anybody can read it.
#[derive(Clone, Debug, Serialize)]
pub struct PublicSuperblock {
    /// `super.a` or `super.b`
    pub file: &'static str,
    /// Whose it is, hexadecimal.
    pub volume_id: Option<String>,
    /// Epoch of the key that seals it.
    pub key_epoch: Option<u32>,
    /// Why it cannot be read, if so.
    pub problem: Option<String>,
}

/// A segment.
#[derive(Clone, Debug, Serialize)]
pub struct PublicSegment {
    /// Its number.
    pub number: u32,
    /// Its length in bytes; `None` if it cannot be asked.
    pub bytes: Option<u64>,
}

/// What can be known of a volume without its keys. `config` is the content of `atrest.json`.
///
/// # Errors
/// If `atrest.json` cannot be understood. What else cannot be read is part of the view.
pub fn inspect_public(storage: &dyn Storage, config: &[u8]) -> Result<PublicView, ConfigError> {
    let unverified = UnverifiedConfig::decode(config)?;
    let claims = unverified.claims();
    let segments: Vec<PublicSegment> = storage
        .segments()
        .unwrap_or_default()
        .into_iter()
        .map(|number| {
            let bytes = storage.length(FileId::Segment(number)).ok().flatten();
            PublicSegment { number, bytes }
        })
        .collect();
    let in_segments: u64 = segments.iter().filter_map(|segment| segment.bytes).sum();
    let superblocks = [(FileId::SuperA, "super.a"), (FileId::SuperB, "super.b")];
    let others = superblocks.iter().filter_map(|(file, _)| storage.length(*file).ok().flatten());
    let total_bytes = in_segments + others.sum::<u64>() + config.len() as u64;
    Ok(PublicView {
        volume_id: claims.volume_id.to_string(),
        cipher: claims.cipher.clone(),
        generation: claims.generation,
        key_epochs: claims.epochs.iter().map(|(epoch, _)| *epoch).collect(),
        key_slots: claims
            .slots
            .iter()
            .map(|slot| PublicSlot {
                id: slot.id,
                provider: slot.provider.clone(),
                key_id: slot.kek.key_id.clone(),
                key_version: slot.kek.key_version.clone(),
                algorithm: slot.kek.algorithm,
            })
            .collect(),
        superblocks: superblocks.map(|(file, name)| public_superblock(storage, file, name)).into(),
        segments,
        total_bytes,
    })
}

fn public_superblock(storage: &dyn Storage, file: FileId, name: &'static str) -> PublicSuperblock {
    let mut bytes = [0; HEADER_BYTES];
    let header = storage
        .read_at(file, 0, &mut bytes)
        .map_err(|error: io::Error| error.to_string())
        .and_then(|()| Header::decode(&bytes).map_err(|error| error.to_string()));
    let (header, problem) = match header {
        Ok(header) => (Some(header), None),
        Err(problem) => (None, Some(problem)),
    };
    PublicSuperblock {
        file: name,
        volume_id: header.map(|header| header.volume_id.to_string()),
        key_epoch: header.map(|header| header.key_epoch),
        problem,
    }
}

/// What the keys show of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct PrivateView {
    /// How contents are sealed.
    pub cipher: &'static str,
    /// Both superblocks.
    pub superblocks: Vec<SuperblockView>,
    /// The tree's levels, the leaves (level 0) first.
    pub levels: Vec<LevelView>,
    /// Records by table.
    pub tables: Vec<TableView>,
    /// Segments and what is used of them.
    pub segments: Vec<SegmentView>,
    /// Space, in slots of 4096 bytes.
    pub space: SpaceView,
    /// Damage found since the volume was opened, this look at all nodes included.
    pub damage: DamageView,
}

/// A superblock that the keys open.
#[derive(Clone, Debug, Serialize)]
pub struct SuperblockView {
    /// `super.a` or `super.b`
    pub file: &'static str,
    /// Number of its epoch.
    pub sequence: Option<u64>,
    /// Whether the volume was unmounted in order.
    pub clean: Option<bool>,
    /// When it was written, in seconds since 1970.
    pub committed: Option<u64>,
    /// Why it cannot be used, if so.
    pub problem: Option<String>,
}

/// The nodes of one level.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LevelView {
    /// Distance from the leaves.
    pub level: u8,
    /// Nodes, each of which is stored twice.
    pub nodes: u64,
    /// Bytes in use of all their bytes, in percent.
    pub fill_percent: f64,
    #[serde(skip)]
    used_bytes: u64,
}

/// The records of one table.
#[derive(Clone, Debug, Serialize)]
pub struct TableView {
    /// Its name.
    pub table: &'static str,
    /// Records.
    pub records: u64,
    /// Their keys and values, in bytes, before keys are shortened in the nodes.
    pub bytes: u64,
}

/// A segment's use.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentView {
    /// Its number.
    pub number: u32,
    /// `node-a`, `node-b` or `data`
    pub class: &'static str,
    /// Slots in use.
    pub used: u64,
    /// Slots.
    pub total: u64,
}

/// Space, in slots of 4096 bytes.
#[derive(Clone, Debug, Serialize)]
pub struct SpaceView {
    /// In use, or waiting to be free.
    pub used: u64,
    /// Free, with blocks of the disk behind them.
    pub free_backed: u64,
    /// Freed, and kept until nothing durable refers to them.
    pub deferred: u64,
    /// Kept in reserve for metadata and overwriting, when the volume is mounted.
    pub reserve: u64,
}

/// Damage found since the volume was opened.
#[derive(Clone, Debug, Serialize)]
pub struct DamageView {
    /// Nodes with one damaged copy.
    pub nodes_healed: u64,
    /// Nodes with two.
    pub nodes_lost: u64,
    /// Pages of files.
    pub pages_lost: u64,
}

/// An inode with everything that belongs to it.
#[derive(Clone, Debug, Serialize)]
pub struct InodeView {
    /// Its number.
    pub ino: u64,
    /// Its path, if one leads there.
    pub path: Option<String>,
    /// Type and permission bits, octal.
    pub mode: String,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; entries of a directory.
    pub size: u64,
    /// Allocated pages.
    pub pages: u64,
    /// Last access, last change of content and of the inode, creation: seconds since 1970.
    pub times: [String; 4],
    /// Bytes kept inline, if content is.
    pub inline_bytes: Option<u64>,
    /// Where the pages are.
    pub extents: Vec<ExtentView>,
    /// Data keys.
    pub data_keys: Vec<DataKeyView>,
    /// Names of the extended attributes.
    pub xattrs: Vec<String>,
}

/// Pages that are adjacent in the file and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExtentView {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Segment.
    pub segment: u32,
    /// Offset in the segment, in bytes.
    pub segment_offset: u64,
}

/// A data key, by the chunk that it is for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DataKeyView {
    /// Offset of the chunk in the file, in bytes.
    pub offset: u64,
    /// Epoch of the volume key that wraps it.
    pub key_epoch: u32,
}

/// Counts nodes and records.
#[derive(Default)]
struct Census {
    levels: BTreeMap<u8, LevelView>,
    tables: BTreeMap<u8, (u64, u64)>,
}

impl Visitor for Census {
    fn node(&mut self, place: Place<'_>, node: &Node) {
        let level = self.levels.entry(place.level).or_default();
        level.level = place.level;
        level.nodes += 1;
        level.used_bytes += node.used_bytes() as u64;
        if place.level > 0 {
            return;
        }
        let mut key = Vec::new();
        for index in 0..node.len() {
            key.clear();
            node.append_key(index, &mut key);
            let (records, bytes) = self.tables.entry(key[0]).or_default();
            *records += 1;
            *bytes += (key.len() + node.value(index).len()) as u64;
        }
    }

    fn damaged(&mut self, _: Place<'_>, _: &tree::Error) {}
}

impl Volume {
    /// What the keys show of the durable state. Reads all metadata.
    pub fn inspect(&self) -> PrivateView {
        let mut census = Census::default();
        let pin = self.epochs.pin();
        let root = self.epochs.root();
        tree::walk(self.epochs.source(), root.as_ref(), &mut census);
        drop(pin);
        let levels = census.levels.into_values().map(|mut level| {
            let percent = 100.0 * level.used_bytes as f64 / (level.nodes * NODE_BYTES) as f64;
            level.fill_percent = (percent * 10.0).round() / 10.0;
            level
        });
        let tables = census.tables.into_iter().map(|(table, (records, bytes))| TableView {
            table: super::check::describe(table),
            records,
            bytes,
        });
        let superblocks = ["super.a", "super.b"].into_iter().zip(self.epochs.superblocks());
        let space = &self.epochs.space;
        let (used, free_backed) = space.usage();
        let damage = self.epochs.damage();
        PrivateView {
            cipher: self.cipher.name(),
            superblocks: superblocks.map(|(file, read)| superblock_view(file, read)).collect(),
            levels: levels.collect(),
            tables: tables.collect(),
            segments: space.segments().into_iter().map(segment_view).collect(),
            space: SpaceView {
                used,
                free_backed,
                deferred: self.epochs.deferred_slots(),
                reserve: space.reserve_total(),
            },
            damage: DamageView {
                nodes_healed: damage.nodes_healed.load(Ordering::Relaxed),
                nodes_lost: damage.nodes_lost.load(Ordering::Relaxed),
                pages_lost: damage.pages_lost.load(Ordering::Relaxed),
            },
        }
    }

    /// Everything that belongs to an inode.
    ///
    /// # Errors
    /// [`super::Error::NoInode`]; or if its record is damaged. Other records that are damaged are
    /// left out.
    pub fn inspect_path(&self, ino: u64) -> Result<InodeView, super::Error> {
        let inode = self.require(ino)?;
        let Inode { mode, links, uid, gid, size, pages, .. } = inode;
        let has_inline =
            !inode.paged && [libc::S_IFREG, libc::S_IFLNK].contains(&(mode & libc::S_IFMT));
        let inline = if has_inline { self.inline(ino).ok() } else { None };
        let times = [inode.atime, inode.mtime, inode.ctime, inode.btime]
            .map(|time| format!("{}.{:09}", time.seconds, time.nanoseconds));
        let xattrs = self.xattr_names(ino).unwrap_or_default();
        Ok(InodeView {
            ino,
            path: self.path_of(ino).map(|path| super::check::printable(&path)),
            mode: format!("{mode:o}"),
            links,
            uid,
            gid,
            size,
            pages,
            times,
            inline_bytes: inline.map(|bytes| bytes.len() as u64),
            extents: self.extents(ino),
            data_keys: self.data_key_views(ino),
            xattrs: xattrs.iter().map(|name| super::check::printable(name)).collect(),
        })
    }

    /// Where the pages of a file are.
    fn extents(&self, ino: u64) -> Vec<ExtentView> {
        let mut extents: Vec<ExtentView> = Vec::new();
        let from = super::records::map_key(ino, 0);
        let to = super::records::after_owner(Table::PageMap, ino);
        self.scan(&from, &to, &mut |key, value| {
            let run = key.get(9..).and_then(|run| <[u8; 8]>::try_from(run).ok());
            let run = run.map(u64::from_be_bytes).filter(|&run| !self.cuts.is_dead(ino, run));
            let (Some(run), Ok(map)) = (run, PageMap::decode(self.cipher, value)) else {
                return true;
            };
            for (page, pointer) in (run.saturating_mul(RUN_PAGES)..).zip(&map.pages) {
                let Some(slot) = pointer.map(|pointer| pointer.slot) else { continue };
                let offset = page.saturating_mul(PAGE_BYTES as u64);
                let next = ExtentView {
                    offset,
                    bytes: PAGE_BYTES as u64,
                    segment: slot.segment(),
                    segment_offset: slot.offset(),
                };
                match extents.last_mut().filter(|last| last.continues_with(&next)) {
                    Some(last) => last.bytes += next.bytes,
                    None => extents.push(next),
                }
            }
            true
        });
        extents
    }

    fn data_key_views(&self, ino: u64) -> Vec<DataKeyView> {
        let mut keys = Vec::new();
        let from = super::records::dek_key(ino, 0);
        let to = super::records::after_owner(Table::Dek, ino);
        self.scan(&from, &to, &mut |key, value| {
            let chunk = key.get(9..).and_then(|chunk| <[u8; 8]>::try_from(chunk).ok());
            let epoch = value.get(..4).and_then(|epoch| <[u8; 4]>::try_from(epoch).ok());
            if let (Some(chunk), Some(epoch)) = (chunk, epoch) {
                let offset = u64::from_be_bytes(chunk).saturating_mul(CHUNK_BYTES);
                keys.push(DataKeyView { offset, key_epoch: u32::from_le_bytes(epoch) });
            }
            true
        });
        keys
    }
}

impl ExtentView {
    fn continues_with(&self, next: &Self) -> bool {
        self.segment == next.segment
            && self.offset + self.bytes == next.offset
            && self.segment_offset + self.bytes == next.segment_offset
    }
}

fn superblock_view(
    file: &'static str,
    read: Result<Superblock, crate::epoch::Refused>,
) -> SuperblockView {
    let (superblock, problem) = match read {
        Ok(superblock) => (Some(superblock), None),
        Err(error) => (None, Some(error.to_string())),
    };
    SuperblockView {
        file,
        sequence: superblock.as_ref().map(|superblock| superblock.sequence),
        clean: superblock.as_ref().map(|superblock| superblock.clean),
        committed: superblock.as_ref().map(|superblock| superblock.committed),
        problem,
    }
}

fn segment_view((number, used): (u32, u32)) -> SegmentView {
    let class = match Class::of(number) {
        Class::NodeA => "node-a",
        Class::NodeB => "node-b",
        Class::Data => "data",
    };
    SegmentView { number, class, used: u64::from(used), total: SEGMENT_SLOTS }
}
