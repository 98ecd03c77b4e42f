//! Secrets of a vault, for whom a setting refers to one. They are had as keys are: the same
//! challenge, identities, trust and errors.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::Operation;
use super::identity::Variables;
use super::uri::ObjectId;
use super::{AzureProvider, KekError, KekErrorKind};
use crate::key::ProviderOptions;

/// Domains in which every vault is one of Azure's: a token for them opens nothing elsewhere.
const AZURE_DOMAINS: &[&str] = &["vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net"];

/// A secret's value, which is wiped when dropped.
pub struct SecretValue {
    /// The value.
    pub value: Zeroizing<String>,
    /// Which version it is of.
    pub version: String,
}

/// Why there is no value. `Display` says which secret of which vault, who asked, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("the secret {name} of {vault}{}: {}", self.identity(), self.problem())]
pub struct SecretError {
    vault: String,
    name: String,
    asked_as: Option<String>,
    kind: KekErrorKind,
}

impl SecretError {
    /// Whether the vault decided it: another try gives the same until somebody changes something
    /// there or here. Else it could not be asked.
    pub fn is_definitive(&self) -> bool {
        !matches!(self.kind, KekErrorKind::Throttled { .. } | KekErrorKind::Unreachable { .. })
    }

    fn identity(&self) -> String {
        self.asked_as.as_ref().map(|who| format!(" (asked for by {who})")).unwrap_or_default()
    }

    fn problem(&self) -> String {
        match &self.kind {
            KekErrorKind::Denied { reason } => format!("access is denied: {reason}"),
            KekErrorKind::Disabled => "it is disabled; enable it, or another version".to_owned(),
            KekErrorKind::Gone { recoverable: true } => {
                "it is deleted; it can be recovered".to_owned()
            }
            KekErrorKind::Gone { recoverable: false } => {
                "it does not exist; check its name and version".to_owned()
            }
            other => other.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct SecretReply<'a> {
    // Borrowed unless something in it is escaped.
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// The value of `https://HOST/secrets/NAME[/VERSION]`; without a version, of the newest one.
///
/// Vaults of Azure's domains may be asked; any other one if `options` authorise
/// `azure:https://HOST/…`. How it is reached, and as whom, is as for keys.
///
/// # Errors
/// [`SecretError`].
pub fn get_secret(identifier: &str, options: &ProviderOptions) -> Result<SecretValue, SecretError> {
    let process = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    get_secret_as(identifier, options, Arc::new(process))
}

fn get_secret_as(
    identifier: &str,
    options: &ProviderOptions,
    variables: Variables,
) -> Result<SecretValue, SecretError> {
    let refused = |kind| SecretError {
        vault: "its vault".to_owned(),
        name: identifier.to_owned(),
        asked_as: None,
        kind,
    };
    let id = ObjectId::secret(identifier).map_err(|problem| {
        let problem = format!("this is not the identifier of a secret: {problem}");
        refused(KekErrorKind::Configuration { problem })
    })?;
    let failed = |kind, asked_as| SecretError {
        vault: id.vault.to_string(),
        name: id.name.clone(),
        asked_as,
        kind,
    };
    let uri = format!("azure:{}", id.unversioned());
    let permitted = is_azure(id.vault.host())
        || options.authorization.permits(&uri)
        || options.providers.permits(&uri).map_err(|error| failed(error.kind, None))?;
    if !permitted {
        let problem = format!(
            "this host does not authorise that vault; if it should, allow it with --allow-kek \
             azure:{}/, or in /etc/atrest/providers.toml",
            id.vault
        );
        return Err(failed(KekErrorKind::Configuration { problem }, None));
    }
    let provider = AzureProvider::of_object(&uri, id.clone(), options, variables)
        .map_err(|error| failed(error.kind, None))?;
    provider.secret().map_err(|error| failed(error.kind, provider.identity.asked_as()))
}

fn is_azure(host: &str) -> bool {
    let below = |domain: &&str| host.strip_suffix(*domain).is_some_and(|name| name.ends_with('.'));
    AZURE_DOMAINS.iter().any(below)
}

impl AzureProvider {
    /// The value of the secret that this one is for.
    fn secret(&self) -> Result<SecretValue, KekError> {
        let pinned = self.key.version.as_deref().unwrap_or_default();
        let deadline = self.client.deadline();
        let reply = self.ask(Operation::GetSecret, pinned, &[], None, deadline)?;
        let parsed: SecretReply =
            reply.json().map_err(|error| error.into_kek(&self.uri, &self.key.unversioned()))?;
        let id = ObjectId::secret(&parsed.id).ok().filter(|id| id.is_same_object(&self.key));
        let version = id.and_then(|id| id.version);
        let version = version.filter(|version| pinned.is_empty() || version == pinned);
        let Some(version) = version else {
            let reason =
                "the vault answers for another secret or version than was asked".to_owned();
            return Err(self.error(KekErrorKind::Unreachable { reason }, pinned));
        };
        Ok(SecretValue { value: Zeroizing::new(parsed.value.into_owned()), version })
    }
}
