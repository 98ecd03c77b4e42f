//! Which texts allow which URIs, and what the file may say.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::key::http::Proxy;
use crate::key::{ProviderOptions, provider_from_uri};

/// What is allowed, and everything that only looks like it.
#[test]
fn patterns() {
    let vault = "azure:https://good.vault.azure.net/";
    for (pattern, uri, expected) in [
        (vault, "azure:https://good.vault.azure.net/keys/k", true),
        (vault, "azure:https://good.vault.azure.net", true),
        (vault, "azure:https://GOOD.vault.azure.net:443/keys/k", true),
        ("azure:https://Good.Vault.Azure.Net:443/", "azure:https://good.vault.azure.net/k", true),
        (vault, "azure:https://good.vault.azure.net@evil/", false),
        (vault, "azure:https://good.vault.azure.net:8443/keys/k", false),
        (vault, "azure:https://good.vault.azure.net./keys/k", false),
        (vault, "azure:https://good.vault.azure.net.evil/keys/k", false),
        (vault, "azure:https://evil/https://good.vault.azure.net/keys/k", false),
        (vault, "azure:https://good%2evault.azure.net/keys/k", false),
        (vault, "azure:https://good.vault.azure.net/keys/k?x=1", false),
        (vault, "azure:http://good.vault.azure.net/keys/k", false),
        (vault, "transit:https://good.vault.azure.net/keys/k", false),
        (vault, "AZURE:https://good.vault.azure.net/keys/k", false),
        ("azure:https://a.example/keys/k", "azure:https://a.example/keys/k", true),
        ("azure:https://a.example/keys/k", "azure:https://a.example/keys/k2", false),
        ("azure:https://a.example/keys/k", "azure:https://a.example/keys/k/v1", false),
        ("azure:https://a.example/keys/k/", "azure:https://a.example/keys/k/v1", true),
        ("azure:https://a.example/keys/k/", "azure:https://a.example/keys/k", true),
        ("azure:https://a.example/keys/k/", "azure:https://a.example/keys/kk/v1", false),
        ("azure:https://a.example/keys/k/", "azure:https://a.example/keys/k/../other", false),
        ("azure:https://a.example/keys/k/", "azure:https://a.example/keys/k/%2e%2e/other", false),
        ("azure:", "azure:https://anything.example/keys/k", true),
        ("azure:", "azure:https://good@evil/keys/k", false),
        ("pkcs11:", "pkcs11:token=t;object=o", true),
        ("pkcs11:", "pkcs11:token=t;object=o?module-path=/tmp/evil.so", false),
        ("aws:arn:aws:kms:eu:1:key/k", "aws:arn:aws:kms:eu:1:key/k", true),
        ("aws:arn:aws:kms:eu:1:key/k", "aws:arn:aws:kms:eu:1:key/kk", false),
        ("aws:arn:aws:kms:eu:1:", "aws:arn:aws:kms:eu:1:key/k", true),
        ("aws:arn:aws:kms:eu:1:", "aws:arn:aws:kms:eu:11:key/k", false),
        ("exec:/usr/lib/atrest/", "exec:/usr/lib/atrest/plugin", true),
        ("exec:/usr/lib/atrest/", "exec:/usr/lib/atrest/../../../tmp/evil", false),
        ("exec:/usr/lib/atrest/", "exec:/usr/lib/atrest//tmp/evil", false),
        ("exec:/usr/lib/atrest/", "exec:/usr/lib/atrest/", false),
        ("exec:", "exec:/tmp/evil", false),
        ("exec:/usr/lib/atrest/plugin", "exec:/usr/lib/atrest/plugin", true),
        ("local:", "local:web", true),
        ("local:web", "local:web2", false),
        ("", "local:web", false),
        (":", ":x", false),
        ("local", "local", false),
    ] {
        assert_eq!(permits(pattern, uri), expected, "{pattern} {uri}");
    }
    let authorization = Authorization::default().allow(vault);
    assert!(authorization.permits("local:x") && authorization.permits("passphrase:"));
    assert!(!authorization.permits("azure:https://other/keys/k"));
}

fn write(directory: &Path, text: &str, mode: u32) -> PathBuf {
    let path = directory.join("providers.toml");
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
    path
}

fn settings(text: &str, uri: &str) -> Result<EndpointSettings, String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = write(directory.path(), text, 0o644);
    let providers = Providers::from_file(path);
    assert!(!matches!(providers.permits(uri), Ok(false)), "{uri} is not allowed by {text}");
    providers.settings(uri).map_err(|error| error.to_string())
}

