//! `atrest vault key|secret`: the operator's hand on keys and secrets.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{KeyArgs, client, import};
use crate::cli::exit::Exit;
use crate::cli::hint::Failure;
use crate::vault::encoding::{Text, to_json};
use crate::vault::secrets::VALUE_BYTES_MAX;

const API_VERSION: &str = "2025-07-01";
/// Longest file with a key that is read, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A vault, and how to open it if nobody serves it.
#[derive(Args, Clone, Debug)]
pub struct VaultArgs {
    /// Directory of the vault
    pub directory: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
}

/// A key or secret of a vault.
#[derive(Args, Clone, Debug)]
pub struct NameArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub vault: VaultArgs,
    /// Its name
    pub name: String,
}

/// A version of a key or secret.
#[derive(Args, Clone, Debug)]
pub struct VersionArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub of: NameArgs,
    /// Its version; the current one if it is left out
    pub version: Option<String>,
}

/// When a version expires.
#[derive(Args, Clone, Debug)]
pub struct ExpireArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub version: VersionArgs,
    /// From when on (2027-01-31T00:00:00Z); what is past expires it now
    #[arg(long, value_name = "TIME")]
    pub at: jiff::Timestamp,
}

/// What there is of a kind.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub vault: VaultArgs,
    /// List what is deleted and can be recovered
    #[arg(long, conflicts_with = "versions_of")]
    pub deleted: bool,
    /// List the versions of this one
    #[arg(long, value_name = "NAME")]
    pub versions_of: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What can be done to keys and to secrets.
#[derive(Debug, Subcommand)]
pub enum LifeCommand {
    /// List names, with attributes
    List(ListArgs),
    /// Show a version, as JSON, without what is secret
    Show(VersionArgs),
    /// Let a version be used again
    Enable(VersionArgs),
    /// Let a version not be used: what it wrapped cannot be unwrapped
    Disable(VersionArgs),
    /// Say when a version expires: from then on a key wraps nothing, and mounts lock
    Expire(ExpireArgs),
    /// Delete all versions; they can be recovered until they are purged
    Delete(NameArgs),
    /// Bring back what was deleted
    Recover(NameArgs),
    /// Remove what was deleted for good; refused with purge protection
    Purge(NameArgs),
}

/// `atrest vault key`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key, or a new version of one
    #[command(after_help = "Examples:\n  atrest vault key create /srv/keys volumes\n  \
        atrest vault key create /srv/keys volumes --kty RSA --size 4096 \
        --operations wrapKey,unwrapKey")]
    Create(CreateArgs),
    /// Make a new version of the same kind
    Rotate(NameArgs),
    /// Take a private key from a file: a JSON Web Key, or an RSA key in PEM (PKCS #8 or PKCS #1)
    #[command(after_help = "Example:\n  atrest vault key import /srv/keys volumes volumes.pem")]
    Import {
        #[command(flatten)]
        #[allow(missing_docs)]
        of: NameArgs,
        /// The file
        file: PathBuf,
    },
    #[command(flatten)]
    #[allow(missing_docs)]
    Life(LifeCommand),
}

/// `atrest vault key create`
#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub of: NameArgs,
    /// Kind of key
    #[arg(long, default_value = "RSA", value_parser = ["RSA", "EC", "oct", "oct-HSM"])]
    pub kty: String,
    /// Bits: 2048, 3072 or 4096 for RSA, 256 for oct
    #[arg(long, value_name = "BITS")]
    pub size: Option<u32>,
    /// Curve of an EC key: P-256, P-384, P-521
    #[arg(long, value_name = "CURVE")]
    pub curve: Option<String>,
    /// What it may be used for, with commas between; all that it can if left out
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub operations: Vec<String>,
}

/// `atrest vault secret`
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Set a secret to what is in a file, or on standard input
    Set {
        #[command(flatten)]
        #[allow(missing_docs)]
        of: NameArgs,
        /// The file; one line feed at its end is left out
        #[arg(long, value_name = "FILE")]
        value_file: Option<PathBuf>,
    },
    /// Print a secret's value, and nothing else
    Get(VersionArgs),
    #[command(flatten)]
    #[allow(missing_docs)]
    Life(LifeCommand),
}

/// Runs `atrest vault key`.
///
/// # Errors
/// A vault that cannot be asked, and its refusal.
pub fn key(command: &KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Create(arguments) => create(arguments),
        KeyCommand::Rotate(NameArgs { vault, name }) => {
            let path = format!("/keys/{}/rotate", checked(name)?);
            announce("rotated", &ask(vault, Method::POST, &path, None)?);
            Ok(())
        }
        KeyCommand::Import { of: NameArgs { vault, name }, file } => {
            let body = import::body(file, &read(file, KEY_FILE_BYTES_MAX)?)?;
            let path = format!("/keys/{}", checked(name)?);
            announce("imported", &ask(vault, Method::PUT, &path, Some(&body))?);
            Ok(())
        }
        KeyCommand::Life(command) => life("keys", command),
    }
}

