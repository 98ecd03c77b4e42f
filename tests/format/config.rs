//! `atrest.json` against vectors, which an independent implementation made (Python, with
//! `cryptography` for key wrap and Argon2id).

use atrest::crypto::{Cipher, Secret, kdf};
use atrest::format::config::{CONFIG_BYTES_MAX, Config, ConfigError, UnverifiedConfig};
use atrest::key::{ProviderOptions, VolumeKeys};

use crate::vector::Vector;

/// Decodes and verifies, with the volume keys of epochs 1, 2 and so on one after the other.
fn read(bytes: &[u8], volume_keys: &[u8]) -> Result<Config, ConfigError> {
    let unverified = UnverifiedConfig::decode(bytes)?;
    let volume_id = unverified.claims().volume_id;
    unverified.verify(|epoch, covered, mac| {
        let at = (epoch as usize - 1) * 32;
        let volume_key = Secret::new(volume_keys[at..at + 32].into());
        let key = kdf::derive(&volume_key, "atrest config mac v1", &volume_id.0, 32);
        kdf::mac_verify(&key, covered, mac)
    })
}

fn refusal(error: &ConfigError) -> String {
    match error {
        ConfigError::TooLarge { .. } => "too_large".into(),
        ConfigError::NotJson { .. } => "not_json".into(),
        ConfigError::UnsupportedVersion(_) => "unsupported_version".into(),
        ConfigError::UnknownField(_) => "unknown_field".into(),
        ConfigError::Schema(_) => "schema".into(),
        ConfigError::Invalid { field, .. } => format!("invalid {field}"),
        ConfigError::NotCanonical => "not_canonical".into(),
        ConfigError::MacMismatch(epoch) => format!("mac_mismatch {epoch}"),
    }
}

/// Each vector is read, or refused for the reason that it names and no other. What is read encodes
/// to the same bytes.
#[test]
fn vectors() {
    for vector in Vector::load("config", 58) {
        let bytes = vector.body.as_bytes();
        let outcome = match read(bytes, &vector.bytes("volume_keys")) {
            Ok(config) => {
                assert_eq!(config.bytes(), bytes, "{}", vector.name);
                "ok".into()
            }
            Err(error) => refusal(&error),
        };
        assert_eq!(outcome, vector.text("expect"), "{}", vector.name);
    }
}

/// The largest file that is looked at is refused by its content, one byte more by its size.
#[test]
fn too_large() {
    let spaces = vec![b' '; CONFIG_BYTES_MAX + 1];
    let refusals = [&spaces[1..], &spaces[..]].map(|bytes| {
        refusal(&UnverifiedConfig::decode(bytes).expect_err("spaces are no configuration"))
    });
    assert_eq!(refusals, ["not_json", "too_large"]);
}

/// What a hostile file says comes out of the message without control characters, and short.
#[test]
fn messages_are_printable() {
    let name = "\\u001b[2J".repeat(1000);
    for text in [format!("{{\"format\":1,\"{name}\":1}}"), format!("{{\"format\":\"{name}\"}}")] {
        let error = UnverifiedConfig::decode(text.as_bytes()).expect_err("not a configuration");
        let message = error.to_string();
        assert!(message.len() < 400 && !message.contains('\x1b'), "{message}");
    }
}

/// A volume of format 1 opens, by the key store and by the passphrase: the promise to every later
/// version. If this fails, the format has changed, and its version has to.
#[test]
fn format_1_opens() {
    use std::os::unix::fs::PermissionsExt;
    let vectors = Vector::load("config", 58);
    let vector = vectors.iter().find(|vector| vector.name == "two_epochs").expect("it is there");
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).expect("ours");
    let private = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a temporary directory is writable");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("it is ours");
        path
    };
    // A key of 32 bytes 0x55.
    private(
        "default.json",
        r#"{"format": 1, "name": "default", "key_id": "000102030405060708090a0b0c0d0e0f",
            "versions": [{"version": 1, "enabled": true, "created": 0,
                          "key": "VVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVU="}]}"#,
    );
    let passphrase_file = private("passphrase", "correct horse\n");
    for slot in [1, 3] {
        let options = ProviderOptions {
            key_store: Some(directory.path().to_owned()),
            passphrase_file: Some(passphrase_file.clone()),
            slot: Some(slot),
            ..ProviderOptions::default()
        };
        let opened = VolumeKeys::open(vector.body.as_bytes(), &options).expect("format 1 opens");
        assert_eq!((opened.slot, opened.keys.cipher()), (slot, Cipher::Aes256Xts));
        for (epoch, byte) in [(1, 0x33), (2, 0x44)] {
            let key = opened.keys.metadata_key(epoch).expect("both epochs are live");
            assert_eq!(key.expose(), [byte; 32]);
        }
    }
}
