//! Who may do what: access policies and role assignments, with the permissions, roles and scopes of
//! Key Vault, and the words in which it refuses. Pure: no I/O, no clock.
//!
//! A vault has one permission model at a time, as in Key Vault: with access policies a principal
//! has a list of permissions on all keys and one on all secrets; with roles (the default) it has
//! roles on the whole vault or on one object. What is not granted is denied; nothing denies what
//! is granted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::access::Object;
use super::route::{Kind, Permission};
use Permission::{
    Backup, Create, Decrypt, Delete, Encrypt, Get, GetRotationPolicy, Import, List, Purge, Recover,
    Restore, Rotate, Set, SetRotationPolicy, Sign, UnwrapKey, Update, Verify, WrapKey,
};

/// Most role assignments of a vault.
pub const ASSIGNMENTS_MAX: usize = 4000;
/// Most access policies of a vault (1024 in Key Vault).
pub const POLICIES_MAX: usize = 1024;

/// The permissions that objects of `kind` have.
pub fn permissions_of(kind: Kind) -> impl Iterator<Item = Permission> {
    let of_kind = move |(_, _, kinds): &&(Permission, &str, &[Kind])| kinds.contains(&kind);
    Permission::ALL.iter().filter(of_kind).map(|(permission, ..)| *permission)
}

/// The permission of that name, in any case, if objects of `kind` have it.
pub fn parse_permission(kind: Kind, name: &str) -> Option<Permission> {
    permissions_of(kind).find(|known| known.name().eq_ignore_ascii_case(name))
}

/// The data action of a role that allows it, without `Microsoft.KeyVault/vaults/`.
/// <https://learn.microsoft.com/azure/role-based-access-control/permissions/security>
fn action(kind: Kind, permission: Permission) -> &'static str {
    match (kind, permission) {
        (Kind::Key, Get | List) => "keys/read",
        (Kind::Key, Create) => "keys/create/action",
        (Kind::Key, Import) => "keys/import/action",
        (Kind::Key, Update | Set) => "keys/update/action",
        (Kind::Key, Delete) => "keys/delete",
        (Kind::Key, Recover) => "keys/recover/action",
        (Kind::Key, Purge) => "keys/purge/action",
        (Kind::Key, Backup) => "keys/backup/action",
        (Kind::Key, Restore) => "keys/restore/action",
        (Kind::Key, Encrypt) => "keys/encrypt/action",
        (Kind::Key, Decrypt) => "keys/decrypt/action",
        (Kind::Key, WrapKey) => "keys/wrap/action",
        (Kind::Key, UnwrapKey) => "keys/unwrap/action",
        (Kind::Key, Sign) => "keys/sign/action",
        (Kind::Key, Verify) => "keys/verify/action",
        (Kind::Key, Rotate) => "keys/rotate/action",
        (Kind::Key, GetRotationPolicy) => "keyrotationpolicies/read",
        (Kind::Key, SetRotationPolicy) => "keyrotationpolicies/write",
        (Kind::Secret, Get) => "secrets/getSecret/action",
        (Kind::Secret, List) => "secrets/readMetadata/action",
        (Kind::Secret, Update) => "secrets/update/action",
        (Kind::Secret, Delete) => "secrets/delete",
        (Kind::Secret, Recover) => "secrets/recover/action",
        (Kind::Secret, Purge) => "secrets/purge/action",
        (Kind::Secret, Backup) => "secrets/backup/action",
        (Kind::Secret, Restore) => "secrets/restore/action",
        (Kind::Secret, _) => "secrets/setSecret/action",
    }
}

