//! What refusals, outages and challenges mean, and how long a token is used.

use super::*;

/// Each row of the service's error table, and what it means for a volume.
#[test]
fn error_table() {
    type Check = fn(&KekErrorKind) -> bool;
    let denied: Check = |kind| matches!(kind, KekErrorKind::Denied { .. });
    let disabled: Check = |kind| matches!(kind, KekErrorKind::Disabled);
    let unreachable: Check = |kind| matches!(kind, KekErrorKind::Unreachable { .. });
    let refused: Check = |kind| matches!(kind, KekErrorKind::AuthenticationFailed { .. });
    let malformed: Check = |kind| matches!(kind, KekErrorKind::BadRequest { .. });
    let integrity: Check = |kind| matches!(kind, KekErrorKind::Integrity);
    let gone: Check = |kind| matches!(kind, KekErrorKind::Gone { recoverable: true });
    for (status, outer, inner, expected, words) in [
        (401, "Unauthorized", "", refused, "clock"),
        (403, "Forbidden", "KeyDisabled", disabled, "disabled"),
        (403, "Forbidden", "ForbiddenByPolicy", denied, "access policy"),
        (403, "Forbidden", "ForbiddenByRbac", denied, "Key Vault Crypto Service Encryption User"),
        (403, "Forbidden", "AccessDenied", denied, "may not unwrapKey"),
        (403, "Forbidden", "", denied, "role"),
        (403, "Forbidden", "KeyOperationForbidden", denied, "key_ops"),
        (403, "Forbidden", "KeyExpired", denied, "exp"),
        (403, "Forbidden", "KeyNotYetValid", denied, "nbf"),
        (403, "Forbidden", "ForbiddenByFirewall", unreachable, "network rules"),
        (403, "Forbidden", "ForbiddenByConnection", unreachable, "network rules"),
        (409, "Conflict", "ObjectIsDeletedButRecoverable", gone, "restored"),
        (409, "Conflict", "ObjectIsBeingDeleted", gone, "restored"),
        (409, "Conflict", "ObjectIsBeingRecovered", unreachable, "try again"),
        (400, "BadParameter", "", integrity, "did not wrap"),
        (400, "BadRequest", "", malformed, "BadRequest"),
        (405, "MethodNotAllowed", "", malformed, "MethodNotAllowed"),
        (500, "InternalServerError", "", unreachable, "InternalServerError"),
    ] {
        let body = error_body(outer, inner);
        let fixture = Fixture::new(move |request| {
            let headers = [
                ("Content-Type", "application/json"),
                ("x-ms-request-id", "id-1"),
                ("WWW-Authenticate", "Bearer resource=\"https://vault.test\""),
            ];
            is_operation(request).then(|| reply(status, &headers, &body))
        });
        let error = fixture.unwrap().err().expect("refused");
        let text = error.to_string();
        assert!(expected(error.kind()), "{status} {outer} {inner}: {error:?}");
        assert!(text.contains(words) && !text.contains("s3cret"), "{status} {inner}: {text}");
        assert!(text.contains("/keys/k/") && !text.contains(TOKEN), "{text}");
    }
}

/// The same words from something on the way that is no vault take no key away.
#[test]
fn proxies_take_nothing_away() {
    for (status, content_type, body) in [
        (403, "text/html", "<html>Blocked</html>"),
        (404, "text/html", ""),
        (403, "application/json", "{\"message\":\"forbidden\"}"),
        (404, "application/json", "[]"),
        (407, "text/plain", "x"),
    ] {
        let fixture = Fixture::new(move |request| {
            is_operation(request).then(|| reply(status, &[("Content-Type", content_type)], body))
        });
        let error = fixture.unwrap().err().expect("refused");
        assert!(
            matches!(error.kind(), KekErrorKind::Unreachable { reason }
            if reason.contains("not from a key vault")),
            "{error}"
        );
        assert!(!error.is_definitive());
    }
}

/// A key that is not there: deleted and recoverable, or gone.
#[test]
fn deleted_keys() {
    for recoverable in [true, false] {
        let fixture = Fixture::new(move |request| {
            let not_there = error_body("KeyNotFound", "");
            match request.target.starts_with("/deletedkeys/k?") {
                true if recoverable => Some(json(200, "{}")),
                true => Some(json(404, &not_there)),
                false => is_operation(request).then(|| json(404, &not_there)),
            }
        });
        let error = fixture.unwrap().err().expect("refused");
        assert!(matches!(error.kind(), KekErrorKind::Gone { recoverable: found }
            if *found == recoverable));
    }
}

/// Throttled on the very first request, or later: it waits as told, or says for how long.
#[test]
fn throttled() {
    for first in [true, false] {
        let count = AtomicUsize::new(0);
        let fixture = Fixture::new(move |request| {
            let applies = first || is_operation(request);
            let busy = applies && count.fetch_add(1, Ordering::Relaxed) == 0;
            busy.then(|| reply(429, &[("Retry-After", "1")], ""))
        });
        let begun = Instant::now();
        fixture.unwrap().expect("it is free again");
        assert!(begun.elapsed() >= Duration::from_secs(1));
        let fixture = Fixture::new(move |request| {
            (first || is_operation(request)).then(|| reply(429, &[("Retry-After", "60")], ""))
        });
        let error = fixture.unwrap().err().expect("throttled");
        assert!(matches!(error.kind(), KekErrorKind::Throttled { retry_after: Some(wait) }
            if wait.as_secs() == 60));
    }
}

