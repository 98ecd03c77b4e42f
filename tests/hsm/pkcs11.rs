//! `pkcs11:` against SoftHSM, and against NSS for what SoftHSM does not have.

use std::path::Path;

use atrest::crypto::{Secret, random, wrap};
use atrest::format::config::Algorithm;
use atrest::key::{
    Authorization, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped, pkcs11,
    provider_from_uri,
};

use cryptoki::object::Attribute;
use cryptoki::types::Date;

use crate::alone;
use crate::programs::{output, write_private};
use crate::token::{self, BINDING, OTHER, PIN, Token};

fn refused(provider: &dyn KekProvider, wrapped: &Wrapped) -> KekError {
    let result = provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]);
    result.err().expect("it is to be refused")
}

fn is_integrity(error: &KekError) {
    assert!(matches!(error.kind(), KekErrorKind::Integrity), "{error:?}");
}

fn is_gone(error: &KekError) {
    assert!(matches!(error.kind(), KekErrorKind::Gone { recoverable: false }), "{error:?}");
    assert!(error.is_definitive());
}

fn configuration(error: &KekError) -> String {
    assert!(matches!(error.kind(), KekErrorKind::Configuration { .. }), "{error:?}");
    error.to_string()
}

fn authentication(error: &KekError) -> String {
    assert!(matches!(error.kind(), KekErrorKind::AuthenticationFailed { .. }), "{error:?}");
    assert!(!error.is_definitive());
    error.to_string()
}

fn unreachable(error: &KekError) -> String {
    assert!(matches!(error.kind(), KekErrorKind::Unreachable { .. }), "{error:?}");
    error.to_string()
}

/// Every byte of what was wrapped counts, and so do its length and what it was wrapped for.
fn check_integrity(provider: &dyn KekProvider, wrapped: &Wrapped, stride: usize) {
    let blob = &wrapped.blobs[0];
    for at in (0..blob.len()).step_by(stride) {
        let mut changed = blob.clone();
        changed[at] ^= 1;
        let result = provider.unwrap(&BINDING, &wrapped.kek, &changed);
        is_integrity(&result.err().expect("one bit was changed"));
    }
    for length in [0, 1, blob.len() - 1] {
        let result = provider.unwrap(&BINDING, &wrapped.kek, &blob[..length]);
        is_integrity(&result.err().expect("it was cut off"));
    }
    let longer = [&blob[..], &[0]].concat();
    is_integrity(&provider.unwrap(&BINDING, &wrapped.kek, &longer).err().expect("too long"));
}

fn round_trip(provider: &dyn KekProvider) -> Wrapped {
    let secrets = [random::secret(32), random::secret(32)];
    let wrapped = provider.wrap(&BINDING, &[&secrets[0], &secrets[1]]).expect("it wraps");
    assert_eq!(wrapped.blobs.len(), 2);
    for (secret, blob) in secrets.iter().zip(&wrapped.blobs) {
        assert!(blob.len() <= 1024);
        let opened = provider.unwrap(&BINDING, &wrapped.kek, blob).expect("it unwraps");
        assert!(opened.is_same(secret));
    }
    assert!(provider.algorithms().contains(&wrapped.kek.algorithm));
    wrapped
}

