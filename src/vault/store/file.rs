//! The file `state`: reading it through, appending to it, writing it anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::StoreError;
use super::record::{
    self, BLOCK_BYTES, Chain, Entry, FileKeys, HEADER_BYTES, Head, RECORD_BYTES_MAX,
};
use crate::crypto::{Secret, random};
use crate::format::VolumeId;

/// Name of the file in the vault's directory.
pub const NAME: &str = "state";
/// Its name while it is written.
const NEW_NAME: &str = "state.new";
/// Records of a snapshot are about this long: a read opens a whole record.
const SNAPSHOT_RECORD_BYTES: usize = 4096;

/// Where a record is, and what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Its sequence.
    pub sequence: u64,
    /// The chain before it.
    pub chain: Chain,
}

/// An open file.
pub struct StateFile {
    file: File,
    keys: FileKeys,
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug)]
pub struct End(pub Place);

impl StateFile {
    /// Opens the file in `directory` and calls `found` with every record, in order. Returns where
    /// the next one goes, and whether a record that a crash had torn was cut off.
    ///
    /// # What can be torn
    /// A record is appended and synced before anything else is done to the file, so a crash can
    /// leave at most one, the last, incomplete: the file ends before it does, or blocks of it were
    /// never written and are zeros (what filesystems show where nothing was written; a sealed block
    /// is never zero). It was not acknowledged, and is cut off. Anything else that does not
    /// authenticate was changed by somebody, and is refused. Whoever cuts the file at the end of an
    /// earlier record puts an older state back: only the host's memory of the sequence shows that.
    ///
    /// # Errors
    /// [`StoreError::Tampered`], or the disk's.
    pub fn open(
        directory: &Path,
        master: &Secret,
        vault: VolumeId,
        mut found: impl FnMut(&Place, Vec<Entry>) -> Result<(), StoreError>,
    ) -> Result<(Self, End, bool), StoreError> {
        let path = directory.join(NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        let length = file.metadata().map_err(StoreError::io("look at", &path))?.len();
        let mut block = [0; BLOCK_BYTES];
        if length < BLOCK_BYTES as u64 {
            return Err(StoreError::Tampered { offset: 0 });
        }
        file.read_exact_at(&mut block, 0).map_err(StoreError::io("read", &path))?;
        let (head, chain) =
            Head::decode(&block, master, vault).ok_or(StoreError::Tampered { offset: 0 })?;
        let opened = Self { file, keys: FileKeys::derive(master, vault, &head.salt) };
        let mut place = Place { offset: BLOCK_BYTES as u64, sequence: head.first, chain };
        let mut torn = false;
        while place.offset < length {
            match opened.scan(&place, length)? {
                Scanned::Record { bytes, entries, chain } => {
                    found(&place, entries)?;
                    place = Place {
                        offset: place.offset + bytes as u64,
                        sequence: place.sequence + 1,
                        chain,
                    };
                }
                Scanned::Torn => {
                    torn = true;
                    break;
                }
            }
        }
        if place.sequence - head.first < head.snapshot_records {
            return Err(StoreError::Tampered { offset: place.offset });
        }
        if torn {
            let cut = opened.file.set_len(place.offset).and_then(|()| opened.file.sync_all());
            cut.map_err(StoreError::io("cut", &path))?;
        }
        Ok((opened, End(place), torn))
    }

    fn scan(&self, place: &Place, length: u64) -> Result<Scanned, StoreError> {
        let left = length - place.offset;
        let tampered = || StoreError::Tampered { offset: place.offset };
        let mut block = [0; BLOCK_BYTES];
        if left < BLOCK_BYTES as u64 {
            return Ok(Scanned::Torn);
        }
        self.read_at(&mut block, place.offset)?;
        let header = record::open_header(&self.keys, place.sequence, &place.chain, &block);
        let Some(bytes) = header else {
            let is_last = left <= RECORD_BYTES_MAX as u64;
            return if is_last && is_zero(&block) { Ok(Scanned::Torn) } else { Err(tampered()) };
        };
        if bytes as u64 > left {
            return Ok(Scanned::Torn);
        }
        let mut record = vec![0; bytes];
        self.read_at(&mut record, place.offset)?;
        match record::open(&self.keys, &place.chain, &record) {
            Some((plain, chain)) => {
                let entries = record::entries(&plain).ok_or_else(tampered)?;
                Ok(Scanned::Record { bytes, entries, chain })
            }
            None if bytes as u64 == left && record.chunks(BLOCK_BYTES).any(is_zero) => {
                Ok(Scanned::Torn)
            }
            None => Err(tampered()),
        }
    }

    /// The entries of a record that [`StateFile::open`] found or [`StateFile::append`] wrote.
    ///
    /// # Errors
    /// [`StoreError::Tampered`] if it is not there any more, or the disk's.
    pub fn read(&self, place: &Place) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let tampered = || StoreError::Tampered { offset: place.offset };
        let mut block = [0; HEADER_BYTES];
        self.read_at(&mut block, place.offset)?;
        let header = record::open_header(&self.keys, place.sequence, &place.chain, &block);
        let mut record = vec![0; header.ok_or_else(tampered)?];
        self.read_at(&mut record, place.offset)?;
        let opened = record::open(&self.keys, &place.chain, &record).ok_or_else(tampered)?;
        Ok(opened.0)
    }

