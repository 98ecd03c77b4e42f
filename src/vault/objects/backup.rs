//! Backups of single objects: all versions in one sealed blob, which only this vault opens.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Entries, ObjectDocument, VERSIONS_MAX, VersionDocument, check_not_deleted};
use crate::crypto::random;
use crate::sys::gcm::GcmKey;
use crate::vault::encoding::{Bytes, to_json};
use crate::vault::error::ApiError;
use crate::vault::request::{Reply, Request};
use crate::vault::route::{Kind, Route};
use crate::vault::store::{Store, StoreError};

const LABEL: &str = "atrest vault backup v1";
/// Longest blob, in bytes: as base64 it has to fit a request.
const BLOB_BYTES_MAX: usize = 700 * 1024;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

#[derive(Serialize, Deserialize)]
struct Document {
    name: String,
    current: String,
    versions: Vec<Version>,
}

#[derive(Serialize, Deserialize)]
struct Version {
    version: String,
    document: VersionDocument,
    data: Bytes,
}

#[derive(Serialize, Deserialize)]
struct Blob {
    value: Bytes,
}

/// A blob from which [`restore`] makes the object again, with all its versions.
///
/// # Errors
/// 404; 400 if it is too large; the store's.
pub fn backup(store: &Store, route: &Route) -> Result<Reply, ApiError> {
    let kind = route.operation.kind();
    let (entries, name) = (Entries(kind), &route.name);
    let object: Option<ObjectDocument> = store.get_json(&entries.live(name))?;
    let object = object.ok_or_else(|| entries.not_found(name))?;
    let prefix = entries.version(name, "");
    let mut versions = Vec::new();
    for entry in store.keys(&prefix, None, VERSIONS_MAX) {
        let version = entry.strip_prefix(&prefix).unwrap_or_default().to_owned();
        let document = store.get_json(&entry)?;
        let data = store.get(&entries.data(name, &version))?;
        let (Some(document), Some(data)) = (document, data) else {
            return Err(StoreError::Malformed(entry).into());
        };
        versions.push(Version { version, document, data: Bytes(data) });
    }
    let document = Document { name: name.clone(), current: object.current, versions };
    let plain = to_json(&document);
    if plain.len() + NONCE_BYTES + TAG_BYTES > BLOB_BYTES_MAX {
        let message = format!("{name} has too many versions for a backup; back the vault up");
        return Err(ApiError::bad_parameter(message));
    }
    let value = Bytes(Zeroizing::new(seal(store, kind, &plain)));
    Ok(Reply::json(200, &Blob { value }))
}

/// Makes an object again; returns its name and its current version.
///
/// # Errors
/// 400 if the blob is not of this vault or kind; 409 if the name is in use; the store's.
pub fn restore(
    store: &Store,
    request: &Request,
    kind: Kind,
) -> Result<(String, String, VersionDocument), ApiError> {
    let blob: Blob = request.json()?;
    let refused = || ApiError::bad_parameter("this is no backup of this vault, or was changed");
    let plain = open(store, kind, &blob.value).ok_or_else(refused)?;
    let document: Document = serde_json::from_slice(&plain).map_err(|_| refused())?;
    let (entries, name) = (Entries(kind), document.name);
    let current = document.versions.iter().find(|version| version.version == document.current);
    let current = current.ok_or_else(refused)?.document.clone();
    store.change(|change| {
        check_not_deleted(change, entries, &name)?;
        if change.has(&entries.live(&name)) {
            let message = format!("{name} exists; a backup is restored under its own name only");
            return Err(ApiError::new(409, "Conflict", message));
        }
        let object = ObjectDocument { current: document.current.clone(), deletion: None };
        change.put_json(&entries.live(&name), &object);
        for version in document.versions {
            change.put_json(&entries.version(&name, &version.version), &version.document);
            change.put(&entries.data(&name, &version.version), version.data.0);
        }
        Ok(())
    })?;
    Ok((name, document.current, current))
}

/// `nonce || AES-256-GCM(key, nonce, collection, plain)`
fn seal(store: &Store, kind: Kind, plain: &[u8]) -> Vec<u8> {
    let mut blob = vec![0; NONCE_BYTES + plain.len() + TAG_BYTES];
    let (nonce, rest) = blob.split_at_mut(NONCE_BYTES);
    random::fill(nonce);
    let nonce = (&*nonce).try_into().expect("12 bytes");
    let (sealed, tag) = rest.split_at_mut(plain.len());
    tag.copy_from_slice(&key(store).seal(nonce, kind.collection().as_bytes(), plain, sealed));
    blob
}

fn open(store: &Store, kind: Kind, blob: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = blob.split_first_chunk::<NONCE_BYTES>()?;
    let (sealed, tag) = rest.split_last_chunk::<TAG_BYTES>()?;
    let mut plain = Zeroizing::new(vec![0; sealed.len()]);
    let aad = kind.collection().as_bytes();
    key(store).open(nonce, aad, tag, sealed, &mut plain).then_some(plain)
}

fn key(store: &Store) -> GcmKey {
    let key = store.derive_key(LABEL, 32);
    GcmKey::new(key.expose().try_into().expect("derived with this length"))
}