/// AES-GCM is bound to the volume: what was wrapped for another, changed, cut off or wrapped under
/// another key is not taken.
#[test]
fn aes_gcm() {
    alone::run("pkcs11::aes_gcm", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        token.make("AES:32", "other", "02", &[]);
        let provider = token.provider("volume");
        assert_eq!(provider.uri(), "pkcs11:token=kek;object=volume");
        assert_eq!(provider.latest_version().expect("it is there").as_deref(), Some("01"));
        let wrapped = round_trip(&*provider);
        assert_eq!(wrapped.kek.algorithm, Algorithm::A256Gcm);
        assert_eq!(
            (wrapped.kek.key_id.as_str(), wrapped.kek.key_version.as_str()),
            ("volume", "01")
        );
        assert_ne!(wrapped.blobs[0][1..13], wrapped.blobs[1][1..13], "nonces are drawn");
        check_integrity(&*provider, &wrapped, 1);
        let error = provider.unwrap(&OTHER, &wrapped.kek, &wrapped.blobs[0]);
        is_integrity(&error.err().expect("it is another volume's"));
        let any = token.provider_of(&token.uri("token=kek;id=%02")).expect("a URI");
        let of_other = Wrapped {
            kek: any.wrap(&BINDING, &[&random::secret(32)]).expect("it wraps").kek,
            blobs: wrapped.blobs.clone(),
        };
        is_integrity(&refused(&*any, &of_other));
        // The algorithm is the slot's to say, and a key does what it is for, not what a slot says.
        for algorithm in [Algorithm::A256Kw, Algorithm::RsaOaep256, Algorithm::Tpm2Seal] {
            let mut kek = wrapped.kek.clone();
            kek.algorithm = algorithm;
            assert!(provider.unwrap(&BINDING, &kek, &wrapped.blobs[0]).is_err(), "{algorithm:?}");
        }
    });
}

/// Without AES-GCM, AES key wrap: the same bytes as RFC 3394 gives outside the token.
#[test]
fn aes_key_wrap() {
    alone::run("pkcs11::aes_key_wrap", token::shimmed, |scratch| {
        let token = Token::new(scratch);
        let value = random::secret(32);
        std::fs::write(scratch.join("value"), value.expose()).expect("writable");
        let file = scratch.join("value");
        let write = ["--write-object", file.to_str().expect("ASCII"), "--type", "secrkey"];
        let how = ["--key-type", "AES:32", "--label", "volume", "--id", "0a0b", "--usage-wrap"];
        token.tool(&[&write[..], &how[..]].concat());
        let provider = token.provider("volume");
        // CKR_MECHANISM_INVALID.
        token.order("EncryptInit 70\n");
        let wrapped = round_trip(&*provider);
        assert_eq!(wrapped.kek.algorithm, Algorithm::A256Kw);
        assert_eq!(wrapped.kek.key_version, "0a0b");
        assert!(wrap::unwrap(&value, &wrapped.blobs[0]).is_ok(), "it is RFC 3394");
        let secret = random::secret(32);
        let ours = wrap::wrap(&value, &secret);
        let opened = provider.unwrap(&BINDING, &wrapped.kek, &ours).expect("RFC 3394");
        assert!(opened.is_same(&secret));
        check_integrity(&*provider, &wrapped, 1);
        let objects = token.tool(&["--list-objects"]);
        assert_eq!(objects.matches("Secret Key Object").count(), 1, "{objects}");
        // A key that may not encrypt wraps so, too.
        token.order("");
        token.make_aes("wraps", 7, &[Attribute::Wrap(true), Attribute::Unwrap(true)]);
        let wrapped = round_trip(&*token.provider("wraps"));
        assert_eq!(wrapped.kek.algorithm, Algorithm::A256Kw);
        check_integrity(&*token.provider("wraps"), &wrapped, 13);
    });
}

/// SoftHSM has OAEP with SHA-1 only, and the slot says so; another program opens it as well.
#[test]
fn rsa_with_sha1() {
    alone::run("pkcs11::rsa_with_sha1", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("rsa:2048", "volume", "01", &[]);
        let provider = token.provider("volume");
        let wrapped = round_trip(&*provider);
        assert_eq!(wrapped.kek.algorithm, Algorithm::RsaOaep);
        check_integrity(&*provider, &wrapped, 37);
        opened_by_others(&token, &*provider, "SHA-1");
    });
}

/// OAEP with SHA-256 where the token has it. What was wrapped so does not open with SHA-1.
#[test]
fn rsa_with_sha256() {
    alone::run("pkcs11::rsa_with_sha256", token::nss, |scratch| {
        let token = Token::new(scratch);
        token.make("rsa:3072", "volume", "01", &[]);
        let provider = token.provider("volume");
        let mut wrapped = round_trip(&*provider);
        assert_eq!(wrapped.kek.algorithm, Algorithm::RsaOaep256);
        assert_eq!(wrapped.blobs[0].len(), 384);
        check_integrity(&*provider, &wrapped, 53);
        wrapped.kek.algorithm = Algorithm::RsaOaep;
        is_integrity(&refused(&*provider, &wrapped));
    });
}

