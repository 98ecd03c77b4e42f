//! Key Vault references: settings whose value is in a vault.
//!
//! `@Microsoft.KeyVault(SecretUri=https://VAULT/secrets/NAME[/VERSION])`, or
//! `@Microsoft.KeyVault(VaultName=NAME;SecretName=NAME[;SecretVersion=VERSION])`. The first word
//! and
//! the names of the parts may be in any case, as Azure has it. What begins like a reference and is
//! none is an error of that setting, never a value.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::settings::Settings;
use crate::key::ProviderOptions;
use crate::key::azure::{SecretError, SecretValue, get_secret};

/// How a reference begins.
const PREFIX: &str = "@Microsoft.KeyVault(";

/// A reference that is well formed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `https://HOST/secrets/NAME[/VERSION]`
    pub identifier: String,
}

impl Reference {
    /// Whether `value` is a reference, well formed or not.
    pub fn begins(value: &str) -> bool {
        let head = value.trim().get(..PREFIX.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(PREFIX))
    }

    /// The reference that `value` is; `None` if it is an ordinary value. Vaults that are named are
    /// below `suffix` (`vault.azure.net`).
    ///
    /// # Errors
    /// What is wrong with it, and how to write it.
    pub fn parse(value: &str, suffix: &str) -> Result<Option<Self>, String> {
        let value = value.trim();
        if !Self::begins(value) {
            return Ok(None);
        }
        let inside = value[PREFIX.len()..].strip_suffix(')').ok_or("it does not end in )")?;
        let mut parts = BTreeMap::new();
        for part in inside.split(';').map(str::trim) {
            let (name, text) = part.split_once('=').ok_or("a part has no =")?;
            let name = name.trim().to_ascii_lowercase();
            if !["secreturi", "vaultname", "secretname", "secretversion"].contains(&name.as_str()) {
                return Err(format!("there is no part {name:?}"));
            }
            if parts.insert(name.clone(), text.trim()).is_some() {
                return Err(format!("{name} is there twice"));
            }
        }
        let mut take = |name: &str| parts.remove(name).filter(|text| !text.is_empty());
        let identifier = match (take("secreturi"), take("vaultname"), take("secretname")) {
            (Some(uri), None, None) => uri.strip_suffix('/').unwrap_or(uri).to_owned(),
            (None, Some(vault), Some(secret)) => {
                let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                if !vault.bytes().all(is_name) {
                    return Err("names of vaults have letters, digits and - only".to_owned());
                }
                let version = take("secretversion").map(|version| format!("/{version}"));
                let version = version.unwrap_or_default();
                format!("https://{vault}.{suffix}/secrets/{secret}{version}")
            }
            _ => {
                return Err("write SecretUri=https://VAULT/secrets/NAME, or \
                            VaultName=NAME;SecretName=NAME"
                    .to_owned());
            }
        };
        if !parts.values().all(|text| text.is_empty()) {
            return Err("SecretVersion does not go with SecretUri: end that in /VERSION".to_owned());
        }
        Ok(Some(Self { identifier }))
    }
}

/// What became of one reference.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The setting.
    pub setting: String,
    /// `https://HOST/secrets/NAME[/VERSION]`; empty if it is malformed.
    pub identifier: String,
    /// The version that it led to, or why to none.
    pub outcome: Result<String, Unresolved>,
}

/// Why a reference led to nothing.
#[derive(Clone, Debug)]
pub struct Unresolved {
    /// In words.
    pub problem: String,
    /// Whether it is decided: malformed, denied, not there. Else the vault could not be asked.
    pub is_definitive: bool,
}

impl Resolution {
    /// For `atrest app status --json`.
    pub fn to_json(&self) -> Value {
        match &self.outcome {
            Ok(version) => json!({
                "setting": self.setting, "secret": self.identifier, "version": version,
            }),
            Err(error) => json!({
                "setting": self.setting, "secret": self.identifier, "error": error.problem,
            }),
        }
    }
}

