//! `aws:` against ministack, which keeps the states of keys, and moto, which rotates and, with IAM
//! on, checks signatures and policies. None of them does all.

use std::process::Command;

use atrest::crypto::random;
use atrest::key::Wrapped;
use serde_json::{Value, json};

use crate::peers::{BINDING, OTHER, Peers, assert_error, assert_integrity};

/// Calls a function of a service as its administrator, and prints its answer.
const CALL: &str = "
import boto3, json, sys
address, authority, key_id, secret, name, arguments = sys.argv[1:]
kms = boto3.client('kms', endpoint_url=address, verify=authority, region_name='us-east-1',
                   aws_access_key_id=key_id, aws_secret_access_key=secret)
print(json.dumps(getattr(kms, name)(**json.loads(arguments)), default=str))
";

struct Kms {
    peers: Peers,
    prefix: &'static str,
    keys: (String, String),
}

impl Kms {
    fn start(name: &'static str, prefix: &'static str) -> Self {
        Self {
            peers: Peers::start(&[name]),
            prefix,
            keys: ("any".into(), "SECRETof/nobody".into()),
        }
    }

    fn variable(&self, name: &str) -> &str {
        self.peers.variable(&format!("{}_{name}", self.prefix))
    }

    fn call(&self, name: &str, arguments: Value) -> Value {
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/peers/bin/python3");
        let (id, secret) = &self.keys;
        let output = Command::new(python)
            .args(["-c", CALL, self.variable("ADDR"), self.variable("CACERT"), id, secret, name])
            .arg(arguments.to_string())
            .output()
            .expect("scripts/peers has installed it");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {arguments}: {errors}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A new key's ARN.
    fn key(&self) -> String {
        let made = self.call("create_key", json!({ "Description": "volumes" }));
        made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    }

    /// Lines for an access key.
    fn lines(&self, id: &str, secret: &str) -> String {
        let text =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        let file = self.peers.new_file(&text);
        let (endpoint, ca) = (self.variable("ADDR"), self.variable("CACERT"));
        format!(
            "endpoint = \"{endpoint}\"\nca_file = \"{ca}\"\ncredentials_file = \"{}\"",
            file.display()
        )
    }
}

/// Every state of a key, as ministack has them.
#[test]
fn states() {
    let kms = Kms::start("ministack", "MINISTACK");
    let (arn, other) = (kms.key(), kms.key());
    let lines = kms.lines("any", "SECRETof/nobody");
    let provider = kms.peers.provider(&format!("aws:{arn}"), &lines);
    let secret = random::secret(32);
    let Wrapped { kek, blobs } = provider.wrap(&BINDING, &[&secret, &secret]).expect("it wraps");
    let unwrap = || provider.unwrap(&BINDING, &kek, &blobs[0]);
    assert_eq!(kek.key_id, arn);
    for blob in &blobs {
        assert!(provider.unwrap(&BINDING, &kek, blob).expect("just wrapped").is_same(&secret));
    }
    assert_integrity(provider.unwrap(&OTHER, &kek, &blobs[0]));
    // What it authenticates are key and context, in the first bytes; not what is encrypted.
    let mut changed = blobs[0].clone();
    changed[60] ^= 1;
    assert_integrity(provider.unwrap(&BINDING, &kek, &changed));
    assert_integrity(provider.unwrap(&BINDING, &kek, &[0; 100]));

    let id = json!({ "KeyId": arn });
    kms.call("disable_key", id.clone());
    assert_error(unwrap(), "disabled", true);
    assert_error(provider.wrap(&BINDING, &[&secret]), "disabled", true);
    assert_eq!(provider.health().expect("readable").enabled, Some(false));
    kms.call("enable_key", id.clone());
    assert!(unwrap().is_ok());
    kms.call("schedule_key_deletion", json!({ "KeyId": arn, "PendingWindowInDays": 7 }));
    assert_error(unwrap(), "it can be restored", true);
    kms.call("cancel_key_deletion", id.clone());
    assert_error(unwrap(), "disabled", true);
    kms.call("enable_key", id);
    assert!(unwrap().is_ok());

    let absent = arn.replace(&arn[arn.len() - 12..], "000000000000");
    let absent = kms.peers.provider(&format!("aws:{absent}"), &lines);
    assert_error(absent.wrap(&BINDING, &[&secret]), "the key does not exist", true);

    // An alias: what it wrapped is unwrapped by its own key, wherever it points then.
    let alias = format!("{}alias/volumes", &arn[..arn.len() - "key/".len() - 36]);
    kms.call("create_alias", json!({ "AliasName": "alias/volumes", "TargetKeyId": arn }));
    let by_alias = kms.peers.provider(&format!("aws:{alias}"), &lines);
    let first = by_alias.wrap(&BINDING, &[&secret]).expect("it wraps");
    assert_eq!(first.kek.key_id, arn);
    let latest = || by_alias.latest_version().expect("readable").expect("keys have versions");
    assert_eq!(latest(), first.kek.key_version);
    kms.call("update_alias", json!({ "AliasName": "alias/volumes", "TargetKeyId": other }));
    assert_ne!(latest(), first.kek.key_version);
    assert!(by_alias.unwrap(&BINDING, &first.kek, &first.blobs[0]).expect("ok").is_same(&secret));
    assert_eq!(by_alias.wrap(&BINDING, &[&secret]).expect("it wraps").kek.key_id, other);
}

/// What was wrapped before a rotation is unwrapped after it.
#[test]
fn rotation() {
    let kms = Kms::start("moto", "MOTO");
    let arn = kms.key();
    let provider = kms.peers.provider(&format!("aws:{arn}"), &kms.lines("any", "SECRETof/nobody"));
    let secret = random::secret(32);
    let before = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
    provider.create_version().expect("it rotates");
    let rotations = kms.call("list_key_rotations", json!({ "KeyId": arn }));
    assert_eq!(rotations["Rotations"].as_array().map(Vec::len), Some(1), "{rotations}");
    let after = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
    for Wrapped { kek, blobs } in [&before, &after] {
        assert!(provider.unwrap(&BINDING, kek, &blobs[0]).expect("it unwraps").is_same(&secret));
    }
}

/// Signatures are right, and wrong ones, unknown keys and missing rights are told apart.
#[test]
fn signatures_and_rights() {
    let mut kms = Kms::start("moto-iam", "MOTO_IAM");
    let all = ["KEY_ID", "SECRET", "LIMITED_ID", "LIMITED_SECRET"];
    let [id, key, limited_id, limited_key] = all.map(|name| kms.variable(name).to_owned());
    kms.keys = (id.clone(), key.clone());
    let uri = format!("aws:{}", kms.key());
    let secret = random::secret(32);
    let provider = kms.peers.provider(&uri, &kms.lines(&id, &key));
    let Wrapped { kek, blobs } =
        provider.wrap(&BINDING, &[&secret]).expect("the signature is right");
    assert!(provider.unwrap(&BINDING, &kek, &blobs[0]).expect("it unwraps").is_same(&secret));
    let wrong = kms.peers.provider(&uri, &kms.lines(&id, "SECRETwhichIsWrong"));
    assert_error(wrong.unwrap(&BINDING, &kek, &blobs[0]), "authentication failed", false);
    let unknown = kms.peers.provider(&uri, &kms.lines("AKIAUNKNOWN", &key));
    assert_error(unknown.unwrap(&BINDING, &kek, &blobs[0]), "authentication failed", false);
    let limited = kms.peers.provider(&uri, &kms.lines(&limited_id, &limited_key));
    assert_error(
        limited.unwrap(&BINDING, &kek, &blobs[0]),
        "allow kms:Decrypt on arn:aws:kms",
        true,
    );
    assert_error(limited.wrap(&BINDING, &[&secret]), "allow kms:Encrypt on arn:aws:kms", true);
    assert!(limited.latest_version().is_ok(), "describing is allowed");
}
