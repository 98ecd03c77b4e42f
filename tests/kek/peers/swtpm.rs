//! `tpm2:` on swtpm, sealed to a register that can be set back.

use std::ffi::OsString;
use std::path::Path;

use atrest::key::{Authorization, ProviderOptions};

use super::{output, server};
use crate::alone::Prepared;
use crate::peer::{Act, Peer, Row};

pub const ROW: Row = Row {
    name: "swtpm",
    offers: &[Act::Revoke, Act::Restore],
    not_offered: "a TPM's key is its owner's seed, which has no switch and no versions, and is \
                  another's when the TPM is cleared (`tests/hsm` does); a version is the state of \
                  the registers, and what an older state sealed is denied",
    binds: true,
    at_once: 100,
    mounts: 8,
    // There is no resource manager between them, and room for three objects.
    daemons_at_once: 1,
    quirks: &[],
    authenticates: true,
};
/// A register that anybody may set back.
const REGISTER: &str = "16";

pub struct Swtpm;

pub fn prepare(scratch: &Path) -> Prepared {
    let mut prepared = server::prepare(scratch, "swtpm", &[]);
    let known = prepared.environment.iter().find(|(name, _)| name == "SWTPM_TCTI");
    let tcti: OsString = known.expect("scripts/peers says where it is").1.clone();
    for name in ["ATREST_TPM2_TCTI", "TPM2TOOLS_TCTI"] {
        prepared.environment.push((name.to_owned(), tcti.clone()));
    }
    prepared
}

pub fn peer(_: &Path) -> Swtpm {
    Swtpm
}

impl Peer for Swtpm {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn uri(&self) -> String {
        format!("tpm2:pcrs={REGISTER}")
    }

    /// The same seed, other registers.
    fn other_uri(&self) -> String {
        "tpm2:pcrs=23".to_owned()
    }

    fn options(&self) -> ProviderOptions {
        let authorization = Authorization::default().allow(&self.uri()).allow(&self.other_uri());
        ProviderOptions { authorization, ..ProviderOptions::default() }
    }

    fn act(&self, act: Act) {
        match act {
            // The right to unseal is the host's state.
            Act::Revoke => {
                output("tpm2_pcrextend", &[&format!("{REGISTER}:sha256={}", "ab".repeat(32))]);
            }
            Act::Restore => {
                output("tpm2_pcrreset", &[REGISTER]);
            }
            _ => unreachable!("the row does not offer it"),
        }
    }
}
