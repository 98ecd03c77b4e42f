//! Rotation, by hand and by policy.

use atrest::vault::objects::now;
use serde_json::{Value, json};

use crate::world::{DAY, World, error, version_of};

fn policy(actions: Value, expiry: Value) -> Value {
    json!({ "lifetimeActions": actions, "attributes": { "expiryTime": expiry } })
}

fn action(trigger: &str, time: &str, kind: &str) -> Value {
    json!([{ "trigger": { trigger: time }, "action": { "type": kind } }])
}

/// A new version is of the same kind; the old one goes on unwrapping.
#[test]
fn by_hand() {
    let world = World::new();
    let body = json!({ "kty": "RSA", "key_size": 3072, "key_ops": ["wrapKey", "unwrapKey"],
                       "tags": { "a": "b" }, "attributes": { "exp": now() + DAY } });
    let old = world.done("POST", "/keys/k/create", body);
    let plain = json!({ "alg": "RSA-OAEP-256", "value": "AAECAwQFBgcICQoLDA0ODw" });
    let wrapped = world.done("POST", "/keys/k//wrapkey", plain.clone());
    let new = world.done("POST", "/keys/k/rotate", Value::Null);
    assert_ne!(version_of(&old), version_of(&new));
    assert_ne!(old["key"]["n"], new["key"]["n"]);
    assert_eq!(old["key"]["key_ops"], new["key"]["key_ops"]);
    assert_eq!(old["tags"], new["tags"]);
    assert!(new["attributes"].get("exp").is_none(), "expiry is the policy's");
    assert_eq!(world.done("GET", "/keys/k", Value::Null), new);
    let input = json!({ "alg": "RSA-OAEP-256", "value": wrapped["value"] });
    let path = format!("/keys/k/{}/unwrapkey", version_of(&old));
    assert_eq!(world.done("POST", &path, input.clone())["value"], plain["value"]);
    let bad = error(400, "BadParameter", "");
    assert_eq!(world.refused("POST", "/keys/k//unwrapkey", input), bad, "the new version's key");
    let missing = error(404, "KeyNotFound", "");
    assert_eq!(world.refused("POST", "/keys/none/rotate", Value::Null), missing);
}

/// Policies that make sense are kept and shown; others are refused.
#[test]
fn policies() {
    let world = World::new();
    let path = "/keys/k/rotationpolicy";
    let missing = error(404, "KeyNotFound", "");
    assert_eq!(world.refused("GET", path, Value::Null), missing);
    assert_eq!(world.refused("PUT", path, policy(json!([]), Value::Null)), missing);
    world.done("POST", "/keys/k/create", json!({ "kty": "oct" }));
    let shown = world.done("GET", path, Value::Null);
    assert_eq!(shown["lifetimeActions"][0]["action"]["type"], json!("Notify"));
    assert_eq!(shown["id"], json!("https://localhost/keys/k/rotationpolicy"));
    for (actions, expiry) in [
        (action("timeAfterCreate", "P90D", "Rotate"), json!("P1Y")),
        (action("timeAfterCreate", "P3M", "rotate"), Value::Null),
        (action("timeBeforeExpiry", "P30D", "Notify"), json!("P2Y")),
        (action("timeBeforeExpiry", "P7D", "Rotate"), json!("P28D")),
        (json!([]), json!("P28D")),
    ] {
        let set = world.done("PUT", path, policy(actions.clone(), expiry.clone()));
        assert_eq!(set["lifetimeActions"], actions);
        assert_eq!(set["attributes"]["expiryTime"], expiry);
        assert_eq!(world.done("GET", path, Value::Null), set);
    }
    for (actions, expiry) in [
        (action("timeAfterCreate", "P6D", "Rotate"), json!("P1Y")),
        (action("timeAfterCreate", "P90D", "Explode"), json!("P1Y")),
        (action("timeAfterCreate", "P90D", "Notify"), json!("P1Y")),
        (action("timeBeforeExpiry", "P30D", "Rotate"), Value::Null),
        (action("timeBeforeExpiry", "P27D", "Rotate"), json!("P28D")),
        (action("timeAfterCreate", "ninety days", "Rotate"), json!("P1Y")),
        (action("timeAfterCreate", "-P90D", "Rotate"), json!("P1Y")),
        (json!([{ "trigger": {}, "action": { "type": "Rotate" } }]), json!("P1Y")),
        (json!([]), json!("P27D")),
        (json!([]), json!("P9999Y")),
    ] {
        let refused = world.refused("PUT", path, policy(actions.clone(), expiry));
        assert_eq!(refused, error(400, "BadParameter", ""), "{actions}");
    }
}

/// When it is due, and not before, the vault makes a new version, whose expiry the policy says;
/// once, and not of what is deleted.
#[test]
fn by_policy() {
    let world = World::new();
    for name in ["after", "before", "gone", "none"] {
        world.done("POST", &format!("/keys/{name}/create"), json!({ "kty": "oct" }));
    }
    let after = policy(action("timeAfterCreate", "P90D", "Rotate"), json!("P120D"));
    let before = policy(action("timeBeforeExpiry", "P30D", "Rotate"), json!("P100D"));
    world.done("PUT", "/keys/after/rotationpolicy", after);
    let sooner = policy(action("timeAfterCreate", "P60D", "Rotate"), Value::Null);
    world.done("PUT", "/keys/gone/rotationpolicy", sooner);
    world.done("PUT", "/keys/before/rotationpolicy", before);
    // A version that is made under the policy expires by it.
    let made = world.done("POST", "/keys/before/create", json!({ "kty": "oct" }));
    let span = |bundle: &Value| {
        let (created, exp) = (&bundle["attributes"]["created"], &bundle["attributes"]["exp"]);
        exp.as_i64().zip(created.as_i64()).map(|(exp, created)| exp - created)
    };
    assert_eq!(span(&made), Some(100 * DAY));
    world.done("DELETE", "/keys/gone", Value::Null);
    let count = |name: &str| {
        let versions = world.done("GET", &format!("/keys/{name}/versions"), Value::Null);
        versions["value"].as_array().map_or(0, Vec::len)
    };
    let counts = || [count("after"), count("before"), count("none")];
    let start = now();
    world.service.maintain(start + 69 * DAY);
    assert_eq!(counts(), [1, 2, 1]);
    world.service.maintain(start + 70 * DAY + 60);
    assert_eq!(counts(), [1, 3, 1]);
    world.service.maintain(start + 70 * DAY + 120);
    assert_eq!(counts(), [1, 3, 1], "once");
    world.done("POST", "/deletedkeys/gone/recover", Value::Null);
    assert_eq!(count("gone"), 1, "what is deleted is not rotated");
    world.service.maintain(start + 90 * DAY + 60);
    assert_eq!(counts(), [2, 3, 1]);
    assert_eq!(span(&world.done("GET", "/keys/after", Value::Null)), Some(120 * DAY));
}
