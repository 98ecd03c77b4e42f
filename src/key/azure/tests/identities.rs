//! Who asks: where a token comes from, and what its endpoint refuses.

use super::*;

/// How each identity asks for a token, and which is taken when several could be.
#[test]
fn identities() {
    let directory = tempfile::tempdir().expect("a directory");
    let assertion = directory.path().join("token");
    std::fs::write(&assertion, "a.b.c\n").expect("written");
    let assertion = assertion.to_str().expect("UTF-8");
    let application = [
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_AUTHORITY_HOST", "AUTHORITY"),
    ];
    let secret = ("AZURE_CLIENT_SECRET", "s3 cret");
    let federated = ("AZURE_FEDERATED_TOKEN_FILE", assertion);
    let service = [("IDENTITY_ENDPOINT", "AUTHORITY/msi/token"), ("IDENTITY_HEADER", "h")];
    let all = [&application[..], &[secret, federated], &service].concat();
    let workload = [&application[..], &[federated], &service].concat();
    let managed = [&application[..1], &service].concat();
    let authority = "/tenant/oauth2/v2.0/token";
    let secret_form = "grant_type=client_credentials&client_id=client&\
                       scope=https%3A%2F%2Fvault.test%2F.default&client_secret=s3%20cret";
    let workload_form = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type\
                         %3Ajwt-bearer&client_assertion=a.b.c";
    let imds = "/metadata/identity/oauth2/token?api-version=2018-02-01&\
                resource=https%3A%2F%2Fvault.test";
    let imds_user = format!("{imds}&client_id=me");
    let msi = "/msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fvault.test";
    let msi_client = format!("{msi}&client_id=client");
    for (settings, variables, target, part) in [
        ("", &all[..], authority, secret_form),
        ("", &workload, authority, workload_form),
        ("", &managed, msi, ""),
        ("", &[], imds, ""),
        ("client_id = \"me\"", &[], &imds_user, ""),
        ("identity = \"managed\"", &all, &msi_client, ""),
        ("identity = \"workload\"", &all, authority, workload_form),
    ] {
        let fixture = Fixture::with(settings, variables, Box::new(|_| None));
        fixture.unwrap().expect(settings);
        let asked = fixture.server.received()[1].clone();
        assert_eq!(asked.target, target, "{settings} {variables:?}");
        assert!(asked.body.contains(part), "{}", asked.body);
        match asked.method.as_str() {
            "POST" => assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded"),
            _ if target.starts_with("/msi") => assert_eq!(asked.header("x-identity-header"), "h"),
            _ => assert_eq!(asked.header("metadata"), "true"),
        }
    }
}

/// A credential that is meant but not complete is said, and no other is tried.
#[test]
fn incomplete_identities() {
    for (settings, variables, words) in [
        ("identity = \"client-secret\"", &[][..], "client_secret_file"),
        ("identity = \"workload\"", &[], "federated_token_file"),
        ("identity = \"client-certificate\"", &[], "client_certificate_file"),
        ("client_secret_file = \"/nonexistent\"", &[("AZURE_CLIENT_ID", "c")], "cannot read"),
        ("", &[("AZURE_CLIENT_ID", "c"), ("AZURE_CLIENT_SECRET", "s3cret")], "AZURE_TENANT_ID"),
        (
            "tenant_id = \"a/../b\"",
            &[("AZURE_CLIENT_ID", "c"), ("AZURE_CLIENT_SECRET", "s3cret")],
            "tenant",
        ),
        (
            "tenant_id = \"t\"",
            &[
                ("AZURE_CLIENT_ID", "c"),
                ("AZURE_CLIENT_SECRET", "s3cret"),
                ("AZURE_AUTHORITY_HOST", "http://login.invalid"),
            ],
            "plain http",
        ),
        ("", &[("IDENTITY_ENDPOINT", "x"), ("IDENTITY_HEADER", "s3cret")], "IDENTITY_ENDPOINT"),
    ] {
        let fixture = Fixture::with(settings, variables, Box::new(|_| None));
        let error = fixture.unwrap().err().expect(words);
        let text = error.to_string();
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error:?}");
        assert!(text.contains(words) && !text.contains("s3cret"), "{words}: {text}");
        assert_eq!(fixture.asked().len(), 1, "{words}: nobody else is tried");
    }
}

