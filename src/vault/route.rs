//! Which operation a method and path ask for.
//!
//! Paths as the SDKs send them: the version may be left out, be an empty segment
//! (`/keys/k//wrapkey`) or leave a trailing slash (`/keys/k/`); all mean the current version.

use hyper::Method;

use super::error::ApiError;
use super::request::Request;

/// API versions that are answered, all in the same way.
pub const API_VERSIONS: &[&str] = &[
    "7.0",
    "7.1",
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "2025-07-01",
    "2026-03-01-preview",
    "2026-04-01",
];

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keys.
    Key,
    /// Secrets.
    Secret,
}

impl Kind {
    /// The collection's path: `keys` or `secrets`.
    pub fn collection(self) -> &'static str {
        match self {
            Self::Key => "keys",
            Self::Secret => "secrets",
        }
    }
}

/// What a policy grants. The names are Key Vault's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Permission {
    Get,
    List,
    Update,
    Create,
    Import,
    Set,
    Delete,
    Recover,
    Purge,
    Backup,
    Restore,
    WrapKey,
    UnwrapKey,
    Encrypt,
    Decrypt,
    Sign,
    Verify,
    Rotate,
    GetRotationPolicy,
    SetRotationPolicy,
}

impl Permission {
    /// Every permission, with its name in an access policy, and of which kinds of objects it is.
    pub const ALL: &[(Self, &str, &[Kind])] = {
        use Kind::{Key, Secret};
        &[
            (Self::Get, "get", &[Key, Secret]),
            (Self::List, "list", &[Key, Secret]),
            (Self::Update, "update", &[Key]),
            (Self::Create, "create", &[Key]),
            (Self::Import, "import", &[Key]),
            (Self::Set, "set", &[Secret]),
            (Self::Delete, "delete", &[Key, Secret]),
            (Self::Recover, "recover", &[Key, Secret]),
            (Self::Purge, "purge", &[Key, Secret]),
            (Self::Backup, "backup", &[Key, Secret]),
            (Self::Restore, "restore", &[Key, Secret]),
            (Self::WrapKey, "wrapKey", &[Key]),
            (Self::UnwrapKey, "unwrapKey", &[Key]),
            (Self::Encrypt, "encrypt", &[Key]),
            (Self::Decrypt, "decrypt", &[Key]),
            (Self::Sign, "sign", &[Key]),
            (Self::Verify, "verify", &[Key]),
            (Self::Rotate, "rotate", &[Key]),
            (Self::GetRotationPolicy, "getrotationpolicy", &[Key]),
            (Self::SetRotationPolicy, "setrotationpolicy", &[Key]),
        ]
    };

    /// Its name in an access policy.
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(permission, ..)| *permission == self);
        found.map_or("", |(_, name, _)| name)
    }
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Operation {
    KeyCreate,
    KeyImport,
    KeyGet,
    KeyList,
    KeyListVersions,
    KeyUpdate,
    KeyDelete,
    KeyGetDeleted,
    KeyListDeleted,
    KeyRecover,
    KeyPurge,
    KeyBackup,
    KeyRestore,
    KeyWrap,
    KeyUnwrap,
    KeyEncrypt,
    KeyDecrypt,
    KeySign,
    KeyVerify,
    KeyRotate,
    KeyRotationPolicyGet,
    KeyRotationPolicySet,
    SecretSet,
    SecretGet,
    SecretList,
    SecretListVersions,
    SecretUpdate,
    SecretDelete,
    SecretGetDeleted,
    SecretListDeleted,
    SecretRecover,
    SecretPurge,
    SecretBackup,
    SecretRestore,
}

