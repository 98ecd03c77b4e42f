//! Plugins that keep to the protocol, and those that do not.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::crypto::random;
use crate::format::VolumeId;

const BINDING: Binding = Binding { volume_id: VolumeId([7; 16]) };

/// A plugin in a directory of its own.
struct Plugin {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Plugin {
    /// A plugin that is this shell script. Another process writes it: were it open for writing
    /// here, a child of another test could have it open when it is to be run (ETXTBSY).
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let directory_path = directory.path().canonicalize().expect("it exists");
        let path = directory_path.join("plugin");
        let mut writer = Command::new("/bin/sh")
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        let text = format!("#!/bin/sh\n{script}\n");
        writer.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        assert!(writer.wait().expect("it ends").success());
        Self { directory, path }
    }

    /// A plugin that reads its request and answers this.
    fn answering(reply: &str) -> Self {
        let plugin = Self::new("cat >/dev/null; exec cat \"${0%/*}/reply\"");
        std::fs::write(plugin.directory.path().join("reply"), reply).expect("writable");
        plugin
    }

    fn provider(&self) -> ExecProvider {
        let uri = format!("exec:{}?key=web", self.path.display());
        let timeout = Duration::from_secs(20);
        ExecProvider { uri, path: self.path.clone(), key: "web".into(), timeout }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).expect("the plugin wrote it")
    }
}

fn kek() -> KekReference {
    KekReference {
        key_id: "id".into(),
        key_version: "v1".into(),
        algorithm: Algorithm::Plugin,
        parameters: None,
    }
}

/// The error of an unwrap.
fn error(provider: &ExecProvider) -> KekError {
    provider.unwrap(&BINDING, &kek(), &[1, 2, 3]).err().expect("the plugin fails")
}

/// What a request looks like on the wire, and that an answer is taken as it is.
#[test]
fn protocol() {
    let save = "cat >\"${0%/*}/request\"; exec cat \"${0%/*}/reply\"";
    let plugin = Plugin::new(save);
    let answer = |text: &str| {
        std::fs::write(plugin.directory.path().join("reply"), text).expect("writable");
    };
    let provider = plugin.provider();
    let secret = Secret::from_fn(32, |bytes| bytes.fill(0xa5));
    let base64 = "paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU=";
    let data = "atrest volume key of 07070707070707070707070707070707";

    answer(
        "{\"protocol\":1,\"ok\":{\"key_id\":\"id\",\"key_version\":\"v1\",\"value\":\"AQID\"}}\n",
    );
    let wrapped = provider.wrap(&BINDING, &[&secret, &secret]).expect("it answers");
    assert_eq!(wrapped.kek, kek());
    assert_eq!(wrapped.blobs, [[1, 2, 3], [1, 2, 3]]);
    assert_eq!(
        plugin.read("request"),
        format!(
            "{{\"protocol\":1,\"operation\":\"wrap\",\"key\":\"web\",\
             \"associated_data\":\"{data}\",\"value\":\"{base64}\"}}\n"
        )
    );

    answer(&format!("{{\"protocol\":1,\"ok\":{{\"value\":\"{base64}\"}}}}"));
    let found = provider.unwrap(&BINDING, &kek(), &[1, 2, 3]).expect("it answers");
    assert!(found.is_same(&secret));
    assert_eq!(
        plugin.read("request"),
        format!(
            "{{\"protocol\":1,\"operation\":\"unwrap\",\"key\":\"web\",\"key_id\":\"id\",\
             \"key_version\":\"v1\",\"associated_data\":\"{data}\",\"value\":\"AQID\"}}\n"
        )
    );

    answer("{\"protocol\":1,\"ok\":{\"key_id\":\"id\",\"key_version\":\"v2\"}}");
    assert_eq!(provider.latest_version().expect("it answers").as_deref(), Some("v2"));
    assert_eq!(
        plugin.read("request"),
        "{\"protocol\":1,\"operation\":\"describe\",\"key\":\"web\"}\n"
    );
    assert_eq!(provider.create_version().expect("it answers"), "v2");
    assert!(plugin.read("request").contains("\"create-version\""));
}

/// Two keys that are wrapped under two versions, because one was made in between, are wrapped
/// again; a plugin that never comes to rest is refused.
#[test]
fn one_version_for_all() {
    let count = "n=$(($(cat \"${0%/*}/count\" 2>/dev/null || echo 0) + 1)); \
                 echo $n >\"${0%/*}/count\"; cat >/dev/null; ";
    let reply = "echo \"{\\\"protocol\\\":1,\\\"ok\\\":{\\\"key_id\\\":\\\"id\\\",\
                 \\\"key_version\\\":\\\"$v\\\",\\\"value\\\":\\\"AQID\\\"}}\"";
    let secret = random::secret(32);
    let once = Plugin::new(&format!("{count} v=2; [ $n = 1 ] && v=1; {reply}"));
    let wrapped = once.provider().wrap(&BINDING, &[&secret, &secret]).expect("it comes to rest");
    assert_eq!((wrapped.kek.key_version.as_str(), wrapped.blobs.len()), ("2", 2));
    let never = Plugin::new(&format!("{count} v=$n; {reply}"));
    let error = never.provider().wrap(&BINDING, &[&secret, &secret]).expect_err("it never rests");
    assert!(error.to_string().contains("another version"), "{error}");
}

