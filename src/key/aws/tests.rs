//! What AWS can answer, and where credentials come from, from a server that answers it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::crypto::random;
use crate::format::VolumeId;
use crate::key::authorize::AwsSettings;
use crate::key::test_server::{Received, Server, json, private_file, reply};

const BINDING: Binding = Binding { volume_id: VolumeId([7; 16]) };
const ARN: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const KEYS: &[(&str, &str)] =
    &[("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "SECRETkeyOfNobody/+")];

fn kek() -> KekReference {
    KekReference {
        key_id: ARN.into(),
        key_version: "m1".into(),
        algorithm: Algorithm::A256Gcm,
        parameters: None,
    }
}

fn environment(pairs: &[(&str, &str)]) -> Box<Environment> {
    let pairs: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Box::new(move |name| {
        let found = pairs.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| Zeroizing::new(value.clone()))
    })
}

/// The provider of `ARN` at `server`, which is also the security token service.
fn with(server: &Server, aws: AwsSettings, variables: &[(&str, &str)]) -> AwsProvider {
    let url = Url::parse(&format!("http://{}", server.authority)).expect("a URL");
    let aws = AwsSettings { endpoint: Some(url.clone()), ..aws };
    let mut settings = EndpointSettings { aws, ..EndpointSettings::default() };
    settings.http.plain_http = true;
    provider(&format!("aws:{ARN}"), &settings, environment(variables), Some(url))
        .map_err(|error| error.to_string())
        .expect("all is set up")
}

fn with_keys(server: &Server) -> AwsProvider {
    with(server, AwsSettings::default(), KEYS)
}

fn unwrap_error(provider: &AwsProvider) -> KekError {
    provider.unwrap(&BINDING, &kek(), &[1, 2, 3]).err().expect("the server refuses")
}

fn amz(status: u16, body: &str) -> Vec<u8> {
    reply(status, &[("Content-Type", "application/x-amz-json-1.1")], body)
}

fn described(more: &str) -> String {
    format!(
        "{{\"KeyMetadata\":{{\"Arn\":\"{ARN}\",\"KeyState\":\"Enabled\",\
         \"KeySpec\":\"SYMMETRIC_DEFAULT\",\"KeyUsage\":\"ENCRYPT_DECRYPT\"{more}}}}}"
    )
}

/// What is asked, with what, and that the answers are taken as they are.
#[test]
fn requests() {
    let secret = Secret::from_fn(32, |bytes| bytes.fill(0xa5));
    let base64 = STANDARD.encode(secret.expose());
    let plaintext = base64.clone();
    let server = Server::start(move |request| match request.header("x-amz-target") {
        "TrentService.DescribeKey" => amz(200, &described(",\"CurrentKeyMaterialId\":\"m1\"")),
        "TrentService.Encrypt" => {
            amz(200, &format!("{{\"CiphertextBlob\":\"AQID\",\"KeyId\":\"{ARN}\"}}"))
        }
        "TrentService.Decrypt" => {
            amz(200, &format!("{{\"Plaintext\":\"{plaintext}\",\"KeyId\":\"{ARN}\"}}"))
        }
        _ => amz(400, "{\"__type\":\"UnknownOperationException\"}"),
    });
    let provider = with(
        &server,
        AwsSettings::default(),
        &[KEYS, &[("AWS_SESSION_TOKEN", "IQoJ/session+token==")]].concat(),
    );
    let wrapped = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
    assert_eq!((wrapped.kek, wrapped.blobs), (kek(), vec![vec![1, 2, 3]]));
    assert!(provider.unwrap(&BINDING, &kek(), &[1, 2, 3]).expect("it unwraps").is_same(&secret));
    assert_eq!(provider.latest_version().expect("it tells").as_deref(), Some("m1"));
    let received = server.received();
    let context = "{\"atrest\":\"atrest volume key of 07070707070707070707070707070707\"}";
    let crypt = |member: &str| {
        format!(
            "{{\"KeyId\":\"{ARN}\",{member},\"EncryptionContext\":{context},\
             \"EncryptionAlgorithm\":\"SYMMETRIC_DEFAULT\"}}"
        )
    };
    assert_eq!(received[0].body, format!("{{\"KeyId\":\"{ARN}\"}}"));
    assert_eq!(received[1].body, crypt(&format!("\"Plaintext\":\"{base64}\"")));
    assert_eq!(received[2].body, crypt("\"CiphertextBlob\":\"AQID\""));
    for request in received {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/"));
        assert_eq!(request.header("x-amz-security-token"), "IQoJ/session+token==");
        assert_eq!(request.header("content-type"), CONTENT_TYPE);
        // What the server sees is what was signed.
        assert_eq!(request.header("host"), server.authority);
        let credentials =
            Credentials::new(KEYS[0].1, KEYS[1].1, Some("IQoJ/session+token=="), None);
        let target = Target {
            host: request.header("host"),
            region: "eu-west-1",
            service: "kms",
            operation: request.header("x-amz-target"),
            content_type: request.header("content-type"),
            date: request.header("x-amz-date"),
        };
        let credentials = credentials.expect("they are well formed");
        let expected = sign::authorization(&target, &credentials, request.body.as_bytes());
        assert_eq!(request.header("authorization"), expected);
    }
}

/// Each exception of KMS and of its front, and what it means.
#[test]
fn refusals() {
    for (name, message, expected) in [
        ("DisabledException", "it is disabled", "the key version is disabled"),
        ("KMSInvalidStateException", "it is pending deletion.", "deleted; it can be restored"),
        ("KMSInvalidStateException", "it is pending import.", "deleted; it can be restored"),
        ("KMSInvalidStateException", "it is creating.", "no answer: KMSInvalidState"),
        ("com.amazonaws.kms#NotFoundException", "no such key", "the key does not exist"),
        ("NotFoundException:http://internal/", "no such key", "the key does not exist"),
        ("AccessDeniedException", "User x is not authorized", "allow kms:Decrypt on arn:aws:kms"),
        ("ThrottlingException", "Rate exceeded", "too many requests"),
        ("InvalidCiphertextException", "", "did not wrap the volume key"),
        ("IncorrectKeyException", "", "did not wrap the volume key"),
        ("ExpiredTokenException", "expired", "authentication failed: ExpiredToken"),
        ("UnrecognizedClientException", "invalid token", "authentication failed: Unrecognized"),
        (
            "InvalidSignatureException",
            "Signature expired: x is now earlier",
            "set this host's clock",
        ),
        ("InvalidSignatureException", "does not match", "authentication failed: InvalidSignature"),
        ("KMSInternalException", "try again", "no answer: KMSInternal"),
        ("ValidationException", "1 error", "the request was refused: Validation"),
        ("InvalidKeyUsageException", "1 error", "the request was refused: InvalidKeyUsage"),
    ] {
        let body = format!("{{\"__type\":\"{name}\",\"message\":\"{message}\"}}");
        let server = Server::start(move |_| amz(400, &body));
        let error = unwrap_error(&with_keys(&server));
        assert!(error.kind().to_string().contains(expected), "{name} {message}: {error}");
        assert_eq!(error.key(), ARN);
        assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
    }
    // Not AWS's words: nothing is decided.
    for (status, body) in [
        (403, "<html>AccessDeniedException</html>"),
        (404, "{\"message\":\"NotFoundException\"}"),
        (400, "{\"error\":\"DisabledException\"}"),
        (502, "{}"),
    ] {
        let server = Server::start(move |_| json(status, body));
        let error = unwrap_error(&with_keys(&server));
        assert!(error.to_string().contains("not from AWS"), "{status} {body}: {error}");
        assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{error}");
    }
}

/// What is throttled is asked again, a few times; with credentials that have ended, once more with
/// new ones.
#[test]
fn repeats() {
    let busy = "{\"__type\":\"ThrottlingException\",\"message\":\"Rate exceeded\"}";
    let good = format!("{{\"Plaintext\":\"AQID\",\"KeyId\":\"{ARN}\"}}");
    let count = AtomicUsize::new(0);
    let reply = good.clone();
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => amz(400, busy),
        _ => amz(200, &reply),
    });
    let start = Instant::now();
    with_keys(&server).unwrap(&BINDING, &kek(), &[1]).expect("the third is answered");
    assert!(start.elapsed() >= BACKOFF * 3, "it waited {:?}", start.elapsed());

    let server = Server::start(move |_| amz(400, busy));
    unwrap_error(&with_keys(&server));
    assert_eq!(server.received().len(), ATTEMPTS_MAX as usize);

    let expired = "{\"__type\":\"ExpiredTokenException\",\"message\":\"expired\"}";
    let path = private_file("[default]\naws_access_key_id = OLD\naws_secret_access_key = x\n");
    let renewed = path.clone();
    let server = Server::start(move |request| {
        match request.header("authorization").contains("Credential=OLD/") {
            true => {
                let text = "[default]\naws_access_key_id = NEW\naws_secret_access_key = x\n";
                std::fs::write(&renewed, text).expect("writable");
                amz(400, expired)
            }
            false => amz(200, &good),
        }
    });
    let settings = AwsSettings { credentials_file: Some(path), ..AwsSettings::default() };
    with(&server, settings, &[]).unwrap(&BINDING, &kek(), &[1]).expect("the new key is good");
    assert_eq!(server.received().len(), 2);
}

