//! Keys: their life, listings, attributes.

use atrest::vault::Settings;
use serde_json::{Value, json};

use crate::world::{DAY, World, error, version_of};

/// Every kind of key is made as Key Vault's clients ask for it, with its public part.
#[test]
fn kinds() {
    let world = World::new();
    for (name, body, public, operations) in [
        ("rsa", json!({ "kty": "RSA" }), vec!["n", "e"], 6),
        ("rsa3", json!({ "kty": "RSA", "key_size": 3072 }), vec!["n", "e"], 6),
        ("ec", json!({ "kty": "EC", "crv": "P-384" }), vec!["crv", "x", "y"], 2),
        ("ec521", json!({ "kty": "EC", "crv": "P-521" }), vec!["crv", "x", "y"], 2),
        ("aes", json!({ "kty": "oct-HSM", "key_size": 256 }), vec![], 4),
    ] {
        let made = world.done("POST", &format!("/keys/{name}/create"), body.clone());
        let key = made["key"].as_object().expect("a key");
        assert_eq!(key["kty"], body["kty"]);
        assert!(public.iter().all(|part| key.contains_key(*part)), "{made}");
        assert!(["d", "p", "q", "k", "dp"].iter().all(|part| !key.contains_key(*part)), "{made}");
        assert_eq!(made["key"]["key_ops"].as_array().map(Vec::len), Some(operations));
        assert_eq!(made["attributes"]["enabled"], json!(true));
        assert_eq!(made["attributes"]["recoveryLevel"], json!("Recoverable"));
        assert_eq!(made["attributes"]["recoverableDays"], json!(90));
        version_of(&made);
        assert_eq!(world.done("GET", &format!("/keys/{name}/"), Value::Null), made);
    }
    for (body, word) in [
        (json!({ "kty": "RSA", "key_size": 1024 }), "bits"),
        (json!({ "kty": "RSA", "public_exponent": 3 }), "65537"),
        (json!({ "kty": "RSA-HSM" }), "software"),
        (json!({ "kty": "EC", "crv": "P-256K" }), "curves"),
        (json!({ "kty": "oct", "key_size": 128 }), "256"),
        (json!({ "kty": "DSA" }), "kty"),
        (json!({}), "fields"),
        (json!({ "kty": "RSA", "key_ops": ["wrap"] }), "key_ops"),
        (json!({ "kty": "oct", "attributes": { "nbf": 9, "exp": 8 } }), "after nbf"),
        (json!({ "kty": "oct", "attributes": { "exportable": true } }), "exportable"),
        (json!({ "kty": "oct", "release_policy": { "data": "x" } }), "released"),
    ] {
        let (status, value) = world.ask("POST", "/keys/bad/create", body.clone());
        let message = value["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(word), "{body}: {status} {value}");
    }
    assert_eq!(world.refused("GET", "/keys/bad", Value::Null), error(404, "KeyNotFound", ""));
}

/// A key from its birth to its purge, with what is refused at each stage.
#[test]
fn life() {
    let world = World::purgeable();
    let oct = json!({ "kty": "oct" });
    let first = world.done("POST", "/keys/K/create", oct.clone());
    let second =
        world.done("POST", "/keys/k/create", json!({ "kty": "oct", "tags": { "a": "b" } }));
    assert_ne!(version_of(&first), version_of(&second), "names differ in case only");
    assert_eq!(world.done("GET", "/keys/k", Value::Null), second);
    let old = format!("/keys/k/{}", version_of(&first));
    assert_eq!(world.done("GET", &old, Value::Null), first);
    let versions = world.done("GET", "/keys/k/versions", Value::Null);
    assert_eq!(versions["value"].as_array().map(Vec::len), Some(2));

    let missing = error(404, "KeyNotFound", "");
    assert_eq!(world.refused("DELETE", "/deletedkeys/k", Value::Null), missing);
    let deleted = world.done("DELETE", "/keys/k", Value::Null);
    let (from, to) = (deleted["deletedDate"].as_i64(), deleted["scheduledPurgeDate"].as_i64());
    assert_eq!(to.zip(from).map(|(to, from)| to - from), Some(7 * DAY));
    assert_eq!(deleted["recoveryId"], json!("https://localhost/deletedkeys/k"));
    assert_eq!(deleted["attributes"]["recoveryLevel"], json!("CustomizedRecoverable+Purgeable"));
    assert_eq!(world.done("GET", "/deletedkeys/k", Value::Null), deleted);
    let listed = world.done("GET", "/deletedkeys", Value::Null);
    assert_eq!(listed["value"][0]["scheduledPurgeDate"], deleted["scheduledPurgeDate"]);
    assert_eq!(listed["value"][0]["kid"], json!("https://localhost/keys/k"));
    assert_eq!(world.done("GET", "/keys", Value::Null)["value"], json!([]));

    let gone = error(409, "Conflict", "ObjectIsDeletedButRecoverable");
    assert_eq!(world.refused("GET", "/keys/k", Value::Null), missing);
    assert_eq!(world.refused("GET", &old, Value::Null), missing);
    let use_it = json!({ "alg": "A256KW", "value": "AAAA" });
    let wrap = format!("{old}/unwrapkey");
    assert_eq!(world.refused("POST", &wrap, use_it), missing);
    assert_eq!(world.refused("POST", "/keys/k/create", oct.clone()), gone);
    assert_eq!(world.refused("POST", "/keys/k/rotate", Value::Null), missing);
    assert_eq!(world.refused("DELETE", "/keys/k", Value::Null), missing);

    let recovered = world.done("POST", "/deletedkeys/k/recover", Value::Null);
    assert_eq!(recovered, second);
    assert_eq!(world.done("GET", &old, Value::Null), first);
    assert_eq!(world.refused("POST", "/deletedkeys/k/recover", Value::Null), missing);
    world.done("DELETE", "/keys/k", Value::Null);
    assert_eq!(world.ask("DELETE", "/deletedkeys/k", Value::Null), (204, Value::Null));
    assert_eq!(world.refused("GET", "/deletedkeys/k", Value::Null), missing);
    let anew = world.done("POST", "/keys/k/create", oct);
    assert_eq!(world.refused("GET", &old, Value::Null), missing, "purged versions");
    version_of(&anew);
}

/// With purge protection nothing is purged by hand; when its time has come it goes by itself.
#[test]
fn protection() {
    let world = World::with(&Settings { retention_days: 30, purge_protection: true });
    world.done("POST", "/keys/k/create", json!({ "kty": "oct" }));
    world.done("PUT", "/secrets/s", json!({ "value": "v" }));
    for collection in ["keys/k", "secrets/s"] {
        let deleted = world.done("DELETE", &format!("/{collection}"), Value::Null);
        let level = &deleted["attributes"]["recoveryLevel"];
        assert_eq!(level, &json!("CustomizedRecoverable"));
        let refused = world.refused("DELETE", &format!("/deleted{collection}"), Value::Null);
        assert_eq!(refused, error(403, "Forbidden", "PurgeProtectionEnabled"));
    }
    let now = atrest::vault::objects::now();
    world.service.maintain(now + 30 * DAY - 60);
    world.done("GET", "/deletedkeys/k", Value::Null);
    world.done("GET", "/deletedsecrets/s", Value::Null);
    world.service.maintain(now + 30 * DAY + 60);
    let refused = world.refused("GET", "/deletedkeys/k", Value::Null);
    assert_eq!(refused, error(404, "KeyNotFound", ""));
    let refused = world.refused("GET", "/deletedsecrets/s", Value::Null);
    assert_eq!(refused, error(404, "SecretNotFound", ""));
}

/// What an update changes, and what it leaves.
#[test]
fn updates() {
    let world = World::new();
    let made = world.done(
        "POST",
        "/keys/k/create",
        json!({ "kty": "RSA", "key_ops": ["wrapKey", "unwrapKey"], "tags": { "a": "1" },
                "attributes": { "exp": 4_000_000_000i64 } }),
    );
    let path = format!("/keys/k/{}", version_of(&made));
    let changed = world.done("PATCH", &path, json!({ "attributes": { "enabled": false } }));
    assert_eq!(changed["attributes"]["enabled"], json!(false));
    assert_eq!(changed["attributes"]["exp"], json!(4_000_000_000i64));
    assert_eq!(changed["key"]["key_ops"], json!(["wrapKey", "unwrapKey"]));
    assert_eq!(changed["tags"], json!({ "a": "1" }));
    let body =
        json!({ "key_ops": ["sign"], "tags": {}, "attributes": { "nbf": 5, "enabled": true } });
    let changed = world.done("PATCH", "/keys/k/", body);
    assert_eq!(changed["key"]["key_ops"], json!(["sign"]));
    assert_eq!(changed["tags"], json!({}));
    assert_eq!(changed["attributes"]["nbf"], json!(5));
    assert_eq!(changed["key"]["n"], made["key"]["n"]);
    assert_eq!(world.done("GET", "/keys/k", Value::Null), changed);
    for body in [
        json!({ "attributes": { "exp": 4 } }),
        json!({ "key_ops": ["fly"] }),
        json!({ "tags": { "long": "x".repeat(300) } }),
        json!({ "attributes": { "nbf": -1 } }),
        json!({ "attributes": 7 }),
    ] {
        assert_eq!(world.refused("PATCH", &path, body), error(400, "BadParameter", ""));
    }
    assert_eq!(world.done("GET", "/keys/k", Value::Null), changed, "refused changes are none");
    let refused = world.refused("PATCH", "/keys/other", json!({}));
    assert_eq!(refused, error(404, "KeyNotFound", ""));
}

/// Listings come in pages that together have everything once, in order.
#[test]
fn pages() {
    let world = World::new();
    for number in 0..60 {
        world.done("POST", &format!("/keys/k{number:02}/create"), json!({ "kty": "oct" }));
    }
    for (path, sizes) in [("/keys", vec![25, 25, 10]), ("/keys?maxresults=20", vec![20, 20, 20])] {
        let (mut target, mut found, mut counts) = (Some(path.to_owned()), Vec::new(), Vec::new());
        while let Some(path) = target {
            let page = world.done("GET", &path, Value::Null);
            let items = page["value"].as_array().expect("items").clone();
            counts.push(items.len());
            found.extend(items.iter().map(|item| item["kid"].as_str().expect("kid").to_owned()));
            let next = page["nextLink"].as_str().map(str::to_owned);
            // The next link has its own api-version; `done` would add a second.
            target = next.map(|link| {
                let link = link.strip_prefix("https://localhost").expect("this vault's");
                link.replace("api-version=7.4&", "").to_owned()
            });
        }
        assert_eq!(counts, sizes);
        let expected: Vec<_> =
            (0..60).map(|number| format!("https://localhost/keys/k{number:02}")).collect();
        assert_eq!(found, expected);
    }
    for bad in
        ["/keys?maxresults=0", "/keys?maxresults=26", "/keys?maxresults=x", "/keys?$skiptoken=*"]
    {
        assert_eq!(world.refused("GET", bad, Value::Null), error(400, "BadParameter", ""));
    }
    let none = world.done("GET", "/keys/none/versions", Value::Null);
    assert_eq!(none["value"], json!([]));
}

/// A backup brings back all versions, under its own name, in its own vault only.
#[test]
fn backups() {
    let world = World::purgeable();
    let first = world.done("POST", "/keys/k/create", json!({ "kty": "RSA" }));
    let second = world.done("POST", "/keys/k/rotate", Value::Null);
    let plain = json!({ "alg": "RSA-OAEP-256", "value": "AAECAwQFBgcICQoLDA0ODw" });
    let old = format!("/keys/k/{}", version_of(&first));
    let wrapped = world.done("POST", &format!("{old}/wrapkey"), plain.clone());
    let backup = world.done("POST", "/keys/k/backup", Value::Null);
    let conflict = error(409, "Conflict", "");
    assert_eq!(world.refused("POST", "/keys/restore", backup.clone()), conflict);
    world.done("DELETE", "/keys/k", Value::Null);
    let gone = error(409, "Conflict", "ObjectIsDeletedButRecoverable");
    assert_eq!(world.refused("POST", "/keys/restore", backup.clone()), gone);
    world.done("DELETE", "/deletedkeys/k", Value::Null);
    assert_eq!(world.done("POST", "/keys/restore", backup.clone()), second);
    let input = json!({ "alg": "RSA-OAEP-256", "value": wrapped["value"] });
    let unwrapped = world.done("POST", &format!("{old}/unwrapkey"), input);
    assert_eq!(unwrapped["value"], plain["value"]);
    let bad = error(400, "BadParameter", "");
    assert_eq!(World::new().refused("POST", "/keys/restore", backup.clone()), bad);
    assert_eq!(world.refused("POST", "/secrets/restore", backup.clone()), bad);
    let mut text = backup["value"].as_str().expect("a blob").to_owned();
    text.replace_range(40..41, if &text[40..41] == "A" { "B" } else { "A" });
    assert_eq!(world.refused("POST", "/keys/restore", json!({ "value": text })), bad);
    assert_eq!(world.refused("POST", "/keys/restore", json!({ "value": "AAAA" })), bad);
}