/// AES-GCM of NSS cannot be used, because of the length that it asks for: its key wrap can.
#[test]
fn aes_of_nss() {
    alone::run("pkcs11::aes_of_nss", token::nss, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "02", &[]);
        let provider = token.provider("volume");
        let wrapped = round_trip(&*provider);
        assert_eq!(wrapped.kek.algorithm, Algorithm::A256Kw);
        check_integrity(&*provider, &wrapped, 7);
    });
}

fn opened_by_others(token: &Token, provider: &dyn KekProvider, hash: &str) {
    let secret = random::secret(32);
    let wrapped = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
    let [sealed, opened] = ["sealed", "opened"].map(|name| token.scratch.join(name));
    std::fs::write(&sealed, &wrapped.blobs[0]).expect("writable");
    let [sealed, opened] = [&sealed, &opened].map(|path| path.to_str().expect("ASCII"));
    let how = ["--decrypt", "-m", "RSA-PKCS-OAEP", "--hash-algorithm", hash, "--id", "01"];
    token.tool(&[&how[..], &["-i", sealed, "-o", opened]].concat());
    assert_eq!(std::fs::read(opened).expect("written"), secret.expose());
}

/// Keys that cannot be used say why.
#[test]
fn unfit_keys() {
    alone::run("pkcs11::unfit_keys", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        let secret = random::secret(32);
        let wrap = |label: &str| {
            let wrapped = token.provider(label).wrap(&BINDING, &[&secret]);
            wrapped.err().unwrap_or_else(|| panic!("{label} cannot be used"))
        };
        token.make("AES:16", "short", "01", &[]);
        assert!(configuration(&wrap("short")).contains("128 bits"));
        token.make("rsa:1024", "small", "02", &[]);
        assert!(configuration(&wrap("small")).contains("1024 bits"));
        token.make("EC:prime256v1", "curve", "03", &[]);
        is_gone(&wrap("curve"));
        for uses in [&[][..], &[Attribute::Encrypt(true), Attribute::Unwrap(true)]] {
            token.make_aes("signs", 4, &[uses, &[Attribute::Sign(true)]].concat());
            let error = wrap("signs");
            assert!(matches!(error.kind(), KekErrorKind::Denied { .. }), "{error:?}");
            assert!(error.to_string().contains("CKA_ENCRYPT and CKA_DECRYPT"), "{error}");
            let missing = token.provider("signs").health().expect("it can be looked at");
            assert!(missing.operations_missing.contains(&"CKA_DECRYPT".to_owned()), "{missing:?}");
            token.tool(&["--delete-object", "--type", "secrkey", "--id", "04"]);
        }
        let ended = Date::new(*b"2020", *b"01", *b"31");
        let uses = [Attribute::Encrypt(true), Attribute::Decrypt(true), Attribute::EndDate(ended)];
        token.make_aes("ended", 5, &uses);
        let error = wrap("ended");
        assert!(matches!(error.kind(), KekErrorKind::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains("20200131"), "{error}");
        let health = token.provider("ended").health().expect("it can be looked at");
        // date -u -d 2020-02-01 +%s
        let end = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_580_515_200);
        assert_eq!((health.version.as_deref(), health.expires), (Some("05"), Some(end)));
        assert!(health.operations_missing.is_empty() && health.not_before.is_none());
        is_gone(&wrap("missing"));
    });
}

