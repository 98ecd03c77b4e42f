//! What keys do: round trips, states, refusals.

use serde_json::{Value, json};

use crate::world::{DAY, World, error, version_of};

const PLAIN: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

fn operation(world: &World, path: &str, verb: &str, alg: &str, value: &Value) -> Value {
    world.done("POST", &format!("{path}/{verb}"), json!({ "alg": alg, "value": value }))
}

/// Each algorithm undoes what it did, says which version did it, and notices a change.
#[test]
fn round_trips() {
    let world = World::new();
    world.done("POST", "/keys/rsa/create", json!({ "kty": "RSA" }));
    world.done("POST", "/keys/aes/create", json!({ "kty": "oct-HSM" }));
    for (name, there, back, alg) in [
        ("rsa", "wrapkey", "unwrapkey", "RSA-OAEP-256"),
        ("rsa", "wrapkey", "unwrapkey", "RSA-OAEP"),
        ("rsa", "encrypt", "decrypt", "RSA-OAEP-256"),
        ("aes", "wrapkey", "unwrapkey", "A256KW"),
    ] {
        let path = format!("/keys/{name}/");
        let sealed = operation(&world, &path, there, alg, &json!(PLAIN));
        let kid = sealed["kid"].as_str().expect("a kid");
        version_of(&sealed);
        assert_ne!(sealed["value"], json!(PLAIN));
        let versioned = kid.strip_prefix("https://localhost").expect("this vault's");
        let opened = operation(&world, versioned, back, alg, &sealed["value"]);
        assert_eq!(opened["value"], json!(PLAIN), "{alg}");
        assert_eq!(opened["kid"], sealed["kid"]);
        let mut text = sealed["value"].as_str().expect("text").to_owned();
        text.replace_range(5..6, if &text[5..6] == "A" { "B" } else { "A" });
        for bad in [text.as_str(), "AAAA", "", PLAIN] {
            let body = json!({ "alg": alg, "value": bad });
            let refused = world.refused("POST", &format!("{versioned}/{back}"), body);
            assert_eq!(refused, error(400, "BadParameter", ""), "{alg} of {bad:?}");
        }
    }
}

/// AES-GCM: the vault draws the nonce; associated data, nonce and tag are authenticated.
#[test]
fn gcm() {
    let world = World::new();
    world.done("POST", "/keys/aes/create", json!({ "kty": "oct-HSM" }));
    let body = json!({ "alg": "A256GCM", "value": PLAIN, "aad": "AQID" });
    let sealed = world.done("POST", "/keys/aes//encrypt", body.clone());
    let other = world.done("POST", "/keys/aes//encrypt", body);
    assert_ne!(sealed["iv"], other["iv"]);
    let input = |change: &str, value: &Value| {
        let mut input = json!({ "alg": "A256GCM" });
        for part in ["value", "aad", "iv", "tag"] {
            input[part] = sealed[part].clone();
        }
        if !change.is_empty() {
            input[change] = value.clone();
        }
        input
    };
    let opened = world.done("POST", "/keys/aes//decrypt", input("", &Value::Null));
    assert_eq!(opened["value"], json!(PLAIN));
    for (part, value) in [
        ("aad", json!("AQIE")),
        ("aad", Value::Null),
        ("iv", other["iv"].clone()),
        ("tag", other["tag"].clone()),
        ("value", other["value"].clone()),
        ("iv", json!("AAAA")),
        ("tag", Value::Null),
    ] {
        let refused = world.refused("POST", "/keys/aes//decrypt", input(part, &value));
        assert_eq!(refused, error(400, "BadParameter", ""), "{part}");
    }
    let own_nonce = json!({ "alg": "A256GCM", "value": PLAIN, "iv": sealed["iv"] });
    let refused = world.refused("POST", "/keys/aes//encrypt", own_nonce);
    assert_eq!(refused, error(400, "BadParameter", ""));
}

