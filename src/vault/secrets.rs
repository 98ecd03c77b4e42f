//! Operations on secrets.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::directory::settings;
use super::encoding::Text;
use super::error::ApiError;
use super::objects::{
    self, Attributes, Entries, NewAttributes, Tags, Update, VersionDocument, now,
};
use super::request::{Reply, Request};
use super::route::{Kind, Operation, Route};
use super::store::{Store, StoreError};
use zeroize::Zeroizing;

/// Longest value, in bytes, as in Key Vault.
pub const VALUE_BYTES_MAX: usize = 25 * 1024;
const CONTENT_TYPE_CHARACTERS_MAX: usize = 255;
const ENTRIES: Entries = Entries(Kind::Secret);

/// A secret with its value. The buffers are wiped; `Value` would leave copies.
#[derive(Serialize)]
struct Bundle {
    value: Text,
    #[serde(flatten)]
    rest: Value,
}

#[derive(Deserialize)]
struct Set {
    value: Text,
    #[serde(rename = "contentType")]
    content_type: Option<String>,
    attributes: Option<NewAttributes>,
    tags: Option<Tags>,
}

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "contentType")]
    content_type: Option<String>,
    attributes: Option<NewAttributes>,
    tags: Option<Tags>,
}

/// Performs an operation.
///
/// # Errors
/// [`ApiError`]
pub fn perform(store: &Store, request: &Request, route: &Route) -> Result<Reply, ApiError> {
    let item = |id: &str, version: &VersionDocument| describe(store, id, version);
    match route.operation {
        Operation::SecretSet => set(store, request, route),
        Operation::SecretGet => get(store, request, route),
        Operation::SecretUpdate => update(store, request, route),
        Operation::SecretList => objects::list(store, request, route, &item),
        Operation::SecretListVersions => objects::list_versions(store, request, route, &item),
        Operation::SecretListDeleted => objects::list_deleted(store, request, route, &item),
        Operation::SecretDelete => {
            let deleted = objects::delete(store, route)?;
            deleted_bundle(store, request, &route.name, deleted)
        }
        Operation::SecretGetDeleted => {
            let deleted = objects::find_deleted(store, ENTRIES, &route.name)?;
            deleted_bundle(store, request, &route.name, deleted)
        }
        Operation::SecretRecover => {
            let (version, document) = objects::recover(store, route)?;
            reply(store, request, &route.name, (&version, &document))
        }
        Operation::SecretPurge => objects::purge(store, route),
        Operation::SecretBackup => objects::backup(store, route),
        Operation::SecretRestore => {
            let (name, version, document) = objects::restore(store, request, Kind::Secret)?;
            reply(store, request, &name, (&version, &document))
        }
        _ => Err(ApiError::new(405, "MethodNotAllowed", "this is no operation on secrets")),
    }
}

/// What is told of a version, without its value.
fn describe(store: &Store, id: &str, version: &VersionDocument) -> Result<Value, ApiError> {
    let attributes = version.attributes.to_json(&settings(store)?);
    let mut bundle = json!({ "id": id, "attributes": attributes });
    if let Some(tags) = &version.tags {
        bundle["tags"] = json!(tags);
    }
    if let Some(content_type) = version.details.get("contentType").filter(|t| !t.is_null()) {
        bundle["contentType"] = content_type.clone();
    }
    Ok(bundle)
}

fn reply(
    store: &Store,
    request: &Request,
    name: &str,
    (version, document): (&str, &VersionDocument),
) -> Result<Reply, ApiError> {
    let id = format!("{}/{version}", ENTRIES.id(request, name));
    Ok(Reply::json(200, &describe(store, &id, document)?))
}

fn deleted_bundle(
    store: &Store,
    request: &Request,
    name: &str,
    (version, document, deletion): (String, VersionDocument, objects::Deletion),
) -> Result<Reply, ApiError> {
    let id = format!("{}/{version}", ENTRIES.id(request, name));
    let mut bundle = describe(store, &id, &document)?;
    objects::add_deletion(&mut bundle, request, (Kind::Secret, name), deletion);
    Ok(Reply::json(200, &bundle))
}

fn set(store: &Store, request: &Request, route: &Route) -> Result<Reply, ApiError> {
    let set: Set = request.json()?;
    if set.value.0.len() > VALUE_BYTES_MAX {
        let message = format!("values of secrets have up to {VALUE_BYTES_MAX} bytes");
        return Err(ApiError::bad_parameter(message));
    }
    objects::check_tags(set.tags.as_ref())?;
    check_content_type(set.content_type.as_deref())?;
    let document = VersionDocument {
        attributes: Attributes::new(set.attributes.as_ref(), now())?,
        tags: set.tags,
        details: json!({ "contentType": set.content_type }),
    };
    let version = objects::random_version();
    let data = Zeroizing::new(set.value.0.as_bytes().to_vec());
    store.change(|change| {
        objects::add_version(change, ENTRIES, &route.name, (&version, &document), data)
    })?;
    let id = format!("{}/{version}", ENTRIES.id(request, &route.name));
    let rest = describe(store, &id, &document)?;
    Ok(Reply::json(200, &Bundle { value: set.value, rest }))
}

fn get(store: &Store, request: &Request, route: &Route) -> Result<Reply, ApiError> {
    let (version, document) = objects::find(store, route)?;
    if !document.attributes.enabled {
        let message = format!("the secret {}/{version} is disabled", route.name);
        return Err(ApiError::forbidden("SecretDisabled", message));
    }
    let entry = ENTRIES.data(&route.name, &version);
    let malformed = || StoreError::Malformed(entry.clone());
    let data = store.get(&entry)?.ok_or_else(malformed)?;
    let text = std::str::from_utf8(&data).map_err(|_| malformed())?;
    let value = Text(Zeroizing::new(text.to_owned()));
    let id = format!("{}/{version}", ENTRIES.id(request, &route.name));
    Ok(Reply::json(200, &Bundle { value, rest: describe(store, &id, &document)? }))
}

fn update(store: &Store, request: &Request, route: &Route) -> Result<Reply, ApiError> {
    let Change { content_type, attributes, tags } = request.json()?;
    check_content_type(content_type.as_deref())?;
    let update = Update { attributes, tags };
    let (version, document) = objects::update(store, route, update, |details| {
        if let Some(content_type) = content_type {
            details["contentType"] = json!(content_type);
        }
        Ok(())
    })?;
    reply(store, request, &route.name, (&version, &document))
}

fn check_content_type(content_type: Option<&str>) -> Result<(), ApiError> {
    match content_type {
        Some(text) if text.chars().count() > CONTENT_TYPE_CHARACTERS_MAX => {
            Err(ApiError::bad_parameter("contentType has up to 255 characters"))
        }
        _ => Ok(()),
    }
}
