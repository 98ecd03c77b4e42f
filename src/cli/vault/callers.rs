//! `atrest vault identity|policy|firewall|limits|settings`: who may ask a vault for what.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hyper::Method;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use zeroize::Zeroizing;

use super::client;
use super::objects::VaultArgs;
use crate::cli::exit::Exit;
use crate::cli::hint::Failure;
use crate::vault::admin::{self, Command};
use crate::vault::identity::{PublicKey, SECRET_LIFETIME_DEFAULT};
use crate::vault::policy::Model;
use crate::vault::ratelimit::Rate;

const DAY: u64 = 24 * 3600;

/// An identity of a vault.
#[derive(Args, Clone, Debug)]
pub struct WhichArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub vault: VaultArgs,
    /// The identity: name, client id or object id
    pub identity: String,
}

/// `atrest vault identity`
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Make an identity; it may do nothing yet
    Create {
        #[command(flatten)]
        #[allow(missing_docs)]
        which: WhichArgs,
        /// A managed identity: bound to hosts, without client secrets
        #[arg(long)]
        managed: bool,
    },
    /// List identities
    List(VaultArgs),
    /// Show an identity, its credentials, hosts and roles
    Show(WhichArgs),
    /// Delete an identity, with what was granted to it; its tokens end
    Delete(WhichArgs),
    /// Let an identity that was disabled ask again
    Enable(WhichArgs),
    /// Give an identity no tokens, and refuse those that it has
    Disable(WhichArgs),
    /// Refuse all tokens that an identity has; it can get new ones
    Revoke(WhichArgs),
    /// Make a client secret; it is shown once
    Secret {
        #[command(flatten)]
        #[allow(missing_docs)]
        which: WhichArgs,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "secret")]
        name: String,
        /// For how many days it is good
        #[arg(long, value_name = "DAYS", default_value_t = SECRET_LIFETIME_DEFAULT / DAY)]
        days: u64,
        /// Write the secret to this new file (mode 0600) instead of showing it
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
    /// Believe assertions that are signed with a certificate's RSA key
    Certificate {
        #[command(flatten)]
        #[allow(missing_docs)]
        which: WhichArgs,
        /// PEM file of the certificate
        #[arg(long, value_name = "FILE")]
        pem: PathBuf,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "certificate")]
        name: String,
        /// For how many days it is believed
        #[arg(long, value_name = "DAYS", default_value_t = 365)]
        days: u64,
    },
    /// Believe tokens of another issuer about one subject, such as a Kubernetes service account
    Federate(FederateArgs),
    /// Let a host have tokens of a managed identity
    #[command(after_help = "Examples:\n  \
        atrest vault identity bind /srv/keys web --host web-1 --secret-file web-1.secret\n  \
        atrest vault identity bind /srv/keys web --host rack --address 192.0.2.0/24")]
    Bind {
        #[command(flatten)]
        #[allow(missing_docs)]
        which: WhichArgs,
        /// Name of the host
        #[arg(long, value_name = "TEXT")]
        host: String,
        /// Know it by its address, at a listener of `serve --imds`; else by a new secret
        #[arg(long, value_name = "NETWORK", conflicts_with = "secret_file")]
        address: Option<String>,
        /// Write the secret to this new file (mode 0600) instead of showing it
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
    /// Remove a secret, certificate, federation or host
    Remove {
        #[command(flatten)]
        #[allow(missing_docs)]
        which: WhichArgs,
        /// Its id, or its name if that is the only one
        credential: String,
    },
}

/// `atrest vault identity federate`
#[derive(Args, Debug)]
pub struct FederateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub which: WhichArgs,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "federation")]
    pub name: String,
    /// Claim `iss`
    #[arg(long, value_name = "URL")]
    pub issuer: String,
    /// Claim `sub`
    #[arg(long, value_name = "TEXT")]
    pub subject: String,
    /// Claim `aud`
    #[arg(long, value_name = "TEXT", default_value = "api://AzureADTokenExchange")]
    pub audience: String,
    /// JWK set with the issuer's keys, copied into the vault
    #[arg(long, value_name = "FILE", required_unless_present = "watch_keys")]
    pub keys: Option<PathBuf>,
    /// The same, read again at each use: the issuer's keys can change
    #[arg(long, value_name = "FILE", conflicts_with = "keys")]
    pub watch_keys: Option<PathBuf>,
}