/// Who gives secrets.
pub trait Vaults: Send + Sync {
    /// The value of `https://HOST/secrets/NAME[/VERSION]`.
    ///
    /// # Errors
    /// [`SecretError`].
    fn get(&self, identifier: &str) -> Result<SecretValue, SecretError>;
}

impl Vaults for ProviderOptions {
    fn get(&self, identifier: &str) -> Result<SecretValue, SecretError> {
        get_secret(identifier, self)
    }
}

/// Settings with the values that their references lead to, and what became of each reference. One
/// that leads to nothing stays what it is, as Azure has it.
pub fn resolve(
    settings: &Settings,
    suffix: &str,
    vaults: &dyn Vaults,
) -> (Settings, Vec<Resolution>) {
    let mut resolved = settings.clone();
    let mut resolutions = Vec::new();
    let mut asked: BTreeMap<Reference, Result<SecretValue, Unresolved>> = BTreeMap::new();
    for (setting, value) in settings.iter() {
        let (identifier, outcome) = match Reference::parse(value, suffix) {
            Ok(None) => continue,
            Ok(Some(reference)) => {
                let found = asked.entry(reference.clone()).or_insert_with_key(|reference| {
                    vaults.get(&reference.identifier).map_err(|error| Unresolved {
                        problem: error.to_string(),
                        is_definitive: error.is_definitive(),
                    })
                });
                if let Ok(secret) = found {
                    resolved.set(setting, &secret.value);
                }
                let outcome = found.as_ref().map(|secret| secret.version.clone());
                (reference.identifier, outcome.map_err(Clone::clone))
            }
            Err(problem) => {
                let problem = format!("the reference is malformed: {problem}");
                (String::new(), Err(Unresolved { problem, is_definitive: true }))
            }
        };
        resolutions.push(Resolution { setting: setting.to_owned(), identifier, outcome });
    }
    (resolved, resolutions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Option<String>, String> {
        let parsed = Reference::parse(value, "vault.azure.net")?;
        Ok(parsed.map(|reference| reference.identifier))
    }

    /// Both forms, in the spellings that are in use; and values that are none.
    #[test]
    fn forms() {
        let plain = "https://v.vault.azure.net/secrets/s";
        for (value, expected) in [
            ("@Microsoft.KeyVault(SecretUri=https://v.vault.azure.net/secrets/s)", plain),
            ("@microsoft.keyvault(secreturi=https://v.vault.azure.net/secrets/s/)", plain),
            (" @Microsoft.KeyVault( VaultName = v ; SecretName=s ) ", plain),
            ("@Microsoft.KeyVault(SecretName=s;VaultName=v;SecretVersion=)", plain),
            (
                "@Microsoft.KeyVault(VaultName=v;SecretName=s;SecretVersion=0a)",
                "https://v.vault.azure.net/secrets/s/0a",
            ),
        ] {
            assert_eq!(parse(value), Ok(Some(expected.to_owned())), "{value}");
        }
        for value in ["", "1", "@Microsoft.KeyVault", "x @Microsoft.KeyVault(SecretUri=y)", "ä"] {
            assert_eq!(parse(value), Ok(None), "{value}");
        }
    }

    /// What begins like a reference and is none.
    #[test]
    fn malformed() {
        for (value, words) in [
            ("@Microsoft.KeyVault(SecretUri=https://v/secrets/s", "end in )"),
            ("@Microsoft.KeyVault()", "no ="),
            ("@Microsoft.KeyVault(SecretUri=)", "write SecretUri"),
            ("@Microsoft.KeyVault(VaultName=v)", "write SecretUri"),
            ("@Microsoft.KeyVault(SecretUri=a;SecretUri=b)", "twice"),
            ("@Microsoft.KeyVault(SecretUri=a;VaultName=b)", "write SecretUri"),
            ("@Microsoft.KeyVault(SecretUri=a;SecretVersion=b)", "end that in /VERSION"),
            ("@Microsoft.KeyVault(SecretUri=a;Other=b)", "no part"),
            ("@Microsoft.KeyVault(VaultName=v.evil;SecretName=s)", "names of vaults"),
        ] {
            let error = parse(value).expect_err(value);
            assert!(error.contains(words), "{value}: {error}");
        }
    }
}
