//! What keys and secrets have in common: names with versions, attributes, tags, and a life:
//! live, deleted but recoverable, purged.
//!
//! | Entry of the store | Value |
//! | --- | --- |
//! | `key/NAME`, `deletedkey/NAME` | [`ObjectDocument`]; there is at most one of the two |
//! | `keyversion/NAME/VERSION` | [`VersionDocument`] |
//! | `keydata/NAME/VERSION` | the private key |
//! | the same with `secret` | and the secret's value |

mod backup;
mod list;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::directory::{Settings, settings};
use super::error::ApiError;
use super::keys::rotation;
use super::request::{Reply, Request};
use super::route::{Kind, Route};
use super::store::{Store, StoreError, Transaction};
use crate::crypto::random;

pub use backup::{backup, restore};
pub use list::{list, list_deleted, list_versions};

/// Most versions of an object.
pub const VERSIONS_MAX: usize = 1000;
/// Most tags, and longest name and value of one, in characters.
const TAGS_MAX: usize = 15;
const TAG_CHARACTERS_MAX: usize = 256;
const DAY_SECONDS: i64 = 24 * 60 * 60;

/// A name: which version is current, and whether it is deleted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectDocument {
    /// The current version.
    pub current: String,
    /// When it was deleted, if it is.
    pub deletion: Option<Deletion>,
}

/// When an object was deleted, and when it goes for good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When it was deleted.
    pub deleted: i64,
    /// When it is purged.
    pub purge: i64,
}

/// Tags, by name.
pub type Tags = BTreeMap<String, String>;

/// A version, without what is secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionDocument {
    /// Whether, and from when to when, it may be used.
    pub attributes: Attributes,
    /// Tags.
    pub tags: Option<Tags>,
    /// What else there is, of a key or of a secret.
    pub details: Value,
}

/// Times are seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Whether it may be used.
    pub enabled: bool,
    /// Not to be used before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// Not to be used from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// When it was made.
    pub created: i64,
    /// When it was last changed.
    pub updated: i64,
}

/// Attributes as a request has them; what is missing stays as it is.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct NewAttributes {
    enabled: Option<bool>,
    nbf: Option<i64>,
    exp: Option<i64>,
    exportable: Option<bool>,
}

impl Attributes {
    /// Of what is made at `now`.
    ///
    /// # Errors
    /// 400 if they contradict each other.
    pub fn new(new: Option<&NewAttributes>, now: i64) -> Result<Self, ApiError> {
        let attributes = Self { enabled: true, nbf: None, exp: None, created: now, updated: now };
        attributes.with(new, now)
    }

    /// The same with what `new` changes at `now`.
    ///
    /// # Errors
    /// 400 if they contradict each other.
    pub fn with(mut self, new: Option<&NewAttributes>, now: i64) -> Result<Self, ApiError> {
        let new = new.copied().unwrap_or_default();
        if new.exportable == Some(true) {
            let message = "keys of this vault do not leave it: exportable cannot be true";
            return Err(ApiError::bad_parameter(message));
        }
        self.enabled = new.enabled.unwrap_or(self.enabled);
        self.nbf = new.nbf.or(self.nbf);
        self.exp = new.exp.or(self.exp);
        self.updated = now;
        match (self.nbf, self.exp) {
            (Some(nbf), Some(exp)) if exp <= nbf => {
                Err(ApiError::bad_parameter("exp must be after nbf"))
            }
            _ if self.nbf.is_some_and(|nbf| nbf < 0) || self.exp.is_some_and(|exp| exp < 0) => {
                Err(ApiError::bad_parameter("nbf and exp are seconds since 1970"))
            }
            _ => Ok(self),
        }
    }

    /// As a reply has them.
    pub fn to_json(self, settings: &Settings) -> Value {
        let mut value = json!(self);
        value["recoveryLevel"] = json!(recovery_level(settings));
        value["recoverableDays"] = json!(settings.retention_days);
        value
    }
}

/// Key Vault's word for how what is deleted can be recovered.
pub fn recovery_level(settings: &Settings) -> &'static str {
    match (settings.retention_days, settings.purge_protection) {
        (90.., true) => "Recoverable",
        (90.., false) => "Recoverable+Purgeable",
        (_, true) => "CustomizedRecoverable",
        (_, false) => "CustomizedRecoverable+Purgeable",
    }
}

/// Checks tags.
///
/// # Errors
/// 400 if they are too many or too long.
pub fn check_tags(tags: Option<&Tags>) -> Result<(), ApiError> {
    let tags = tags.into_iter().flatten();
    let long = |text: &String| text.chars().count() > TAG_CHARACTERS_MAX;
    if tags.clone().count() > TAGS_MAX
        || tags.clone().any(|(name, value)| long(name) || long(value))
    {
        let message = format!("there are up to {TAGS_MAX} tags of {TAG_CHARACTERS_MAX} characters");
        return Err(ApiError::bad_parameter(message));
    }
    Ok(())
}

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Entries of the store for one kind of objects.
#[derive(Clone, Copy)]
pub struct Entries(pub Kind);

