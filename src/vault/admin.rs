//! The operator's commands on identities, policies, firewall, limits and settings: one request,
//! `POST /access`, with a command as JSON. Only the operator's socket leads here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use hyper::Method;
use jsonwebtoken::jwk::JwkSet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::audit::Event;
use super::authority::{Authority, State, event_of, roll_over, unix_now};
use super::error::ApiError;
use super::firewall::RuleError;
use super::identity::{
    DirectoryError, FederatedCredential, Identity, IdentityKind, KeySource, NewSecret, PublicKey,
};
use super::policy::{self, ASSIGNMENTS_MAX, AccessPolicy, Assignment, Model, Role, Scope};
use super::ratelimit::Rate;
use super::request::{Reply, Request, random_id};
use super::route::{Kind, Permission};
use super::store::StoreError;
use super::token::{LIFETIME_MAX, TokenError};

/// Path of the commands.
pub const PATH: &str = "/access";

/// What the operator can ask for. `which`: name, client id or object id of an identity. Not
/// `Debug`: one of them has a token.
#[derive(Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Command {
    IdentityCreate {
        name: String,
        managed: bool,
    },
    IdentityList,
    IdentityShow {
        which: String,
    },
    IdentityDelete {
        which: String,
    },
    IdentityEnable {
        which: String,
        enabled: bool,
    },
    /// Refuses all tokens that the identity has.
    IdentityRevoke {
        which: String,
    },
    /// A client secret; `expires_in` in seconds.
    SecretAdd {
        which: String,
        name: String,
        expires_in: Option<u64>,
    },
    CertificateAdd {
        which: String,
        name: String,
        key: PublicKey,
        expires_in: Option<u64>,
    },
    FederatedAdd {
        which: String,
        name: String,
        issuer: String,
        subject: String,
        audience: String,
        keys: Option<JwkSet>,
        key_file: Option<PathBuf>,
    },
    HostBindSecret {
        which: String,
        host: String,
        expires_in: Option<u64>,
    },
    HostBindAddress {
        which: String,
        host: String,
        network: String,
    },
    /// Removes a credential or host by its id or only name.
    CredentialRemove {
        which: String,
        id: String,
    },
    PolicyShow,
    PolicyModel {
        model: Model,
    },
    /// Names of operations; `all` is all of them. Empty lists take everything away.
    PolicySet {
        which: String,
        keys: Vec<String>,
        secrets: Vec<String>,
    },
    PolicyAssign {
        which: String,
        role: String,
        scope: String,
    },
    PolicyUnassign {
        which: String,
        role: String,
        scope: String,
    },
    FirewallShow,
    FirewallEnable {
        enabled: bool,
    },
    FirewallAllow {
        network: String,
    },
    FirewallRemove {
        network: String,
    },
    LimitsShow,
    LimitsSet {
        vault: Option<Rate>,
        identity: Option<Rate>,
    },
    SettingsShow,
    SettingsSet {
        authority: Option<String>,
        resources: Option<Vec<String>>,
        token_lifetime: Option<u64>,
    },
    /// A new key signs tokens from now on.
    SigningKeyRotate,
    /// Refuses one token.
    TokenRevoke {
        token: String,
    },
}

