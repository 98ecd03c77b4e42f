//! `atrest key`

use std::path::Path;

use serde_json::{Map, Value, json};

use super::args::{
    KeyAddArgs, KeyArgs, KeyCommand, KeyListArgs, KeyRemoveArgs, KeyRotateArgs, KeySourceArgs,
    KeyVerifyArgs,
};
use super::exit::Exit;
use super::hint::{Failure, advice, kek_text};
use super::{audit, kek, open, place, status};
use crate::audit::{Asker, Audit, Entry, Event};
use crate::key::{
    Authorization, KeyError, Opened, ProviderOptions, Providers, Rotation, SlotCheck, VolumeKeys,
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
    source_options(&arguments.source, arguments.slot, allow)
}

/// The same, of commands that do not open a volume, or have their own word for the slot that does.
pub fn source_options(
    arguments: &KeySourceArgs,
    slot: Option<u32>,
    allow: &[&str],
) -> ProviderOptions {
    let patterns = arguments.allow.iter().map(String::as_str).chain(allow.iter().copied());
    ProviderOptions {
        authorization: patterns.fold(Authorization::default(), Authorization::allow),
        providers: Providers::of_this_host(),
        passphrase_file: arguments.passphrase_file.clone(),
        slot,
        interactive: true,
        key_store: arguments.key_store.clone(),
        ..ProviderOptions::default()
    }
}

fn list(arguments: &KeyListArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let config = place::config(&volume)?;
    let mut table = Map::new();
    table.insert("slots".to_owned(), status::slots(config.claims()));
    status::print(&table, arguments.json);
    Ok(())
}

fn add(arguments: &KeyAddArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let options = provider_options(&arguments.keys);
    let audit = audit::open_for(&arguments.audit, &volume)?;
    let opened = unlock(&volume, &options, &audit, "key add")?;
    let new = ProviderOptions {
        authorization: options.authorization.clone().allow(&arguments.kek),
        new_passphrase_file: arguments.new_passphrase_file.clone(),
        create_local_key: true,
        ..options
    };
    let failed = |error| Failure::key(&volume, &error);
    let provider =
        provider_from_uri(&arguments.kek, &new).map_err(|error| failed(KeyError::Kek(error)))?;
    let added = opened.keys.add_slot(&opened.config, &*provider);
    let made = added.as_ref().map(|(config, slot)| config.slot(*slot).expect("it was added"));
    audit::wrapped(&audit, wrap("key add"), made)?;
    let (config, slot) = added.map_err(failed)?;
    kek::warn(&*provider);
    open::replace_config(&volume, opened, &config, &audit)?;
    println!("added slot {slot}: {}", arguments.kek);
    Ok(())
}

fn remove(arguments: &KeyRemoveArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let audit = audit::open_for(&arguments.audit, &volume)?;
    let opened = unlock(&volume, &provider_options(&arguments.keys), &audit, "key remove")?;
    let config = opened.keys.remove_slot(&opened.config, arguments.remove);
    let config = config.map_err(|error| Failure::key(&volume, &error))?;
    open::replace_config(&volume, opened, &config, &audit)?;
    println!("removed slot {}", arguments.remove);
    println!("Who has an old copy of atrest.json and the key can still open the volume.");
    Ok(())
}

fn rotate(arguments: &KeyRotateArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let to: Vec<&str> = arguments.to.iter().map(String::as_str).collect();
    let options = source_options(&arguments.keys, arguments.open_slot, &to);
    let audit = audit::open_for(&arguments.audit, &volume)?;
    let opened = unlock(&volume, &options, &audit, "key rotate")?;
    let options = ProviderOptions {
        new_passphrase_file: arguments.new_passphrase_file.clone(),
        create_local_key: arguments.to.is_some(),
        ..options
    };
    let failed = |error| Failure::key(&volume, &error);
    if let Some(id) = arguments.slot {
        let slot = opened.config.slot(id).ok_or_else(|| failed(KeyError::NoSuchSlot(id)))?;
        let uri = arguments.to.as_ref().unwrap_or(&slot.provider).clone();
        let provider =
            provider_from_uri(&uri, &options).map_err(|error| failed(KeyError::Kek(error)))?;
        let rotated =
            opened.keys.rotate_slot(&opened.config, id, &*provider, arguments.new_version);
        let made = rotated.as_ref().map(|config| config.slot(id).expect("it was rotated"));
        audit::wrapped(&audit, wrap("key rotate"), made)?;
        let config = rotated.map_err(failed)?;
        kek::warn(&*provider);
        open::replace_config(&volume, opened, &config, &audit)?;
        let version = config.slot(id).map_or("", |slot| &slot.kek.key_version);
        println!("rotated slot {id}: {uri}, version {version}");
        return Ok(());
    }
    let (config, rotations) = opened
        .keys
        .rotate_slots(&opened.config, &options, arguments.new_version)
        .map_err(failed)?;
    for Rotation { slot, result, .. } in &rotations {
        let rewrap = Entry::new(Event::Rewrap, "key rotate", &Asker::of_this_process());
        match (result, config.as_ref().and_then(|config| config.slot(*slot))) {
            (Ok(Some(_)), Some(slot)) => audit::wrapped(&audit, rewrap, Ok(slot))?,
            (Ok(_), _) => {}
            (Err(error), _) => _ = audit.record(&audit::of_kek_error(rewrap, *slot, error)),
        }
    }
    if let Some(config) = &config {
        open::replace_config(&volume, opened, config, &audit)?;
    }
    report_rotations(&volume, &rotations)
}

