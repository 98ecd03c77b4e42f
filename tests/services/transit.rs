//! `transit:` against OpenBao.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use atrest::crypto::random;
use atrest::key::{KekErrorKind, Wrapped};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::peers::{BINDING, OTHER, Peers, assert_error, assert_integrity, curl};

struct Bao(Peers);

impl Bao {
    fn start() -> Self {
        Self(Peers::start(&["openbao"]))
    }

    fn ask(&self, method: &str, path: &str, body: &Value, more: &[&str]) -> (u16, Value) {
        let url = format!("{}/v1/{path}", self.0.variable("OPENBAO_ADDR"));
        let token = format!("X-Vault-Token: {}", self.0.variable("OPENBAO_TOKEN"));
        let (ca, body) = (self.0.variable("OPENBAO_CACERT"), body.to_string());
        let request = ["--cacert", ca, "-X", method, "-H", &token, "-d", &body, &url];
        curl(&[&request, more].concat())
    }

    fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask("POST", path, &body, &[]);
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    fn uri(&self, rest: &str) -> String {
        format!("transit:{}/v1/{rest}", self.0.variable("OPENBAO_ADDR"))
    }

    /// Lines for a token, or what else logs in.
    fn lines(&self, more: &str) -> String {
        format!("ca_file = \"{}\"\n{more}", self.0.variable("OPENBAO_CACERT"))
    }

    fn token_lines(&self, token: &str) -> String {
        let path = self.0.new_file(token);
        self.lines(&format!("token_file = \"{}\"", path.display()))
    }

    /// A new token with these policies.
    fn token(&self, policies: &[&str]) -> String {
        let made = self.post("auth/token/create", json!({ "policies": policies, "ttl": "1h" }));
        made["auth"]["client_token"].as_str().expect("a token").to_owned()
    }

    fn policy(&self, name: &str, text: &str) {
        self.post(&format!("sys/policies/acl/{name}"), json!({ "policy": text }));
    }
}

/// Every row of the table of refusals, as the service gives them.
#[test]
fn refusals() {
    let bao = Bao::start();
    bao.post("transit/keys/volume", json!({}));
    let uri = bao.uri("transit/keys/volume");
    let provider = bao.0.provider(&uri, &bao.token_lines(&bao.token(&["atrest-mount"])));
    let secret = random::secret(32);
    let Wrapped { kek, blobs } = provider.wrap(&BINDING, &[&secret, &secret]).expect("it wraps");
    let unwrap = || provider.unwrap(&BINDING, &kek, &blobs[0]);
    assert!(unwrap().expect("it unwraps").is_same(&secret));
    assert_eq!((kek.key_id.as_str(), kek.key_version.as_str()), ("transit/keys/volume", "1"));

    assert_integrity(provider.unwrap(&OTHER, &kek, &blobs[0]));
    let mut changed = blobs[0].clone();
    let last = changed.len() - 3;
    changed[last] = if changed[last] == b'A' { b'B' } else { b'A' };
    assert_integrity(provider.unwrap(&BINDING, &kek, &changed));
    assert_integrity(provider.unwrap(&BINDING, &kek, b"vault:v1:QUJD"));

    // A new version; the old one goes on until the floor is raised above it.
    assert_error(provider.create_version(), "transit/keys/volume/rotate\" { capabilities", true);
    let root = bao.0.provider(&uri, &bao.token_lines("root"));
    assert_eq!(root.create_version().expect("root may"), "2");
    assert_eq!(provider.latest_version().expect("readable").as_deref(), Some("2"));
    assert!(unwrap().expect("version 1 is still allowed").is_same(&secret));
    let newer = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
    assert_eq!(newer.kek.key_version, "2");
    bao.post("transit/keys/volume/config", json!({ "min_decryption_version": 2 }));
    assert_error(unwrap(), "disabled", true);
    assert!(provider.unwrap(&BINDING, &newer.kek, &newer.blobs[0]).is_ok());
    bao.post("transit/keys/volume/config", json!({ "min_decryption_version": 1 }));
    assert!(unwrap().is_ok());

    // Deleted so that it can be brought back, then for good.
    let (status, _) = bao.ask("DELETE", "transit/keys/volume/soft-delete", &json!({}), &[]);
    assert!(status < 300, "{status}");
    assert_error(unwrap(), "it can be restored", true);
    assert_error(provider.wrap(&BINDING, &[&secret]), "it can be restored", true);
    bao.post("transit/keys/volume/soft-delete-restore", json!({}));
    assert!(unwrap().is_ok());
    assert_eq!(provider.health().expect("readable").purge_protected, Some(true));
    bao.post("transit/keys/volume/config", json!({ "deletion_allowed": true }));
    assert_eq!(provider.health().expect("readable").purge_protected, Some(false));
    assert!(bao.ask("DELETE", "transit/keys/volume", &json!({}), &[]).0 < 300);
    assert_error(unwrap(), "the key does not exist", true);

    // The same name again is another key.
    bao.post("transit/keys/volume", json!({}));
    assert_integrity(unwrap());
    assert_error(provider.unwrap(&BINDING, &newer.kek, &newer.blobs[0]), "does not exist", true);
}