impl Command {
    /// Its name in the audit log.
    fn operation(&self) -> &'static str {
        match self {
            Self::IdentityCreate { .. } => "VaultIdentityCreate",
            Self::IdentityList => "VaultIdentityList",
            Self::IdentityShow { .. } => "VaultIdentityGet",
            Self::IdentityDelete { .. } => "VaultIdentityDelete",
            Self::IdentityEnable { .. } => "VaultIdentityUpdate",
            Self::IdentityRevoke { .. } => "VaultIdentityRevoke",
            Self::SecretAdd { .. }
            | Self::CertificateAdd { .. }
            | Self::FederatedAdd { .. }
            | Self::HostBindSecret { .. }
            | Self::HostBindAddress { .. } => "VaultCredentialCreate",
            Self::CredentialRemove { .. } => "VaultCredentialDelete",
            Self::PolicyShow => "VaultPolicyGet",
            Self::PolicyModel { .. }
            | Self::PolicySet { .. }
            | Self::PolicyAssign { .. }
            | Self::PolicyUnassign { .. } => "VaultPolicyUpdate",
            Self::FirewallShow => "VaultFirewallGet",
            Self::FirewallEnable { .. }
            | Self::FirewallAllow { .. }
            | Self::FirewallRemove { .. } => "VaultFirewallUpdate",
            Self::LimitsShow | Self::SettingsShow => "VaultSettingsGet",
            Self::LimitsSet { .. } | Self::SettingsSet { .. } => "VaultSettingsUpdate",
            Self::SigningKeyRotate => "VaultSigningKeyRotate",
            Self::TokenRevoke { .. } => "VaultTokenRevoke",
        }
    }

    /// Whom it is about.
    fn which(&self) -> Option<&str> {
        match self {
            Self::IdentityCreate { name, .. } => Some(name),
            Self::IdentityShow { which }
            | Self::IdentityDelete { which }
            | Self::IdentityEnable { which, .. }
            | Self::IdentityRevoke { which }
            | Self::SecretAdd { which, .. }
            | Self::CertificateAdd { which, .. }
            | Self::FederatedAdd { which, .. }
            | Self::HostBindSecret { which, .. }
            | Self::HostBindAddress { which, .. }
            | Self::CredentialRemove { which, .. }
            | Self::PolicySet { which, .. }
            | Self::PolicyAssign { which, .. }
            | Self::PolicyUnassign { which, .. } => Some(which),
            _ => None,
        }
    }
}

/// Why a command was refused.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// About an identity.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// About a network.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// About a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Something else that was typed.
    #[error("{0}")]
    Value(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Store(error) => error.into(),
            CommandError::Directory(
                error @ (DirectoryError::NotFound(_) | DirectoryError::NoCredential(_)),
            ) => Self::not_found("IdentityNotFound", error.to_string()),
            CommandError::Directory(error @ DirectoryError::Exists(_)) => {
                Self::conflict("IdentityExists", error.to_string())
            }
            error => Self::bad_parameter(error.to_string()),
        }
    }
}

/// Does what the operator asks, and records it.
pub(super) fn handle(
    authority: &Arc<Authority>,
    request: &Request,
) -> Option<Result<Reply, ApiError>> {
    if request.path != PATH {
        return None;
    }
    if request.method != Method::POST {
        return Some(Err(ApiError::new(405, "MethodNotAllowed", "commands are posted")));
    }
    let started = Instant::now();
    let command = match request.json::<Command>() {
        Ok(command) => command,
        Err(error) => return Some(Err(error)),
    };
    let result = perform(authority, &command);
    let (status, error) = match &result {
        Ok(_) => (200, None),
        Err(error) => (error.status, Some((error.code, error.inner))),
    };
    let recorded = authority.record(&Event {
        operation: command.operation(),
        status,
        error,
        duration: started.elapsed(),
        caller: Some("operator"),
        id: command.which(),
        ..event_of(request, "")
    });
    Some(match recorded {
        Ok(()) => result.map(|value| Reply::json(200, &value)),
        Err(error) => {
            log::error!("{error}: {:?}", std::error::Error::source(&error));
            Err(ApiError::internal())
        }
    })
}

fn perform(authority: &Arc<Authority>, command: &Command) -> Result<Value, ApiError> {
    let state = authority.state();
    let shown = match command {
        Command::IdentityList => json!(state.directory.iter().map(summary).collect::<Vec<_>>()),
        Command::IdentityShow { which } => {
            let identity = state.directory.find(which).map_err(CommandError::from)?;
            let mut shown = json!(identity);
            shown["roles"] = json!(grants(&state, identity));
            redact(&mut shown);
            shown
        }
        Command::PolicyShow => policies(&state),
        Command::FirewallShow => json!(state.settings.firewall),
        Command::LimitsShow => json!(state.settings.limits),
        Command::SettingsShow => json!({
            "tenant": state.settings.tenant,
            "authority": state.settings.authority,
            "resources": state.settings.resources,
            "token_lifetime": state.settings.token_lifetime,
            "signing_keys": state.keys.list(),
        }),
        _ => authority.change(|state| edit(state, command, unix_now()))?,
    };
    Ok(shown)
}

