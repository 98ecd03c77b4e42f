//! Listings, a page at a time.

use serde_json::{Value, json};

use super::{Deletion, Entries, ObjectDocument, VersionDocument, add_deletion};
use crate::vault::encoding;
use crate::vault::error::ApiError;
use crate::vault::request::{Reply, Request};
use crate::vault::route::Route;
use crate::vault::store::Store;

/// Most items of a page, and how many there are if the request does not say.
const PAGE_ITEMS: usize = 25;

/// What makes a list's item of an identifier and a version.
pub type Item<'a> = &'a dyn Fn(&str, &VersionDocument) -> Result<Value, ApiError>;

/// Names of live objects, each with its current version's attributes.
///
/// # Errors
/// 400 for a page size that cannot be; the store's.
pub fn list(store: &Store, request: &Request, route: &Route, item: Item) -> PageResult {
    let entries = Entries(route.operation.kind());
    page(store, request, &entries.live(""), |name| {
        let Some(object) = store.get_json::<ObjectDocument>(&entries.live(name))? else {
            return Ok(None);
        };
        let version = store.get_json(&entries.version(name, &object.current))?;
        version.map(|version| item(&entries.id(request, name), &version)).transpose()
    })
}

/// Versions of a live object.
///
/// # Errors
/// As [`list`]. No versions of what does not exist are no error, as in Key Vault.
pub fn list_versions(store: &Store, request: &Request, route: &Route, item: Item) -> PageResult {
    let entries = Entries(route.operation.kind());
    let name = &route.name;
    if store.get(&entries.live(name))?.is_none() {
        return Ok(Reply::json(200, &json!({ "value": [], "nextLink": null })));
    }
    page(store, request, &entries.version(name, ""), |version| {
        let document = store.get_json(&entries.version(name, version))?;
        let id = format!("{}/{version}", entries.id(request, name));
        document.map(|document| item(&id, &document)).transpose()
    })
}

/// Deleted objects.
///
/// # Errors
/// As [`list`].
pub fn list_deleted(store: &Store, request: &Request, route: &Route, item: Item) -> PageResult {
    let kind = route.operation.kind();
    let entries = Entries(kind);
    page(store, request, &entries.deleted(""), |name| {
        let Some(object) = store.get_json::<ObjectDocument>(&entries.deleted(name))? else {
            return Ok(None);
        };
        let version = store.get_json(&entries.version(name, &object.current))?;
        let Some(version) = version else { return Ok(None) };
        let mut listed = item(&entries.id(request, name), &version)?;
        let deletion = object.deletion.unwrap_or(Deletion { deleted: 0, purge: 0 });
        add_deletion(&mut listed, request, (kind, name), deletion);
        Ok(Some(listed))
    })
}

/// What listings return.
pub type PageResult = Result<Reply, ApiError>;

/// A page of what `make` makes of the ends of entries that begin with `prefix`; what vanished
/// meanwhile is left out.
fn page(
    store: &Store,
    request: &Request,
    prefix: &str,
    make: impl Fn(&str) -> Result<Option<Value>, ApiError>,
) -> PageResult {
    let size = match request.parameter("maxresults").map(str::parse) {
        None => PAGE_ITEMS,
        Some(Ok(size)) if (1..=PAGE_ITEMS).contains(&size) => size,
        Some(_) => {
            let message = format!("maxresults is a number from 1 to {PAGE_ITEMS}");
            return Err(ApiError::bad_parameter(message));
        }
    };
    let token = request.parameter("$skiptoken").map(|token| {
        let text = encoding::decode(token).and_then(|text| String::from_utf8(text.to_vec()).ok());
        text.ok_or_else(|| ApiError::bad_parameter("this nextLink is not of this vault"))
    });
    let after = token.transpose()?.map(|end| format!("{prefix}{end}"));
    let mut found = store.keys(prefix, after.as_deref(), size + 1);
    let more = found.len() > size;
    found.truncate(size);
    let ends = || found.iter().filter_map(|entry| entry.strip_prefix(prefix));
    let items: Result<Vec<_>, _> = ends().filter_map(|end| make(end).transpose()).collect();
    let next = more.then(|| ends().next_back()).flatten().map(|last| {
        let version = request.parameter("api-version").unwrap_or_default();
        let (base, path) = (request.base_url(), request.path.trim_end_matches('/'));
        let token = encoding::encode(last.as_bytes());
        let token = token.as_str();
        format!("{base}{path}?api-version={version}&$skiptoken={token}&maxresults={size}")
    });
    Ok(Reply::json(200, &json!({ "value": items?, "nextLink": next })))
}
