//! Operations on keys.

mod cryptography;
mod material;
pub mod rotation;

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::directory::settings;
use super::error::ApiError;
use super::objects::{
    self, Attributes, Entries, NewAttributes, Tags, Update, VersionDocument, now,
};
use super::request::{Reply, Request};
use super::route::{Kind, Operation, Route};
use super::store::{Store, StoreError};
use material::{Jwk, Material, Shape};

const ENTRIES: Entries = Entries(Kind::Key);
/// Private keys that are kept set up in memory.
const CACHED_KEYS: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

/// Operations that a key can be limited to.
const KEY_OPERATIONS: &[&str] =
    &["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey", "import"];

/// The keys of a vault.
pub struct Keys {
    store: Arc<Store>,
    /// By name and version. A version's private key never changes, and every use looks up first
    /// whether the version is still there.
    cache: Mutex<LruCache<(String, String), Arc<Material>>>,
}

/// What the store has of a key beside its private part.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Details {
    shape: Shape,
    key_ops: Vec<String>,
    /// Public part as a JSON Web Key (RFC 7517).
    public: Value,
}

#[derive(Deserialize)]
struct Create {
    kty: String,
    key_size: Option<u32>,
    crv: Option<String>,
    public_exponent: Option<u64>,
    key_ops: Option<Vec<String>>,
    attributes: Option<NewAttributes>,
    tags: Option<Tags>,
    release_policy: Option<Value>,
}

#[derive(Deserialize)]
struct Import {
    key: Jwk,
    #[serde(rename = "Hsm")]
    hsm: Option<bool>,
    attributes: Option<NewAttributes>,
    tags: Option<Tags>,
    release_policy: Option<Value>,
}

#[derive(Deserialize)]
struct Change {
    key_ops: Option<Vec<String>>,
    attributes: Option<NewAttributes>,
    tags: Option<Tags>,
    release_policy: Option<Value>,
}

impl Keys {
    /// The keys in `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, cache: Mutex::new(LruCache::new(CACHED_KEYS)) }
    }

    /// Performs an operation.
    ///
    /// # Errors
    /// [`ApiError`]
    pub fn perform(&self, request: &Request, route: &Route) -> Result<Reply, ApiError> {
        use Operation as O;
        let store = &*self.store;
        let item = |id: &str, version: &VersionDocument| describe(store, id, version);
        match route.operation {
            O::KeyCreate => self.create(request, route),
            O::KeyImport => self.import(request, route),
            O::KeyGet => {
                let (version, document) = objects::find(store, route)?;
                self.reply(request, &route.name, (&version, &document))
            }
            O::KeyUpdate => self.update(request, route),
            O::KeyList => objects::list(store, request, route, &item),
            O::KeyListVersions => objects::list_versions(store, request, route, &item),
            O::KeyListDeleted => objects::list_deleted(store, request, route, &item),
            O::KeyDelete => {
                let deleted = objects::delete(store, route)?;
                self.deleted_bundle(request, &route.name, deleted)
            }
            O::KeyGetDeleted => {
                let deleted = objects::find_deleted(store, ENTRIES, &route.name)?;
                self.deleted_bundle(request, &route.name, deleted)
            }
            O::KeyRecover => {
                let (version, document) = objects::recover(store, route)?;
                self.reply(request, &route.name, (&version, &document))
            }
            O::KeyPurge => {
                let purged = objects::purge(store, route);
                self.forget();
                purged
            }
            O::KeyBackup => objects::backup(store, route),
            O::KeyRestore => {
                let (name, version, document) = objects::restore(store, request, Kind::Key)?;
                self.reply(request, &name, (&version, &document))
            }
            O::KeyWrap
            | O::KeyUnwrap
            | O::KeyEncrypt
            | O::KeyDecrypt
            | O::KeySign
            | O::KeyVerify => self.use_key(request, route),
            O::KeyRotate => {
                let (version, document) = self.rotate(&route.name, now(), None)?;
                self.reply(request, &route.name, (&version, &document))
            }
            O::KeyRotationPolicyGet => rotation::get(store, request, &route.name),
            O::KeyRotationPolicySet => rotation::set(store, request, &route.name),
            _ => Err(ApiError::new(405, "MethodNotAllowed", "this is no operation on keys")),
        }
    }

    /// Drops private keys from memory.
    pub fn forget(&self) {
        self.cache.lock().clear();
    }

    fn create(&self, request: &Request, route: &Route) -> Result<Reply, ApiError> {
        let create: Create = request.json()?;
        refuse_release_policy(create.release_policy.as_ref())?;
        if create.public_exponent.is_some_and(|exponent| exponent != 65_537) {
            return Err(ApiError::bad_parameter("the public exponent of RSA keys is 65537 here"));
        }
        let shape = Shape::new(&create.kty, create.key_size, create.crv.as_deref())?;
        let key_ops = key_operations(create.key_ops, shape)?;
        objects::check_tags(create.tags.as_ref())?;
        let attributes = Attributes::new(create.attributes.as_ref(), now())?;
        let (private, public) = material::generate(shape)?;
        let version = self.add(
            &route.name,
            (Details { shape, key_ops, public }, private),
            (attributes, create.tags),
        )?;
        self.reply(request, &route.name, (&version.0, &version.1))
    }

    fn import(&self, request: &Request, route: &Route) -> Result<Reply, ApiError> {
        let import: Import = request.json()?;
        refuse_release_policy(import.release_policy.as_ref())?;
        if import.hsm == Some(true) {
            return Err(ApiError::bad_parameter(material::NO_HSM));
        }
        let (shape, private, public) = material::import(&import.key)?;
        let key_ops = key_operations(import.key.key_ops, shape)?;
        objects::check_tags(import.tags.as_ref())?;
        let attributes = Attributes::new(import.attributes.as_ref(), now())?;
        let version = self.add(
            &route.name,
            (Details { shape, key_ops, public }, private),
            (attributes, import.tags),
        )?;
        self.reply(request, &route.name, (&version.0, &version.1))
    }

    fn add(
        &self,
        name: &str,
        (details, private): (Details, Zeroizing<Vec<u8>>),
        (mut attributes, tags): (Attributes, Option<Tags>),
    ) -> Result<(String, VersionDocument), ApiError> {
        let version = objects::random_version();
        self.store
            .change(|change| {
                if attributes.exp.is_none() {
                    attributes.exp = rotation::expiry(change, name, attributes.created)?;
                }
                let document = VersionDocument { attributes, tags, details: json!(details) };
                let new = (version.as_str(), &document);
                objects::add_version(change, ENTRIES, name, new, private)?;
                Ok::<_, ApiError>(document)
            })
            .map(|document| (version, document))
    }

    fn update(&self, request: &Request, route: &Route) -> Result<Reply, ApiError> {
        let Change { key_ops, attributes, tags, release_policy } = request.json()?;
        refuse_release_policy(release_policy.as_ref())?;
        let update = Update { attributes, tags };
        let (version, document) = objects::update(&self.store, route, update, |value| {
            let mut details = decode(value.clone(), &route.name)?;
            if key_ops.is_some() {
                details.key_ops = key_operations(key_ops, details.shape)?;
            }
            *value = json!(details);
            Ok(())
        })?;
        self.reply(request, &route.name, (&version, &document))
    }

    fn reply(
        &self,
        request: &Request,
        name: &str,
        (version, document): (&str, &VersionDocument),
    ) -> Result<Reply, ApiError> {
        let bundle = bundle(&self.store, request, name, (version, document))?;
        Ok(Reply::json(200, &bundle))
    }

    fn deleted_bundle(
        &self,
        request: &Request,
        name: &str,
        (version, document, deletion): (String, VersionDocument, objects::Deletion),
    ) -> Result<Reply, ApiError> {
        let mut bundle = bundle(&self.store, request, name, (&version, &document))?;
        objects::add_deletion(&mut bundle, request, (Kind::Key, name), deletion);
        Ok(Reply::json(200, &bundle))
    }

    /// The private key of a version that exists.
    fn material(
        &self,
        name: &str,
        version: &str,
        details: &Details,
    ) -> Result<Arc<Material>, ApiError> {
        let at = (name.to_owned(), version.to_owned());
        if let Some(material) = self.cache.lock().get(&at) {
            return Ok(material.clone());
        }
        let entry = ENTRIES.data(name, version);
        let malformed = || StoreError::Malformed(entry.clone());
        let private = self.store.get(&entry)?.ok_or_else(malformed)?;
        let material = Material::set_up(details.shape, &private).ok_or_else(malformed)?;
        let material = Arc::new(material);
        self.cache.lock().put(at, material.clone());
        Ok(material)
    }
}