/// A key that is misspelt is not made, though the token could; nor is another type of key taken.
#[test]
fn keys_that_are_not_there() {
    let bao = Bao::start();
    let lines = bao.token_lines("root");
    let secret = random::secret(32);
    let misspelt = bao.0.provider(&bao.uri("transit/keys/volmue"), &lines);
    assert_error(misspelt.wrap(&BINDING, &[&secret]), "the key does not exist", true);
    assert_eq!(bao.ask("GET", "transit/keys/volmue", &json!({}), &[]).0, 404, "it was made");
    let mount = bao.0.provider(&bao.uri("nowhere/keys/volume"), &lines);
    assert_error(mount.wrap(&BINDING, &[&secret]), "the key does not exist", true);
    for (name, settings) in [
        ("rsa", json!({ "type": "rsa-2048" })),
        ("short", json!({ "type": "aes128-gcm96" })),
        ("derived", json!({ "type": "aes256-gcm96", "derived": true })),
    ] {
        bao.post(&format!("transit/keys/{name}"), settings);
        let provider = bao.0.provider(&bao.uri(&format!("transit/keys/{name}")), &lines);
        assert_error(provider.wrap(&BINDING, &[&secret]), "type=aes256-gcm96", false);
    }
}

/// The credential's end is told from the end of the right, throttling and sealing from both.
#[test]
fn rights_and_credentials() {
    let bao = Bao::start();
    bao.post("transit/keys/volume", json!({}));
    let uri = bao.uri("transit/keys/volume");
    let secret = random::secret(32);
    let token = bao.token(&["atrest-mount"]);
    let provider = bao.0.provider(&uri, &bao.token_lines(&token));
    let Wrapped { kek, blobs } = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
    let unwrap = || provider.unwrap(&BINDING, &kek, &blobs[0]);

    bao.policy("narrow", "path \"transit/keys/volume\" { capabilities = [\"read\"] }");
    let narrow = bao.0.provider(&uri, &bao.token_lines(&bao.token(&["narrow"])));
    let grant = "grant it in a policy of the token: path \"transit/decrypt/volume\"";
    assert_error(narrow.unwrap(&BINDING, &kek, &blobs[0]), grant, true);
    assert_error(narrow.wrap(&BINDING, &[&secret]), "path \"transit/encrypt/volume\"", true);
    let nothing = bao.0.provider(&uri, &bao.token_lines(&bao.token(&["default"])));
    assert_error(nothing.wrap(&BINDING, &[&secret]), "path \"transit/keys/volume\"", true);

    assert!(unwrap().is_ok());
    bao.post("auth/token/revoke", json!({ "token": token }));
    assert_error(unwrap(), "has ended or was revoked", false);
    let wrong = bao.0.provider(&uri, &bao.token_lines("s.SECRETSECRETSECRETSECRET"));
    assert_error(wrong.unwrap(&BINDING, &kek, &blobs[0]), "has ended or was revoked", false);

    let root = bao.0.provider(&uri, &bao.token_lines("root"));
    let quota = json!({ "path": "transit/", "rate": 1, "interval": "60s" });
    bao.post("sys/quotas/rate-limit/one", quota);
    let busy = (0..3).find_map(|_| root.unwrap(&BINDING, &kek, &blobs[0]).err());
    let busy = busy.expect("one in a minute is allowed");
    assert!(matches!(busy.kind(), KekErrorKind::Throttled { .. }), "{busy}");
    assert!(bao.ask("DELETE", "sys/quotas/rate-limit/one", &json!({}), &[]).0 < 300);
    assert!(root.unwrap(&BINDING, &kek, &blobs[0]).is_ok());

    assert!(bao.ask("PUT", "sys/seal", &json!({}), &[]).0 < 300);
    assert_error(root.unwrap(&BINDING, &kek, &blobs[0]), "sealed; unseal it", false);
}