impl Operation {
    /// Its name in the audit log, as in Key Vault's `AuditEvent`.
    pub fn name(self) -> &'static str {
        self.properties().0
    }

    /// What it is done to.
    pub fn kind(self) -> Kind {
        self.properties().1
    }

    /// What it takes.
    pub fn permission(self) -> Permission {
        self.properties().2
    }

    fn is_restore(self) -> bool {
        self.permission() == Permission::Restore
    }

    fn properties(self) -> (&'static str, Kind, Permission) {
        use Kind::{Key, Secret};
        use Permission as P;
        match self {
            Self::KeyCreate => ("KeyCreate", Key, P::Create),
            Self::KeyImport => ("KeyImport", Key, P::Import),
            Self::KeyGet => ("KeyGet", Key, P::Get),
            Self::KeyList => ("KeyList", Key, P::List),
            Self::KeyListVersions => ("KeyListVersions", Key, P::List),
            Self::KeyUpdate => ("KeyUpdate", Key, P::Update),
            Self::KeyDelete => ("KeyDelete", Key, P::Delete),
            Self::KeyGetDeleted => ("KeyGetDeleted", Key, P::Get),
            Self::KeyListDeleted => ("KeyListDeleted", Key, P::List),
            Self::KeyRecover => ("KeyRecover", Key, P::Recover),
            Self::KeyPurge => ("KeyPurge", Key, P::Purge),
            Self::KeyBackup => ("KeyBackup", Key, P::Backup),
            Self::KeyRestore => ("KeyRestore", Key, P::Restore),
            Self::KeyWrap => ("KeyWrap", Key, P::WrapKey),
            Self::KeyUnwrap => ("KeyUnwrap", Key, P::UnwrapKey),
            Self::KeyEncrypt => ("KeyEncrypt", Key, P::Encrypt),
            Self::KeyDecrypt => ("KeyDecrypt", Key, P::Decrypt),
            Self::KeySign => ("KeySign", Key, P::Sign),
            Self::KeyVerify => ("KeyVerify", Key, P::Verify),
            Self::KeyRotate => ("KeyRotate", Key, P::Rotate),
            Self::KeyRotationPolicyGet => ("KeyRotationPolicyGet", Key, P::GetRotationPolicy),
            Self::KeyRotationPolicySet => ("KeyRotationPolicySet", Key, P::SetRotationPolicy),
            Self::SecretSet => ("SecretSet", Secret, P::Set),
            Self::SecretGet => ("SecretGet", Secret, P::Get),
            Self::SecretList => ("SecretList", Secret, P::List),
            Self::SecretListVersions => ("SecretListVersions", Secret, P::List),
            Self::SecretUpdate => ("SecretUpdate", Secret, P::Set),
            Self::SecretDelete => ("SecretDelete", Secret, P::Delete),
            Self::SecretGetDeleted => ("SecretGetDeleted", Secret, P::Get),
            Self::SecretListDeleted => ("SecretListDeleted", Secret, P::List),
            Self::SecretRecover => ("SecretRecover", Secret, P::Recover),
            Self::SecretPurge => ("SecretPurge", Secret, P::Purge),
            Self::SecretBackup => ("SecretBackup", Secret, P::Backup),
            Self::SecretRestore => ("SecretRestore", Secret, P::Restore),
        }
    }
}

/// An operation, and on what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What.
    pub operation: Operation,
    /// Name of the object, in lower case, since names that differ in nothing else are one; empty
    /// for what concerns all.
    pub name: String,
    /// Which version; `None` for the current one.
    pub version: Option<String>,
}