/// What a token endpoint refuses is an authentication that failed, with what to do; what it cannot
/// answer is an outage. Neither takes the key away.
#[test]
fn token_refusals() {
    let application = [
        ("AZURE_TENANT_ID", "t"),
        ("AZURE_CLIENT_ID", "c"),
        ("AZURE_CLIENT_SECRET", "s3cret"),
        ("AZURE_AUTHORITY_HOST", "AUTHORITY"),
    ];
    let refused = |variables: &[(&str, &str)], status, error: &str, description: &str| {
        let body = format!("{{\"error\":\"{error}\",\"error_description\":\"{description}\"}}");
        let answer = move |request: &Received| {
            request.target.contains("/token").then(|| json(status, &body))
        };
        let fixture = Fixture::with("", variables, Box::new(answer));
        let error = fixture.unwrap().err().expect("refused");
        assert!(!error.is_definitive() && !error.to_string().contains("s3cret"));
        error
    };
    for (status, code, description, words) in [
        (401, "invalid_client", "AADSTS7000215: Invalid secret s3cret", "secret's value"),
        (401, "invalid_client", "AADSTS7000222: expired", "has expired"),
        (400, "unauthorized_client", "AADSTS700016: not found", "was deleted"),
        (400, "invalid_request", "AADSTS90002: s3cret", "tenant"),
        (401, "invalid_client", "AADSTS700024: time", "clock"),
        (401, "invalid_client", "", "client id"),
    ] {
        let error = refused(&application, status, code, description);
        assert!(
            matches!(error.kind(), KekErrorKind::AuthenticationFailed { reason }
            if reason.contains(words)),
            "{error}"
        );
    }
    let error = refused(&[], 400, "invalid_request", "Identity not found");
    assert!(error.to_string().contains("assign a managed identity"), "{error}");
    let error = refused(&application, 503, "temporarily_unavailable", "");
    assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{error}");
    let error = refused(&application, 429, "throttled", "");
    assert!(matches!(error.kind(), KekErrorKind::Throttled { .. }), "{error}");
    let nobody = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")];
    let fixture = Fixture::with("", &nobody, Box::new(|_| None));
    let error = fixture.unwrap().err().expect("there is no identity").to_string();
    assert!(error.contains("this host has no identity"), "{error}");
}

/// The assertion that a certificate signs: who, for whom, until when; and the mark is right.
#[test]
fn certificates() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("an RSA key");
    let parameters = rcgen::CertificateParams::new(vec!["x".to_owned()]).expect("parameters");
    let certificate = parameters.self_signed(&key).expect("a certificate");
    let pem = format!("{}{}", key.serialize_pem(), certificate.pem());
    let assertion =
        certificate::assertion(pem.as_bytes(), "c", "https://login.test/t").expect("ok");
    let parts: Vec<_> = assertion.split('.').collect();
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).expect("base64url");
    let object =
        |part: &str| -> serde_json::Value { serde_json::from_slice(&decode(part)).expect("JSON") };
    let (header, claims) = (object(parts[0]), object(parts[1]));
    let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
    assert_eq!(header["alg"], "PS256");
    assert_eq!(header["x5t#S256"], URL_SAFE_NO_PAD.encode(thumbprint.as_ref()));
    assert_eq!((&claims["iss"], &claims["sub"]), (&"c".into(), &"c".into()));
    assert_eq!(claims["aud"], "https://login.test/t");
    assert!(claims["exp"].as_u64() > claims["iat"].as_u64());
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::RSA_PSS_2048_8192_SHA256,
        key.subject_public_key_info(),
    );
    let signed = format!("{}.{}", parts[0], parts[1]);
    public.verify(signed.as_bytes(), &decode(parts[2])).expect("it is signed");
    let other = rcgen::KeyPair::generate().expect("an elliptic key").serialize_pem();
    for (pem, words) in [
        (key.serialize_pem(), "no certificate"),
        (certificate.pem(), "no private key"),
        (format!("{other}{}", certificate.pem()), "not an RSA key"),
    ] {
        let error = certificate::assertion(pem.as_bytes(), "c", "a").expect_err(words);
        assert!(error.contains(words), "{error}");
    }
}
