//! Damage on a real disk, seen through the built binary: what `fsck` prints, and what it saves.

use super::{ID, Scenario};
use atrest::format::VolumeId;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Caller, Tree};
use atrest::key::{ProviderOptions, VolumeKeys};
use atrest::storage::OsStorage;
use atrest::volume::{OpenOptions, Volume};
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

const ROOT: u64 = 1;

fn open(scenario: &Scenario, path: &Path) -> Arc<Volume> {
    let config = fs::read(path.join("atrest.json")).unwrap();
    let secret = scenario.root().join("correct");
    let options = ProviderOptions { passphrase_file: Some(secret), ..ProviderOptions::default() };
    let keys = Arc::new(VolumeKeys::open(&config, &options).unwrap().keys);
    let storage = Arc::new(OsStorage::open(path, false).unwrap());
    let cipher = keys.cipher();
    let options = OpenOptions::default();
    Volume::open(storage, keys, VolumeId(ID), cipher, &config, &options).unwrap().0
}

/// Makes a volume with a few files and returns where the second page of `/dir/big` lies.
fn fill(scenario: &mut Scenario, big: &[u8]) -> (u32, u64) {
    scenario.prepare("volume vault");
    let volume = open(scenario, &scenario.root().join("vault"));
    let tree = VolumeTree::new(volume.clone());
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
    let dir = tree.mkdir(caller, ROOT, b"dir", 0o750).unwrap().ino;
    let made = tree.mknod(caller, dir, b"big", libc::S_IFREG | 0o640, 0).unwrap().ino;
    tree.write(made, 0, big, false).unwrap();
    tree.link(made, ROOT, b"linked").unwrap();
    let small = tree.mknod(caller, dir, b"small", libc::S_IFREG | 0o600, 0).unwrap().ino;
    tree.write(small, 0, b"small content", false).unwrap();
    tree.symlink(caller, ROOT, b"link", b"dir/small").unwrap();
    tree.mknod(caller, ROOT, b"pipe", libc::S_IFIFO | 0o600, 0).unwrap();
    volume.sync().unwrap();
    let slot = volume.slot_of(made, 1).unwrap().unwrap();
    drop(tree);
    volume.close().unwrap();
    (slot.segment(), slot.offset())
}