/// Of several keys of one label the newest wraps, by its date; without dates none is chosen, and
/// each still unwraps what it wrapped.
#[test]
fn versions() {
    alone::run("pkcs11::versions", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let provider = token.provider("volume");
        let first = round_trip(&*provider);
        token.make("AES:32", "volume", "02", &[]);
        let secret = random::secret(32);
        for error in [
            provider.latest_version().expect_err("ambiguous"),
            provider.wrap(&BINDING, &[&secret]).expect_err("ambiguous"),
        ] {
            let text = configuration(&error);
            assert!(text.contains("01, 02") && text.contains("id="), "{text}");
        }
        assert!(provider.unwrap(&BINDING, &first.kek, &first.blobs[0]).is_ok(), "it says which");
        let second = token.provider_of(&token.uri("token=kek;object=volume;id=%02"));
        let second = second.expect("a URI");
        assert_eq!(second.latest_version().expect("there").as_deref(), Some("02"));
        let wrapped = round_trip(&*second);
        assert_eq!(wrapped.kek.key_version, "02");
        // The URI of one version does not unwrap what another wrapped: it does not say that key.
        is_gone(&refused(&*second, &first));
        // Each of the same CKA_ID is the same version, which cannot be.
        token.make("AES:32", "volume", "02", &[]);
        let text = configuration(&refused(&*second, &wrapped));
        assert!(text.contains("several keys have CKA_ID 02"), "{text}");
    });
}

/// A key with the same label and a date of today or before is the new version; one whose time has
/// not come is not. What the old one wrapped still unwraps.
#[test]
fn rotation() {
    alone::run("pkcs11::rotation", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "05", &[]);
        let provider = token.provider("volume");
        let old = round_trip(&*provider);
        let dated = |id, year: &[u8; 4]| {
            let uses = [
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::StartDate(Date::new(*year, *b"02", *b"28")),
            ];
            token.make_aes("volume", id, &uses);
        };
        let latest = || provider.latest_version().expect("it is clear").expect("it has versions");
        dated(4, b"2024");
        assert_eq!(latest(), "04");
        dated(3, b"2025");
        dated(2, b"2999");
        assert_eq!(latest(), "03");
        let new = round_trip(&*provider);
        assert_eq!(new.kek.key_version, "03");
        for wrapped in [&old, &new] {
            assert!(provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).is_ok());
        }
    });
}

/// A key that was destroyed is gone, at once, for a session that is open; what a slot says of it
/// leads to no other key.
#[test]
fn destroyed() {
    alone::run("pkcs11::destroyed", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        token.make("AES:32", "volume-2", "03", &[]);
        let provider = token.provider("volume");
        let mut wrapped = round_trip(&*provider);
        for version in ["", "02", "1", "03", "zz", "0001"] {
            let mut other = Wrapped { kek: wrapped.kek.clone(), blobs: wrapped.blobs.clone() };
            other.kek.key_version = version.to_owned();
            is_gone(&refused(&*provider, &other));
        }
        token.tool(&["--delete-object", "--type", "secrkey", "--id", "01"]);
        is_gone(&refused(&*provider, &wrapped));
        is_gone(&provider.latest_version().expect_err("destroyed"));
        is_gone(&refused(&*token.provider("volume"), &wrapped));
        // Made again under the same names, it is another key.
        token.make("AES:32", "volume", "01", &[]);
        is_integrity(&refused(&*provider, &wrapped));
        wrapped.kek.key_id = "volume-2".to_owned();
        is_gone(&refused(&*provider, &wrapped));
    });
}

/// A wrong PIN is tried once in a process, whoever asks; another one may be tried then.
#[test]
fn wrong_pin() {
    alone::run("pkcs11::wrong_pin", token::shimmed, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let wrapped = round_trip(&*token.provider("volume"));
        assert_eq!(token.calls("Login"), 1, "one login for everything");
        let pin = scratch.join("pin");
        write_private(&pin, "wrong-0815");
        let provider = token.provider("volume");
        let texts = [&provider, &provider, &token.provider("volume")]
            .map(|provider| authentication(&refused(&**provider, &wrapped)));
        assert_eq!(token.calls("Login"), 2, "the wrong PIN was tried once: {texts:?}");
        assert!(texts[0].contains("refused the PIN") && texts[0].contains("once"), "{texts:?}");
        assert!(texts[1].contains("not tried again"), "{texts:?}");
        assert!(
            texts.iter().all(|text| !text.contains("0815") && !text.contains(PIN)),
            "{texts:?}"
        );
        write_private(&pin, &format!("{PIN}\n"));
        assert!(provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).is_ok());
        assert_eq!(token.calls("Login"), 3);
    });
}

