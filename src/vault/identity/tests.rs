//! Credentials of both kinds of identities, and what is refused.

use std::net::IpAddr;

use jsonwebtoken::jwk::JwkSet;

use super::*;

const NOW: u64 = 1_800_000_000;

fn directory() -> Directory {
    let mut directory = Directory::default();
    directory.create("web", IdentityKind::ServicePrincipal, NOW).expect("new");
    directory.create("host", IdentityKind::Managed, NOW).expect("new");
    directory
}

/// Several secrets at once, each until its end; what is stored tells none of them.
#[test]
fn secrets() {
    let mut directory = directory();
    let web = directory.find_mut("WEB").expect("case does not matter");
    let old = web.add_secret("old", NOW, Some(NOW + 10)).expect("room");
    let new = web.add_secret("new", NOW, None).expect("room");
    assert_eq!((old.value.len(), old.value == new.value), (43, false));
    assert_eq!(web.check_secret(&old.value, NOW + 9), Ok(()));
    assert_eq!(web.check_secret(&old.value, NOW + 10), Err(CredentialError::Expired));
    assert_eq!(web.check_secret(&new.value, NOW + 1_000_000_000), Ok(()));
    for wrong in ["", "x", &new.value[1..], &format!("{}x", *new.value)] {
        assert_eq!(web.check_secret(wrong, NOW), Err(CredentialError::Invalid));
    }
    let json = serde_json::to_string(web).expect("strings");
    let debug = format!("{web:?}");
    for secret in [&old.value, &new.value] {
        assert!(!json.contains(&***secret) && !debug.contains(&***secret));
    }
    let read: Identity = serde_json::from_str(&json).expect("the same");
    assert_eq!(read.check_secret(&new.value, NOW), Ok(()));
    web.remove_credential(&old.id).expect("it is there");
    assert_eq!(web.check_secret(&old.value, NOW), Err(CredentialError::Invalid));
    assert_eq!(web.check_secret(&new.value, NOW), Ok(()));
    let gone = web.remove_credential(&old.id);
    assert_eq!(gone, Err(DirectoryError::NoCredential(old.id.clone())));
    web.remove_credential("new").expect("by its name, which is the only one");
    assert_eq!(web.check_secret(&new.value, NOW), Err(CredentialError::Invalid));
}

/// A host is known by its secret or address, for managed identities that are switched on.
#[test]
fn hosts() {
    let mut directory = directory();
    let host = directory.find_mut("host").expect("made");
    let secret = host.bind_secret("web-1", NOW, Some(NOW + 10)).expect("room");
    host.bind_address("rack", "192.0.2.7/24".parse().expect("a network")).expect("room");
    let names = |found: Vec<&Identity>| found.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(directory.by_host_secret(&secret.value, NOW)), ["host"]);
    assert_eq!(names(directory.by_host_secret(&secret.value, NOW + 10)), [""; 0]);
    assert_eq!(names(directory.by_host_secret("", NOW)), [""; 0]);
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    assert_eq!(names(directory.by_address(address("::ffff:192.0.2.200"))), ["host"]);
    assert_eq!(names(directory.by_address(address("192.0.3.1"))), [""; 0]);
    directory.find_mut("host").expect("made").enabled = false;
    assert_eq!(names(directory.by_host_secret(&secret.value, NOW)), [""; 0]);
    assert_eq!(names(directory.by_address(address("192.0.2.7"))), [""; 0]);
}

/// Each kind has its own credentials, and what makes no sense is refused.
#[test]
fn refusals() {
    let mut directory = directory();
    let taken = directory.create("Web", IdentityKind::Managed, NOW).err();
    assert_eq!(taken, Some(DirectoryError::Exists("Web".into())));
    let long = "x".repeat(121);
    for bad in ["", " x", "x\n", &long] {
        let error = directory.create(bad, IdentityKind::Managed, NOW).expect_err("no name");
        assert!(matches!(error, DirectoryError::Text { .. }), "{bad:?}");
    }
    assert!(directory.find("nobody").is_err() && directory.remove("nobody").is_err());
    let host = directory.find_mut("host").expect("made");
    assert!(matches!(host.add_secret("s", NOW, None), Err(DirectoryError::Kind(_))));
    let web = directory.find_mut("web").expect("made");
    assert!(matches!(web.bind_secret("s", NOW, None), Err(DirectoryError::Kind(_))));
    let past = web.add_secret("s", NOW, Some(NOW)).err();
    assert_eq!(past, Some(DirectoryError::Expiry));
    assert!(matches!(web.add_certificate("c", b"no key", NOW, None), Err(DirectoryError::Key(_))));
    for n in 0..CREDENTIALS_MAX {
        web.add_secret(&n.to_string(), NOW, None).expect("room");
    }
    assert!(matches!(web.add_secret("s", NOW, None), Err(DirectoryError::TooMany(_))));
    let removed = directory.remove("web").expect("it is there");
    assert!(directory.by_client_id(&removed.client_id).is_none());
    assert!(directory.by_object_id(&removed.object_id).is_none());
}

/// Federated credentials name everything, and have keys.
#[test]
fn federated() {
    let mut directory = directory();
    let web = directory.find_mut("web").expect("made");
    let keys = serde_json::json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    }]});
    let set: JwkSet = serde_json::from_value(keys).expect("a JWK set");
    let good = FederatedCredential {
        id: String::new(),
        name: "cluster".into(),
        issuer: "https://cluster.test".into(),
        subject: "s".into(),
        audience: "a".into(),
        keys: KeySource::Inline(set),
    };
    let changes: [fn(&mut FederatedCredential); 5] = [
        |c| c.issuer = String::new(),
        |c| c.subject = "\0".into(),
        |c| c.audience = "x".repeat(TEXT_BYTES_MAX + 1),
        |c| c.keys = KeySource::File("keys.json".into()),
        |c| c.keys = KeySource::Inline(JwkSet { keys: Vec::new() }),
    ];
    for change in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(web.add_federated(bad.clone()).is_err(), "{bad:?}");
    }
    let id = web.add_federated(good).expect("it is complete");
    let json = serde_json::to_string(web).expect("strings");
    let read: Identity = serde_json::from_str(&json).expect("the same");
    assert_eq!(read.federated[0].id, id);
}