impl Entries {
    fn word(self) -> &'static str {
        match self.0 {
            Kind::Key => "key",
            Kind::Secret => "secret",
        }
    }

    /// `key/NAME`; all of them for the empty name.
    pub fn live(self, name: &str) -> String {
        format!("{}/{name}", self.word())
    }

    /// `deletedkey/NAME`; all of them for the empty name.
    pub fn deleted(self, name: &str) -> String {
        format!("deleted{}/{name}", self.word())
    }

    /// `keyversion/NAME/VERSION`; all of the object for the empty version.
    pub fn version(self, name: &str, version: &str) -> String {
        format!("{}version/{name}/{version}", self.word())
    }

    /// `keydata/NAME/VERSION`
    pub fn data(self, name: &str, version: &str) -> String {
        format!("{}data/{name}/{version}", self.word())
    }

    /// 404 with the kind's code.
    pub fn not_found(self, name: &str) -> ApiError {
        let (code, word) = match self.0 {
            Kind::Key => ("KeyNotFound", "key"),
            Kind::Secret => ("SecretNotFound", "secret"),
        };
        let message = format!("a {word} with the name or version {name} is not in this vault");
        ApiError::not_found(code, message)
    }

    /// `https://HOST/keys/NAME`
    pub fn id(self, request: &Request, name: &str) -> String {
        format!("{}/{}/{name}", request.base_url(), self.0.collection())
    }
}