/// A key with its public part.
fn bundle(
    store: &Store,
    request: &Request,
    name: &str,
    (version, document): (&str, &VersionDocument),
) -> Result<Value, ApiError> {
    let details = decode(document.details.clone(), name)?;
    let mut key = details.public;
    key["kid"] = json!(format!("{}/{version}", ENTRIES.id(request, name)));
    key["key_ops"] = json!(details.key_ops);
    let attributes = document.attributes.to_json(&settings(store)?);
    let mut bundle = json!({ "key": key, "attributes": attributes });
    if let Some(tags) = &document.tags {
        bundle["tags"] = json!(tags);
    }
    Ok(bundle)
}

/// An item of a listing.
fn describe(store: &Store, id: &str, version: &VersionDocument) -> Result<Value, ApiError> {
    let attributes = version.attributes.to_json(&settings(store)?);
    let mut item = json!({ "kid": id, "attributes": attributes });
    if let Some(tags) = &version.tags {
        item["tags"] = json!(tags);
    }
    Ok(item)
}

fn decode(details: Value, name: &str) -> Result<Details, ApiError> {
    serde_json::from_value(details)
        .map_err(|_| StoreError::Malformed(ENTRIES.version(name, "")).into())
}

fn refuse_release_policy(policy: Option<&Value>) -> Result<(), ApiError> {
    match policy {
        None | Some(Value::Null) => Ok(()),
        Some(_) => Err(ApiError::bad_parameter("keys of this vault are never released")),
    }
}

/// The operations that a key of `shape` may be used for: all that it can, if nothing is said.
fn key_operations(asked: Option<Vec<String>>, shape: Shape) -> Result<Vec<String>, ApiError> {
    let Some(asked) = asked else {
        return Ok(shape.operations().iter().map(|operation| (*operation).to_owned()).collect());
    };
    let strange = asked.iter().find(|operation| !KEY_OPERATIONS.contains(&operation.as_str()));
    match strange {
        Some(_) => {
            let known = KEY_OPERATIONS.join(", ");
            Err(ApiError::bad_parameter(format!("key_ops are of {known}")))
        }
        None => Ok(asked),
    }
}