/// Built-in roles, by the names of Key Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Everything.
    #[serde(rename = "Key Vault Administrator")]
    Administrator,
    /// Attributes and public parts, no secret values.
    #[serde(rename = "Key Vault Reader")]
    Reader,
    /// Everything about keys.
    #[serde(rename = "Key Vault Crypto Officer")]
    CryptoOfficer,
    /// All uses of keys.
    #[serde(rename = "Key Vault Crypto User")]
    CryptoUser,
    /// Reading, wrapping and unwrapping: what a volume needs.
    #[serde(rename = "Key Vault Crypto Service Encryption User")]
    CryptoServiceEncryptionUser,
    /// Everything about secrets.
    #[serde(rename = "Key Vault Secrets Officer")]
    SecretsOfficer,
    /// Reading secrets.
    #[serde(rename = "Key Vault Secrets User")]
    SecretsUser,
}

impl Role {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Administrator,
        Self::Reader,
        Self::CryptoOfficer,
        Self::CryptoUser,
        Self::CryptoServiceEncryptionUser,
        Self::SecretsOfficer,
        Self::SecretsUser,
    ];

    /// The name in Key Vault.
    pub fn name(self) -> &'static str {
        match self {
            Self::Administrator => "Key Vault Administrator",
            Self::Reader => "Key Vault Reader",
            Self::CryptoOfficer => "Key Vault Crypto Officer",
            Self::CryptoUser => "Key Vault Crypto User",
            Self::CryptoServiceEncryptionUser => "Key Vault Crypto Service Encryption User",
            Self::SecretsOfficer => "Key Vault Secrets Officer",
            Self::SecretsUser => "Key Vault Secrets User",
        }
    }

    /// The role of that name, in any case, with or without "Key Vault " before it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| {
            let full = role.name();
            full.eq_ignore_ascii_case(name)
                || full.strip_prefix("Key Vault ").is_some_and(|s| s.eq_ignore_ascii_case(name))
        })
    }

    /// Whether the role allows `permission` on objects of `kind`.
    pub fn allows(self, kind: Kind, permission: Permission) -> bool {
        if !permissions_of(kind).any(|known| known == permission) {
            return false;
        }
        match (self, kind) {
            (Self::Administrator, _)
            | (Self::CryptoOfficer, Kind::Key)
            | (Self::SecretsOfficer, Kind::Secret) => true,
            (Self::Reader, Kind::Key) => matches!(permission, Get | List | GetRotationPolicy),
            (Self::Reader, Kind::Secret) => permission == List,
            (Self::CryptoUser, Kind::Key) => matches!(
                permission,
                Get | List
                    | Update
                    | Backup
                    | Encrypt
                    | Decrypt
                    | WrapKey
                    | UnwrapKey
                    | Sign
                    | Verify
            ),
            (Self::CryptoServiceEncryptionUser, Kind::Key) => {
                matches!(permission, Get | List | WrapKey | UnwrapKey)
            }
            (Self::SecretsUser, Kind::Secret) => matches!(permission, Get | List),
            (
                Self::CryptoOfficer | Self::CryptoUser | Self::CryptoServiceEncryptionUser,
                Kind::Secret,
            )
            | (Self::SecretsOfficer | Self::SecretsUser, Kind::Key) => false,
        }
    }
}

/// Where a role holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// All objects, those to come included.
    Vault,
    /// One key, with all its versions.
    Key(String),
    /// One secret, with all its versions.
    Secret(String),
}

impl Scope {
    /// `/`, `/keys/NAME` or `/secrets/NAME`; names are compared without regard to case.
    pub fn parse(text: &str) -> Option<Self> {
        let path = text.strip_prefix('/')?;
        match path.split_once('/') {
            None if path.is_empty() => Some(Self::Vault),
            Some(("keys", name)) if is_object_name(name) => Some(Self::Key(name.to_lowercase())),
            Some(("secrets", name)) if is_object_name(name) => {
                Some(Self::Secret(name.to_lowercase()))
            }
            _ => None,
        }
    }

    fn covers(&self, target: &Object<'_>) -> bool {
        let is = |own: &str| target.name.is_some_and(|name| name.eq_ignore_ascii_case(own));
        match self {
            Self::Vault => true,
            Self::Key(own) => target.kind == Kind::Key && is(own),
            Self::Secret(own) => target.kind == Kind::Secret && is(own),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault => f.write_str("/"),
            Self::Key(name) => write!(f, "/keys/{name}"),
            Self::Secret(name) => write!(f, "/secrets/{name}"),
        }
    }
}