/// Every key, for each kind.
const EVERY_KEY: &str = r#"
allow = ["exec:/usr/lib/atrest/plugin"]
[[provider]]
uri = "azure:https://vault.example:8443/"
ca_file = "/etc/ca.pem"
proxy = "http://user:s3cret@proxy:3128"
connect_timeout_s = 1
request_timeout_s = 2
total_timeout_s = 3
plain_http = true
identity = "managed"
tenant_id = "t"
client_id = "c"
client_secret_file = "/s"
client_certificate_file = "/p"
federated_token_file = "/f"
authority_host = "https://login.example"
resource = "https://vault.example"
[[provider]]
uri = "azure:https://vault.example:8443/keys/"
proxy = "none"
[[provider]]
uri = "transit:https://bao.example/"
auth = "approle"
auth_mount = "m"
role = "r"
role_id = "i"
secret_id_file = "/s"
token_file = "/t"
namespace = "n"
[[provider]]
uri = "aws:arn:aws:kms:"
endpoint = "https://kms.example"
profile = "p"
credentials_file = "/c"
[[provider]]
uri = "pkcs11:"
module = "/m.so"
pin_file = "/p"
[[provider]]
uri = "tpm2:"
tcti = "device:/dev/tpmrm0"
[[provider]]
uri = "exec:/usr/lib/atrest/slow"
timeout_s = 9
"#;

/// Each key arrives where its provider looks for it; the longest entry that allows counts.
#[test]
fn each_key_is_read() {
    let text = EVERY_KEY;
    let url = |text| Url::parse(text).expect("a URL");
    let azure = settings(text, "azure:https://vault.example:8443/other").expect("well formed");
    let expected = crate::key::http::Settings {
        ca_file: Some("/etc/ca.pem".into()),
        proxy: Proxy::Url("http://user:s3cret@proxy:3128".into()),
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(2),
        total_timeout: Duration::from_secs(3),
        plain_http: true,
    };
    assert_eq!(azure.http, expected);
    let expected = AzureSettings {
        identity: Some(AzureIdentity::Managed),
        tenant_id: Some("t".into()),
        client_id: Some("c".into()),
        client_secret_file: Some("/s".into()),
        client_certificate_file: Some("/p".into()),
        federated_token_file: Some("/f".into()),
        authority_host: Some(url("https://login.example")),
        resource: Some(url("https://vault.example")),
    };
    assert_eq!(azure.azure, expected);
    assert!(!format!("{azure:?}").contains("s3cret"));
    let longest = settings(text, "azure:https://vault.example:8443/keys/k").expect("well formed");
    assert_eq!((longest.http.proxy, longest.azure), (Proxy::None, AzureSettings::default()));
}

/// The same for the kinds that have less to say.
#[test]
fn keys_of_other_kinds() {
    let text = EVERY_KEY;
    let url = |text| Url::parse(text).expect("a URL");
    let transit = settings(text, "transit:https://bao.example/v1/transit/keys/k").expect("ok");
    let expected = TransitSettings {
        auth: Some(TransitAuth::Approle),
        auth_mount: Some("m".into()),
        role: Some("r".into()),
        role_id: Some("i".into()),
        secret_id_file: Some("/s".into()),
        token_file: Some("/t".into()),
        namespace: Some("n".into()),
    };
    assert_eq!(transit.transit, expected);
    let aws = settings(text, "aws:arn:aws:kms:eu:1:key/k").expect("well formed").aws;
    assert_eq!(aws.endpoint, Some(url("https://kms.example")));
    assert_eq!((aws.profile, aws.credentials_file), (Some("p".into()), Some("/c".into())));
    let pkcs11 = settings(text, "pkcs11:token=t;object=o").expect("well formed").pkcs11;
    assert_eq!((pkcs11.module, pkcs11.pin_file), (Some("/m.so".into()), Some("/p".into())));
    let tpm2 = settings(text, "tpm2:k").expect("well formed").tpm2;
    assert_eq!(tpm2.tcti.as_deref(), Some("device:/dev/tpmrm0"));
    let slow = settings(text, "exec:/usr/lib/atrest/slow").expect("well formed");
    assert_eq!(slow.exec.timeout, Some(Duration::from_secs(9)));
    let plugin = settings(text, "exec:/usr/lib/atrest/plugin").expect("well formed");
    assert_eq!(plugin, EndpointSettings::default());
}

