//! Random operations on the filesystem and on a reference that is too simple to be wrong; after
//! each the outcomes must agree, and every so often everything is compared: names, attributes,
//! contents, extended attributes. Epochs end and the volume is reopened at random.
//!
//! `ATREST_SEED` repeats a run, `ATREST_MODEL_OPS` makes it longer.

mod backing;
mod operations;
mod random;
mod reference;
mod rules;
mod threads;
mod world;

use atrest::crypto::Cipher;
use random::{Random, Replay, operations as count, seed};
use world::World;

/// The seeds of one run follow from the printed one; each starts with an empty volume.
const VOLUMES: usize = 4;

#[test]
fn random_operations_agree_with_the_reference() {
    let seed = seed();
    println!("ATREST_SEED={seed}");
    let mut replay = Replay { seed, operation: 0 };
    let mut random = Random::new(seed);
    let each = count(200_000).div_ceil(VOLUMES);
    for volume in 0..VOLUMES {
        let ciphers = [Cipher::Aes256Gcm, Cipher::Aes256Xts];
        let mut world = World::new(ciphers[volume % ciphers.len()]);
        for _ in 0..each {
            replay.operation += 1;
            let operation = operations::random(&world, &mut random);
            if std::env::var_os("ATREST_MODEL_VERBOSE").is_some() {
                println!("{}: {operation:?}", replay.operation);
            }
            world.apply(&operation, &mut random);
        }
        world.reopen(true);
        world.verify();
        world.assert_was_exercised(each);
    }
}
