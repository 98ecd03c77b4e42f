//! `atrest vault key import`: private keys as other programs write them. Needs `openssl`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::mounting::{atrest, code};

/// Runs openssl, which must succeed.
fn openssl(base: &Path, arguments: &str) -> String {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(base)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is needed");
    assert!(output.status.success(), "openssl {arguments}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The command on the vault `v`: its exit code, and what it says.
fn vault(base: &Path, arguments: &[&str]) -> (i32, String) {
    let output = atrest(base, &[&["vault"], arguments, &["--key-store", "keys"]].concat());
    let said = [&output.stdout[..], &output.stderr].concat();
    (code(&output), String::from_utf8(said).expect("text"))
}

/// The modulus of a version, in hexadecimal as openssl writes it.
fn modulus(base: &Path, name: &str) -> String {
    use base64::Engine as _;
    let (code, shown) = vault(base, &["key", "show", "v", name]);
    assert_eq!(code, 0, "{shown}");
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let encoded = shown["key"]["n"].as_str().expect("an RSA key");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).expect("base64");
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// RSA in PEM, with and without PKCS #8, and with something else in the file; whatever cannot be
/// taken says why, and how it could.
#[test]
fn pem_files() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().canonicalize().unwrap();
    assert_eq!(vault(&base, &["init", "v", "--kek", "local:test"]).0, 0);
    openssl(&base, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out pkcs8.pem");
    openssl(&base, "rsa -in pkcs8.pem -traditional -out pkcs1.pem");
    openssl(&base, "req -x509 -key pkcs8.pem -subj /CN=x -out certificate.pem");
    let read = |name: &str| fs::read_to_string(base.join(name)).unwrap();
    let bundle = format!("Bag Attributes\n{}{}", read("pkcs8.pem"), read("certificate.pem"));
    fs::write(base.join("bundle.pem"), bundle).unwrap();
    let expected = openssl(&base, "rsa -in pkcs8.pem -modulus -noout");
    for name in ["pkcs8", "pkcs1", "bundle"] {
        let (code, said) = vault(&base, &["key", "import", "v", name, &format!("{name}.pem")]);
        assert!(code == 0 && said.starts_with(&format!("imported {name}/")), "{said}");
        assert_eq!(format!("Modulus={}\n", modulus(&base, name)), expected, "{name}");
    }
    openssl(&base, "pkey -in pkcs8.pem -aes256 -passout pass:s3cret -out encrypted8.pem");
    openssl(
        &base,
        "rsa -in pkcs8.pem -traditional -aes256 -passout pass:s3cret -out encrypted1.pem",
    );
    openssl(&base, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out short.pem");
    openssl(&base, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out curve8.pem");
    openssl(&base, "ecparam -name prime256v1 -genkey -noout -out curve1.pem");
    openssl(&base, "pkey -in pkcs8.pem -pubout -out public.pem");
    let whole = read("pkcs8.pem");
    let (middle, swapped) = (whole.len() / 2, if &whole[99..100] == "A" { "B" } else { "A" });
    let mut bent = whole.clone();
    bent.replace_range(99..100, swapped);
    for (name, text) in [
        ("cut.pem", &whole[..middle]),
        ("bent.pem", &bent),
        ("noise.pem", "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n"),
        ("empty.pem", ""),
        ("other.json", "{\"kty\":\"RSA\",\"n\":\"AQAB\"}"),
    ] {
        fs::write(base.join(name), text).unwrap();
    }
    for (name, words) in [
        ("encrypted8.pem", "openssl pkey -in encrypted8.pem"),
        ("encrypted1.pem", "is encrypted"),
        ("short.pem", "2048, 3072 or 4096 bits"),
        ("curve8.pem", "imported as JSON Web Keys"),
        ("curve1.pem", "has no RSA key"),
        ("public.pem", "has no private key"),
        ("certificate.pem", "has no private key"),
        ("cut.pem", "has no private key"),
        ("bent.pem", ""),
        ("noise.pem", "not well-formed PEM"),
        ("empty.pem", "may be a JSON Web Key"),
        ("other.json", "the key has no e"),
    ] {
        let (code, said) = vault(&base, &["key", "import", "v", "refused", name]);
        assert!(code == 2 && said.contains(words), "{name}: exit {code}: {said}");
    }
    let (_, listed) = vault(&base, &["key", "list", "v"]);
    assert!(!listed.contains("refused"), "{listed}");
}