/// A slot may name a key of the URI only: the key itself, or for an alias one beside it.
#[test]
fn keys_of_a_uri() {
    let alias = "arn:aws:kms:eu-west-1:123456789012:alias/volumes";
    let parse = |text: &str| Arn::parse(text).expect(text);
    for (uri, key, expected) in [
        (ARN, ARN, true),
        (alias, ARN, true),
        (ARN, alias, false),
        (alias, alias, false),
        (ARN, "arn:aws:kms:eu-west-1:123456789012:key/other", false),
        (alias, "arn:aws:kms:eu-west-2:123456789012:key/other", false),
        (alias, "arn:aws:kms:eu-west-1:123456789013:key/other", false),
        (alias, "arn:aws-cn:kms:eu-west-1:123456789012:key/other", false),
    ] {
        assert_eq!(parse(uri).covers(&parse(key)), expected, "{uri} {key}");
    }
    let server = Server::start(|_| amz(500, "{}"));
    let other = KekReference { key_id: format!("{ARN}0"), ..kek() };
    let error = with_keys(&server).unwrap(&BINDING, &other, &[1]).err().expect("another key");
    assert!(matches!(error.kind(), KekErrorKind::BadRequest { .. }), "{error}");
    assert!(server.received().is_empty());
    for text in [
        "",
        "arn:aws:kms:eu-west-1:123456789012",
        "arn:aws:kms:eu-west-1:12345678901:key/a",
        "arn:aws:kms:eu-west-1:123456789012:key/",
        "arn:aws:kms:eu-west-1:123456789012:key/a/b",
        "arn:aws:kms:eu-west-1:123456789012:key/a:b",
        "arn:aws:kms:eu-west-1.evil.example:123456789012:key/a",
        "arn:aws:kms:eu/west:123456789012:key/a",
        "arn:aws:kms::123456789012:key/a",
        "arn:aws:s3:eu-west-1:123456789012:key/a",
        "arn:aws:kms:eu-west-1:123456789012:alias/a b",
        "arn:aws:kms:eu-west-1:123456789012:grant/a",
        "ARN:aws:kms:eu-west-1:123456789012:key/a",
    ] {
        assert!(Arn::parse(text).is_none(), "{text}");
    }
}

