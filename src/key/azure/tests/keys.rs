//! Which key, version and algorithm, and what is said of them.

use super::*;

/// A reply about another vault, key or version, or with a value that cannot be one, is not used.
#[test]
fn replies_are_checked() {
    let good = URL_SAFE_NO_PAD.encode([7; 32]);
    let long = URL_SAFE_NO_PAD.encode([7; SECRET_BYTES_MAX + 1]);
    for (kid, value, words) in [
        ("http://HOST/keys/k/ffffffffffffffffffffffffffffffff", good.as_str(), "another key"),
        ("http://HOST/keys/k2/VERSION", &good, "another key"),
        ("http://evil.test/keys/k/VERSION", &good, "another key"),
        ("https://HOST/keys/k/VERSION", &good, "another key"),
        ("http://HOST@evil/keys/k/VERSION", &good, "another key"),
        ("http://HOST/keys/k", &good, "another key"),
        ("", &good, "another key"),
        ("http://HOST/keys/k/VERSION", "", "cannot be one"),
        ("http://HOST/keys/k/VERSION", "s3cret+/", "cannot be one"),
        ("http://HOST/keys/k/VERSION", "s3cre", "cannot be one"),
        ("http://HOST/keys/k/VERSION", &long, "cannot be one"),
    ] {
        let (kid, value) = (kid.to_owned(), value.to_owned());
        let fixture = Fixture::new(move |request| {
            let kid = kid.replace("HOST", request.header("host")).replace("VERSION", VERSION);
            let body = format!("{{\"kid\":\"{kid}\",\"value\":\"{value}\"}}");
            is_operation(request).then(|| json(200, &body))
        });
        let error = fixture.unwrap().err().expect("refused");
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains("s3cret"), "{text}");
        assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }));
    }
}

/// A slot that names another vault, key or version than its URI, or a wrapped key that cannot be
/// one, is refused before anybody is asked.
#[test]
fn slots_are_checked() {
    let fixture = Fixture::new(|_| None);
    let own = fixture.kek();
    for (key_id, version) in [
        ("https://evil.test/keys/k", VERSION),
        ("http://HOST/keys/k2", VERSION),
        ("http://HOST/keys/k", "../x"),
        ("http://HOST/keys/k", ""),
        ("k", VERSION),
    ] {
        let key_id = key_id.replace("HOST", &fixture.server.authority);
        let kek = KekReference { key_id, key_version: version.into(), ..own.clone() };
        let error = fixture.provider.unwrap(&BINDING, &kek, &[1; 256]).err().expect("refused");
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    }
    for length in [0, 255, 257] {
        let error = fixture.provider.unwrap(&BINDING, &own, &vec![1; length]);
        assert!(matches!(error.err().expect("refused").kind(), KekErrorKind::Integrity));
    }
    assert!(fixture.asked().is_empty());
}

/// The key's type decides the algorithm; a disabled key does not wrap although the service would.
#[test]
fn keys_that_wrap() {
    let secret = random::secret(32);
    for (kty, expected) in [
        ("RSA", Some(Algorithm::RsaOaep256)),
        ("RSA-HSM", Some(Algorithm::RsaOaep256)),
        ("oct-HSM", Some(Algorithm::A256Kw)),
        ("EC", None),
    ] {
        let fixture = Fixture::new(move |request| {
            if request.target.contains("/wrapkey") && kty == "oct-HSM" {
                assert!(request.body.contains("\"alg\":\"A256KW\""));
                return Some(operation(request, VERSION, &URL_SAFE_NO_PAD.encode([1; 40])));
            }
            let is_get = request.method == "GET" && !request.header("authorization").is_empty();
            is_get.then(|| bundle(request, kty, ""))
        });
        let wrapped = fixture.provider.wrap(&BINDING, &[&secret]);
        match expected {
            Some(algorithm) => assert_eq!(wrapped.expect(kty).kek.algorithm, algorithm),
            None => assert!(wrapped.expect_err(kty).to_string().contains("make an RSA key")),
        }
    }
    let fixture = Fixture::new(|request| {
        let is_get = request.method == "GET" && !request.header("authorization").is_empty();
        is_get.then(|| bundle(request, "RSA", "\"enabled\":false"))
    });
    let error = fixture.provider.wrap(&BINDING, &[&secret]).expect_err("it is disabled");
    assert!(matches!(error.kind(), KekErrorKind::Disabled));
}

/// What the service says of a key, and the newest version.
#[test]
fn health() {
    let time = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    for (attributes, recoverable, protected) in [
        ("\"recoveryLevel\":\"CustomizedRecoverable+Purgeable\"", Some(true), Some(false)),
        (
            "\"recoveryLevel\":\"CustomizedRecoverable+ProtectedSubscription\"",
            Some(true),
            Some(true),
        ),
        ("\"recoveryLevel\":\"Recoverable\"", Some(true), Some(true)),
        ("\"recoveryLevel\":\"Purgeable\"", Some(false), Some(false)),
        ("\"created\":1", None, None),
    ] {
        let text = format!("\"enabled\":true,\"nbf\":1,\"exp\":1893456000,{attributes}");
        let fixture = Fixture::new(move |request| {
            let is_get = request.method == "GET" && !request.header("authorization").is_empty();
            is_get.then(|| bundle(request, "RSA", &text))
        });
        let expected = Health {
            version: Some(VERSION.into()),
            enabled: Some(true),
            not_before: time(1),
            expires: time(1_893_456_000),
            recoverable,
            purge_protected: protected,
            operations_missing: vec!["unwrapKey".into()],
        };
        assert_eq!(fixture.provider.health().expect(attributes), expected);
        let latest = fixture.provider.latest_version().expect("it is there");
        assert_eq!(latest.as_deref(), Some(VERSION));
    }
}

/// URIs that are not those of a key.
#[test]
fn uris() {
    let options = ProviderOptions::default();
    for uri in ["azure:", "azure:x", "azure:https://v.test/secrets/k", "azure:https://a@b/keys/k"] {
        let error = from_uri(uri, &options).err().expect(uri);
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    }
    let made = from_uri("azure:https://v.vault.azure.net/keys/k/0123", &options).expect("a key");
    assert_eq!(made.latest_version().expect("it is pinned").as_deref(), Some("0123"));
}