/// Runs `atrest vault secret`.
///
/// # Errors
/// A vault that cannot be asked, and its refusal.
pub fn secret(command: &SecretCommand) -> Result<(), Failure> {
    match command {
        SecretCommand::Set { of: NameArgs { vault, name }, value_file } => {
            set(vault, name, value_file.as_deref())
        }
        SecretCommand::Get(VersionArgs { of: NameArgs { vault, name }, version }) => {
            #[derive(serde::Deserialize)]
            struct Bundle {
                value: Text,
            }
            let path = format!("/secrets/{}/{}", checked(name)?, checked_version(version)?);
            let target = format!("{path}?api-version={API_VERSION}");
            let asked = (Method::GET, target.as_str());
            let body = client::ask(&vault.directory, &vault.keys, asked, None)?;
            let bundle: Bundle = serde_json::from_slice(&body).map_err(|_| strange())?;
            let written = std::io::stdout().write_all(bundle.value.0.as_bytes());
            written.map_err(|error| Failure::io("write to", Path::new("standard output"), &error))
        }
        SecretCommand::Life(command) => life("secrets", command),
    }
}

fn create(arguments: &CreateArgs) -> Result<(), Failure> {
    let NameArgs { vault, name } = &arguments.of;
    let mut body = json!({ "kty": arguments.kty });
    if let Some(size) = arguments.size {
        body["key_size"] = json!(size);
    }
    if let Some(curve) = &arguments.curve {
        body["crv"] = json!(curve);
    }
    if !arguments.operations.is_empty() {
        body["key_ops"] = json!(arguments.operations);
    }
    let path = format!("/keys/{}/create", checked(name)?);
    let made = ask(vault, Method::POST, &path, Some(body.to_string().as_bytes()))?;
    announce("made", &made);
    Ok(())
}

fn set(vault: &VaultArgs, name: &str, file: Option<&Path>) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Body {
        value: Text,
    }
    let bytes_max = VALUE_BYTES_MAX as u64 + 1;
    let bytes = match file {
        Some(file) => read(file, bytes_max)?,
        // By its descriptor, not its name: a pipe may be somebody else's to open. Unbuffered, since
        // nobody wipes the buffer of the standard library.
        None => {
            let input = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
            read_from(input, Path::new("standard input"), bytes_max)?
        }
    };
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| {
        Failure::new(Exit::Usage, "values of secrets are text in UTF-8; encode others, as base64")
    })?;
    let body = to_json(&Body { value: Text(Zeroizing::new(text.to_owned())) });
    let path = format!("/secrets/{}", checked(name)?);
    announce("set", &ask(vault, Method::PUT, &path, Some(&body))?);
    Ok(())
}

fn life(collection: &str, command: &LifeCommand) -> Result<(), Failure> {
    match command {
        LifeCommand::List(arguments) => list(collection, arguments),
        LifeCommand::Show(VersionArgs { of: NameArgs { vault, name }, version }) => {
            let path = format!("/{collection}/{}/{}", checked(name)?, checked_version(version)?);
            let mut shown = ask(vault, Method::GET, &path, None)?;
            if let Some(object) = shown.as_object_mut() {
                object.remove("value");
            }
            println!("{shown:#}");
            Ok(())
        }
        LifeCommand::Enable(version) => {
            change(collection, version, json!({ "enabled": true }), "enabled")
        }
        LifeCommand::Disable(version) => {
            change(collection, version, json!({ "enabled": false }), "disabled")
        }
        LifeCommand::Expire(ExpireArgs { version, at }) => {
            let done = format!("expires {at}:");
            change(collection, version, json!({ "exp": at.as_second() }), &done)
        }
        LifeCommand::Delete(NameArgs { vault, name }) => {
            let path = format!("/{collection}/{}", checked(name)?);
            let deleted = ask(vault, Method::DELETE, &path, None)?;
            let purge = deleted.get("scheduledPurgeDate").and_then(Value::as_i64);
            println!("deleted {name}; it can be recovered until {}", date(purge));
            Ok(())
        }
        LifeCommand::Recover(NameArgs { vault, name }) => {
            let path = format!("/deleted{collection}/{}/recover", checked(name)?);
            announce("recovered", &ask(vault, Method::POST, &path, None)?);
            Ok(())
        }
        LifeCommand::Purge(NameArgs { vault, name }) => {
            let path = format!("/deleted{collection}/{}", checked(name)?);
            ask(vault, Method::DELETE, &path, None)?;
            println!("purged {name}");
            Ok(())
        }
    }
}