/// Success that is none is an outage, and is not shown.
#[test]
fn malformed_success() {
    let bodies = [
        String::new(),
        "{}".to_owned(),
        format!("{{\"KeyId\":\"{ARN}\"}}"),
        format!("{{\"KeyId\":\"{ARN}\",\"Plaintext\":\"\",\"CiphertextBlob\":\"\"}}"),
        format!("{{\"KeyId\":\"{ARN}\",\"Plaintext\":\"SECRET!\",\"CiphertextBlob\":\"SECRET!\"}}"),
        format!("{{\"KeyId\":\"{ARN}0\",\"Plaintext\":\"SECR\",\"CiphertextBlob\":\"SECR\"}}"),
    ];
    for body in bodies {
        let text = body.clone();
        let server = Server::start(move |request| match request.header("x-amz-target") {
            "TrentService.DescribeKey" => amz(200, &described("")),
            _ => amz(200, &text),
        });
        let provider = with_keys(&server);
        let secret = random::secret(32);
        let errors = [
            unwrap_error(&provider),
            provider.wrap(&BINDING, &[&secret]).expect_err("nothing is encrypted"),
        ];
        for error in errors {
            assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{body}: {error}");
            assert!(!format!("{error} {error:?}").contains("SECR"), "{error:?}");
        }
    }
    for more in ["", ",\"KeyManager\":\"CUSTOMER\"", ",\"CurrentKeyMaterialId\":\"not one\""] {
        let server = Server::start(move |_| amz(200, &described(more)));
        let version = with_keys(&server).latest_version();
        let id = "1234abcd-12ab-34cd-56ef-1234567890ab";
        assert_eq!(version.expect("it is described").as_deref(), Some(id), "{more}");
    }
    let rsa = described("").replace("SYMMETRIC_DEFAULT", "RSA_2048");
    let server = Server::start(move |_| amz(200, &rsa));
    let error = with_keys(&server).latest_version().expect_err("not symmetric");
    assert!(error.to_string().contains("the key is RSA_2048"), "{error}");
    let another = described("").replace(ARN, &format!("{ARN}0"));
    let server = Server::start(move |_| amz(200, &another));
    let error = with_keys(&server).latest_version().expect_err("another key");
    assert!(error.to_string().contains("another key"), "{error}");
}

