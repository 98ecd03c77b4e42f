//! New versions of keys: when asked for, and by a policy when due.
//!
//! A policy says when, with durations of ISO 8601 (`P90D`, `P2Y`): counted from the making of the
//! current version, or back from its expiry; and after which time new versions expire.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::material::generate;
use super::{Details, ENTRIES, Keys, decode};
use crate::vault::error::ApiError;
use crate::vault::objects::{
    self, Attributes, ObjectDocument, VersionDocument, add_version, now, random_version,
};
use crate::vault::request::{Reply, Request};
use crate::vault::store::{Store, StoreError, Transaction};

/// Shortest time after which versions may expire, and before or after which they are rotated, in
/// days, as in Key Vault.
const EXPIRY_DAYS_MIN: i64 = 28;
const TRIGGER_DAYS_MIN: i64 = 7;
/// Longest duration, in days: a hundred years.
const DAYS_MAX: i64 = 36_525;
const DAY_SECONDS: i64 = 24 * 60 * 60;

/// A key's rotation policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    #[serde(rename = "lifetimeActions", default)]
    actions: Vec<LifetimeAction>,
    #[serde(default)]
    attributes: PolicyAttributes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LifetimeAction {
    trigger: Trigger,
    action: Action,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Trigger {
    #[serde(rename = "timeAfterCreate", skip_serializing_if = "Option::is_none")]
    after_create: Option<String>,
    #[serde(rename = "timeBeforeExpiry", skip_serializing_if = "Option::is_none")]
    before_expiry: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Action {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PolicyAttributes {
    #[serde(rename = "expiryTime")]
    expiry: Option<String>,
    created: Option<i64>,
    updated: Option<i64>,
}

/// The store's entry with the policy of a key.
pub fn entry(name: &str) -> String {
    format!("keyrotation/{name}")
}

/// `GET /keys/NAME/rotationpolicy`: a key that has none notifies 30 days before expiry, as in Key
/// Vault.
///
/// # Errors
/// 404, or the store's.
pub fn get(store: &Store, request: &Request, name: &str) -> Result<Reply, ApiError> {
    if store.get(&ENTRIES.live(name))?.is_none() {
        return Err(ENTRIES.not_found(name));
    }
    let policy = store.get_json(&entry(name))?.unwrap_or_else(|| Policy {
        actions: vec![LifetimeAction {
            trigger: Trigger { before_expiry: Some("P30D".into()), ..Trigger::default() },
            action: Action { kind: "Notify".into() },
        }],
        attributes: PolicyAttributes::default(),
    });
    Ok(Reply::json(200, &describe(request, name, &policy)))
}

/// `PUT /keys/NAME/rotationpolicy`
///
/// # Errors
/// 400 if it makes no sense; 404; the store's.
pub fn set(store: &Store, request: &Request, name: &str) -> Result<Reply, ApiError> {
    let mut policy: Policy = request.json()?;
    policy.check()?;
    store.change(|change| {
        if !change.has(&ENTRIES.live(name)) {
            return Err(ENTRIES.not_found(name));
        }
        let old: Option<Policy> = change.get_json(&entry(name))?;
        let created = old.and_then(|old| old.attributes.created).unwrap_or_else(now);
        policy.attributes.created = Some(created);
        policy.attributes.updated = Some(now());
        change.put_json(&entry(name), &policy);
        Ok(())
    })?;
    Ok(Reply::json(200, &describe(request, name, &policy)))
}

fn describe(request: &Request, name: &str, policy: &Policy) -> Value {
    let mut value = json!(policy);
    value["id"] = json!(format!("{}/rotationpolicy", ENTRIES.id(request, name)));
    value
}

/// When a version that is made at `created` expires by the policy of its key, if it has one.
///
/// # Errors
/// The store's.
pub fn expiry(change: &Transaction, name: &str, created: i64) -> Result<Option<i64>, StoreError> {
    let policy: Option<Policy> = change.get_json(&entry(name))?;
    Ok(policy.and_then(|policy| policy.attributes.expiry).and_then(|d| after(created, &d)))
}

impl Policy {
    fn check(&self) -> Result<(), ApiError> {
        let bad = |message: &str| Err(ApiError::bad_parameter(message));
        let expiry = self.attributes.expiry.as_deref().map(days).transpose()?;
        if expiry.is_some_and(|days| days < EXPIRY_DAYS_MIN) {
            return bad("expiryTime is at least P28D");
        }
        if self.actions.len() > 2 {
            return bad("there are up to two lifetimeActions");
        }
        for LifetimeAction { trigger, action } in &self.actions {
            let is_rotation = action.kind.eq_ignore_ascii_case("rotate");
            if !is_rotation && !action.kind.eq_ignore_ascii_case("notify") {
                return bad("actions are Rotate and Notify");
            }
            let (time, is_after) = match (&trigger.after_create, &trigger.before_expiry) {
                (Some(after), None) => (days(after)?, true),
                (None, Some(before)) => (days(before)?, false),
                _ => return bad("a trigger has either timeAfterCreate or timeBeforeExpiry"),
            };
            if time < TRIGGER_DAYS_MIN {
                return bad("triggers are at least P7D");
            }
            if !is_rotation && is_after {
                return bad("Notify goes with timeBeforeExpiry");
            }
            match expiry {
                // A version would be rotated as soon as it is there, for ever.
                Some(expiry) if time > expiry - TRIGGER_DAYS_MIN => {
                    return bad("a trigger leaves a version at least seven days");
                }
                None if is_rotation && !is_after => {
                    return bad("timeBeforeExpiry needs an expiryTime");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a version with `attributes` is to be replaced at `now`.
    fn is_due(&self, attributes: &Attributes, now: i64) -> bool {
        self.actions.iter().any(|LifetimeAction { trigger, action }| {
            let after_create = trigger.after_create.as_deref();
            let at = match (after_create, trigger.before_expiry.as_deref(), attributes.exp) {
                (Some(time), ..) => after(attributes.created, time),
                (None, Some(time), Some(exp)) => before(exp, time),
                _ => None,
            };
            action.kind.eq_ignore_ascii_case("rotate") && at.is_some_and(|at| at <= now)
        })
    }
}

fn parse(duration: &str) -> Option<Span> {
    let span: Span = duration.parse().ok()?;
    (duration.len() <= 32 && !span.is_negative()).then_some(span)
}

fn days(duration: &str) -> Result<i64, ApiError> {
    let seconds = after(0, duration).filter(|seconds| *seconds <= DAYS_MAX * DAY_SECONDS);
    let problem = "durations are of ISO 8601, such as P90D or P2Y, up to a hundred years";
    Ok(seconds.ok_or_else(|| ApiError::bad_parameter(problem))? / DAY_SECONDS)
}

fn after(time: i64, duration: &str) -> Option<i64> {
    let time = Timestamp::from_second(time).ok()?.to_zoned(TimeZone::UTC);
    Some(time.checked_add(parse(duration)?).ok()?.timestamp().as_second())
}

fn before(time: i64, duration: &str) -> Option<i64> {
    let time = Timestamp::from_second(time).ok()?.to_zoned(TimeZone::UTC);
    Some(time.checked_sub(parse(duration)?).ok()?.timestamp().as_second())
}

impl Keys {
    /// Makes a new version of a key, of the same kind and for the same operations; with `only`,
    /// if that is still the current one.
    ///
    /// # Errors
    /// 404, the store's, or 409 if the current version is not `only`.
    pub(super) fn rotate(
        &self,
        name: &str,
        now: i64,
        only: Option<&str>,
    ) -> Result<(String, VersionDocument), ApiError> {
        let current = |object: Option<ObjectDocument>| {
            object.map(|object| object.current).ok_or_else(|| ENTRIES.not_found(name))
        };
        let version = current(self.store.get_json(&ENTRIES.live(name))?)?;
        let old: Option<VersionDocument> = self.store.get_json(&ENTRIES.version(name, &version))?;
        let old = old.ok_or_else(|| ENTRIES.not_found(name))?;
        let Details { shape, key_ops, .. } = decode(old.details, name)?;
        let (private, public) = generate(shape)?;
        let version = random_version();
        self.store.change(|change| {
            let found = current(change.get_json(&ENTRIES.live(name))?)?;
            if only.is_some_and(|only| only != found) {
                return Err(ApiError::new(409, "Conflict", "the key was rotated meanwhile"));
            }
            let exp = expiry(change, name, now)?;
            let attributes =
                Attributes { enabled: true, nbf: None, exp, created: now, updated: now };
            let details = json!(Details { shape, key_ops, public });
            let document = VersionDocument { attributes, tags: old.tags, details };
            add_version(change, ENTRIES, name, (&version, &document), private)?;
            Ok((version.clone(), document))
        })
    }

    /// Rotates every key whose policy says so at `now`; returns the names and new versions.
    ///
    /// # Errors
    /// The store's. A key that cannot be rotated is logged and does not keep others from it.
    pub fn rotate_due(&self, now: i64) -> Result<Vec<(String, String)>, StoreError> {
        let prefix = entry("");
        let mut rotated = Vec::new();
        for policy_entry in self.store.keys(&prefix, None, usize::MAX) {
            let name = policy_entry.strip_prefix(&prefix).unwrap_or_default();
            let Some(policy) = self.store.get_json::<Policy>(&policy_entry)? else { continue };
            let object: Option<ObjectDocument> = self.store.get_json(&ENTRIES.live(name))?;
            let Some(ObjectDocument { current, .. }) = object else { continue };
            let version: Option<VersionDocument> =
                self.store.get_json(&ENTRIES.version(name, &current))?;
            if !version.is_some_and(|version| policy.is_due(&version.attributes, now)) {
                continue;
            }
            match self.rotate(name, now, Some(&current)) {
                Ok((version, _)) => rotated.push((name.to_owned(), version)),
                Err(error) => log::error!("cannot rotate the key {name}: {}", error.message),
            }
        }
        Ok(rotated)
    }

    /// Purges what is due and rotates what is due, at `now`: called once a minute.
    pub fn maintain(&self, now: i64) {
        match objects::purge_due(&self.store, now) {
            Ok(0) => {}
            Ok(count) => {
                self.forget();
                log::info!("purged {count} objects whose retention period has passed");
            }
            Err(error) => log::error!("cannot purge what is due: {error}"),
        }
        match self.rotate_due(now) {
            Ok(rotated) => rotated
                .iter()
                .for_each(|(name, version)| log::info!("rotated the key {name} to {version}")),
            Err(error) => log::error!("cannot rotate what is due: {error}"),
        }
    }
}