#[test]
fn damage_is_named_and_the_rest_is_saved() {
    let mut scenario = Scenario { directory: tempfile::tempdir().unwrap(), locks: Vec::new() };
    let big: Vec<u8> = (0..20_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let (segment, offset) = fill(&mut scenario, &big);
    let clean = scenario.run("atrest fsck --deep $T/vault --passphrase-file $T/correct");
    assert!(clean.starts_with("exit 0\n"), "{clean}");

    let path = scenario.root().join(format!("vault/data/{segment:08}"));
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(b"somebody else's bytes", offset + 7).unwrap();
    let shallow = scenario.run("atrest fsck $T/vault --passphrase-file $T/correct");
    assert!(shallow.starts_with("exit 0\n"), "{shallow}");
    let deep = "atrest fsck --deep --salvage $T/saved $T/vault --passphrase-file $T/correct";
    let found = scenario.run(deep);
    assert!(found.starts_with("exit 44\n"), "{found}");
    let line = "bytes 4096 to 8191: it does not authenticate (page-lost)";
    assert!(found.contains(line), "{found}");
    assert!(found.contains("err| error: $T/vault is damaged; losses: 1,"), "{found}");

    let saved = scenario.root().join("saved");
    let mut expected = big;
    expected[4096..8192].fill(0);
    assert!(fs::read(saved.join("dir/big")).unwrap() == expected, "all but the damaged page");
    assert_eq!(fs::read(saved.join("dir/small")).unwrap(), b"small content");
    assert_eq!(fs::read_link(saved.join("link")).unwrap(), Path::new("dir/small"));
    let (one, two) = (saved.join("dir/big"), saved.join("linked"));
    let (one, two) = (fs::metadata(one).unwrap(), fs::metadata(two).unwrap());
    assert_eq!((one.ino(), one.mode() & 0o7777), (two.ino(), 0o640));
    assert_eq!(fs::metadata(saved.join("dir")).unwrap().mode() & 0o7777, 0o750);
    assert!(!saved.join("pipe").exists());
    assert!(found.contains("err| /pipe: not copied"), "{found}");
    let again = scenario.run(deep);
    assert!(again.contains("err| error: $T/saved is not empty"), "{again}");
}

#[test]
fn damage_is_repaired_after_what_is_whole_was_saved() {
    let mut scenario = Scenario { directory: tempfile::tempdir().unwrap(), locks: Vec::new() };
    let big: Vec<u8> = (0..20_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let (segment, offset) = fill(&mut scenario, &big);
    let path = scenario.root().join(format!("vault/data/{segment:08}"));
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(b"somebody else's bytes", offset + 7).unwrap();

    let every_file = || {
        let mut bytes = Vec::new();
        for name in ["super.a", "super.b"] {
            bytes.push(fs::read(scenario.root().join("vault").join(name)).unwrap());
        }
        let data = fs::read_dir(scenario.root().join("vault/data")).unwrap();
        let mut names: Vec<_> = data.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        for name in names {
            let mut part = vec![0; 4 << 20];
            fs::File::open(name).unwrap().read_exact_at(&mut part, 0).unwrap();
            bytes.push(part);
        }
        bytes
    };
    let before = every_file();
    let dry = scenario.run("atrest fsck --deep $T/vault --passphrase-file $T/correct");
    assert!(dry.starts_with("exit 44\n"), "{dry}");
    let line = "bytes 4096 to 8191: it does not authenticate: it reads as zeros (content-lost)";
    assert!(dry.contains("out| --repair would change this:\n"), "{dry}");
    assert!(dry.contains(&format!("out|   /linked: {line}")), "{dry}");
    assert!(every_file() == before, "a dry run changes not one byte");

    // What cannot be saved is not repaired.
    fs::create_dir_all(scenario.root().join("full/of/something")).unwrap();
    let repair = "atrest fsck --repair --salvage $T/full $T/vault --passphrase-file $T/correct";
    let refused = scenario.run(repair);
    assert!(refused.starts_with("exit 1\n"), "{refused}");
    assert!(refused.contains("err|   Nothing was repaired"), "{refused}");
    let again = scenario.run("atrest fsck --deep $T/vault --passphrase-file $T/correct");
    assert!(again.starts_with("exit 44\n"), "{again}");

    let repaired = scenario.run(&repair.replace("full", "saved"));
    assert!(repaired.starts_with("exit 45\n"), "{repaired}");
    assert!(repaired.contains(&format!("out|   /linked: {line}")), "{repaired}");
    let sound = "err| $T/vault is repaired and sound; files that lost content: 1";
    assert!(repaired.contains(sound), "{repaired}");
    let mut expected = big;
    expected[4096..8192].fill(0);
    let saved = scenario.root().join("saved");
    assert!(fs::read(saved.join("linked")).unwrap() == expected);
    assert!(!saved.join("dir/small").exists(), "only what is damaged is saved");
    let list = fs::read_to_string(saved.join("lost-ranges.txt")).unwrap();
    assert_eq!(list, "# path, first lost byte, lost bytes\n/linked\t4096\t4096\n");

    let clean = scenario.run("atrest fsck --deep $T/vault --passphrase-file $T/correct");
    assert!(clean.starts_with("exit 0\n"), "{clean}");
    let volume = open(&scenario, &scenario.root().join("vault"));
    let tree = VolumeTree::new(volume.clone());
    let dir = tree.lookup(ROOT, b"dir").unwrap().ino;
    let found = tree.lookup(dir, b"big").unwrap();
    let mut content = Vec::new();
    tree.read(found.ino, 0, 80_000, false, &mut content).unwrap();
    assert!(content == expected && found.links == 2);
}

#[test]
fn what_keys_show_of_a_file() {
    let mut scenario = Scenario { directory: tempfile::tempdir().unwrap(), locks: Vec::new() };
    let (segment, _) = fill(&mut scenario, &[7; 12_288]);
    let shown = "atrest inspect --json --path /dir/big $T/vault --passphrase-file $T/correct";
    let shown = scenario.run(shown);
    for part in ["\"path\": \"/", "\"size\": 12288", "\"pages\": 3", "\"bytes\": 12288"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(shown.contains(&format!("\"segment\": {segment}")), "{shown}");
    let whole = scenario.run("atrest inspect --unlock $T/vault --passphrase-file $T/correct");
    for part in ["table inodes", "class node-a", "file super.b", "clean true", "level 0"] {
        assert!(whole.contains(part), "{part}: {whole}");
    }
}