/// An AppRole logs in, again when its token has ended, and no more when its secret id is gone.
#[test]
fn app_role() {
    let bao = Bao::start();
    bao.post("transit/keys/volume", json!({}));
    let role =
        json!({ "token_policies": "atrest-mount", "token_ttl": "2s", "token_max_ttl": "2s" });
    bao.post("auth/approle/role/short", role);
    let (_, id) = bao.ask("GET", "auth/approle/role/short/role-id", &json!({}), &[]);
    let id = id["data"]["role_id"].as_str().expect("an id").to_owned();
    let made = bao.post("auth/approle/role/short/secret-id", json!({}));
    let secret_id = made["data"]["secret_id"].as_str().expect("a secret id").to_owned();
    let file = bao.0.file("secret-id", &format!("{secret_id}\n"));
    let lines = format!("role_id = \"{id}\"\nsecret_id_file = \"{}\"", file.display());
    let provider = bao.0.provider(&bao.uri("transit/keys/volume"), &bao.lines(&lines));
    let secret = random::secret(32);
    let Wrapped { kek, blobs } = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
    let unwrap = || provider.unwrap(&BINDING, &kek, &blobs[0]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        assert!(unwrap().expect("logged in again").is_same(&secret));
        std::thread::sleep(Duration::from_millis(400));
    }
    let gone = json!({ "secret_id": secret_id });
    bao.post("auth/approle/role/short/secret-id/destroy", gone);
    std::thread::sleep(Duration::from_millis(2500));
    assert_error(unwrap(), "authentication failed: invalid", false);
    let given = (bao.0.variable("OPENBAO_ROLE_ID"), bao.0.variable("OPENBAO_SECRET_ID"));
    let file = bao.0.file("secret-id", given.1);
    let lines = format!("role_id = \"{}\"\nsecret_id_file = \"{}\"", given.0, file.display());
    let provider = bao.0.provider(&bao.uri("transit/keys/volume"), &bao.lines(&lines));
    assert!(provider.unwrap(&BINDING, &kek, &blobs[0]).is_ok());
}