/// What is wrong, and where; passwords in the file are not repeated.
#[test]
fn mistakes() {
    let entry = |more: &str| format!("[[provider]]\nuri = \"azure:https://v.example/\"\n{more}");
    for (text, place, words) in [
        ("allow = [".to_owned(), "line 1, column 10", ""),
        ("alow = []".to_owned(), "line 1, column 1", "alow"),
        ("allow = \"azure:\"".to_owned(), "line 1, column 9", ""),
        ("\nallow = [\"azure\"]".to_owned(), "line 2, column 10", "KIND:REST"),
        ("allow = [\"Azure:x\"]".to_owned(), "line 1", "kind of a provider"),
        ("allow = [\"exec:\"]".to_owned(), "line 1", "every program"),
        ("allow = [\"azure:https://a@b/\"]".to_owned(), "line 1", "user"),
        ("[[provider]]\nca_file = \"/x\"".to_owned(), "line 1", "no uri"),
        (entry("ca_file = \"x\""), "line 1", "absolute"),
        (entry("secret = \"s3cret\""), "line 3, column 1", "secret"),
        (entry("client_id = 5"), "line 3, column 13", ""),
        (entry("proxy = \"s3 cret\""), "line 1", "proxy"),
        (entry("module = \"/x\""), "line 1", "module is for pkcs11: only"),
        (entry("token_file = \"/x\""), "line 1", "for transit: only"),
        (entry("total_timeout_s = 0"), "line 1", "1 to 600"),
        (entry("identity = \"king\""), "line 3, column 12", "king"),
        (entry("authority_host = \"login.example\""), "line 1", "https"),
        (entry("client_id = \"a\"\nclient_id = \"b\""), "line 4", "duplicate"),
        (entry(&entry("")), "line 4, column 7", "twice"),
    ] {
        let error = settings(&text, "azure:https://v.example/keys/k").expect_err(&text);
        assert!(error.contains(place) && error.contains(words), "{text}\n{error}");
        assert!(!error.contains("s3cret") && !error.contains("s3 cret"), "{error}");
    }
}

/// Who can write the file could allow themselves everything.
#[test]
fn writers() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "allow = [\"azure:https://v.example/\"]";
    let uri = "azure:https://v.example/keys/k";
    let permits = |path: &Path| Providers::from_file(path.into()).permits(uri);
    for (mode, allowed) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
        let path = write(directory.path(), text, mode);
        match permits(&path) {
            Ok(result) => assert!(result && allowed, "{mode:o}"),
            Err(error) => assert!(!allowed && error.to_string().contains("chmod go-w"), "{error}"),
        }
    }
    let path = write(directory.path(), text, 0o644);
    let set = |mode| {
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode))
            .expect("its mode");
    };
    set(0o777);
    assert!(permits(&path).expect_err("a directory of others").to_string().contains("chmod"));
    set(0o700);
    assert!(permits(&path).expect("it is right"));
    let missing = permits(&directory.path().join("none")).expect_err("it must be there");
    assert!(missing.to_string().contains("cannot open"), "{missing}");
    let optional = Providers::new(directory.path().join("none"), true);
    assert!(!optional.permits(uri).expect("it need not be there"));
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).expect("root may");
        assert!(permits(&path).expect_err("others' file").to_string().contains("12345"));
    }
}

/// The file allows what the command line does not, and a broken file never allows; what needs no
/// file works without.
#[test]
fn providers_are_made_as_the_file_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = ProviderOptions::default();
    options.registry.register("vault", options_of_a_kind());
    let made = |options: &ProviderOptions, uri: &str| {
        provider_from_uri(uri, options).map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = made(&options, "vault:x").expect_err("nobody allows it");
    assert!(refused.contains("--allow-kek") && refused.contains("providers.toml"), "{refused}");
    let path = write(directory.path(), "allow = [\"vault:x\"]", 0o644);
    options.providers = Providers::from_file(path);
    assert_eq!(made(&options, "vault:x"), Ok(()));
    assert!(made(&options, "vault:y").is_err());
    let path = write(directory.path(), "allow = [\"vault:x\"", 0o644);
    options.providers = Providers::from_file(path);
    assert!(made(&options, "vault:x").expect_err("broken").contains("line 1"));
    assert_eq!(made(&options, "local:x"), Ok(()));
}

fn options_of_a_kind() -> crate::key::Constructor {
    Arc::new(|_: &str, options: &ProviderOptions| crate::key::local::from_uri("local:x", options))
}