/// A token whose PIN is locked, or would be by one more mistake, is not asked to log in.
#[test]
fn locked_pin() {
    alone::run("pkcs11::locked_pin", token::shimmed, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let asked = || {
            let provider = token.provider("volume");
            provider.latest_version().expect_err("no login")
        };
        // CKF_USER_PIN_LOCKED, CKF_USER_PIN_FINAL_TRY (PKCS #11 2.40, section 5.5).
        token.order("flags 40000\n");
        assert!(authentication(&asked()).contains("is locked"));
        token.order("flags 20000\n");
        let text = authentication(&asked());
        assert!(
            text.contains("one more wrong PIN would lock") && text.contains("--test"),
            "{text}"
        );
        assert_eq!(token.calls("Login"), 0);
        // Locked by the login itself: CKR_PIN_LOCKED; and CKR_PIN_EXPIRED.
        token.order("Login a4\n");
        assert!(authentication(&asked()).contains("is locked"));
        token.order("Login a3\n");
        assert!(authentication(&asked()).contains("expired"));
        // CKF_USER_PIN_COUNT_LOW is no obstacle.
        token.order("flags 10000\n");
        assert!(token.provider("volume").latest_version().is_ok());
    });
}

/// Where the PIN comes from, and what is said if it cannot be had.
#[test]
fn pin_sources() {
    alone::run("pkcs11::pin_sources", token::softhsm, |scratch| {
        use std::os::unix::fs::PermissionsExt;
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let module = token.module.display();
        let latest = |uri: &str| token.provider_of(uri).expect("a URI").latest_version();
        let bare = format!("pkcs11:token=kek;object=volume?module-path={module}");
        let text = configuration(&latest(&bare).expect_err("no PIN"));
        assert!(text.contains("pin-source=") && text.contains("ATREST_PKCS11_PIN_FILE"), "{text}");
        let from = |name: &str| format!("{bare}&pin-source=file:{}", scratch.join(name).display());
        let text = configuration(&latest(&from("missing")).expect_err("no file"));
        assert!(text.contains("cannot read the PIN from"), "{text}");
        write_private(&scratch.join("empty"), "\n");
        let text = configuration(&latest(&from("empty")).expect_err("no PIN"));
        assert!(text.contains("PIN is empty"), "{text}");
        write_private(&scratch.join("open"), PIN);
        std::fs::set_permissions(scratch.join("open"), PermissionsExt::from_mode(0o644))
            .expect("it is ours");
        let text = configuration(&latest(&from("open")).expect_err("everybody can read it"));
        assert!(text.contains("chmod o="), "{text}");
        write_private(&scratch.join("long"), &"9".repeat(300));
        assert!(configuration(&latest(&from("long")).expect_err("too long")).contains("large"));
        assert!(latest(&from("pin")).is_ok());
    });
}

/// The PIN and the module from the environment and from a credential of the service manager.
#[test]
fn environment() {
    let prepare = |scratch: &Path| {
        let (mut environment, ()) = token::softhsm(scratch);
        write_private(&scratch.join("atrest.pkcs11-pin"), PIN);
        environment.push(("CREDENTIALS_DIRECTORY", scratch.into()));
        environment.push(("ATREST_PKCS11_MODULE", "/usr/lib/softhsm/libsofthsm2.so".into()));
        (environment, ())
    };
    alone::run("pkcs11::environment", prepare, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        round_trip(&*token.provider_of("pkcs11:token=kek;object=volume").expect("a URI"));
        let named = token.provider_of("pkcs11:object=volume?module-name=softhsm2").expect("a URI");
        round_trip(&*named);
    });
}

