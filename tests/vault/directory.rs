//! A vault on disk: locked, remembered by its host, refused when it is not what it was.

use atrest::storage::LockError;
use atrest::vault::VaultError;
use serde_json::{Value, json};

use crate::world::{World, open};

/// What was done is there after opening again; while a vault is open nobody else opens it.
#[test]
fn reopened() {
    let mut world = World::new();
    let made = world.done("POST", "/keys/k/create", json!({ "kty": "EC" }));
    assert!(matches!(open(world.place.path(), false), Err(VaultError::Lock(LockError::Held(_)))));
    world.vault = None;
    let vault = open(world.place.path(), false).expect("it is free");
    let access = atrest::vault::access::Access::closed();
    world.service = std::sync::Arc::new(atrest::vault::Service::new(vault.store.clone(), access));
    assert_eq!(world.done("GET", "/keys/k", Value::Null), made);
}

/// An older state, whole or cut, and an older configuration are refused by the host that has seen
/// a newer one; `allow_rollback` accepts them.
#[test]
fn rolled_back() {
    let mut world = World::new();
    let state = world.place.path().join("vault/state");
    world.done("POST", "/keys/k/create", json!({ "kty": "oct" }));
    let old = std::fs::read(&state).expect("readable");
    world.done("DELETE", "/keys/k", Value::Null);
    let vault = world.vault.take().expect("it is open");
    vault.remember().expect("writable");
    drop(vault);
    let new = std::fs::read(&state).expect("readable");
    assert!(new.starts_with(&old), "the log was cut, it is the older state");
    std::fs::write(&state, &old).expect("writable");
    assert!(matches!(open(world.place.path(), false), Err(VaultError::RolledBack)));
    std::fs::write(&state, &new).expect("writable");
    open(world.place.path(), false).expect("the newest state is right");
    std::fs::write(&state, &old).expect("writable");
    open(world.place.path(), true).expect("accepted");
    open(world.place.path(), false).expect("accepted once and for all");
}

/// Directories that others may enter, that are no vaults, or not empty.
#[test]
fn refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = World::new();
    world.vault = None;
    let directory = world.place.path().join("vault");
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&directory, mode(0o750)).expect("owned");
    assert!(matches!(open(world.place.path(), false), Err(VaultError::OpenToOthers(_))));
    std::fs::set_permissions(&directory, mode(0o700)).expect("owned");
    let config = directory.join("vault.json");
    let bytes = std::fs::read(&config).expect("readable");
    let text = String::from_utf8(bytes.clone()).expect("JSON");
    std::fs::write(&config, text.replace("\"generation\": 1", "\"generation\": 2"))
        .expect("writable");
    assert!(matches!(open(world.place.path(), false), Err(VaultError::Key(_))), "its MAC");
    std::fs::write(&config, &bytes).expect("writable");
    open(world.place.path(), false).expect("as it was");
    std::fs::remove_file(&config).expect("owned");
    assert!(matches!(open(world.place.path(), false), Err(VaultError::NotAVault(_))));
}