/// A pod's service account logs in, as far as a cluster says that it is one.
#[test]
fn kubernetes() {
    let bao = Bao::start();
    let cluster = cluster();
    bao.post("transit/keys/volume", json!({}));
    // No connection to the cluster is encrypted here, but the method wants a certificate.
    let ca = std::fs::read_to_string(bao.0.variable("OPENBAO_CACERT")).expect("readable");
    let config = json!({ "kubernetes_host": cluster, "token_reviewer_jwt": jwt("reviewer"),
        "kubernetes_ca_cert": ca, "disable_local_ca_jwt": true });
    bao.post("auth/kubernetes/config", config);
    let role = json!({ "bound_service_account_names": "web", "token_policies": "atrest-mount",
        "bound_service_account_namespaces": "default", "audience": "" });
    bao.post("auth/kubernetes/role/atrest", role);
    let secret = random::secret(32);
    for (account, role, works) in
        [("web", "atrest", true), ("other", "atrest", false), ("web", "unknown", false)]
    {
        let file = bao.0.file("jwt", &jwt(account));
        let lines = format!("role = \"{role}\"\ntoken_file = \"{}\"", file.display());
        let provider = bao.0.provider(&bao.uri("transit/keys/volume"), &bao.lines(&lines));
        match works {
            true => {
                let Wrapped { kek, blobs } = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
                assert!(provider.unwrap(&BINDING, &kek, &blobs[0]).is_ok());
            }
            false => {
                assert_error(provider.wrap(&BINDING, &[&secret]), "authentication failed", false)
            }
        }
    }
}

/// A service account's token; only the cluster checks signatures.
fn jwt(account: &str) -> String {
    let claims = json!({ "iss": "kubernetes/serviceaccount", "sub":
        format!("system:serviceaccount:default:{account}"),
        "kubernetes.io/serviceaccount/namespace": "default",
        "kubernetes.io/serviceaccount/service-account.name": account,
        "kubernetes.io/serviceaccount/service-account.uid": "11111111-2222-3333-4444-555555555555",
        "kubernetes.io/serviceaccount/secret.name": "token" });
    let parts = [json!({ "alg": "RS256", "kid": "k" }), claims];
    let parts = parts.map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    format!("{}.{}", parts.join("."), URL_SAFE_NO_PAD.encode("SECRET signature"))
}

/// The one call of a cluster that is needed: whose token is it?
fn cluster() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).expect("a header");
                let line = line.trim_end().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).expect("the body");
            let review: Value = serde_json::from_slice(&body).expect("JSON");
            let token = review["spec"]["token"].as_str().expect("a token").to_owned();
            let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("claims"));
            let claims: Value = serde_json::from_slice(&claims.expect("base64")).expect("JSON");
            let uid = &claims["kubernetes.io/serviceaccount/service-account.uid"];
            let user = json!({ "username": claims["sub"], "uid": uid,
                "groups": ["system:serviceaccounts", "system:serviceaccounts:default"] });
            let answer = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "status": { "authenticated": true, "user": user } });
            let text = answer.to_string();
            let head = format!(
                "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n",
                text.len()
            );
            _ = stream.get_mut().write_all((head + &text).as_bytes());
        }
    });
    format!("http://{address}")
}

/// A namespace is given as a setting, or is a part of the path.
#[test]
fn namespaces() {
    let bao = Bao::start();
    bao.post("sys/namespaces/team", json!({}));
    let inside = ["-H", "X-Vault-Namespace: team"];
    let mount = json!({ "type": "transit" });
    assert!(bao.ask("POST", "sys/mounts/transit", &mount, &inside).0 < 300);
    assert!(bao.ask("POST", "transit/keys/volume", &json!({}), &inside).0 < 300);
    let lines = bao.token_lines("root");
    let secret = random::secret(32);
    let outside = bao.0.provider(&bao.uri("transit/keys/volume"), &lines);
    assert_error(outside.wrap(&BINDING, &[&secret]), "the key does not exist", true);
    let with_setting = format!("{lines}\nnamespace = \"team\"");
    for (uri, lines) in
        [("transit/keys/volume", &with_setting), ("team/transit/keys/volume", &lines)]
    {
        let provider = bao.0.provider(&bao.uri(uri), lines);
        let Wrapped { kek, blobs } = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
        assert!(provider.unwrap(&BINDING, &kek, &blobs[0]).expect("ok").is_same(&secret));
    }
}