/// Prints a line for each slot; fails if one failed.
fn report_rotations(volume: &Path, rotations: &[Rotation]) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for Rotation { slot, provider, result } in rotations {
        match result {
            Ok(Some(version)) => println!("slot {slot}: {provider}: rotated to {version}"),
            Ok(None) => println!("slot {slot}: {provider}: nothing newer"),
            Err(error) => failed.push((*slot, error)),
        }
    }
    slots_failed(volume, &failed, rotations.len(), "could not be rotated, and are as they were")
}

fn verify(arguments: &KeyVerifyArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let options = provider_options(&arguments.keys);
    let audit = audit::open_for(&arguments.audit, &volume)?;
    let opened = unlock(&volume, &options, &audit, "key verify")?;
    let checks = opened
        .keys
        .check_slots(&opened.config, &options, None)
        .map_err(|error| Failure::key(&volume, &error))?;
    for SlotCheck { slot, unwraps, .. } in &checks {
        let unwrap = Entry::new(Event::Unwrap, "key verify", &Asker::of_this_process());
        let kek = opened.config.slot(*slot).map(audit::of_slot).unwrap_or_default();
        audit.record(&match unwraps {
            Ok(()) => unwrap.with_kek(kek),
            Err(error) => audit::of_kek_error(unwrap, *slot, error),
        })?;
    }
    report_checks(&volume, &checks, arguments.json)
}

/// Prints what was found of each slot; fails if one does not do what it must. `place` is the
/// directory that the slots are of.
///
/// # Errors
/// [`Exit::SlotBad`].
pub fn report_checks(place: &Path, checks: &[SlotCheck], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let slots: Value = checks.iter().map(check_json).collect();
        println!("{:#}", json!({ "volume": place.to_string_lossy(), "slots": slots }));
    } else {
        checks.iter().for_each(print_check);
    }
    let errors = checks.iter().filter_map(|check| {
        let wraps = check.wraps.as_ref().and_then(|wraps| wraps.as_ref().err());
        check.unwraps.as_ref().err().or(wraps).map(|error| (check.slot, error))
    });
    slots_failed(place, &errors.collect::<Vec<_>>(), checks.len(), "failed")
}

/// `Ok` if none failed.
fn slots_failed(
    volume: &Path,
    failed: &[(u32, &crate::key::KekError)],
    of: usize,
    how: &str,
) -> Result<(), Failure> {
    if failed.is_empty() {
        return Ok(());
    }
    let message = format!("{} of {of} key slots of {} {how}", failed.len(), volume.display());
    let mut failure = Failure::new(Exit::SlotBad, message);
    for (slot, error) in failed {
        failure = failure.hint(format!("slot {slot}: {}", kek_text(error)));
        failure = advice(error).into_iter().fold(failure, Failure::hint);
    }
    Err(failure)
}

/// What the check found, in words behind the slot.
fn print_check(check: &SlotCheck) {
    let SlotCheck { slot, provider, .. } = check;
    let mut words = vec![match &check.unwraps {
        Ok(()) => "unwraps".to_owned(),
        Err(_) => "does not unwrap".to_owned(),
    }];
    match &check.wraps {
        Some(Ok(())) => words.push("wraps".to_owned()),
        Some(Err(_)) => words.push("does not wrap".to_owned()),
        None => {}
    }
    if let Some(Ok(health)) = &check.health {
        words.extend(kek::health_words(health));
    }
    if let Some(version) = &check.newer_version {
        words.push(format!("there is a newer version, {version}: atrest key rotate"));
    }
    println!("slot {slot}: {provider}: {}", words.join(", "));
    if let Some(health) = &check.health {
        let warnings = kek::warnings(provider, health);
        warnings.iter().for_each(|warning| eprintln!("warning: slot {slot}: {warning}"));
    }
}

fn check_json(check: &SlotCheck) -> Value {
    let outcome = |result: &Result<(), _>| match result {
        Ok(()) => json!({ "ok": true }),
        Err(error) => json!({ "ok": false, "error": kek_text(error), "advice": advice(error) }),
    };
    let health = check.health.as_ref();
    json!({
        "slot": check.slot,
        "provider": check.provider,
        "key": check.kek.key_id,
        "key_version": check.kek.key_version,
        "algorithm": check.kek.algorithm,
        "ok": check.is_good(),
        "unwrap": outcome(&check.unwraps),
        "wrap": check.wraps.as_ref().map(outcome),
        "newer_version": check.newer_version,
        "health": health.map(kek::health_json),
        "warnings": health.map_or_else(Vec::new, |health| kek::warnings(&check.provider, health)),
    })
}

/// An entry for a key that this command has wrapped.
fn wrap(purpose: &str) -> Entry {
    Entry::new(Event::Wrap, purpose, &Asker::of_this_process())
}

/// Unwraps the volume's keys, and puts that on record; `purpose` is the command.
///
/// # Errors
/// No slot opens, the configuration is refused, or it cannot be put on record.
pub fn unlock(
    volume: &Path,
    options: &ProviderOptions,
    audit: &Audit,
    purpose: &str,
) -> Result<Opened, Failure> {
    let bytes = place::config_bytes(volume)?;
    let opened = VolumeKeys::open(&bytes, options);
    let by = Asker::of_this_process();
    audit::unwrapped(audit, (Event::Unwrap, purpose), &by, &opened)?;
    opened.map_err(|error| Failure::key(volume, &error))
}
