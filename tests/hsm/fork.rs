//! A child of fork(2) and keys on a token. Without the harness, because only a process with one
//! thread can be forked.

// Each uses some of it.
#[allow(dead_code)]
mod alone;
#[allow(dead_code)]
#[path = "../common/programs.rs"]
mod programs;
#[allow(dead_code)]
#[path = "../common/softhsm.rs"]
mod softhsm;
#[allow(dead_code)]
mod token;

use atrest::crypto::random;
use atrest::key::KekProvider;
use atrest::sys::process::{Side, fork, wait};

use token::{BINDING, Token};

/// A child has a library state of its own: it initialises, logs in and unwraps, with a provider
/// that it inherits and with a fresh one; and the parent's session is not disturbed.
fn main() {
    alone::run("fork", token::shimmed, |scratch| {
        let token = Token::new(scratch);
        token.make("AES:32", "volume", "01", &[]);
        let provider = token.provider("volume");
        let secret = random::secret(32);
        let wrapped = provider.wrap(&BINDING, &[&secret]).expect("it wraps");
        let unwraps = |provider: &dyn KekProvider| {
            let opened = provider.unwrap(&BINDING, &wrapped.kek, &wrapped.blobs[0]);
            opened.inspect_err(|error| eprintln!("{error:?}")).is_ok_and(|key| key.is_same(&secret))
        };
        match fork().expect("one thread can be forked") {
            Side::Child => {
                let inherited = unwraps(&*provider);
                let fresh = unwraps(&*token.provider("volume"));
                drop(provider);
                std::process::exit(i32::from(!(inherited && fresh)));
            }
            Side::Parent(child) => assert_eq!(wait(child).expect("a child"), 0, "in the child"),
        }
        assert!(unwraps(&*provider), "in the parent");
        println!("test result: ok. 1 passed");
    });
}
