//! `atrest vault slot`: which keys seal a vault.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{failure, open};
use crate::cli::args::KeyArgs;
use crate::cli::hint::Failure;
use crate::cli::{keys, status};
use crate::format::config::UnverifiedConfig;
use crate::key::{KeyError, ProviderOptions, provider_from_uri};
use crate::vault::VaultError;
use crate::vault::directory::config_bytes;

/// `atrest vault slot`
#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// List key slots
    List {
        /// Directory of the vault
        directory: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a key slot, to a vault that is not served
    #[command(after_help = "Example:\n  atrest vault slot add /srv/keys --kek passphrase:recovery")]
    Add(AddArgs),
    /// Remove a key slot of a vault that is not served
    Remove {
        /// Directory of the vault
        directory: PathBuf,
        /// Number of the slot
        number: u32,
        #[command(flatten)]
        #[allow(missing_docs)]
        keys: KeyArgs,
    },
    /// Try every key slot of a vault that is not served
    Verify {
        /// Directory of the vault
        directory: PathBuf,
        #[command(flatten)]
        #[allow(missing_docs)]
        keys: KeyArgs,
    },
}

/// `atrest vault slot add`
#[derive(Args, Debug)]
pub struct AddArgs {
    /// Directory of the vault
    pub directory: PathBuf,
    /// The key-encryption key to add
    #[arg(long, value_name = "URI")]
    pub kek: String,
    /// Read the passphrase of the new slot from the first line of this file
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeyArgs,
}

/// Runs `atrest vault slot`.
///
/// # Errors
/// A vault that cannot be opened, and keys that cannot be had or changed.
pub fn run(command: &SlotCommand) -> Result<(), Failure> {
    match command {
        SlotCommand::List { directory, json } => {
            let bytes = config_bytes(directory).map_err(|error| failure(directory, &error))?;
            let config = UnverifiedConfig::decode(&bytes)
                .map_err(|error| key_failure(directory, KeyError::Config(error)))?;
            let mut table = serde_json::Map::new();
            table.insert("slots".to_owned(), status::slots(config.claims()));
            status::print(&table, *json);
            Ok(())
        }
        SlotCommand::Add(arguments) => add(arguments),
        SlotCommand::Remove { directory, number, keys } => {
            let mut vault = open(directory, keys, "vault slot", false)?;
            let config = vault.keys().remove_slot(vault.config(), *number);
            let config = config.map_err(|error| key_failure(directory, error))?;
            vault.replace_config(config).map_err(|error| failure(directory, &error))?;
            println!("removed slot {number}");
            println!("Who has an old copy of vault.json and the key can still open the vault.");
            Ok(())
        }
        SlotCommand::Verify { directory, keys } => {
            let vault = open(directory, keys, "vault slot", false)?;
            let options = keys::provider_options(keys);
            let checks = vault.keys().check_slots(vault.config(), &options, None);
            let checks = checks.map_err(|error| key_failure(directory, error))?;
            keys::report_checks(directory, &checks, false)
        }
    }
}

fn key_failure(directory: &Path, error: KeyError) -> Failure {
    failure(directory, &VaultError::Key(error))
}

fn add(arguments: &AddArgs) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let mut vault = open(directory, &arguments.keys, "vault slot", false)?;
    let options = ProviderOptions {
        new_passphrase_file: arguments.new_passphrase_file.clone(),
        create_local_key: true,
        ..keys::provider_options_with(&arguments.keys, &[&arguments.kek])
    };
    let failed = |error| key_failure(directory, error);
    let provider = provider_from_uri(&arguments.kek, &options)
        .map_err(|error| failed(KeyError::Kek(error)))?;
    let (config, slot) = vault.keys().add_slot(vault.config(), &*provider).map_err(failed)?;
    vault.replace_config(config).map_err(|error| failure(directory, &error))?;
    println!("added slot {slot}: {}", arguments.kek);
    Ok(())
}
