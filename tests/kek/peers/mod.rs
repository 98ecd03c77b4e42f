//! The peers of the contract.

pub mod aws;
pub mod exec;
pub mod local;
pub mod openbao;
pub mod passphrase;
pub mod server;
pub mod softhsm;
#[cfg(feature = "tpm2")]
pub mod swtpm;
pub mod vault;

pub use crate::programs::{configure_softhsm, output, write_private};