impl Route {
    /// What `request` asks for.
    ///
    /// # Errors
    /// 400 if the API version is missing or unknown, or a name cannot be one; 404 if there is no
    /// such path; 405 if there is, with other methods.
    pub fn of(request: &Request) -> Result<Self, ApiError> {
        match request.parameter("api-version") {
            None => {
                let message = "the parameter api-version is missing";
                return Err(ApiError::new(400, "MissingApiVersionParameter", message));
            }
            Some(version) if !API_VERSIONS.contains(&version) => {
                let message = "this api-version is not known here; 7.4 and 2025-07-01 are";
                return Err(ApiError::new(400, "UnsupportedApiVersion", message));
            }
            Some(_) => {}
        }
        let path = request.path.strip_prefix('/').unwrap_or(&request.path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments: Vec<&str> = path.split('/').collect();
        let method = &request.method;
        let route = match segments.split_first() {
            Some((&"keys", rest)) => live(Kind::Key, method, rest),
            Some((&"secrets", rest)) => live(Kind::Secret, method, rest),
            Some((&"deletedkeys", rest)) => deleted(Kind::Key, method, rest),
            Some((&"deletedsecrets", rest)) => deleted(Kind::Secret, method, rest),
            _ => Err(unknown_path()),
        }?;
        let concerns_all = segments.len() == 1 || route.operation.is_restore();
        match route.name.is_empty() && !concerns_all {
            true => Err(ApiError::bad_parameter("the name is missing")),
            false => check_name(&route.name).map(|()| route),
        }
    }
}

fn unknown_path() -> ApiError {
    ApiError::new(404, "NotFound", "there is no such path")
}

/// Paths below `/keys` or `/secrets`.
fn live(kind: Kind, method: &Method, rest: &[&str]) -> Result<Route, ApiError> {
    let is_key = kind == Kind::Key;
    let either = |key, secret| if is_key { key } else { secret };
    let keys_only = |operation| if is_key { Some(operation) } else { None };
    use Operation as O;
    let method = method.as_str();
    let (operation, name, version) = match *rest {
        [] => match method {
            "GET" => (Some(either(O::KeyList, O::SecretList)), "", ""),
            _ => return Err(wrong_method()),
        },
        ["restore"] if method == "POST" => (Some(either(O::KeyRestore, O::SecretRestore)), "", ""),
        [name] => (named(kind, method), name, ""),
        [name, "versions"] if method == "GET" => {
            (Some(either(O::KeyListVersions, O::SecretListVersions)), name, "")
        }
        [name, "backup"] if method == "POST" => {
            (Some(either(O::KeyBackup, O::SecretBackup)), name, "")
        }
        [name, "create"] if method == "POST" => (keys_only(O::KeyCreate), name, ""),
        [name, "rotate"] if method == "POST" => (keys_only(O::KeyRotate), name, ""),
        [name, "rotationpolicy"] if method == "GET" => {
            (keys_only(O::KeyRotationPolicyGet), name, "")
        }
        [name, "rotationpolicy"] if method == "PUT" => {
            (keys_only(O::KeyRotationPolicySet), name, "")
        }
        [name, verb] if method == "POST" && is_key && cryptographic(verb).is_some() => {
            (cryptographic(verb), name, "")
        }
        [name, version] => (versioned(kind, method), name, version),
        [name, version, verb] if is_key => match (method, cryptographic(verb)) {
            ("POST", operation @ Some(_)) => (operation, name, version),
            (_, Some(_)) => return Err(wrong_method()),
            _ => return Err(unknown_path()),
        },
        _ => return Err(unknown_path()),
    };
    let operation = operation.ok_or_else(wrong_method)?;
    let version = (!version.is_empty()).then(|| version.to_owned());
    Ok(Route { operation, name: name.to_ascii_lowercase(), version })
}

fn wrong_method() -> ApiError {
    ApiError::new(405, "MethodNotAllowed", "this path does not have this method")
}

/// `/keys/NAME` and `/secrets/NAME`
fn named(kind: Kind, method: &str) -> Option<Operation> {
    use Operation as O;
    match (kind, method) {
        (Kind::Key, "PUT") => Some(O::KeyImport),
        (Kind::Key, "DELETE") => Some(O::KeyDelete),
        (Kind::Secret, "PUT") => Some(O::SecretSet),
        (Kind::Secret, "DELETE") => Some(O::SecretDelete),
        _ => versioned(kind, method),
    }
}

/// `/keys/NAME/VERSION` and `/secrets/NAME/VERSION`
fn versioned(kind: Kind, method: &str) -> Option<Operation> {
    use Operation as O;
    match (kind, method) {
        (Kind::Key, "GET") => Some(O::KeyGet),
        (Kind::Key, "PATCH") => Some(O::KeyUpdate),
        (Kind::Secret, "GET") => Some(O::SecretGet),
        (Kind::Secret, "PATCH") => Some(O::SecretUpdate),
        _ => None,
    }
}

fn cryptographic(verb: &str) -> Option<Operation> {
    Some(match verb {
        "wrapkey" => Operation::KeyWrap,
        "unwrapkey" => Operation::KeyUnwrap,
        "encrypt" => Operation::KeyEncrypt,
        "decrypt" => Operation::KeyDecrypt,
        "sign" => Operation::KeySign,
        "verify" => Operation::KeyVerify,
        _ => return None,
    })
}

/// Paths below `/deletedkeys` or `/deletedsecrets`.
fn deleted(kind: Kind, method: &Method, rest: &[&str]) -> Result<Route, ApiError> {
    use Operation as O;
    let either = |key, secret| if kind == Kind::Key { key } else { secret };
    let (operation, name) = match (method.as_str(), rest) {
        ("GET", []) => (either(O::KeyListDeleted, O::SecretListDeleted), ""),
        ("GET", [name]) => (either(O::KeyGetDeleted, O::SecretGetDeleted), *name),
        ("DELETE", [name]) => (either(O::KeyPurge, O::SecretPurge), *name),
        ("POST", [name, "recover"]) => (either(O::KeyRecover, O::SecretRecover), *name),
        (_, [] | [_] | [_, "recover"]) => return Err(wrong_method()),
        _ => return Err(unknown_path()),
    };
    Ok(Route { operation, name: name.to_ascii_lowercase(), version: None })
}

/// Names of keys and secrets: 1 to 127 letters, digits and hyphens. The empty one concerns all.
fn check_name(name: &str) -> Result<(), ApiError> {
    let allowed = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if allowed && name.len() <= 127 {
        return Ok(());
    }
    Err(ApiError::bad_parameter("names have 1 to 127 letters, digits and hyphens"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: &str, path: &str) -> Result<Route, u16> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let target = format!("{path}?api-version=7.4");
        Route::of(&Request::of_operator(method, &target, None)).map_err(|error| error.status)
    }

    /// Every path of the protocol, with what the SDKs make of it.
    #[test]
    fn paths() {
        use Operation as O;
        let v = "0123456789abcdef0123456789abcdef";
        for (method, path, operation, name, version) in [
            ("POST", "/keys/k/create", O::KeyCreate, "k", None),
            ("PUT", "/keys/k", O::KeyImport, "k", None),
            ("GET", "/keys", O::KeyList, "", None),
            ("GET", "/keys/", O::KeyList, "", None),
            ("GET", "/keys/k/versions", O::KeyListVersions, "k", None),
            ("GET", "/keys/k", O::KeyGet, "k", None),
            ("GET", "/keys/k/", O::KeyGet, "k", None),
            ("GET", "/keys/k/VV", O::KeyGet, "k", Some(v)),
            ("PATCH", "/keys/k/", O::KeyUpdate, "k", None),
            ("PATCH", "/keys/k/VV", O::KeyUpdate, "k", Some(v)),
            ("DELETE", "/keys/k", O::KeyDelete, "k", None),
            ("GET", "/deletedkeys", O::KeyListDeleted, "", None),
            ("GET", "/deletedkeys/k", O::KeyGetDeleted, "k", None),
            ("POST", "/deletedkeys/k/recover", O::KeyRecover, "k", None),
            ("DELETE", "/deletedkeys/k", O::KeyPurge, "k", None),
            ("POST", "/keys/k/VV/wrapkey", O::KeyWrap, "k", Some(v)),
            ("POST", "/keys/k//wrapkey", O::KeyWrap, "k", None),
            ("POST", "/keys/k/wrapkey", O::KeyWrap, "k", None),
            ("POST", "/keys/k/VV/unwrapkey", O::KeyUnwrap, "k", Some(v)),
            ("POST", "/keys/k/VV/encrypt", O::KeyEncrypt, "k", Some(v)),
            ("POST", "/keys/k/VV/decrypt/", O::KeyDecrypt, "k", Some(v)),
            ("POST", "/keys/k/VV/sign", O::KeySign, "k", Some(v)),
            ("POST", "/keys/k/VV/verify", O::KeyVerify, "k", Some(v)),
            ("POST", "/keys/k/rotate", O::KeyRotate, "k", None),
            ("GET", "/keys/k/rotationpolicy", O::KeyRotationPolicyGet, "k", None),
            ("PUT", "/keys/k/rotationpolicy", O::KeyRotationPolicySet, "k", None),
            ("POST", "/keys/k/backup", O::KeyBackup, "k", None),
            ("POST", "/keys/restore", O::KeyRestore, "", None),
            ("PUT", "/secrets/s", O::SecretSet, "s", None),
            ("GET", "/secrets/s/", O::SecretGet, "s", None),
            ("GET", "/secrets/s/VV", O::SecretGet, "s", Some(v)),
            ("PATCH", "/secrets/s/", O::SecretUpdate, "s", None),
            ("GET", "/secrets", O::SecretList, "", None),
            ("GET", "/secrets/s/versions", O::SecretListVersions, "s", None),
            ("DELETE", "/secrets/s", O::SecretDelete, "s", None),
            ("GET", "/deletedsecrets", O::SecretListDeleted, "", None),
            ("GET", "/deletedsecrets/s", O::SecretGetDeleted, "s", None),
            ("POST", "/deletedsecrets/s/recover", O::SecretRecover, "s", None),
            ("DELETE", "/deletedsecrets/s", O::SecretPurge, "s", None),
            ("POST", "/secrets/s/backup", O::SecretBackup, "s", None),
            ("POST", "/secrets/restore", O::SecretRestore, "", None),
        ] {
            let path = path.replace("VV", v);
            let expected =
                Route { operation, name: name.into(), version: version.map(str::to_owned) };
            assert_eq!(route(method, &path), Ok(expected), "{method} {path}");
        }
    }

    /// What is not there, what is there with another method, and names that cannot be.
    #[test]
    fn refused_paths() {
        for (method, path, status) in [
            ("GET", "/", 404),
            ("GET", "/certificates", 404),
            ("GET", "/keys/k/v/unknown", 404),
            ("POST", "/secrets/s/v/wrapkey", 404),
            ("DELETE", "/keys", 405),
            ("POST", "/keys/k", 405),
            ("GET", "/keys/k/v/wrapkey", 405),
            ("PUT", "/deletedkeys/k", 405),
            ("GET", "/keys/%2e%2e", 400),
            ("GET", "/keys/a_b", 400),
            ("GET", "/keys//versions", 400),
            ("POST", "/keys//create", 400),
        ] {
            assert_eq!(route(method, path), Err(status), "{method} {path}");
        }
        let long = format!("/keys/{}", "x".repeat(128));
        assert_eq!(route("GET", &long), Err(400));
    }

    /// A missing and an unknown API version are refused, each known one is taken.
    #[test]
    fn api_versions() {
        let ask = |target: &str| Route::of(&Request::of_operator(Method::GET, target, None));
        assert_eq!(ask("/keys").map_err(|e| e.code), Err("MissingApiVersionParameter"));
        assert_eq!(ask("/keys?api-version=1").map_err(|e| e.code), Err("UnsupportedApiVersion"));
        for version in API_VERSIONS {
            assert!(ask(&format!("/keys?api-version={version}")).is_ok(), "{version}");
        }
    }
}
