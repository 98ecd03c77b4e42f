//! How an endpoint is reached and who asks, for each kind of provider; and which keys of the file
//! say it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::key::http::{self, Proxy, Url};

/// Longest time-out that makes sense, in seconds: a mount waits for it.
const TIMEOUT_SECONDS_MAX: u64 = 600;

/// What an entry says, by kind of provider. Only the group of the entry's own kind, and `http` for
/// those in a network, differ from the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSettings {
    /// `ca_file`, `proxy`, `connect_timeout_s`, `request_timeout_s`, `total_timeout_s`,
    /// `plain_http`.
    pub http: http::Settings,
    /// For `azure:`.
    pub azure: AzureSettings,
    /// For `transit:`.
    pub transit: TransitSettings,
    /// For `aws:`.
    pub aws: AwsSettings,
    /// For `pkcs11:`.
    pub pkcs11: Pkcs11Settings,
    /// For `tpm2:`.
    pub tpm2: Tpm2Settings,
    /// For `exec:`.
    pub exec: ExecSettings,
}

/// Who asks a Key Vault or Managed HSM; what is not said comes from the environment, as in the
/// official SDKs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AzureSettings {
    /// `identity`: which kind of identity, and no other.
    pub identity: Option<AzureIdentity>,
    /// `tenant_id`, else `AZURE_TENANT_ID`.
    pub tenant_id: Option<String>,
    /// `client_id`, else `AZURE_CLIENT_ID`: of the application, or of a user-assigned identity.
    pub client_id: Option<String>,
    /// `client_secret_file`, else `AZURE_CLIENT_SECRET`.
    pub client_secret_file: Option<PathBuf>,
    /// `client_certificate_file`, else `AZURE_CLIENT_CERTIFICATE_PATH`: PEM with an RSA key.
    pub client_certificate_file: Option<PathBuf>,
    /// `federated_token_file`, else `AZURE_FEDERATED_TOKEN_FILE`.
    pub federated_token_file: Option<PathBuf>,
    /// `authority_host`, else `AZURE_AUTHORITY_HOST`: where tokens are had.
    pub authority_host: Option<Url>,
    /// `resource`: what the vault calls itself in its challenge, where that is not a domain that
    /// the vault's own name ends in.
    pub resource: Option<Url>,
}

/// `identity` of an `azure:` entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AzureIdentity {
    /// An application with a secret or certificate.
    ClientSecret,
    /// The same, with a certificate.
    ClientCertificate,
    /// An application that this host's own token stands for.
    Workload,
    /// The identity of the machine or service.
    Managed,
}

/// Who asks a HashiCorp Vault or OpenBao; what is not said comes from the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransitSettings {
    /// `auth`: how to log in.
    pub auth: Option<TransitAuth>,
    /// `auth_mount`: where that method is mounted, instead of at its own name.
    pub auth_mount: Option<String>,
    /// `role`: of Kubernetes.
    pub role: Option<String>,
    /// `role_id` of an AppRole.
    pub role_id: Option<String>,
    /// `secret_id_file` of an AppRole.
    pub secret_id_file: Option<PathBuf>,
    /// `token_file`: the token itself; for Kubernetes, the service account's.
    pub token_file: Option<PathBuf>,
    /// `namespace`.
    pub namespace: Option<String>,
}

/// `auth` of a `transit:` entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransitAuth {
    /// A token that is given.
    Token,
    /// `auth/approle/login`.
    Approle,
    /// `auth/kubernetes/login`.
    Kubernetes,
}

/// Who asks AWS KMS; what is not said comes from the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsSettings {
    /// `endpoint`: instead of the region's.
    pub endpoint: Option<Url>,
    /// `profile` of the credentials file.
    pub profile: Option<String>,
    /// `credentials_file`.
    pub credentials_file: Option<PathBuf>,
}

/// How a PKCS #11 token is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pkcs11Settings {
    /// `module`: the library to load.
    pub module: Option<PathBuf>,
    /// `pin_file`: where the PIN is.
    pub pin_file: Option<PathBuf>,
}

/// How a TPM is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tpm2Settings {
    /// `tcti`: transmission interface, as `device:/dev/tpmrm0`.
    pub tcti: Option<String>,
}

/// How a plugin is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSettings {
    /// `timeout_s`: how long it may take.
    pub timeout: Option<Duration>,
}

/// The keys of an entry but for its `uri`, as they are written.
#[derive(Clone, Default)]
pub(super) struct Keys {
    pub(super) kind: String,
    pub(super) raw: RawKeys,
}

/// Each key of an entry; which of them fit which kind is [`Keys::settings`]' to say.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawKeys {
    uri: Option<toml::Spanned<String>>,
    ca_file: Option<PathBuf>,
    proxy: Option<String>,
    connect_timeout_s: Option<u64>,
    request_timeout_s: Option<u64>,
    total_timeout_s: Option<u64>,
    plain_http: Option<bool>,
    identity: Option<AzureIdentity>,
    tenant_id: Option<String>,
    client_id: Option<String>,
    client_secret_file: Option<PathBuf>,
    client_certificate_file: Option<PathBuf>,
    federated_token_file: Option<PathBuf>,
    authority_host: Option<String>,
    resource: Option<String>,
    auth: Option<TransitAuth>,
    auth_mount: Option<String>,
    role: Option<String>,
    role_id: Option<String>,
    secret_id_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    namespace: Option<String>,
    endpoint: Option<String>,
    profile: Option<String>,
    credentials_file: Option<PathBuf>,
    module: Option<PathBuf>,
    pin_file: Option<PathBuf>,
    tcti: Option<String>,
    timeout_s: Option<u64>,
}