/// Which source is taken, of several that are set up.
#[test]
fn order_of_sources() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let home_text = home.path().to_str().expect("ASCII");
    let web = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "arn:role")];
    let container = [("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/x")];
    let find = |settings: &AwsSettings, variables: &[&[(&str, &str)]]| {
        let all = [&[("HOME", home_text)][..], &variables.concat()].concat();
        let url = Url::parse("https://sts.example").expect("a URL");
        match credentials::find(settings, &*environment(&all), url) {
            Ok(credentials::Source::Environment) => "environment".to_owned(),
            Ok(credentials::Source::Profile { file, profile }) => {
                format!("{} {profile}", file.display())
            }
            Ok(credentials::Source::WebIdentity { role, .. }) => role,
            Ok(credentials::Source::Container { url, .. }) => url.to_string(),
            Ok(credentials::Source::Instance { base }) => base.to_string(),
            Err(problem) => problem,
        }
    };
    let none = AwsSettings::default();
    assert_eq!(find(&none, &[]), "http://169.254.169.254");
    assert_eq!(find(&none, &[&container]), "http://169.254.170.2/v2/credentials/x");
    assert_eq!(find(&none, &[&container, &web]), "arn:role");
    let disabled = [("AWS_EC2_METADATA_DISABLED", "True")];
    assert!(find(&none, &[&disabled]).contains("no credentials are set up"));
    let full = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials")];
    assert_eq!(find(&none, &[&full]), "http://169.254.170.23/v1/credentials");
    assert!(find(&none, &[&web[..1]]).contains("AWS_ROLE_ARN is not"));
    let default = format!("{home_text}/.aws/credentials");
    std::fs::create_dir(home.path().join(".aws")).expect("writable");
    std::fs::write(&default, "").expect("writable");
    assert_eq!(find(&none, &[&container, &web]), format!("{default} default"));
    let named = [("AWS_PROFILE", "p"), ("AWS_SHARED_CREDENTIALS_FILE", "/f")];
    assert_eq!(find(&none, &[&container, &web, &named]), "/f p");
    assert_eq!(find(&none, &[&container, &web, &named, KEYS]), "environment");
    let settings = AwsSettings { profile: Some("q".into()), ..AwsSettings::default() };
    assert_eq!(find(&settings, &[&container, &web, &named, KEYS]), "/f q");
    let settings = AwsSettings { credentials_file: Some("/g".into()), ..AwsSettings::default() };
    assert_eq!(find(&settings, &[KEYS]), "/g default");
}

/// A profile's key is taken, and no other's; what is not a key of a profile says so.
#[test]
fn profiles() {
    let text = "# a comment\n[default]\naws_access_key_id=D\naws_secret_access_key=d\n\n[ web ]\n\
                aws_access_key_id = W\naws_secret_access_key = w/+=\naws_session_token = t\n\
                region = x\n[role]\nrole_arn = arn\n[half]\naws_access_key_id = H\n";
    let path = private_file(text);
    let get = |profile: &str| credentials_of_profile(&path, profile);
    let web = get("web").expect("it is there");
    assert_eq!((web.access_key_id(), web.session_token()), ("W", Some("t")));
    assert_eq!(web.signing_secret().expose(), b"AWS4w/+=");
    assert_eq!(get("default").expect("it is there").session_token(), None);
    for (profile, words) in [
        ("role", "roles, single sign-on"),
        ("half", "has no aws_access_key_id"),
        ("no", "not there"),
    ] {
        let kind = get(profile).err().expect(profile);
        assert!(matches!(kind, KekErrorKind::Configuration { .. }));
        assert!(kind.to_string().contains(words), "{kind}");
    }
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("it is ours");
    assert!(get("web").err().is_some_and(|kind| kind.to_string().contains("chmod o=")));
}

