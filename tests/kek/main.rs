//! One contract for all providers of key-encryption keys, run unchanged over each on a real peer.
//!
//! A peer (`peers`) is a key store or service that a test starts; what can be done to its keys is
//! in its row of a table, with the reason for what cannot (`peer`). The contract (`contract`)
//! wraps, unwraps, and takes keys and rights away; for peers in a network it also does everything
//! wrong that a network can (`network`, with a `proxy` in between). Each case is a process of its
//! own, of which every line is searched for the secrets that it was given (`alone`), and so are the
//! logs of the daemons that mount volumes of the peer's key (`mounted`). A peer that cannot be
//! started fails its test.

mod alone;
mod certificates;
mod contract;
#[path = "../common/memory.rs"]
mod memory_of;
mod mounted;
mod network;
mod peer;
mod peers;
#[path = "../common/programs.rs"]
mod programs;
mod proxy;
#[path = "../common/softhsm.rs"]
mod softhsm_keys;

#[cfg(feature = "tpm2")]
use peers::swtpm;
use peers::{aws, exec, local, openbao, passphrase, softhsm, vault};

#[test]
fn local() {
    alone::run("local", local::prepare, |scratch| contract::try_all(&local::peer(scratch)));
}

#[test]
fn passphrase() {
    let case = |scratch: &_| contract::try_all(&passphrase::peer(scratch));
    alone::run("passphrase", passphrase::prepare, case);
}

#[test]
fn softhsm_aes() {
    let case = |scratch: &_| contract::try_all(&softhsm::peer(scratch, &softhsm::AES));
    alone::run("softhsm_aes", softhsm::prepare, case);
}

#[test]
fn softhsm_rsa() {
    let case = |scratch: &_| contract::try_all(&softhsm::peer(scratch, &softhsm::RSA));
    alone::run("softhsm_rsa", softhsm::prepare, case);
}

#[cfg(feature = "tpm2")]
#[test]
fn swtpm() {
    alone::run("swtpm", swtpm::prepare, |scratch| contract::try_all(&swtpm::peer(scratch)));
}

#[test]
fn exec() {
    alone::run("exec", exec::prepare, |scratch| contract::try_all(&exec::peer(scratch)));
}

#[test]
fn openbao() {
    alone::run("openbao", openbao::prepare, |scratch| contract::try_all(&openbao::peer(scratch)));
}

#[test]
fn ministack() {
    let prepare = |scratch: &_| aws::prepare(scratch, &aws::MINISTACK);
    alone::run("ministack", prepare, |scratch| {
        contract::try_all(&aws::peer(scratch, &aws::MINISTACK))
    });
}

#[test]
fn moto() {
    let prepare = |scratch: &_| aws::prepare(scratch, &aws::MOTO);
    alone::run("moto", prepare, |scratch| contract::try_all(&aws::peer(scratch, &aws::MOTO)));
}

#[test]
fn vault() {
    alone::run("vault", vault::prepare, |scratch| contract::try_all(&vault::peer(scratch)));
}
