//! Offline manipulation: whatever is done to the files of a volume while it is not mounted, what is
//! read afterwards is authentic or an error.
//!
//! Each row of the table in `src/manual/threats.md` is a case here. A case works on a copy of a
//! volume of which an older copy is known, too, then opens it and compares everything that can be
//! seen with the states in which the volume has been. What is seen must belong to one of them, but
//! for what is an error; which one, and how many errors, is what the case says.

#[path = "../common/mod.rs"]
mod common;
mod objects;
mod sets;
mod world;

use world::{Outcome, World};

/// A volume that was unmounted in order, and one whose last changes are in the log only.
fn worlds() -> [World; 2] {
    [World::new(true), World::new(false)]
}

/// The worlds are what they are meant to be, so that the cases are about something.
#[test]
fn untouched_volumes_are_whole() {
    for world in worlds() {
        let outcome = world.open(&world.copy());
        assert_eq!(outcome, Outcome::exact(world.latest()), "closed: {}", world.closed);
        assert!(world.states.len() >= 6);
        let old = world.open(&world.older);
        assert_eq!(old, Outcome::exact(world.older_state), "the older copy is a state of its own");
    }
}