fn credentials_of_profile(
    path: &std::path::Path,
    profile: &str,
) -> Result<Credentials, KekErrorKind> {
    let settings = AwsSettings {
        credentials_file: Some(path.into()),
        profile: Some(profile.into()),
        ..AwsSettings::default()
    };
    let url = Url::parse("https://sts.example").expect("a URL");
    let http = crate::key::http::Settings::default();
    let provider = Provider::new(&settings, &http, environment(&[]), url).expect("it is set up");
    provider.get(Deadline::after(Duration::from_secs(5)))
}

fn soon(minutes: i64) -> String {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn metadata(id: &str, minutes: i64) -> String {
    format!(
        "{{\"Code\":\"Success\",\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"s\",\
         \"Token\":\"SECRETtoken\",\"Expiration\":\"{}\"}}",
        soon(minutes)
    )
}

/// Answers KMS, and with `answer` everything else.
fn service(answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static) -> Server {
    let good = format!("{{\"Plaintext\":\"AQID\",\"KeyId\":\"{ARN}\"}}");
    Server::start(move |request| match request.header("x-amz-target") {
        "" => answer(request),
        _ => amz(200, &good),
    })
}

fn unwraps(provider: &AwsProvider) {
    let unwrapped = provider.unwrap(&BINDING, &kek(), &[1]);
    unwrapped.map_err(|error| error.to_string()).expect("it unwraps");
}

fn kms_keys(server: &Server) -> Vec<String> {
    let to_kms = server.received().into_iter().filter(|r| !r.header("x-amz-target").is_empty());
    to_kms
        .map(|r| {
            let header = r.header("authorization");
            let id = header.split("Credential=").nth(1).and_then(|rest| rest.split('/').next());
            format!("{} {}", id.unwrap_or_default(), r.header("x-amz-security-token"))
        })
        .collect()
}

/// A container's credentials, with its token; asked again shortly before they end.
#[test]
fn container() {
    let count = AtomicUsize::new(0);
    let server = service(move |request| {
        assert_eq!(request.target, "/v1/credentials");
        assert_eq!(request.header("authorization"), "the pod's token");
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        // The first end within the margin.
        json(200, &metadata(&format!("C{number}"), if number == 1 { 1 } else { 60 }))
    });
    let uri = format!("http://{}/v1/credentials", server.authority);
    let token = private_file("the pod's token\n");
    let provider = with(
        &server,
        AwsSettings::default(),
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().expect("ASCII")),
        ],
    );
    (0..3).for_each(|_| unwraps(&provider));
    assert_eq!(kms_keys(&server), ["C1 SECRETtoken", "C2 SECRETtoken", "C2 SECRETtoken"]);
}

/// An instance's role, by the second version of the metadata service only.
#[test]
fn instance() {
    let server = service(|request| {
        let list = "/latest/meta-data/iam/security-credentials/";
        let has_token = request.header("x-aws-ec2-metadata-token") == "metadata==";
        match (request.method.as_str(), request.target.as_str()) {
            ("PUT", "/latest/api/token") => {
                assert_eq!(request.header("x-aws-ec2-metadata-token-ttl-seconds"), "300");
                reply(200, &[("Content-Type", "text/plain")], "metadata==")
            }
            ("GET", target) if has_token && target == list => reply(200, &[], "web-role\n"),
            ("GET", target) if has_token && target == format!("{list}web-role") => {
                reply(200, &[("Content-Type", "text/plain")], &metadata("I1", 60))
            }
            _ => reply(401, &[], ""),
        }
    });
    let base = format!("http://{}", server.authority);
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", base.as_str())];
    let provider = with(&server, AwsSettings::default(), &variables);
    (0..2).for_each(|_| unwraps(&provider));
    assert_eq!(kms_keys(&server), ["I1 SECRETtoken", "I1 SECRETtoken"]);
    assert_eq!(server.received().len(), 5);
    for (answers, words) in [
        (["", "", ""], "no EC2 instance's role"),
        (["t", "404", ""], "has no role"),
        (["t", "r/../x", ""], "named"),
        (["t", "r", "{}"], "something else than credentials"),
        (["t", "r", "{\"Code\":\"Failed\"}"], "gives no credentials: Failed"),
        (["t", "r", "500"], "status 500"),
    ] {
        let count = AtomicUsize::new(0);
        let server =
            Server::start(move |_| match answers[count.fetch_add(1, Ordering::Relaxed) % 3] {
                "" => Vec::new(),
                "404" => reply(404, &[], ""),
                "500" => reply(500, &[], ""),
                text => reply(200, &[], text),
            });
        let base = format!("http://{}", server.authority);
        let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", base.as_str())];
        let error = unwrap_error(&with(&server, AwsSettings::default(), &variables));
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(!error.is_definitive(), "{error}");
    }
}

