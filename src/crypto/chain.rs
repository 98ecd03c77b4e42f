//! A key that forgets: every MAC is made under another key, from which those before do not follow.
//!
//! Forward security as in Bellare and Yee, "Forward-Security in Private-Key Cryptography" (CT-RSA
//! 2003), and Schneier and Kelsey, "Secure Audit Logs to Support Computer Forensics" (ACM TISSEC
//! 2(2), 1999): who takes the key now can forge what comes, and nothing that is past.

use aws_lc_rs::hmac;

use super::{Secret, kdf};

const MAC: &[u8] = b"atrest audit record v1\0";
const NEXT: &str = "atrest audit next v1";

/// The newest key of a chain. The one before is wiped when the next is there.
pub struct ChainKey(Secret);

impl ChainKey {
    /// A chain that begins with `key`, which is uniformly random.
    pub fn new(key: Secret) -> Self {
        Self(key)
    }

    /// `HMAC-SHA256(key, "atrest audit record v1" || 0x00 || message)`. No input of
    /// [`ChainKey::advance`], which uses the same key, begins like that.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        self.context(message).sign().as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }

    /// Whether `tag` is the MAC of `message`, compared in constant time.
    pub fn verify(&self, message: &[u8], tag: &[u8; 32]) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.mac(message), tag).is_ok()
    }

    /// `key = KDF(key, "atrest audit next v1", "", 32)`.
    pub fn advance(&mut self) {
        self.0 = kdf::derive(&self.0, NEXT, &[], 32);
    }

    fn context(&self, message: &[u8]) -> hmac::Context {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose());
        let mut context = hmac::Context::with_key(&key);
        context.update(MAC);
        context.update(message);
        context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each step has another key; both ends that take the same steps agree, and a MAC is for its
    /// step and message only.
    #[test]
    fn steps() {
        let key = || ChainKey::new(Secret::from_fn(32, |bytes| bytes.fill(7)));
        let (mut writer, mut reader) = (key(), key());
        let first = writer.mac(b"one");
        writer.advance();
        let second = writer.mac(b"one");
        assert_ne!(first, second);
        assert!(reader.verify(b"one", &first) && !reader.verify(b"one", &second));
        assert!(!reader.verify(b"two", &first));
        reader.advance();
        assert!(reader.verify(b"one", &second) && !reader.verify(b"one", &first));
    }
}
