//! Secrets.

use serde_json::{Value, json};

use crate::world::{World, error, version_of};

/// A secret's life: versions, attributes, deletion; its value only where it is asked for.
#[test]
fn life() {
    let world = World::purgeable();
    let body = json!({ "value": "one\n\u{20ac}\"", "contentType": "text", "tags": { "a": "b" },
                       "attributes": { "exp": 1 } });
    let first = world.done("PUT", "/secrets/s", body);
    assert_eq!(first["value"], json!("one\n\u{20ac}\""));
    assert_eq!(first["contentType"], json!("text"));
    assert_eq!(first["attributes"]["exp"], json!(1));
    let second = world.done("PUT", "/secrets/s", json!({ "value": "" }));
    assert_eq!(world.done("GET", "/secrets/s/", Value::Null)["value"], json!(""));
    let old = format!("/secrets/s/{}", version_of(&first));
    assert_eq!(world.done("GET", &old, Value::Null), first, "expiry does not hide a value");
    let changed = world.done("PATCH", &old, json!({ "attributes": { "enabled": false } }));
    assert!(changed.get("value").is_none());
    assert_eq!(changed["tags"], json!({ "a": "b" }));
    let disabled = error(403, "Forbidden", "SecretDisabled");
    assert_eq!(world.refused("GET", &old, Value::Null), disabled);
    let listed = world.done("GET", "/secrets", Value::Null);
    assert_eq!(listed["value"][0]["id"], json!("https://localhost/secrets/s"));
    assert!(listed["value"][0].get("value").is_none());
    let versions = world.done("GET", "/secrets/s/versions", Value::Null);
    assert_eq!(versions["value"].as_array().map(Vec::len), Some(2));

    let backup = world.done("POST", "/secrets/s/backup", Value::Null);
    let deleted = world.done("DELETE", "/secrets/s", Value::Null);
    assert!(deleted.get("value").is_none());
    assert_eq!(deleted["recoveryId"], json!("https://localhost/deletedsecrets/s"));
    let gone = error(409, "Conflict", "ObjectIsDeletedButRecoverable");
    assert_eq!(world.refused("PUT", "/secrets/s", json!({ "value": "x" })), gone);
    let missing = error(404, "SecretNotFound", "");
    assert_eq!(world.refused("GET", "/secrets/s", Value::Null), missing);
    let recovered = world.done("POST", "/deletedsecrets/s/recover", Value::Null);
    assert_eq!(version_of(&recovered), version_of(&second));
    world.done("DELETE", "/secrets/s", Value::Null);
    assert_eq!(world.ask("DELETE", "/deletedsecrets/s", Value::Null).0, 204);
    assert_eq!(world.refused("GET", "/secrets/s", Value::Null), missing);
    world.done("POST", "/secrets/restore", backup);
    assert_eq!(world.done("GET", "/secrets/s", Value::Null)["value"], json!(""));
}

/// Values that do not fit, and names that cannot be.
#[test]
fn refusals() {
    let world = World::new();
    let bad = error(400, "BadParameter", "");
    let long = "x".repeat(25 * 1024 + 1);
    assert_eq!(world.refused("PUT", "/secrets/s", json!({ "value": long })), bad);
    world.done("PUT", "/secrets/s", json!({ "value": long[1..] }));
    assert_eq!(world.refused("PUT", "/secrets/s", json!({})), bad);
    assert_eq!(world.refused("PUT", "/secrets/a.b", json!({ "value": "" })), bad);
    let long_type = json!({ "value": "", "contentType": "x".repeat(256) });
    assert_eq!(world.refused("PUT", "/secrets/s", long_type), bad);
    assert_eq!(
        world.refused("GET", "/secrets/s/nope", Value::Null),
        error(404, "SecretNotFound", "")
    );
    assert_eq!(
        world.refused("GET", "/secrets/s/..%2f", Value::Null),
        error(404, "SecretNotFound", "")
    );
}