/// Every class of the protocol becomes the error that it names, with the plugin's words.
#[test]
fn error_classes() {
    for (class, more, expected) in [
        ("denied", "", "access to the key is denied: see it"),
        ("disabled", "", "the key version is disabled"),
        ("gone", "", "the key does not exist"),
        ("gone", ",\"recoverable\":true", "the key is deleted; it can be restored"),
        ("throttled", "", "too many requests"),
        ("throttled", ",\"retry_after\":7", "too many requests; try again in 7 s"),
        ("unreachable", "", "no answer: see it"),
        ("authentication", "", "authentication failed: see it"),
        ("bad-request", "", "the request was refused: see it"),
        ("integrity", "", "this key or passphrase did not wrap the volume key"),
        ("configuration", "", "see it"),
    ] {
        let reply = format!(
            "{{\"protocol\":1,\"error\":{{\"class\":\"{class}\",\"message\":\"see\\n it\"{more}}}}}"
        );
        let plugin = Plugin::answering(&reply);
        let error = error(&plugin.provider());
        assert_eq!(error.kind().to_string(), expected, "{class}");
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(cause.as_deref(), Some("see it"), "{class}");
        let definitive = matches!(class, "denied" | "disabled" | "gone");
        assert_eq!(error.is_definitive(), definitive, "{class}");
        assert_eq!(error.key(), "id/v1");
    }
}

/// What is not exactly an answer of the protocol is none: an outage, never a decision about the
/// key, and nothing of it is shown.
#[test]
fn garbage() {
    let long = format!("{{\"protocol\":1,\"ok\":{{\"value\":\"{}\"}}}}", "QUFB".repeat(300));
    let deep = "[".repeat(50_000);
    for reply in [
        "",
        "\n",
        "null",
        "{}",
        "SECRETsecret1234567890123456",
        "{\"protocol\":1}",
        "{\"protocol\":2,\"ok\":{\"value\":\"AQID\"}}",
        "{\"protocol\":\"SECRETsecret1\",\"ok\":{\"value\":\"AQID\"}}",
        "{\"protocol\":1,\"ok\":{}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"\"}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQI\"}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQ-_\"}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQID\\n\"}}",
        "{\"protocol\":1,\"ok\":{\"value\":[1,2,3]}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQID\",\"key_id\":\"id\"}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQID\",\"SECRETsecret1\":1}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQID\",\"value\":\"AQID\"}}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQID\"}} {\"protocol\":1}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQID\"}",
        "{\"protocol\":1,\"ok\":{\"value\":\"AQID\"},\
         \"error\":{\"class\":\"gone\",\"message\":\"\"}}",
        "{\"protocol\":1,\"error\":{\"class\":\"SECRETsecret1\",\"message\":\"\"}}",
        "{\"protocol\":1,\"error\":{\"class\":\"gone\"}}",
        "{\"protocol\":1,\"error\":{\"class\":\"denied\",\"message\":\"\",\"recoverable\":true}}",
        "{\"protocol\":1,\"error\":{\"class\":\"gone\",\"message\":\"\",\"retry_after\":1}}",
        "{\"protocol\":1,\"error\":{\"class\":\"throttled\",\"message\":\"\",\"retry_after\":-1}}",
        &long,
        &deep,
    ] {
        let plugin = Plugin::answering(reply);
        let error = error(&plugin.provider());
        assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{reply:.80}: {error}");
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error:?}");
    }
    // What would be right for another operation.
    let plugin = Plugin::answering("{\"protocol\":1,\"ok\":{\"value\":\"AQID\"}}");
    let provider = plugin.provider();
    assert!(provider.unwrap(&BINDING, &kek(), &[1]).is_ok());
    let secret = random::secret(32);
    let errors = [
        provider.wrap(&BINDING, &[&secret]).err(),
        provider.latest_version().err(),
        provider.create_version().err(),
    ];
    for error in errors {
        let error = error.expect("no key is named");
        assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{error}");
    }
    let named = "{\"protocol\":1,\"ok\":{\"key_id\":\"i d\",\"key_version\":\"1\"}}";
    assert!(Plugin::answering(named).provider().latest_version().is_err());
}