/// Changes attributes of a version, and says that it is `done`.
fn change(
    collection: &str,
    version: &VersionArgs,
    attributes: Value,
    done: &str,
) -> Result<(), Failure> {
    let VersionArgs { of: NameArgs { vault, name }, version } = version;
    let path = format!("/{collection}/{}/{}", checked(name)?, checked_version(version)?);
    let body = json!({ "attributes": attributes }).to_string();
    let changed = ask(vault, Method::PATCH, &path, Some(body.as_bytes()))?;
    announce(done, &changed);
    Ok(())
}

fn list(collection: &str, arguments: &ListArgs) -> Result<(), Failure> {
    let path = match &arguments.versions_of {
        Some(name) => format!("/{collection}/{}/versions", checked(name)?),
        None if arguments.deleted => format!("/deleted{collection}"),
        None => format!("/{collection}"),
    };
    let mut items = Vec::new();
    let mut query = String::new();
    loop {
        let target = format!("{path}?api-version={API_VERSION}{query}");
        let mut page = ask_target(&arguments.vault, Method::GET, &target, None)?;
        if let Some(found) = page.get_mut("value").and_then(Value::as_array_mut) {
            items.append(found);
        }
        let next = page.get("nextLink").and_then(Value::as_str);
        let token = next.and_then(|next| next.split_once("&$skiptoken="));
        match token.and_then(|(_, rest)| rest.split('&').next()) {
            Some(token) => query = format!("&$skiptoken={token}"),
            None => break,
        }
    }
    if arguments.json {
        println!("{:#}", Value::Array(items));
        return Ok(());
    }
    for item in &items {
        let attributes = &item["attributes"];
        let state = if attributes["enabled"] == json!(true) { "enabled" } else { "disabled" };
        let mut line = format!("{:40} {state:8}", last_segment(item));
        if let Some(exp) = attributes["exp"].as_i64() {
            line.push_str(&format!("  expires {}", date(Some(exp))));
        }
        if let Some(purge) = item["scheduledPurgeDate"].as_i64() {
            line.push_str(&format!("  purged {}", date(Some(purge))));
        }
        println!("{}", line.trim_end());
    }
    Ok(())
}

/// Asks with the API version, for a JSON reply.
fn ask(
    vault: &VaultArgs,
    method: Method,
    path: &str,
    body: Option<&[u8]>,
) -> Result<Value, Failure> {
    ask_target(vault, method, &format!("{path}?api-version={API_VERSION}"), body)
}

fn ask_target(
    vault: &VaultArgs,
    method: Method,
    target: &str,
    body: Option<&[u8]>,
) -> Result<Value, Failure> {
    let reply = client::ask(&vault.directory, &vault.keys, (method, target), body)?;
    match reply.is_empty() {
        true => Ok(Value::Null),
        false => serde_json::from_slice(&reply).map_err(|_| strange()),
    }
}

fn strange() -> Failure {
    Failure::new(Exit::Other, "the vault's answer is not understood")
}

/// What is done, and to which version.
fn announce(what: &str, bundle: &Value) {
    let id = bundle.pointer("/key/kid").or(bundle.get("id")).and_then(Value::as_str);
    let path = id.and_then(|id| id.splitn(5, '/').nth(4)).unwrap_or_default();
    println!("{what} {path}");
}

/// The name or version at the end of an item's identifier.
fn last_segment(item: &Value) -> &str {
    let id = item.get("kid").or(item.get("id")).and_then(Value::as_str).unwrap_or_default();
    id.rsplit('/').next().unwrap_or_default()
}

fn date(seconds: Option<i64>) -> String {
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

/// A name that can be part of a path.
fn checked(name: &str) -> Result<&str, Failure> {
    let allowed = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if allowed && (1..=127).contains(&name.len()) {
        return Ok(name);
    }
    Err(Failure::new(Exit::Usage, "names have 1 to 127 letters, digits and hyphens"))
}

fn checked_version(version: &Option<String>) -> Result<&str, Failure> {
    version.as_deref().map_or(Ok(""), checked)
}

fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, Failure> {
    read_from(File::open(path), path, bytes_max)
}

fn read_from(
    file: std::io::Result<File>,
    path: &Path,
    bytes_max: u64,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max as usize + 1));
    let read = file.and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes));
    read.map_err(|error| Failure::io("read", path, &error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Failure::new(Exit::Usage, format!("{} is too large", path.display())));
    }
    Ok(bytes)
}
