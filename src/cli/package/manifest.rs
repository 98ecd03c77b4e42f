//! A signed manifest: which SHA-256 a package must have, and who says so.
//!
//! The manifest is what `sha256sum` writes, a line for each package; its signature, by minisign, is
//! beside it in a file of the same name with `.minisig` at the end.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};

use crate::cli::exit::Exit;
use crate::cli::hint::Failure;
use crate::package::Digest;

/// More than any manifest, key or signature has.
const BYTES_MAX: u64 = 1 << 20;

/// The digest that the manifest says for the package of this name, if whoever has `key` signed it.
///
/// # Errors
/// A file that cannot be read or understood; a signature of somebody else, or of something else; a
/// manifest that does not name the package.
pub fn digest(manifest: &Path, key: &Path, package: &Path) -> Result<Digest, Failure> {
    let mut signature_path = OsString::from(manifest);
    signature_path.push(".minisig");
    let signature_path = PathBuf::from(signature_path);
    let [text, signature, key_text] = [
        read(manifest, "manifest")?,
        read(&signature_path, "signature of the manifest")?,
        read(key, "public key")?,
    ];
    let public = PublicKey::decode(&key_text)
        .or_else(|_| PublicKey::from_base64(key_text.trim()))
        .map_err(|error| unusable(key, "a public key of minisign", &error))?;
    let signature = Signature::decode(&signature)
        .map_err(|error| unusable(&signature_path, "a signature of minisign", &error))?;
    // Signatures of before 2019, which hash nothing first, are refused.
    public.verify(text.as_bytes(), &signature, false).map_err(|error| {
        let message = format!("{} is not signed by {}", manifest.display(), key.display());
        Failure::new(Exit::PackageMismatch, message).hint(error.to_string())
    })?;
    find(&text, package).map_err(|problem| {
        Failure::new(Exit::PackageMismatch, format!("{} {problem}", manifest.display()))
    })
}

/// The digest of the line that names the package.
fn find(text: &str, package: &Path) -> Result<Digest, String> {
    let name = package.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut found = None;
    for (number, line) in (1..).zip(text.lines()) {
        let parts = line.split_once(' ').and_then(|(digest, rest)| {
            // A space or a star, for text or binary, which is the same today (sha256sum(1)).
            Some((digest, rest.strip_prefix([' ', '*'])?))
        });
        let Some((digest, named)) = parts else {
            return Err(format!("is not what sha256sum writes: line {number}"));
        };
        let digest: Digest =
            digest.parse().map_err(|problem| format!("line {number}: {problem}"))?;
        if named != name {
            continue;
        }
        if found.replace(digest).is_some() {
            return Err(format!("names {name} twice"));
        }
    }
    found.ok_or_else(|| format!("does not name {name}"))
}

fn read(path: &Path, what: &str) -> Result<String, Failure> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(path)?.take(BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(io::Error::other("it is too large"));
        }
        Ok(text)
    };
    read().map_err(|error| Failure::io(&format!("read the {what}"), path, &error))
}

fn unusable(path: &Path, what: &str, error: &minisign_verify::Error) -> Failure {
    let message = format!("{} is not {what}: {error}", path.display());
    Failure::new(Exit::PackageMismatch, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as sha256sum writes them, of several packages; what is ambiguous or unclear is not.
    #[test]
    fn lines() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let find = |text: &str| find(text, Path::new("/srv/site.zip")).map(|d| d.to_string());
        assert_eq!(find(&format!("{a}  site.zip\n")), Ok(a.clone()));
        assert_eq!(find(&format!("{b}  other.zip\n{a} *site.zip\n")), Ok(a.clone()));
        assert_eq!(find(&format!("{a}  my site.zip\n")), Err("does not name site.zip".to_owned()));
        let twice = format!("{a}  site.zip\n{b}  site.zip\n");
        assert_eq!(find(&twice), Err("names site.zip twice".to_owned()));
        for text in [format!("{a} site.zip"), format!("{a}\tsite.zip"), "\n".to_owned()] {
            assert!(find(&text).unwrap_err().contains("line 1"), "{text:?}");
        }
        assert!(find("123  site.zip").unwrap_err().contains("64 hexadecimal digits"));
    }
}
