//! Which object of which vault: `https://HOST[:PORT]/keys/KEY[/VERSION]` and the same with
//! `secrets`, in URIs and in replies.

use crate::key::http::Url;

/// Longest name of an object, in characters (Key Vault's own rule).
const NAME_BYTES_MAX: usize = 127;
/// Longest name of a version, in characters; the service's have 32.
const VERSION_BYTES_MAX: usize = 64;

/// A key or secret, or one version of it.
#[derive(Clone, Debug)]
pub(super) struct ObjectId {
    /// The vault: its URL without a path.
    pub vault: Url,
    /// `keys` or `secrets`.
    pub collection: &'static str,
    /// The object's name; upper and lower case are the same to the service.
    pub name: String,
    /// The version, if it is said.
    pub version: Option<String>,
}

impl ObjectId {
    /// Reads the identifier `text` of a key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn key(text: &str) -> Result<Self, String> {
        Self::parse(text, "keys", "KEY")
    }

    /// Reads the identifier `text` of a secret.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn secret(text: &str) -> Result<Self, String> {
        Self::parse(text, "secrets", "SECRET")
    }

    fn parse(text: &str, collection: &'static str, what: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        let wrong = || {
            format!("it is not of the form https://HOST/{collection}/{what} or .../{what}/VERSION")
        };
        if url.path().ends_with('/') {
            return Err(wrong());
        }
        let segments: Vec<_> = url.segments().collect();
        let (name, version) = match segments[..] {
            [found, name] if found == collection => (name, None),
            [found, name, version] if found == collection => (name, Some(version)),
            _ => return Err(wrong()),
        };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
            return Err("names of keys and secrets have up to 127 letters, digits and -".to_owned());
        }
        if version.is_some_and(|text| {
            text.len() > VERSION_BYTES_MAX || !text.bytes().all(|b| b.is_ascii_alphanumeric())
        }) {
            return Err("versions have letters and digits only".to_owned());
        }
        let (name, version) = (name.to_owned(), version.map(str::to_owned));
        let vault = url.with_path("").map_err(|error| error.to_string())?;
        Ok(Self { vault, collection, name, version })
    }

    /// Whether both are versions of the same object of the same vault.
    pub fn is_same_object(&self, other: &Self) -> bool {
        self.vault.is_same_origin(&other.vault)
            && self.collection == other.collection
            && self.name.eq_ignore_ascii_case(&other.name)
    }

    /// Its identifier without a version.
    pub fn unversioned(&self) -> String {
        format!("{}/{}/{}", self.vault, self.collection, self.name)
    }

    /// The path of the object, of its `version` if that is not empty, and of what is done with it.
    pub fn path(&self, version: &str, operation: &str) -> String {
        let mut path = format!("/{}/{}", self.collection, self.name);
        for part in [version, operation] {
            if !part.is_empty() {
                path.push('/');
                path.push_str(part);
            }
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms there are, and those that only look like one.
    #[test]
    fn identifiers() {
        let key = ObjectId::key("https://V.vault.azure.net:443/keys/Web-1/0123").expect("a key");
        assert_eq!(key.unversioned(), "https://v.vault.azure.net/keys/Web-1");
        assert_eq!(key.version.as_deref(), Some("0123"));
        assert_eq!(key.path("0123", "unwrapkey"), "/keys/Web-1/0123/unwrapkey");
        assert_eq!(key.path("", ""), "/keys/Web-1");
        let other = ObjectId::key("https://v.vault.azure.net/keys/WEB-1").expect("a key");
        assert!(key.is_same_object(&other));
        for text in ["https://v.vault.azure.net:8443/keys/web-1", "https://w.azure.net/keys/web-1"]
        {
            assert!(!key.is_same_object(&ObjectId::key(text).expect(text)), "{text}");
        }
        for text in [
            "v.vault.azure.net/keys/k",
            "https://v.vault.azure.net",
            "https://v.vault.azure.net/keys",
            "https://v.vault.azure.net/keys/",
            "https://v.vault.azure.net/keys/k/",
            "https://v.vault.azure.net/keys/k/1/2",
            "https://v.vault.azure.net/secrets/k",
            "https://v.vault.azure.net/Keys/k",
            "https://v.vault.azure.net/keys/k_1",
            "https://v.vault.azure.net/keys/k/v-1",
            "https://v.vault.azure.net/keys/k?x",
        ] {
            assert!(ObjectId::key(text).is_err(), "{text}");
        }
        let secret = ObjectId::secret("https://v.vault.azure.net/secrets/web-1").expect("a secret");
        assert_eq!(secret.path("", ""), "/secrets/web-1");
        assert!(!secret.is_same_object(&other) && ObjectId::secret(&other.unversioned()).is_err());
    }
}