/// `atrest vault policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show what was granted
    Show(VaultArgs),
    /// Let role assignments decide, or access policies
    Model {
        #[command(flatten)]
        #[allow(missing_docs)]
        vault: VaultArgs,
        /// Which
        #[arg(value_parser = ["rbac", "access-policy"])]
        model: String,
    },
    /// Replace an identity's access policy
    #[command(after_help = "Example:\n  atrest vault policy set /srv/keys web \
        --key-permissions get,wrapKey,unwrapKey")]
    Set {
        #[command(flatten)]
        #[allow(missing_docs)]
        which: WhichArgs,
        /// On all keys: names with commas between, or "all"
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        key_permissions: Vec<String>,
        /// On all secrets
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        secret_permissions: Vec<String>,
    },
    /// Give an identity a role
    #[command(after_help = "Example:\n  atrest vault policy assign /srv/keys web \
        'Key Vault Crypto Service Encryption User' --scope /keys/volumes")]
    Assign(AssignArgs),
    /// Take a role from an identity
    Unassign(AssignArgs),
}

/// `atrest vault policy assign`
#[derive(Args, Debug)]
pub struct AssignArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub which: WhichArgs,
    /// A role of Key Vault, by name
    pub role: String,
    /// /, /keys/NAME or /secrets/NAME
    #[arg(long, default_value = "/")]
    pub scope: String,
}

/// `atrest vault firewall`
#[derive(Debug, Subcommand)]
pub enum FirewallCommand {
    /// Show the networks that may ask
    Show(VaultArgs),
    /// Let only those in
    Enable(VaultArgs),
    /// Let everybody in
    Disable(VaultArgs),
    /// Add an address or network
    Allow(NetworkArgs),
    /// Remove one
    Remove(NetworkArgs),
}

/// `atrest vault firewall allow`
#[derive(Args, Debug)]
pub struct NetworkArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub vault: VaultArgs,
    /// 192.0.2.7, 192.0.2.0/24, 2001:db8::/32
    pub network: String,
}

/// `atrest vault limits`
#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// Show how often may be asked
    Show(VaultArgs),
    /// Change it
    #[command(after_help = "Example:\n  atrest vault limits set /srv/keys --vault 400:4000")]
    Set {
        #[command(flatten)]
        #[allow(missing_docs)]
        vault: VaultArgs,
        /// All requests: how many a second, and how many at once
        #[arg(long = "vault", value_name = "RATE:BURST", value_parser = rate)]
        all: Option<Rate>,
        /// Those of one identity
        #[arg(long, value_name = "RATE:BURST", value_parser = rate)]
        identity: Option<Rate>,
    },
}