/// Key Vault's names of objects: 1 to 127 letters, digits and hyphens.
fn is_object_name(name: &str) -> bool {
    (1..=127).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Which of the two models decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Model {
    /// Role assignments.
    #[default]
    Rbac,
    /// Access policies.
    AccessPolicy,
}

/// The permissions of one principal on all keys and on all secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessPolicy {
    /// On keys.
    #[serde(with = "by_name")]
    pub keys: BTreeSet<Permission>,
    /// On secrets.
    #[serde(with = "by_name")]
    pub secrets: BTreeSet<Permission>,
}

/// Permissions are stored by name.
mod by_name {
    use std::collections::BTreeSet;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::Permission;

    pub fn serialize<S: Serializer>(
        permissions: &BTreeSet<Permission>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(permissions.iter().map(|permission| permission.name()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<Permission>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let find = |name: &String| {
            let found = Permission::ALL.iter().find(|(_, known, _)| known == name);
            found.map(|(permission, ..)| *permission)
        };
        let all = names.iter().map(find).collect::<Option<_>>();
        all.ok_or_else(|| serde::de::Error::custom("an unknown permission"))
    }
}

/// A role of a principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// UUID.
    pub id: String,
    /// Object id of the identity.
    pub principal: String,
    /// The role.
    pub role: Role,
    /// Where it holds.
    pub scope: Scope,
}

/// Everything that was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// Which of the two counts.
    pub model: Model,
    /// By object id of the identity.
    pub access: BTreeMap<String, AccessPolicy>,
    /// In the order they were made.
    pub assignments: Vec<Assignment>,
}

/// A refusal: the inner code and the action or permission that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    model: Model,
    permission: Permission,
    kind: Kind,
    name: Option<String>,
    anywhere: bool,
}

impl Denial {
    /// `innererror.code`.
    pub fn inner_code(&self) -> &'static str {
        match self.model {
            Model::Rbac => "ForbiddenByRbac",
            Model::AccessPolicy => "ForbiddenByPolicy",
        }
    }

    /// The message for the caller: who, what is missing where, and who could grant it.
    pub fn message(&self, caller: &str, vault: &str) -> String {
        let (permission, kind) = (self.permission, self.kind);
        if self.model == Model::AccessPolicy {
            return format!(
                "The application '{caller}' does not have {} {} permission on key vault \
                 '{vault}'. Grant it with: atrest vault policy set",
                kind.collection(),
                permission.name().to_lowercase(),
            );
        }
        let resource = match &self.name {
            Some(name) => format!("/{}/{name}", kind.collection()),
            None => "/".to_owned(),
        };
        let assignment = match self.anywhere {
            true => "(there are some, without this action or of another scope)",
            false => "(not found)",
        };
        format!(
            "Caller is not authorized to perform action on resource.\r\nCaller: {caller}\r\n\
             Action: 'Microsoft.KeyVault/vaults/{}'\r\nResource: '{resource}'\r\n\
             Assignment: {assignment}\r\nVault: {vault}\r\n\
             Grant it with: atrest vault policy assign",
            action(kind, permission),
        )
    }
}

impl Policies {
    /// Whether the identity with this object id may do `permission` on `target`.
    ///
    /// # Errors
    /// [`Denial`], with what is missing.
    pub fn check(
        &self,
        object_id: &str,
        permission: Permission,
        target: &Object<'_>,
    ) -> Result<(), Denial> {
        let (granted, anywhere) = match self.model {
            Model::AccessPolicy => {
                let policy = self.access.get(object_id);
                let granted = policy.is_some_and(|policy| match target.kind {
                    Kind::Key => policy.keys.contains(&permission),
                    Kind::Secret => policy.secrets.contains(&permission),
                });
                (granted, policy.is_some())
            }
            Model::Rbac => {
                let own = || self.assignments.iter().filter(|a| a.principal == object_id);
                let granted = own().any(|assignment| {
                    assignment.role.allows(target.kind, permission)
                        && assignment.scope.covers(target)
                });
                (granted, own().next().is_some())
            }
        };
        if granted {
            return Ok(());
        }
        let name = target.name.map(str::to_owned);
        Err(Denial { model: self.model, permission, kind: target.kind, name, anywhere })
    }