/// A plugin that crashes, closes its output, writes too much, or does not end is an outage, and its
/// words are shown.
#[test]
fn misbehaves() {
    let good = "echo '{\"protocol\":1,\"ok\":{\"value\":\"AQID\"}}'";
    for (script, words) in [
        ("echo no token there >&2; exit 7".to_owned(), "exit code 7"),
        ("echo no token there >&2; kill -SEGV $$".to_owned(), "by signal 11"),
        ("exec <&- >&-; echo no token there >&2".to_owned(), "without an answer"),
        ("echo no token there >&2; yes".to_owned(), "more than 65536 bytes"),
        (format!("echo no token there >&2; {good}; exit 1"), "ended with exit code 1"),
        ("echo no token there >&2; echo '{'".to_owned(), "line 2, column 0"),
    ] {
        let plugin = Plugin::new(&script);
        let error = error(&plugin.provider());
        let text = error.to_string();
        assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{script}: {error}");
        assert!(text.contains(words), "{script}: {error}");
        assert!(text.contains("it said: no token there") || script.contains("yes"), "{error}");
    }
    let plugin = Plugin::new(&format!("{good}; echo all is well >&2; sleep 60"));
    let provider = ExecProvider { timeout: Duration::from_millis(300), ..plugin.provider() };
    let start = Instant::now();
    let error = error(&provider);
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(error.to_string().contains("took more than 0.3 s; it said: all is well"), "{error}");
    // Who answers without having read the request has answered.
    let plugin = Plugin::new(&format!("exec <&-; {good}"));
    assert!(plugin.provider().unwrap(&BINDING, &kek(), &[1]).is_ok());
}

/// A plugin that repeats everything to its standard error does not get the volume key into a log.
#[test]
fn secrets_are_not_shown() {
    let secret = random::secret(32);
    let base64 = STANDARD.encode(secret.expose());
    let plugin = Plugin::new("tee /dev/stderr; exit 1");
    let error = plugin.provider().wrap(&BINDING, &[&secret]).expect_err("it fails");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("[hidden]") && !shown.contains(&base64[..12]), "{shown}");
    let reply = format!(
        "{{\"protocol\":1,\"error\":{{\"class\":\"denied\",\"message\":\"not for {base64}\"}}}}"
    );
    let error = error_of(&Plugin::answering(&reply));
    assert_eq!(error.kind().to_string(), "access to the key is denied: not for [hidden]");
}

fn error_of(plugin: &Plugin) -> KekError {
    error(&plugin.provider())
}

/// It gets the one argument, and no more of the environment than is documented.
#[test]
fn environment_is_documented() {
    let plugin = Plugin::new("echo \"$#:$*\" >\"${0%/*}/saw\"; env >>\"${0%/*}/saw\"; exit 1");
    error_of(&plugin);
    let saw = plugin.read("saw");
    let mut lines = saw.lines();
    assert_eq!(lines.next(), Some("1:--atrest-kek-plugin=1"));
    for line in lines {
        let (name, value) = line.split_once('=').expect("a variable");
        let documented = PASSED.contains(&name)
            || name.starts_with(PASSED_PREFIX)
            || FIXED.contains(&(name, value))
            // The shell's own.
            || matches!(name, "PWD" | "SHLVL" | "_" | "OLDPWD");
        assert!(documented, "{line}");
    }
}

/// A plugin that others could have changed is not run, nor what is no plain program; each refusal
/// says what to do.
#[test]
fn permissions() {
    let plugin = Plugin::new("touch \"${0%/*}/ran\"");
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
    };
    let directory = plugin.path.parent().expect("it has one");
    let refused = |plugin_path: &Path, words: &str| {
        let provider = ExecProvider { path: plugin_path.into(), ..plugin.provider() };
        let error = error(&provider);
        assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(!plugin.directory.path().join("ran").exists(), "it ran: {words}");
    };
    for mode in [0o775, 0o757, 0o777] {
        set(&plugin.path, mode);
        refused(&plugin.path, "run: chmod go-w ");
    }
    set(&plugin.path, 0o644);
    refused(&plugin.path, "run: chmod u+x ");
    set(&plugin.path, 0o755);
    for mode in [0o770, 0o707] {
        set(directory, mode);
        refused(&plugin.path, "run: chmod go-w ");
    }
    set(directory, 0o700);
    refused(&directory.join("absent"), "there is no plugin");
    refused(directory, "is not a regular file");
    let link = directory.join("link");
    std::os::unix::fs::symlink("plugin", &link).expect("writable");
    refused(&link, &format!("name exec:{}", plugin.path.display()));
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&plugin.path, Some(65534), None).expect("we are root");
        refused(&plugin.path, "belongs to user 65534");
        std::os::unix::fs::chown(&plugin.path, Some(0), None).expect("we are root");
    }
    let broken = Plugin::new("");
    std::fs::write(&broken.path, "#!/nowhere/interpreter\n").expect("writable");
    let error = error_of(&broken);
    assert!(error.to_string().contains("cannot run"), "{error}");
    // Nothing is wrong now.
    error_of(&plugin);
    assert!(plugin.directory.path().join("ran").exists());
}

