//! Makes archives, sound ones and such as nobody should make. Written from APPNOTE.TXT, apart from
//! the code that reads them.

use std::io::Write as _;
use std::sync::Arc;

use atrest::package::{Limits, Package, Refusal};
use flate2::Compression;
use flate2::write::DeflateEncoder;

/// An archive to be made. What is `None` is as it should be.
#[derive(Clone, Default)]
pub struct Zip {
    /// In the order in which they lie in the archive.
    pub members: Vec<Member>,
    /// Before everything.
    pub prefix: Vec<u8>,
    /// Whether offsets leave the prefix out.
    pub offsets_without_prefix: bool,
    /// The comment at the end.
    pub comment: Vec<u8>,
    /// The number of entries in the end record.
    pub entries: Option<u16>,
    /// The bytes of the central directory in the end record.
    pub directory_bytes: Option<u32>,
    /// Whether the end record is that of ZIP64.
    pub zip64: bool,
    /// The number of this disk in the end record.
    pub disk: u16,
}

/// A member to be made.
#[derive(Clone)]
pub struct Member {
    pub name: Vec<u8>,
    pub content: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub host: u8,
    pub attributes: u32,
    pub date: u16,
    pub time: u16,
    pub extra: Vec<u8>,
    pub local_extra: Vec<u8>,
    /// Instead of the compressed content.
    pub compressed: Option<Vec<u8>>,
    /// What headers say instead of what is so.
    pub crc: Option<u32>,
    pub size: Option<u64>,
    pub compressed_size: Option<u64>,
    /// Of the local header alone.
    pub local_name: Option<Vec<u8>>,
    pub local_method: Option<u16>,
    pub local_size: Option<u32>,
    /// Offset of the local header in the central directory.
    pub header: Option<u64>,
    /// The number of the disk in the central directory.
    pub disk: u16,
    /// After the data, as a data descriptor is.
    pub after: Vec<u8>,
}

pub const STORED: u16 = 0;
pub const DEFLATED: u16 = 8;
pub const UNIX: u8 = 3;

/// A regular file by Unix, deflated.
pub fn file(name: &str, content: &[u8]) -> Member {
    Member {
        name: name.into(),
        content: content.into(),
        method: DEFLATED,
        flags: if name.is_ascii() { 0 } else { 1 << 11 },
        host: UNIX,
        attributes: 0o100644 << 16,
        date: 0x5a21,
        time: 0,
        extra: Vec::new(),
        local_extra: Vec::new(),
        compressed: None,
        crc: None,
        size: None,
        compressed_size: None,
        local_name: None,
        local_method: None,
        local_size: None,
        header: None,
        disk: 0,
        after: Vec::new(),
    }
}

/// A directory.
pub fn directory(name: &str) -> Member {
    Member { method: STORED, attributes: 0o040755 << 16, ..file(name, b"") }
}

/// A symbolic link.
pub fn link(name: &str, target: &str) -> Member {
    Member { method: STORED, attributes: 0o120777 << 16, ..file(name, target.as_bytes()) }
}

/// An archive of these members.
pub fn zip(members: &[Member]) -> Zip {
    Zip { members: members.to_vec(), ..Zip::default() }
}

/// An extra field.
pub fn field(tag: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes
}