/// Each signature verifies with its digest and no other, and with its own algorithm only.
#[test]
fn signatures() {
    let world = World::new();
    world.done("POST", "/keys/rsa/create", json!({ "kty": "RSA" }));
    for curve in ["P-256", "P-384", "P-521"] {
        let body = json!({ "kty": "EC", "crv": curve });
        world.done("POST", &format!("/keys/{curve}/create"), body);
    }
    for (name, alg, bytes) in [
        ("rsa", "RS256", 32),
        ("rsa", "RS384", 48),
        ("rsa", "RS512", 64),
        ("rsa", "PS256", 32),
        ("rsa", "PS384", 48),
        ("rsa", "PS512", 64),
        ("P-256", "ES256", 32),
        ("P-384", "ES384", 48),
        ("P-521", "ES512", 64),
    ] {
        let text = |fill| atrest::vault::encoding::encode(&vec![fill; bytes]).to_string();
        let (digest, other) = (text(7), text(8));
        let path = format!("/keys/{name}/");
        let signed = operation(&world, &path, "sign", alg, &json!(digest));
        let verify = |digest: &str, value: &Value| {
            let body = json!({ "alg": alg, "digest": digest, "value": value });
            world.done("POST", &format!("{path}/verify"), body)["value"].clone()
        };
        assert_eq!(verify(&digest, &signed["value"]), json!(true), "{alg}");
        assert_eq!(verify(&other, &signed["value"]), json!(false), "{alg}");
        assert_eq!(verify(&digest, &json!("AAAA")), json!(false), "{alg}");
        let short = json!({ "alg": alg, "value": "AAAA" });
        let refused = world.refused("POST", &format!("{path}/sign"), short);
        assert_eq!(refused, error(400, "BadParameter", ""), "{alg}");
    }
}

/// Algorithms that a key does not have, values that do not fit, and bodies that are none.
#[test]
fn refusals() {
    let world = World::new();
    world.done("POST", "/keys/rsa/create", json!({ "kty": "RSA" }));
    world.done("POST", "/keys/ec/create", json!({ "kty": "EC" }));
    world.done("POST", "/keys/aes/create", json!({ "kty": "oct-HSM" }));
    let bad = error(400, "BadParameter", "");
    let long = |bytes| atrest::vault::encoding::encode(&vec![1; bytes]).to_string();
    for (path, alg, value) in [
        ("/keys/rsa//wrapkey", "RSA1_5", PLAIN.to_owned()),
        ("/keys/rsa//wrapkey", "A256KW", PLAIN.to_owned()),
        ("/keys/rsa//wrapkey", "RSA-OAEP-256", long(191)),
        ("/keys/rsa//sign", "ES256", PLAIN.to_owned()),
        ("/keys/aes//wrapkey", "RSA-OAEP-256", PLAIN.to_owned()),
        ("/keys/aes//wrapkey", "A256KW", long(15)),
        ("/keys/aes//encrypt", "A256KW", PLAIN.to_owned()),
        ("/keys/ec//sign", "RS256", PLAIN.to_owned()),
        ("/keys/rsa//wrapkey", "RSA-OAEP-256", "not*base64".to_owned()),
    ] {
        let body = json!({ "alg": alg, "value": value });
        assert_eq!(world.refused("POST", path, body), bad, "{path} {alg}");
    }
    world.done("POST", "/keys/rsa//wrapkey", json!({ "alg": "RSA-OAEP-256", "value": long(190) }));
    for body in [json!({}), json!({ "alg": "RSA-OAEP-256" }), json!([]), json!("x")] {
        assert_eq!(world.refused("POST", "/keys/rsa//wrapkey", body), bad);
    }
    let forbidden = error(403, "Forbidden", "KeyOperationForbidden");
    let body = json!({ "alg": "A256KW", "value": PLAIN });
    assert_eq!(world.refused("POST", "/keys/ec//wrapkey", body.clone()), forbidden);
    world.done("PATCH", "/keys/aes", json!({ "key_ops": ["unwrapKey"] }));
    assert_eq!(world.refused("POST", "/keys/aes//wrapkey", body), forbidden);
}