/// `atrest vault settings`
#[derive(Debug, Subcommand)]
pub enum SettingsCommand {
    /// Show tenant, authority, resources and signing keys
    Show(VaultArgs),
    /// Change them
    Set {
        #[command(flatten)]
        #[allow(missing_docs)]
        vault: VaultArgs,
        /// https://HOST of the token endpoint; "" for the host that was called
        #[arg(long, value_name = "URL")]
        authority: Option<String>,
        /// What tokens are for: the last labels of the vault's name, as https://; may be repeated
        #[arg(long = "resource", value_name = "URL")]
        resources: Option<Vec<String>>,
        /// Lifetime of tokens
        #[arg(long, value_name = "SECONDS")]
        token_lifetime: Option<u64>,
    },
    /// Sign tokens with a new key; the old one's stay good until they expire
    RotateSigningKey(VaultArgs),
    /// Refuse one token
    RevokeToken {
        #[command(flatten)]
        #[allow(missing_docs)]
        vault: VaultArgs,
        /// File with the token
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
}

fn rate(text: &str) -> Result<Rate, String> {
    let parsed = text.split_once(':').and_then(|(per_second, burst)| {
        Some(Rate { per_second: per_second.parse().ok()?, burst: burst.parse().ok()? })
    });
    parsed.ok_or_else(|| "write RATE:BURST, such as 400:4000".to_owned())
}

/// `atrest vault identity`
///
/// # Errors
/// A vault that cannot be asked, and its refusal.
pub fn identity(command: &IdentityCommand) -> Result<(), Failure> {
    let (which, op) = match command {
        IdentityCommand::List(vault) => return show(vault, &Command::IdentityList),
        IdentityCommand::Create { which, managed } => {
            let (name, managed) = (which.identity.clone(), *managed);
            (which, Command::IdentityCreate { name, managed })
        }
        IdentityCommand::Show(which) => (which, Command::IdentityShow { which: which.name() }),
        IdentityCommand::Delete(which) => (which, Command::IdentityDelete { which: which.name() }),
        IdentityCommand::Enable(which) => {
            (which, Command::IdentityEnable { which: which.name(), enabled: true })
        }
        IdentityCommand::Disable(which) => {
            (which, Command::IdentityEnable { which: which.name(), enabled: false })
        }
        IdentityCommand::Revoke(which) => (which, Command::IdentityRevoke { which: which.name() }),
        IdentityCommand::Secret { which, name, days, secret_file } => {
            let (name, expires_in) = (name.clone(), Some(days.saturating_mul(DAY)));
            let command = Command::SecretAdd { which: which.name(), name, expires_in };
            return show_secret(&which.vault, &command, secret_file.as_deref());
        }
        IdentityCommand::Certificate { which, pem, name, days } => {
            let (key, expires_in) = (public_key(pem)?, Some(days.saturating_mul(DAY)));
            let name = name.clone();
            (which, Command::CertificateAdd { which: which.name(), name, key, expires_in })
        }
        IdentityCommand::Federate(arguments) => (&arguments.which, federate(arguments)?),
        IdentityCommand::Bind { which, host, address, secret_file } => {
            let (name, host) = (which.name(), host.clone());
            match address.clone() {
                Some(network) => (which, Command::HostBindAddress { which: name, host, network }),
                None => {
                    let command = Command::HostBindSecret { which: name, host, expires_in: None };
                    return show_secret(&which.vault, &command, secret_file.as_deref());
                }
            }
        }
        IdentityCommand::Remove { which, credential } => {
            (which, Command::CredentialRemove { which: which.name(), id: credential.clone() })
        }
    };
    show(&which.vault, &op)
}

/// `atrest vault policy`
///
/// # Errors
/// A vault that cannot be asked, and its refusal.
pub fn policy(command: &PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Show(vault) => show(vault, &Command::PolicyShow),
        PolicyCommand::Model { vault, model } => {
            let model = if model == "rbac" { Model::Rbac } else { Model::AccessPolicy };
            show(vault, &Command::PolicyModel { model })
        }
        PolicyCommand::Set { which, key_permissions, secret_permissions } => {
            let (keys, secrets) = (key_permissions.clone(), secret_permissions.clone());
            show(&which.vault, &Command::PolicySet { which: which.name(), keys, secrets })
        }
        PolicyCommand::Assign(AssignArgs { which, role, scope }) => {
            let (role, scope) = (role.clone(), scope.clone());
            show(&which.vault, &Command::PolicyAssign { which: which.name(), role, scope })
        }
        PolicyCommand::Unassign(AssignArgs { which, role, scope }) => {
            let (role, scope) = (role.clone(), scope.clone());
            show(&which.vault, &Command::PolicyUnassign { which: which.name(), role, scope })
        }
    }
}

/// `atrest vault firewall`
///
/// # Errors
/// A vault that cannot be asked, and its refusal.
pub fn firewall(command: &FirewallCommand) -> Result<(), Failure> {
    match command {
        FirewallCommand::Show(vault) => show(vault, &Command::FirewallShow),
        FirewallCommand::Enable(vault) => show(vault, &Command::FirewallEnable { enabled: true }),
        FirewallCommand::Disable(vault) => show(vault, &Command::FirewallEnable { enabled: false }),
        FirewallCommand::Allow(NetworkArgs { vault, network }) => {
            show(vault, &Command::FirewallAllow { network: network.clone() })
        }
        FirewallCommand::Remove(NetworkArgs { vault, network }) => {
            show(vault, &Command::FirewallRemove { network: network.clone() })
        }
    }
}