/// One spelling for each plugin and key; what a volume could use to get at another is refused.
#[test]
fn uris() {
    let long = "x".repeat(129);
    for (uri, expected) in [
        ("exec:/a/b", Some(("/a/b", ""))),
        ("exec:/a/b?key=K", Some(("/a/b", "K"))),
        (
            "exec:/a/b?key=arn:aws:kms:x:1:key/2_3@4+5=6-7.8",
            Some(("/a/b", "arn:aws:kms:x:1:key/2_3@4+5=6-7.8")),
        ),
        ("exec:", None),
        ("exec:a/b", None),
        ("exec://a", None),
        ("exec:/a/../b", None),
        ("exec:/a/./b", None),
        ("exec:/a/", None),
        ("exec:/a b", None),
        ("exec:/a%2fb", None),
        ("exec:/a#b", None),
        ("exec:/a\u{e9}", None),
        ("exec:/a?", None),
        ("exec:/a?key=", None),
        ("exec:/a?key=a&key=b", None),
        ("exec:/a?key=a b", None),
        ("exec:/a?key=$(b)", None),
        ("exec:/a?other=b", None),
        (&format!("exec:/a?key={long}"), None),
        (&format!("exec:/{}", long.repeat(2)), None),
    ] {
        assert_eq!(parse(uri).ok(), expected, "{uri}");
    }
}

/// No plugin is run, not even looked at, that the host does not authorise; a directory of plugins
/// can be.
#[test]
fn is_authorised() {
    let plugin = Plugin::new("touch \"${0%/*}/ran\"");
    let uri = format!("exec:{}", plugin.path.display());
    let mut options = ProviderOptions::default();
    let make = |options: &ProviderOptions, uri: &str| crate::key::provider_from_uri(uri, options);
    let error = make(&options, &uri).err().expect("nobody allowed it");
    assert!(error.to_string().contains("does not authorise"), "{error}");
    options.authorization = options.authorization.allow(&uri);
    assert!(make(&options, &uri).is_ok());
    assert!(make(&options, &format!("{uri}?key=other")).is_err(), "another key of it");
    assert!(make(&options, "exec:/bin/true").is_err(), "another program");
    assert!(!plugin.directory.path().join("ran").exists());
}

/// The worked example keeps to the protocol, with a host key of its own.
#[test]
fn example() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kek-plugin");
    let wrapper = format!(
        "export ATREST_PLUGIN_SECRET=\"${{0%/*}}/secret\"; exec {} \"$@\"",
        example.display()
    );
    let plugin = Plugin::new(&wrapper);
    let provider = ExecProvider { key: "host".into(), ..plugin.provider() };
    let secret = random::secret(32);
    let gone = provider.wrap(&BINDING, &[&secret]).expect_err("there is no host key");
    assert!(matches!(gone.kind(), KekErrorKind::Gone { recoverable: false }), "{gone}");
    let secret_file = plugin.directory.path().join("secret");
    let made = Command::new("systemd-creds")
        .arg("setup")
        .env("SYSTEMD_CREDENTIAL_SECRET", &secret_file)
        .output()
        .expect("systemd-creds is installed (package systemd)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let Wrapped { kek, mut blobs } =
        provider.wrap(&BINDING, &[&secret, &secret]).expect("it wraps");
    assert_eq!(provider.latest_version().expect("it knows"), Some(kek.key_version.clone()));
    for blob in &blobs {
        assert!(provider.unwrap(&BINDING, &kek, blob).expect("just wrapped").is_same(&secret));
    }
    let other = Binding { volume_id: VolumeId([8; 16]) };
    let error = provider.unwrap(&other, &kek, &blobs[0]).err().expect("another volume");
    assert!(matches!(error.kind(), KekErrorKind::Integrity), "{error}");
    let last = blobs[0].len() - 1;
    blobs[0][last] ^= 1;
    let error = provider.unwrap(&BINDING, &kek, &blobs[0]).err().expect("a bit was changed");
    assert!(matches!(error.kind(), KekErrorKind::Integrity), "{error}");
    let error = provider.create_version().expect_err("it has no versions to make");
    assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error}");
    let unknown = ExecProvider { key: "unknown".into(), ..plugin.provider() };
    let error = unknown.wrap(&BINDING, &[&secret]).expect_err("no such key");
    assert!(matches!(error.kind(), KekErrorKind::Gone { .. }), "{error}");
    std::fs::remove_file(&secret_file).expect("it exists");
    let error = provider.unwrap(&BINDING, &kek, &blobs[1]).err().expect("the host key is gone");
    assert!(matches!(error.kind(), KekErrorKind::Gone { .. }), "{error}");
}