/// Draws the name of a version: 32 hexadecimal digits.
pub fn random_version() -> String {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Finds a version of a live object; the current one if the route names none.
///
/// # Errors
/// 404, or the store's.
pub fn find(store: &Store, route: &Route) -> Result<(String, VersionDocument), ApiError> {
    let entries = Entries(route.operation.kind());
    let object: Option<ObjectDocument> = store.get_json(&entries.live(&route.name))?;
    let object = object.ok_or_else(|| entries.not_found(&route.name))?;
    find_version(store, entries, &route.name, route.version.clone().unwrap_or(object.current))
}

fn find_version(
    store: &Store,
    entries: Entries,
    name: &str,
    version: String,
) -> Result<(String, VersionDocument), ApiError> {
    let is_version = version.len() <= 64 && version.bytes().all(|b| b.is_ascii_alphanumeric());
    let found = match is_version {
        true => store.get_json(&entries.version(name, &version))?,
        false => None,
    };
    let document = found.ok_or_else(|| entries.not_found(&format!("{name}/{version}")))?;
    Ok((version, document))
}

/// Adds a version with its secret part, which is the current one from then on, within a change.
///
/// # Errors
/// 409 if the name is deleted but can be recovered; 400 if there are too many versions.
pub fn add_version(
    change: &mut Transaction,
    entries: Entries,
    name: &str,
    (version, document): (&str, &VersionDocument),
    data: Zeroizing<Vec<u8>>,
) -> Result<(), ApiError> {
    check_not_deleted(change, entries, name)?;
    if change.keys(&entries.version(name, "")).len() >= VERSIONS_MAX {
        let message = format!("{name} has {VERSIONS_MAX} versions, which is as many as can be");
        return Err(ApiError::bad_parameter(message));
    }
    let object = ObjectDocument { current: version.to_owned(), deletion: None };
    change.put_json(&entries.live(name), &object);
    change.put_json(&entries.version(name, version), document);
    change.put(&entries.data(name, version), data);
    Ok(())
}

fn check_not_deleted(change: &Transaction, entries: Entries, name: &str) -> Result<(), ApiError> {
    if !change.has(&entries.deleted(name)) {
        return Ok(());
    }
    let message = format!(
        "{name} is deleted and can be recovered; the name can be used again when it is recovered \
         or purged"
    );
    Err(ApiError::conflict("ObjectIsDeletedButRecoverable", message))
}

/// What [`update`] changes.
#[derive(Default)]
pub struct Update {
    /// Attributes.
    pub attributes: Option<NewAttributes>,
    /// All tags.
    pub tags: Option<Tags>,
}

/// Changes a version's attributes and tags, and with `change_details` the rest.
///
/// # Errors
/// 400, 404, or the store's.
pub fn update(
    store: &Store,
    route: &Route,
    update: Update,
    change_details: impl FnOnce(&mut Value) -> Result<(), ApiError>,
) -> Result<(String, VersionDocument), ApiError> {
    check_tags(update.tags.as_ref())?;
    let entries = Entries(route.operation.kind());
    store.change(|change| {
        let (version, mut document) = find(store, route)?;
        document.attributes = document.attributes.with(update.attributes.as_ref(), now())?;
        document.tags = update.tags.or(document.tags);
        change_details(&mut document.details)?;
        change.put_json(&entries.version(&route.name, &version), &document);
        Ok((version, document))
    })
}

/// Deletes an object with all its versions; it can be recovered.
///
/// # Errors
/// 404, or the store's.
pub fn delete(
    store: &Store,
    route: &Route,
) -> Result<(String, VersionDocument, Deletion), ApiError> {
    let entries = Entries(route.operation.kind());
    let retention = i64::from(settings(store)?.retention_days) * DAY_SECONDS;
    store.change(|change| {
        let live = entries.live(&route.name);
        let mut object: ObjectDocument =
            change.get_json(&live)?.ok_or_else(|| entries.not_found(&route.name))?;
        let deleted = now();
        let deletion = Deletion { deleted, purge: deleted + retention };
        object.deletion = Some(deletion);
        change.remove(&live);
        change.put_json(&entries.deleted(&route.name), &object);
        let (version, document) = find_version(store, entries, &route.name, object.current)?;
        Ok((version, document, deletion))
    })
}

/// A deleted object.
///
/// # Errors
/// 404, or the store's.
pub fn find_deleted(
    store: &Store,
    entries: Entries,
    name: &str,
) -> Result<(String, VersionDocument, Deletion), ApiError> {
    let object: Option<ObjectDocument> = store.get_json(&entries.deleted(name))?;
    let object = object.ok_or_else(|| entries.not_found(name))?;
    let deletion = object.deletion.ok_or_else(|| StoreError::Malformed(entries.deleted(name)))?;
    let (version, document) = find_version(store, entries, name, object.current)?;
    Ok((version, document, deletion))
}

/// Brings a deleted object back, as it was.
///
/// # Errors
/// 404, or the store's.
pub fn recover(store: &Store, route: &Route) -> Result<(String, VersionDocument), ApiError> {
    let entries = Entries(route.operation.kind());
    store.change(|change| {
        let deleted = entries.deleted(&route.name);
        let object: ObjectDocument =
            change.get_json(&deleted)?.ok_or_else(|| entries.not_found(&route.name))?;
        let object = ObjectDocument { deletion: None, ..object };
        change.remove(&deleted);
        change.put_json(&entries.live(&route.name), &object);
        find_version(store, entries, &route.name, object.current)
    })
}

/// Removes a deleted object for good.
///
/// # Errors
/// 403 with purge protection; 404, or the store's.
pub fn purge(store: &Store, route: &Route) -> Result<Reply, ApiError> {
    let entries = Entries(route.operation.kind());
    if settings(store)?.purge_protection {
        let message = "purging is not allowed because purge protection is enabled for this vault; \
                       it is purged after the retention period has passed";
        return Err(ApiError::forbidden("PurgeProtectionEnabled", message));
    }
    store.change(|change| {
        if !change.has(&entries.deleted(&route.name)) {
            return Err(entries.not_found(&route.name));
        }
        remove_all(change, entries, &route.name);
        Ok(())
    })?;
    forget(store);
    Ok(Reply::empty(204))
}

/// Purges what was deleted long enough before `now`. Returns how many.
///
/// # Errors
/// The store's.
pub fn purge_due(store: &Store, now: i64) -> Result<usize, StoreError> {
    let mut count = 0;
    for kind in [Kind::Key, Kind::Secret] {
        let entries = Entries(kind);
        for entry in store.keys(&entries.deleted(""), None, usize::MAX) {
            let is_due = |object: ObjectDocument| object.deletion.is_some_and(|d| d.purge <= now);
            if !store.get_json(&entry)?.is_some_and(is_due) {
                continue;
            }
            count += store.change(|change| {
                // It may have been recovered meanwhile.
                let due = change.get_json(&entry)?.is_some_and(is_due);
                if due {
                    let name = entry.strip_prefix(&entries.deleted("")).unwrap_or_default();
                    remove_all(change, entries, name);
                }
                Ok::<_, StoreError>(usize::from(due))
            })?;
        }
    }
    if count > 0 {
        forget(store);
    }
    Ok(count)
}

fn remove_all(change: &mut Transaction, entries: Entries, name: &str) {
    let prefix = entries.version(name, "");
    for entry in change.keys(&prefix) {
        let version = entry.strip_prefix(&prefix).unwrap_or_default().to_owned();
        change.remove(&entry);
        change.remove(&entries.data(name, &version));
    }
    change.remove(&entries.deleted(name));
    if entries.0 == Kind::Key {
        change.remove(&rotation::entry(name));
    }
}

/// Writes the store anew without what was purged. If that fails, the next time does it.
fn forget(store: &Store) {
    if let Err(error) = store.compact() {
        log::error!("what was purged is still in the file, sealed: {error}");
    }
}

/// `recoveryId`, `deletedDate` and `scheduledPurgeDate`, for a bundle of what is deleted.
pub fn add_deletion(bundle: &mut Value, request: &Request, route: (Kind, &str), of: Deletion) {
    let (kind, name) = route;
    let collection = kind.collection();
    bundle["recoveryId"] = json!(format!("{}/deleted{collection}/{name}", request.base_url()));
    bundle["deletedDate"] = json!(of.deleted);
    bundle["scheduledPurgeDate"] = json!(of.purge);
}
