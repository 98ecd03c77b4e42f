//! The two superblocks: which one is newest, and writing the other.

use crate::crypto::{Cipher, Nonce, PageKey, Tag, kdf, random};
use crate::format::superblock::{BODY_BYTES, HEADER_BYTES, Header, Superblock, SuperblockError};
use crate::format::{PAGE_BYTES, VolumeId};
use crate::key::VolumeKeys;
use crate::storage::{FileId, Storage};
use std::io;

/// Why one superblock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The file is missing, short or cannot be read.
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    /// Its public part is not one of ours.
    #[error(transparent)]
    Malformed(#[from] SuperblockError),
    /// It belongs to another volume.
    #[error("it belongs to volume {0}")]
    OtherVolume(VolumeId),
    /// It is sealed under a key epoch that the configuration does not list.
    #[error("it is sealed under key epoch {0}, which the configuration does not list")]
    UnknownEpoch(u32),
    /// The seal is broken: damaged or forged.
    #[error("it does not authenticate")]
    Tampered,
}

/// The superblock file that holds this sequence number.
pub(super) fn file_of(sequence: u64) -> FileId {
    if sequence % 2 == 0 { FileId::SuperA } else { FileId::SuperB }
}

/// Reads both superblocks: `super.a`, then `super.b`.
pub(super) fn read_both(
    storage: &dyn Storage,
    keys: &VolumeKeys,
    volume_id: VolumeId,
) -> [Result<Superblock, Refused>; 2] {
    [FileId::SuperA, FileId::SuperB].map(|file| read(storage, keys, volume_id, file))
}

fn read(
    storage: &dyn Storage,
    keys: &VolumeKeys,
    volume_id: VolumeId,
    file: FileId,
) -> Result<Superblock, Refused> {
    let mut bytes = Box::new([0; PAGE_BYTES]);
    storage.read_at(file, 0, &mut *bytes).map_err(Refused::Unreadable)?;
    let (header, sealed) = bytes.split_at(HEADER_BYTES);
    let header = Header::decode(header.try_into().expect("80 bytes"))?;
    if header.volume_id != volume_id {
        return Err(Refused::OtherVolume(header.volume_id));
    }
    let key = sealing_key(keys, &header).ok_or(Refused::UnknownEpoch(header.key_epoch))?;
    let mut body = Box::new([0; BODY_BYTES]);
    key.open(Nonce([0; 12]), &header.associated_data(), Tag(header.tag), sealed, &mut *body)
        .map_err(|_| Refused::Tampered)?;
    let superblock = Superblock::decode(&body)?;
    // A copy of the other file would be an older state under a newer name.
    if file_of(superblock.sequence) != file { Err(Refused::Tampered) } else { Ok(superblock) }
}

/// Writes a superblock into its file and syncs it.
pub(super) fn write(
    storage: &dyn Storage,
    keys: &VolumeKeys,
    volume_id: VolumeId,
    superblock: &Superblock,
) -> io::Result<()> {
    let mut salt = [0; 16];
    random::fill(&mut salt);
    let mut header = Header { volume_id, key_epoch: keys.current_epoch(), salt, tag: [0; 16] };
    let key = sealing_key(keys, &header).expect("the current epoch has a metadata key");
    let mut bytes = Box::new([0; PAGE_BYTES]);
    let aad = header.associated_data();
    let body = superblock.encode();
    let Tag(tag) = key.seal(Nonce([0; 12]), &aad, &*body, &mut bytes[HEADER_BYTES..]);
    header.tag = tag;
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    let file = file_of(superblock.sequence);
    // It was missing when the volume was opened, from the other one.
    if storage.length(file)?.is_none() {
        storage.create(file)?;
        storage.sync_directory()?;
    }
    storage.write_at(file, 0, &*bytes)?;
    storage.sync(file)
}

fn sealing_key(keys: &VolumeKeys, header: &Header) -> Option<PageKey> {
    let metadata_key = keys.metadata_key(header.key_epoch)?;
    let derived = kdf::derive(metadata_key, "atrest superblock v1", &header.salt, 32);
    Some(PageKey::new(Cipher::Aes256Gcm, &derived))
}