/// `atrest vault limits`
///
/// # Errors
/// A vault that cannot be asked, and its refusal.
pub fn limits(command: &LimitsCommand) -> Result<(), Failure> {
    match command {
        LimitsCommand::Show(vault) => show(vault, &Command::LimitsShow),
        LimitsCommand::Set { vault, all, identity } => {
            show(vault, &Command::LimitsSet { vault: *all, identity: *identity })
        }
    }
}

/// `atrest vault settings`
///
/// # Errors
/// A vault that cannot be asked, and its refusal.
pub fn settings(command: &SettingsCommand) -> Result<(), Failure> {
    match command {
        SettingsCommand::Show(vault) => show(vault, &Command::SettingsShow),
        SettingsCommand::Set { vault, authority, resources, token_lifetime } => {
            let (authority, resources) = (authority.clone(), resources.clone());
            let token_lifetime = *token_lifetime;
            show(vault, &Command::SettingsSet { authority, resources, token_lifetime })
        }
        SettingsCommand::RotateSigningKey(vault) => show(vault, &Command::SigningKeyRotate),
        SettingsCommand::RevokeToken { vault, token_file } => {
            let token = read(token_file)?.trim().to_owned();
            show(vault, &Command::TokenRevoke { token })
        }
    }
}

impl WhichArgs {
    fn name(&self) -> String {
        self.identity.clone()
    }
}

fn asked(vault: &VaultArgs, command: &Command) -> Result<Value, Failure> {
    let body = Zeroizing::new(serde_json::to_vec(command).expect("commands are plain data"));
    let asked = (Method::POST, admin::PATH);
    let answer = client::ask(&vault.directory, &vault.keys, asked, Some(&body))?;
    serde_json::from_slice(&answer)
        .map_err(|_| Failure::new(Exit::Other, "the vault's answer is not understood"))
}

fn show(vault: &VaultArgs, command: &Command) -> Result<(), Failure> {
    let shown = asked(vault, command)?;
    println!("{shown:#}");
    Ok(())
}

/// Shows a new secret, or writes it to a file that was not there.
fn show_secret(vault: &VaultArgs, command: &Command, file: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = file else { return show(vault, command) };
    // First the file: a secret that cannot be kept is not made.
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = made.map_err(|error| Failure::io("create", path, &error))?;
    let result = asked(vault, command).and_then(|mut shown| {
        let secret = shown.as_object_mut().and_then(|fields| fields.remove("secret"));
        let secret = secret.as_ref().and_then(Value::as_str).unwrap_or_default();
        let written = file.write_all(secret.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| Failure::io("write", path, &error))?;
        println!("{shown:#}");
        Ok(())
    });
    if result.is_err() {
        // It is ours and of no use.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))
}

/// The public key of the first certificate in a PEM file.
fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    let usage = |problem: &str| Failure::new(Exit::Usage, format!("{}: {problem}", path.display()));
    let certificate = CertificateDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|_| usage("there is no certificate in PEM"))?;
    let parsed = webpki::EndEntityCert::try_from(&certificate)
        .map_err(|_| usage("the certificate is not understood"))?;
    Ok(PublicKey(parsed.subject_public_key_info().to_vec()))
}

fn federate(arguments: &FederateArgs) -> Result<Command, Failure> {
    let keys =
        match &arguments.keys {
            Some(path) => Some(serde_json::from_str(&read(path)?).map_err(|_| {
                Failure::new(Exit::Usage, format!("{} is no JWK set", path.display()))
            })?),
            None => None,
        };
    Ok(Command::FederatedAdd {
        which: arguments.which.name(),
        name: arguments.name.clone(),
        issuer: arguments.issuer.clone(),
        subject: arguments.subject.clone(),
        audience: arguments.audience.clone(),
        keys,
        key_file: arguments.watch_keys.clone(),
    })
}