/// A volume may say which key, on a token that this host allows, and nothing else: not which
/// library is loaded into this process, nor where the PIN is.
#[test]
fn what_a_volume_may_say() {
    alone::run("pkcs11::what_a_volume_may_say", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let trap = scratch.join("trap.so");
        std::fs::copy(&token.module, &trap).expect("it can be read");
        let operators = token.uri("");
        for allowed in ["pkcs11:", &operators] {
            let options = ProviderOptions {
                authorization: Authorization::default().allow(allowed),
                ..ProviderOptions::default()
            };
            for query in ["module-path", "pin-source"] {
                let uri = format!("pkcs11:token=kek;object=volume?{query}={}", trap.display());
                let error = provider_from_uri(&uri, &options).err().expect("a volume's");
                assert!(configuration(&error).contains("does not authorise"), "{error}");
                let error = pkcs11::from_uri(&uri, &options).err().expect("a volume's");
                assert!(configuration(&error).contains("for this host to say"), "{error}");
            }
            let options = ProviderOptions {
                authorization: Authorization::default().allow(allowed),
                ..ProviderOptions::default()
            };
            let plain = provider_from_uri("pkcs11:token=kek;object=volume", &options);
            let latest = plain.expect("allowed").latest_version();
            match allowed {
                "pkcs11:" => {
                    let text = configuration(&latest.expect_err("no module is named"));
                    assert!(text.contains("which PKCS #11 module"), "{text}");
                }
                _ => assert!(latest.is_ok(), "the operator's module and PIN serve all keys"),
            }
        }
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        assert!(!maps.contains("trap.so") && maps.contains("libsofthsm2.so"));
        // What is allowed for one key is not allowed for another, however it is spelt.
        let options = ProviderOptions {
            authorization: Authorization::default().allow(&token.uri("object=vol%75me;token=kek")),
            ..ProviderOptions::default()
        };
        let provider = provider_from_uri("pkcs11:token=kek;object=volume", &options);
        assert!(provider.expect("the same key").latest_version().is_ok());
        for other in ["pkcs11:token=kek;object=other", "pkcs11:object=volume"] {
            let error = provider_from_uri(other, &options).err().expect("another key");
            assert!(configuration(&error).contains("does not authorise"), "{error}");
        }
    });
}

/// No module, no token, two tokens: each says what there is instead.
#[test]
fn absent() {
    alone::run("pkcs11::absent", token::softhsm, |scratch| {
        use std::os::unix::fs::PermissionsExt;
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let latest = |uri: &str| {
            let provider = token.provider_of(uri).expect("a URI");
            provider.latest_version().expect_err("it is to be refused")
        };
        let text = unreachable(&latest(&token.uri("token=other;object=volume")));
        assert!(text.contains("token is not there") && text.contains("\"kek\""), "{text}");
        let text = unreachable(&latest(&token.uri("serial=0000;object=volume")));
        assert!(text.contains("token is not there"), "{text}");
        let module = |path: &str| format!("pkcs11:token=kek;object=volume?module-path={path}");
        let text = configuration(&latest(&module("/usr/lib/missing.so")));
        assert!(
            text.contains("/usr/lib/missing.so") && text.contains("no PKCS #11 module"),
            "{text}"
        );
        let libm = format!("{}", which_libm().display());
        let text = configuration(&latest(&module(&libm)));
        assert!(text.contains("not a PKCS #11 module"), "{text}");
        let loose = scratch.join("loose.so");
        std::fs::copy(&token.module, &loose).expect("it can be read");
        std::fs::set_permissions(&loose, PermissionsExt::from_mode(0o666)).expect("it is ours");
        let text = configuration(&latest(&module(loose.to_str().expect("ASCII"))));
        assert!(text.contains("others than its owner can write it"), "{text}");
        let text = configuration(&latest("pkcs11:object=volume?module-name=no-such-module"));
        assert!(text.contains("no-such-module"), "{text}");
    });
}

fn which_libm() -> std::path::PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let path = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5));
    path.map(std::path::PathBuf::from)
        .find(|path| path.to_string_lossy().contains("libc.so"))
        .expect("the C library is loaded")
}

/// Two tokens of one label are not guessed between.
#[test]
fn ambiguous_token() {
    alone::run("pkcs11::ambiguous_token", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.another("kek");
        let provider = token.provider("volume");
        let text = configuration(&provider.latest_version().expect_err("ambiguous"));
        assert!(text.contains("2 tokens fit") && text.contains("serial="), "{text}");
    });
}

