//! Primitives against published vectors, and the two backends against each other.

use atrest::crypto::{Cipher, Nonce, PageKey, Secret, Tag, Tampered, kdf, random, wrap};

use crate::vector::Vector;

fn secret(bytes: Vec<u8>) -> Secret {
    Secret::new(bytes.into_boxed_slice())
}

fn backends(cipher: Cipher, key: &Secret) -> [(&'static str, PageKey); 2] {
    [("aws", PageKey::new(cipher, key)), ("portable", PageKey::new_portable(cipher, key))]
}

/// AES-256-GCM: sealing gives the bytes and the tag; opening gives the plaintext or, where the
/// vector says `tampered`, refuses and leaves zeros.
#[test]
fn gcm() {
    for vector in Vector::load("gcm", 8) {
        let key = secret(vector.bytes("key"));
        let nonce = Nonce(vector.bytes("nonce").try_into().expect("12 bytes"));
        let tag = Tag(vector.bytes("tag").try_into().expect("16 bytes"));
        let [aad, plaintext, sealed] = ["aad", "plaintext", "sealed"].map(|f| vector.bytes(f));
        for (backend, key) in backends(Cipher::Aes256Gcm, &key) {
            let name = format!("{} on {backend}", vector.name);
            let mut output = vec![0xee; plaintext.len()];
            let result = key.open(nonce, &aad, tag, &sealed, &mut output);
            if vector.expects_ok() {
                assert_eq!((result, &output), (Ok(()), &plaintext), "{name}");
                let got = key.seal(nonce, &aad, &plaintext, &mut output);
                assert_eq!((got, &output), (tag, &sealed), "{name}");
            } else {
                assert_eq!(vector.text("expect"), "tampered", "{name}");
                assert_eq!((result, output), (Err(Tampered), vec![0; sealed.len()]), "{name}");
            }
        }
    }
}

/// AES-256-XTS, in both directions.
#[test]
fn xts() {
    for vector in Vector::load("xts", 5) {
        let key = secret(vector.bytes("key"));
        let tweak = vector.bytes("tweak");
        assert_eq!(tweak[12..], [0; 4], "{}: a nonce is 12 bytes, zero-extended", vector.name);
        let nonce = Nonce(tweak[..12].try_into().expect("12 bytes"));
        let (plaintext, sealed) = (vector.bytes("plaintext"), vector.bytes("sealed"));
        for (backend, key) in backends(Cipher::Aes256Xts, &key) {
            let name = format!("{} on {backend}", vector.name);
            let mut output = vec![0; plaintext.len()];
            let tag = key.seal(nonce, &[], &plaintext, &mut output);
            assert_eq!((tag, &output), (Tag([0; 16]), &sealed), "{name}");
            assert_eq!(key.open(nonce, &[], tag, &sealed, &mut output), Ok(()), "{name}");
            assert_eq!(output, plaintext, "{name}");
        }
    }
}

/// AES-256 key wrap.
#[test]
fn key_wrap() {
    for vector in Vector::load("kw", 7) {
        let key = secret(vector.bytes("key"));
        let (bytes, wrapped) = (vector.bytes("secret"), vector.bytes("wrapped"));
        match wrap::unwrap(&key, &wrapped) {
            Ok(unwrapped) => {
                assert!(vector.expects_ok(), "{}", vector.name);
                assert_eq!(unwrapped.expose(), bytes, "{}", vector.name);
                assert_eq!(wrap::wrap(&key, &secret(bytes)), wrapped, "{}", vector.name);
            }
            Err(Tampered) => assert_eq!(vector.text("expect"), "tampered", "{}", vector.name),
        }
    }
}

/// HMAC-SHA256.
#[test]
fn hmac() {
    for vector in Vector::load("hmac", 6) {
        let key = secret(vector.bytes("key"));
        let (message, tag) = (vector.bytes("message"), vector.bytes("tag"));
        assert_eq!(kdf::mac(&key, &message).to_vec(), tag, "{}", vector.name);
        assert!(kdf::mac_verify(&key, &message, &tag), "{}", vector.name);
    }
}

/// HKDF-Expand with our labels; made with an independent implementation (Python's `hmac`) that
/// reproduces RFC 5869 A.1.
#[test]
fn hkdf() {
    for vector in Vector::load("hkdf", 5) {
        let (key, context) = (secret(vector.bytes("key")), vector.bytes("context"));
        let output = vector.bytes("output");
        let derived = kdf::derive(&key, vector.text("label"), &context, output.len());
        assert_eq!(derived.expose(), output, "{}", vector.name);
    }
}

/// SHA-256 of "abc" (FIPS 180-4, example 1).
#[test]
fn digest() {
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let got: String = kdf::digest(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(got, expected);
}

/// Random pages: what one backend seals, the other seals alike and opens.
#[test]
fn backends_agree() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let nonces = random::NonceSequence::new();
        for length in [16, 32, 240, 4096, 4096, 4096, 4096, 65_536] {
            let key = random::secret(cipher.key_bytes());
            let [(_, aws), (_, portable)] = backends(cipher, &key);
            let (nonce, mut aad) = (nonces.next_run(1), [0; 45]);
            let mut plaintext = vec![0; length];
            random::fill(&mut plaintext);
            random::fill(&mut aad);
            let [mut one, mut other] = [vec![0; length], vec![0; length]];
            let tag = aws.seal(nonce, &aad, &plaintext, &mut one);
            assert_eq!(portable.seal(nonce, &aad, &plaintext, &mut other), tag);
            assert_eq!(one, other);
            for key in [&aws, &portable] {
                let mut opened = vec![0; length];
                assert_eq!(key.open(nonce, &aad, tag, &one, &mut opened), Ok(()));
                assert_eq!(opened, plaintext);
            }
        }
    }
}

/// Threads that share a key do not disturb each other: an XTS context holds its tweak.
#[test]
fn keys_are_shared_by_threads() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let key = PageKey::new(cipher, &random::secret(cipher.key_bytes()));
        let nonces = random::NonceSequence::new();
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let (key, nonces) = (&key, &nonces);
                scope.spawn(move || {
                    let plaintext = [thread; 4096];
                    let [mut sealed, mut opened] = [[0; 4096]; 2];
                    for _ in 0..500 {
                        let nonce = nonces.next_run(1);
                        let tag = key.seal(nonce, b"aad", &plaintext, &mut sealed);
                        assert_eq!(key.open(nonce, b"aad", tag, &sealed, &mut opened), Ok(()));
                        assert_eq!(opened, plaintext);
                    }
                });
            }
        });
    }
}

/// A page opened under another nonce or key is refused (GCM) or garbage (XTS), never the plaintext.
#[test]
fn wrong_nonce_or_key() {
    let nonces = random::NonceSequence::new();
    let plaintext = [7; 4096];
    let [mut sealed, mut opened] = [[0; 4096]; 2];
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let [one, other] =
            [0; 2].map(|_| PageKey::new(cipher, &random::secret(cipher.key_bytes())));
        let nonce = nonces.next_run(2);
        let tag = one.seal(nonce, &[], &plaintext, &mut sealed);
        let results = [(&one, nonce.offset(1)), (&other, nonce)].map(|(key, nonce)| {
            let result = key.open(nonce, &[], tag, &sealed, &mut opened);
            assert_ne!(opened, plaintext);
            result
        });
        let expected = if cipher == Cipher::Aes256Gcm { Err(Tampered) } else { Ok(()) };
        assert_eq!(results, [expected; 2]);
    }
}
