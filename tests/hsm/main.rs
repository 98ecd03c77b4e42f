//! Keys on tokens and in TPMs: the providers `pkcs11:` and `tpm2:` against SoftHSM, NSS and swtpm.
//!
//! Needs the packages softhsm2, opensc, libnss3, libnss3-tools, swtpm, tpm2-tools and a C
//! compiler; what is missing fails. Each case runs in a process of its own, because the state of a
//! PKCS #11 library is the process's, and so is the environment that says where the peer is.

mod alone;
mod mounted;
mod pkcs11;
#[path = "../common/programs.rs"]
mod programs;
#[path = "../common/softhsm.rs"]
mod softhsm;
mod token;
#[cfg(feature = "tpm2")]
mod tpm2;