/// Raw deflate at this level (0 to 9).
pub fn deflate(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// CRC-32, by another crate than the one that is tested.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

impl Member {
    fn data(&self) -> Vec<u8> {
        match &self.compressed {
            Some(data) => data.clone(),
            None if self.method == DEFLATED => deflate(&self.content, 6),
            None => self.content.clone(),
        }
    }

    fn fixed(&self, method: u16) -> Vec<u8> {
        [20, self.flags, method, self.time, self.date]
            .into_iter()
            .flat_map(u16::to_le_bytes)
            .collect()
    }

    fn sizes(&self, data: &[u8]) -> (u32, u64, u64) {
        let crc = self.crc.unwrap_or_else(|| crc32(&self.content));
        let compressed = self.compressed_size.unwrap_or(data.len() as u64);
        (crc, compressed, self.size.unwrap_or(self.content.len() as u64))
    }

    fn write_local(&self, out: &mut Vec<u8>) {
        let data = self.data();
        let (crc, compressed, size) = self.sizes(&data);
        let name = self.local_name.as_ref().unwrap_or(&self.name);
        out.extend(0x0403_4b50_u32.to_le_bytes());
        out.extend(self.fixed(self.local_method.unwrap_or(self.method)));
        if self.flags & 8 != 0 {
            out.extend([0; 12]);
        } else {
            out.extend(crc.to_le_bytes());
            out.extend((compressed as u32).to_le_bytes());
            out.extend(self.local_size.unwrap_or(size as u32).to_le_bytes());
        }
        out.extend((name.len() as u16).to_le_bytes());
        out.extend((self.local_extra.len() as u16).to_le_bytes());
        out.extend(name);
        out.extend(&self.local_extra);
        out.extend(data);
        if self.flags & 8 != 0 {
            out.extend(0x0807_4b50_u32.to_le_bytes());
            out.extend(crc.to_le_bytes());
            out.extend((compressed as u32).to_le_bytes());
            out.extend((size as u32).to_le_bytes());
        }
        out.extend(&self.after);
    }

    fn write_central(&self, offset: u64, out: &mut Vec<u8>) {
        let (crc, compressed, size) = self.sizes(&self.data());
        out.extend(0x0201_4b50_u32.to_le_bytes());
        out.extend([20, self.host]);
        out.extend(self.fixed(self.method));
        out.extend(crc.to_le_bytes());
        let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let wide: Vec<u8> = [size, compressed]
            .into_iter()
            .filter(|value| short(*value) == u32::MAX)
            .flat_map(u64::to_le_bytes)
            .collect();
        let mut extra = self.extra.clone();
        if !wide.is_empty() {
            extra.extend(field(1, &wide));
        }
        out.extend(short(compressed).to_le_bytes());
        out.extend(short(size).to_le_bytes());
        for length in [self.name.len(), extra.len(), 0] {
            out.extend((length as u16).to_le_bytes());
        }
        out.extend(self.disk.to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.attributes.to_le_bytes());
        out.extend((self.header.unwrap_or(offset) as u32).to_le_bytes());
        out.extend(&self.name);
        out.extend(extra);
    }
}

impl Zip {
    /// The archive.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.prefix.clone();
        let shift = if self.offsets_without_prefix { self.prefix.len() } else { 0 };
        let mut directory = Vec::new();
        for member in &self.members {
            member.write_central((out.len() - shift) as u64, &mut directory);
            member.write_local(&mut out);
        }
        let offset = (out.len() - shift) as u64;
        let bytes = directory.len() as u64;
        out.extend(directory);
        let entries = self.entries.unwrap_or(self.members.len() as u16);
        let end64 = (out.len() - shift) as u64;
        if self.zip64 {
            out.extend(0x0606_4b50_u32.to_le_bytes());
            out.extend(44_u64.to_le_bytes());
            out.extend([45, 3, 45, 0]);
            out.extend([0; 8]);
            for value in [entries.into(), entries.into(), bytes, offset] {
                out.extend(u64::to_le_bytes(value));
            }
            out.extend(0x0706_4b50_u32.to_le_bytes());
            out.extend([0; 4]);
            out.extend(end64.to_le_bytes());
            out.extend(1_u32.to_le_bytes());
        }
        out.extend(0x0605_4b50_u32.to_le_bytes());
        out.extend(self.disk.to_le_bytes());
        out.extend([0; 2]);
        let (entries, bytes, offset) = if self.zip64 {
            (u16::MAX, u32::MAX, u32::MAX)
        } else {
            (entries, bytes as u32, offset as u32)
        };
        out.extend(entries.to_le_bytes());
        out.extend(entries.to_le_bytes());
        out.extend(self.directory_bytes.unwrap_or(bytes).to_le_bytes());
        out.extend(offset.to_le_bytes());
        out.extend((self.comment.len() as u16).to_le_bytes());
        out.extend(&self.comment);
        out
    }

    /// Opens it.
    pub fn open(&self) -> Result<Package, Refusal> {
        open(self.bytes(), &Limits::default())
    }
}

/// Opens an archive.
pub fn open(bytes: Vec<u8>, limits: &Limits) -> Result<Package, Refusal> {
    Package::open(Arc::new(bytes), limits)
}

/// All of a file of a package.
pub fn read(package: &Package, path: &str) -> Vec<u8> {
    let id = package.index().find(path.as_bytes()).expect("it is there");
    let mut buffer = Vec::new();
    package.read(id, 0, usize::MAX >> 1, &mut buffer).expect("it is sound");
    buffer
}
