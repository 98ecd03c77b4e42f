//! `atrest key`

use std::path::Path;

use super::args::{
    KeyAddArgs, KeyArgs, KeyCommand, KeyListArgs, KeyRemoveArgs, KeyRotateArgs, KeyVerifyArgs,
};
use super::exit::Exit;
use super::hint::{Failure, kek_text};
use super::{open, place, status};
use crate::key::{
    Authorization, KeyError, Opened, ProviderOptions, Providers, SlotReport, VolumeKeys,
    provider_from_uri,
};

/// Runs a key command.
///
/// # Errors
/// Keys that cannot be had or changed.
pub fn run(command: &KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::List(arguments) => list(arguments),
        KeyCommand::Add(arguments) => add(arguments),
        KeyCommand::Remove(arguments) => remove(arguments),
        KeyCommand::Rotate(arguments) => rotate(arguments),
        KeyCommand::Verify(arguments) => verify(arguments),
    }
}

/// What providers need to know of the command line.
pub fn provider_options(arguments: &KeyArgs) -> ProviderOptions {
    provider_options_with(arguments, &[])
}

/// The same, with more keys allowed than the arguments say.
pub fn provider_options_with(arguments: &KeyArgs, allow: &[&str]) -> ProviderOptions {
    let patterns = arguments.allow.iter().map(String::as_str).chain(allow.iter().copied());
    ProviderOptions {
        authorization: patterns.fold(Authorization::default(), Authorization::allow),
        providers: Providers::of_this_host(),
        passphrase_file: arguments.passphrase_file.clone(),
        slot: arguments.slot,
        interactive: true,
        key_store: arguments.key_store.clone(),
        ..ProviderOptions::default()
    }
}

fn list(arguments: &KeyListArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let config = place::config(&volume)?;
    let mut table = serde_json::Map::new();
    table.insert("slots".to_owned(), status::slots(config.claims()));
    status::print(&table, arguments.json);
    Ok(())
}

fn add(arguments: &KeyAddArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let options = provider_options(&arguments.keys);
    let opened = unlock(&volume, &options)?;
    let new = ProviderOptions {
        authorization: options.authorization.clone().allow(&arguments.kek),
        new_passphrase_file: arguments.new_passphrase_file.clone(),
        create_local_key: true,
        ..options
    };
    let failed = |error| Failure::key(&volume, &error);
    let provider =
        provider_from_uri(&arguments.kek, &new).map_err(|error| failed(KeyError::Kek(error)))?;
    let (config, slot) = opened.keys.add_slot(&opened.config, &*provider).map_err(failed)?;
    open::replace_config(&volume, opened, &config)?;
    println!("added slot {slot}: {}", arguments.kek);
    Ok(())
}

fn remove(arguments: &KeyRemoveArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let opened = unlock(&volume, &provider_options(&arguments.keys))?;
    let config = opened.keys.remove_slot(&opened.config, arguments.remove);
    let config = config.map_err(|error| Failure::key(&volume, &error))?;
    open::replace_config(&volume, opened, &config)?;
    println!("removed slot {}", arguments.remove);
    println!("Who has an old copy of atrest.json and the key can still open the volume.");
    Ok(())
}

fn rotate(arguments: &KeyRotateArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let mut options = provider_options(&arguments.keys);
    let opened = unlock(&volume, &options)?;
    options.new_passphrase_file.clone_from(&arguments.new_passphrase_file);
    let failed = |error| Failure::key(&volume, &error);
    if let Some(id) = arguments.rotate_slot {
        let slot = opened.config.slot(id).ok_or_else(|| failed(KeyError::NoSuchSlot(id)))?;
        let provider = provider_from_uri(&slot.provider, &options)
            .map_err(|error| failed(KeyError::Kek(error)))?;
        let config = opened
            .keys
            .rotate_slot(&opened.config, id, &*provider, arguments.new_version)
            .map_err(failed)?;
        open::replace_config(&volume, opened, &config)?;
        println!("rotated slot {id}");
        return Ok(());
    }
    let (config, reports) = opened
        .keys
        .rotate_slots(&opened.config, &options, arguments.new_version)
        .map_err(failed)?;
    if let Some(config) = &config {
        open::replace_config(&volume, opened, config)?;
    }
    report(&volume, &reports)
}

fn verify(arguments: &KeyVerifyArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let options = provider_options(&arguments.keys);
    let opened = unlock(&volume, &options)?;
    report(&volume, &opened.keys.verify(&opened.config, &options))
}

/// Prints a line for each slot; fails if one failed.
fn report(volume: &Path, reports: &[SlotReport]) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for report in reports {
        match &report.result {
            Ok(()) => println!("slot {}: {}: ok", report.slot, report.provider),
            Err(error) => failed.push(format!("slot {}: {}", report.slot, kek_text(error))),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let message =
        format!("{} of {} key slots of {} failed", failed.len(), reports.len(), volume.display());
    Err(failed.into_iter().fold(Failure::new(Exit::NoSlotOpens, message), Failure::hint))
}

/// Unwraps the volume's keys.
///
/// # Errors
/// No slot opens, or the configuration is refused.
pub fn unlock(volume: &Path, options: &ProviderOptions) -> Result<Opened, Failure> {
    let bytes = place::config_bytes(volume)?;
    VolumeKeys::open(&bytes, options).map_err(|error| Failure::key(volume, &error))
}
