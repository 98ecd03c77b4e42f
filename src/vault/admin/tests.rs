//! Commands that are wrong are refused with what would be right, and change nothing.

use super::*;
use crate::vault::login::tests::Bench;

fn create(name: &str, managed: bool) -> Value {
    json!({ "op": "identity-create", "name": name, "managed": managed })
}

fn assign(role: &str, scope: &str) -> Value {
    json!({ "op": "policy-assign", "which": "web", "role": role, "scope": scope })
}

/// Every refusal says what to do; the state is the same afterwards.
#[test]
fn refusals() {
    let bench = Bench::new();
    bench.command(create("web", false)).expect("new");
    bench.command(create("host", true)).expect("new");
    let show = || bench.command(json!({ "op": "identity-show", "which": "web" })).expect("there");
    let before = (show(), bench.guard.0.state().settings.clone());
    let set =
        |keys: &str| json!({ "op": "policy-set", "which": "web", "keys": [keys], "secrets": [] });
    for (command, status, part) in [
        (create("WEB", true), 409, "already"),
        (create("", true), 400, "the name"),
        (json!({ "op": "identity-show", "which": "x" }), 404, "identity list"),
        (json!({ "op": "secret-add", "which": "host", "name": "s" }), 400, "has hosts"),
        (
            json!({ "op": "secret-add", "which": "web", "name": "s", "expires_in": 0 }),
            400,
            "future",
        ),
        (json!({ "op": "credential-remove", "which": "web", "id": "x" }), 404, "no credential"),
        (assign("Owner", "/"), 400, "Key Vault Crypto User"),
        (assign("Key Vault Reader", "/keys"), 400, "/keys/NAME"),
        (set("destroy"), 400, "unwrapKey"),
        (json!({ "op": "firewall-allow", "network": "x" }), 400, "192.0.2.0/24"),
        (json!({ "op": "firewall-remove", "network": "192.0.2.1" }), 400, "not in the list"),
        (json!({ "op": "settings-set", "authority": "http://x" }), 400, "https://HOST"),
        (json!({ "op": "settings-set", "resources": [] }), 400, "resources"),
        (json!({ "op": "settings-set", "token_lifetime": 5 }), 400, "60 to"),
        (json!({ "op": "limits-set", "vault": { "per_second": 1.0, "burst": 0.0 } }), 400, "burst"),
        (json!({ "op": "token-revoke", "token": "x" }), 400, "malformed"),
        (json!({ "op": "unknown" }), 400, "the body"),
        (json!({ "op": "identity-show", "which": "web", "more": 1 }), 400, "the body"),
    ] {
        let error = bench.command(command.clone()).expect_err("it makes no sense");
        assert_eq!(error.status, status, "{command}: {}", error.message);
        assert!(error.message.contains(part), "{command}: {}", error.message);
    }
    assert_eq!((show(), bench.guard.0.state().settings.clone()), before);
}

/// Roles come and go by name, access policies are replaced whole, and go with the identity.
#[test]
fn policies_are_edited() {
    let bench = Bench::new();
    bench
        .command(json!({ "op": "identity-create", "name": "web", "managed": false }))
        .expect("new");
    let assign = |op: &str| {
        let role = "key vault crypto service encryption user";
        bench.command(json!({ "op": op, "which": "web", "role": role, "scope": "/keys/KEK" }))
    };
    assign("policy-assign").expect("known");
    let shown = assign("policy-assign").expect("once more changes nothing");
    assert_eq!(shown["assignments"].as_array().map(Vec::len), Some(1));
    assert_eq!(shown["assignments"][0]["scope"], "/keys/kek");
    assert_eq!(shown["assignments"][0]["identity"], "web");
    assign("policy-unassign").expect("it is there");
    assert!(assign("policy-unassign").is_err());
    let set = |keys: &[&str]| {
        let command =
            json!({ "op": "policy-set", "which": "web", "keys": keys, "secrets": ["all"] });
        bench.command(command).expect("known")
    };
    set(&["get", "WRAPKEY"]);
    let shown = set(&["unwrapKey"]);
    assert_eq!(shown["access_policies"][0]["keys"], json!(["unwrapKey"]));
    assert_eq!(shown["access_policies"][0]["secrets"].as_array().map(Vec::len), Some(8));
    let model = json!({ "op": "policy-model", "model": "accessPolicy" });
    assert_eq!(bench.command(model).expect("known")["model"], "accessPolicy");
    bench.command(json!({ "op": "identity-delete", "which": "web" })).expect("there");
    let shown = bench.command(json!({ "op": "policy-show" })).expect("always");
    assert_eq!(shown["access_policies"], json!([]));
}

/// What is shown has no digest of a secret.
#[test]
fn nothing_secret_is_shown() {
    let bench = Bench::new();
    bench
        .command(json!({ "op": "identity-create", "name": "web", "managed": false }))
        .expect("new");
    bench.command(json!({ "op": "secret-add", "which": "web", "name": "s" })).expect("room");
    for command in ["identity-list", "policy-show", "settings-show", "limits-show", "firewall-show"]
    {
        let text = bench.command(json!({ "op": command })).expect("always").to_string();
        assert!(!text.contains("digest") && !text.contains("private"), "{text}");
    }
    let shown = bench.command(json!({ "op": "identity-show", "which": "web" })).expect("there");
    assert_eq!(shown["secrets"][0]["name"], "s");
    assert!(!shown.to_string().contains("digest"));
}