/// A vault whose name nobody knows may have been deleted, which is an outage all the same.
#[test]
fn unknown_names() {
    let uri = "azure:https://contoso.invalid/keys/k";
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("providers.toml");
    let text = format!("[[provider]]\nuri = \"{uri}\"\nproxy = \"none\"\ntotal_timeout_s = 3\n");
    std::fs::write(&path, text).expect("written");
    let providers = Providers::from_file(path);
    let options = ProviderOptions { providers, ..ProviderOptions::default() };
    let provider = AzureProvider::new(uri, &options, Arc::new(|_| None)).expect("a key");
    let kek = KekReference {
        key_id: "https://contoso.invalid/keys/k".to_owned(),
        key_version: VERSION.to_owned(),
        algorithm: Algorithm::RsaOaep256,
        parameters: None,
    };
    let error = provider.unwrap(&BINDING, &kek, &[1; 256]).err().expect("nobody answers");
    assert!(
        matches!(error.kind(), KekErrorKind::Unreachable { reason }
        if reason.contains("a vault that was deleted has no name")),
        "{error}"
    );
}

/// A metadata service that is starting, being updated or busy is asked again.
#[test]
fn metadata_services_get_time() {
    for status in [404, 410, 429, 500, 503] {
        let count = AtomicUsize::new(0);
        let fixture = Fixture::new(move |request| {
            let is_metadata = request.target.starts_with("/metadata/");
            let first = is_metadata && count.fetch_add(1, Ordering::Relaxed) == 0;
            first.then(|| json(status, "{\"error\":\"starting\"}"))
        });
        assert!(fixture.unwrap().is_ok(), "{status}");
        let tokens = fixture.asked().iter().filter(|path| path.ends_with("/token")).count();
        assert_eq!(tokens, 2, "{status}");
    }
}

/// A vault that wants a token for something else gets none, and neither does who asks for none.
#[test]
fn challenges() {
    for resource in ["https://storage.test", "https://vault.test@evil", "http://vault.test"] {
        let fixture = Fixture::new(move |request| {
            request.header("authorization").is_empty().then(|| challenge(resource))
        });
        let error = fixture.unwrap().err().expect("refused");
        assert!(!error.is_definitive());
        assert_eq!(fixture.asked().len(), 1, "no token was asked for");
    }
    for (status, words) in [(200, "without asking"), (404, "without asking"), (204, "without")] {
        let fixture = Fixture::new(move |_| Some(json(status, "{}")));
        let error = fixture.unwrap().err().expect("refused").to_string();
        assert!(error.contains(words), "{error}");
    }
    let own = "https://kv.test:8443";
    let url = |text| Url::parse(text).expect("a URL");
    let challenge = Challenge::parse(&format!("Bearer resource=\"{own}\"")).expect("one");
    assert!(challenge.is_for(&url(own), None));
}

/// A token that is refused is replaced once; a second refusal is the answer.
#[test]
fn refused_tokens() {
    let count = AtomicUsize::new(0);
    let fixture = Fixture::new(move |request| {
        let refused = is_operation(request) && count.fetch_add(1, Ordering::Relaxed) == 1;
        refused.then(|| challenge("https://vault.test"))
    });
    fixture.unwrap().expect("unwrapped");
    fixture.unwrap().expect("unwrapped with a new token");
    let tokens =
        |fixture: &Fixture| fixture.asked().iter().filter(|path| path.ends_with("/token")).count();
    assert_eq!(tokens(&fixture), 2);
    let fixture =
        Fixture::new(|request| is_operation(request).then(|| challenge("https://vault.test")));
    let error = fixture.unwrap().err().expect("refused");
    assert!(matches!(error.kind(), KekErrorKind::AuthenticationFailed { .. }), "{error}");
    assert_eq!(tokens(&fixture), 2);
    let fixture =
        Fixture::new(|request| is_operation(request).then(|| challenge("https://evil.test")));
    let error = fixture.unwrap().err().expect("refused");
    assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    assert_eq!(tokens(&fixture), 1);
}

/// Tokens are kept while they are good, and no longer.
#[test]
fn token_lives() {
    for (expires_in, expected) in [("3599", 1), ("0", 2), ("-1", 2), ("soon", 2)] {
        let fixture = Fixture::new(move |request| {
            request.target.contains("/oauth2/token").then(|| token(expires_in))
        });
        fixture.unwrap().expect("unwrapped");
        fixture.unwrap().expect("unwrapped");
        let tokens = fixture.asked().iter().filter(|path| path.ends_with("/token")).count();
        assert_eq!(tokens, expected, "{expires_in}");
    }
    for (body, words) in [
        ("{\"access_token\":\"\"}", "characters"),
        ("{\"access_token\":\"a b\"}", "characters"),
        ("{\"access_token\":\"s3cret\",\"token_type\":\"pop\"}", "another kind"),
        ("{}", "missing"),
        ("s3cret", "not JSON"),
    ] {
        let fixture = Fixture::new(move |request| {
            request.target.contains("/oauth2/token").then(|| json(200, body))
        });
        let error = fixture.unwrap().err().expect("refused").to_string();
        assert!(error.contains(words) && !error.contains("s3cret"), "{body}: {error}");
    }
}