/// A role for a token of the host's own, from the security token service.
#[test]
fn web_identity() {
    let reply_xml = |status: u16, body: &str| reply(status, &[("Content-Type", "text/xml")], body);
    let given = |id: &str| {
        format!(
            "<AssumeRoleWithWebIdentityResponse \
             xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials>\n \
             <SecretAccessKey>s</SecretAccessKey>\n \
             <SessionToken>SECRETtoken</SessionToken>\n <Expiration>{}</Expiration>\n \
             <AccessKeyId>{id}</AccessKeyId>\n</Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>",
            soon(60)
        )
    };
    let token = private_file("head.body.sig\n");
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().expect("ASCII")),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/web"),
    ];
    let body = given("W1");
    let server = service(move |request| {
        assert_eq!(
            request.body,
            "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&\
             RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fweb&RoleSessionName=atrest&\
             WebIdentityToken=head.body.sig"
        );
        assert_eq!(request.header("accept"), "text/xml");
        reply_xml(200, &body)
    });
    let provider = with(&server, AwsSettings::default(), &variables);
    (0..2).for_each(|_| unwraps(&provider));
    assert_eq!(kms_keys(&server), ["W1 SECRETtoken", "W1 SECRETtoken"]);
    assert_eq!(server.received().len(), 3);
    let error = "<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredTokenException</Code>\
                 <Message>Token expired</Message></Error></ErrorResponse>";
    for (status, body, words) in [
        (
            400,
            error.to_owned(),
            "authentication failed: the role arn:aws:iam::123456789012:role/web \
                                 is not given: ExpiredTokenException: Token expired",
        ),
        (400, "no".to_owned(), "no answer"),
        (500, String::new(), "no answer"),
        (200, "{}".to_owned(), "something else than credentials"),
        (200, given("W1") + &given("W2"), "something else than credentials"),
        (200, given("W<!-- -->1"), "something else than credentials"),
        (200, given("W&#49;"), "something else than credentials"),
        (200, given("W1").replace("Expiration", "Expired"), "something else than credentials"),
    ] {
        let server = Server::start(move |_| reply_xml(status, &body));
        let error = unwrap_error(&with(&server, AwsSettings::default(), &variables));
        assert!(error.to_string().contains(words), "{status} {words}: {error}");
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error:?}");
    }
}

/// Where services of a partition are, and what is said where that is not known.
#[test]
fn endpoints() {
    let make = |arn: &str| {
        provider(&format!("aws:{arn}"), &EndpointSettings::default(), environment(KEYS), None)
    };
    for (arn, host) in [
        (ARN.to_owned(), "kms.eu-west-1.amazonaws.com"),
        (
            ARN.replace("aws:kms:eu-west-1", "aws-cn:kms:cn-north-1"),
            "kms.cn-north-1.amazonaws.com.cn",
        ),
    ] {
        let provider = make(&arn).map_err(|error| error.to_string()).expect("a known partition");
        assert_eq!(provider.endpoint.to_string(), format!("https://{host}"));
    }
    let error = make(&ARN.replace("arn:aws:", "arn:aws-iso:")).err().expect("not known");
    assert!(error.to_string().contains("set `endpoint`"), "{error}");
    let settings = AwsSettings {
        endpoint: Some(Url::parse("https://h/path").expect("a URL")),
        ..AwsSettings::default()
    };
    let settings = EndpointSettings { aws: settings, ..EndpointSettings::default() };
    let made = provider(&format!("aws:{ARN}"), &settings, environment(KEYS), None);
    assert!(made.err().is_some_and(|error| error.to_string().contains("has a path")));
}