    /// Appends a record and makes it durable; returns where the next one goes.
    ///
    /// # Errors
    /// Those of the disk. [`AppendError::Undone`]: the file is as it was. [`AppendError::Final`]:
    /// nobody knows what is on the disk; nothing may be appended any more.
    pub fn append(&self, end: &End, entries: &[u8]) -> Result<End, AppendError> {
        let place = end.0;
        let (record, chain) = record::seal(&self.keys, place.sequence, &place.chain, entries);
        if let Err(error) = self.file.write_all_at(&record, place.offset) {
            return match self.file.set_len(place.offset) {
                Ok(()) => Err(AppendError::Undone(error)),
                Err(_) => Err(AppendError::Final(error)),
            };
        }
        self.file.sync_data().map_err(AppendError::Final)?;
        Ok(End(Place {
            offset: place.offset + record.len() as u64,
            sequence: place.sequence + 1,
            chain,
        }))
    }

    /// Writes a new file with what `next` returns until it returns `None`, and puts it in the
    /// place of the old one, if there is one. Calls `written` with the place of each record.
    ///
    /// # Crash argument
    /// 1. The new file is whole and synced under its temporary name. A crash leaves the old one;
    ///    the temporary file is overwritten by the next call.
    /// 2. It is renamed over the old one. A crash leaves either; both hold the same entries.
    /// 3. The directory is synced before anything is appended, so that no appended record can be
    ///    in a file that the crash takes away again.
    ///
    /// # Errors
    /// Those of the disk and of `next`. After an error in step 3 either file may be the one that
    /// stays: nothing may be appended to any.
    pub fn write_new(
        directory: &Path,
        (master, vault): (&Secret, VolumeId),
        first: u64,
        contents: &[Snapshot<'_>],
        mut written: impl FnMut(&Place, &Snapshot<'_>),
    ) -> Result<(Self, End), StoreError> {
        let (path, name) = (directory.join(NEW_NAME), directory.join(NAME));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &path)(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        let mut salt = [0; 16];
        random::fill(&mut salt);
        let head = Head { salt, first, snapshot_records: contents.len() as u64 };
        let (block, chain) = head.encode(master, vault);
        let keys = FileKeys::derive(master, vault, &salt);
        file.write_all(&block).map_err(StoreError::io("write", &path))?;
        let mut place = Place { offset: BLOCK_BYTES as u64, sequence: first, chain };
        for snapshot in contents {
            let entries = snapshot.encode()?;
            let (record, chain) = record::seal(&keys, place.sequence, &place.chain, &entries);
            file.write_all(&record).map_err(StoreError::io("write", &path))?;
            written(&place, snapshot);
            place = Place {
                offset: place.offset + record.len() as u64,
                sequence: place.sequence + 1,
                chain,
            };
        }
        file.sync_all().map_err(StoreError::io("sync", &path))?;
        std::fs::rename(&path, &name).map_err(StoreError::io("replace", &name))?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(StoreError::io("sync", directory))?;
        Ok((Self { file, keys }, End(place)))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.file.read_exact_at(bytes, offset).map_err(StoreError::io("read", Path::new(NAME)))
    }
}

enum Scanned {
    Record { bytes: usize, entries: Vec<Entry>, chain: Chain },
    Torn,
}

/// Why a record was not appended.
#[derive(Debug)]
pub enum AppendError {
    /// Nothing happened.
    Undone(io::Error),
    /// Whatever happened.
    Final(io::Error),
}

/// Reads the value of a key.
pub type Reader<'a> = dyn Fn(&str) -> Result<Zeroizing<Vec<u8>>, StoreError> + 'a;

/// Entries that go into one record of a snapshot: keys, and how to read their values.
pub struct Snapshot<'a> {
    /// The keys.
    pub keys: Vec<&'a str>,
    read: &'a Reader<'a>,
}

impl<'a> Snapshot<'a> {
    /// Groups keys, each with the length of its value, into records.
    pub fn group(
        entries: impl Iterator<Item = (&'a str, usize)>,
        read: &'a Reader<'a>,
    ) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut bytes = usize::MAX;
        for (key, value_bytes) in entries {
            let more = record::entry_bytes(key, value_bytes);
            if bytes.saturating_add(more) > SNAPSHOT_RECORD_BYTES {
                groups.push(Self { keys: Vec::new(), read });
                bytes = 0;
            }
            bytes += more;
            if let Some(last) = groups.last_mut() {
                last.keys.push(key);
            }
        }
        groups
    }

    fn encode(&self) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let values: Result<Vec<_>, _> = self.keys.iter().map(|key| (self.read)(key)).collect();
        let values = values?;
        let pairs = || self.keys.iter().zip(&values);
        let bytes = pairs().map(|(key, value)| record::entry_bytes(key, value.len())).sum();
        // With room for all, so that no copy is left where it grew.
        let mut entries = Zeroizing::new(Vec::with_capacity(bytes));
        pairs().for_each(|(key, value)| record::push_entry(&mut entries, key, Some(value)));
        Ok(entries)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