    /// Removes all that was granted to an identity; returns whether there was anything.
    pub fn forget(&mut self, object_id: &str) -> bool {
        let before = self.assignments.len();
        self.assignments.retain(|assignment| assignment.principal != object_id);
        self.access.remove(object_id).is_some() || self.assignments.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Object<'static> = object(Kind::Key, Some("kek"));
    const KEYS: Object<'static> = object(Kind::Key, None);
    const SECRET: Object<'static> = object(Kind::Secret, Some("kek"));

    const fn object(kind: Kind, name: Option<&'static str>) -> Object<'static> {
        Object { kind, name, version: None }
    }

    fn assigned(role: Role, scope: Scope) -> Policies {
        let assignment = Assignment { id: "1".into(), principal: "alice".into(), role, scope };
        Policies { assignments: vec![assignment], ..Policies::default() }
    }

    /// Nothing is allowed to whom nothing was granted, in either model.
    #[test]
    fn default_denies_everything() {
        for model in [Model::Rbac, Model::AccessPolicy] {
            let policies = Policies { model, ..Policies::default() };
            for kind in [Kind::Key, Kind::Secret] {
                for permission in permissions_of(kind) {
                    let target = object(kind, Some("x"));
                    assert!(policies.check("alice", permission, &target).is_err());
                }
            }
        }
    }

    /// Each role, written out: what it allows on keys and on secrets is exactly this.
    #[test]
    fn roles() {
        let names = |role: Role, kind: Kind| {
            let allowed = permissions_of(kind).filter(|o| role.allows(kind, *o));
            allowed.map(|o| o.name()).collect::<Vec<_>>().join(" ")
        };
        let all_keys = "get list update create import delete recover purge backup restore wrapKey \
            unwrapKey encrypt decrypt sign verify rotate getrotationpolicy setrotationpolicy";
        let all_secrets = "get list set delete recover purge backup restore";
        for (role, keys, secrets) in [
            (Role::Administrator, all_keys, all_secrets),
            (Role::CryptoOfficer, all_keys, ""),
            (Role::SecretsOfficer, "", all_secrets),
            (Role::Reader, "get list getrotationpolicy", "list"),
            (
                Role::CryptoUser,
                "get list update backup wrapKey unwrapKey encrypt decrypt sign verify",
                "",
            ),
            (Role::CryptoServiceEncryptionUser, "get list wrapKey unwrapKey", ""),
            (Role::SecretsUser, "", "get list"),
        ] {
            assert_eq!(names(role, Kind::Key), keys, "{}", role.name());
            assert_eq!(names(role, Kind::Secret), secrets, "{}", role.name());
            assert_eq!(Role::parse(role.name()), Some(role));
            assert_eq!(Role::parse(&role.name()[10..].to_uppercase()), Some(role));
            let json = serde_json::to_string(&role).expect("a string");
            assert_eq!(json, format!("{:?}", role.name()));
        }
        assert!(!Role::Administrator.allows(Kind::Secret, Permission::UnwrapKey));
        assert_eq!(Role::parse("Owner"), None);
    }

    /// A role on one key is for that key, in any case of letters, and neither lists the vault nor
    /// opens a secret of the same name; and it is nobody else's.
    #[test]
    fn scopes() {
        let policies = assigned(Role::Administrator, Scope::Key("kek".into()));
        let upper = object(Kind::Key, Some("KEK"));
        let other = object(Kind::Key, Some("kek2"));
        assert_eq!(policies.check("alice", Permission::UnwrapKey, &KEY), Ok(()));
        assert_eq!(policies.check("alice", Permission::UnwrapKey, &upper), Ok(()));
        for target in [other, KEYS, SECRET] {
            let denial = policies.check("alice", Permission::List, &target).expect_err("elsewhere");
            assert_eq!(denial.inner_code(), "ForbiddenByRbac");
            assert!(denial.message("a", "v").contains("there are some"), "{denial:?}");
        }
        let denial = policies.check("bob", Permission::UnwrapKey, &KEY).expect_err("not granted");
        let message = denial.message("appid=1;oid=2", "contoso");
        for part in ["appid=1;oid=2", "keys/unwrap/action", "/keys/kek", "(not found)", "contoso"] {
            assert!(message.contains(part), "{message}");
        }
        let policies = assigned(Role::SecretsUser, Scope::Vault);
        assert_eq!(policies.check("alice", Permission::List, &SECRET), Ok(()));
        assert!(policies.check("alice", Permission::List, &KEYS).is_err());
    }

    /// Only the model that is switched on counts.
    #[test]
    fn models_do_not_add_up() {
        let mut policies = assigned(Role::CryptoUser, Scope::Vault);
        let secrets = [Permission::Get].into();
        policies.access.insert("alice".into(), AccessPolicy { secrets, ..Default::default() });
        assert_eq!(policies.check("alice", Permission::Get, &KEY), Ok(()));
        assert!(policies.check("alice", Permission::Get, &SECRET).is_err());
        policies.model = Model::AccessPolicy;
        assert_eq!(policies.check("alice", Permission::Get, &SECRET), Ok(()));
        let denial =
            policies.check("alice", Permission::Get, &KEY).expect_err("no policy for keys");
        assert_eq!(denial.inner_code(), "ForbiddenByPolicy");
        assert!(denial.message("a", "v").contains("keys get permission on key vault 'v'"));
        assert!(policies.forget("alice") && !policies.forget("alice"));
        assert!(policies.check("alice", Permission::Get, &SECRET).is_err());
        policies.model = Model::Rbac;
        assert!(policies.check("alice", Permission::Get, &KEY).is_err());
    }

    /// Permissions are found by name in any case, and only where they exist; each has an action.
    #[test]
    fn permission_names() {
        for kind in [Kind::Key, Kind::Secret] {
            for permission in permissions_of(kind) {
                assert_eq!(parse_permission(kind, permission.name()), Some(permission));
                let prefix = if kind == Kind::Key { "key" } else { "secrets/" };
                assert!(action(kind, permission).starts_with(prefix));
            }
        }
        assert_eq!(parse_permission(Kind::Key, "UNWRAPKEY"), Some(Permission::UnwrapKey));
        assert_eq!(parse_permission(Kind::Secret, "unwrapKey"), None);
        assert_eq!(parse_permission(Kind::Key, "set"), None);
        assert_eq!(parse_permission(Kind::Key, "all"), None);
        let policy = AccessPolicy {
            keys: permissions_of(Kind::Key).collect(),
            secrets: permissions_of(Kind::Secret).collect(),
        };
        let json = serde_json::to_string(&policy).expect("names");
        assert_eq!(serde_json::from_str::<AccessPolicy>(&json).expect("the same"), policy);
        let unknown = json.replace("unwrapKey", "unwrap");
        assert!(serde_json::from_str::<AccessPolicy>(&unknown).is_err());
    }

    /// Scopes have one spelling, and come back from it.
    #[test]
    fn scope_names() {
        for text in ["/", "/keys/kek", "/secrets/a-1"] {
            assert_eq!(Scope::parse(text).expect("a scope").to_string(), text);
        }
        assert_eq!(Scope::parse("/keys/KEK"), Some(Scope::Key("kek".into())));
        for text in ["", "keys/kek", "/keys", "/keys/", "/keys/a/b", "/keys/a b", "/x/a", "//"] {
            assert_eq!(Scope::parse(text), None, "{text}");
        }
    }
}