/// What a version may be used for when it is disabled, not yet valid or expired.
#[test]
fn states() {
    let world = World::new();
    let now = atrest::vault::objects::now();
    let rsa = world.done("POST", "/keys/rsa/create", json!({ "kty": "RSA" }));
    let path = format!("/keys/rsa/{}", version_of(&rsa));
    let sealed =
        operation(&world, &path, "wrapkey", "RSA-OAEP-256", &json!(PLAIN))["value"].clone();
    let signed = operation(&world, &path, "sign", "RS256", &json!(PLAIN))["value"].clone();
    let done = error(200, "", "");
    let forbidden = |inner| error(403, "Forbidden", inner);
    let (disabled, early, expired) =
        (forbidden("KeyDisabled"), forbidden("KeyNotYetValid"), forbidden("KeyExpired"));
    for (attributes, private, public, sign) in [
        (json!({ "enabled": true }), &done, &done, &done),
        (json!({ "enabled": false }), &disabled, &done, &disabled),
        (json!({ "enabled": true, "nbf": now + DAY }), &done, &early, &early),
        (json!({ "nbf": now - DAY - 1, "exp": now - DAY }), &done, &expired, &expired),
        (json!({ "enabled": false }), &disabled, &expired, &disabled),
        (json!({ "enabled": true, "exp": now + DAY }), &done, &done, &done),
    ] {
        world.done("PATCH", &path, json!({ "attributes": attributes }));
        for (verb, alg, value, expected) in [
            ("unwrapkey", "RSA-OAEP-256", &sealed, private),
            ("decrypt", "RSA-OAEP-256", &sealed, private),
            ("wrapkey", "RSA-OAEP-256", &json!(PLAIN), public),
            ("encrypt", "RSA-OAEP-256", &json!(PLAIN), public),
            ("sign", "RS256", &json!(PLAIN), sign),
            ("verify", "RS256", &signed, &done),
        ] {
            let body = json!({ "alg": alg, "value": value, "digest": PLAIN });
            let result = world.refused("POST", &format!("{path}/{verb}"), body);
            assert_eq!(&result, expected, "{verb} with {attributes}");
        }
        let got = world.done("GET", &path, Value::Null);
        assert_eq!(got["key"]["n"], rsa["key"]["n"], "its public part can be had");
    }
}

/// Known keys are imported and are what they are: RFC 7515's RSA key signs as in appendix A.2,
/// RFC 3394's key wraps as in section 4.6; broken ones are refused.
#[test]
fn imports() {
    let world = World::new();
    let rsa: Value = serde_json::from_str(include_str!("rfc7515-a2.json")).expect("JSON");
    let made = world.done("PUT", "/keys/rsa", json!({ "key": rsa }));
    assert_eq!(made["key"]["n"], rsa["n"]);
    assert!(made["key"].get("d").is_none());
    let message = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6\
                   Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let digest = atrest::crypto::kdf::digest(message.as_bytes());
    let digest = atrest::vault::encoding::encode(&digest).to_string();
    let signed = operation(&world, "/keys/rsa/", "sign", "RS256", &json!(digest));
    let expected = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_\
                    lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75\
                    vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHW\
                    EsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlV\
                    mtVrBp0igcN_IoypGlUPQGe77Rw";
    assert_eq!(signed["value"], json!(expected));

    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    world.done("PUT", "/keys/aes", json!({ "key": { "kty": "oct-HSM", "k": key } }));
    let data = "ABEiM0RVZneImaq7zN3u_wABAgMEBQYHCAkKCwwNDg8";
    let wrapped = operation(&world, "/keys/aes/", "wrapkey", "A256KW", &json!(data));
    let expected = "KMn0BMS4EPTLzLNc-4f4Jj9XhuLYDtMmy8fw5xqZ9Dv7mIubegLdIQ";
    assert_eq!(wrapped["value"], json!(expected));

    for (part, value) in
        [("d", json!("AAAA")), ("n", Value::Null), ("e", json!("Aw")), ("p", rsa["q"].clone())]
    {
        let mut broken = rsa.clone();
        broken[part] = value;
        let refused = world.refused("PUT", "/keys/broken", json!({ "key": broken }));
        assert_eq!(refused, error(400, "BadParameter", ""), "{part}");
    }
    for key in [
        json!({ "kty": "oct", "k": "AAAA" }),
        json!({ "kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "d": "AAAA" }),
        json!({ "kty": "RSA-HSM" }),
        json!({ "kty": "OKP" }),
    ] {
        let refused = world.refused("PUT", "/keys/broken", json!({ "key": key }));
        assert_eq!(refused, error(400, "BadParameter", ""), "{key}");
    }
}