/// What a listing shows.
fn summary(identity: &Identity) -> Value {
    json!({
        "name": identity.name, "client_id": identity.client_id, "object_id": identity.object_id,
        "kind": identity.kind, "enabled": identity.enabled, "created": identity.created,
        "secrets": identity.secrets.len(), "certificates": identity.certificates.len(),
        "federated": identity.federated.len(), "hosts": identity.hosts.len(),
    })
}

/// Digests are of no use to people.
fn redact(shown: &mut Value) {
    match shown {
        Value::Object(fields) => {
            fields.remove("digest");
            fields.values_mut().for_each(redact);
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

fn grants(state: &State, identity: &Identity) -> Vec<Value> {
    let own = |a: &&Assignment| a.principal == identity.object_id;
    let shown = |a: &Assignment| json!({ "role": a.role, "scope": a.scope.to_string() });
    state.policies.assignments.iter().filter(own).map(shown).collect()
}

fn policies(state: &State) -> Value {
    let name = |object_id: &str| {
        state.directory.by_object_id(object_id).map(|identity| identity.name.clone())
    };
    let assignments = state.policies.assignments.iter().map(|a| {
        json!({
            "identity": name(&a.principal), "object_id": a.principal, "role": a.role,
            "scope": a.scope.to_string(),
        })
    });
    let access = state.policies.access.iter().map(|(object_id, policy)| {
        json!({
            "identity": name(object_id), "object_id": object_id,
            "keys": json!(policy)["keys"], "secrets": json!(policy)["secrets"],
        })
    });
    json!({
        "model": state.policies.model,
        "assignments": assignments.collect::<Vec<_>>(),
        "access_policies": access.collect::<Vec<_>>(),
    })
}

/// A command that changes something; returns what is to be shown.
fn edit(state: &mut State, command: &Command, now: u64) -> Result<Value, CommandError> {
    match command {
        Command::PolicyModel { .. }
        | Command::PolicySet { .. }
        | Command::PolicyAssign { .. }
        | Command::PolicyUnassign { .. } => edit_policies(state, command),
        Command::FirewallEnable { .. }
        | Command::FirewallAllow { .. }
        | Command::FirewallRemove { .. }
        | Command::LimitsSet { .. }
        | Command::SettingsSet { .. } => edit_settings(state, command),
        Command::SigningKeyRotate => {
            roll_over(state, now)?;
            Ok(json!(state.keys.list()))
        }
        Command::TokenRevoke { token } => {
            let (claims, _) = state.verify(token, now)?;
            if !state.revocations.revoke(&claims, now) {
                let problem = "too many single tokens are revoked; revoke those of identities";
                return Err(CommandError::Value(problem.into()));
            }
            Ok(json!({ "jti": claims.jti }))
        }
        _ => edit_identity(state, command, now),
    }
}

fn edit_identity(state: &mut State, command: &Command, now: u64) -> Result<Value, CommandError> {
    let at = |seconds: &Option<u64>| seconds.map(|seconds| now.saturating_add(seconds));
    let shown = |secret: NewSecret| json!({ "id": secret.id, "secret": *secret.value });
    let directory = &mut state.directory;
    Ok(match command {
        Command::IdentityCreate { name, managed } => {
            let kind = match managed {
                true => IdentityKind::Managed,
                false => IdentityKind::ServicePrincipal,
            };
            summary(directory.create(name, kind, now)?)
        }
        Command::IdentityDelete { which } => {
            let removed = directory.remove(which)?;
            state.policies.forget(&removed.object_id);
            summary(&removed)
        }
        Command::IdentityEnable { which, enabled } => {
            let identity = directory.find_mut(which)?;
            identity.enabled = *enabled;
            summary(identity)
        }
        Command::IdentityRevoke { which } => {
            let identity = directory.find_mut(which)?;
            identity.revoke_tokens();
            summary(identity)
        }
        Command::SecretAdd { which, name, expires_in } => {
            let identity = directory.find_mut(which)?;
            let client_id = identity.client_id.clone();
            let mut value = shown(identity.add_secret(name, now, at(expires_in))?);
            value["client_id"] = json!(client_id);
            value["tenant"] = json!(state.settings.tenant);
            value
        }
        Command::CertificateAdd { which, name, key, expires_in } => {
            let identity = directory.find_mut(which)?;
            json!({ "id": identity.add_certificate(name, &key.0, now, at(expires_in))? })
        }
        Command::FederatedAdd { which, name, issuer, subject, audience, keys, key_file } => {
            let keys = match (keys, key_file) {
                (Some(keys), None) => KeySource::Inline(keys.clone()),
                (None, Some(path)) => KeySource::File(path.clone()),
                _ => return Err(CommandError::Value("give the keys, or a file of them".into())),
            };
            let credential = FederatedCredential {
                id: String::new(),
                name: name.clone(),
                issuer: issuer.clone(),
                subject: subject.clone(),
                audience: audience.clone(),
                keys,
            };
            json!({ "id": directory.find_mut(which)?.add_federated(credential)? })
        }
        Command::HostBindSecret { which, host, expires_in } => {
            shown(directory.find_mut(which)?.bind_secret(host, now, at(expires_in))?)
        }
        Command::HostBindAddress { which, host, network } => {
            let network = super::firewall::parse_network(network)?;
            json!({ "id": directory.find_mut(which)?.bind_address(host, network)? })
        }
        Command::CredentialRemove { which, id } => {
            let identity = directory.find_mut(which)?;
            identity.remove_credential(id)?;
            summary(identity)
        }
        _ => return Err(CommandError::Value("this command changes nothing".into())),
    })
}

fn edit_policies(state: &mut State, command: &Command) -> Result<Value, CommandError> {
    match command {
        Command::PolicyModel { model } => state.policies.model = *model,
        Command::PolicySet { which, keys, secrets } => {
            let object_id = state.directory.find(which)?.object_id.clone();
            let keys = permissions(Kind::Key, keys)?;
            let secrets = permissions(Kind::Secret, secrets)?;
            if keys.is_empty() && secrets.is_empty() {
                state.policies.access.remove(&object_id);
            } else {
                state.policies.access.insert(object_id, AccessPolicy { keys, secrets });
            }
            if state.policies.access.len() > policy::POLICIES_MAX {
                return Err(CommandError::Value("there are too many access policies".into()));
            }
        }
        Command::PolicyAssign { which, role, scope } => {
            let (principal, role, scope) = assignment(state, which, role, scope)?;
            let assignments = &mut state.policies.assignments;
            let same =
                |a: &Assignment| a.principal == principal && a.role == role && a.scope == scope;
            if !assignments.iter().any(same) {
                if assignments.len() >= ASSIGNMENTS_MAX {
                    return Err(CommandError::Value("there are too many role assignments".into()));
                }
                assignments.push(Assignment { id: random_id(), principal, role, scope });
            }
        }
        Command::PolicyUnassign { which, role, scope } => {
            let (principal, role, scope) = assignment(state, which, role, scope)?;
            let assignments = &mut state.policies.assignments;
            let before = assignments.len();
            assignments
                .retain(|a| !(a.principal == principal && a.role == role && a.scope == scope));
            if assignments.len() == before {
                let problem = "there is no such assignment; see: atrest vault policy show";
                return Err(CommandError::Value(problem.into()));
            }
        }
        _ => {}
    }
    Ok(policies(state))
}

fn assignment(
    state: &State,
    which: &str,
    role: &str,
    scope: &str,
) -> Result<(String, Role, Scope), CommandError> {
    let principal = state.directory.find(which)?.object_id.clone();
    let role = Role::parse(role).ok_or_else(|| {
        let names: Vec<_> = Role::ALL.iter().map(|role| role.name()).collect();
        CommandError::Value(format!("there is no role {role:?}; there are: {}", names.join(", ")))
    })?;
    let scope = Scope::parse(scope).ok_or_else(|| {
        CommandError::Value(format!("{scope:?} is no scope; write /, /keys/NAME or /secrets/NAME"))
    })?;
    Ok((principal, role, scope))
}

fn permissions(kind: Kind, names: &[String]) -> Result<BTreeSet<Permission>, CommandError> {
    if names.iter().any(|name| name.eq_ignore_ascii_case("all")) {
        return Ok(policy::permissions_of(kind).collect());
    }
    let find = |name: &String| {
        policy::parse_permission(kind, name).ok_or_else(|| {
            let known: Vec<_> = policy::permissions_of(kind).map(|known| known.name()).collect();
            let (kind, known) = (kind.collection(), known.join(", "));
            CommandError::Value(format!("{kind} have no permission {name:?}; they have: {known}"))
        })
    };
    names.iter().map(find).collect()
}

fn edit_settings(state: &mut State, command: &Command) -> Result<Value, CommandError> {
    let settings = &mut state.settings;
    match command {
        Command::FirewallEnable { enabled } => settings.firewall.enabled = *enabled,
        Command::FirewallAllow { network } => _ = settings.firewall.add(network)?,
        Command::FirewallRemove { network } => {
            let removed = settings.firewall.remove(network)?;
            if !removed {
                let problem = format!("{network} is not in the list");
                return Err(CommandError::Value(problem));
            }
        }
        Command::LimitsSet { vault, identity } => {
            if ![vault, identity].into_iter().flatten().all(|rate| rate.is_valid()) {
                let problem = "a rate is not negative, a burst at least 1";
                return Err(CommandError::Value(problem.into()));
            }
            settings.limits.vault = vault.unwrap_or(settings.limits.vault);
            settings.limits.identity = identity.unwrap_or(settings.limits.identity);
            return Ok(json!(settings.limits));
        }
        Command::SettingsSet { authority, resources, token_lifetime } => {
            if let Some(authority) = authority {
                settings.authority = match authority.as_str() {
                    "" => None,
                    _ => Some(origin(authority)?),
                };
            }
            if let Some(resources) = resources {
                if resources.is_empty() || resources.len() > 16 {
                    return Err(CommandError::Value("name 1 to 16 resources".into()));
                }
                settings.resources =
                    resources.iter().map(|one| origin(one)).collect::<Result<_, _>>()?;
            }
            if let Some(lifetime) = token_lifetime {
                if !(60..=LIFETIME_MAX).contains(lifetime) {
                    let problem = format!("tokens live 60 to {LIFETIME_MAX} seconds");
                    return Err(CommandError::Value(problem));
                }
                settings.token_lifetime = *lifetime;
            }
            return Ok(json!({
                "tenant": settings.tenant, "authority": settings.authority,
                "resources": settings.resources, "token_lifetime": settings.token_lifetime,
            }));
        }
        _ => {}
    }
    Ok(json!(settings.firewall))
}

/// `https://HOST[:PORT]`, without anything after it.
fn origin(text: &str) -> Result<String, CommandError> {
    let text = text.trim_end_matches('/');
    let host = text.strip_prefix("https://").filter(|host| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b);
        (1..=255).contains(&host.len()) && host.bytes().all(allowed)
    });
    match host {
        Some(_) => Ok(text.to_ascii_lowercase()),
        None => Err(CommandError::Value(format!("{text:?} is not of the form https://HOST"))),
    }
}

#[cfg(test)]
mod tests;