/// A session that is lost is opened again, once, and the key is looked up anew; a token that stays
/// away is an outage, and comes back.
#[test]
fn lost_sessions() {
    alone::run("pkcs11::lost_sessions", token::shimmed, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let provider = token.provider("volume");
        let wrapped = round_trip(&*provider);
        let unwrap = || provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]);
        // CKR_SESSION_HANDLE_INVALID, CKR_DEVICE_REMOVED, CKR_USER_NOT_LOGGED_IN,
        // CKR_KEY_HANDLE_INVALID, each said once.
        for order in
            ["FindObjectsInit b3", "FindObjectsInit 32", "DecryptInit 101", "DecryptInit 60"]
        {
            let opened = token.calls("OpenSession");
            token.order(&format!("{order} once\n"));
            assert!(unwrap().is_ok(), "{order}");
            assert_eq!(token.calls("OpenSession"), opened + 1, "{order}");
        }
        token.order("OpenSession e0\nFindObjectsInit e0\n");
        let text = unreachable(&unwrap().err().expect("CKR_TOKEN_NOT_PRESENT"));
        assert!(text.contains("token is not there"), "{text}");
        token.order("");
        assert!(unwrap().is_ok(), "it is there again");
        // A token that fails at everything is not taken for a changed blob: CKR_GENERAL_ERROR.
        token.order("Decrypt 5\nEncryptInit 5\n");
        let error = unwrap().err().expect("it fails");
        assert!(!matches!(error.kind(), KekErrorKind::Integrity), "{error:?}");
        // One that fails at this blob only is.
        token.order("Decrypt 5 once\n");
        is_integrity(&unwrap().err().expect("it fails once"));
        // What the token forbids: CKR_KEY_FUNCTION_NOT_PERMITTED.
        token.order("DecryptInit 68\n");
        let error = unwrap().err().expect("it is forbidden");
        assert!(matches!(error.kind(), KekErrorKind::Denied { .. }), "{error:?}");
        token.order("");
        assert!(unwrap().is_ok());
    });
}

/// Many threads on one provider, and many providers, at once.
#[test]
fn concurrent_use() {
    alone::run("pkcs11::concurrent_use", token::softhsm, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let shared = token.provider("volume");
        let wrapped = round_trip(&*shared);
        let secret: Secret =
            shared.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).expect("it unwraps");
        std::thread::scope(|scope| {
            for number in 0..16 {
                let (token, shared, wrapped, secret) = (&token, &shared, &wrapped, &secret);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let own = token.provider("volume");
                        let provider = if number % 2 == 0 { shared } else { &own };
                        let opened = provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]);
                        assert!(opened.expect("it unwraps").is_same(secret));
                    }
                });
            }
        });
    });
}

/// Nothing of the PIN or of a key is in what is said of a provider that fails.
#[test]
fn nothing_is_told() {
    alone::run("pkcs11::nothing_is_told", token::shimmed, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let provider = token.provider("volume");
        let wrapped = round_trip(&*provider);
        let secret =
            provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]).expect("it unwraps");
        // The last session of the process: what comes has to log in.
        drop(provider);
        let hex: String = secret.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        for order in ["Login a0", "OpenSession 5", "DecryptInit 5", "Decrypt 40", "GetTokenInfo 30"]
        {
            token.order(&format!("{order}\n"));
            let provider = token.provider("volume");
            let Err(error) = provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]) else {
                panic!("{order} is to fail");
            };
            let text = format!("{error} {error:?} {wrapped:?}");
            assert!(!text.contains(PIN) && !text.contains(&hex), "{text}");
        }
        let uri = format!("pkcs11:object=a?pin-value={PIN}");
        let error = token.provider_of(&uri).err().expect("a PIN in a URI");
        let text = format!("{error} {error:?}");
        assert!(text.contains("pin-source=") && !text.contains(PIN), "{text}");
        assert!(output("true", &[]).is_empty());
    });
}