/// Takes a key that belongs to some kinds; for others it is refused.
macro_rules! take {
    ($keys:ident, $field:ident, $kinds:expr) => {{
        let value = $keys.raw.$field.take();
        let kinds: &[&str] = $kinds;
        if value.is_some() && !kinds.contains(&$keys.kind.as_str()) {
            return Err(format!("{} is for {}: only", stringify!($field), kinds.join(": and ")));
        }
        value
    }};
}

const NETWORK: &[&str] = &["azure", "transit", "aws"];
const AZURE: &[&str] = &["azure"];
const TRANSIT: &[&str] = &["transit"];
const AWS: &[&str] = &["aws"];

impl RawKeys {
    /// The pattern of the entry.
    pub(super) fn take_uri(&mut self) -> Option<toml::Spanned<String>> {
        self.uri.take()
    }
}

impl Keys {
    /// What the keys say.
    ///
    /// # Errors
    /// Which key is wrong, and how to write it.
    pub(super) fn settings(mut self) -> Result<EndpointSettings, String> {
        let keys = &mut self;
        let settings = EndpointSettings {
            http: keys.http()?,
            azure: keys.azure()?,
            transit: keys.transit()?,
            aws: keys.aws()?,
            pkcs11: Pkcs11Settings {
                module: path("module", take!(keys, module, &["pkcs11"]))?,
                pin_file: path("pin_file", take!(keys, pin_file, &["pkcs11"]))?,
            },
            tpm2: Tpm2Settings { tcti: text("tcti", take!(keys, tcti, &["tpm2"]))? },
            exec: ExecSettings {
                timeout: seconds("timeout_s", take!(keys, timeout_s, &["exec"]))?,
            },
        };
        Ok(settings)
    }

    fn http(&mut self) -> Result<http::Settings, String> {
        let keys = self;
        let default = http::Settings::default();
        let connect = seconds("connect_timeout_s", take!(keys, connect_timeout_s, NETWORK))?;
        let request = seconds("request_timeout_s", take!(keys, request_timeout_s, NETWORK))?;
        let total = seconds("total_timeout_s", take!(keys, total_timeout_s, NETWORK))?;
        let proxy = match text("proxy", take!(keys, proxy, NETWORK))? {
            None => Proxy::Environment,
            Some(word) if word == "none" => Proxy::None,
            Some(url) => Proxy::Url(url),
        };
        Ok(http::Settings {
            ca_file: path("ca_file", take!(keys, ca_file, NETWORK))?,
            proxy,
            connect_timeout: connect.unwrap_or(default.connect_timeout),
            request_timeout: request.unwrap_or(default.request_timeout),
            total_timeout: total.unwrap_or(default.total_timeout),
            plain_http: take!(keys, plain_http, NETWORK).unwrap_or(default.plain_http),
        })
    }

    fn azure(&mut self) -> Result<AzureSettings, String> {
        let keys = self;
        let client_secret_file = take!(keys, client_secret_file, AZURE);
        let client_certificate_file = take!(keys, client_certificate_file, AZURE);
        let federated_token_file = take!(keys, federated_token_file, AZURE);
        Ok(AzureSettings {
            identity: take!(keys, identity, AZURE),
            tenant_id: text("tenant_id", take!(keys, tenant_id, AZURE))?,
            client_id: text("client_id", take!(keys, client_id, AZURE))?,
            client_secret_file: path("client_secret_file", client_secret_file)?,
            client_certificate_file: path("client_certificate_file", client_certificate_file)?,
            federated_token_file: path("federated_token_file", federated_token_file)?,
            authority_host: url("authority_host", take!(keys, authority_host, AZURE))?,
            resource: url("resource", take!(keys, resource, AZURE))?,
        })
    }

    fn transit(&mut self) -> Result<TransitSettings, String> {
        let keys = self;
        Ok(TransitSettings {
            auth: take!(keys, auth, TRANSIT),
            auth_mount: text("auth_mount", take!(keys, auth_mount, TRANSIT))?,
            role: text("role", take!(keys, role, TRANSIT))?,
            role_id: text("role_id", take!(keys, role_id, TRANSIT))?,
            secret_id_file: path("secret_id_file", take!(keys, secret_id_file, TRANSIT))?,
            token_file: path("token_file", take!(keys, token_file, TRANSIT))?,
            namespace: text("namespace", take!(keys, namespace, TRANSIT))?,
        })
    }

    fn aws(&mut self) -> Result<AwsSettings, String> {
        let keys = self;
        Ok(AwsSettings {
            endpoint: url("endpoint", take!(keys, endpoint, AWS))?,
            profile: text("profile", take!(keys, profile, AWS))?,
            credentials_file: path("credentials_file", take!(keys, credentials_file, AWS))?,
        })
    }
}

fn path(key: &str, value: Option<PathBuf>) -> Result<Option<PathBuf>, String> {
    match value {
        Some(path) if !path.is_absolute() => Err(format!("{key} is not an absolute path")),
        other => Ok(other),
    }
}

fn text(key: &str, value: Option<String>) -> Result<Option<String>, String> {
    match value {
        Some(text) if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(format!("{key} is empty, or not printable ASCII without spaces"))
        }
        other => Ok(other),
    }
}

fn url(key: &str, value: Option<String>) -> Result<Option<Url>, String> {
    let parsed = value.map(|text| Url::parse(&text)).transpose();
    parsed.map_err(|error| format!("{key} is {error}"))
}

fn seconds(key: &str, value: Option<u64>) -> Result<Option<Duration>, String> {
    match value {
        Some(seconds) if !(1..=TIMEOUT_SECONDS_MAX).contains(&seconds) => {
            Err(format!("{key} is not from 1 to {TIMEOUT_SECONDS_MAX} seconds"))
        }
        other => Ok(other.map(Duration::from_secs)),
    }
}
